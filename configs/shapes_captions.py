"""Generated shapes with one-sentence captions, as a small captioning dataset: no download.

    python main.py --config configs/shapes.py:resnet18x0.25,cutmix --config.image_size=64 \
        --workdir=WORKDIR
    python main.py --config configs/shapes_captions.py --config.init_from=WORKDIR

The classifier in WORKDIR is the encoder, and has to be the same network. It is frozen, so captions
name the right form, but rarely the right color. To learn the colors as well, in ten minutes instead
of three:

    python main.py --config configs/shapes_captions.py --config.init_from=WORKDIR \
        --config.captions.finetune=True --config.train_examples=10000 --config.learning_rate=2e-3
"""

from cutmix_jax.config import base_config
from cutmix_jax.methods import apply_captioner


def get_config(arg=None):
    """`arg` is MODEL; by default resnet18x0.25."""
    config = base_config()
    config.dataset = "shapes"
    config.image_size = 64
    config.train_examples = 6000
    config.normalize.mean = (0.58, 0.53, 0.51)
    config.normalize.std = (0.17, 0.13, 0.16)

    config.epochs = 10
    config.eval_every = 5
    config.batch_size = 20
    config.learning_rate = 1e-3
    config.schedule = "cosine"
    apply_captioner(config, arg, "resnet18x0.25")
    config.captions.hidden = 128
    config.captions.max_words = 12
    return config
