"""Which operations images get, and how strong: against the tables of torchvision and timm."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutmix_jax import parallel
from cutmix_jax.config import from_plain
from cutmix_jax.data import augment, image_operations, policies, streaming
from cutmix_jax.data.image_operations import INDEX, OPERATIONS

SHAPE = (40, 60)
MANY = 40_000
ENHANCEMENTS = ("brightness", "color", "contrast", "sharpness")
FOURTEEN = {
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    *ENHANCEMENTS,
    "posterize",
    "solarize",
    "auto_contrast",
    "equalize",
}


def keys(count=MANY, seed=0):
    return augment.example_keys(seed, 0, jnp.arange(count))


def by_name(operations):
    """The magnitudes of each operation that occurs."""
    index, magnitude = np.asarray(operations.index), np.asarray(operations.magnitude)
    return {name: magnitude[index == INDEX[name]] for name in OPERATIONS if INDEX[name] in index}


def check_equally_likely(found, total, count):
    expected = total / count
    for values in found.values():
        assert abs(len(values) - expected) < 5 * np.sqrt(expected)


def test_trivial_augment_is_uniform_over_operations_magnitudes_and_signs():
    found = by_name(jax.jit(policies.sample_trivial_augment, static_argnums=1)(keys(), SHAPE))
    assert set(found) == FOURTEEN
    check_equally_likely(found, MANY, 14)
    # The greatest magnitude of torchvision.transforms.TrivialAugmentWide, and its 31 bins.
    greatest = {"shear_x": 0.99, "shear_y": 0.99, "rotate": 135}
    greatest |= dict.fromkeys(ENHANCEMENTS, 0.99)
    for name, most in greatest.items():
        change = found[name] - (name in ENHANCEMENTS)
        bins, counts = np.unique(np.round(change / most * 30).astype(int), return_counts=True)
        np.testing.assert_allclose(np.round(change / most * 30), change / most * 30, atol=1e-4)
        np.testing.assert_array_equal(bins, np.arange(-30, 31))
        # Zero has no sign, so it comes twice as often.
        expected = len(change) / 62
        counts[30] /= 2
        assert np.abs(counts - expected).max() < 6 * np.sqrt(expected)
    steps = np.trunc(np.linspace(0, 32, 31))
    for name in ("translate_x", "translate_y"):
        np.testing.assert_array_equal(np.unique(np.abs(found[name])), np.unique(steps))
    for name in ("auto_contrast", "equalize", "identity"):
        assert not found[name].any()
    np.testing.assert_array_equal(np.unique(found["posterize"]), np.arange(2, 9))
    np.testing.assert_allclose(np.unique(found["solarize"]), np.arange(31) * 8.5)


@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_rand_augment_has_torchvisions_magnitude(magnitude):
    sample = functools.partial(
        policies.sample_rand_augment, spatial_shape=SHAPE, magnitude=magnitude
    )
    found = by_name(jax.jit(sample)(keys()))
    assert set(found) == FOURTEEN
    check_equally_likely(found, MANY, 14)
    part = magnitude / 30
    height, width = SHAPE
    wanted = {
        "shear_x": 0.3 * part,
        "shear_y": 0.3 * part,
        "translate_x": int(150 / 331 * width * part),
        "translate_y": int(150 / 331 * height * part),
        "rotate": 30 * part,
        **dict.fromkeys(ENHANCEMENTS, 0.9 * part),
    }
    for name, value in wanted.items():
        change = found[name] - (name in ENHANCEMENTS)
        np.testing.assert_allclose(np.abs(change), value, atol=1e-6)
        if value:
            assert abs(np.mean(change > 0) - 0.5) < 2.5 / np.sqrt(len(change))
    np.testing.assert_array_equal(found["posterize"], 8 - round(part * 4))
    np.testing.assert_allclose(found["solarize"], 255 * (1 - part))


def test_timms_operations_and_magnitudes():
    """The functions of timm.data.auto_augment, written for one level in Python."""
    levels = np.float32([0, 0.3, 2.6, 5, 6.99, 7, 8.8, 10])
    height, width = SHAPE
    for negative in (False, True):
        signs = jnp.full(len(levels), negative)
        found = policies.timm_magnitudes(jnp.asarray(levels), signs, SHAPE)
        assert tuple(sorted(found)) == tuple(sorted(policies.TIMM_OPERATIONS))
        for i, level in enumerate(levels.astype(float)):
            sign = -1 if negative else 1
            wanted = {
                "rotate": sign * level / 10 * 30,
                "posterize": 4 - int(level / 10 * 4),
                "solarize": 256 - min(256, int(level / 10 * 256)),
                "solarize_add": min(128, int(level / 10 * 110)),
                **dict.fromkeys(ENHANCEMENTS, max(0.1, 1 + sign * level / 10 * 0.9)),
                "shear_x": sign * level / 10 * 0.3,
                "shear_y": sign * level / 10 * 0.3,
                "translate_x": sign * level / 10 * 0.45 * width,
                "translate_y": sign * level / 10 * 0.45 * height,
            }
            for name, value in wanted.items():
                np.testing.assert_allclose(found[name][i], value, rtol=1e-5, err_msg=name)


def test_timms_probability_and_noise():
    sample = functools.partial(policies.sample_rand_augment_timm, spatial_shape=SHAPE)
    found = by_name(jax.jit(sample)(keys()))
    skipped = found.pop("identity")
    assert abs(len(skipped) / MANY - 0.5) < 0.0125
    assert set(found) == set(policies.TIMM_OPERATIONS)
    check_equally_likely(found, MANY - len(skipped), 15)
    level = np.abs(found["rotate"]) / 3
    assert abs(level.mean() - 7) < 0.07
    assert abs(level.std() - 0.5) < 0.05
    assert abs(np.mean(found["rotate"] > 0) - 0.5) < 0.07
    always = jax.jit(functools.partial(sample, probability=1.0, magnitude=9.9, magnitude_std=3.0))
    level = np.abs(by_name(always(keys()))["rotate"]) / 3
    assert level.max() <= 10 + 1e-5
    assert np.mean(level > 9.999) > 0.4, "levels above 10 become 10"


def test_operations_come_one_after_the_other():
    """Each of them has random numbers of its own."""
    images = np.random.RandomState(0).randint(0, 256, (32, 12, 10, 3), np.uint8)
    some = keys(32)
    twice = jax.jit(policies.rand_augment)(some, images)
    by_hand = images
    for step in range(2):
        operations = policies.sample_rand_augment(policies.fold_in_each(some, step), (12, 10))
        by_hand = image_operations.apply_operations(operations, by_hand)
    np.testing.assert_array_equal(twice, by_hand)


@pytest.mark.parametrize("kind", ["pmap", "shard_map"])
def test_devices_get_what_one_device_gets(kind):
    images = np.random.RandomState(0).randint(0, 256, (32, 12, 10, 3), np.uint8)

    section = {"policy": "rand_augment_timm", "erasing": 0.3, "erasing_fill": "noise"}

    def augmented(index, images):
        """What a streamed batch of these examples becomes."""
        load = augment.create_load_train(streaming.take, from_plain({"augment": section}))
        xs = {"image": images, "index": index, "label": index, "seed": jnp.int32(0)}
        return load((), xs, 3)["image"]

    alone = jax.jit(augmented)(jnp.arange(32), images)
    mapping = parallel.create_mapping(kind)

    def on_device(state, arrays, xs):
        return jax.lax.all_gather(augmented(*xs), parallel.AXIS, tiled=True)

    count = mapping.local_devices
    parts = (np.arange(32).reshape(count, -1), images.reshape(count, -1, *images.shape[1:]))
    together = mapping.map(on_device)((), (), mapping.shard(parts))
    assert count == 8
    np.testing.assert_allclose(alone, together, atol=1e-6)
    changed = np.any(np.abs(np.asarray(alone) - images / 255) > 1e-3, (1, 2, 3))
    assert 0.4 < changed.mean() < 1


@pytest.mark.parametrize("magnitude", [-1, 31, 2.5])
def test_magnitudes_outside_torchvisions_grid_are_refused(magnitude):
    with pytest.raises(ValueError, match="a whole number from 0 to 30"):
        policies.sample_rand_augment(keys(2), SHAPE, magnitude)


@pytest.mark.parametrize("magnitude", [-0.1, 10.5])
def test_magnitudes_outside_timms_range_are_refused(magnitude):
    with pytest.raises(ValueError, match="a number from 0 to 10"):
        policies.sample_rand_augment_timm(keys(2), SHAPE, magnitude)
