"""Convolution that is also fast on CPUs. On other platforms it is XLA's, unchanged.

On CPUs, XLA's convolutions are slow in three places, and this module fixes them:

- A 1x1 convolution is a matrix product, which is faster for few and odd numbers of channels, as in
  PyramidNet.
- The weight gradient of other kernels needs both operands transposed. XLA fuses the transposition
  with the ops that produced them (BatchNorm, ReLU, their gradients), and recomputes these at
  strided addresses. As separate ops, the same transpositions take a fraction of the time.
- The weight gradient of a grouped convolution processes each pair of channels separately. It is
  faster to compute blocks of groups as one dense convolution, despite its zeros.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

# Channels per block of groups. Of 16 to 256, it is the fastest on ResNeXt, or within 10 %.
BLOCK = 16
LAYOUT = ("NHWC", "HWIO", "NHWC")


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides,
    padding,
    lhs_dilation=None,
    rhs_dilation=None,
    dimension_numbers=None,
    feature_group_count: int = 1,
    precision=None,
    **options,
) -> jax.Array:
    r"""Convolves images with kernels, like `lax.conv_general_dilated`.

    .. math:: y_{nhwo} = \sum_{ijc} x_{n, s h + i, s w + j, c} k_{ijco}

    Values and gradients equal that function's up to rounding. NaN and inf in one group may spread
    to neighboring groups, because they are multiplied by zeros. The faster code is for CPUs:
    two-dimensional convolutions without dilation, channels last, in float32 or float64. Everything
    else is passed on. Only reverse-mode differentiation is supported.

    Args:
        lhs: images ``[B, H, W, C]``, floating.
        rhs: kernels ``[h, w, C / groups, O]``, of the same dtype.
        window_strides: two ints, in pixels.
        padding: two pairs (low, high) of ints, in pixels, or 'SAME' or 'VALID'.
        lhs_dilation: see `lax.conv_general_dilated`.
        rhs_dilation: see there.
        dimension_numbers: see there.
        feature_group_count: number of groups of channels.
        precision: see there.
        **options: other options of `lax.conv_general_dilated`.

    Returns:
        ``[B, H', W', O]``, of the dtype of `lhs`.

    Raises:
        TypeError, ValueError: by `lax.conv_general_dilated`, for incompatible shapes or dtypes.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> conv = nn.Conv(8, (3, 3), conv_general_dilated=conv_general_dilated)
        >>> images = jnp.ones([2, 6, 6, 4])
        >>> conv.apply(conv.init(jax.random.key(0), images), images).shape
        (2, 6, 6, 8)

    Reference:
        Chellapilla, Puri, Simard. High Performance Convolutional Neural Networks for Document
        Processing. 2006 (convolutions as matrix products).
    """
    strides = tuple(window_strides)
    dilated = any(side != 1 for side in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    known = (
        not dilated
        and lhs.ndim == 4
        and lhs.size
        and lhs.dtype == rhs.dtype
        and dimension_numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, LAYOUT)
        and not any(value is not None for value in options.values())
    )
    if known and _is_wide(padding, rhs.shape):
        # In this case XLA's own code for CPUs (see `host.use_fast_weight_gradients`) reads outside
        # the map for the gradient of the images.
        edges = [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)]
        lhs, padding = lax.pad(lhs, jnp.zeros([], lhs.dtype), edges), ((0, 0), (0, 0))
    plain = functools.partial(
        lax.conv_general_dilated,
        window_strides=strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        precision=precision,
        **options,
    )
    if not known or lhs.dtype not in (jnp.float32, jnp.float64):
        return plain(lhs, rhs)
    # Raises lax's own errors about shapes.
    if not jax.eval_shape(plain, lhs, rhs).size:
        return plain(lhs, rhs)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    on_cpu = functools.partial(
        _on_cpu,
        strides=strides,
        padding=tuple(map(tuple, padding)),
        groups=feature_group_count,
        precision=precision,
    )
    return by_platform(plain, on_cpu, lhs, rhs)


def _is_wide(padding, kernel_shape):
    """Whether a window can lie entirely in the padding; not with 'SAME' or 'VALID'."""
    return not isinstance(padding, str) and any(
        max(pair) >= side for pair, side in zip(padding, kernel_shape, strict=False)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def by_platform(plain, on_cpu, *operands):
    """`on_cpu(*operands)` if it is compiled for a CPU, else `plain(*operands)`.

    The gradient makes this choice again. Otherwise each platform would also keep the residuals of
    the other one.
    """
    return lax.platform_dependent(*operands, cpu=on_cpu, default=plain)


def _by_platform_forward(plain, on_cpu, *operands):
    return by_platform(plain, on_cpu, *operands), operands


def _by_platform_backward(plain, on_cpu, operands, g):
    def gradients(function):
        return lambda g, *operands: jax.vjp(function, *operands)[1](g)

    return lax.platform_dependent(g, *operands, cpu=gradients(on_cpu), default=gradients(plain))


by_platform.defvjp(_by_platform_forward, _by_platform_backward)


def _on_cpu(x, kernel, *, strides, padding, groups, precision):
    dense = functools.partial(_dense, strides, padding, precision)
    if groups == 1:
        return dense(x, kernel)
    height, width, inputs, outputs = kernel.shape
    if (groups, inputs, padding) == (outputs, 1, ((0, 0), (0, 0))) and (
        x.shape[1:3] == (height, width)
    ):
        return jnp.sum(x * kernel[:, :, 0], (1, 2), keepdims=True)  # a weighted mean of each map
    merged = _merged(groups, inputs)
    blocks = groups // merged
    kernels = kernel.reshape(height, width, inputs, blocks, merged, outputs // groups)
    # [blocks, h, w, groups of inputs, inputs, groups of outputs, outputs]: 0 off the diagonal.
    kernels = jnp.einsum("hwibmo,mn->bhwnimo", kernels, jnp.eye(merged, dtype=kernel.dtype))
    kernels = kernels.reshape(blocks, height, width, merged * inputs, outputs // blocks)
    parts = jnp.split(x, blocks, axis=-1)
    return jnp.concatenate([dense(*pair) for pair in zip(parts, kernels, strict=True)], -1)


def _merged(groups, inputs):
    """Number of groups of `inputs` channels per block: a divisor of `groups`."""
    most = max(1, BLOCK // inputs)
    return max(divisor for divisor in range(1, most + 1) if groups % divisor == 0)


def _plain(x, kernel, strides, padding, precision):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=LAYOUT, precision=precision
    )


def _is_pointwise(kernel, padding):
    return kernel.shape[:2] == (1, 1) and not any(map(any, padding))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _dense(strides, padding, precision, x, kernel):
    """Convolution without groups: XLA's, or a product."""
    if not _is_pointwise(kernel, padding):
        return _plain(x, kernel, strides, padding, precision)
    x = x[:, :: strides[0], :: strides[1]]
    return jnp.matmul(x, kernel[0, 0], precision=precision)


def _dense_forward(strides, padding, precision, x, kernel):
    return _dense(strides, padding, precision, x, kernel), (x, kernel)


def _dense_backward(strides, padding, precision, operands, g):
    x, kernel = operands
    if _is_pointwise(kernel, padding):
        rows = x[:, :: strides[0], :: strides[1]]
        dx = jnp.matmul(g, kernel[0, 0].T, precision=precision)
        if rows.shape != x.shape:
            dx = jnp.zeros_like(x).at[:, :: strides[0], :: strides[1]].set(dx)
        rows, g = (each.reshape(-1, each.shape[-1]) for each in (rows, g))
        # XLA transposes the left operand of a product, so the smaller one goes there.
        if rows.shape[1] <= g.shape[1]:
            dkernel = jnp.matmul(rows.T, g, precision=precision)
        else:
            dkernel = jnp.matmul(g.T, rows, precision=precision).T
        return dx, dkernel[None, None]
    (dx,) = jax.vjp(lambda x: _plain(x, kernel, strides, padding, precision), x)[1](g)
    # XLA's layouts for this gradient: the batch, which is contracted, takes the position of the
    # channels in the forward pass.
    x = _alone(x.transpose(3, 1, 2, 0)).transpose(3, 1, 2, 0)
    g = _alone(g.transpose(1, 2, 0, 3)).transpose(2, 0, 1, 3)
    (dkernel,) = jax.vjp(lambda k: _plain(x, k, strides, padding, precision), kernel)[1](g)
    return dx, dkernel


_dense.defvjp(_dense_forward, _dense_backward)


def _alone(x):
    """`x`, computed separately instead of fused into its consumer.

    On CPUs, XLA drops `lax.optimization_barrier` before it fuses. It does not fuse across a branch,
    even if both branches are the identity.
    """
    return lax.cond(x[(0,) * x.ndim] > 0, lambda x: x, lax.optimization_barrier, x)
