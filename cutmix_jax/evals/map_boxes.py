"""Boxes from maps, and how well they fit: NumPy and SciPy, on the host.

There are two conventions. The paper's protocol has half-open boxes (top, left, bottom, right).
MaxBoxAcc, in the code of its authors, has boxes with inclusive corners around OpenCV's contours.
"""

import numpy as np
from scipy import ndimage

# Connectivity within each plane of a stack: by edges, and by edges and corners.
EDGES = np.zeros((3, 3, 3), bool)
EDGES[1] = ndimage.generate_binary_structure(2, 1)
CORNERS = np.zeros((3, 3, 3), bool)
CORNERS[1] = True


def largest_box(heat, threshold=0.15):
    r"""The tightest box around the largest connected region above a threshold.

    Regions are connected components of :math:`\{p : M(p) > \sigma \max M\}`, connected by edges.
    Of equally large ones, the topmost is taken.

    Args:
        heat: float ``[H, W]``, not negative.
        threshold: sigma, or several of them, ``[T]``.

    Returns:
        int64 ``[4]`` (top, left, bottom, right), half-open; zeros if nothing is above the
        threshold. ``[T, 4]`` for several thresholds.

    Example:
        >>> heat = np.zeros((5, 5))
        >>> heat[1:3, 1:4], heat[4, 4] = 1.0, 1.0
        >>> largest_box(heat).tolist()
        [1, 1, 3, 4]

    Reference:
        Zhou et al. Learning Deep Features for Discriminative Localization. CVPR 2016.
    """
    thresholds = np.atleast_1d(np.asarray(threshold, heat.dtype))
    above = heat > thresholds[:, None, None] * heat.max()
    labels, _ = ndimage.label(above, EDGES)
    slices = ndimage.find_objects(labels)
    sizes = np.bincount(labels.ravel(), minlength=len(slices) + 1)[1:]
    boxes, largest = np.zeros((len(thresholds), 4), int), np.zeros(len(thresholds), int)
    for size, (plane, rows, columns) in zip(sizes, slices, strict=True):
        if size > largest[plane.start]:
            largest[plane.start] = size
            boxes[plane.start] = rows.start, columns.start, rows.stop, columns.stop
    return boxes[0] if np.ndim(threshold) == 0 else boxes


def overlaps(boxes, others):
    r"""Intersection over union of all pairs of half-open boxes.

    Args:
        boxes: ``[n, 4]`` (top, left, bottom, right).
        others: ``[m, 4]``.

    Returns:
        float64 ``[n, m]``; 0 if either box is empty.

    Example:
        >>> overlaps([[0, 0, 2, 2]], [[0, 1, 2, 3], [2, 2, 4, 4]]).round(3).tolist()
        [[0.333, 0.0]]
    """
    boxes = np.asarray(boxes, float).reshape(-1, 1, 2, 2)
    others = np.asarray(others, float).reshape(1, -1, 2, 2)
    low = np.maximum(boxes[:, :, 0], others[:, :, 0])
    high = np.minimum(boxes[:, :, 1], others[:, :, 1])
    common = np.clip(high - low, 0, None).prod(-1)
    union = sum(np.clip(b[:, :, 1] - b[:, :, 0], 0, None).prod(-1) for b in (boxes, others))
    union = union - common
    return np.divide(common, union, out=np.zeros_like(common), where=common > 0)


def contour_boxes(heat, thresholds):
    """Boxes of all contours of a map at each threshold, as in MaxBoxAcc.

    The map becomes uint8, and a pixel is inside if it is above ``int(threshold * maximum)``. A
    contour is the outer border of a region (connected by edges and corners), or the border around a
    hole in one. Its area is that of the polygon through the centers of its pixels. Its box has
    inclusive corners. It reaches one pixel further to the right and down, but stays in the image.
    Without a contour the box is (0, 0, 0, 0).

    Args:
        heat: float ``[H, W]`` in [0, 1].
        thresholds: float ``[T]``.

    Returns:
        ``(boxes, plane, largest)``: int ``[n, 4]`` (top, left, bottom, right) with inclusive
        corners; int ``[n]``, the index of each box's threshold; int ``[T]``, the index of the box
        with the largest contour area at each threshold.

    Reference:
        Choe, Oh, Lee, Chun, Akata, Shim. Evaluating Weakly Supervised Object Localization Methods
        Right. CVPR 2020; the authors' code for the details.
    """
    height, width = heat.shape
    gray = (heat * 255).astype(np.uint8)
    levels = (np.asarray(thresholds) * gray.max()).astype(int)
    regions, _ = ndimage.label(gray > levels[:, None, None], CORNERS)
    found = ndimage.find_objects(regions)
    boxes = [(rows.start, columns.start, rows.stop, columns.stop) for _, rows, columns in found]
    planes = [plane.start for plane, _, _ in found]
    # The border around a hole is inside the region, one pixel outside the hole.
    holes = find_holes(regions)
    for _, (plane, rows, columns) in holes:
        boxes.append((rows.start - 1, columns.start - 1, rows.stop + 1, columns.stop + 1))
        planes.append(plane.start)
    areas = [*polygon_areas(regions, holes, len(found)), *[-1.0] * len(holes)]
    for plane in set(range(len(levels))) - set(planes):
        boxes.append((0, 0, 0, 0))
        planes.append(plane)
        areas.append(0.0)
    boxes, planes = np.asarray(boxes), np.asarray(planes)
    boxes[:, 2:] = np.minimum(boxes[:, 2:], (height - 1, width - 1))
    order = np.lexsort((-np.arange(len(planes)), np.asarray(areas)))
    largest = np.empty(len(levels), int)
    largest[planes[order]] = order  # the last assignment has the largest area
    return boxes, planes, largest


def find_holes(regions):
    """``(mask within its slices, slices)`` of each hole: pixels that a region encloses."""
    height, width = regions.shape[1:]
    around, _ = ndimage.label(regions == 0, EDGES)
    return [
        (around[place] == number, place)
        for number, place in enumerate(ndimage.find_objects(around), 1)
        if place[1].start > 0
        and place[2].start > 0
        and place[1].stop < height
        and place[2].stop < width
    ]


def polygon_areas(regions, holes, count):
    """Areas of the polygons through the pixel centers along each region's outer border.

    Four neighboring pixel centers inside the border enclose an area of 1, three of them 1/2. Holes
    count as inside.
    """
    filled = regions.copy()
    for hole, place in holes:
        # The pixel to the left of a hole's first pixel is in the region around it.
        plane, row = place[0].start, place[1].start
        column = place[2].start + int(hole[0, 0].argmax())
        filled[place][hole] = filled[plane, row, column - 1]
    height, width = regions.shape[1:]
    a, b, c, d = (filled[:, i : height - 1 + i, j : width - 1 + j] for i in (0, 1) for j in (0, 1))
    ab, ac, ad, bd, cd = a == b, a == c, a == d, b == d, c == d
    areas = np.zeros(count + 1)
    for first, mask, area in (
        (a, ab & ac & ad, 1.0),
        (a, ab & ac & ~ad, 0.5),
        (a, ab & ad & ~ac, 0.5),
        (a, ac & ad & ~ab, 0.5),
        (b, bd & cd & ~ad, 0.5),
    ):
        areas += area * np.bincount(first[mask], minlength=count + 1)
    return areas[1:]


def inclusive_overlaps(boxes, others):
    """Intersection over union of boxes with inclusive corners: a side is ``high - low + 1``.

    Args:
        boxes: ``[n, 4]`` (top, left, bottom, right).
        others: ``[m, 4]``.

    Returns:
        float64 ``[n, m]``.

    Example:
        >>> inclusive_overlaps([[0, 0, 1, 1]], [[0, 1, 1, 2]]).round(3).tolist()
        [[0.333]]
    """
    step = np.array([0, 0, 1, 1])
    return overlaps(
        np.asarray(boxes, float).reshape(-1, 4) + step,
        np.asarray(others, float).reshape(-1, 4) + step,
    )
