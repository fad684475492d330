"""Networks by name."""

import difflib
import functools
import re
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from cutmix_jax import UserError
from cutmix_jax.models import resnet

NETS = {**resnet.NETS}


def create_model(
    name: str,
    num_classes: int,
    *,
    dtype: Any = jnp.float32,
    norm_axis: str | None = None,
    zero_init: bool = False,
) -> nn.Module:
    """Makes the network called `name`; `xK` after the name makes every layer K times as wide.

    Args:
      name: a key of `NETS`, for instance 'resnet20' (CIFAR), 'resnet50' (ImageNet), or with a
        factor: 'resnet20x4' has 64, 128 and 256 planes.
      num_classes: number of logits.
      dtype: of activations, float32 or bfloat16; parameters and logits are float32 always.
      norm_axis: name of the mapped axis over which BatchNorm averages its batch statistics; None
        keeps the statistics of each device's own batch, as in the paper.
      zero_init: start the last BatchNorm scale of each residual block at zero.

    Returns:
      A module. `model.apply(variables, images, train=bool, tap=None)` takes float images
      [B, H, W, C] to float32 logits [B, num_classes]. `tap(name, x) -> x` is called at each map of
      `model.feature_names` and may return another map of that shape in its place.

    Raises:
      UserError: the name is unknown.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = create_model('resnet20', num_classes=100)
      >>> images = jnp.zeros([2, 32, 32, 3])
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)  # or init itself
      >>> jax.eval_shape(model.apply, variables, images).shape
      (2, 100)
      >>> model.feature_names
      ('image', 'stem', 'layer1', 'layer2', 'layer3')

    Reference:
      He, Zhang, Ren, Sun. Deep Residual Learning for Image Recognition. 2016.
    """
    build = _find(name)
    return build(num_classes=num_classes, dtype=dtype, norm_axis=norm_axis, zero_init=zero_init)


def check_image_size(name: str, shape: tuple[int, int, int]) -> None:
    """Checks that images of `shape` (H, W, C) leave at least one pixel in the last map.

    Args:
      name: as for `create_model`.
      shape: height and width in pixels, and the number of channels.

    Raises:
      UserError: a side is shorter than the network's total stride, or the name is unknown.

    Example:
      >>> check_image_size('resnet50', (224, 224, 3))
    """
    height, width, _ = shape
    stride = _find(name)(num_classes=1).total_stride
    if min(height, width) < stride:
        raise UserError(
            f"Images of {height} x {width} pixels are too small for {name}, which divides the side "
            f"by {stride}: use images of at least {stride} x {stride}, or a network for small "
            "images such as resnet20."
        )


def _find(name: str) -> functools.partial:
    """The constructor of a name, with its factor of width."""
    if name in NETS:
        return NETS[name]
    widened = re.fullmatch(r"(.+)x([1-9]\d*)", name)
    if widened and widened[1] in NETS:
        build = NETS[widened[1]]
        return functools.partial(build, width=build.keywords["width"] * int(widened[2]))
    near = difflib.get_close_matches(name, NETS, n=1)
    hint = f"the nearest is {near[0]!r}" if near else "none is near"
    raise UserError(
        f"There is no model {name!r} ({hint}): use one of {', '.join(NETS)}, or one of these "
        "with a factor for its width, such as resnet20x4."
    )
