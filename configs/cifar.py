"""CIFAR-100 or CIFAR-10 with the paper's recipe (Tables 5 to 7).

    python main.py --config configs/cifar.py:resnet110,cutmix
    python main.py --config configs/cifar.py:resnet110,baseline --config.seed=1
    python main.py --config configs/cifar.py:resnet20,cutmix --config.dataset=cifar10

Expected on CIFAR-100, top-1 error after 300 epochs, best epoch (the paper, mean of three runs):

    resnet110,baseline    23.14 %
    resnet110,cutmix      20.11 %    (reruns of others: 20.2 to 21.3 %)

Hardware: one GPU or TPU core; the set lies in its memory (180 MB). On a CPU use few images:
`--config.train_examples=5000 --config.epochs=30`.
"""

from cutmix_jax.config import base_config, parse_arg


def get_config(arg=None):
    """`arg` is MODEL,MIX; by default resnet110,cutmix."""
    config = base_config()
    config.model, config.mix.name = parse_arg(arg, "resnet110")
    if config.mix.name == "cutmix":
        # The authors' answer for ResNet-110 is 1, for light networks 0.5 or less.
        config.mix.prob = 1.0 if config.model == "resnet110" else 0.5
        config.mix.box = "paper"

    config.dataset = "cifar100"
    config.augment.pad = 4
    config.augment.flip = True
    config.normalize.mean = (125.3 / 255, 123.0 / 255, 113.9 / 255)
    config.normalize.std = (63.0 / 255, 62.1 / 255, 66.7 / 255)

    config.epochs = 300
    config.batch_size = 64
    config.learning_rate = 0.1  # the authors' for ResNets
    config.lr_drops = (0.5, 0.75)
    return config
