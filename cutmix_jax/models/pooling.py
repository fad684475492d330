"""Max-pooling whose gradient is also fast on CPUs. On other platforms it is XLA's, unchanged.

XLA searches the windows one by one for their maxima. This module compares each position for all
windows at once, along one axis after the other. For the 3x3 windows of a ResNet it is four times
as fast.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cutmix_jax.models.convolution import by_platform

AXES = (1, 2)


def max_pool(x: jax.Array, window: int, stride: int, padding: int = 0) -> jax.Array:
    r"""The maximum of each square window, per channel.

    .. math:: y_{nhwc} = \max_{0 \le i, j < window} x_{n, s h + i - p, s w + j - p, c}

    Padding never wins. The gradient goes to the first of equal maxima, in row-major order. On CPUs,
    the gradient of a NaN maximum is dropped. Only reverse-mode differentiation is supported.

    Args:
        x: images ``[B, H, W, C]``, floating.
        window: side of the windows, in pixels.
        stride: s, in pixels.
        padding: p, on every side, in pixels.

    Returns:
        ``[B, H', W', C]`` with ``H' = (H + 2 p - window) // s + 1``, of the dtype of `x`.

    Raises:
        ValueError, TypeError: by `flax.linen.max_pool`, for incompatible shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), 2, 2)[0, :, :, 0]
        Array([[ 5.,  7.],
               [13., 15.]], dtype=float32)

    Reference:
        Ranzato, Huang, Boureau, LeCun. Unsupervised Learning of Invariant Feature Hierarchies.
        2007.
    """
    plain = functools.partial(
        nn.max_pool,
        window_shape=(window, window),
        strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
    )
    known = x.ndim == 4 and x.dtype in (jnp.float32, jnp.float64)
    if not known or not x.size or not jax.eval_shape(plain, x).size:
        return plain(x)
    return by_platform(plain, functools.partial(_on_cpu, plain, window, stride, padding), x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _on_cpu(plain, window, stride, padding, x):
    return plain(x)


def _on_cpu_forward(plain, window, stride, padding, x):
    return plain(x), x


def _on_cpu_backward(plain, window, stride, padding, x, g):
    # Rows first, then columns: this finds the first maximum of a window in row-major order.
    maps = [x]
    for axis in reversed(AXES):
        maps.append(
            functools.reduce(jnp.maximum, _shifted(maps[-1], axis, window, stride, padding))
        )
    for axis, x, y in zip(AXES, maps[1::-1], maps[:0:-1], strict=True):
        g = _gradient(x, y, g, axis, window, stride, padding)
    return (g,)


_on_cpu.defvjp(_on_cpu_forward, _on_cpu_backward)


def _shifted(x, axis, window, stride, padding):
    """The values at each position of the windows along `axis`: `window` maps."""
    count = (x.shape[axis] + 2 * padding - window) // stride + 1
    pads = [(0, 0, 0)] * x.ndim
    pads[axis] = (padding, padding, 0)
    x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), pads)
    last = stride * (count - 1) + 1
    return [lax.slice_in_dim(x, i, i + last, stride, axis) for i in range(window)]


def _gradient(x, y, g, axis, window, stride, padding):
    """The gradient of `x`, from that of its window maxima `y` along `axis`."""
    zero, sums = jnp.zeros([], g.dtype), {}
    steps = -(-x.shape[axis] // stride)  # pixels with the same offset within a stride
    left = jnp.ones(y.shape, bool)  # windows whose maximum is not found yet
    for i, value in enumerate(_shifted(x, axis, window, stride, padding)):
        hit = left & (value == y)
        left &= ~hit
        first, rest = divmod(i - padding, stride)
        pads = [(0, 0, 0)] * g.ndim
        pads[axis] = (first, steps - first - g.shape[axis], 0)
        sums[rest] = sums.get(rest, 0) + lax.pad(jnp.where(hit, g, zero), zero, pads)
    shape = list(x.shape)
    shape[axis] = steps
    parts = [sums.get(rest, jnp.zeros(shape, g.dtype)) for rest in range(stride)]
    shape[axis] = steps * stride
    return lax.slice_in_dim(jnp.stack(parts, axis + 1).reshape(shape), 0, x.shape[axis], 1, axis)
