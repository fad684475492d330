"""Priors and anchors against counts, sums, lists, and torchvision's stored results."""

import numpy as np
import pytest

from cutmix_jax.detection import priors
from tests.detection import references

# (left, top, right, bottom) with inclusive corners, from the original code.
ANCHORS = [
    (-84, -40, 99, 55),
    (-176, -88, 191, 103),
    (-360, -184, 375, 199),
    (-56, -56, 71, 71),
    (-120, -120, 135, 135),
    (-248, -248, 263, 263),
    (-36, -80, 51, 95),
    (-80, -168, 95, 183),
    (-168, -344, 183, 359),
]


def as_centers(corners):
    """(center x, center y, width, height) in float64."""
    top, left, bottom, right = np.asarray(corners, np.float64).T
    return np.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], 1)


def test_ssd300_has_the_known_number_and_sum():
    got = priors.ssd_priors()
    assert got.shape == (8732, 4)
    assert got.dtype == np.float32
    assert as_centers(got).sum() == pytest.approx(11906.5893, abs=2e-3)


def test_ssd300_in_the_known_order():
    """Visits the cells one by one; (center x, center y, width, height)."""
    want = []
    for n, step, size in zip((38, 19, 10, 5, 3, 1), (8, 16, 32, 64, 100, 300),
                             (30, 60, 111, 162, 213, 264), strict=True):  # fmt: skip
        larger = {30: 60, 60: 111, 111: 162, 162: 213, 213: 264, 264: 315}[size]
        for i in range(n):
            for j in range(n):
                x, y, s = (j + 0.5) * step / 300, (i + 0.5) * step / 300, size / 300
                mean = (s * larger / 300) ** 0.5
                want += [(x, y, s, s), (x, y, mean, mean)]
                for a in {38: [2], 3: [2], 1: [2]}.get(n, [2, 3]):
                    want += [(x, y, s * a**0.5, s / a**0.5), (x, y, s / a**0.5, s * a**0.5)]
    np.testing.assert_allclose(as_centers(priors.ssd_priors()), np.clip(want, 0, 1), atol=1e-6)
    unclipped = priors.ssd_priors(clip=False)
    np.testing.assert_allclose(as_centers(unclipped), want, atol=1e-6)


def test_ssd300_is_torchvision_except_where_its_centers_are_clipped():
    """torchvision clips sizes but not the centers of the last row and column of the 10x10 map."""
    stored = references.read()["priors"]
    got = as_centers(priors.ssd_priors(clip=False))
    got[:, 2:] = got[:, 2:].clip(0, 1)
    for name, want in stored["sums"].items():
        weights = {"plain": 1, "by_index": np.arange(8732)[:, None] / 8732}[name]
        np.testing.assert_allclose((got * weights).sum(0), want, rtol=2e-6)
    np.testing.assert_allclose(got[::499], stored["every_499th"], atol=1e-6)
    moved = np.abs(got - as_centers(priors.ssd_priors())).max(1)
    assert (moved > 1e-6).sum() == 114
    np.testing.assert_allclose(moved[moved > 1e-6], 0.0133, atol=1e-4)


def test_maps_need_not_be_square():
    got = priors.ssd_priors(100, [(1, 2)], [50], [20, 45], [()])
    want = [(25, 25, 20, 20), (25, 25, 30, 30), (75, 25, 20, 20), (75, 25, 30, 30)]
    np.testing.assert_allclose(as_centers(got), np.array(want) / 100, atol=1e-6)


def test_anchors_are_those_of_the_list():
    left, top, right, bottom = np.array(ANCHORS).T
    want = np.stack([top, left, bottom + 1, right + 1], 1)
    np.testing.assert_array_equal(priors.rcnn_anchors((1, 1)), want)
    many = priors.rcnn_anchors((3, 5)).reshape(3, 5, 9, 4)
    np.testing.assert_array_equal(many[2, 4], want + np.array([32, 64, 32, 64]))
    np.testing.assert_array_equal(many[0, 1], want + np.array([0, 16, 0, 16]))
    assert many.dtype == np.float32


def test_refuses_another_number_of_maps():
    with pytest.raises(ValueError, match="map_shapes has 6 entries, steps 5"):
        priors.ssd_priors(steps=(8, 16, 32, 64, 100))
