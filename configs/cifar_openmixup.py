"""CIFAR-100 as in OpenMixup's benchmark, the published comparison of mixes on a ResNet-18.

    python main.py --config configs/cifar_openmixup.py:resnet18_cifar,baseline
    python main.py --config configs/cifar_openmixup.py:resnet18_cifar,cutmix
    python main.py --config configs/cifar_openmixup.py:resnet18_cifar,cutmix_alpha1_prob0.5

Published top-1 error after 200 epochs, the median of the last ten (`top1_error_median_10` in
results.json); 400 and 800 epochs are published, too:

    baseline  23.58 %    mixup  21.48 %    cutmix  20.55 %    manifold_mixup  20.82 %

`cutmix` has alpha 0.2 and is applied at every step, as there. The last command above has the
CutMix paper's values instead. The settings are those of OpenMixup's configs: SGD with momentum and
without Nesterov's, batch 100, learning rate 0.1 falling to 0 along a cosine, weight decay 1e-4,
crops of images that are padded by reflection, boxes as in the authors' code, partners that are
never the image itself, the last BatchNorm scale of each block 0 at first.

Three things differ. The learning rate falls at every step, and not once an epoch. The linear layer
starts as PyTorch's default, and not from N(0, 0.01). Partners come from rotating the shuffled batch
by a random number, and not from a permutation without fixed points.

Hardware: one GPU, `--config.dtype=bfloat16`; the dataset lies in its memory (180 MB).
"""

from cutmix_jax.config import base_config
from cutmix_jax.recipes import apply_recipe

ALPHAS = {"cutmix": 0.2, "mixup": 1.0, "manifold_mixup": 2.0}


def get_config(arg=None):
    """`arg` is MODEL,METHOD; by default resnet18_cifar,cutmix."""
    config = base_config()
    config.dataset = "cifar100"
    config.augment.pad = 4
    config.augment.pad_mode = "reflect"
    config.augment.flip = True
    config.normalize.mean = (0.4914, 0.4822, 0.4465)
    config.normalize.std = (0.2023, 0.1994, 0.2010)

    config.epochs = 200
    config.batch_size = 100
    config.learning_rate = 0.1
    config.schedule = "cosine"
    config.nesterov = False
    config.zero_init = True
    apply_recipe(config, arg, "resnet18_cifar")
    if config.mix.name in ALPHAS and config.mix.alpha is None:
        config.mix.alpha = ALPHAS[config.mix.name]
    if config.mix.name in ALPHAS:
        config.mix.partner = "rotate"
    if config.mix.name == "cutmix":
        config.mix.box = "paper"
    return config
