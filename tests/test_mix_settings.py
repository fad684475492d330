"""JAX's stricter settings change no result: every public function runs under each of them."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutmix_jax import mix

KEY = jax.random.key(3)
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 12, 3), np.uint8)
IDS = np.arange(6, dtype=np.uint8)
SOFT = np.random.default_rng(0).dirichlet(np.ones(4), 6).astype(np.float16)
MAPS = {"image": (8, 12), "layer1": (4, 6)}


def one_calls():
    return [
        mix.cutmix(KEY, IMAGES, IDS, num_classes=300, scope="pair", box="paper"),
        mix.mixup(KEY, IMAGES, SOFT, scope="image"),
        mix.cutout(KEY, IMAGES, size=(4, 0.5), fill=np.float32([1, 2, 3]), placement="gaussian"),
    ]


def plans():
    inside = mix.sample_cutmix(KEY, 6, (8, 12), placement="inside", min_ratio=0.5, scope="device")
    blend = mix.sample_mixup(KEY, 6, (8, 12), scope="pair", partner="reverse")
    either = [mix.create_mix("cutmix", scope="image"), mix.create_mix("mixup", scope="image")]
    (picked,) = mix.random_choice(*either, scope="image").sample(KEY, 6, (8, 12))
    cut = mix.sample_cutout(KEY, 6, (8, 12), size=3, fill=0.5)
    erase = mix.sample_erasing(KEY, 6, (8, 12), fill="noise")
    salient = mix.sample_saliencymix(KEY, 6, (8, 12), images=IMAGES)
    resized = mix.sample_resizemix(KEY, 6, (8, 12), scope="image")
    arrays = {"image": IMAGES, "half": IMAGES[:, ::2, ::2], "depth": IMAGES.astype(np.float16)}
    low = np.random.default_rng(0).integers(0, 6, (6, 2, 2), np.int32)
    objects = np.concatenate([low, low + 2], -1).astype(np.float16), np.ones((6, 2), bool)
    return [
        [mix.mix_boxes(plan, *objects, {"ids": low}) for plan in (inside, blend, picked, cut)],
        mix.apply(inside, arrays, paste="window"),
        mix.apply(picked, arrays),
        mix.apply(cut, arrays),
        mix.apply(erase, IMAGES.astype(np.float32)),
        [salient, mix.saliency(IMAGES)],
        mix.apply(resized, {"image": IMAGES, "mask": IMAGES[:, ::2, ::2, 0].astype(np.int32)}),
        [mix.kept_fraction(plan) for plan in (inside, blend, picked, cut)],
        mix.mix_labels(picked, IDS, 300),
        mix.mix_values(picked, [SOFT, IDS, SOFT.astype(np.float32)]),
        mix.mix_losses(picked, lambda labels: labels.astype(jnp.float16) / 2, IDS),
    ]


def named_mixes():
    either = mix.random_choice(mix.create_mix("scheduled_cutmix"), mix.create_mix("mixup"))
    features = mix.create_mix("manifold_mixup", layers=("layer1",))
    drawn = mix.chain(mix.create_mix("cutout", fill=[1, 2, 3]), either, features).sample(
        KEY, 6, MAPS, progress=0.5
    )
    maps = {name: np.ones((6, *sides, 3), np.float32) for name, sides in MAPS.items()}
    return [drawn, [mix.apply_at(drawn, name, x) for name, x in maps.items()]]


def masks():
    ids, shares = IMAGES[..., 0] // 64, IMAGES[:, ::4, :5, 1] / np.float32(255)
    half = mix.classmix_mask(KEY, ids, 4, ignore=3)
    pasted = mix.plan_from_mask(half, IDS[::-1])
    soft = mix.plan_from_mask(shares, "permutation", (8, 12), key=KEY)
    arrays = {"image": IMAGES, "half": IMAGES[:, ::2, ::2], "depth": IMAGES.astype(np.float16)}
    return [pasted, soft, mix.apply(pasted, arrays | {"ids": ids}), mix.apply(soft, arrays)]


def sampled_masks():
    drawn = [
        mix.sample_hmix(KEY, 6, (8, 12)),
        mix.sample_gmix(KEY, 6, (8, 12), scope="image"),
        mix.sample_gridmix(KEY, 6, (8, 12), scope="pair"),
        mix.sample_fmix(KEY, 6, (8, 12), resolution=9),
        mix.sample_cowmix(KEY, 6, (8, 12)),
    ]
    return [drawn, [mix.apply(plan, IMAGES) for plan in drawn]]


def wider_under_x64():
    """Sampled by `jax.random.randint`, whose default dtype and bits depend on x64."""
    layers = mix.create_mix("feature_cutmix", layers=("image", "layer1"))
    return [mix.sample_cutmix(KEY, 6, (8, 12), partner="rotate"), layers.sample(KEY, 6, MAPS)]


CASES = (one_calls, plans, named_mixes, masks, sampled_masks, wider_under_x64)


def test_the_cases_use_every_public_name():
    used = set(re.findall(r"mix\.(\w+)", pathlib.Path(__file__).read_text()))
    assert set(mix.__all__) - {"LAYERS", "Mix", "MixedBoxes", "Plan"} <= used


@pytest.fixture
def settings(request):
    before = {name: getattr(jax.config, name) for name in request.param}
    for name, value in request.param.items():
        jax.config.update(name, value)
    yield request.param
    for name, value in before.items():
        jax.config.update(name, value)


@functools.cache
def usual(case):
    return jax.device_get(case())


@pytest.fixture
def expected(case):
    """Before the settings change: this is the first argument of the test."""
    return usual(case)


STRICT = {"jax_numpy_rank_promotion": "raise", "jax_numpy_dtype_promotion": "strict"}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "settings", [STRICT, STRICT | {"jax_enable_x64": True}], ids=["strict", "x64"], indirect=True
)
def test_no_setting_changes_a_bit(expected, settings, case):
    def same(found, expected):
        assert np.asarray(found).dtype == np.asarray(expected).dtype
        if case is not wider_under_x64 or "jax_enable_x64" not in settings:
            np.testing.assert_array_equal(found, expected)

    jax.tree.map(same, case(), expected)


@pytest.mark.parametrize(
    "settings", [{"jax_debug_nans": True, "jax_disable_jit": True}], ids=["nans"], indirect=True
)
def test_debugging_nans_finds_none_at_small_alpha(settings):
    plan = mix.sample_mixup(KEY, 64, (8, 8), alpha=0.01, scope="image")
    assert (np.asarray(plan.lam) == 0).any()
    assert (np.asarray(plan.lam) == 1).any()
