"""Residual networks: the CIFAR nets of the paper and the ImageNet nets, one class for both.

Post-activation blocks, projection shortcuts, strides in the 3x3 convolution of the bottleneck, and
symmetric padding, as in PyTorch. Modules carry PyTorch's names, with `layer1.0` written `layer1_0`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Tap = Callable[[str, jax.Array], jax.Array]
ModuleDef = Callable[..., nn.Module]

# He et al.: N(0, sqrt(2 / (k k C_out))).
conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def linear_init(fan_in: int) -> Callable[..., jax.Array]:
    """PyTorch's default for a linear layer, weight and bias alike: U(-b, b), b = 1/sqrt(fan_in)."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def same_padding(side: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """PyTorch's symmetric padding; "SAME" would pad (0, 1) at stride 2, half a pixel off."""
    return ((side // 2, side // 2),) * 2


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, their input added before the last activation.

    `conv`, `norm` and `act` come from the network, so that a variant of one is a variant of all.
    """

    planes: int
    stride: int
    conv: ModuleDef
    norm: ModuleDef
    act: Callable[[jax.Array], jax.Array]
    zero_init: bool = False
    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(self.planes, 3, self.stride, name="conv1")(x)
        y = self.act(self.norm(name="bn1")(y))
        y = self.conv(self.planes, 3, name="conv2")(y)
        y = self.norm(name="bn2", scale_init=last_scale_init(self.zero_init))(y)
        return self.act(y + shortcut(self, x, self.planes))


class BottleneckBlock(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions; the output has 4 * planes channels."""

    planes: int
    stride: int
    conv: ModuleDef
    norm: ModuleDef
    act: Callable[[jax.Array], jax.Array]
    zero_init: bool = False
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = self.expansion * self.planes
        y = self.conv(self.planes, 1, name="conv1")(x)
        y = self.act(self.norm(name="bn1")(y))
        y = self.conv(self.planes, 3, self.stride, name="conv2")(y)
        y = self.act(self.norm(name="bn2")(y))
        y = self.conv(features, 1, name="conv3")(y)
        y = self.norm(name="bn3", scale_init=last_scale_init(self.zero_init))(y)
        return self.act(y + shortcut(self, x, features))


def last_scale_init(zero_init: bool) -> Callable[..., jax.Array]:
    """Zero makes every block the identity at first; the paper's nets start from one."""
    return nn.initializers.zeros if zero_init else nn.initializers.ones


def shortcut(block: nn.Module, x: jax.Array, features: int) -> jax.Array:
    """The identity, or a 1x1 projection where the stride or the number of channels changes."""
    if block.stride == 1 and x.shape[-1] == features:
        return x
    x = block.conv(features, 1, block.stride, name="downsample_conv")(x)
    return block.norm(name="downsample_bn")(x)


class ResNet(nn.Module):
    """A residual network for images [B, H, W, C], normalised, float; returns float32 logits [B, K].

    Attributes:
      stage_sizes: blocks in each stage.
      block: `BasicBlock` or `BottleneckBlock`.
      num_classes: K.
      width: planes of the stem and of the first stage; each later stage has twice as many.
      large_stem: 7x7 convolution of stride 2 and max-pooling (ImageNet) instead of 3x3 (CIFAR).
      strides: stride of the first block of each stage.
      dtype: of activations and convolutions; parameters, statistics and logits stay float32.
      norm_axis: name of the mapped axis over which batch statistics are averaged; None: not at all.
      zero_init: start the last BatchNorm scale of each block at zero.
      act: the activation.
    """

    stage_sizes: tuple[int, ...]
    block: type[nn.Module]
    num_classes: int
    width: int
    large_stem: bool
    strides: tuple[int, ...] = (1, 2, 2, 2)
    dtype: Any = jnp.float32
    norm_axis: str | None = None
    zero_init: bool = False
    act: Callable[[jax.Array], jax.Array] = nn.relu

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The names given to `tap`, in order."""
        return ("image", "stem", *(f"layer{i + 1}" for i in range(len(self.stage_sizes))))

    @property
    def total_stride(self) -> int:
        """Side of the input over side of the last map."""
        stem = 4 if self.large_stem else 1
        return stem * math.prod(self.strides[: len(self.stage_sizes)])

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, tap: Tap | None = None) -> jax.Array:
        tap = tap or (lambda name, x: x)

        def conv(features: int, side: int, stride: int = 1, *, name: str) -> nn.Module:
            return nn.Conv(
                features,
                (side, side),
                strides=(stride, stride),
                padding=same_padding(side),
                use_bias=False,
                kernel_init=conv_init,
                dtype=self.dtype,
                name=name,
            )

        norm = functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,  # PyTorch's 0.1
            epsilon=1e-5,
            dtype=self.dtype,
            axis_name=self.norm_axis,
        )

        x = jnp.asarray(tap("image", images), self.dtype)
        if self.large_stem:
            x = conv(self.width, 7, 2, name="conv1")(x)
        else:
            x = conv(self.width, 3, name="conv1")(x)
        x = tap("stem", self.act(norm(name="bn1")(x)))
        if self.large_stem:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=same_padding(3))

        for stage, blocks in enumerate(self.stage_sizes):
            for index in range(blocks):
                x = self.block(
                    planes=self.width * 2**stage,
                    stride=self.strides[stage] if index == 0 else 1,
                    conv=conv,
                    norm=norm,
                    act=self.act,
                    zero_init=self.zero_init,
                    name=f"layer{stage + 1}_{index}",
                )(x)
            x = tap(f"layer{stage + 1}", x)

        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        init = linear_init(x.shape[-1])
        return nn.Dense(self.num_classes, kernel_init=init, bias_init=init, name="fc")(x)


def cifar(depth: int, block: type[nn.Module]) -> Callable[..., ResNet]:
    """Three stages of 16, 32 and 64 planes on maps of the input's side, its half and quarter."""
    convolutions = {BasicBlock: 2, BottleneckBlock: 3}[block]
    blocks = (depth - 2) // (3 * convolutions)
    return functools.partial(ResNet, (blocks,) * 3, block, width=16, large_stem=False)


def imagenet(stage_sizes: tuple[int, ...], block: type[nn.Module]) -> Callable[..., ResNet]:
    """Four stages of 64 to 512 planes after a stem that quarters the side."""
    return functools.partial(ResNet, stage_sizes, block, width=64, large_stem=True)


NETS = {
    "resnet8": cifar(8, BasicBlock),
    "resnet20": cifar(20, BasicBlock),
    "resnet32": cifar(32, BasicBlock),
    "resnet44": cifar(44, BasicBlock),
    "resnet56": cifar(56, BasicBlock),
    "resnet29": cifar(29, BottleneckBlock),
    "resnet110": cifar(110, BottleneckBlock),  # the paper's
    "resnet110_basic": cifar(110, BasicBlock),
    "resnet164": cifar(164, BottleneckBlock),
    "resnet18": imagenet((2, 2, 2, 2), BasicBlock),
    "resnet34": imagenet((3, 4, 6, 3), BasicBlock),
    "resnet50": imagenet((3, 4, 6, 3), BottleneckBlock),
    "resnet101": imagenet((3, 4, 23, 3), BottleneckBlock),
    "resnet152": imagenet((3, 8, 36, 3), BottleneckBlock),
}
