"""Handwritten digits that come with scikit-learn: no download, no TensorFlow.

python main.py
python main.py --config configs/digits.py:resnet20,baseline
"""

from cutmix_jax.config import base_config
from cutmix_jax.methods import apply_method


def get_config(arg=None):
    """`arg` is MODEL,METHOD; by default resnet20,cutmix."""
    config = base_config()
    config.dataset = "digits"
    config.image_size = 16
    config.augment.pad = 1
    config.normalize.mean, config.normalize.std = (0.305,), (0.376,)
    config.epochs = 20
    config.learning_rate = 0.1
    apply_method(config, arg, "resnet20")
    return config
