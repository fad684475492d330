"""Tiny-ImageNet: 200 classes of ImageNet at 64x64, with a box around the object of each image.

    python main.py --config configs/tiny_imagenet.py:resnet20,cutmix --config.data_dir=PATH
    python main.py --config configs/tiny_imagenet.py:resnet20x4,baseline --config.data_dir=PATH

The data is a TFDS set of this name in PATH. The paper has no such row. The networks are those of
CIFAR, whose last maps are 16x16 here, which suits localization.

Hardware: one GPU or TPU core; the set lies in its memory (1.4 GB). On a CPU use few images or
classes: ResNet-20 takes some 4 minutes an epoch of 8,500 images on one core.
"""

from cutmix_jax.config import base_config, parse_arg


def get_config(arg=None):
    """`arg` is MODEL,MIX; by default resnet20,cutmix."""
    config = base_config()
    config.model, config.mix.name = parse_arg(arg, "resnet20")
    if config.mix.name == "cutmix":
        config.mix.prob = 0.5  # as the authors' on CIFAR; a light network is easily underfitted

    config.dataset = "tiny_imagenet"
    config.image_size = 64
    config.augment.pad = 8
    config.augment.flip = True
    config.normalize.mean = (0.480, 0.448, 0.398)
    config.normalize.std = (0.277, 0.269, 0.282)

    config.epochs = 100
    config.batch_size = 64
    config.learning_rate = 0.1
    config.lr_drops = (0.5, 0.75)
    return config
