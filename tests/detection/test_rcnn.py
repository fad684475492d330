"""Faster R-CNN's losses, proposals and detections against torchvision's stored results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutmix_jax.detection import boxes as boxes_module
from cutmix_jax.detection import rcnn
from tests.detection import references

rpn_loss = jax.jit(jax.value_and_grad(lambda *x: (sum(y := rcnn.rpn_loss(*x)), y), (0, 1), True))
head_loss = jax.jit(rcnn.head_loss)
propose = jax.jit(rcnn.rpn_proposals, static_argnames=("candidates", "max_outputs"))
detect = jax.jit(rcnn.rcnn_detections, static_argnames=("max_outputs",))
SHAPE = np.array([70, 80])


@pytest.fixture(scope="module")
def stored():
    return references.read()["rcnn"]


def swapped(deltas):
    """(center y, center x, height, width) from torchvision's order, or back."""
    return np.float32(deltas)[..., [1, 0, 3, 2]]


def losses(stored):
    kept = stored["losses"]
    arrays = {key: np.float32(kept[key]) for key in ("logits", "head_logits")}
    arrays |= {key: swapped(kept[key]) for key in ("deltas", "offsets", "head_deltas")}
    return arrays | {key: np.array(kept[key]) for key in ("kinds", "classes")}


def test_rpn_loss_equals_torchvision(stored):
    x = losses(stored)
    (_, found), gradients = rpn_loss(x["logits"], x["deltas"], x["kinds"], x["offsets"])
    want = stored["losses"]["rpn"]
    np.testing.assert_allclose(found, [want["localization"], want["classification"]], rtol=1e-5)
    kept = stored["losses"]["gradients"]
    np.testing.assert_allclose(gradients[0], kept["logits"], atol=1e-6)
    np.testing.assert_allclose(swapped(gradients[1]), kept["deltas"], atol=1e-6)


def test_head_loss_equals_torchvision(stored):
    x = losses(stored)
    arguments = x["head_logits"], x["head_deltas"], x["classes"], x["offsets"]
    want = stored["losses"]["head"]
    found = head_loss(*arguments, 3)  # torchvision has the sigma of the RPN
    np.testing.assert_allclose(found, [want["localization"], want["classification"]], rtol=1e-5)
    # Unused regions change nothing.
    more = [np.concatenate([a, a[:, :5] * 2], 1) for a in arguments]
    more[2][:, 15:] = -1
    np.testing.assert_allclose(head_loss(*more, 3), found, rtol=1e-6)


def test_losses_of_parts_have_the_mean_of_the_whole(stored):
    """With the count of the whole, divided by the number of parts."""
    x = losses(stored)
    offsets, count = x["offsets"], {"count": (x["kinds"] >= 0).sum() / 2}
    rpn = x["logits"], x["deltas"], x["kinds"], offsets
    parts = [rcnn.rpn_loss(*(a[i : i + 1] for a in rpn), **count) for i in range(2)]
    np.testing.assert_allclose(np.mean(parts, 0), rcnn.rpn_loss(*rpn), rtol=1e-5)
    head = x["head_logits"], x["head_deltas"], x["classes"], offsets
    count = {"count": (x["classes"] >= 0).sum() / 2}
    parts = [rcnn.head_loss(*(a[i : i + 1] for a in head), **count) for i in range(2)]
    np.testing.assert_allclose(np.mean(parts, 0), rcnn.head_loss(*head), rtol=1e-5)


def test_head_loss_has_sigma_1():
    x = losses(stored=references.read()["rcnn"])
    found, _ = head_loss(x["head_logits"], x["head_deltas"], x["classes"], x["offsets"])
    total = 0
    for deltas, label, offset in zip(
        x["head_deltas"].reshape(30, 3, 4),
        x["classes"].ravel(),
        x["offsets"].reshape(30, 4),
        strict=True,
    ):
        for error in np.abs(deltas[label] - offset) * (label > 0):
            total += error**2 / 2 if error < 1 else error - 0.5
    assert found == pytest.approx(total / 30, rel=1e-5)


def test_proposals_equal_torchvision(stored):
    kept = stored["proposals"]
    anchors = boxes_module.swap_xy(stored["regions"])
    arguments = np.float32(kept["scores"]), swapped(kept["deltas"]), anchors, SHAPE
    boxes, valid = propose(*arguments, candidates=50, max_outputs=20)
    np.testing.assert_allclose(boxes_module.swap_xy(boxes), kept["boxes"], atol=1e-4)
    assert np.all(valid)


def test_detections_equal_torchvision(stored):
    kept = stored["detections"]
    rois = boxes_module.swap_xy(stored["regions"])
    arguments = np.float32(kept["logits"]), swapped(kept["deltas"]), rois
    boxes, scores, labels = detect(*arguments, np.ones(60, bool), SHAPE, max_outputs=15,
                                   min_score=0.05)  # fmt: skip
    np.testing.assert_allclose(boxes_module.swap_xy(boxes), kept["boxes"], atol=1e-4)
    np.testing.assert_allclose(scores, kept["scores"], rtol=1e-5)
    np.testing.assert_array_equal(labels, np.array(kept["labels"]) - 1)
    # Padding is never found, and fills the rest.
    boxes, scores, labels = detect(*arguments, np.arange(60) < 2, SHAPE, max_outputs=15,
                                   min_score=0.05)  # fmt: skip
    found = np.asarray(labels) >= 0
    assert 1 <= found.sum() <= 4
    assert not np.any(np.asarray(boxes)[~found])
    assert not np.any(np.asarray(scores)[~found])


def test_untrained_networks_and_empty_boxes_give_no_nan():
    anchors = np.float32([[-50, -50, -10, -10], [0, 0, 16, 16], [10, 10, 40, 40]])
    deltas = np.full((3, 4), [0, 0, 1e4, 1e4], np.float32)
    boxes, valid = propose(np.ones(3, np.float32), deltas * 0, anchors, SHAPE, max_outputs=5)
    assert np.asarray(valid).tolist() == [True, True, False, False, False]  # one is outside
    boxes, valid = propose(np.ones(3, np.float32), deltas, anchors, SHAPE, max_outputs=5)
    assert np.isfinite(boxes).all()
    assert np.any(valid)
    logits, each = np.float32([[1e4, -1e4]] * 3), np.repeat(deltas[:, None], 2, 1)
    found = detect(logits, each, anchors * 0, np.zeros(3, bool), SHAPE, max_outputs=5)
    assert all(np.isfinite(x).all() for x in found)
    assert (np.asarray(found[2]) == -1).all()


@pytest.mark.parametrize("kind", [-1, 0])
def test_no_samples_or_positives_give_zero_gradients(kind, stored):
    x = losses(stored)
    with jax.debug_nans(True):
        (_, found), gradients = rpn_loss(x["logits"], x["deltas"], 0 * x["kinds"] + kind,
                                         0 * x["offsets"])  # fmt: skip
    assert found[0] == 0
    assert not np.any(gradients[1])
    assert np.any(gradients[0]) == (kind == 0)


def test_proposals_have_no_gradient(stored):
    anchors = boxes_module.swap_xy(stored["regions"])[:8]

    def total(scores, deltas):
        return rcnn.rpn_proposals(scores, deltas, anchors, SHAPE, max_outputs=5)[0].sum()

    gradients = jax.jit(jax.grad(total, (0, 1)))(jnp.arange(8.0), jnp.zeros((8, 4)))
    assert not any(np.any(g) for g in gradients)


def test_refuses_wrong_shapes():
    zeros = np.zeros((2, 3, 4))
    with pytest.raises(ValueError, match=r"logits has shape \(2, 3, 3\)"):
        rcnn.rpn_loss(zeros[..., :3], zeros, zeros[..., 0], zeros)
    with pytest.raises(ValueError, match=r"deltas \(2, 3, 4\)"):
        rcnn.head_loss(zeros, zeros, zeros[..., 0], zeros)
    with pytest.raises(ValueError, match="scores has shape"):
        rcnn.rpn_proposals(zeros[0], zeros[0], zeros[0], (9, 9))
    with pytest.raises(ValueError, match=r"rois \(3, 4\)"):
        rcnn.rcnn_detections(zeros[0], zeros, zeros[0], zeros[0, :, 0], (9, 9))
