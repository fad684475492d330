"""Resizing whole images into boxes of traced sizes."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def bilinear(x, frame, sides, axes):
    """Returns each whole example, resized into its box: bilinear, with antialiasing.

    Args:
        x: floating `[B, ...]`.
        frame: int32 `[1 or B, 2, n]`, the (low, high) corners of the boxes, in pixels of an image
            of `sides`. They may be outside of it: the result has what is inside.
        sides: the spatial shape that the boxes are measured in, n numbers.
        axes: the n spatial axes of `x`, which may have a lower resolution.

    Returns:
        An array like `x`. It is 0 outside the boxes.
    """
    dtype = jnp.finfo(x.dtype).dtype
    low, high = frame[:, 0].astype(dtype), frame[:, 1].astype(dtype)
    side = np.asarray([sides], dtype)
    cells = np.asarray([[x.shape[axis] for axis in axes]], dtype)
    resize = partial(
        jax.image.scale_and_translate,
        shape=x.shape[1:],
        spatial_dims=tuple(axis - 1 for axis in axes),
        method="linear",
    )
    scale, translation = jnp.maximum(high - low, 1) / side, low * (cells / side)
    along = None if len(frame) == 1 else 0  # one frame: its weights are computed once
    if along is None:
        scale, translation = scale[0], translation[0]
    return jax.vmap(
        lambda x, scale, translation: resize(x, scale=scale, translation=translation),
        in_axes=(0, along, along),
    )(x, scale, translation)


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
