"""Residual networks for CIFAR and ImageNet, in one class.

As in PyTorch, they have post-activation blocks, projection shortcuts and symmetric padding, and
bottlenecks have their stride in the 3x3 convolution. Modules have PyTorch's names, with `layer1.0`
written `layer1_0`. ResNeXt, SE-ResNet and GE-ResNet are the same class with groups or attention.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from cutmix_jax.models.layers import (
    GatherExcite,
    ModuleDef,
    Network,
    SqueezeExcite,
    Tap,
    head,
    last_scale_init,
)
from cutmix_jax.models.pooling import max_pool
from cutmix_jax.regularize import BlockRegularization


def projection(block: nn.Module, x: jax.Array, features: int) -> jax.Array:
    """The identity, or a 1x1 projection if the stride or the number of channels changes."""
    if block.stride == 1 and x.shape[-1] == features:
        return x
    x = block.conv(features, 1, block.stride, name="downsample_conv")(x)
    return block.norm(name="downsample_bn")(x)


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

    def join(self, branch: jax.Array, x: jax.Array, progress: jax.Array | float) -> jax.Array:
        """The end of the block: attention, the sum with the shortcut, the last activation."""
        if self.attention:
            branch = self.attention(conv=self.conv, norm=self.norm, act=self.act)(branch)
        x = self.shortcut(self, x, self.expansion * self.planes)
        return self.act(self.regularization.join(branch, x, progress))


class BasicBlock(Block):
    """Two 3x3 convolutions, with the input added before the last activation."""

    @nn.compact
    def __call__(self, x: jax.Array, progress: jax.Array | float = 1.0) -> jax.Array:
        y = self.conv(self.planes, 3, self.stride, name="conv1")(x)
        y = self.act(self.norm(name="bn1")(y))
        y = self.regularization.inside(y, progress)
        y = self.conv(self.planes, 3, name="conv2")(y)
        y = self.norm(name="bn2", scale_init=last_scale_init(self.zero_init))(y)
        return self.join(y, x, progress)


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
        return self.join(y, x, progress)


class ResNet(Network):
    """A residual network for images [B, H, W, C], normalized, float; returns float32 logits [B, K].

    With `num_classes=None` it returns its last feature map instead. `first` and `last` choose a
    part of the network, whose parameters have the same names as in the whole.

    Attributes:
        stage_sizes: blocks in each stage.
        block: `BasicBlock` or `BottleneckBlock`.
        width: planes of the stem and of the first stage; each later stage has twice as many.
        large_stem: 7x7 convolution at stride 2 and max-pooling (ImageNet) instead of 3x3 (CIFAR).
        strides: stride of the first block of each stage.
        groups: groups of the 3x3 convolution of a bottleneck.
        base_width: channels of one such group if planes are 64.
        attention: constructor of the module that scales the branch before the addition; None: none.
        shortcut: `shortcut(block, x, features)` brings the block's input to the branch's shape.
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
        return (*stem, *(f"layer{stage}" for stage in self._built))

    @property
    def _built(self) -> range:
        """The stages with residual blocks that are built."""
        return range(max(self.first, 1), (self.last or self.stages) + 1)

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
            if self.large_stem:
                x = conv(self.width, 7, 2, name="conv1")(x)
            else:
                x = conv(self.width, 3, name="conv1")(x)
            x = tap("stem", self.act(norm(name="bn1")(x)))
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
        return head(self.num_classes, x)


def cifar(depth: int, block: type[Block]) -> Callable[..., ResNet]:
    """Three stages of 16, 32 and 64 planes, at the full, half and quarter side of the input."""
    convolutions = {BasicBlock: 2, BottleneckBlock: 3}[block]
    blocks = (depth - 2) // (3 * convolutions)
    return functools.partial(ResNet, (blocks,) * 3, block, width=16, large_stem=False)


def cifar_wide_stem(stage_sizes: tuple[int, ...], block: type[Block]) -> Callable[..., ResNet]:
    """Four stages as on ImageNet, after a 3x3 stem that keeps the size of the image."""
    return functools.partial(ResNet, stage_sizes, block, width=64, large_stem=False)


def imagenet(stage_sizes: tuple[int, ...], block: type[Block], **variant) -> Callable[..., ResNet]:
    """Four stages of 64 to 512 planes after a stem that quarters the side."""
    return functools.partial(ResNet, stage_sizes, block, width=64, large_stem=True, **variant)


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
