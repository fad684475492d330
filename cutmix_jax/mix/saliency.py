"""Saliency of images by their spectral residual, and SaliencyMix, whose box follows it."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from cutmix_jax.mix import check
from cutmix_jax.mix.pixels import partners
from cutmix_jax.mix.plan import Plan, outside_fraction, switched
from cutmix_jax.mix.sample import (
    BATCH_OPTIONS,
    assign,
    checked_numbers,
    clipped,
    frames_around,
    partners_axis,
    symmetric_beta,
)
from cutmix_jax.mix.types import Axes, Partner, Scope, Sides

# The longest side of the images whose spectrum is computed.
LONGEST_SIDE = 128
# Spectral amplitudes below this fraction of the largest one are rounding errors.
SMALLEST_AMPLITUDE = 1e-6
# The blur of the map: 7 weights along each axis.
GAUSSIAN = np.exp(-(np.arange(-3.0, 4.0) ** 2) / (2 * 3.0**2))
GAUSSIAN = (GAUSSIAN / GAUSSIAN.sum()).astype(np.float32)


def saliency(images: ArrayLike, *, spatial_axes: Axes = (1, 2)) -> jax.Array:
    r"""Returns how much each pixel stands out in its image, by the spectral residual.

    .. math::
        F = \mathcal{F}(x), \quad R = \log |F| - h_3 * \log |F|, \quad
        s = g * \big| \mathcal{F}^{-1}(e^{R + i \arg F}) \big|^2

    x is the gray image, the mean of its channels. h is the mean over 3 x 3 frequencies, which are
    periodic. g is a Gaussian of 7 x 7 pixels with a standard deviation of 3, and zeros beyond the
    border. Multiplying an image by a number does not change its map. Images with a side above 128
    pixels are resized first.

    Args:
        images: `[B, H, W, C]`, floating, integers or bool; other layouts by `spatial_axes`.
        spatial_axes: the spatial axes of `images`, one to three.

    Returns:
        float32 `[B, h, w]`, at least 0, where the longer of h and w is at most 128.

    Raises:
        ValueError: while tracing, if the images are complex, or do not have these axes.

    Example:
        >>> import jax.numpy as jnp
        >>> from cutmix_jax import mix
        >>> image = jnp.zeros((1, 16, 16, 3)).at[0, 4:7, 9:12].set(1.0)
        >>> found = mix.saliency(image)
        >>> divmod(int(found[0].argmax()), 16)
        (5, 10)

    Reference:
        Hou and Zhang, "Saliency Detection: A Spectral Residual Approach", CVPR 2007.
    """
    images = jnp.asarray(check.array("images", images))
    axes = check.axes(
        f"an array of shape {images.shape}", images.shape, check.axis_numbers(spatial_axes)
    )
    if jnp.iscomplexobj(images) or len(axes) > 3:
        raise ValueError(
            f"saliency needs real images with one to three spatial axes, but got {images.dtype}"
            f" and spatial_axes={spatial_axes}."
        )
    return _saliency(images, axes)


@partial(jax.jit, inline=True, static_argnames="axes")
def _saliency(images, axes):
    others = tuple(axis for axis in range(1, images.ndim) if axis not in axes)
    gray = images.astype(jnp.float32).mean(others)
    order = [1 + sorted(axes).index(axis) for axis in axes]
    gray = gray.transpose(0, *order)
    sides = gray.shape[1:]
    scale = min(1, LONGEST_SIDE / max(sides))
    small = tuple(max(1, round(side * scale)) for side in sides)
    if small != sides:
        gray = jax.image.resize(gray, (len(gray), *small), "linear")
    along = tuple(range(1, gray.ndim))
    spectrum = jnp.fft.fftn(gray, axes=along)
    amplitude = jnp.abs(spectrum)
    least = SMALLEST_AMPLITUDE * amplitude.max(along, keepdims=True)
    average = jnp.log(jnp.maximum(amplitude, jnp.maximum(least, np.finfo(np.float32).tiny)))
    for axis in along:
        average = (jnp.roll(average, 1, axis) + average + jnp.roll(average, -1, axis)) / 3
    # exp(log |F| - average + i arg F), without the logarithm and the angle of zero
    factor = jnp.exp(-average).astype(spectrum.dtype)
    found = jnp.fft.ifftn(spectrum * factor, axes=along)
    found = found.real**2 + found.imag**2
    for axis in along:
        padded = jnp.pad(found, [(3, 3) if a == axis else (0, 0) for a in range(found.ndim)])
        found = sum(
            float(weight) * lax.slice_in_dim(padded, start, start + found.shape[axis], axis=axis)
            for start, weight in enumerate(GAUSSIAN)
        )
    return found


def peaks(images, axes):
    """Returns the center of each image's most salient cell, float32 `[B, n]`, in pixels."""
    found = saliency(images, spatial_axes=axes)
    cells = found.shape[1:]
    highest = found.reshape(len(found), math.prod(cells)).argmax(1)
    places = jnp.stack(jnp.unravel_index(highest, cells), axis=1).astype(jnp.float32)
    sides = np.array([images.shape[axis] for axis in axes], np.float32)
    return (places + 0.5) * (sides / np.array(cells, np.float32))[None]


def sample_saliencymix(
    key: jax.Array,
    batch_size: int,
    sides: Sides,
    *,
    images: ArrayLike,
    spatial_axes: Axes = (1, 2),
    alpha: ArrayLike = 1.0,
    prob: ArrayLike = 1.0,
    scope: Scope = "image",
    partner: Partner = "permutation",
    axis_name: str | None = None,
    across_devices: bool = False,
) -> Plan:
    r"""Samples a SaliencyMix plan: CutMix whose box is where the partner is most salient.

    .. math::
        \lambda_0 \sim \text{Beta}(\alpha, \alpha), \quad
        \text{length}_k = \text{side}_k \, (1 - \lambda_0)^{1/n}, \quad
        \text{center}_i = \arg\max_p s(x_{partner_i})[p]

    s is `saliency`. The box is at the same place in both images, and clipped at the border. Labels
    are weighted by its area.

    Args:
        key: a JAX random key.
        batch_size: B, of this device.
        sides: the spatial shape of the image, such as `(H, W)`.
        images: the batch before mixing, `[B, H, W, C]`, floating, integers or bool.
        spatial_axes: the spatial axes of `images`.
        alpha: parameter of the Beta distribution, above 0; may be traced.
        prob: the probability to mix at all, in [0, 1], decided once per `scope`; may be traced.
        scope: who shares the size of a box: `'batch'`, `'device'`, `'pair'` or `'image'`, as for
            `sample_cutmix`. Its center is always that of the partner.
        partner: `'permutation'`, `'reverse'` or `'rotate'`, as for `sample_cutmix`.
        axis_name: inside `pmap` or `shard_map`, the name of the axis over devices.
        across_devices: whether partners come from all devices' batches.

    Returns:
        A `Plan` with one box per image. Its `lam` is exactly the fraction of pixels that an example
        keeps.

    Raises:
        ValueError: while tracing, if an argument is out of its range, or the images do not have
            this batch size and these sides.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from cutmix_jax import mix
        >>> images = jnp.zeros((2, 16, 16, 3)).at[1, 4:7, 9:12].set(1.0)
        >>> plan = mix.sample_saliencymix(
        ...     jax.random.key(1), 2, (16, 16), images=images, partner='reverse')
        >>> plan.box[0].tolist(), plan.lam[0]
        ([[1, 6], [11, 16]], Array(0.609375, dtype=float32))

    Reference:
        Uddin et al., "SaliencyMix: A Saliency Guided Data Augmentation Strategy for Better
        Regularization", ICLR 2021.
    """
    batch_size, sides = check.whole("batch_size", batch_size, 0), check.sides(sides)
    images = jnp.asarray(check.array("images", images))
    spatial_axes = check.axis_numbers(spatial_axes)
    axes = check.axes(f"images of shape {images.shape}", images.shape, spatial_axes)
    if (images.shape[0], *(images.shape[axis] for axis in axes)) != (batch_size, *sides):
        raise ValueError(
            f"images have shape {images.shape}, but batch_size={batch_size} and sides={sides} on"
            f" spatial_axes={spatial_axes} were expected."
        )
    return _draw_saliencymix(
        key,
        checked_numbers(alpha=alpha, prob=prob),
        images,
        axes=axes,
        batch_size=batch_size,
        sides=sides,
        scope=scope,
        partner=partner,
        axis_name=axis_name,
        across_devices=across_devices,
    )


@partial(jax.jit, inline=True, static_argnames=(*BATCH_OPTIONS, "axes"))
def _draw_saliencymix(key, numbers, images, *, axes, batch_size, sides, **whom):
    own_peaks = lax.stop_gradient(peaks(images, axes))
    indices, uniform = assign(key, 3, batch_size, **whom)
    plan = Plan(
        partner=indices,
        box=jnp.zeros((1, 2, len(sides)), jnp.int32),
        lam=jnp.ones(1, jnp.float32),
        sides=sides,
        across=partners_axis(**whom),
    )
    lam = symmetric_beta(uniform[:, 1:2], uniform[:, 2:3], numbers["alpha"])
    side = jnp.asarray([sides], jnp.float32)
    length = jnp.floor(side * (1 - lam) ** (1 / len(sides)) + 0.5)
    boxes = clipped(frames_around(partners(plan, own_peaks), length), sides)
    plan = replace(plan, box=boxes, lam=outside_fraction(boxes, sides))
    return switched(plan, uniform[:, 0] < numbers["prob"])
