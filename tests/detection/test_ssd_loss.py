"""SSD's loss against torchvision's stored results, ranks in NumPy, and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutmix_jax.detection import boxes as boxes_module
from cutmix_jax.detection.matching import ssd_targets
from cutmix_jax.detection.ssd_loss import hard_negatives, ssd_loss
from tests.detection import references

losses_of = jax.jit(ssd_loss)


def some(seed=0, images=3, priors=50, classes=4):
    random = np.random.RandomState(seed)
    labels = random.randint(1, classes, (images, priors))
    labels *= random.uniform(size=labels.shape) < np.array([0.1, 0.4, 0, 0.2])[:images, None]
    logits = random.normal(size=(images, priors, classes)).astype(np.float32)
    deltas, offsets = random.normal(size=(2, images, priors, 4)).astype(np.float32)
    return logits, deltas, labels, offsets


def plain_mask(losses, positive, ratio):
    """By rank in a stable sort, image by image."""
    mask = np.zeros(positive.shape, bool)
    for i in range(len(losses)):
        order = sorted(np.flatnonzero(~positive[i]), key=lambda p: -losses[i, p])
        mask[i, order[: ratio * positive[i].sum()]] = True
    return mask


@pytest.mark.parametrize("levels", [2, 5, 10000])
def test_hard_negatives_are_the_first_by_rank(levels):
    random = np.random.RandomState(levels)
    losses = random.randint(0, levels, (8, 60)) / np.float32(levels)
    positive = random.uniform(size=(8, 60)) < np.linspace(0, 1, 8)[:, None]
    for ratio in (1, 3):
        got = np.asarray(hard_negatives(losses, positive, ratio))
        np.testing.assert_array_equal(got, plain_mask(losses, positive, ratio))


def test_equal_to_torchvision():
    stored = references.read()["ssd_loss"]
    inputs = stored["inputs"]
    swapped = {k: boxes_module.swap_xy(inputs[k]) for k in ("priors", "boxes", "deltas")}
    classes, offsets = jax.vmap(lambda b, k: ssd_targets(swapped["priors"], b, k))(
        swapped["boxes"], jnp.array(inputs["labels"]) - 1
    )

    def total(logits, deltas):
        found = ssd_loss(logits, deltas, classes, offsets)
        return sum(found), found

    grad = jax.jit(jax.grad(total, (0, 1), has_aux=True))
    (of_logits, of_deltas), found = grad(jnp.float32(inputs["logits"]), swapped["deltas"])
    np.testing.assert_allclose(found, [stored["localization"], stored["classification"]], rtol=1e-5)
    np.testing.assert_allclose(of_logits, stored["gradient_of_logits"], atol=1e-6)
    got = boxes_module.swap_xy(of_deltas)
    np.testing.assert_allclose(got, stored["gradient_of_deltas"], atol=1e-6)


def test_equal_to_plain_numpy():
    logits, deltas, labels, offsets = some()
    exponents = np.exp(logits.astype(float))
    probability = exponents / exponents.sum(-1, keepdims=True)
    entropy = -np.log(np.take_along_axis(probability, labels[..., None], -1))[..., 0]
    positive = labels > 0
    chosen = positive | plain_mask(entropy, positive, 3)
    count = positive.sum()
    smooth = np.vectorize(lambda x: x * x / 2 if abs(x) < 1 else abs(x) - 0.5)(deltas - offsets)
    want = smooth[positive].sum() / count, entropy[chosen].sum() / count
    np.testing.assert_allclose(losses_of(logits, deltas, labels, offsets), want, rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda z: ssd_loss(z, deltas, labels, offsets)[1]))(logits)
    closed = (probability - np.eye(4)[labels]) * chosen[..., None] / count
    np.testing.assert_allclose(gradient, closed, atol=1e-6)


def test_equal_logits_choose_three_negatives_per_positive():
    """As at the start of training, when all losses are equal."""
    _, deltas, labels, offsets = some(images=2)
    _, classification = losses_of(np.zeros((2, 50, 4)), deltas, labels, offsets)
    positives = (labels > 0).sum(1)
    chosen = positives + np.minimum(3 * positives, 50 - positives)
    assert classification == pytest.approx(np.log(4) * chosen.sum() / positives.sum(), rel=1e-5)


def test_the_mean_over_parts_with_the_count_of_the_whole_is_the_loss_of_the_whole():
    given = some(images=4)
    labels = given[2]
    count = (labels > 0).sum() / 2
    halves = [ssd_loss(*(x[i : i + 2] for x in given), count=count) for i in (0, 2)]
    np.testing.assert_allclose(np.mean(halves, 0), losses_of(*given), rtol=1e-5)


def test_images_without_objects_give_zero_and_no_nan():
    logits, deltas, labels, offsets = some()
    with jax.debug_nans(True):
        values, gradients = jax.jit(
            jax.value_and_grad(lambda z, d: sum(ssd_loss(z, d, 0 * labels, 0 * offsets)), (0, 1))
        )(logits, deltas)
    assert values == 0
    assert not np.any(gradients[0])
    assert not np.any(gradients[1])


def test_refuses_wrong_shapes():
    logits, deltas, labels, offsets = some()
    with pytest.raises(ValueError, match="logits has shape"):
        ssd_loss(logits[:, 1:], deltas, labels, offsets)
    with pytest.raises(ValueError, match="losses has shape"):
        hard_negatives(np.zeros(3), np.zeros(4))
