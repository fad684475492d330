"""ImageNet as torchvision trains its "V2" weights: Mixup or CutMix among many other changes.

    python main.py --config configs/imagenet_v2.py --config.data_dir=PATH
    python main.py --config configs/imagenet_v2.py:resnet50,label_smoothing --config.data_dir=PATH

The text after the colon is MODEL,METHOD. The second command leaves the mixes out. The data are
those of configs/imagenet.py. Published top-1 error of the EMA weights of ResNet-50: 19.14 %.

The values are those of torchvision's training command for ResNet50_Weights.IMAGENET1K_V2
(references/classification, and "How to Train State-Of-The-Art Models Using TorchVision's Latest
Primitives", 2021). Three things differ:

- The learning rate changes at every step instead of once per epoch.
- EMA weights start at the initial weights, so they are poor for many epochs. torchvision resets
  them until the warm-up ends.
- Partners come from a permutation of the batch instead of a shift by one.

With another number of epochs or another batch size, set config.ema as well. It is computed below
from the published values.

Hardware: 8 GPUs, `--config.dtype=bfloat16`. This project has not run it.
"""

from cutmix_jax.config import base_config
from cutmix_jax.methods import apply_method


def get_config(arg=None):
    """`arg` is MODEL,METHOD; by default resnet50,cutmix_or_mixup_alpha0.2+label_smoothing."""
    config = base_config()
    config.dataset = "imagenet2012"
    config.source = "streaming"
    config.image_size = 176  # --train-crop-size 176
    config.eval_size = 224  # --val-crop-size, by default 224
    config.eval_resize = 232  # --val-resize-size 232
    config.repeats = 4  # --ra-sampler --ra-reps 4
    config.augment.flip = True
    config.augment.min_area = 0.08  # RandomResizedCrop
    config.augment.policy = "trivial_augment"  # --auto-augment ta_wide
    config.augment.erasing = 0.1  # --random-erase 0.1
    config.normalize.mean = (0.485, 0.456, 0.406)
    config.normalize.std = (0.229, 0.224, 0.225)

    config.epochs = 600  # --epochs 600
    config.batch_size = 1024  # --batch-size 128 on each of 8 GPUs
    config.learning_rate = 0.5  # --lr 0.5
    config.schedule = "cosine"  # --lr-scheduler cosineannealinglr
    config.warmup_epochs = 5  # --lr-warmup-epochs 5 --lr-warmup-method linear
    config.warmup_start = 0.01  # --lr-warmup-decay, by default 0.01
    config.nesterov = False  # --opt, by default sgd with momentum 0.9
    config.weight_decay = 2e-5  # --weight-decay 0.00002
    config.weight_decay_on = "all_but_norms"  # --norm-weight-decay 0.0
    config.ema_every = 32  # --model-ema --model-ema-steps, by default 32
    # --model-ema-decay is 0.99998 by default. The script scales its difference from 1 like this.
    config.ema = 1 - (1 - 0.99998) * config.batch_size * config.ema_every / config.epochs
    # --mixup-alpha 0.2 --cutmix-alpha 1.0 (one of them in each batch) --label-smoothing 0.1
    method = "cutmix_or_mixup_alpha0.2+label_smoothing"
    apply_method(config, arg, "resnet50", kind="imagenet", default=method)
    return config
