"""Networks by name."""

import functools
import re
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from cutmix_jax import UserError, nearest
from cutmix_jax.models import pyramidnet, resnet, vgg
from cutmix_jax.regularize import Regularization

NETS = {**resnet.NETS, **pyramidnet.NETS, **vgg.NETS}


def create_model(
    name: str,
    num_classes: int | None,
    *,
    dtype: Any = jnp.float32,
    norm_axis: str | None = None,
    norm_groups: int = 1,
    norm_momentum: float = 0.9,
    norm_epsilon: float = 1e-5,
    zero_init: bool = False,
    remat: bool = False,
    last_stride: int = 2,
    regularization: Regularization | None = None,
) -> nn.Module:
    """Creates the network `name`; `xK` after the name makes every layer K times as wide.

    Args:
        name: a key of `NETS`, such as 'resnet110' (CIFAR) or 'resnet50' (ImageNet). With a factor,
            'resnet20x4' has 64, 128 and 256 planes, and 'resnet18x0.25' 16 to 128.
            'pyramidnetDEPTH_ALPHA' has bottleneck blocks, 'pyramidnetDEPTH_ALPHA_basic' basic
            blocks. 'wide_resnetDEPTH_FACTOR' has 16, 32 and 64 planes times FACTOR.
        num_classes: number of logits; None returns the last feature map, without a head.
        dtype: of activations, float32 or bfloat16; parameters and logits are always float32.
        norm_axis: name of the mapped axis over which BatchNorm averages its batch statistics; None
            uses the statistics of each device's own batch, as in the paper.
        norm_groups: number of equal parts of a device's batch that are normalized separately
            ("ghost" BatchNorm). 2 (CIFAR) and 4 (ImageNet) match the GPUs of the paper.
        norm_momentum: fraction of the running statistics that a step keeps (PyTorch: 1 - momentum).
        norm_epsilon: added to the variance.
        zero_init: start the last BatchNorm scale of each residual block at zero; in pre-activation
            blocks, which end with a convolution, its kernel.
        remat: recompute each block in the backward pass, instead of keeping its activations.
        last_stride: stride of layer4; 1 gives maps of 14x14 at 224.
        regularization: regularizers of the blocks in training; None: none.

    Returns:
        A module. `model.apply(variables, images, train=bool, tap=None, progress=1.0)` takes float
        images [B, H, W, C] to float32 logits [B, num_classes]. `tap(name, x) -> x` is called at
        each map of `model.feature_names` and may return another map of the same shape. The last of
        these maps is averaged for the linear layer 'fc'. `progress`, the completed fraction of
        training, drives DropBlock's schedule. In training, regularizers need `rngs={'drop': key}`.

    Raises:
        UserError: the name is unknown, or the network does not support an option.

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
        He, Zhang, Ren, Sun. Deep Residual Learning for Image Recognition. 2016. (Modules
        cite the papers of other networks.)
    """
    if norm_groups > 1 and norm_axis:
        raise UserError(
            f"norm_groups is {norm_groups}, which divides a device's batch, and norm_axis="
            f"{norm_axis!r} averages over devices. Set only one of them."
        )
    regularization = regularization or Regularization()
    model = _find(name)(
        num_classes=num_classes,
        dtype=jnp.dtype(dtype),
        norm_axis=norm_axis,
        norm_groups=norm_groups,
        norm_momentum=norm_momentum,
        norm_epsilon=norm_epsilon,
        zero_init=zero_init,
        remat=remat,
        regularization=regularization,
    )
    if (remat or regularization) and not model.stages:
        option = "recomputes" if remat else "drops"
        raise UserError(
            f"{name} has no residual blocks, but config.{'remat' if remat else 'stochastic_depth'} "
            f"{option} them. Leave it out, or use a residual network such as resnet50."
        )
    if regularization.drop_block and max(regularization.stages) > model.stages:
        raise UserError(
            f"config.drop_block.stages is {tuple(regularization.stages)}, but {name} has "
            f"{model.stages} stages. Choose from {tuple(range(1, model.stages + 1))}, for "
            "instance (2, 3)."
        )
    if last_stride != 2:
        if not isinstance(model, resnet.ResNet) or model.stages < 4:
            raise UserError(
                f"config.last_stride is {last_stride}, but {name} has no layer4. Leave it at 2, or "
                "use a network for ImageNet such as resnet50."
            )
        model = model.copy(strides=(*model.strides[:3], last_stride))
    return model


def from_config(config: Any, num_classes: int, norm_axis: str | None = None) -> nn.Module:
    """The network that a config describes; `sync_batch_norm` averages over `norm_axis`."""
    drop_block = {"drop_block" if k == "rate" else k: v for k, v in config.drop_block.items()}
    return create_model(
        config.model,
        num_classes,
        norm_axis=norm_axis if config.sync_batch_norm else None,
        **{f"norm_{key}": value for key, value in config.norm.items()},
        **{key: config[key] for key in ("dtype", "zero_init", "remat", "last_stride")},
        regularization=Regularization(config.stochastic_depth, config.shake_drop, **drop_block),
    )


def check_image_size(name: str, shape: tuple[int, int, int], last_stride: int = 2) -> None:
    """Checks that images of `shape` (H, W, C) leave at least one pixel in the last map.

    Args:
        name: as for `create_model`.
        shape: height and width in pixels, and the number of channels.
        last_stride: as for `create_model`.

    Raises:
        UserError: a side is shorter than the network's total stride, or the network needs another
            size, or the name is unknown.

    Example:
        >>> check_image_size('resnet50', (224, 224, 3))
    """
    height, width, _ = shape
    model = create_model(name, 1, last_stride=last_stride)
    side = getattr(model, "image_side", None)
    if side and (height, width) != (side, side):
        raise UserError(
            f"Images of {height} x {width} pixels do not fit {name}, whose kernels match the "
            f"feature maps of {side} x {side} images. Set config.image_size={side}, or use another "
            "network such as se_resnet50."
        )
    stride = model.total_stride
    if min(height, width) < stride:
        raise UserError(
            f"Images of {height} x {width} pixels are too small for {name}, which divides the side "
            f"by {stride}. Use images of at least {stride} x {stride}, or a network for small "
            "images such as resnet20."
        )


def find_small_variant(name: str, shape: tuple[int, int, int]) -> str | None:
    """The variant with a 3x3 stem of a network for large images.

    Below 64 pixels, the last map of a network for large images has at most 2 x 2 pixels.

    Args:
        name: as for `create_model`.
        shape: height and width of the images in pixels, and the number of channels.

    Returns:
        A name for `create_model`, or None if the images are larger or there is no such variant.

    Example:
        >>> find_small_variant('resnet18x0.5', (32, 32, 3))
        'resnet18_cifarx0.5'
    """
    base, factor = re.fullmatch(r"(.*?)(x[\d.]+)?", name).groups(default="")
    small = f"{base}_cifar"
    return small + factor if min(shape[:2]) < 64 and small in NETS else None


def _find(name: str) -> functools.partial:
    """The constructor for a name, with its width factor."""
    if name in NETS:
        return NETS[name]
    widened = re.fullmatch(r"(.+)x([1-9]\d*|(?:0|[1-9]\d*)\.\d*[1-9])", name)
    if widened and "width" in getattr(NETS.get(widened[1]), "keywords", ()):
        build = NETS[widened[1]]
        return functools.partial(build, width=_scaled(name, build.keywords, float(widened[2])))
    grown = re.fullmatch(r"pyramidnet(\d+)_([1-9]\d*)(_basic)?", name)
    if grown:
        block = pyramidnet.BasicBlock if grown[3] else pyramidnet.BottleneckBlock
        return pyramidnet.pyramidnet(int(grown[1]), int(grown[2]), block)
    wide = re.fullmatch(r"wide_resnet(\d+)_([1-9]\d*)", name)
    if wide:
        return resnet.wide(int(wide[1]), int(wide[2]))
    raise UserError(
        f"There is no model {name!r} ({nearest(name, NETS)}). ResNets can have a width factor, "
        "as in resnet20x4 or resnet18x0.25. PyramidNets are called pyramidnetDEPTH_ALPHA or "
        "pyramidnetDEPTH_ALPHA_basic, Wide ResNets wide_resnetDEPTH_FACTOR."
    )


def _scaled(name: str, options: dict, factor: float) -> int:
    """The width of a network times a factor, a number that its groups and attention can divide."""
    base, width = options["width"], options["width"] * factor
    # Channels of a group and hidden features of the attention are whole numbers, too.
    unit = max(64 // options.get("base_width", 64), 4 if options.get("attention") else 1)
    if width % unit:
        raise UserError(
            f"{name} would have {width:g} planes, but a multiple of {unit} was expected. Use a "
            f"width factor that is a multiple of {unit / base:g}."
        )
    return int(width)
