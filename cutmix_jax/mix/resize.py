"""Resizing whole images into boxes of traced sizes."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cutmix_jax.mix.regions import WINDOW_QUARTERS, quarters_of


def bilinear(x, frame, sides, axes, *, in_turn=False):
    """Returns each whole example, resized into its box: bilinear, with antialiasing.

    Args:
        x: floating `[B, ...]`.
        frame: int32 `[1 or B, 2, n]`, the (low, high) corners of the boxes, in pixels of an image
            of `sides`. They may be outside of it: the result has what is inside.
        sides: the spatial shape that the boxes are measured in, n numbers.
        axes: the n spatial axes of `x`, which may have a lower resolution.
        in_turn: whether to resize one example after the other, each in a window around its box.

    Returns:
        An array like `x`. It is 0 outside the boxes.
    """
    dtype = jnp.finfo(x.dtype).dtype
    low, high = frame[:, 0].astype(dtype), frame[:, 1].astype(dtype)
    side = np.asarray([sides], dtype)
    cells = np.asarray([[x.shape[axis] for axis in axes]], dtype)
    resize = partial(
        jax.image.scale_and_translate,
        spatial_dims=tuple(axis - 1 for axis in axes),
        method="linear",
    )
    scale, translation = jnp.maximum(high - low, 1) / side, low * (cells / side)
    if in_turn:
        scale, translation = (
            jnp.broadcast_to(a, (len(x), len(axes))) for a in (scale, translation)
        )
        return lax.map(lambda example: _in_window(resize, *example), (x, scale, translation))
    along = None if len(frame) == 1 else 0  # one frame: its weights are computed once
    if along is None:
        scale, translation = scale[0], translation[0]
    return jax.vmap(
        lambda x, scale, translation: resize(x, x.shape, scale=scale, translation=translation),
        in_axes=(0, along, along),
    )(x, scale, translation)


def _in_window(resize, x, scale, translation):
    """Resizes one example, computing only the smallest window that holds its box."""
    axes = resize.keywords["spatial_dims"]
    cells = np.array([x.shape[axis] for axis in axes], np.int32)
    edges = jnp.floor(translation), jnp.ceil(translation + scale * cells)
    low, high = jnp.clip(jnp.stack(edges).astype(jnp.int32), 0, cells)

    def resized_in(quarters):
        sides = -(-cells * quarters // 4)
        shape = list(x.shape)
        for axis, side in zip(axes, sides.tolist(), strict=True):
            shape[axis] = side

        def branch(x):
            corner = jnp.minimum(low, cells - sides)
            window = resize(x, shape, scale=scale, translation=translation - corner)
            start = [jnp.int32(0)] * x.ndim
            for i, axis in enumerate(axes):
                start[axis] = corner[i]
            return lax.dynamic_update_slice(jnp.zeros_like(x), window, start)

        return branch

    branches = [jnp.zeros_like] + [resized_in(quarters) for quarters in WINDOW_QUARTERS]
    return lax.switch(quarters_of(high - low, cells), branches, x)


def nearest(x, frame, sides, axes):
    """Returns each whole example, resized into its box: each cell takes what is at its center.

    Args, shapes and dtypes are those of `bilinear`, but `x` may have any dtype. What is outside the
    boxes has no meaning.
    """
    for i, axis in enumerate(axes):
        cells, side = x.shape[axis], sides[i]
        factor = math.gcd(cells, side)
        steps, pixels = cells // factor, side // factor
        # The largest product below, for a cell in a frame as large as the image.
        if 2 * side * cells >= 2**31:
            raise ValueError(
                f"{cells} class ids along an image of {side} pixels need more than 32 bits to be"
                f" resized. Give them in a lower resolution."
            )
        low, high = frame[:, :1, i], frame[:, 1:, i]
        center = (2 * lax.iota(jnp.int32, cells) + 1)[None] * pixels - 2 * steps * low
        source = center * factor // (2 * steps * jnp.maximum(high - low, 1))
        source = jnp.clip(source, 0, cells - 1)
        shape = [1] * x.ndim
        shape[0], shape[axis] = source.shape
        x = jnp.take_along_axis(x, source.reshape(shape), axis=axis, mode="clip")
    return x
