"""The losses of a classifier."""

import dataclasses
import doctest
import types

import jax
import numpy as np
import optax
import pytest
from jax import numpy as jnp

from cutmix_jax import UserError, mix, tasks
from cutmix_jax.parallel import create_mapping
from cutmix_jax.tasks import classification
from cutmix_jax.tasks.classification import binary_cross_entropy
from tests.commands import plain_config


def mixed_targets(classes=5):
    """Rows of two classes each, one of them twice the same."""
    labels = jax.nn.one_hot(jnp.array([0, 1, 2, 4]), classes)
    plan = mix.sample_mixup(jax.random.key(3), 4, (8, 8), alpha=1.0, scope="image")
    return mix.mix_labels(plan, labels)


@pytest.mark.parametrize("threshold", [None, 0.2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bce_is_that_of_timm(threshold, smoothing):
    """timm mixes smoothed targets, applies the threshold, and takes PyTorch's mean of all."""
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    targets = mixed_targets()
    theirs = torch.tensor(np.asarray(targets)) * (1 - smoothing) + smoothing / 5
    if threshold is not None:
        theirs = theirs.gt(threshold).to(theirs.dtype)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(torch.tensor(logits), theirs)
    losses = binary_cross_entropy(jnp.asarray(logits), targets, smoothing, threshold)
    assert losses.shape == (4,)
    np.testing.assert_allclose(losses.mean(), expected, rtol=1e-6)


def test_an_image_without_a_label_costs_nothing():
    """A class id out of range is a row of zeros."""
    targets = jax.nn.one_hot(jnp.array([1, 7]), 5)
    logits = jnp.ones((2, 5))
    assert optax.softmax_cross_entropy(logits, targets)[1] == 0
    for threshold in (None, 0.2):
        losses, gradient = jax.value_and_grad(
            lambda z, t=threshold: binary_cross_entropy(z, targets, 0.1, t).sum()
        )(logits)
        assert losses > 0
        assert gradient[0].any()
        assert not gradient[1].any()


def test_the_config_chooses_the_loss():
    """The counted loss is the minimized one, and the weighted accuracy is that of any loss."""
    found, logits, targets = [], jnp.asarray([[2.0, 1, 0, 0, 0]] * 4), mixed_targets()
    model = types.SimpleNamespace(apply=lambda *args, **kwargs: (logits, {}))
    for changes in ({}, {"loss": "bce"}, {"loss": "bce", "bce_threshold": 0.2}):
        task = dataclasses.replace(tasks.create_task(plain_config(**changes)), model=model)
        batch = {"image": None, "target": targets, "plans": []}
        weights = {"params": {}, "batch_stats": {}}
        loss, (_, counters) = task.loss(weights, batch, 0, jax.random.key(0))
        np.testing.assert_allclose(loss, counters["loss"].compute(), rtol=1e-6)
        found.append((float(loss), float(counters["weighted_accuracy"].compute())))
    losses, accuracies = zip(*found, strict=True)
    assert len(set(losses)) == 3
    assert len(set(accuracies)) == 1
    np.testing.assert_allclose(losses[1], binary_cross_entropy(logits, targets).mean(), rtol=1e-6)


def test_a_mix_that_follows_the_images_gets_them():
    def batch(name):
        config = plain_config(**{"mix.name": name, "mix.prob": None})
        task = tasks.create_task(config, create_mapping("pmap", 1))
        mapped = task.mapping.map(lambda step, arrays, xs: task.make_batch(arrays, xs, step))
        xs = task.mapping.shard(next(iter(task.data.train_batches(0))))
        arrays = task.mapping.replicate(task.data.arrays["train"])
        return jax.device_get(mapped(task.mapping.replicate(jnp.int32(3)), arrays, xs))

    images, mixed = batch("none")["image"], batch("saliencymix")
    (plan,) = mixed["plans"]
    np.testing.assert_array_equal(mixed["image"], mix.apply(plan, images))
    maps = np.asarray(mix.saliency(images))
    for box, partner in zip(plan.box, plan.partner, strict=True):
        peak = np.unravel_index(maps[partner].argmax(), maps.shape[1:])
        inside = (box[0] <= peak).all() and (peak < box[1]).all()
        assert inside or (box[0] == box[1]).any()


def test_another_task_has_no_such_loss():
    config = plain_config(task="ssd", dataset="shapes", image_size=64, loss="bce")
    with pytest.raises(UserError, match=r"loss is 'bce', but the task 'ssd' does not use it"):
        tasks.create_task(config)


def test_the_example_is_right():
    result = doctest.testmod(classification)
    assert result.attempted
    assert not result.failed
