"""Mixes by their names, combinations, layers, and several devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutmix_jax import mix
from cutmix_jax.mix import named

KEY = jax.random.key(0)
SIDES = {"image": (32, 32), "stem": (32, 32), "layer1": (32, 32), "layer2": (16, 16)} | {
    "layer3": (8, 8)
}

# The name, where it mixes, and what its description has to contain.
PAPER = {
    "none": ((), "no mixing"),
    "cutmix": (("image",), "Beta(1, 1)"),
    "center_gaussian_cutmix": (("image",), "center gaussian, sigma 0.25"),
    "fixed_size_cutmix": (("image",), "size 0.5 of the side"),
    "one_hot_cutmix": (("image",), "only the label of the larger area"),
    "scheduled_cutmix": (("image",), "probability 0 to 1 from start to end"),
    "complete_label_cutmix": (("image",), "both labels by one half"),
    "feature_cutmix": (("image", "stem", "layer1", "layer2", "layer3"), "at one of image, stem"),
    "mixup": (("image",), "Mixup: lambda ~ Beta(1, 1)"),
    "manifold_mixup": (("image", "layer1", "layer2"), "at one of image, layer1, layer2"),
    "cutout": (("image",), "filled with 0"),
    "erasing": (("image",), "area 0.02 to 0.33, height over width 0.3 to 3.3), filled with 0"),
    "saliencymix": (("image",), "where its partner is most salient"),
    "resizemix": (("image",), "resized to 0.1 to 0.8 of the side"),
}
OTHERS = {
    "hmix": "HMix: one box in a blend per batch (lambda ~ Beta(1, 1); the box has 0.5 of",
    "gmix": "GMix: one Gaussian bump per batch (lambda ~ Beta(1, 1)), partner by permutation",
    "gridmix": "area 0.5 to 1; aspect 0.5 to 2; cells 2 to 6), partner",
    "fmix": "FMix: one mask from noise of 1 / f^3 per batch (lambda ~ Beta(1, 1)), partner",
    "cowmix": "one mask from blurred noise per image (area 0.2 to 0.8; sigma 0.125 to 0.5 of the",
}
COMBINED = {
    "cutout+mixup": (mix.chain, ("image",), ", then Mixup"),
    "cutout+manifold_mixup": (mix.chain, ("image", "layer1", "layer2"), ", then Mixup"),
    "cutmix_or_mixup": (mix.random_choice, ("image",), "; or, with probability 0.5, Mixup"),
}


@pytest.mark.parametrize("name", PAPER)
def test_every_mix_has_a_name(name):
    check_mix(mix.create_mix(name), name, *PAPER[name])


@pytest.mark.parametrize("name", OTHERS)
def test_other_mixes_have_a_name(name):
    check_mix(mix.create_mix(name), name, ("image",), OTHERS[name])


def test_the_resolution_in_words():
    assert "Beta(1, 1); 56 cells along" in mix.create_mix("fmix", resolution=56).describe()


@pytest.mark.parametrize("name", COMBINED)
def test_mixes_are_combined(name):
    combine, layers, words = COMBINED[name]
    parts = map(mix.create_mix, re.split(r"\+|_or_", name))
    check_mix(combine(*parts), name, layers, words)


def check_mix(mixing, name, layers, words):
    assert mixing.name == name
    assert mixing.layers == layers
    assert words in mixing.describe()
    hash(mixing)
    images = jnp.zeros((5, 32, 32, 1))
    plans = jax.eval_shape(lambda: mixing.sample(KEY, 5, SIDES, images=images, progress=0.5))
    assert {plan.layer for plan in plans} == set(layers)
    for plan in plans:
        assert plan.sides == SIDES[plan.layer]
        assert plan.partner.shape == (5,)


def test_a_mix_samples_what_its_sampler_samples():
    (plan,) = mix.create_mix("cutmix", alpha=0.5, prob=0.9, box="paper").sample(KEY, 4, (8, 8))
    expected = mix.sample_cutmix(KEY, 4, (8, 8), alpha=0.5, prob=0.9, box="paper")
    jax.tree.map(np.testing.assert_array_equal, plan, expected)


WRONG_MIXES = {
    "unknown mix": ("cutmx", {}, "mix 'cutmx' is unknown.*mean 'cutmix'"),
    "unknown parameter": ("cutmix", {"alhpa": 1.0}, "'alhpa' is unknown.*mean 'alpha'"),
    "parameter of another": ("mixup", {"box": "paper"}, "mix 'mixup': parameter 'box'"),
    "none takes nothing": ("none", {"alpha": 1.0}, "parameter 'alpha' is unknown"),
    "alpha": ("cutmix", {"alpha": -1.0}, "alpha must be above 0, but got -1.0"),
    "prob": ("cutmix", {"prob": 1.5}, "prob must be at least 0 and at most 1, but got 1.5"),
    "until": ("cutmix", {"until": -1}, "until must be"),
    "schedule": ("cutmix", {"schedule": "cosine"}, "schedule 'cosine' is unknown"),
    "box": ("cutmix", {"box": "exac"}, "mean 'exact'"),
    "layer": ("feature_cutmix", {"layers": ("layer9",)}, "layer 'layer9' is unknown"),
    "no layer": ("feature_cutmix", {"layers": ()}, "layers is empty"),
    "size": ("cutout", {"size": -3}, "size=-3 does not fit"),
}


@pytest.mark.parametrize(("name", "parameters", "message"), WRONG_MIXES.values(), ids=WRONG_MIXES)
def test_wrong_mixes_raise(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        mix.create_mix(name, **parameters)


def test_sizes_in_words():
    assert "filled with noise" in mix.create_mix("erasing", fill="noise").describe()
    uniform = mix.create_mix("cutmix", lengths="uniform", min_ratio=0.2, max_ratio=0.8)
    assert "(lengths 0.2 to 0.8 of the sides, uniform;" in uniform.describe()
    assert "(size 16;" in mix.create_mix("cutout", size=16.0).describe()
    assert "(size 8 x 0.5 of the side;" in mix.create_mix("cutout", size=(8, 0.5)).describe()


def test_a_chain_applies_one_after_the_other():
    mixing = mix.chain(mix.create_mix("cutout", size=2, fill=9), mix.create_mix("cutmix"))
    images = jnp.arange(3 * 64, dtype=jnp.float32).reshape(3, 8, 8)
    cut, paste = mixing.sample(KEY, 3, (8, 8))
    mixed = mix.apply(paste, mix.apply(cut, images))
    labels = mix.mix_labels(paste, mix.mix_labels(cut, jnp.arange(3), 3))
    np.testing.assert_array_equal(labels, mix.mix_labels(paste, jnp.arange(3), 3))
    np.testing.assert_array_equal(mixed, mix.apply_at((cut, paste), "image", images))


def test_layers_are_mixed_where_they_belong_and_in_their_order():
    mixing = mix.chain(mix.create_mix("feature_cutmix", layers=4), mix.create_mix("cutout"))
    plans = mixing.sample(KEY, 2, SIDES)
    assert [plan.layer for plan in plans] == ["image", "layer3"]
    for layer, sides in SIDES.items():
        x = jnp.stack([jnp.zeros(sides), jnp.ones(sides)])
        touched = bool((mix.apply_at(plans, layer, x) != x).any())
        assert touched == (layer == "image") or layer == "layer3"


def test_layers_need_the_sides_of_their_maps():
    mixing = mix.create_mix("manifold_mixup")
    with pytest.raises(ValueError, match=r"sides must map .* but got \(32, 32\)"):
        mixing.sample(KEY, 4, (32, 32))
    with pytest.raises(ValueError, match="layer 'layer1' is unknown, expected one of 'image'"):
        mixing.sample(KEY, 4, {"image": (32, 32)})


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.25, 0.0, 0.5), (2, 1, 0)])
def test_a_choice_is_as_likely_as_its_weight(weights):
    sizes = (2, 4, 8)
    mixes = [mix.create_mix("cutmix", placement="inside", size=size) for size in sizes]
    mixing = mix.random_choice(*mixes, weights=weights, scope="image")
    (plan,) = mixing.sample(KEY, 10_000, (64, 64))
    sides = plan.box[:, 1, 0] - plan.box[:, 0, 0]
    found = [(sides == size).mean() for size in sizes]
    np.testing.assert_allclose(found, np.array(weights) / sum(weights), atol=0.02)


def test_the_choice_of_an_image_is_one_plan_of_plans_drawn_apart():
    """Each image has the plan that its mix sampled, and partners as they were before mixing."""
    cut, blend = mix.create_mix("cutmix", scope="image"), mix.create_mix("mixup", scope="image")
    mixing = mix.random_choice(cut, blend, scope="image")
    (plan,) = mixing.sample(KEY, 64, (8, 8))
    choice_key, cut_key, blend_key = jax.random.split(KEY, 3)
    second = jax.random.uniform(choice_key, (64,)) < 0.5
    (first,), (other,) = cut.sample(cut_key, 64, (8, 8)), blend.sample(blend_key, 64, (8, 8))
    images = jnp.arange(64 * 64.0).reshape(64, 8, 8)
    expected = jnp.where(second[:, None, None], mix.apply(other, images), mix.apply(first, images))
    np.testing.assert_array_equal(mix.apply(plan, images), expected)
    assert 16 < second.sum() < 48


def test_mixes_that_fill_and_paste_are_one_plan_per_image():
    """Each image and its objects are as their mix makes them alone."""
    parts = [mix.create_mix("cutmix", scope="image"), mix.create_mix("mixup", scope="image")]
    parts += [mix.create_mix("erasing", fill=[5.0, 6.0])]
    mixing = mix.random_choice(*parts, weights=(1, 1, 2), scope="image")
    (plan,) = jax.jit(lambda key: mixing.sample(key, 64, (8, 8)))(KEY)
    key, *keys = jax.random.split(KEY, 4)
    number = jax.random.uniform(key, (64,)) * 4
    chosen = np.asarray((number < 3).astype(int) + (number < 2))
    assert set(chosen) == {0, 1, 2}
    images = jnp.arange(64 * 128.0).reshape(64, 8, 8, 2)
    boxes, valid = jnp.tile(jnp.array([1.0, 1, 7, 7]), (64, 2, 1)), jnp.ones((64, 2), bool)
    drawn = [part.sample(k, 64, (8, 8))[0] for k, part in zip(keys, parts, strict=True)]
    apart = [jax.jit(mix.apply)(p, images) for p in drawn]
    objects = [mix.mix_boxes(p, boxes, valid) for p in drawn]
    mixed, found = mix.apply(plan, images), mix.mix_boxes(plan, boxes, valid)
    for i, part in enumerate(chosen):
        np.testing.assert_array_equal(mixed[i], apart[part][i])
        for got, expected in zip(found[:4], objects[part][:4], strict=True):
            np.testing.assert_array_equal(got[i], expected[i])
    parts = mix.create_mix("cutmix"), mix.create_mix("cutout", scope="batch")
    (plan,) = mix.random_choice(*parts, scope="device").sample(KEY, 64, (8, 8))
    with pytest.raises(ValueError, match="the plan fills some boxes only"):
        mix.apply(plan, images, paste="window")


def test_one_plan_has_one_fill():
    fills = [mix.create_mix("erasing", fill=fill) for fill in (0.0, 1.0)]
    same = [mix.create_mix("cutout", fill=1.0), fills[1]]
    (plan,) = mix.random_choice(*same, scope="image").sample(KEY, 4, (8, 8))
    assert plan.fill == 1.0
    with pytest.raises(ValueError, match="and one fill at most"):
        mix.random_choice(*fills, scope="image").sample(KEY, 4, (8, 8))


def test_a_choice_per_device_differs_between_devices():
    parts = [mix.create_mix("cutmix"), mix.create_mix("mixup")]
    (plan,) = jax.vmap(
        lambda _: mix.random_choice(*parts, scope="device").sample(
            KEY, 2, (8, 8), axis_name="batch"
        ),
        axis_name="batch",
    )(jnp.arange(16))
    assert 2 < (plan.ratio < 1).sum() < 14


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (("cutmix", "manifold_mixup"), {"scope": "device"}, "needs mixes that have one plan each"),
        (("cutmix", "mixup"), {"scope": "pair"}, "scope 'pair' is unknown"),
        (("cutmix", "mixup"), {"weights": (1.0,)}, "one number per mix.* for 2 mixes"),
        (("cutmix", "mixup"), {"weights": (0, 0)}, "not all of them 0"),
        (("cutmix", "mixup"), {"weights": (-1, 2)}, "each of the weights must be at least 0"),
        ((), {}, "for 0 mixes"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(names, options, message):
    with pytest.raises(ValueError, match=message):
        mix.random_choice(*map(mix.create_mix, names), **options).sample(KEY, 4, SIDES)


def on_devices(devices, **options):
    def draw(_):
        return mix.sample_cutmix(KEY, 6, (32, 32), axis_name="batch", **options)

    return jax.jit(jax.vmap(draw, axis_name="batch"))(jnp.arange(devices))


def all_equal(x):
    return bool((x == x[:1]).all())


def test_devices_share_a_draw_per_batch_and_have_partners_of_their_own():
    plan = on_devices(4)
    alone = mix.sample_cutmix(KEY, 6, (32, 32))
    assert all_equal(plan.box)
    np.testing.assert_array_equal(plan.box[0], alone.box)
    np.testing.assert_array_equal(plan.lam[2], alone.lam)
    assert len({tuple(partner.tolist()) for partner in plan.partner}) == 4


@pytest.mark.parametrize("scope", ["device", "pair", "image"])
def test_devices_draw_their_own_in_scopes_below_the_batch(scope):
    plan = on_devices(4, scope=scope)
    assert plan.box.shape[1] == (1 if scope == "device" else 6)
    assert not all_equal(plan.box)


@pytest.mark.parametrize("scope", ["batch", "device", "pair", "image"])
def test_partners_across_devices(scope):
    devices, batch_size = 4, 3
    images = jnp.arange(devices * batch_size * 8 * 8.0).reshape(devices, batch_size, 8, 8)
    classes = jnp.arange(devices * batch_size).reshape(devices, batch_size)

    def step(images, classes):
        plan = mix.sample_cutmix(
            KEY, batch_size, (8, 8), scope=scope, axis_name="batch", across_devices=True
        )
        return plan, mix.apply(plan, images), mix.mix_labels(plan, classes, 12)

    plan, mixed, labels = jax.jit(jax.vmap(step, axis_name="batch"))(images, classes)
    partner = np.asarray(plan.partner).ravel()
    assert sorted(partner) == list(range(12))
    every = np.asarray(images).reshape(12, 8, 8)
    lam = np.broadcast_to(plan.lam, (devices, batch_size)).ravel()
    for i in range(12):
        device, place = divmod(i, batch_size)
        low, high = np.asarray(plan.box)[device, place % plan.box.shape[1]]
        expected = every[i].copy()
        region = tuple(slice(*edges) for edges in zip(low, high, strict=True))
        expected[region] = every[partner[i]][region]
        np.testing.assert_array_equal(mixed[device, place], expected)
        weights = np.zeros(12)
        weights[i] += lam[i]
        weights[partner[i]] += 1 - lam[i]
        np.testing.assert_allclose(labels[device, place], weights, atol=1e-6)
    if scope == "pair":
        np.testing.assert_array_equal(partner[partner], np.arange(12))
        np.testing.assert_array_equal(lam[partner], lam)


def test_pmap_agrees_with_vmap():
    devices = jax.local_device_count()
    images = jnp.arange(devices * 3 * 64.0).reshape(devices, 3, 8, 8)

    def step(images):
        plan = mix.sample_cutmix(KEY, 3, (8, 8), axis_name="batch")
        return plan, mix.apply(plan, images)

    expected = jax.vmap(step, axis_name="batch")(images)
    mapped = jax.block_until_ready(jax.pmap(step, axis_name="batch")(images))
    jax.tree.map(np.testing.assert_array_equal, mapped, expected)


def test_a_sampler_of_ones_own_has_its_name_for_words(monkeypatch):
    def sample_nothing(key, batch_size, sides, *, prob=1.0, axis_name=None):
        return mix.sample_mixup(key, batch_size, sides, prob=prob * 0, axis_name=axis_name)

    monkeypatch.setitem(named.MIXES, "nothing", (sample_nothing, {}))
    nothing = mix.create_mix("nothing", prob=0.5)
    assert nothing.describe() == "nothing; with probability 0.5"
    (plan,) = nothing.sample(KEY, 4, (8, 8))
    np.testing.assert_array_equal(plan.lam, 1)
