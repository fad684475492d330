"""PASCAL VOC detection as in the paper (Tables 1 and 10): trained on 2007 and 2012, tested on 2007.

    python main.py --config configs/voc.py:resnet50,ssd --config.data_dir=VOCdevkit \
        --config.init_from=WORKDIR
    python main.py --config configs/voc.py:resnet50,faster_rcnn --config.data_dir=VOCdevkit \
        --config.init_from=WORKDIR

WORKDIR is a classifier that was trained here or converted. The detector starts from its backbone.
232 epochs of 517 steps (SSD) and 58 of 2,068 (Faster R-CNN) are 119,944; the protocol has 120k.
Faster R-CNN drops the landscapes and the portraits that do not fill a batch. If these fill one
together, an epoch has 2,067 steps. Images take 15 GiB of device memory. With less memory,
--config.source=streaming decodes each batch.

The paper's mAP with ResNet-50, one run each, by the method of the classifier:

    SSD             baseline 76.7 %    mixup 76.6 %    cutout 76.8 %    cutmix 77.6 %
    Faster R-CNN    baseline 75.6 %    mixup 73.9 %    cutout 75.0 %    cutmix 76.7 %

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
    if config.task == "faster_rcnn":
        config.image_size = 1000  # the longer side is at most that
        config.epochs = 58
        config.batch_size = 8
        config.learning_rate = 1e-2
        config.lr_drops = (5 / 6,)
        config.weight_decay = 1e-4
        config.detection.shorter_side = 600
        config.detection.freeze = True
        config.detection.keep_difficult = True
    return config
