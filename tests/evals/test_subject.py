"""Every example counts once, in order, on any number of devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutmix_jax import UserError, evals
from cutmix_jax.evals.subject import own


@pytest.fixture(params=[("pmap", 1), ("pmap", 8), ("shard_map", 8)], ids=str)
def spread(request, make_subject):
    """On 1 and 8 devices, in batches of 64. The last of the 297 images fill a part of one."""
    return make_subject(*request.param)


def test_every_example_counts_once_and_in_order(spread):
    found = spread.map_examples(lambda weights, batch: batch)
    arrays = spread.task.data.arrays["test"]
    np.testing.assert_array_equal(found["index"], np.arange(297))
    np.testing.assert_array_equal(found["label"], arrays["label"])
    np.testing.assert_allclose(found["image"], arrays["image"] / 255, rtol=2e-7)


def test_settings_orders_and_whole_results(spread):
    order = np.array([5, 5, 0, 296, 7])
    twice = spread.map_examples(
        lambda weights, batch, factor: batch["index"] * factor, [1, 10], order
    )
    np.testing.assert_array_equal(twice, [order, 10 * order])
    # One compiled function computes for the whole batch, and each device uses its part in the next.
    first = spread.compile(lambda weights, batch: batch["index"] + 1)
    second = spread.compile(lambda weights, batch, made: own(made, batch["index"]) - batch["index"])
    found = spread.collect(lambda xs: second(xs, first(xs)), spread.batches(), 297)
    np.testing.assert_array_equal(found, np.ones(297))


def test_out_of_distribution_images_and_pairs(spread):
    images = np.arange(70 * 4, dtype=np.uint8).reshape(70, 2, 2, 1)
    call = spread.compile(lambda weights, batch: batch["image"].sum((1, 2, 3)), lambda _, xs: xs)
    found = spread.collect(call, spread.foreign_batches(70, lambda index: images[index]), 70)
    np.testing.assert_allclose(found, images.sum((1, 2, 3)) / 255, rtol=1e-6)

    pairs = np.array([[3, 4], [296, 0], [8, 8]])

    def load(arrays, xs):
        a, b = (spread.load(arrays, part) for part in xs)
        return {"index": a["index"], "other": b["index"]}

    call = spread.compile(lambda weights, batch: jnp.stack([*batch.values()], 1), load)
    found = spread.collect(call, spread.pair_batches(pairs), 3)
    np.testing.assert_array_equal(found, pairs)


def test_the_network_sees_normalized_images(subject, pixels, predict):
    found = subject.map_examples(lambda weights, batch: subject.logits(weights, batch["image"]))
    np.testing.assert_allclose(found, predict(pixels[0]), rtol=1e-4, atol=1e-4)
    assert len(set(found.argmax(1))) > 5  # the other tests compare predictions


def test_a_network_without_numbers_is_never_right(subject):
    """It does not predict the first class either, whose logit is the first NaN."""
    weights = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), subject.weights)
    broken = dataclasses.replace(subject, weights=weights)
    options = subject.task.config.evals.copy_and_resolve_references()
    options.fgsm.update({"eps": (8.0,), "pgd_steps": 1})
    options.occlusion.steps = options.between.steps = options.between.lam_steps = 1
    for name in ("fgsm", "occlusion", "between", "classification"):
        report = evals.EVALS[name].run(broken, options[name])
        keys = [key for key in report.rows[0] if key.endswith("error")]
        assert keys
        assert {row[key] for row in report.rows for key in keys} == {1.0}, name
    taken = report.tables["classification_confusion.csv"]
    assert not any(row[str(k)] for row in taken for k in range(10))
    assert sum(row["examples"] for row in report.rows) == 297


def test_a_split_that_is_not_there_is_refused(subject):
    with pytest.raises(UserError, match=r"evals\.split is 'held_out'.*'test'.*held_out=N"):
        evals.create_subject(subject.task, subject.weights, "held_out")
