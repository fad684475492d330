"""Weakly supervised localization (Table 9): fine-tunes a classifier whose maps find objects.

    python main.py --config configs/wsol.py:resnet50,cutmix --config.init_from=WORKDIR
    python main.py --config configs/wsol.py:vgg16_gap,mixup,imagenet --config.init_from=WORKDIR \
        --config.boxes_dir=PATH
    python main.py --workdir=RUN --mode=evaluate --checkpoint=best --evals=localization

The text after the colon is MODEL,METHOD,DATA. MODEL is resnet50 or vgg16_gap. DATA is cub
(CUB-200-2011, TFDS's `caltech_birds2011`) or imagenet (`imagenet2012`, whose boxes are ILSVRC's XML
files). WORKDIR holds a network trained on ImageNet: a run of `configs/imagenet.py`, or PyTorch
weights that `python -m cutmix_jax.convert` wrote. The head is initialized again. Its learning rate
is ten times that of the rest.

Expected localization accuracy, IoU above 0.5 (the paper, one run):

                        CUB-200-2011           ImageNet
                        ResNet-50   VGG-GAP    ResNet-50   VGG-GAP
    baseline            49.41 %     37.12 %    46.30 %     42.73 %
    mixup               49.30 %     41.73 %    45.84 %     42.54 %
    cutout              52.78 %     44.83 %    46.69 %     43.13 %
    cutmix              54.81 %     52.53 %    47.25 %     43.45 %

Hardware: one GPU for CUB, 8 GPUs or a TPU v4-8 for ImageNet. This project has not run them.
"""

from cutmix_jax import UserError
from cutmix_jax.config import base_config
from cutmix_jax.methods import apply_method

# From the paper's appendix: epochs, batch size, epochs between milestones, and the learning rate of
# everything but the head.
DATA = {
    "cub": {
        "dataset": "caltech_birds2011",
        "epochs": 600,
        "batch_size": 32,
        "drop_every": 150,
        "learning_rate": {"resnet50": 1e-3, "vgg16_gap": 1e-4},
    },
    "imagenet": {
        "dataset": "imagenet2012",
        "epochs": 20,
        "batch_size": 256,
        "drop_every": 6,
        "learning_rate": {"resnet50": 1e-2, "vgg16_gap": 1e-2},
    },
}


def get_config(arg=None):
    """`arg` is MODEL,METHOD,DATA; by default resnet50,cutmix,cub."""
    parts = [part.strip() for part in (arg or "").split(",")]
    name = parts.pop(2) if len(parts) == 3 else "cub"
    if name not in DATA:
        raise UserError(
            f"The config argument {arg!r} names the dataset {name!r}: give MODEL,METHOD,DATA with "
            f"DATA one of {', '.join(DATA)}, as in resnet50,cutmix,cub."
        )
    config, data = base_config(), DATA[name]
    config.dataset = data["dataset"]
    config.source = "streaming"
    config.image_size = 224
    config.square_resize = 256
    config.augment.flip = True
    config.normalize.mean = (0.485, 0.456, 0.406)
    config.normalize.std = (0.229, 0.224, 0.225)

    config.epochs = epochs = data["epochs"]
    config.batch_size = data["batch_size"]
    every = data["drop_every"]
    config.lr_drops = tuple(epoch / epochs for epoch in range(every, epochs, every))
    config.new_head = True
    config.head_lr_factor = 10.0
    # CutMix at every step, as in the other configs for images of this size.
    apply_method(config, ",".join(parts), "resnet50", kind="imagenet")
    if config.model not in data["learning_rate"]:
        raise UserError(
            f"configs/wsol.py trains {' and '.join(data['learning_rate'])}, and the model "
            f"{config.model!r} was given: choose one of the two."
        )
    config.learning_rate = data["learning_rate"][config.model]
    if config.model == "resnet50":
        config.last_stride = 1  # maps of 14x14
    return config
