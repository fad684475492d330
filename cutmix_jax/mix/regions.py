"""The region that a plan pastes, its box and its mask, in the cells of an array."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType

from cutmix_jax.mix import check

# Sizes of windows around a box, as quarters of the image. Each is a branch to compile. With eight
# of them, the branches cost more than the smaller copy of `paste='window'` saves.
WINDOW_QUARTERS = (1, 2, 3, 4)


def box_on(plan, sides):
    """Returns the box in the cells of an array of another resolution, by the cells' centers."""
    box = plan.box.astype(jnp.int32)
    if sides == plan.sides:
        return box
    scales = [Fraction(*pair) for pair in zip(sides, plan.sides, strict=True)]
    if any(2 * of * s.numerator >= 2**31 for of, s in zip(plan.sides, scales, strict=True)):
        raise ValueError(f"sides {sides} and the plan's {plan.sides} need more than 32 bits.")
    side = np.array([[[scale.numerator for scale in scales]]], np.int32)
    of = np.array([[[scale.denominator for scale in scales]]], np.int32)
    return -((of - 2 * box * side) // (2 * of))


def inside(box, shape, axes):
    """Returns a bool array, true inside each box. It broadcasts against `shape`."""
    inside = True
    for i, axis in enumerate(axes):
        line = [side if a == axis else 1 for a, side in enumerate(shape)]
        index = lax.broadcasted_iota(jnp.int32, line, axis)
        low, high = (per_example(box[:, end, i], len(shape)) for end in (0, 1))
        inside &= (low <= index) & (index < high)
    return inside


def quarters_of(extent, sides):
    """Returns how many quarters of each side hold a box of this extent, or 0 if it is empty."""
    return jnp.where(jnp.all(extent > 0), jnp.max(-(-4 * extent // sides)), 0)


def mask_on(mask, sides):
    """Returns the mask at another resolution: for each pixel, the cell that holds its center."""
    # From the last axis to the first: first single elements of a small array, then whole rows.
    for axis in range(len(sides), 0, -1):
        of, side = mask.shape[axis], sides[axis - 1]
        if side % of == 0:
            mask = jnp.repeat(mask, side // of, axis)
        else:
            mask = _taken(mask, (2 * np.arange(side) + 1) * of // (2 * side), axis)
    return mask


def mask_with_box(mask, box):
    """Returns the bool mask, true inside the box too. Without any box the mask is not written."""
    mask = jnp.broadcast_to(mask, (max(len(mask), len(box)), *mask.shape[1:]))
    return lax.cond(
        (box[:, 0] < box[:, 1]).all(-1).any(),
        lambda: mask | inside(box, mask.shape, range(1, mask.ndim)),
        lambda: mask,
    )


def mask_per_channel(mask, channels):
    """Returns the mask with each element of the last axis once per channel.

    On a CPU, with a few channels, `jnp.repeat` takes most of the time of a mix. A gather is faster,
    and for bool the union of masks with gaps, one per channel, is fastest.
    """
    if channels == 1 or channels > 4:
        return jnp.repeat(mask, channels, -1)
    if mask.dtype != bool:
        return _taken(mask, np.repeat(np.arange(mask.shape[-1]), channels), mask.ndim - 1)
    numbers, others = mask.astype(jnp.uint8), [(0, 0, 0)] * (mask.ndim - 1)
    edges = [(i, channels - 1 - i, channels - 1) for i in range(channels)]
    parts = [lax.pad(numbers, jnp.uint8(0), [*others, edge]) for edge in edges]
    return functools.reduce(jnp.bitwise_or, parts) != 0


def _taken(mask, cells, axis):
    read = mask.at[(slice(None),) * axis + (cells,)]
    return read.get(mode="promise_in_bounds", out_sharding=explicit_sharding(mask))


def checked_mask(plan):
    """Returns the plan's mask as an array, or raises if it does not fit or is known to be wrong."""
    if plan.mask is None:
        return None
    mask, batch_size = jnp.asarray(check.array("mask", plan.mask)), plan.partner.shape[0]
    shape, found = mask.shape, f"the mask is {mask.dtype}{list(mask.shape)}"
    if len(shape) != 1 + len(plan.sides) or 0 in shape[1:] or shape[0] not in (1, batch_size):
        raise ValueError(
            f"{found}, but the plan is for a batch of {batch_size} with sides {plan.sides}."
            f" Expected [1 or {batch_size}, ...] with one axis per side, at any resolution."
        )
    if mask.dtype == bool:
        return mask
    if not jnp.issubdtype(mask.dtype, jnp.floating):
        raise ValueError(f"{found}. Expected bool, or shares in [0, 1] as floats.")
    values = check.known(mask)
    if values is not None and values.size and not ((values >= 0) & (values <= 1)).all():
        raise ValueError(
            f"the mask has values from {values.min()} to {values.max()}. Expected the partner's"
            f" share of each pixel, in [0, 1]."
        )
    return mask


def per_example(values, ndim):
    """Returns the values of each example with axes to broadcast against `ndim` axes."""
    return values.reshape(-1, *[1] * (ndim - 1))


def explicit_sharding(x):
    """Returns the sharding of `x` over explicit mesh axes, which gathers need, or None."""
    sharding = jax.typeof(x).sharding
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None
