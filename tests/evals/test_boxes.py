"""Boxes of maps made by hand, and of 200 random maps against plain searches."""

import collections

import numpy as np
import pytest

from cutmix_jax.evals import boxes

STEPS = {4: [(0, 1), (1, 0), (0, -1), (-1, 0)]}
STEPS[8] = [*STEPS[4], (1, 1), (1, -1), (-1, 1), (-1, -1)]


def regions(mask, neighbors):
    """The connected regions of a mask, as lists of pixels, by flood fill."""
    left, found = {tuple(p) for p in np.argwhere(mask)}, []
    for start in sorted(left):
        if start not in left:
            continue
        left.remove(start)
        queue, region = collections.deque([start]), []
        while queue:
            y, x = queue.popleft()
            region.append((y, x))
            for dy, dx in STEPS[neighbors]:
                if (y + dy, x + dx) in left:
                    left.remove((y + dy, x + dx))
                    queue.append((y + dy, x + dx))
        found.append(region)
    return found


def tight(region):
    rows, columns = zip(*region, strict=True)
    return min(rows), min(columns), max(rows) + 1, max(columns) + 1


def plain_largest_box(heat, threshold):
    """The box of the largest region, by flood fill."""
    found = regions(heat > np.float32(threshold) * heat.max(), 4)
    return tight(max(found, key=len)) if found else (0, 0, 0, 0)


def plain_iou(a, b, side):
    """The overlap of half-open boxes of whole pixels, by counting pixels."""
    grid = np.zeros((2, side, side), bool)
    for mask, (top, left, bottom, right) in zip(grid, (a, b), strict=True):
        mask[int(top) : int(bottom), int(left) : int(right)] = True
    union = (grid[0] | grid[1]).sum()
    return (grid[0] & grid[1]).sum() / union if union else 0.0


def plain_contours(heat, threshold):
    """``(boxes with inclusive corners, index of the largest area)``, by flood fill."""
    side = heat.shape[0]
    gray = (heat * 255).astype(np.uint8)
    mask = gray > int(threshold * gray.max())
    found = []
    for region in regions(mask, 8):
        alone = np.zeros_like(mask)
        alone[tuple(zip(*region, strict=True))] = True
        filled = alone.copy()
        for gap in regions(~alone, 4):
            if all(0 < y < side - 1 and 0 < x < side - 1 for y, x in gap):
                filled[tuple(zip(*gap, strict=True))] = True
        cells = [filled[y : y + 2, x : x + 2].sum() for y in range(side - 1)
                 for x in range(side - 1)]  # fmt: skip
        area = sum({3: 0.5, 4: 1.0}.get(int(cell), 0) for cell in cells)
        found.append((area, tight(region)))
    for gap in regions(~mask, 4):
        if all(0 < y < side - 1 and 0 < x < side - 1 for y, x in gap):
            top, left, bottom, right = tight(gap)
            found.append((-1, (top - 1, left - 1, bottom + 1, right + 1)))
    if not found:
        found = [(0, (0, 0, 0, 0))]
    clipped = [(*box[:2], min(box[2], side - 1), min(box[3], side - 1)) for _, box in found]
    return clipped, [area for area, _ in found]


def random_map(seed, side=12):
    """Blobs and noise, so that regions touch by corners and have holes."""
    random = np.random.RandomState(seed)
    heat = random.uniform(0, 0.5, (side, side))
    for _ in range(random.randint(1, 4)):
        y, x = random.randint(0, side, 2)
        grid = np.hypot(*(np.indices((side, side)) - np.array([y, x])[:, None, None]))
        heat = np.maximum(heat, np.exp(-((grid - random.uniform(0, 4)) ** 2) / 4))
    heat -= heat.min()
    return (heat / heat.max()).astype(np.float32)


def test_the_box_surrounds_the_largest_region():
    heat = np.zeros((8, 8), np.float32)
    heat[1:4, 2:5] = 0.5  # nine pixels
    heat[5:7, 5:8] = 1.0  # six pixels; the first one is brighter
    assert boxes.largest_box(heat, 0.15).tolist() == [1, 2, 4, 5]
    assert boxes.largest_box(heat, 0.6).tolist() == [5, 5, 7, 8]
    heat[4, 5] = 0.5  # touches both only at corners, so joins neither
    assert boxes.largest_box(heat, 0.15).tolist() == [1, 2, 4, 5]
    heat[4, 4] = 0.5  # joins all at edges
    assert boxes.largest_box(heat, 0.15).tolist() == [1, 2, 7, 8]


def test_what_is_just_at_the_threshold_is_not_above_it():
    heat = np.array([[1.0, 0.5, 0.5], [0.0, 0.0, 0.0]], np.float32)
    assert boxes.largest_box(heat, 0.5).tolist() == [0, 0, 1, 1]
    assert boxes.largest_box(heat, 0.49).tolist() == [0, 0, 1, 3]


def test_a_map_without_any_height_has_no_box():
    assert boxes.largest_box(np.zeros((4, 4), np.float32), 0.15).tolist() == [0, 0, 0, 0]
    found, planes, largest = boxes.contour_boxes(np.zeros((4, 4)), [0.0, 0.5])
    assert found.tolist() == [[0, 0, 0, 0]] * 2
    assert planes[largest].tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(0, 200, 20))
def test_random_maps_against_flooding(seed):
    thresholds = np.array([0.0, 0.15, 0.4, 0.7])
    for heat in map(random_map, range(seed, seed + 20)):
        found = boxes.largest_box(heat, thresholds)
        for box, threshold in zip(found, thresholds, strict=True):
            assert tuple(box) == plain_largest_box(heat, threshold)
        found, planes, largest = boxes.contour_boxes(heat, thresholds)
        for plane, threshold in enumerate(thresholds):
            expected, areas = plain_contours(heat, threshold)
            assert sorted(map(tuple, found[planes == plane])) == sorted(expected)
            best = [box for box, area in zip(expected, areas, strict=True) if area == max(areas)]
            assert tuple(found[largest[plane]]) in best


def test_contours_agree_with_opencv():
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV as the reference for contours")
    for heat in (random_map(seed, 24) for seed in range(200)):
        gray = (heat * 255).astype(np.uint8)
        thresholds = np.array([0.0, 0.1, 0.33, 0.6, 0.85])
        found, planes, largest = boxes.contour_boxes(heat, thresholds)
        for plane, threshold in enumerate(thresholds):
            level = int(threshold * gray.max())
            mask = cv2.threshold(gray, level, 255, cv2.THRESH_BINARY)[1]
            contours = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[-2]
            rects = [cv2.boundingRect(contour) for contour in contours]
            expected = [(y, x, min(y + h, 23), min(x + w, 23)) for x, y, w, h in rects]
            assert sorted(map(tuple, found[planes == plane])) == sorted(expected)
            areas = list(map(cv2.contourArea, contours))
            best = [box for box, area in zip(expected, areas, strict=True) if area == max(areas)]
            assert tuple(found[largest[plane]]) in best


def test_overlaps_against_counted_pixels():
    random = np.random.RandomState(0)
    low = random.randint(0, 10, (200, 2, 2))
    pairs = np.concatenate([low, low + random.randint(0, 6, (200, 2, 2))], 2)
    for a, b in pairs:
        assert boxes.overlaps([a], [b])[0, 0] == pytest.approx(plain_iou(a, b, 16))
        # Inclusive corners count one more pixel in height and width.
        wider = [box + np.array([0, 0, 1, 1]) for box in (a, b)]
        assert boxes.inclusive_overlaps([a], [b])[0, 0] == pytest.approx(plain_iou(*wider, 17))
