"""Building blocks of the networks: PyTorch's initialization and padding, norms, attention, head.

`Network` holds the options of all networks, and creates their convolutions and norms.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cutmix_jax import UserError
from cutmix_jax.models.convolution import conv_general_dilated
from cutmix_jax.regularize import Regularization

Tap = Callable[[str, jax.Array], jax.Array]
ModuleDef = Callable[..., nn.Module]

# He et al.: N(0, sqrt(2 / (k k C_out))).
conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def linear_init(fan_in: int) -> Callable[..., jax.Array]:
    """PyTorch's default for weight and bias of a linear layer: U(-b, b), b = 1/sqrt(fan_in)."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def last_scale_init(zero_init: bool) -> Callable[..., jax.Array]:
    """Zero makes every block the identity at the start; the paper's networks start from one."""
    return nn.initializers.zeros if zero_init else nn.initializers.ones


def last_kernel_init(zero_init: bool) -> Callable[..., jax.Array]:
    """As `last_scale_init`, for blocks that end with a convolution instead of a norm."""
    return nn.initializers.zeros if zero_init else conv_init


def same_padding(side: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """PyTorch's symmetric padding. At stride 2, "SAME" would pad (0, 1), half a pixel off."""
    return ((side // 2, side // 2),) * 2


def convolution(
    layer: ModuleDef,
    dtype: Any,
    features: int,
    side: int | tuple[int, int],
    stride: int = 1,
    *,
    name: str,
    groups: int = 1,
    use_bias: bool = False,
    padding: Any = None,
    kernel_init: Callable[..., jax.Array] = conv_init,
) -> nn.Module:
    """The convolution of all networks: symmetric padding, no bias, He initialization."""
    sides = (side, side) if isinstance(side, int) else side
    return layer(
        features,
        sides,
        strides=(stride, stride),
        padding=same_padding(sides[0]) if padding is None else padding,
        feature_group_count=groups,
        use_bias=use_bias,
        kernel_init=kernel_init,
        dtype=dtype,
        name=name,
    )


def mean_over_map(x: jax.Array) -> jax.Array:
    """Global average of a map [B, H, W, C], float32 [B, C]."""
    if x.dtype == jnp.bfloat16:
        # On CPUs, jaxlib 0.11.2 and 0.12.0.1 fuse the mean with what comes before it into NaN.
        x = lax.optimization_barrier(x)
    return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)


def head(num_classes: int | None, x: jax.Array, zero_bias: bool = False) -> jax.Array:
    """Global average pooling and the linear layer 'fc', in float32; None: the map itself."""
    if num_classes is None:
        return x
    x = mean_over_map(x)
    init = linear_init(x.shape[-1])
    bias_init = nn.initializers.zeros if zero_bias else init
    return nn.Dense(num_classes, kernel_init=init, bias_init=bias_init, name="fc")(x)


class GhostBatchNorm(nn.Module):
    """BatchNorm in training, which normalizes `groups` equal parts of the batch separately.

    Its variables are those of `nn.BatchNorm`, which is used in evaluation. The running statistics
    move toward the mean over the groups. Under PyTorch's `DataParallel`, which groups emulate, they
    are those of the first GPU. Both have the same expectation.

    Raises:
        UserError: the batch is not divisible by the groups.
    """

    groups: int
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    scale_init: Callable[..., jax.Array] = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, features)
        var = self.variable("batch_stats", "var", jnp.ones, features)
        scale = self.param("scale", self.scale_init, (features,))
        bias = self.param("bias", nn.initializers.zeros, (features,))
        if x.shape[0] % self.groups:
            raise UserError(
                f"A batch of {x.shape[0]} examples cannot be split into the {self.groups} groups "
                "of BatchNorm. Make it a multiple of config.norm.groups."
            )
        parts = x.reshape(self.groups, -1, *x.shape[1:]).astype(
            jnp.promote_types(x.dtype, jnp.float32)
        )
        axes = tuple(range(1, parts.ndim - 1))
        means = parts.mean(axes, keepdims=True)
        # As in nn.BatchNorm. E[x^2] - E[x]^2 takes one pass, but rounding may make it negative.
        variances = jnp.maximum(0.0, (parts**2).mean(axes, keepdims=True) - means**2)
        if not self.is_initializing():
            for running, found in ((mean, means), (var, variances)):
                found = found.reshape(self.groups, features).mean(0)
                running.value = self.momentum * running.value + (1 - self.momentum) * found
        parts = (parts - means) * (jax.lax.rsqrt(variances + self.epsilon) * scale) + bias
        return parts.reshape(x.shape).astype(self.dtype)


class SqueezeExcite(nn.Module):
    """Scales the channels of a map by weights computed from their means.

    For a map x [B, H, W, C], `y = x sigmoid(W2 relu(W1 mean(x) + b1) + b2)`, with C / `reduction`
    hidden features.

    Reference:
        Hu, Shen, Sun. Squeeze-and-Excitation Networks. 2018.
    """

    conv: ModuleDef
    norm: ModuleDef
    act: Callable[[jax.Array], jax.Array] = nn.relu
    reduction: int = 16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gathered = mean_over_map(x)[:, None, None].astype(x.dtype)
        return x * nn.sigmoid(_excite(self, gathered))


class GatherExcite(nn.Module):
    """Scales the channels of a map by learned weighted means (theta plus, global extent).

    Like `SqueezeExcite`, but a depthwise convolution as large as the map and a norm replace the
    mean. So the parameters fit only one image size.

    Reference:
        Hu, Shen, Albanie, Sun, Vedaldi. Gather-Excite. 2018.
    """

    conv: ModuleDef
    norm: ModuleDef
    act: Callable[[jax.Array], jax.Array] = nn.relu
    reduction: int = 16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        _, height, width, channels = x.shape
        gathered = self.conv(
            channels, (height, width), groups=channels, padding="VALID", name="conv1"
        )(x)
        return x * nn.sigmoid(_excite(self, self.norm(name="bn1")(gathered)))


def _excite(attention: nn.Module, x: jax.Array) -> jax.Array:
    """Two 1x1 convolutions with biases, for a module with `conv`, `act` and `reduction`."""
    features = x.shape[-1]
    x = attention.conv(features // attention.reduction, 1, use_bias=True, name="fc1")(x)
    return attention.conv(features, 1, use_bias=True, name="fc2")(attention.act(x))


class Network(nn.Module, kw_only=True):
    """The options of every network.

    Attributes:
        num_classes: number of logits; None returns the last feature map instead.
        dtype: of activations and convolutions; parameters, statistics and logits stay float32.
        norm_axis: name of the mapped axis over which batch statistics are averaged; None: not at
            all.
        norm_groups: number of equal parts of the batch that are normalized separately.
        norm_momentum: fraction of the running statistics that a step keeps (PyTorch: 1 - this).
        norm_epsilon: added to the variance.
        zero_init: start the last BatchNorm scale of each block at zero; in pre-activation blocks,
            which end with a convolution, its kernel.
        remat: recompute the blocks in the backward pass, instead of keeping their activations.
        regularization: regularizers of the blocks in training.
        act: the activation.
        conv_layer: replacement for `nn.Conv`.
    """

    num_classes: int | None
    dtype: Any = jnp.float32
    norm_axis: str | None = None
    norm_groups: int = 1
    norm_momentum: float = 0.9
    norm_epsilon: float = 1e-5
    zero_init: bool = False
    remat: bool = False
    regularization: Regularization = Regularization()
    act: Callable[[jax.Array], jax.Array] = nn.relu
    conv_layer: ModuleDef = functools.partial(nn.Conv, conv_general_dilated=conv_general_dilated)

    def make_conv(self) -> ModuleDef:
        """The constructor of convolutions: `convolution` with its first arguments set."""
        return functools.partial(convolution, self.conv_layer, self.dtype)

    def make_norm(self, train: bool) -> ModuleDef:
        """The constructor of norms, which takes `name` and `scale_init`."""
        shared = {"momentum": self.norm_momentum, "epsilon": self.norm_epsilon, "dtype": self.dtype}
        if train and self.norm_groups > 1:
            return functools.partial(GhostBatchNorm, self.norm_groups, **shared)
        return functools.partial(
            nn.BatchNorm, use_running_average=not train, axis_name=self.norm_axis, **shared
        )

    def make_block(self, block: type[nn.Module]) -> ModuleDef:
        """The constructor of blocks, with recomputation if `remat` is set."""
        return nn.remat(block) if self.remat else block
