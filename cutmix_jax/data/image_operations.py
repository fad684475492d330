"""The operations of TrivialAugment and RandAugment on the device, with the pixels of Pillow.

`create_operations` says what happens to each image of a batch, without touching a pixel.
`apply_operations` does it, inside jit, with another operation for each image.

References:
    Cubuk et al., AutoAugment: Learning augmentation strategies from data, CVPR 2019.
    Pillow: Image.transform, Image.rotate, ImageEnhance and ImageOps.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# What an operation reads decides its branch: nothing, pixels at other positions, a table of 256
# levels per channel, the histogram, the gray image, the smoothed image.
BRANCHES = {
    "copy": ("identity",),
    "warp": ("shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    "map_levels": (
        "brightness",
        "posterize",
        "solarize",
        "solarize_add",
        "auto_contrast",
        "invert",
    ),
    "equalize": ("equalize",),
    "blend_gray": ("contrast", "color"),
    "sharpen": ("sharpness",),
}
OPERATIONS = tuple(name for names in BRANCHES.values() for name in names)
INDEX = {name: i for i, name in enumerate(OPERATIONS)}
BRANCH_OF = np.array([i for i, names in enumerate(BRANCHES.values()) for _ in names], np.int32)
INTERPOLATIONS = ("nearest", "bilinear")
# Pillow's fixed-point numbers have 16 bits behind the point.
BITS = 16
UNIT, HALF = 1 << BITS, 1 << (BITS - 1)


class Operations(NamedTuple):
    """One operation per image, from `create_operations`.

    The output pixel `(x, y)` is the input at `matrix @ (x, y, 1)`, in pixels from the left and top
    edge, with `matrix = fixed / 2**16 + remainder`. Two numbers give the pixels that float64 gives.

    Attributes:
        index: int32 `[...]`, the position in `OPERATIONS`.
        magnitude: float32 `[...]`, in the operation's own unit.
        fixed: int32 `[..., 2, 3]`, rows x and y.
        remainder: float32 `[..., 2, 3]`, in pixels.
    """

    index: jax.Array
    magnitude: jax.Array
    fixed: jax.Array
    remainder: jax.Array


def create_operations(index, magnitude, spatial_shape: tuple[int, int]) -> Operations:
    """Operations of given magnitudes, for images of one shape.

    ============================  ===============================================  =============
    operation                     output                                           magnitude `m`
    ============================  ===============================================  =============
    `identity`                    the image                                        none
    `shear_x`, `shear_y`          the input at `(x + m y, y)`, or `(x, y + m x)`   slope
    `translate_x`, `translate_y`  moved right, or down, by `m`                     pixels
    `rotate`                      rotated about the center, counterclockwise       degrees
    `brightness`                  `m v` for a level `v`                            factor
    `contrast`                    `g + m (v - g)` with the mean gray level `g`     factor
    `color`                       `g + m (v - g)` with the pixel's gray level `g`  factor
    `sharpness`                   `s + m (v - s)` with the smoothed image `s`      factor
    `posterize`                   the upper `m` bits of `v`                        bits, 0 to 8
    `solarize`                    `255 - v` for `v >= m`                           level
    `solarize_add`                `min(v + m, 255)` for `v < 128`                  levels
    `auto_contrast`               each channel stretched to 0 to 255               none
    `equalize`                    each channel with an even histogram              none
    `invert`                      `255 - v`                                        none
    ============================  ===============================================  =============

    Args:
        index: int `[...]`, positions in `OPERATIONS`.
        magnitude: float `[...]`; a factor of 1 changes nothing. NumPy's are used in float64, others
            in float32.
        spatial_shape: (height, width) of the images, in pixels.

    Returns:
        `Operations` with leading axes `[...]`, of NumPy's arrays if `magnitude` is one.

    Example:
        >>> index = [INDEX['rotate'], INDEX['invert']]
        >>> found = create_operations(index, np.array([90.0, 0.0]), (32, 32))
        >>> (found.fixed[0] / UNIT).tolist()  # (x, y) is the input at (31.5 - y, x + 0.5)
        [[0.0, -1.0, 31.5], [1.0, 0.0, 0.5]]

    Reference:
        Pillow, Image.transform and Image.rotate.
    """
    xp = np if isinstance(magnitude, np.ndarray) else jnp
    index = xp.asarray(index, xp.int32)
    magnitude = xp.asarray(magnitude, xp.float64 if xp is np else xp.float32)
    height, width = spatial_shape

    def of(name, value, otherwise=0.0):
        return xp.where(index == INDEX[name], value, otherwise)

    angle = of("rotate", magnitude * (np.pi / 180))
    cos, sin = xp.cos(angle), xp.sin(angle)
    to_x = [cos, of("shear_x", magnitude, -sin)]
    to_y = [of("shear_y", magnitude, sin), cos]
    # The center stays where it is in a rotation, and the corner in a shear. Half a pixel more is
    # the center of an output pixel.
    x = of("rotate", width / 2 * (1 - cos) + height / 2 * sin, -of("translate_x", magnitude))
    y = of("rotate", height / 2 * (1 - cos) - width / 2 * sin, -of("translate_y", magnitude))
    rows = [[*row, at + sum(row) / 2] for row, at in ((to_x, x), (to_y, y))]
    matrix = xp.stack([xp.stack(row, -1) for row in rows], -2)
    fixed = xp.floor(matrix * UNIT + 0.5)
    remainder = (matrix - fixed / UNIT).astype(xp.float32)
    return Operations(index, magnitude.astype(xp.float32), fixed.astype(xp.int32), remainder)


def apply_operations(
    operations: Operations,
    images: jax.Array,
    *,
    interpolation: str = "bilinear",
    fill: tuple[int, int, int] = (0, 0, 0),
) -> jax.Array:
    """Applies to each image its own operation.

    The result is Pillow's to one level, at each pixel.

    Args:
        operations: `[B]`, from `create_operations`.
        images: uint8 `[B, H, W, 3]`, of the shape that the operations were made for.
        interpolation: 'nearest' or 'bilinear', of shears, translations and rotations.
        fill: color outside the image, three levels from 0 to 255.

    Returns:
        uint8 `[B, H, W, 3]`.

    Raises:
        ValueError: the images are not uint8 with 3 channels, or the interpolation has no such name.

    Example:
        >>> images = jnp.arange(12, dtype=jnp.uint8).reshape(1, 2, 2, 3)
        >>> operations = create_operations([INDEX['translate_x']], np.array([1.0]), (2, 2))
        >>> apply_operations(operations, images, fill=(9, 9, 9))[0, 0].tolist()
        [[9, 9, 9], [0, 1, 2]]

    Reference:
        Pillow, Image.transform, ImageEnhance and ImageOps.
    """
    if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f"images are {images.dtype} {list(images.shape)}, but uint8 [B, H, W, 3] was expected"
        )
    if interpolation not in INTERPOLATIONS:
        raise ValueError(
            f"interpolation is {interpolation!r}, but one of {INTERPOLATIONS} was expected"
        )
    operations = jax.tree.map(jnp.asarray, operations)
    apply_one = functools.partial(_apply_one, interpolation=interpolation, fill=fill)
    # A CPU takes one image after the other, and only the branch that it needs. Others take all
    # images at once, and select.
    return jax.lax.platform_dependent(
        operations, images, cpu=_in_turn(apply_one), default=jax.vmap(apply_one)
    )


def _in_turn(apply_one):
    """As `jax.vmap(apply_one)`, with a loop. Images are rows of bytes in it, which copy faster."""

    def apply(operations, images):
        def apply_row(given):
            operation, row = given
            image = apply_one(operation, row.reshape(images.shape[1:]))
            return jax.lax.optimization_barrier(image.reshape(-1))

        rows = jax.lax.map(apply_row, (operations, images.reshape(len(images), -1)))
        return rows.reshape(images.shape)

    return apply


def _apply_one(operation, image, *, interpolation, fill):
    branches = {
        "copy": lambda image, operation: image,
        "warp": functools.partial(_warp, interpolation=interpolation, fill=fill),
        "map_levels": _map_levels,
        "equalize": _equalize,
        "blend_gray": _blend_gray,
        "sharpen": _sharpen,
    }
    branch = jnp.asarray(BRANCH_OF)[operation.index]
    return jax.lax.switch(branch, [branches[name] for name in BRANCHES], image, operation)


def _pack(image):
    """uint32 [H, W]: the bytes of a pixel in one number, so that it is read once."""
    padded = jnp.concatenate([image, jnp.zeros_like(image[..., :1])], -1)
    return jax.lax.optimization_barrier(jax.lax.bitcast_convert_type(padded, jnp.uint32))


def _unpack(packed):
    """The inverse of `_pack`."""
    packed = jax.lax.optimization_barrier(packed)
    return jax.lax.bitcast_convert_type(packed, jnp.uint8)[..., :3]


def _channels(packed):
    return [packed >> shift & 255 for shift in (0, 8, 16)]


def _join(channels):
    red, green, blue = (channel.astype(jnp.uint32) for channel in channels)
    return red | green << 8 | blue << 16


def _warp(image, operation, *, interpolation, fill):
    height, width = image.shape[:2]
    pixels = _pack(image).reshape(-1)

    def read(y, x):
        at = jnp.clip(y, 0, height - 1) * width + jnp.clip(x, 0, width - 1)
        return pixels.at[jax.lax.optimization_barrier(at)].get(mode="promise_in_bounds")

    if interpolation == "nearest":
        x, y = (_whole(operation.fixed[axis], height, width) >> BITS for axis in (0, 1))
        found = read(y, x)
    else:
        (x, dx), (y, dy) = (
            _before(operation.fixed[axis], operation.remainder[axis], height, width)
            for axis in (0, 1)
        )
        corners = [read(*at) for at in ((y, x), (y, x + 1), (y + 1, x), (y + 1, x + 1))]
        corners = map(_channels, jax.lax.optimization_barrier(corners))
        found = _join(_interpolate(*levels, dx, dy) for levels in zip(*corners, strict=True))
        x, y = x + (dx >= 0.5), y + (dy >= 0.5)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return _unpack(jnp.where(inside, found, _join(jnp.asarray(fill, jnp.uint32))))


def _whole(fixed, height, width):
    """int32 [H, W]: a source coordinate in 1/65536 pixels, without the remainder."""
    x, y = jnp.arange(width, dtype=jnp.int32), jnp.arange(height, dtype=jnp.int32)[:, None]
    return fixed[0] * x + fixed[1] * y + fixed[2]


def _before(fixed, remainder, height, width):
    """The last pixel center before a coordinate, int32 [H, W], and the distance from it."""
    x, y = jnp.arange(width, dtype=jnp.float32), jnp.arange(height, dtype=jnp.float32)[:, None]
    from_center = _whole(fixed, height, width) - HALF
    rest = (from_center & (UNIT - 1)).astype(jnp.float32) / UNIT
    rest = rest + (remainder[0] * x + remainder[1] * y + remainder[2])
    step = jnp.floor(rest)
    return (from_center >> BITS) + step.astype(jnp.int32), rest - step


def _interpolate(*levels_and_distances):
    """Pillow's order of operations, and its truncation."""
    *corners, dx, dy = levels_and_distances
    a, b, c, d = (corner.astype(jnp.float32) for corner in corners)
    upper, lower = a + (b - a) * dx, c + (d - c) * dx
    return upper + (lower - upper) * dy


def _map_levels(image, operation):
    # First over rows: their bytes are consecutive.
    rows = image.reshape(image.shape[0], -1)
    lowest = rows.min(0).reshape(-1, 3).min(0).astype(jnp.int32)
    highest = rows.max(0).reshape(-1, 3).max(0).astype(jnp.int32)
    level, m = jnp.arange(256, dtype=jnp.int32)[:, None], operation.magnitude
    whole = m.astype(jnp.int32)
    stretched = (level - lowest) * 255 // jnp.maximum(highest - lowest, 1)
    tables = {
        "brightness": m * level,
        "posterize": level & -(1 << jnp.clip(8 - whole, 0, 8)),
        "solarize": jnp.where(level < m, level, 255 - level),
        "solarize_add": jnp.where(level < 128, level + whole, level),
        "auto_contrast": jnp.where(highest > lowest, stretched, level),
        "invert": 255 - level,
    }
    shape = (256, 3)
    which = [operation.index == INDEX[name] for name in tables]
    values = [jnp.broadcast_to(_to_levels(table), shape) for table in tables.values()]
    return _look_up(jnp.select(which, values), image)


def _to_levels(values):
    """uint8 of integers or floats, clipped and truncated, as Pillow does it."""
    return jnp.clip(values, 0, 255).astype(jnp.uint8)


def _look_up(table, image):
    """uint8 [H, W, 3] from a table uint8 [256, 3]."""
    table = jax.lax.optimization_barrier(table)
    return table.at[image, jnp.arange(3)].get(mode="promise_in_bounds")


def _equalize(image, operation):
    del operation
    counts = [jnp.bincount(image[..., channel].reshape(-1), length=256) for channel in range(3)]
    counts = jnp.stack(counts, -1).astype(jnp.int32)
    total = image.shape[0] * image.shape[1]
    level = jnp.arange(256, dtype=jnp.int32)[:, None]
    last = jnp.max(jnp.where(counts > 0, level, 0), axis=0)
    step = (total - jnp.take_along_axis(counts, last[None], 0)) // 255
    below = jnp.cumsum(counts, axis=0) - counts
    table = jnp.where(step > 0, (step // 2 + below) // jnp.maximum(step, 1), level)
    return _look_up(_to_levels(table), image)


def _gray(red, green, blue):
    """Pillow's gray level, with weights 0.299, 0.587 and 0.114."""
    return (red * 19595 + green * 38470 + blue * 7471 + HALF) >> BITS


def _blend(target, levels, factor):
    target, levels = target.astype(jnp.float32), levels.astype(jnp.float32)
    return _to_levels(target + factor * (levels - target))


def _blend_gray(image, operation):
    channels = [channel.astype(jnp.int32) for channel in _channels(_pack(image))]
    gray, total = _gray(*channels), image.shape[0] * image.shape[1]
    mean = (2 * jnp.sum(gray) + total) // (2 * total)
    target = jnp.where(operation.index == INDEX["contrast"], mean, gray)
    return _unpack(_join(_blend(target, levels, operation.magnitude) for levels in channels))


def _sharpen(image, operation):
    """A mean of 3x3 pixels in which the middle counts 5 times; the border stays."""
    height, width = image.shape[:2]
    if min(height, width) < 3:
        return image
    flat = image.reshape(height, -1)  # the next pixel of a channel is three bytes on
    levels = flat.astype(jnp.float32)
    columns = levels[:-2] + levels[1:-1] + levels[2:]
    middle = levels[1:-1, 3:-3]
    sums = columns[:, :-6] + columns[:, 3:-3] + columns[:, 6:] + 4 * middle
    smooth = jnp.floor(sums * np.float32(1 / 13) + 0.5)
    inner = _blend(smooth, middle, operation.magnitude)
    return jax.lax.dynamic_update_slice(flat, inner, (1, 3)).reshape(image.shape)
