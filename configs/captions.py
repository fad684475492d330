"""COCO captions as in the paper (Tables 10 and A1): NIC on a classifier, train2014 and val2014.

    python main.py --config configs/captions.py:resnet50 --config.data_dir=COCO \
        --config.init_from=WORKDIR

COCO has the folders annotations, train2014 and val2014. WORKDIR is a classifier that was trained
here or converted. It becomes the encoder, which is frozen. 100 epochs are 2.07 million steps of 20
captions. Images take 20.8 GiB in device memory.

The paper's scores with ResNet-50, one run each, by the method of the classifier:

                BLEU-1  BLEU-2  BLEU-3  BLEU-4  METEOR  ROUGE-L  CIDEr
    baseline      61.4    43.8    31.4    22.9    22.8     44.7   71.2
    mixup         61.6    44.1    31.6    23.2    22.9     47.9   72.2
    cutout        63.0    45.3    32.6    24.0    22.6     48.2   74.1
    cutmix        64.2    46.3    33.6    24.9    23.1     49.0   77.6

This project has not run it.
"""

from cutmix_jax.config import base_config
from cutmix_jax.methods import apply_captioner


def get_config(arg=None):
    """`arg` is MODEL; by default resnet50."""
    config = base_config()
    config.dataset = "coco_captions"
    config.resident_limit_mib = 26_000
    config.image_size = 224
    config.augment.flip = True
    config.normalize.mean = (0.485, 0.456, 0.406)
    config.normalize.std = (0.229, 0.224, 0.225)

    config.epochs = 100
    config.eval_every = 5
    config.batch_size = 20
    config.learning_rate = 1e-3
    apply_captioner(config, arg, "resnet50")
    config.captions.meteor = True
    return config
