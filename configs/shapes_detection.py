"""Generated shapes, one to four per image, as a small detection dataset: no download.

    python main.py --config configs/shapes_detection.py
    python main.py --config configs/shapes_detection.py:resnet18x0.25,faster_rcnn
    python main.py --config configs/shapes_detection.py --config.init_from=WORKDIR

WORKDIR is a classifier with the same network, such as `configs/shapes.py:resnet18x0.25,cutmix`.
"""

from cutmix_jax.config import base_config
from cutmix_jax.methods import apply_detector


def get_config(arg=None):
    """`arg` is MODEL,DETECTOR; by default resnet18x0.25,ssd."""
    config = base_config()
    config.dataset = "shapes"
    config.image_size = 128
    config.train_examples = 4000
    config.max_objects = 4
    config.normalize.mean = (0.58, 0.53, 0.51)
    config.normalize.std = (0.17, 0.13, 0.16)

    config.epochs = 16
    config.eval_every = 4
    config.batch_size = 16
    config.learning_rate = 1e-2
    config.schedule = "cosine"
    config.nesterov = False
    config.weight_decay = 5e-4
    config.clip_gradient = 10.0
    apply_detector(config, arg, "resnet18x0.25")
    if config.task == "faster_rcnn":  # a stride of 8, because objects are small
        config.batch_size = 8
        config.weight_decay = 1e-4
        config.detection.region_stage = 2
        config.detection.anchor_scales = (2, 4, 8)
        config.detection.train_proposals = (400, 100)
        config.detection.test_proposals = (400, 100)
        config.detection.regions = 32
    return config
