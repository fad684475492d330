"""ROIAlign: features of regions on a fixed grid, by gathering."""

import jax.numpy as jnp
from jax import lax

from cutmix_jax.detection.boxes import as_boxes


def roi_align(
    features, boxes, output_shape=(7, 7), *, scale=1 / 16, sampling=2, aligned=True, chunk=16
):
    r"""Averages bilinear samples of a feature map in the cells of each region.

    A region is divided into a grid of cells of height h and width w, from its corner (t, l) in
    units of the map. Cell (i, j) has the mean of n x n samples at

    .. math::

        y_a = t + \left(i + \frac{a + 1/2}{n}\right) h, \quad
        x_b = l + \left(j + \frac{b + 1/2}{n}\right) w, \quad a, b = 0, ..., n - 1

    A sample is interpolated between the four next pixels. If it is outside the map by up to one
    pixel, it has the value at the border; if further, it is 0. This is torchvision's `roi_align`.

    Args:
        features: float `[H, W, C]`; the result has its dtype, and sums are float32.
        boxes: float `[R, 4]`, (top, left, bottom, right) in pixels of the image. They have no
            gradient.
        output_shape: (height, width) of the grid; static.
        scale: size of the map divided by that of the image.
        sampling: n, samples per cell and axis; static.
        aligned: whether pixel centers are at 1/2, which moves regions by half a pixel of the map.
            If False, they are at 0, and regions are at least 1 pixel of the map high and wide.
        chunk: number of regions to gather at a time, which bounds the memory; static.

    Returns:
        `[R, *output_shape, C]`. Empty boxes, such as padding, give finite values.

    Raises:
        ValueError: the shapes do not fit, or `sampling` or `chunk` is below 1.

    Example:
        >>> columns = jnp.broadcast_to(jnp.arange(8.0), (8, 8))[..., None]
        >>> roi_align(columns, jnp.array([[0, 16, 64, 80]]), (1, 2))[0, 0, :, 0].tolist()
        [1.5, 3.5]

    Reference:
        He et al. Mask R-CNN. ICCV 2017, section 3.
    """
    features, boxes = jnp.asarray(features), lax.stop_gradient(as_boxes("boxes", boxes))
    if features.ndim != 3 or boxes.ndim != 2:
        raise ValueError(
            f"features has shape {features.shape} and boxes {boxes.shape}, but [H, W, C] and [R, "
            "4] were expected. Use jax.vmap for several images."
        )
    for name, value in {"sampling": sampling, "chunk": chunk}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}, but at least 1 was expected.")
    height, width, channels = features.shape
    pixels = features.reshape(-1, channels)

    def pool(box):
        rows = _samples(box[0], box[2], output_shape[0], height, scale, sampling, aligned)
        columns = _samples(box[1], box[3], output_shape[1], width, scale, sampling, aligned)
        total = jnp.zeros((*output_shape, channels), jnp.float32)
        for y, down in rows:
            for x, right in columns:
                weights = down[:, None, None] * right[:, None]
                total += weights * pixels[y[:, None] * width + x]
        return total.astype(features.dtype)

    if not len(boxes):
        return jnp.zeros((0, *output_shape, channels), features.dtype)
    return lax.map(pool, boxes, batch_size=min(chunk, len(boxes)))


def _samples(low, high, cells, size, scale, sampling, aligned):
    """Pixels of the samples along an axis, and their weights in the mean of a cell.

    Returns 2 * `sampling` pairs (int32 `[cells]`, float32 `[cells]`): for each sample of a cell the
    pixel before it and the one after it.
    """
    low, high = low * scale - aligned / 2, high * scale - aligned / 2
    length = high - low if aligned else jnp.maximum(high - low, 1)
    pairs = []
    for a in range(sampling):
        at = low + (jnp.arange(cells) + (a + 0.5) / sampling) * (length / cells)
        known = (at >= -1) & (at <= size)
        at = jnp.clip(at, 0, size - 1)
        before = jnp.floor(at).astype(jnp.int32)
        after = jnp.minimum(before + 1, size - 1)
        weight = at - before
        pairs.append((before, jnp.where(known, 1 - weight, 0) / sampling))
        pairs.append((after, jnp.where(known, weight, 0) / sampling))
    return pairs
