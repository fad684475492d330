"""Your own images: fine-tunes a trained network on a folder with one folder per class.

    python main.py --config configs/folder.py --config.data_dir=PATH --config.init_from=WEIGHTS
    python main.py --config configs/folder.py:resnet18,baseline --config.data_dir=PATH \
        --config.init_from=resnet18.safetensors

PATH holds train/CLASS/*.jpg and val/CLASS/*.jpg. WEIGHTS is a .pth or .safetensors file from
torchvision or timm, or a workdir. The text after the colon is MODEL,METHOD. MODEL is the network of
the weights.

The head is new and learns ten times as fast as the rest. Half of the batches are mixed, by CutMix
or Mixup. The values are meant for a few thousand images, and are not tuned. With fewer than 1,000
images, raise --config.epochs. To train without weights, use configs/imagenet.py.

Hardware: one GPU. Images are decoded for each batch.
"""

from cutmix_jax.config import base_config
from cutmix_jax.methods import apply_method

METHOD = "cutmix_prob0.5_or_mixup_alpha0.2_prob0.5"


def get_config(arg=None):
    """`arg` is MODEL,METHOD; by default resnet50 with CutMix or Mixup in half of the batches."""
    config = base_config()
    config.dataset = "folder"
    config.image_size = 224
    config.eval_resize = 256
    config.augment.flip = True
    config.augment.min_area = 0.25
    # Of ImageNet, as the weights expect.
    config.normalize.mean = (0.485, 0.456, 0.406)
    config.normalize.std = (0.229, 0.224, 0.225)

    config.epochs = 20
    config.batch_size = 32
    config.learning_rate = 0.005
    config.new_head = True
    config.head_lr_factor = 10.0
    config.schedule = "cosine"
    config.warmup_epochs = 1
    apply_method(config, arg, "resnet50", default=METHOD)
    return config
