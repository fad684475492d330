"""Sampling plans with a mask: GMix, GridMix, FMix and CowMix.

Each mask is computed from uniform numbers, one row per mask: the partner's share of each cell.
"""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from cutmix_jax.mix import check
from cutmix_jax.mix.plan import Plan, kept_fraction, switched
from cutmix_jax.mix.sample import (
    BATCH_OPTIONS,
    assign,
    between,
    checked_numbers,
    normals,
    partners_axis,
    symmetric_beta,
)
from cutmix_jax.mix.types import Partner, Scope, Sides

# Points of CowMix's noise along a side, at most. Finer noise costs more, and after a blur of two
# points or more it has the same covariance within a percent.
NOISE_POINTS = 64


def outer_product(lines):
    """Returns the product of one line per axis: `[N, m_1], [N, m_2], ... -> [N, m_1, m_2, ...]`."""
    product = lines[0]
    for line in lines[1:]:
        product = product[..., None] * line.reshape(len(line), *[1] * (product.ndim - 1), -1)
    return product


def gmix_mask(uniform, shape, *, alpha):
    """Returns GMix's soft masks: a Gaussian bump of the image that has the smaller share."""
    lam = symmetric_beta(uniform[:, :1], uniform[:, 1:2], alpha)
    # As a power of the number of axes, the bump's integral is the share. 0 / 0 would be NaN.
    width = jnp.maximum(jnp.minimum(lam, 1 - lam), 1e-12) ** (2 / len(shape))
    lines = []
    for i, side in enumerate(shape):
        distance = (jnp.arange(side, dtype=jnp.float32)[None] + 0.5) / side - uniform[
            :, 2 + i, None
        ]
        lines.append(jnp.exp(-math.pi * distance**2 / width))
    bump, lam = outer_product(lines), lam.reshape(-1, *[1] * len(shape))
    return jnp.where(lam < 0.5, 1 - bump, bump)


def gridmix_mask(
    uniform, shape, *, alpha, min_area, max_area, min_aspect, max_aspect, min_cells, max_cells
):
    """Returns GridMix's hard masks: holes in the cells of a grid, in a region of the image."""
    lam = symmetric_beta(uniform[:, 0], uniform[:, 1], alpha)
    area = math.prod(shape) * between(uniform[:, 2], min_area, max_area)
    aspect = between(uniform[:, 3], min_aspect, max_aspect)
    count = jnp.floor(between(uniform[:, 4], min_cells, max_cells + 1))
    lengths = [jnp.sqrt(area * aspect), jnp.sqrt(area / aspect)]
    lengths = [
        jnp.clip(jnp.floor(length), 1, side) for length, side in zip(lengths, shape, strict=True)
    ]
    cell = jnp.maximum(jnp.ceil(lengths[1] / count), 2)
    hole = jnp.clip(jnp.floor(cell * jnp.sqrt(1 - lam)), 1, cell - 1)
    lines = []
    for i, (length, side) in enumerate(zip(lengths, shape, strict=True)):
        low = jnp.floor((side - length + 1) * uniform[:, 5 + i])
        place = jnp.arange(side, dtype=jnp.float32)[None] - low[:, None]
        inside = (place >= 0) & (place < length[:, None])
        lines.append(inside & (jnp.mod(place, cell[:, None]) < hole[:, None]))
    return outer_product(lines)


def grey_noise(uniform, shape, decay):
    """Returns noise with amplitudes 1 / f^decay: `[N, *shape]` from `[N, 2 prod(spectrum)]`."""
    spectrum = spectrum_shape(shape)
    real, imaginary = jnp.split(normals(uniform).reshape(-1, 2, *spectrum), 2, axis=1)
    frequencies = [jnp.fft.fftfreq(side, dtype=jnp.float32) for side in shape[:-1]]
    frequencies.append(jnp.arange(spectrum[-1], dtype=jnp.float32) / shape[-1])
    squares = 0.0
    for axis, line in enumerate(frequencies):
        others = [i for i in range(1 + len(shape)) if i != 1 + axis]
        squares += jnp.expand_dims(line**2, others)
    # The amplitude at the lowest frequency is 1: the scale of the noise has no effect.
    relative = jnp.maximum(squares * max(shape) ** 2, 1.0)
    amplitude = jnp.exp(-0.5 * decay * jnp.log(relative))
    noise = lax.complex(real[:, 0] * amplitude, imaginary[:, 0] * amplitude)
    return lax.fft(noise, "IRFFT", shape)


def spectrum_shape(shape):
    """Returns the shape of the spectrum of a real array."""
    return (*shape[:-1], shape[-1] // 2 + 1)


def largest(values, count):
    """Returns a bool array `[N, m]`, true at the `count` `[N]` largest values of each row.

    Of equal values the first count. The bits of a float, read as an integer, have its order, so the
    threshold is found bit by bit. A sort takes 15 times as long on a CPU.
    """
    bits, top = lax.bitcast_convert_type(values, jnp.uint32), jnp.uint32(1 << 31)
    order = jnp.where(bits < top, bits | top, ~bits)
    count = count[:, None]

    def find_bit(i, threshold):
        higher = threshold | (top >> i.astype(jnp.uint32))
        enough = jnp.sum(order >= higher, axis=1, keepdims=True, dtype=jnp.int32) >= count
        return jnp.where(enough, higher, threshold)

    threshold = lax.fori_loop(0, 32, find_bit, jnp.zeros(count.shape, jnp.uint32))
    above, equal = order > threshold, order == threshold
    missing = count - jnp.sum(above, axis=1, keepdims=True, dtype=jnp.int32)
    return above | (equal & (jnp.cumsum(equal, axis=1, dtype=jnp.int32) <= missing))


def fmix_mask(uniform, shape, *, alpha, decay):
    """Returns FMix's hard masks: the image keeps the largest values of grey noise."""
    lam = symmetric_beta(uniform[:, 0], uniform[:, 1], alpha)
    noise = grey_noise(uniform[:, 2:], shape, decay)
    cells = math.prod(shape)
    kept = jnp.floor(lam * cells + 0.5).astype(jnp.int32)
    return ~largest(noise.reshape(-1, cells), kept).reshape(-1, *shape)


def noise_shape(shape):
    """Returns the shape of CowMix's noise."""
    return tuple(min(side, NOISE_POINTS) for side in shape)


def blurred_noise(uniform, shape, sigma):
    """Returns normal noise after a Gaussian blur: `[N, *shape]` from `[N, prod(noise_shape)]`.

    `sigma` `[N]` is the blur's standard deviation over the side. Outside the image the noise is 0.
    """
    points = noise_shape(shape)
    noise = normals(uniform).reshape(-1, *points)
    for side, count in zip(shape, points, strict=True):
        at = (jnp.arange(side, dtype=jnp.float32) + 0.5) / side
        source = (jnp.arange(count, dtype=jnp.float32) + 0.5) / count
        distance = (at[:, None] - source[None])[None] / sigma[:, None, None]
        kernel = jnp.exp(-0.5 * distance**2)
        # The first spatial axis is summed and returns as the last one.
        noise = jnp.einsum("nj...,nij->n...i", noise, kernel, precision="highest")
    return noise


def cowmix_mask(uniform, shape, *, min_area, max_area, min_sigma, max_sigma):
    """Returns CowMix's hard masks: blurred noise up to a threshold is the partner's."""
    area = between(uniform[:, 0], min_area, max_area)
    sigma = jnp.exp(between(uniform[:, 1], jnp.log(min_sigma), jnp.log(max_sigma)))
    noise = blurred_noise(uniform[:, 2:], shape, sigma).reshape(len(uniform), -1)
    deviations = math.sqrt(2) * lax.erf_inv(2 * area[:, None] - 1)
    threshold = noise.mean(1, keepdims=True) + deviations * noise.std(1, keepdims=True)
    return (noise <= threshold).reshape(-1, *shape)


def _sample(key, make_mask, count, batch_size, sides, numbers, *, shape=None, **whom):
    """Samples a plan whose mask is `make_mask` of `count` uniform numbers."""
    return _draw(
        key,
        checked_numbers(**numbers),
        make_mask=make_mask,
        count=count,
        shape=shape or sides,
        batch_size=check.whole("batch_size", batch_size, 0),
        sides=sides,
        **whom,
    )


@partial(jax.jit, inline=True, static_argnames=(*BATCH_OPTIONS, "make_mask", "count", "shape"))
def _draw(key, numbers, *, make_mask, count, shape, batch_size, sides, **whom):
    partners, uniform = assign(key, 1 + count, batch_size, **whom)
    prob = numbers.pop("prob")
    plan = Plan(
        partner=partners,
        box=jnp.zeros((1, 2, len(sides)), jnp.int32),
        mask=make_mask(uniform[:, 1:], shape, **numbers),
        lam=jnp.ones(1, jnp.float32),
        sides=sides,
        across=partners_axis(**whom),
    )
    plan = replace(plan, lam=kept_fraction(plan))
    return switched(plan, uniform[:, 0] < prob)


def sample_gmix(
    key: jax.Array,
    batch_size: int,
    sides: Sides,
    *,
    alpha: ArrayLike = 1.0,
    prob: ArrayLike = 1.0,
    scope: Scope = "batch",
    partner: Partner = "permutation",
    axis_name: str | None = None,
    across_devices: bool = False,
) -> Plan:
    r"""Samples a GMix plan: a Gaussian bump of one image is blended into the other.

    .. math::
        \lambda_0 \sim \text{Beta}(\alpha, \alpha), \quad
        g[p] = \exp\Big(-\pi s^{-2/n} \sum_k (p_k - c_k)^2 / \text{side}_k^2\Big), \quad
        s = \min(\lambda_0, 1 - \lambda_0), \quad \lambda = \text{mean}(1 - M)

    The image with the smaller share s has the weight g: the partner's share M is g if
    :math:`\lambda_0 \ge 1/2`, and 1 - g otherwise. The center c is uniform in the image. Distances
    are measured in sides, so the integral of g is s in an image of any shape. On square images this
    is the paper's equation.

    Args:
        key: a JAX random key.
        batch_size: B, of this device.
        sides: the spatial shape of the image, such as `(H, W)`.
        alpha: parameter of the Beta distribution, above 0; may be traced.
        prob: the probability to mix at all, in [0, 1], decided once per `scope`; may be traced.
        scope: `'batch'`, `'device'`, `'pair'` or `'image'`, as for `sample_cutmix`.
        partner: `'permutation'`, `'reverse'` or `'rotate'`, as for `sample_cutmix`.
        axis_name: inside `pmap` or `shard_map`, the name of the axis over devices.
        across_devices: whether partners come from all devices' batches.

    Returns:
        A `Plan` with a floating `mask`, whose `lam` is the mean weight of the image's pixels.

    Raises:
        ValueError: while tracing, if an argument is out of its range.

    Example:
        >>> import jax
        >>> from cutmix_jax import mix
        >>> plan = mix.sample_gmix(jax.random.key(1), batch_size=4, sides=(2, 3))
        >>> (100 * plan.mask).round().astype(int)
        Array([[[81, 15,  0],
                [ 6,  1,  0]]], dtype=int32)
        >>> plan.lam
        Array([0.82697505], dtype=float32)

    Reference:
        Park et al., "A Unified Analysis of Mixed Sample Data Augmentation: A Loss Function
        Perspective", NeurIPS 2022.
    """
    sides = check.sides(sides)
    return _sample(
        key,
        gmix_mask,
        2 + len(sides),
        batch_size,
        sides,
        {"alpha": alpha, "prob": prob},
        scope=scope,
        partner=partner,
        axis_name=axis_name,
        across_devices=across_devices,
    )


def sample_gridmix(
    key: jax.Array,
    batch_size: int,
    sides: Sides,
    *,
    alpha: ArrayLike = 1.0,
    prob: ArrayLike = 1.0,
    min_area: ArrayLike = 0.5,
    max_area: ArrayLike = 1.0,
    min_aspect: ArrayLike = 0.5,
    max_aspect: ArrayLike = 2.0,
    min_cells: ArrayLike = 2,
    max_cells: ArrayLike = 6,
    scope: Scope = "batch",
    partner: Partner = "permutation",
    axis_name: str | None = None,
    across_devices: bool = False,
) -> Plan:
    r"""Samples a GridMix plan: the partner shows through the holes of a grid.

    .. math::
        \lambda_0 \sim \text{Beta}(\alpha, \alpha), \quad
        \text{cell} = \lceil \text{width} / \text{cells} \rceil, \quad
        \text{hole} = \lfloor \text{cell} \sqrt{1 - \lambda_0} \rfloor

    The grid lies in a region of random area and aspect ratio, clipped to the image's height and
    width, with a uniform position inside the image. Cells and holes are squares. A hole is at least
    one pixel, and at most one pixel smaller than the cell. The last cells may be cut off.

    Args:
        key: a JAX random key.
        batch_size: B, of this device.
        sides: height and width of the image, `(H, W)`.
        alpha: parameter of the Beta distribution, above 0; may be traced.
        prob: the probability to mix at all, in [0, 1], decided once per `scope`; may be traced.
        min_area: lower bound of the region's area over the image's, in [0, 1]; may be traced.
        max_area: upper bound of the same; may be traced.
        min_aspect: lower bound of the region's height over its width, above 0; may be traced.
        max_aspect: upper bound of the same; may be traced.
        min_cells: lower bound of the number of cells across the width, at least 1; may be traced.
        max_cells: upper bound of the same; may be traced.
        scope: `'batch'`, `'device'`, `'pair'` or `'image'`, as for `sample_cutmix`.
        partner: `'permutation'`, `'reverse'` or `'rotate'`, as for `sample_cutmix`.
        axis_name: inside `pmap` or `shard_map`, the name of the axis over devices.
        across_devices: whether partners come from all devices' batches.

    Returns:
        A `Plan` with a bool `mask`, whose `lam` is exactly the fraction of pixels kept.

    Raises:
        ValueError: while tracing, if an argument is out of its range.

    Example:
        >>> import jax
        >>> from cutmix_jax import mix
        >>> plan = mix.sample_gridmix(jax.random.key(1), batch_size=4, sides=(5, 6))
        >>> plan.mask[0].astype(int), plan.lam
        (Array([[0, 0, 0, 0, 0, 0],
               [0, 0, 0, 0, 0, 0],
               [1, 0, 1, 0, 1, 0],
               [0, 0, 0, 0, 0, 0],
               [1, 0, 1, 0, 1, 0]], dtype=int32), Array([0.8], dtype=float32))

    Reference:
        Baek et al., "GridMix: Strong regularization through local context mapping", Pattern
        Recognition 2021. The grid is that of OpenMixup.
    """
    sides = check.sides(sides)
    if len(sides) != 2:
        raise ValueError(f"GridMix needs the height and width of an image, but sides are {sides}.")
    numbers = {
        "alpha": alpha,
        "prob": prob,
        "min_area": min_area,
        "max_area": max_area,
        "min_aspect": min_aspect,
        "max_aspect": max_aspect,
        "min_cells": min_cells,
        "max_cells": max_cells,
    }
    return _sample(
        key,
        gridmix_mask,
        7,
        batch_size,
        sides,
        numbers,
        scope=scope,
        partner=partner,
        axis_name=axis_name,
        across_devices=across_devices,
    )


def sample_fmix(
    key: jax.Array,
    batch_size: int,
    sides: Sides,
    *,
    alpha: ArrayLike = 1.0,
    prob: ArrayLike = 1.0,
    decay: ArrayLike = 3.0,
    resolution: int | None = None,
    scope: Scope = "batch",
    partner: Partner = "permutation",
    axis_name: str | None = None,
    across_devices: bool = False,
) -> Plan:
    r"""Samples an FMix plan: the partner takes the lower values of smooth noise.

    .. math::
        \lambda_0 \sim \text{Beta}(\alpha, \alpha), \quad
        G = \mathcal{F}^{-1}\big(Z / \max(f, 1 / \text{longest side})^{\text{decay}}\big), \quad
        M[p] = 1 \text{ unless } G[p] \text{ is one of the } \lambda_0 N \text{ largest}

    Z are complex normal numbers, f is the frequency in cycles per cell, and N is the number of
    cells. :math:`\lambda_0 N` is rounded. Of equal values, the first ones are the image's own.

    Args:
        key: a JAX random key.
        batch_size: B, of this device.
        sides: the spatial shape of the image, such as `(H, W)`; 1 to 3 sides.
        alpha: parameter of the Beta distribution, above 0; may be traced.
        prob: the probability to mix at all, in [0, 1], decided once per `scope`; may be traced.
        decay: how fast amplitudes fall with the frequency, at least 0; smaller values make smaller
            patches; may be traced.
        resolution: number of the mask's cells along the longest side, to sample faster. None: one
            cell per pixel.
        scope: `'batch'`, `'device'`, `'pair'` or `'image'`, as for `sample_cutmix`.
        partner: `'permutation'`, `'reverse'` or `'rotate'`, as for `sample_cutmix`.
        axis_name: inside `pmap` or `shard_map`, the name of the axis over devices.
        across_devices: whether partners come from all devices' batches.

    Returns:
        A `Plan` with a bool `mask`, whose `lam` is exactly the fraction of pixels kept.

    Raises:
        ValueError: while tracing, if an argument is out of its range.

    Example:
        >>> import jax
        >>> from cutmix_jax import mix
        >>> plan = mix.sample_fmix(jax.random.key(1), batch_size=4, sides=(5, 8))
        >>> plan.mask[0].astype(int), plan.lam
        (Array([[1, 1, 1, 0, 0, 0, 0, 0],
               [1, 1, 1, 0, 0, 0, 0, 0],
               [1, 1, 1, 0, 0, 0, 0, 1],
               [1, 1, 0, 0, 0, 0, 0, 1],
               [1, 1, 1, 0, 0, 0, 0, 0]], dtype=int32), Array([0.6], dtype=float32))

    Reference:
        Harris et al., "FMix: Enhancing Mixed Sample Data Augmentation", 2020.
    """
    sides = check.sides(sides)
    if len(sides) > 3:
        raise ValueError(f"FMix needs 1 to 3 sides, but sides are {sides}.")
    shape = coarse_shape(sides, resolution)
    return _sample(
        key,
        fmix_mask,
        2 + 2 * math.prod(spectrum_shape(shape)),
        batch_size,
        sides,
        {"alpha": alpha, "prob": prob, "decay": decay},
        shape=shape,
        scope=scope,
        partner=partner,
        axis_name=axis_name,
        across_devices=across_devices,
    )


def coarse_shape(sides, resolution):
    """Returns the shape of a mask with that many cells along the longest side."""
    if resolution is None:
        return sides
    scale = min(1, check.whole("resolution", resolution, 1) / max(sides))
    return tuple(max(1, round(side * scale)) for side in sides)


def sample_cowmix(
    key: jax.Array,
    batch_size: int,
    sides: Sides,
    *,
    prob: ArrayLike = 1.0,
    min_area: ArrayLike = 0.2,
    max_area: ArrayLike = 0.8,
    min_sigma: ArrayLike = 0.125,
    max_sigma: ArrayLike = 0.5,
    scope: Scope = "image",
    partner: Partner = "permutation",
    axis_name: str | None = None,
    across_devices: bool = False,
) -> Plan:
    r"""Samples a CowMix plan: the partner takes the lower values of blurred noise.

    .. math::
        \log \sigma \sim U(\log \sigma_{min}, \log \sigma_{max}), \quad
        p \sim U(p_{min}, p_{max}), \quad
        M = G_\sigma * Z \le \text{mean} + \text{std} \sqrt 2 \, \text{erf}^{-1}(2 p - 1)

    Z is normal noise, blurred by a Gaussian. Mean and standard deviation are those of the blurred
    noise. The partner's area is about p, and labels are weighted by the area itself.

    Args:
        key: a JAX random key.
        batch_size: B, of this device.
        sides: the spatial shape of the image, such as `(H, W)`.
        prob: the probability to mix at all, in [0, 1], decided once per `scope`; may be traced.
        min_area: lower bound of p, in [0, 1]; may be traced.
        max_area: upper bound of p; may be traced.
        min_sigma: lower bound of the blur's standard deviation over the image's side, from 1/64 to
            1; may be traced. The defaults are the paper's 4 and 16 pixels of 32.
        max_sigma: upper bound of the same; may be traced.
        scope: `'image'`: one mask per image, as in the paper; or `'batch'`, `'device'`, `'pair'`,
            as for `sample_cutmix`.
        partner: `'permutation'`, `'reverse'` or `'rotate'`, as for `sample_cutmix`.
        axis_name: inside `pmap` or `shard_map`, the name of the axis over devices.
        across_devices: whether partners come from all devices' batches.

    Returns:
        A `Plan` with a bool `mask`, whose `lam` is exactly the fraction of pixels kept.

    Raises:
        ValueError: while tracing, if an argument is out of its range.

    Example:
        >>> import jax
        >>> from cutmix_jax import mix
        >>> plan = mix.sample_cowmix(jax.random.key(1), batch_size=2, sides=(5, 8))
        >>> plan.mask[0].astype(int), plan.lam
        (Array([[1, 1, 1, 1, 1, 1, 0, 0],
               [1, 1, 1, 1, 0, 0, 0, 0],
               [1, 1, 0, 0, 0, 0, 0, 0],
               [1, 0, 0, 0, 0, 0, 0, 0],
               [1, 0, 0, 0, 0, 0, 0, 0]], dtype=int32), Array([0.65, 0.6 ], dtype=float32))

    Reference:
        French et al., "Milking CowMask for Semi-Supervised Image Classification", 2020.
    """
    sides = check.sides(sides)
    numbers = {
        "prob": prob,
        "min_area": min_area,
        "max_area": max_area,
        "min_sigma": min_sigma,
        "max_sigma": max_sigma,
    }
    return _sample(
        key,
        cowmix_mask,
        2 + math.prod(noise_shape(sides)),
        batch_size,
        sides,
        numbers,
        scope=scope,
        partner=partner,
        axis_name=axis_name,
        across_devices=across_devices,
    )
