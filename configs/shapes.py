"""Generated shapes, each with a box for localization: no download, no TensorFlow.

    python main.py --config configs/shapes.py:resnet8x2,baseline
    python main.py --config configs/shapes.py:resnet20,cutmix --config.image_size=64
    python main.py --workdir=RUN --mode=evaluate --evals=localization,cam

Ten shapes in any color, texture, position and size, on cluttered backgrounds. Only the shape shows
the class, so a network that classifies has found the object. The loss falls slowly for the first
300 steps.

docs/evidence.md has errors and localization accuracies of resnet8x2 on 5,000 images, with and
without CutMix.
"""

from cutmix_jax.config import base_config
from cutmix_jax.methods import apply_method


def get_config(arg=None):
    """`arg` is MODEL,METHOD; by default resnet8x2,cutmix."""
    config = base_config()
    config.dataset = "shapes"
    config.image_size = 32
    config.augment.pad = 2
    config.augment.flip = True
    config.normalize.mean = (0.58, 0.53, 0.51)
    config.normalize.std = (0.17, 0.13, 0.16)

    config.epochs = 10
    config.batch_size = 32
    config.learning_rate = 0.05
    config.schedule = "cosine"
    config.weight_decay = 5e-4
    apply_method(config, arg, "resnet8x2")
    if config.mix.name == "cutmix" and config.mix.prob is None:
        config.mix.prob = 0.5  # small networks underfit easily
    return config
