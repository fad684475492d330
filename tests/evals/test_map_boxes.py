"""Boxes of maps made by hand, and of 200 random maps against plain searches."""

import numpy as np
import pytest

from cutmix_jax.evals import map_boxes
from tests.evals.searches import plain_contours, plain_iou, plain_largest_box, random_map


def test_the_box_surrounds_the_largest_region():
    heat = np.zeros((8, 8), np.float32)
    heat[1:4, 2:5] = 0.5  # nine pixels
    heat[5:7, 5:8] = 1.0  # six pixels; the first one is brighter
    assert map_boxes.largest_box(heat, 0.15).tolist() == [1, 2, 4, 5]
    assert map_boxes.largest_box(heat, 0.6).tolist() == [5, 5, 7, 8]
    heat[4, 5] = 0.5  # touches both only at corners, so joins neither
    assert map_boxes.largest_box(heat, 0.15).tolist() == [1, 2, 4, 5]
    heat[4, 4] = 0.5  # joins all at edges
    assert map_boxes.largest_box(heat, 0.15).tolist() == [1, 2, 7, 8]


def test_what_is_just_at_the_threshold_is_not_above_it():
    heat = np.array([[1.0, 0.5, 0.5], [0.0, 0.0, 0.0]], np.float32)
    assert map_boxes.largest_box(heat, 0.5).tolist() == [0, 0, 1, 1]
    assert map_boxes.largest_box(heat, 0.49).tolist() == [0, 0, 1, 3]


def test_a_map_without_any_height_has_no_box():
    assert map_boxes.largest_box(np.zeros((4, 4), np.float32), 0.15).tolist() == [0, 0, 0, 0]
    found, planes, largest = map_boxes.contour_boxes(np.zeros((4, 4)), [0.0, 0.5])
    assert found.tolist() == [[0, 0, 0, 0]] * 2
    assert planes[largest].tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(0, 200, 20))
def test_random_maps_against_flooding(seed):
    thresholds = np.array([0.0, 0.15, 0.4, 0.7])
    for heat in map(random_map, range(seed, seed + 20)):
        found = map_boxes.largest_box(heat, thresholds)
        for box, threshold in zip(found, thresholds, strict=True):
            assert tuple(box) == plain_largest_box(heat, threshold)
        found, planes, largest = map_boxes.contour_boxes(heat, thresholds)
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
        found, planes, largest = map_boxes.contour_boxes(heat, thresholds)
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
        assert map_boxes.overlaps([a], [b])[0, 0] == pytest.approx(plain_iou(a, b, 16))
        # Inclusive corners count one more pixel in height and width.
        wider = [box + np.array([0, 0, 1, 1]) for box in (a, b)]
        assert map_boxes.inclusive_overlaps([a], [b])[0, 0] == pytest.approx(plain_iou(*wider, 17))
