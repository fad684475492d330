"""Augmentation against NumPy, pixel by pixel, from the same random numbers."""

import doctest
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutmix_jax import data as data_module
from cutmix_jax import mix
from cutmix_jax.config import from_plain
from cutmix_jax.data import Shards, augment, open_data, policies, resident


@pytest.fixture(scope="module")
def images():
    return np.random.RandomState(0).randint(0, 256, (64, 9, 7, 3), np.uint8)


@pytest.mark.parametrize("mode", ["zero", "reflect"])
@pytest.mark.parametrize(
    ("pad", "flip", "size"),
    [(4, True, None), (2, False, None), (0, True, None), (0, True, (8, 4)), (2, True, (6, 7))],
)
def test_crop_and_flip_equals_numpy(images, pad, flip, size, mode):
    keys = augment.example_keys(0, 3, jnp.arange(64))
    got = jax.jit(augment.crop_and_flip, static_argnames=("pad", "flip", "pad_mode", "size"))(
        keys, images, pad=pad, flip=flip, pad_mode=mode, size=size
    )
    height, width = size or (9, 7)
    larger = (9 - height, 7 - width)
    top, left, mirror = map(np.asarray, augment.crop_and_flip_draws(keys, pad, larger))
    widths = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    padded = np.pad(images, widths, {"zero": "constant"}.get(mode, mode))
    for i in range(64):
        want = padded[i, top[i] : top[i] + height, left[i] : left[i] + width]
        if flip and mirror[i]:
            want = want[:, ::-1]
        np.testing.assert_array_equal(got[i], want)
    assert got.dtype == np.uint8


def test_samples_are_uniform():
    keys = augment.example_keys(1, 0, jnp.arange(9000))
    top, left, mirror = map(np.asarray, augment.crop_and_flip_draws(keys, 4))
    for offset in (top, left):
        # 1,000 expected in each of 9; five standard deviations are 149.
        assert np.abs(np.bincount(offset, minlength=9) - 1000).max() < 149
    assert abs(mirror.mean() - 0.5) < 0.027
    assert abs(np.corrcoef(top, left)[0, 1]) < 0.05
    assert abs(np.corrcoef(top, mirror)[0, 1]) < 0.05


def test_crops_of_larger_images_are_uniform():
    keys = augment.example_keys(1, 0, jnp.arange(8000))
    top, left, _ = map(np.asarray, augment.crop_and_flip_draws(keys, 0, (3, 7)))
    for offset, count in ((top, 4), (left, 8)):
        assert offset.min() == 0
        assert np.abs(np.bincount(offset, minlength=count) / 8000 - 1 / count).max() < 0.025
        assert offset.max() == count - 1


def test_samples_depend_on_seed_epoch_and_index():
    def draws(seed, epoch):
        keys = augment.example_keys(seed, epoch, jnp.arange(50))
        return np.stack(augment.crop_and_flip_draws(keys, 4))

    np.testing.assert_array_equal(draws(0, 1), draws(0, 1))
    assert not np.array_equal(draws(0, 1), draws(0, 2))
    assert not np.array_equal(draws(0, 1), draws(1, 1))


def test_repetitions_of_an_image_are_augmented_differently():
    data = open_data({"batch_size": 12, "repeats": 4, "augment": {"pad": 5, "flip": True}})
    xs = {name: value[0] for name, value in next(data.train_batches(3)).items()}
    batch = jax.jit(data.load_train)(data.arrays["train"], xs, 3)
    assert xs.keys() == data.train_shapes[0].keys()
    for i in np.unique(xs["index"]):
        own = xs["index"] == i
        assert len(np.unique(batch["label"][own])) == 1
        assert len(np.unique(np.asarray(batch["image"])[own], axis=0)) == 4
    again = jax.jit(data.load_train)(data.arrays["train"], xs, 3)
    np.testing.assert_array_equal(batch["image"], again["image"])


def test_an_image_is_augmented_alike_on_any_number_of_devices():
    config = {"batch_size": 48, "augment": {"pad": 2, "flip": True}}

    def epoch(local_devices, process_count):
        """index -> augmented image, over all processes and devices."""
        seen = {}
        for process in range(process_count):
            data = open_data(config, Shards(local_devices, process, process_count))
            load = jax.jit(data.load_train)
            xs = next(data.train_batches(4))
            for device in range(local_devices):
                shard = {name: value[device] for name, value in xs.items()}
                batch = load(data.arrays["train"], shard, 4)
                seen |= dict(zip(shard["index"].tolist(), np.asarray(batch["image"]), strict=True))
        return seen

    alone = epoch(1, 1)
    for layout in ((8, 1), (2, 2)):
        shared = epoch(*layout)
        assert shared.keys() == alone.keys()
        for index, image in alone.items():
            np.testing.assert_array_equal(image, shared[index])


def numpy_jitter(image, weights, operations):
    """The three operations of the authors' code, in the given order."""
    image = image.astype(np.float64)
    for a, operation in zip(weights, operations, strict=True):
        gray = 0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]
        if operation == 0:
            image = (1 - a) * image
        elif operation == 1:
            image = (1 - a) * image + a * gray.mean()
        else:
            image = (1 - a) * image + a * gray[..., None]
    return image


def test_color_jitter_equals_numpy(images):
    floats = images.astype(np.float32) / 255
    keys = jax.random.split(jax.random.key(0), 64)
    got = jax.jit(augment.color_jitter)(keys, floats, 0.4)
    weights, operations = map(np.asarray, augment.jitter_draws(keys, 0.4))
    for i in range(64):
        want = numpy_jitter(floats[i], weights[i], operations[i])
        np.testing.assert_allclose(got[i], want, atol=2e-6)
    assert weights.min() < -0.3
    assert weights.max() > 0.3
    assert np.abs(weights).max() <= 0.4
    assert len({tuple(order) for order in operations}) == 6, "all orders occur"


def test_lighting_equals_numpy(images):
    floats = images.astype(np.float32) / 255
    keys = jax.random.split(jax.random.key(0), 64)
    got = jax.jit(augment.lighting)(keys, floats, 0.1)
    a = np.asarray(augment.lighting_draws(keys, 0.1), np.float64)
    vectors = np.array(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    )
    shift = (a * [0.2175, 0.0188, 0.0045]) @ vectors.T
    np.testing.assert_allclose(got, floats + shift[:, None, None, :], atol=2e-6)
    many = augment.lighting_draws(jax.random.split(jax.random.key(1), 4000), 0.1)
    np.testing.assert_allclose(np.std(many, axis=0), 0.1, rtol=0.06)


def test_colors_change_by_seed_epoch_and_index_too():
    keys = {"pad": 2, "flip": True, "color_jitter": 0.4, "lighting": 0.1}
    data = open_data({"dataset": "shapes", "train_examples": 64, "batch_size": 64, "augment": keys})
    load = jax.jit(data.load_train)

    def images(epoch, order):
        xs = {"seed": np.int32(0), "index": np.asarray(order, np.int32)}
        return np.asarray(load(data.arrays["train"], xs, epoch)["image"])

    first = images(1, range(64))
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first[::-1], images(1, range(63, -1, -1)))
    assert not np.allclose(first, images(2, range(64)))
    by_hand = augment.example_keys(0, 1, jnp.arange(64))
    floats = data.arrays["train"]["image"][:64] / np.float32(255)
    placed = augment.crop_and_flip(by_hand, floats, pad=2, flip=True)
    color_keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, augment.COLOR)))(
        by_hand
    )
    jittered = augment.color_jitter(color_keys[:, 0], placed, 0.4)
    lit = augment.lighting(color_keys[:, 1], jittered, 0.1)
    np.testing.assert_allclose(first, lit, atol=2e-6)


@pytest.mark.parametrize("fill", ["constant", "color", "noise"])
def test_erasing_equals_erasing_after_normalization(fill):
    mean, std = np.float32([0.5, 0.4, 0.3]), np.float32([0.2, 0.25, 0.3])
    keys = augment.example_keys(0, 0, jnp.arange(500))
    images = np.random.default_rng(0).uniform(size=(500, 12, 10, 3)).astype(np.float32)
    erase = functools.partial(augment.random_erasing, probability=0.6, fill=fill)
    got = np.asarray(jax.jit(functools.partial(erase, mean=mean, std=std))(keys, images))
    want = jax.jit(erase)(keys, (images - mean) / std)
    np.testing.assert_allclose((got - mean) / std, want, atol=1e-5)
    sample = functools.partial(mix.sample_erasing, batch_size=1, sides=(12, 10), prob=0.6)
    boxes = np.asarray(jax.jit(jax.vmap(sample))(keys).box).reshape(500, 4)
    filled = []
    for before, after, (top, left, bottom, right) in zip(images, got, boxes, strict=True):
        inside = np.zeros((12, 10), bool)
        inside[top:bottom, left:right] = True
        np.testing.assert_array_equal(before[~inside], after[~inside])
        z = (after[inside] - mean) / std
        if fill == "color":
            assert len(z) == 0 or np.ptp(z, axis=0).max() < 1e-5
            z = z[:1]
        filled.append(z)
    z = np.concatenate(filled)
    if fill == "constant":
        assert np.abs(z).max() < 1e-6
    else:
        assert np.abs(z.mean(0)).max() < 0.25
        assert np.abs(z.std(0) - 1).max() < 0.2
        assert np.abs(np.corrcoef(z.T) - np.eye(3)).max() < 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [({"fill": "mean"}, "'mean', but one of"), ({"probability": 1.5}, "from 0 to 1")],
)
def test_wrong_options_of_erasing_are_refused(options, message):
    keys, images = jax.random.split(jax.random.key(0), 2), np.zeros((2, 8, 8, 1), np.float32)
    with pytest.raises(ValueError, match=message):
        augment.random_erasing(keys, images, **{"probability": 1.0} | options)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("trivial_augment", {"interpolation": "nearest"}),
        ("rand_augment", {"operations": 1, "magnitude": 15}),
        ("rand_augment_timm", {"magnitude": 9.0, "magnitude_std": 1.0, "operation_prob": 0.8}),
    ],
)
def test_operations_come_after_crop_and_flip_and_erasing_last(images, name, more):
    section = {"pad": 2, "flip": True, "policy": name, "erasing": 0.5, "erasing_fill": "noise"}
    mean, std = (0.3, 0.4, 0.5), (0.2, 0.2, 0.3)
    changes = {"augment": section | more, "normalize": {"mean": mean, "std": std}}
    load = augment.create_load_train(resident.gather, from_plain(changes))
    xs = {"seed": np.int32(0), "index": np.arange(64, dtype=np.int32)}
    got = jax.jit(load)({"image": images}, xs, 1)["image"]
    keys = augment.example_keys(0, 1, jnp.arange(64))
    placed = augment.crop_and_flip(keys, images, pad=2, flip=True)
    if "operation_prob" in more:
        more = {key: value for key, value in more.items() if key != "operation_prob"}
        more |= {"probability": 0.8, "fill": (76, 102, 128)}
    operated = getattr(policies, name)(policies.fold_in_each(keys, augment.POLICY), placed, **more)
    erased = augment.random_erasing(
        policies.fold_in_each(keys, augment.ERASING),
        operated.astype(np.float32) / 255,
        probability=0.5,
        fill="noise",
        mean=mean,
        std=std,
    )
    # A level more or less, as the programs may round differently.
    assert np.abs(got - erased).max() <= 1.01 / 255
    assert np.mean(np.abs(got - erased) > 1e-5) < 1e-3


def test_without_them_nothing_else_is_drawn(images):
    """Keys of the policy and of erasing are made only if they are used."""
    config = from_plain({"augment": {"pad": 2, "flip": True}})
    load = augment.create_load_train(resident.gather, config)
    xs = {"seed": np.int32(0), "index": np.arange(64, dtype=np.int32)}
    loaded = jax.make_jaxpr(load)({"image": jnp.asarray(images)}, xs, 1)
    assert str(loaded).count("random_fold_in") == 2, "one for the epoch, one for the index"


@pytest.mark.parametrize("module", [augment, data_module])
def test_examples_in_docstrings_run(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed
