"""Batches of one canvas each: every example once, in an order that is arithmetic."""

import doctest

import jax
import numpy as np
import pytest

from cutmix_jax import UserError
from cutmix_jax.data import Shards, buckets, objects, shapes
from cutmix_jax.data.buckets import Canvas

from .conftest import voc_config

CONFIG = {
    "dataset": "shapes",
    "image_size": 24,
    "train_examples": 60,
    "held_out": 9,
    "batch_size": 8,
    "seed": 3,
}
CANVASES = (Canvas(16, 24), Canvas(24, 16))
LAYOUTS = [(1, 1), (8, 1), (1, 2), (4, 2)]


@pytest.fixture(scope="module")
def portrait():
    """{split: which examples are portraits}: 35 and 25 of 60 for training."""
    random = np.random.RandomState(0)
    kinds = {"test": random.randint(0, 2, 21), "held_out": np.ones(9, int)}
    return kinds | {"train": random.permutation(np.repeat([0, 1], [35, 25]))}


@pytest.fixture
def open_buckets(monkeypatch, portrait):
    monkeypatch.setattr(shapes, "TEST_EXAMPLES", 21)

    def open_buckets(shards=objects.ONE_DEVICE, kinds=portrait, **changes):
        data = objects.open_objects(CONFIG | changes, shards)
        return buckets.in_buckets(data, (CONFIG | changes)["seed"], CANVASES, kinds)

    return open_buckets


def read(steps):
    """(index [steps, b], canvas of each step)."""
    steps = list(steps)
    return np.array([xs["index"].ravel() for xs in steps]), [xs["canvas"] for xs in steps]


def test_an_epoch_has_each_image_once_up_to_the_remainder_of_its_bucket(open_buckets, portrait):
    data = open_buckets()
    orders = [read(data.train_batches(epoch)) for epoch in (0, 0, 1)]
    for index, canvases in orders:
        assert len(index) == data.steps_per_epoch == 35 // 8 + 25 // 8
        assert len(np.unique(index)) == index.size
        kinds = portrait["train"][index]
        assert (kinds == kinds[:, :1]).all()
        assert canvases == [CANVASES[kind] for kind in kinds[:, 0]]
    assert orders[0][1] != orders[2][1], "canvases take turns at random"
    (one, _), (same, _), (other, _) = orders
    np.testing.assert_array_equal(one, same)
    assert set(one.ravel()) != set(other.ravel()), "not always the same remainder"
    another_seed, _ = read(open_buckets(seed=4).train_batches(0))
    assert not np.array_equal(one, another_seed)


@pytest.mark.parametrize(("local_devices", "process_count"), LAYOUTS)
def test_all_devices_and_processes_take_the_same_bucket(open_buckets, local_devices, process_count):
    parts = [
        open_buckets(Shards(local_devices, process, process_count))
        for process in range(process_count)
    ]
    for take in (lambda data: data.train_batches(2), lambda data: data.eval_batches("test")):
        index, canvases = read(take(open_buckets()))
        found = [read(take(part)) for part in parts]
        np.testing.assert_array_equal(np.concatenate([own for own, _ in found], 1), index)
        assert all(own == canvases for _, own in found)


def test_an_epoch_is_entered_in_the_middle(open_buckets):
    data = open_buckets(Shards(2, 1, 2))
    index, canvases = read(data.train_batches(1))
    for start in range(data.steps_per_epoch):
        part, own = read(data.train_batches(1, start))
        np.testing.assert_array_equal(part, index[start:])
        assert own == canvases[start:]


def test_images_of_one_bucket_keep_their_order(open_buckets, portrait):
    kinds = {split: np.zeros_like(own) for split, own in portrait.items()}
    plain = objects.open_objects(CONFIG)
    data = open_buckets(kinds=kinds)
    for ours, theirs in (
        (data.train_batches(5, 2), plain.train_batches(5, 2)),
        (data.eval_batches("test"), plain.eval_batches("test")),
    ):
        for xs, want in zip(ours, theirs, strict=True):
            assert xs.pop("canvas") == CANVASES[0]
            jax.tree.map(np.testing.assert_array_equal, xs, want)


@pytest.mark.parametrize("order", [None, [7, 2, 20, 2]])
@pytest.mark.parametrize("split", ["test", "held_out"])
def test_evaluation_has_each_image_once_with_its_canvas(open_buckets, portrait, split, order):
    order = order and np.array(order) % len(portrait[split])
    seen = []
    for xs in open_buckets().eval_batches(split, order):
        own = xs["index"][xs["mask"]]
        assert {xs["canvas"]} == {CANVASES[kind] for kind in portrait[split][own]}
        seen += own.tolist()
    assert sorted(seen) == sorted(range(len(portrait[split])) if order is None else order)


@pytest.mark.parametrize("kind", [0, 1])
def test_a_streamed_split_may_have_one_kind_only(tree, kind):
    data = objects.open_objects(voc_config(tree, source="streaming"))
    kinds = {split: np.full(count, kind) for split, count in data.examples.items()}
    data = buckets.in_buckets(data, 0, CANVASES, kinds)
    for batches in (data.eval_batches("test"), data.train_batches(0)):
        (xs,) = batches
        assert xs["canvas"] == CANVASES[kind]
        assert len(np.unique(xs["index"])) == 2


def test_the_steps_of_both_canvases_can_be_compiled_ahead(open_buckets, portrait):
    data = open_buckets()
    assert [shapes["canvas"] for shapes in data.train_shapes] == list(CANVASES)
    xs = jax.tree.map(lambda x: x[0], next(data.train_batches(0)))
    kinds = [jax.tree.structure(shapes) for shapes in data.train_shapes]
    assert kinds[0] != kinds[1]
    assert jax.tree.structure(xs) in kinds
    few = portrait | {"train": np.repeat([0, 1], [53, 7])}
    assert [shapes["canvas"] for shapes in open_buckets(kinds=few).train_shapes] == [CANVASES[0]]


def test_buckets_that_do_not_fill_a_batch_are_refused(open_buckets, portrait):
    kinds = portrait | {"train": np.repeat([0, 1], [7, 6])}
    with pytest.raises(UserError, match="batch_size is 8, but neither 7 nor 6 training images"):
        open_buckets(kinds=kinds, train_examples=13)


def test_the_examples_are_right():
    result = doctest.testmod(buckets)
    assert (result.attempted, result.failed) == (3, 0)
