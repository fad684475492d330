"""Shapes, drawn when they are first asked for: no download, no TensorFlow, boxes for localization.

    python main.py --config configs/shapes.py:resnet20,cutmix
    python main.py --config configs/shapes.py --config.image_size=128 --config.train_examples=4000

Ten forms in any colour, texture, place and size, on cluttered grounds: what tells the class is the
form alone, so that a network which classifies has found the object.
"""

from cutmix_jax.config import base_config
from cutmix_jax.recipes import apply_recipe


def get_config(arg=None):
    """`arg` is MODEL,METHOD; by default resnet20,cutmix."""
    config = base_config()
    config.dataset = "shapes"
    config.image_size = 64
    config.augment.pad = 8
    config.augment.flip = True
    config.normalize.mean = (0.57, 0.49, 0.45)
    config.normalize.std = (0.28, 0.21, 0.25)

    config.epochs = 10
    config.batch_size = 64
    config.learning_rate = 0.1
    config.lr_drops = (0.5, 0.75)
    apply_recipe(config, arg, "resnet20")
    if config.mix.name == "cutmix" and config.mix.prob is None:
        config.mix.prob = 0.5  # a light network is easily underfitted
    return config
