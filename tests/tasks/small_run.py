"""Runs of `main.py` in tests that need another task: four blocks of a ResNet and 20 test images.

python main.py --config tests/tasks/small_run.py:ssd
python main.py --config tests/tasks/small_run.py:captions
"""

import jax

from cutmix_jax import models
from cutmix_jax.command_line import read_config
from cutmix_jax.data import shapes
from cutmix_jax.models.resnet import BasicBlock, imagenet

models.NETS["resnet10"] = imagenet((1, 1, 1, 1), BasicBlock)
shapes.TEST_EXAMPLES = 20
jax.config.update("jax_disable_most_optimizations", True)  # compiling takes longer than running

NETWORK = "resnet10x0.0625"
PATHS = {
    "ssd": f"configs/shapes_detection.py:{NETWORK},ssd",
    "captions": f"configs/shapes_captions.py:{NETWORK}",
}


def get_config(arg):
    """`arg` is a key of `PATHS`."""
    config = read_config(PATHS[arg])
    config.image_size, config.train_examples, config.batch_size = 32, 64, 16
    config.epochs, config.eval_every, config.checkpoint_every = 4, 2, 3
    config.loggers = ()  # importing TensorBoard's takes seconds
    if arg == "ssd":
        config.max_objects = 2
    else:
        config.captions.finetune, config.captions.beam, config.captions.hidden = True, 2, 16
    return config
