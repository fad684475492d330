"""PASCAL VOC detection as in the paper (Tables 1 and 10): trained on 2007 and 2012, tested on 2007.

    python main.py --config configs/voc.py:resnet50,ssd --config.data_dir=VOCdevkit \
        --config.init_from=WORKDIR

WORKDIR is a classifier that was trained here or converted. The detector starts from its backbone.
232 epochs of 517 steps are 119,944; the protocol has 120k. Images take 15 GiB in device memory.

The paper's mAP of SSD with ResNet-50, one run each, by the method of the classifier:

    baseline 76.7 %    mixup 76.6 %    cutout 76.8 %    cutmix 77.6 %

This project has not run it.
"""

from cutmix_jax.config import base_config
from cutmix_jax.methods import apply_detector


def get_config(arg=None):
    """`arg` is MODEL,DETECTOR; by default resnet50,ssd."""
    config = base_config()
    config.dataset = "voc"
    config.resident_limit_mib = 16_384
    config.image_size = 300
    config.normalize.mean = (0.485, 0.456, 0.406)
    config.normalize.std = (0.229, 0.224, 0.225)

    config.epochs = 232
    config.batch_size = 32
    config.learning_rate = 1e-3
    config.lr_drops = (2 / 3, 5 / 6)
    config.nesterov = False
    config.weight_decay = 5e-4
    apply_detector(config, arg, "resnet50")
    return config
