"""ImageNet as in the paper (Tables 3 and 4).

    python main.py --config configs/imagenet.py
    python main.py --config configs/imagenet.py:resnet101,baseline
    python main.py --config configs/imagenet.py --config.dataset=folder --config.data_dir=PATH

The data is TFDS's `imagenet2012`, or a folder with train/CLASS/*.jpg and val/CLASS/*.jpg.

Expected top-1 error after 300 epochs, best epoch (the paper, one run; all its rows:
`python main.py --mode list`):

    resnet50,baseline     23.68 %    resnet101,baseline          21.87 %
    resnet50,cutmix       21.40 %    resnet101,cutmix            20.17 %
    resnet50,cutout       22.93 %    resnext101_32x4d,baseline   21.18 %
    resnet50,mixup        22.58 %    resnext101_32x4d,cutmix     19.47 %

Hardware: 8 GPUs or a TPU v4-8 and up, `--config.dtype=bfloat16`. Published throughput of ResNet-50
on 8 A100 in mixed precision is 16,600 images/s. 300 epochs then take 6.5 hours. This project has
not run them.
"""

from cutmix_jax.config import base_config
from cutmix_jax.methods import apply_method


def get_config(arg=None):
    """`arg` is MODEL,METHOD; by default resnet50,cutmix."""
    config = base_config()
    config.dataset = "imagenet2012"
    config.source = "streaming"
    config.image_size = 224
    config.eval_resize = 256
    config.augment.flip = True
    config.augment.min_area = 0.08
    config.augment.color_jitter = 0.4
    config.augment.lighting = 0.1
    config.normalize.mean = (0.485, 0.456, 0.406)
    config.normalize.std = (0.229, 0.224, 0.225)

    config.epochs = 300
    config.batch_size = 256
    config.learning_rate = 0.1
    config.lr_drops = (0.25, 0.5, 0.75)
    apply_method(config, arg, "resnet50", kind="imagenet")
    return config
