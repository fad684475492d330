"""Residual networks for CIFAR and ImageNet, in one class.

As in PyTorch, they have projection shortcuts and symmetric padding, and bottlenecks have their
stride in the 3x3 convolution. Modules have PyTorch's names, with `layer1.0` written `layer1_0`.
ResNeXt, SE-ResNet and GE-ResNet are the same class with groups or attention. Pre-activation and
Wide ResNets are the same class with `PreActivationBlock`.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from cutmix_jax import UserError
from cutmix_jax.models.layers import (
    GatherExcite,
    ModuleDef,
    Network,
    SqueezeExcite,
    Tap,
    head,
    last_kernel_init,
    last_scale_init,
)
from cutmix_jax.models.pooling import max_pool
from cutmix_jax.regularize import BlockRegularization


def changes_shape(block: nn.Module, x: jax.Array, features: int) -> bool:
    """Whether the block's stride or its number of channels changes the shape of its input."""
    return block.stride != 1 or x.shape[-1] != features


def projection(block: nn.Module, x: jax.Array, features: int, *, norm: bool = True) -> jax.Array:
    """The identity, or a 1x1 projection if the stride or the number of channels changes."""
    if not changes_shape(block, x, features):
        return x
    x = block.conv(features, 1, block.stride, name="downsample_conv")(x)
    return block.norm(name="downsample_bn")(x) if norm else x


class Block(nn.Module):
    """Shared by all blocks.

    The network sets `conv`, `norm`, `act`, `attention` and `shortcut`, so variants work with every
    block.
    """

    planes: int
    stride: int
    conv: ModuleDef
    norm: ModuleDef
    act: Callable[[jax.Array], jax.Array] = nn.relu
    attention: ModuleDef | None = None
    shortcut: Callable[[nn.Module, jax.Array, int], jax.Array] = projection
    groups: int = 1
    base_width: int = 64
    zero_init: bool = False
    regularization: BlockRegularization = BlockRegularization()
    expansion = 1
    pre_activation = False

    def join(self, branch: jax.Array, x: jax.Array, progress: jax.Array | float) -> jax.Array:
        """The end of the block: attention, and the sum with the shortcut."""
        if self.attention:
            branch = self.attention(conv=self.conv, norm=self.norm, act=self.act)(branch)
        x = self.shortcut(self, x, self.expansion * self.planes)
        return self.regularization.join(branch, x, progress)


class BasicBlock(Block):
    """Two 3x3 convolutions, with the input added before the last activation."""

    @nn.compact
    def __call__(self, x: jax.Array, progress: jax.Array | float = 1.0) -> jax.Array:
        y = self.conv(self.planes, 3, self.stride, name="conv1")(x)
        y = self.act(self.norm(name="bn1")(y))
        y = self.regularization.inside(y, progress)
        y = self.conv(self.planes, 3, name="conv2")(y)
        y = self.norm(name="bn2", scale_init=last_scale_init(self.zero_init))(y)
        return self.act(self.join(y, x, progress))


class BottleneckBlock(Block):
    """1x1, 3x3 (with stride and groups) and 1x1 convolutions, with 4 * planes output channels.

    The 3x3 convolution has `groups` groups of `planes * base_width / 64` channels (ResNeXt).
    """

    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, progress: jax.Array | float = 1.0) -> jax.Array:
        inner = self.planes * self.base_width // 64 * self.groups
        y = self.conv(inner, 1, name="conv1")(x)
        y = self.act(self.norm(name="bn1")(y))
        y = self.regularization.inside(y, progress)
        y = self.conv(inner, 3, self.stride, groups=self.groups, name="conv2")(y)
        y = self.act(self.norm(name="bn2")(y))
        y = self.regularization.inside(y, progress)
        y = self.conv(self.expansion * self.planes, 1, name="conv3")(y)
        y = self.norm(name="bn3", scale_init=last_scale_init(self.zero_init))(y)
        return self.act(self.join(y, x, progress))


class PreActivationBlock(Block):
    """Norm, activation and 3x3 convolution, twice; no activation follows the addition.

    If the shape changes, the shortcut starts from the activated input. Otherwise it is the input.
    """

    pre_activation = True

    @nn.compact
    def __call__(self, x: jax.Array, progress: jax.Array | float = 1.0) -> jax.Array:
        y = self.act(self.norm(name="bn1")(x))
        x = y if changes_shape(self, x, self.planes) else x
        y = self.conv(self.planes, 3, self.stride, name="conv1")(y)
        y = self.act(self.norm(name="bn2")(y))
        y = self.regularization.inside(y, progress)
        kernel_init = last_kernel_init(self.zero_init)
        y = self.conv(self.planes, 3, kernel_init=kernel_init, name="conv2")(y)
        return self.join(y, x, progress)


class ResNet(Network):
    """A residual network for images [B, H, W, C], normalized, float; returns float32 logits [B, K].

    With `num_classes=None` it returns its last feature map instead. `first` and `last` choose a
    part of the network, whose parameters have the same names as in the whole.

    With `PreActivationBlock`, the stem is a convolution alone. A norm and an activation follow the
    last stage; their result is the feature map 'final'. The bias of the head starts at 0.

    Attributes:
        stage_sizes: blocks in each stage.
        block: `BasicBlock`, `BottleneckBlock` or `PreActivationBlock`.
        width: planes of the stem and of the first stage; each later stage has twice as many.
        large_stem: 7x7 convolution at stride 2 and max-pooling (ImageNet) instead of 3x3 (CIFAR).
        strides: stride of the first block of each stage.
        groups: groups of the 3x3 convolution of a bottleneck.
        base_width: channels of one such group if planes are 64.
        attention: constructor of the module that scales the branch before the addition; None: none.
        shortcut: `shortcut(block, x, features)` brings the block's input to the branch's shape.
        stem_width: channels of the stem; None: `width`.
        image_side: required side of the images; None: any.
        first: first stage; 0 is the stem. Without it, the input is the map of the stage before.
        last: last stage, at least 1; None: all.

    The others are those of `layers.Network`.
    """

    stage_sizes: tuple[int, ...]
    block: type[Block]
    width: int
    large_stem: bool
    strides: tuple[int, ...] = (1, 2, 2, 2)
    groups: int = 1
    base_width: int = 64
    attention: ModuleDef | None = None
    shortcut: Callable[[nn.Module, jax.Array, int], jax.Array] = projection
    stem_width: int | None = None
    image_side: int | None = None
    first: int = 0
    last: int | None = None

    @property
    def stages(self) -> int:
        """Number of stages with residual blocks."""
        return len(self.stage_sizes)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The names passed to `tap`, in order. The last map is averaged for the head."""
        stem = ("image", "stem") if self.first == 0 else ()
        final = ("final",) * self._ends_with_norm
        return (*stem, *(f"layer{stage}" for stage in self._built), *final)

    @property
    def _built(self) -> range:
        """The stages with residual blocks that are built."""
        return range(max(self.first, 1), (self.last or self.stages) + 1)

    @property
    def _ends_with_norm(self) -> bool:
        """Whether a norm and an activation follow, after the last stage of the whole network."""
        return self.block.pre_activation and self._built[-1] == self.stages

    @property
    def total_stride(self) -> int:
        """Side of the input divided by the side of the last map."""
        stem = 4 if self.large_stem and self.first == 0 else 1
        return stem * math.prod(self.strides[stage - 1] for stage in self._built)

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        train: bool = False,
        tap: Tap | None = None,
        progress: jax.Array | float = 1.0,
    ) -> jax.Array:
        tap = tap or (lambda name, x: x)
        conv, norm = self.make_conv(), self.make_norm(train)

        if self.first == 0:
            x = jnp.asarray(tap("image", images), self.dtype)
            side, stride = (7, 2) if self.large_stem else (3, 1)
            x = conv(self.stem_width or self.width, side, stride, name="conv1")(x)
            if not self.block.pre_activation:
                x = self.act(norm(name="bn1")(x))
            x = tap("stem", x)
            if self.large_stem:
                x = max_pool(x, 3, 2, 1)
        else:
            x = jnp.asarray(images, self.dtype)

        block = self.make_block(self.block)
        for stage in self._built:
            before = sum(self.stage_sizes[: stage - 1])
            for index in range(self.stage_sizes[stage - 1]):
                x = block(
                    planes=self.width * 2 ** (stage - 1),
                    stride=self.strides[stage - 1] if index == 0 else 1,
                    conv=conv,
                    norm=norm,
                    act=self.act,
                    attention=self.attention,
                    shortcut=self.shortcut,
                    groups=self.groups,
                    base_width=self.base_width,
                    zero_init=self.zero_init,
                    regularization=self.regularization.of_block(
                        stage,
                        (before + index + 1) / sum(self.stage_sizes),
                        train,
                        every_norm=self.large_stem,
                    ),
                    name=f"layer{stage}_{index}",
                )(x, progress)
            x = tap(f"layer{stage}", x)
        if self._ends_with_norm:
            x = tap("final", self.act(norm(name="bn_final")(x)))
        return head(self.num_classes, x, zero_bias=self.block.pre_activation)


def cifar(depth: int, block: type[Block]) -> Callable[..., ResNet]:
    """Three stages of 16, 32 and 64 planes, at the full, half and quarter side of the input."""
    convolutions = {BasicBlock: 2, BottleneckBlock: 3}[block]
    blocks = (depth - 2) // (3 * convolutions)
    return functools.partial(ResNet, (blocks,) * 3, block, width=16, large_stem=False)


def cifar_wide_stem(stage_sizes: tuple[int, ...], block: type[Block]) -> Callable[..., ResNet]:
    """Four stages as on ImageNet, after a 3x3 stem that keeps the size of the image."""
    return functools.partial(ResNet, stage_sizes, block, width=64, large_stem=False)


def pre_activation(stage_sizes: tuple[int, ...]) -> Callable[..., ResNet]:
    """Four stages as in `cifar_wide_stem`, with pre-activation blocks.

    As in most code for CIFAR, the stem has no norm, and projections without norms start from the
    activated input. As in the paper, a norm and an activation come before the pooling. Some code
    for CIFAR leaves them out, which makes another network.

    Reference:
        He, Zhang, Ren, Sun. Identity Mappings in Deep Residual Networks. 2016. Initialization is
        that of its code.
    """
    return functools.partial(
        ResNet, stage_sizes, PreActivationBlock, width=64, large_stem=False, shortcut=_bare
    )


def wide(depth: int, factor: int) -> Callable[..., ResNet]:
    """Three stages of 16, 32 and 64 planes times `factor`, after a stem of 16 channels.

    There are (depth - 4) / 6 pre-activation blocks in each stage. There is no dropout.

    Raises:
        UserError: no network has this depth.

    Reference:
        Zagoruyko, Komodakis. Wide Residual Networks. 2016. Initialization is that of its code.
    """
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        below = 6 * max(blocks, 1) + 4
        raise UserError(
            f"The depth of a Wide ResNet is {depth}, but 6n + 4 was expected. Use {below} or "
            f"{below + 6}."
        )
    # Its width is part of its name, so no keyword offers it to a width factor.
    return functools.partial(
        ResNet, (blocks,) * 3, PreActivationBlock, 16 * factor, False, shortcut=_bare, stem_width=16
    )


def imagenet(stage_sizes: tuple[int, ...], block: type[Block], **variant) -> Callable[..., ResNet]:
    """Four stages of 64 to 512 planes after a stem that quarters the side."""
    return functools.partial(ResNet, stage_sizes, block, width=64, large_stem=True, **variant)


_bare = functools.partial(projection, norm=False)
_50, _101 = ((3, 4, blocks, 3) for blocks in (6, 23))
_next = functools.partial(imagenet, block=BottleneckBlock, groups=32, base_width=4)
_se = functools.partial(
    imagenet, block=BottleneckBlock, attention=functools.partial(SqueezeExcite, name="se")
)
_ge = functools.partial(
    imagenet,
    block=BottleneckBlock,
    attention=functools.partial(GatherExcite, name="ge"),
    image_side=224,
)

NETS = {
    "resnet8": cifar(8, BasicBlock),
    "resnet20": cifar(20, BasicBlock),
    "resnet32": cifar(32, BasicBlock),
    "resnet44": cifar(44, BasicBlock),
    "resnet56": cifar(56, BasicBlock),
    "resnet29": cifar(29, BottleneckBlock),
    "resnet110": cifar(110, BottleneckBlock),  # the paper's network
    "resnet110_basic": cifar(110, BasicBlock),
    "resnet164": cifar(164, BottleneckBlock),
    "resnet18_cifar": cifar_wide_stem((2, 2, 2, 2), BasicBlock),
    "resnet34_cifar": cifar_wide_stem(_50, BasicBlock),
    "resnet50_cifar": cifar_wide_stem(_50, BottleneckBlock),
    "preact_resnet18": pre_activation((2, 2, 2, 2)),
    "wide_resnet16_8": wide(16, 8),
    "wide_resnet28_10": wide(28, 10),
    "resnet18": imagenet((2, 2, 2, 2), BasicBlock),
    "resnet34": imagenet(_50, BasicBlock),
    "resnet50": imagenet(_50, BottleneckBlock),
    "resnet101": imagenet(_101, BottleneckBlock),
    "resnet152": imagenet((3, 8, 36, 3), BottleneckBlock),
    "resnext50_32x4d": _next(_50),
    "resnext101_32x4d": _next(_101),
    "se_resnet50": _se(_50),
    "se_resnet101": _se(_101),
    "ge_resnet50": _ge(_50),
    "ge_resnet101": _ge(_101),
}
