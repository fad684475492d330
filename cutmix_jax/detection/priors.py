"""Where detectors look for objects: SSD's priors and Faster R-CNN's anchors, in NumPy.

Both depend on shapes alone, so they are constants of a compiled step.
"""

import math

import numpy as np

# SSD300, one entry per feature map.
MAP_SHAPES = ((38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1))
STEPS = (8, 16, 32, 64, 100, 300)
SIZES = (30, 60, 111, 162, 213, 264, 315)
RATIOS = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))


def ssd_priors(
    image_size=300, map_shapes=MAP_SHAPES, steps=STEPS, sizes=SIZES, ratios=RATIOS, clip=True
):
    r"""The priors of SSD; with the defaults, the 8,732 of SSD300.

    A map has a step t and a size s; S is the size of the next map. The priors of cell (i, j) have
    the center :math:`((i + 1/2) t, (j + 1/2) t)`. Their heights and widths are (s, s),
    :math:`(\sqrt{s S}, \sqrt{s S})`, and for each ratio a :math:`(s / \sqrt a, s \sqrt a)` and
    :math:`(s \sqrt a, s / \sqrt a)`. The order is: maps, then rows, then columns, then the priors
    of a cell.

    Args:
        image_size: side of the square image in pixels.
        map_shapes: (height, width) of each feature map.
        steps: distance of neighboring cells of each map, in pixels.
        sizes: s of each map in pixels, and one more: S of the last map.
        ratios: ratios a for each map; a map has 2 + 2 * len(ratios) priors per cell.
        clip: whether to clip center y, center x, height and width, as fractions of the image, to
            [0, 1]. Corners may lie outside the image either way.

    Returns:
        float32 `[P, 4]`, (top, left, bottom, right) as fractions of the image.

    Raises:
        ValueError: the numbers of maps differ.

    Example:
        >>> ssd_priors().shape
        (8732, 4)
        >>> ssd_priors(100, [(1, 1)], [100], [25, 100], [(4,)]).tolist()[:3]
        [[0.375, 0.375, 0.625, 0.625], [0.25, 0.25, 0.75, 0.75], [0.4375, 0.25, 0.5625, 0.75]]

    Reference:
        Liu et al. SSD: Single Shot MultiBox Detector. ECCV 2016, section 2.2; the sizes and the
        clipping are those of the public PyTorch code that the CutMix paper follows.
    """
    maps = len(map_shapes)
    if not (len(steps) == len(sizes) - 1 == len(ratios) == maps):
        raise ValueError(
            f"map_shapes has {maps} entries, steps {len(steps)}, sizes {len(sizes)} and ratios "
            f"{len(ratios)}. Give one for each map, and one more size."
        )
    priors = []
    for (height, width), step, size, larger, own in zip(
        map_shapes, steps, sizes[:-1], sizes[1:], ratios, strict=True
    ):
        extents = [(size, size), (math.sqrt(size * larger),) * 2]
        for ratio in own:
            short, long = size / math.sqrt(ratio), size * math.sqrt(ratio)
            extents += [(short, long), (long, short)]
        priors.append(_on_grid(height, width, step, step / 2, np.array(extents)))
    priors = np.concatenate(priors) / image_size
    if clip:
        priors = np.clip(priors, 0, 1)
    return _corners(priors)


def rcnn_anchors(map_shape, stride=16, scales=(8, 16, 32), ratios=(0.5, 1, 2)):
    r"""The anchors of Faster R-CNN, one for each cell, ratio and scale.

    An anchor of ratio a (height to width) and scale z has width :math:`z w` and height :math:`z h`
    with :math:`w = [\sqrt{q^2 / a}]` and :math:`h = [a w]` for the stride q, rounded to integers,
    half to even. The center of cell (i, j) is :math:`(q i + q / 2, q j + q / 2)`.

    Boxes are half-open. The original code has inclusive corners: there, bottom and right are
    smaller by 1, and heights and widths are the same.

    Args:
        map_shape: (height, width) of the feature map.
        stride: q, distance of neighboring cells in pixels.
        scales: sizes of anchors in strides.
        ratios: height to width.

    Returns:
        float32 `[height * width * A, 4]`, (top, left, bottom, right) in pixels. The order
        is: rows, then columns, then ratios, then scales. Anchors may lie outside the image.

    Example:
        >>> rcnn_anchors((38, 63)).shape
        (21546, 4)
        >>> rcnn_anchors((1, 1))[0].tolist()
        [-40.0, -84.0, 56.0, 100.0]

    Reference:
        Ren et al. Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks.
        NIPS 2015, section 3.1; the rounding is that of its code.
    """
    extents = []
    for ratio in ratios:
        width = round(math.sqrt(stride * stride / ratio))
        height = round(width * ratio)
        extents += [(height * scale, width * scale) for scale in scales]
    return _corners(_on_grid(*map_shape, stride, stride / 2, np.array(extents)))


def _on_grid(height, width, step, offset, extents):
    """float64 `[height * width * n, 4]`, (center y, center x, height, width), for `extents` [n]."""
    centers = np.stack(np.mgrid[:height, :width], -1)[:, :, None] * float(step) + offset
    shape = (height, width, len(extents), 2)
    pair = [np.broadcast_to(values, shape) for values in (centers, extents)]
    return np.concatenate(pair, -1).reshape(-1, 4)


def _corners(boxes):
    center, size = boxes[:, :2], boxes[:, 2:]
    return np.concatenate([center - size / 2, center + size / 2], 1).astype(np.float32)
