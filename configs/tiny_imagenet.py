"""Tiny-ImageNet: 200 classes of ImageNet at 64x64, with a box around the object of each image.

    python main.py --config configs/tiny_imagenet.py:resnet20,cutmix --config.data_dir=PATH
    python main.py --config configs/tiny_imagenet.py:resnet20x4,baseline --config.data_dir=PATH

PATH holds the official folder tiny-imagenet-200 or a TFDS dataset of this name. The paper has no
such row. The networks are those of CIFAR. Their last maps are 16x16 here, which suits localization.

Hardware: one GPU or TPU core, which holds the dataset in memory (1.4 GB). On a CPU use few images
(`--config.train_examples=8500 --config.epochs=15`: 2 minutes per epoch on two cores) or small ones
(`--config.image_size=32 --config.augment.pad=4`: a quarter of the time).
"""

from cutmix_jax.config import base_config
from cutmix_jax.methods import apply_method


def get_config(arg=None):
    """`arg` is MODEL,METHOD; by default resnet20,cutmix."""
    config = base_config()
    config.dataset = "tiny_imagenet"
    config.source = "resident"  # even with --config.image_size=32
    config.image_size = 64
    config.augment.pad = 8
    config.augment.flip = True
    config.normalize.mean = (0.480, 0.448, 0.398)
    config.normalize.std = (0.277, 0.269, 0.282)

    config.epochs = 100
    config.batch_size = 64
    config.learning_rate = 0.1
    config.lr_drops = (0.5, 0.75)
    apply_method(config, arg, "resnet20")
    if config.mix.name == "cutmix" and config.mix.prob is None:
        config.mix.prob = 0.5  # as the authors on CIFAR: small networks underfit easily
    return config
