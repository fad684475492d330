"""Boxes from maps, and how well they fit: NumPy and SciPy, on the host.

Two conventions meet here and are kept apart. The paper's protocol knows half-open boxes
(top, left, bottom, right). MaxBoxAcc, as its authors' code has it, knows boxes with inclusive
corners, found around contours as OpenCV draws them.
"""

import numpy as np
from scipy import ndimage

# Within each plane of a stack, and never across: by edges, and by edges and corners.
EDGES = np.zeros((3, 3, 3), bool)
EDGES[1] = ndimage.generate_binary_structure(2, 1)
CORNERS = np.zeros((3, 3, 3), bool)
CORNERS[1] = True


def largest_box(heat, threshold=0.15):
    r"""The tightest box around the largest connected region above a share of the maximum.

    The region is among :math:`\{p : M(p) > \sigma \max M\}`, connected by edges; of equally large
    ones it is the first from above.

    Args:
      heat: float ``[H, W]``, not negative.
      threshold: sigma, or several of them, ``[T]``.

    Returns:
      int64 ``[4]`` (top, left, bottom, right), half-open; zeros where nothing is above; or
      ``[T, 4]``.

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
    r"""Intersection over union of half-open boxes, each with each.

    Args:
      boxes: ``[n, 4]`` (top, left, bottom, right).
      others: ``[m, 4]``.

    Returns:
      float64 ``[n, m]``; 0 where either is empty.

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
    """Boxes of all contours of a map at each threshold, as MaxBoxAcc has them.

    The map becomes uint8, and a pixel is in where it is above ``int(threshold * maximum)``. A
    contour is the outer border of a region that is connected by edges and corners, or the border
    around a hole in one. Its area is that of the polygon through the centres of its pixels. Its
    box has inclusive corners, one pixel further to the right and below than its pixels, but
    within the image. Where there is no contour the box is (0, 0, 0, 0).

    Args:
      heat: float ``[H, W]`` in [0, 1].
      thresholds: float ``[T]``.

    Returns:
      ``(boxes, plane, largest)``: int ``[n, 4]`` (top, left, bottom, right) with inclusive
      corners, int ``[n]`` the threshold each belongs to, and int ``[T]`` the index of the box of
      each threshold's contour of largest area.

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
    # The border around a hole runs in the region, one pixel outside of the hole.
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
    largest[planes[order]] = order  # the last assignment, of the largest area, stays
    return boxes, planes, largest


def find_holes(regions):
    """``(mask within its slices, slices)`` of all that is in no region and enclosed by one."""
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
    """Areas of the polygons through the pixel centres along each region's outer border.

    Between four pixel centres that are all within the border lies an area of 1, between three of
    them of a half. Holes belong to what is within.
    """
    filled = regions.copy()
    for hole, place in holes:
        # What lies left of a hole's first pixel is the region around it.
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
    """Intersection over union of boxes with inclusive corners: sides are ``high - low + 1``.

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
