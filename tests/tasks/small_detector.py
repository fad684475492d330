"""Detectors for runs of `main.py` in tests, with a network of four blocks and 20 test images.

python main.py --config tests/tasks/small_detector.py:ssd
"""

import jax

from cutmix_jax import models
from cutmix_jax.command_line import read_config
from cutmix_jax.data import shapes
from cutmix_jax.models.resnet import BasicBlock, imagenet

models.NETS["resnet10"] = imagenet((1, 1, 1, 1), BasicBlock)
shapes.TEST_EXAMPLES = 20
jax.config.update("jax_disable_most_optimizations", True)  # compiling takes longer than running


def get_config(arg):
    """`arg` is the detector."""
    config = read_config(f"configs/shapes_detection.py:resnet10x0.0625,{arg}")
    config.image_size, config.train_examples, config.max_objects = 32, 64, 2
    config.epochs, config.eval_every, config.checkpoint_every = 4, 2, 3
    return config
