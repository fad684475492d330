"""Boxes against torchvision's stored results, closed forms, and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutmix_jax.detection import boxes
from tests.detection import references


@pytest.fixture(scope="module")
def stored():
    return references.read()["boxes"]


def rasterized(box, side=12):
    """bool `[side, side]`: the pixels of a box with integer corners."""
    top, left, bottom, right = box
    rows, columns = np.mgrid[:side, :side]
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def test_iou_counts_pixels():
    corners = np.sort(np.random.RandomState(0).randint(0, 13, (40, 2, 2)), 1).reshape(-1, 4)
    first, second = corners[:20], corners[20:]
    got = np.asarray(jax.jit(boxes.iou)(first, second))
    for i, a in enumerate(map(rasterized, first)):
        for j, b in enumerate(map(rasterized, second)):
            want = (a & b).sum() / max((a | b).sum(), 1)
            assert got[i, j] == pytest.approx(want, abs=1e-6)
    assert (got > 0).sum() > 50
    assert got.dtype == np.float32


def test_iou_takes_batches():
    first = np.sort(np.random.RandomState(1).uniform(size=(3, 5, 2, 2)), 2).reshape(3, 5, 4)
    got = boxes.iou(first, first[:, :2])
    assert got.shape == (3, 5, 2)
    np.testing.assert_array_equal(got[1], boxes.iou(first[1], first[1, :2]))


def test_equal_to_torchvision(stored):
    inputs = {name: boxes.swap_xy(value) for name, value in stored["inputs"].items()}
    first, priors, deltas = inputs["boxes"], inputs["priors"], inputs["deltas"]
    close = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(boxes.iou(first, priors), stored["iou"], **close)
    encoded = boxes.swap_xy(boxes.encode(first, priors))
    np.testing.assert_allclose(encoded, stored["encoded"], **close)
    decoded = boxes.swap_xy(boxes.decode(deltas, priors))
    np.testing.assert_allclose(decoded, stored["decoded"], rtol=1e-5, atol=2e-4)
    clipped = boxes.swap_xy(boxes.clip(first, (40, 50)))
    np.testing.assert_array_equal(clipped, np.float32(stored["clipped"]))


def test_encode_and_decode_in_numbers():
    prior, box = [10, 20, 30, 60], [12, 24, 52, 44]  # centers (20, 40), (32, 34); 20x40, 40x20
    want = [12 / 20, -6 / 40, np.log(2), -np.log(2)]
    got = boxes.encode(box, prior, (1, 1, 1, 1))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(boxes.encode(box, prior), want / np.array([0.1, 0.1, 0.2, 0.2]))
    np.testing.assert_allclose(boxes.decode(got, prior, (1, 1, 1, 1)), box, rtol=1e-6)
    np.testing.assert_allclose(
        boxes.decode([0, 0, 99, 0], [-1, 0, 1, 4]), [-62.5, 0, 62.5, 4], rtol=1e-5
    )


def test_center_and_size_are_inverse():
    given = np.random.RandomState(0).uniform(-9, 9, (7, 4))
    np.testing.assert_allclose(boxes.to_center_size(boxes.to_corners(given)), given, atol=1e-5)


def test_clip_takes_traced_shapes_and_empties_what_is_outside():
    outside = jnp.array([[-9.0, -9, -2, -1], [70, 70, 90, 90]])
    got = jax.jit(boxes.clip)(outside, jnp.array([50, 60]))
    np.testing.assert_array_equal(got, [[0, 0, 0, 0], [50, 60, 50, 60]])


@pytest.mark.parametrize(
    ("box", "prior"),
    [([0, 0, 0, 0], [0, 0, 0, 0]), ([1, 1, 1, 4], [0, 0, 2, 2]), ([0, 0, 2, 2], [5, 5, 5, 5])],
)
def test_empty_boxes_give_finite_values_and_gradients(box, prior):
    def total(box, prior):
        coded = boxes.encode(box, prior)
        return coded.sum() + boxes.iou(box[None], prior[None]).sum(), coded

    arguments = jnp.float32(box), jnp.float32(prior)
    run = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
    (_, coded), gradients = run(*arguments)
    assert not np.any(coded)
    assert np.isfinite(gradients).all()
    assert np.isfinite(jax.grad(lambda d: boxes.decode(d, prior).sum())(jnp.full(4, 1e4))).all()


def test_gradients_of_coding_are_finite_differences():
    box, prior = np.array([12.0, 24, 52, 44]), np.array([10.0, 20, 30, 60])
    weights = np.array([1.0, -2, 3, 0.5])
    got = jax.grad(lambda b: (boxes.encode(b, prior) * weights).sum())(jnp.float32(box))

    def plain(box):
        (t, le, b, r), (pt, pl, pb, pr) = box, prior
        h, w, ph, pw = b - t, r - le, pb - pt, pr - pl
        offsets = [(t + b - pt - pb) / 2 / ph / 0.1, (le + r - pl - pr) / 2 / pw / 0.1]
        return np.dot([*offsets, np.log(h / ph) / 0.2, np.log(w / pw) / 0.2], weights)

    step = 1e-4 * np.eye(4)
    want = [(plain(box + s) - plain(box - s)) / 2e-4 for s in step]
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_refuses_what_is_not_boxes():
    with pytest.raises(ValueError, match=r"boxes has shape \(2, 5\), but \[\.\.\., 4\]"):
        boxes.iou(np.zeros((2, 5)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="priors has shape"):
        boxes.encode(np.zeros((2, 4)), np.zeros(3))
