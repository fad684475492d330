"""ROIAlign against torchvision's stored results, products in NumPy, and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutmix_jax.detection import boxes as boxes_module
from cutmix_jax.detection.roi_align import roi_align
from tests.detection import references

STATIC = ("output_shape", "sampling", "aligned", "chunk")
pool = jax.jit(roi_align, static_argnames=STATIC)


def weights(low, high, cells, size, scale, sampling, aligned):
    """float64 `[cells, size]`: what each pixel of an axis adds to a cell, from hat functions."""
    shift = 0.5 if aligned else 0.0
    start, length = low * scale - shift, (high - low) * scale
    length = length if aligned else max(length, 1.0)
    points = start + length * (np.arange(cells * sampling) + 0.5) / (cells * sampling)
    clamped = np.clip(points, 0, size - 1)
    hats = np.maximum(1 - np.abs(clamped[:, None] - np.arange(size)), 0)
    hats[(points < -1) | (points > size)] = 0
    return hats.reshape(cells, sampling, size).mean(1)


def dense(features, boxes, shape, scale, sampling, aligned):
    result = []
    for top, left, bottom, right in np.asarray(boxes, np.float64):
        options = scale, sampling, aligned
        rows = weights(top, bottom, shape[0], features.shape[0], *options)
        columns = weights(left, right, shape[1], features.shape[1], *options)
        result.append(np.einsum("iy,jx,yxc->ijc", rows, columns, features.astype(np.float64)))
    return np.array(result)


def some(count=9, seed=0):
    random = np.random.RandomState(seed)
    low = random.uniform(-30, 120, (count, 2))
    boxes = np.concatenate([low, low + random.uniform(5, 90, (count, 2))], 1).astype(np.float32)
    boxes[1:4] = [[0, 0, 0, 0], [-200, -200, -150, -100], [-60, -40, 400, 500]]
    return random.normal(size=(9, 12, 5)).astype(np.float32), boxes


@pytest.mark.parametrize("aligned", [True, False])
def test_equal_to_torchvision(aligned):
    stored = references.read()["roi_align"]
    features = np.float32(stored["inputs"]["features"])
    boxes = boxes_module.swap_xy(stored["inputs"]["boxes"])
    for sampling in (1, 2):
        got = pool(features, boxes, (2, 3), scale=1 / 8, sampling=sampling, aligned=aligned)
        want = stored[f"aligned={aligned},sampling={sampling}"]
        np.testing.assert_allclose(got, want, atol=5e-6)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(("shape", "sampling"), [((7, 7), 2), ((2, 5), 3)])
def test_equal_to_dense_products(aligned, shape, sampling):
    features, boxes = some()
    got = pool(features, boxes, shape, scale=1 / 12, sampling=sampling, aligned=aligned)
    want = dense(features, boxes, shape, 1 / 12, sampling, aligned)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert not np.any(want[2])  # far outside
    assert np.abs(want[1]).max() > 0  # an empty region at the border


def test_the_mean_of_a_plane_is_its_value_at_the_center():
    rows, columns = np.mgrid[:20, :30] + 0.5
    features = np.float32(rows * 2 - columns * 3)[..., None]
    got = pool(features, np.float32([[32, 48, 96, 176]]), (1, 1), scale=1 / 8, sampling=4)
    assert got.item() == pytest.approx(2 * 8 - 3 * 14, abs=1e-4)


@pytest.mark.parametrize("chunk", [1, 4, 50])
def test_chunks_do_not_change_the_result(chunk):
    features, boxes = some()
    np.testing.assert_allclose(
        pool(features, boxes, (3, 3), chunk=chunk), pool(features, boxes, (3, 3)), atol=1e-6
    )


def test_gradient_is_the_transposed_product():
    features, boxes = some()
    random = np.random.RandomState(1)
    cotangent = random.normal(size=(9, 3, 2, 5)).astype(np.float32)

    @jax.jit
    def gradients(features, boxes):
        def total(features, boxes):
            return (roi_align(features, boxes, (3, 2), scale=1 / 12, chunk=4) * cotangent).sum()

        return jax.grad(total, (0, 1))(features, boxes)

    got, of_boxes = gradients(features, boxes)
    want = np.zeros(features.shape)
    for box, own in zip(boxes, cotangent, strict=True):
        rows = weights(box[0], box[2], 3, 9, 1 / 12, 2, True)
        columns = weights(box[1], box[3], 2, 12, 1 / 12, 2, True)
        want += np.einsum("iy,jx,ijc->yxc", rows, columns, own)
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert not np.any(of_boxes)
    # By finite differences, at some pixels.
    for y, x, c in random.randint(0, (9, 12, 5), (8, 3)):
        step = np.zeros(features.shape)
        step[y, x, c] = 0.5
        values = [dense(features + s, boxes, (3, 2), 1 / 12, 2, True) for s in (step, -step)]
        assert got[y, x, c] == pytest.approx(((values[0] - values[1]) * cotangent).sum(), abs=1e-4)


def test_images_of_a_batch_are_separate():
    features, boxes = zip(*(some(seed=i) for i in range(3)), strict=True)
    got = jax.jit(jax.vmap(lambda f, b: roi_align(f, b, (2, 2), chunk=4)))(
        np.stack(features), np.stack(boxes)
    )
    for i in range(3):
        want = dense(features[i], boxes[i], (2, 2), 1 / 16, 2, True)
        np.testing.assert_allclose(got[i], want, atol=1e-5)


def test_keeps_the_dtype_but_not_its_precision_of_boxes():
    features, boxes = some()
    got = pool(jnp.bfloat16(features), boxes, (2, 2))
    assert got.dtype == jnp.bfloat16
    rounded = np.asarray(jnp.bfloat16(features), np.float32)
    want = dense(rounded, boxes, (2, 2), 1 / 16, 2, True)
    np.testing.assert_allclose(np.float32(got), want, atol=0.01)
    assert roi_align(features, np.zeros((0, 4)), (2, 2)).shape == (0, 2, 2, 5)


def test_refuses_wrong_arguments():
    features, boxes = some()
    with pytest.raises(ValueError, match=r"features has shape \(1, 9, 12, 5\)"):
        roi_align(features[None], boxes)
    with pytest.raises(ValueError, match="sampling is 0"):
        roi_align(features, boxes, sampling=0)
