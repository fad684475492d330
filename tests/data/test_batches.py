"""Order, subsets and shards are arithmetic, equal on any number of devices and processes."""

import numpy as np
import pytest

from cutmix_jax import UserError
from cutmix_jax.data import Shards, open_data
from cutmix_jax.data.batches import (
    choose_examples,
    eval_positions,
    permutation,
    train_copies,
    train_positions,
)

LAYOUTS = [(1, 1), (8, 1), (1, 2), (4, 2)]


def in_global_order(take, local_devices, process_count):
    """What all processes and devices take per step, in the order of the global batch."""
    parts = [take(Shards(local_devices, index, process_count)) for index in range(process_count)]
    assert len({len(part) for part in parts}) == 1, "every process has the same number of steps"
    return np.stack(parts, axis=1).reshape(len(parts[0]), -1)


@pytest.mark.parametrize(("local_devices", "process_count"), LAYOUTS)
def test_epoch_holds_each_example_at_most_once_and_drops_the_remainder(
    local_devices, process_count
):
    batches = in_global_order(
        lambda shards: train_positions(3, 5, 83, 16, shards), local_devices, process_count
    )
    assert batches.shape == (5, 16)
    assert len(np.unique(batches)) == 80
    np.testing.assert_array_equal(batches, train_positions(3, 5, 83, 16, Shards()).reshape(5, 16))


@pytest.mark.parametrize(("local_devices", "process_count"), LAYOUTS)
@pytest.mark.parametrize("n", [1, 16, 83])
def test_evaluation_counts_each_example_exactly_once(n, local_devices, process_count):
    positions = in_global_order(
        lambda shards: eval_positions(n, 16, shards)[0], local_devices, process_count
    )
    mask = in_global_order(
        lambda shards: eval_positions(n, 16, shards)[1], local_devices, process_count
    )
    np.testing.assert_array_equal(np.sort(positions[mask]), np.arange(n))
    assert positions.min() >= 0
    assert positions.max() < n


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return train_positions(seed, epoch, 64, 16, Shards()).ravel()

    np.testing.assert_array_equal(order(1, 2), order(1, 2))
    for other in (order(2, 2), order(1, 3), order(2, 1)):
        assert not np.array_equal(order(1, 2), other)


def test_order_is_the_same_in_all_versions_of_numpy():
    np.testing.assert_array_equal(permutation(0, 0, 8), [6, 3, 5, 0, 7, 2, 1, 4])


def test_epoch_is_entered_in_the_middle():
    whole = train_positions(0, 1, 83, 16, Shards(2, 1, 2))
    for start in range(6):
        part = train_positions(0, 1, 83, 16, Shards(2, 1, 2), start)
        np.testing.assert_array_equal(part, whole[start:])


@pytest.mark.parametrize(("local_devices", "process_count"), LAYOUTS)
def test_repeated_augmentation_has_fewer_images_each_several_times_in_a_batch(
    local_devices, process_count
):
    """83 examples: 5 steps of 16, as without repetitions, of 4 images 4 times each."""
    batches, copies = (
        in_global_order(take, local_devices, process_count)
        for take in (
            lambda shards: train_positions(3, 5, 83, 16, shards, repeats=4),
            lambda shards: train_copies(83, 16, shards, repeats=4),
        )
    )
    images = permutation(3, 5, 83)[:20]
    for step, (batch, copy) in enumerate(zip(batches, copies, strict=True)):
        pairs = {(i, k) for i in images[4 * step : 4 * step + 4] for k in range(4)}
        assert set(zip(batch.tolist(), copy.tolist(), strict=True)) == pairs


def test_no_device_has_an_image_twice_if_there_are_enough_devices():
    for device in train_positions(0, 0, 64, 16, Shards(4), repeats=4).reshape(-1, 4):
        assert len(set(device.tolist())) == 4


def test_an_epoch_of_repetitions_is_entered_in_the_middle():
    shards = Shards(2, 1, 2)
    whole = train_positions(0, 1, 83, 16, shards, repeats=3)
    copies = train_copies(83, 16, shards, repeats=3)
    for start in range(6):
        part = train_positions(0, 1, 83, 16, shards, start, repeats=3)
        np.testing.assert_array_equal(part, whole[start:])
        part = train_copies(83, 16, shards, start, repeats=3)
        np.testing.assert_array_equal(part, copies[start:])


def test_one_repetition_is_none():
    xs = next(open_data({"batch_size": 8}).train_batches(0))
    assert sorted(xs) == ["index", "seed"]
    assert not train_copies(83, 16, Shards()).any()


def test_held_out_examples_do_not_depend_on_the_subset():
    train, held = choose_examples(100, held_out=20)
    fewer, same_held = choose_examples(100, held_out=20, train_examples=30)
    np.testing.assert_array_equal(held, same_held)
    np.testing.assert_array_equal(np.sort([*train, *held]), np.arange(100))
    assert len(fewer) == 30
    assert set(fewer) < set(train)
    assert set(choose_examples(100, 20, 10)[0]) < set(fewer), "smaller subsets lie in larger ones"


def test_subset_does_not_depend_on_the_seed():
    first, second = (
        open_data({"batch_size": 10, "seed": seed, "train_examples": 100, "held_out": 50})
        for seed in (0, 1)
    )
    assert first.examples == {"train": 100, "held_out": 50, "test": 297}
    for split in first.arrays:
        np.testing.assert_array_equal(first.arrays[split]["image"], second.arrays[split]["image"])
    orders = [next(data.train_batches(0))["index"] for data in (first, second)]
    assert not np.array_equal(*orders)


def test_held_out_split_can_stand_for_a_missing_test_split():
    data = open_data({"batch_size": 10, "held_out": 200, "test_split": "held_out"})
    assert data.examples == {"train": 1300, "test": 200}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"held_out": 1500}, "held_out=1500 leaves none"),
        ({"held_out": 500, "train_examples": 1001}, "only 1000 training examples are left"),
        ({"train_examples": 9}, "fewer than one batch of 10"),
        ({"test_split": "held_out"}, "--config.held_out=N"),
    ],
)
def test_subsets_that_do_not_exist(config, message):
    with pytest.raises(UserError, match=message):
        open_data({"batch_size": 10, **config})
