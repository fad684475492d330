"""Masks in a plan: any shape of region, bool or soft, at any resolution."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutmix_jax import mix

quick = settings(max_examples=30, deadline=None)


def read(mask, sides):
    """The mask at another resolution, one pixel at a time."""
    found = np.zeros((len(mask), *sides), mask.dtype)
    for pixel in np.ndindex(*sides):
        of = zip(pixel, mask.shape[1:], sides, strict=True)
        cell = tuple(int((i + 0.5) * m / side) for i, m, side in of)
        found[(slice(None), *pixel)] = mask[(slice(None), *cell)]
    return found


def own_share(plan, sides):
    """s of each pixel, float64 `[B, ...]`, and where pixels are pasted. For `sides` of the plan."""
    batch_size = len(plan.partner)
    mask = read(np.asarray(plan.mask), sides)
    ratio = np.float64(1 if plan.ratio is None else plan.ratio).reshape(-1, *[1] * len(sides))
    share = np.array(np.broadcast_to(ratio * (1 - mask.astype(float)), (batch_size, *sides)))
    pasted = np.array(np.broadcast_to(mask == (mask.dtype == bool), share.shape))
    pasted &= mask.dtype == bool
    for i in range(batch_size):
        box = np.asarray(plan.box)[i % len(plan.box)]
        pasted[(i, *(slice(low, high) for low, high in box.T))] = True
    return np.where(pasted, 0, share), pasted


def mixed_by_numpy(plan, images):
    """The reference for images `[B, S_1, ..., S_n, C]`, from the definition, in float64."""
    images, sides = np.asarray(images), plan.sides
    share, pasted = (a[..., None] for a in own_share(plan, sides))
    others = images[np.asarray(plan.partner)]
    if plan.ratio is None and plan.mask.dtype == bool:
        mixed = np.where(pasted, others, images)
    else:
        mixed = share * images.astype(float) + (1 - share) * others.astype(float)
        mixed = np.round(mixed) if images.dtype == np.uint8 else mixed
    return mixed if plan.fill is None else np.where(pasted, plan.fill, mixed)


def plan_with(mask, sides, *, box=None, partner=(1, 2, 0), **fields):
    box = np.zeros((1, 2, len(sides))) if box is None else np.reshape(box, (-1, 2, len(sides)))
    return mix.Plan(
        partner=jnp.asarray(partner, jnp.int32),
        box=jnp.asarray(box, jnp.int32),
        mask=jnp.asarray(mask),
        lam=jnp.ones(1),
        sides=sides,
        **fields,
    )


def random_mask(seed, shape, soft):
    values = np.random.default_rng(seed).integers(0, 5, shape) / 4  # 0, 1 and shares between
    return jnp.asarray(values, jnp.float32) if soft else jnp.asarray(values > 0.5)


def random_images(sides, dtype, batch_size=3):
    values = np.random.default_rng(1).integers(0, 200, (batch_size, *sides, 2))
    return jnp.asarray(values > 100 if dtype is bool else values, dtype)


jitted = jax.jit(mix.apply)


def check_mixed(plan, images, **options):
    mixed, expected = mix.apply(plan, images, **options), mixed_by_numpy(plan, images)
    assert mixed.dtype == images.dtype
    blends = plan.ratio is not None or plan.mask.dtype != bool
    tolerance = {jnp.uint8: 1, jnp.bfloat16: 1, jnp.float32: 1e-4}  # a half goes to either side
    tolerance = tolerance[images.dtype.type] if blends else 0
    np.testing.assert_allclose(mixed.astype(float), expected.astype(float), atol=tolerance)


SIDES = {1: (12,), 2: (8, 6), 3: (4, 6, 3)}
RESOLUTIONS = {
    "of the image": SIDES,
    "coarse": {1: (3,), 2: (2, 3), 3: (2, 1, 1)},
    "not a divisor": {1: (5,), 2: (3, 4), 3: (3, 4, 2)},
    "fine": {1: (36,), 2: (16, 7), 3: (5, 12, 6)},
}


@pytest.mark.parametrize("axes", SIDES)
@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_pixels_come_from_the_mask(axes, resolution, soft):
    images = random_images(SIDES[axes], jnp.float32)
    mask = random_mask(0, (3, *RESOLUTIONS[resolution][axes]), soft)
    check_mixed(plan_with(mask, SIDES[axes]), images, spatial_axes=range(1, axes + 1))


@pytest.mark.parametrize(
    ("soft", "dtype"),
    [
        *((False, dtype) for dtype in (jnp.uint8, jnp.int32, bool, jnp.bfloat16)),
        *((True, dtype) for dtype in (jnp.uint8, jnp.bfloat16)),
    ],
)
@pytest.mark.parametrize("shared", [True, False], ids=["per batch", "per image"])
def test_dtypes_stay(soft, dtype, shared):
    mask = random_mask(2, (1 if shared else 3, 4, 6), soft)
    check_mixed(plan_with(mask, (8, 6)), random_images((8, 6), dtype))


BOX = [[[2, 1], [7, 4]]]
RATIOS = jnp.array([0.25, 1.0, 0.5])


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize(
    "fields",
    [
        {"box": BOX},
        {"ratio": RATIOS},
        {"box": BOX, "ratio": RATIOS[:1]},
        {"fill": 7.0},
        {"box": BOX, "ratio": RATIOS, "fill": jnp.array([7.0, 9.0])},
    ],
    ids=["box", "ratio", "box and ratio", "fill", "all"],
)
def test_masks_join_boxes_ratios_and_fills(soft, fields):
    plan = plan_with(random_mask(3, (3, 4, 3), soft), (8, 6), **fields)
    check_mixed(plan, random_images((8, 6), jnp.float32))


@quick
@given(
    side=st.integers(1, 9),
    cells=st.integers(1, 12),
    soft=st.booleans(),
    edges=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    seed=st.integers(0, 99),
)
def test_the_kept_fraction_is_the_mean_of_the_own_share(side, cells, soft, edges, seed):
    low, high = sorted(min(edge, side) for edge in edges)
    mask = random_mask(seed, (3, cells), soft)
    plan = plan_with(mask, (side,), box=[[low], [high]])
    share, _ = own_share(plan, (side,))
    kept = mix.kept_fraction(plan)
    if soft:
        np.testing.assert_allclose(kept, share.mean(1), rtol=1e-6)
    else:
        np.testing.assert_array_equal(kept, share.mean(1).astype(np.float32))


def test_the_kept_fraction_of_a_coarse_mask_is_a_count_rounded_once():
    counts = np.arange(225)
    mask = jnp.asarray(np.arange(225)[None, :, None] < counts[:, None, None])
    plan = plan_with(mask, (225, 224), partner=counts)
    found = jax.jit(mix.kept_fraction)(plan)
    np.testing.assert_array_equal(found, ((225 - counts) / 225).astype(np.float32))
    ratio = jnp.float32([0.3])
    np.testing.assert_array_equal(mix.kept_fraction(replace(plan, ratio=ratio)), found * ratio)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_nan_of_what_is_not_taken_does_not_spread(soft):
    mask = random_mask(4, (3, 8, 6), False)
    images = np.array(random_images((8, 6), jnp.float32))
    taken = np.asarray(mask)[2]  # image 2 takes these pixels of image 0, and 0 keeps the others
    images[0][~taken], images[2][taken] = np.nan, np.nan
    mixed = mix.apply(plan_with(mask.astype(jnp.float32) if soft else mask, (8, 6)), images)
    assert np.isfinite(mixed[2]).all()


@pytest.mark.parametrize(
    ("shape", "spatial_axes", "to_front"),
    [
        ((3, 2, 8, 6), (2, 3), (0, 2, 3, 1)),
        ((3, 6, 2, 8), (3, 1), (0, 3, 1, 2)),
        ((3, 2, 8, 6, 4), (2, 3), (0, 2, 3, 1, 4)),
    ],
    ids=["BCHW", "BWCH", "video"],
)
def test_any_layout_by_its_spatial_axes(shape, spatial_axes, to_front):
    plan = plan_with(random_mask(5, (3, 4, 3), False), (8, 6), box=BOX)
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    mixed = np.transpose(mix.apply(plan, images, spatial_axes=spatial_axes), to_front)
    front = np.transpose(images, to_front).reshape(3, 8, 6, -1)
    np.testing.assert_array_equal(mixed.reshape(front.shape), mixed_by_numpy(plan, front))


def test_arrays_of_other_resolutions_read_the_mask_at_their_cells():
    plan = plan_with(random_mask(6, (3, 16, 12), False), (16, 12))
    for sides in ((8, 6), (4, 3), (5, 4), (16, 12)):
        ids = random_images(sides, jnp.int32)
        expected = mixed_by_numpy(replace(plan, sides=sides), ids)
        np.testing.assert_array_equal(mix.apply(plan, ids), expected)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_jit_and_vmap_agree_with_eager(soft):
    images = random_images((8, 6), jnp.uint8)
    plan = plan_with(random_mask(7, (3, 3, 3), soft), (8, 6), ratio=RATIOS)
    both = jax.tree.map(lambda *x: jnp.stack(x), plan, replace(plan, mask=plan.mask[::-1]))
    mapped = jax.jit(jax.vmap(lambda plan: (mix.apply(plan, images), mix.kept_fraction(plan))))
    mixed, kept = mapped(both)
    for i in (0, 1):
        one = jax.tree.map(lambda x, i=i: x[i], both)
        np.testing.assert_array_equal(mixed[i], mix.apply(one, images))
        np.testing.assert_array_equal(mixed[i], jitted(one, images))
        np.testing.assert_allclose(kept[i], mix.kept_fraction(one), rtol=1e-6)


def test_a_plan_that_is_not_chosen_is_empty():
    from cutmix_jax.mix.plan import switched

    images = random_images((8, 6), jnp.float32)
    for soft in (False, True):
        plan = plan_with(random_mask(8, (3, 4, 3), soft), (8, 6))
        mixed = mix.apply(switched(plan, jnp.array([True, False, True])), images)
        expected = mix.apply(plan, images)
        np.testing.assert_array_equal(mixed[1], images[1])
        np.testing.assert_array_equal(mixed[::2], expected[::2])
        empty = switched(plan, jnp.array([False]))
        assert mix.kept_fraction(empty).tolist() == [1] * 3


def test_each_image_may_have_a_plan_of_another_kind():
    from cutmix_jax.mix.plan import select

    key, sides, images = jax.random.key(0), (8, 6), random_images((8, 6), jnp.float32, 6)
    partner = (1, 2, 3, 4, 5, 0)
    plans = [
        mix.sample_cutmix(key, 6, sides, scope="image", partner="reverse"),
        mix.sample_mixup(key, 6, sides, scope="image"),
        plan_with(random_mask(0, (6, 8, 6), False), sides, partner=partner),
        plan_with(random_mask(1, (1, 2, 3), False), sides, partner=partner),
        plan_with(random_mask(2, (6, 3, 4), True), sides, partner=partner),
    ]
    for some in (plans, plans[:4], plans[:1] + plans[2:4], plans[3:0:-1]):
        chosen = jnp.arange(6) % len(some)
        plan = select(chosen, [(plan,) for plan in some])
        mixed, kept = jitted(plan, images), mix.kept_fraction(plan)
        assert (plan.mask.dtype == bool) == (len(some) < 5)
        for i, k in enumerate(chosen):
            np.testing.assert_array_equal(mixed[i], mix.apply(some[k], images)[i])
            alone = jnp.broadcast_to(mix.kept_fraction(some[k]), 6)[i]
            np.testing.assert_allclose(kept[i], alone, rtol=1e-6)
    same = select(jnp.zeros(1, jnp.int32), [(plans[3],), (plans[0],)])
    assert same.mask.shape == (1, 2, 3)


@pytest.mark.parametrize("layer", ["image", "layer1"])
def test_apply_at_a_feature_map(layer):
    images = random_images((8, 6), jnp.float32)
    plan = plan_with(random_mask(9, (1, 8, 6), False), (8, 6), layer=layer)
    expected = mixed_by_numpy(plan, images)
    np.testing.assert_array_equal(mix.apply_at([plan], layer, images), expected)


def test_labels_have_the_weight_lam():
    plan = replace(plan_with(jnp.ones((1, 2, 2), bool), (2, 2)), lam=jnp.array([0.75]))
    labels = mix.mix_labels(plan, jnp.arange(3), 3)
    np.testing.assert_array_equal(labels[0], [0.75, 0.25, 0])


def test_gradients_flow_to_both_sources_and_to_a_soft_mask():
    plan = plan_with(jnp.full((1, 2, 2), 0.25), (2, 2))
    images = jnp.zeros((3, 2, 2)).at[1].set(1)

    def loss(images, mask):
        return mix.apply(replace(plan, mask=mask), images)[0].sum()

    to_images, to_mask = jax.grad(loss, (0, 1))(images, plan.mask)
    assert to_images.sum((1, 2)).tolist() == [3, 1, 0]
    assert to_mask.sum() == 4


WRONG = {
    "another batch": (
        jnp.ones((2, 8, 6), bool),
        r"bool\[2, 8, 6\].*batch of 3.*\[1 or 3, \.\.\.\]",
    ),
    "another number of axes": (jnp.ones((3, 8), bool), "one axis per side"),
    "channels": (jnp.ones((3, 8, 6, 1), bool), "one axis per side"),
    "no cells": (jnp.ones((3, 0, 6), bool), "one axis per side"),
    "integers": (jnp.ones((3, 8, 6), jnp.int32), r"int32\[3, 8, 6\]\. Expected bool, or shares"),
    "above one": (jnp.full((3, 8, 6), 1.5), "values from 1.5 to 1.5.* in \\[0, 1\\]"),
    "NaN": (jnp.full((3, 8, 6), jnp.nan), "values from nan to nan"),
}


@pytest.mark.parametrize(("mask", "message"), WRONG.values(), ids=WRONG)
def test_wrong_masks_are_refused_while_tracing(mask, message):
    plan, images = plan_with(mask, (8, 6)), jnp.zeros((3, 8, 6, 2))
    for call in (lambda: mix.apply(plan, images), lambda: mix.kept_fraction(plan)):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(call)


def test_what_a_mask_cannot_do_is_refused():
    plan = plan_with(jnp.full((3, 8, 6), 0.5), (8, 6))
    with pytest.raises(ValueError, match=r"class ids have no mean.*a mask of bool"):
        mix.apply(plan, jnp.zeros((3, 8, 6), jnp.int32))
    with pytest.raises(ValueError, match=r"paste='window' needs .* but this one has a mask"):
        mix.apply(plan, jnp.zeros((3, 8, 6)), paste="window")


def test_masks_may_be_arrays_of_numpy():
    images, mask = random_images((8, 6), jnp.float32), random_mask(0, (3, 4, 3), True)
    expected = plan_with(mask, (8, 6))
    for other in (np.asarray(mask), np.asarray(mask, np.float64), np.asarray(mask).tolist()):
        plan = replace(expected, mask=other)
        np.testing.assert_array_equal(mix.apply(plan, images), mix.apply(expected, images))
        np.testing.assert_array_equal(mix.kept_fraction(plan), mix.kept_fraction(expected))


def test_a_plan_from_a_mask_weighs_labels_by_what_is_kept():
    mask = jnp.asarray(np.arange(12).reshape(1, 3, 4) < 9)
    plan = mix.plan_from_mask(mask, np.array([2, 0, 1]), (6, 4))
    assert (plan.lam, plan.sides) == (0.25, (6, 4))
    check_mixed(plan, random_images((6, 4), jnp.float32))
    soft = mix.plan_from_mask(jnp.full((3, 4, 4), 0.75), "reverse")
    assert (soft.lam.tolist(), soft.partner.tolist()) == ([0.25] * 3, [2, 1, 0])
    assert soft.sides == (4, 4)
    key = jax.random.key(0)
    drawn = mix.plan_from_mask(mask, "permutation", key=key, batch_size=64)
    assert sorted(drawn.partner.tolist()) == list(range(64))
    assert (drawn.partner != jnp.arange(64)).any()
    rotated = mix.plan_from_mask(mask, "rotate", key=key, batch_size=5).partner
    assert (rotated != jnp.arange(5)).all()


def test_partners_of_all_devices():
    images = random_images((8, 6), jnp.float32, 4)
    mask, partner = random_mask(0, (4, 8, 6), False), np.array([3, 2, 1, 0])
    expected = mix.apply(mix.plan_from_mask(mask, partner), images)

    def step(images, mask, partner):
        return mix.apply(mix.plan_from_mask(mask, partner, across="data"), images)

    parts = [jnp.reshape(x, (2, 2, *x.shape[1:])) for x in (images, mask, partner)]
    mixed = jax.vmap(step, axis_name="data")(*parts)
    np.testing.assert_array_equal(mixed.reshape(images.shape), expected)


def test_plans_from_wrong_masks_and_partners_are_refused():
    mask = jnp.ones((1, 4, 4), bool)
    for partner, options, message in (
        ("permutation", {}, "needs a key"),
        ("revers", {}, "mean 'reverse'"),
        ("reverse", {"across": "data"}, "across must be None"),
        (jnp.ones(3), {}, r"float32\[3\]\. Expected integers \[B\], or one of 'permutation'"),
        (jnp.zeros((3, 1), int), {}, r"int32\[3, 1\]\. Expected integers \[B\]"),
        ([1, 0], {"sides": (4,)}, "one axis per side"),
        ([1, 2], {}, "values from 1 to 2, but 2 examples have the numbers 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            mix.plan_from_mask(mask, partner, **options)
    with pytest.raises(ValueError, match=r"int32\[1, 4, 4\]\. Expected bool"):
        mix.plan_from_mask(mask.astype(int), [1, 0])
    with pytest.raises(ValueError, match=r"class_ids are float32\[1, 2\]\. Expected integers"):
        mix.classmix_mask(jax.random.key(0), jnp.ones((1, 2)), 3)


@pytest.mark.parametrize("ignore", [None, 0, 255])
def test_classmix_takes_half_of_the_classes_of_each_map(ignore):
    maps = np.random.default_rng(0).integers(0, 7, (6, 9, 5)).astype(np.uint8)
    maps[1], maps[2, :, 1:], maps[3], maps[4] = 3, 255, 255, np.minimum(maps[4], 4)
    draw = jax.jit(lambda key: mix.classmix_mask(key, maps, 7, ignore=ignore))
    often = np.zeros(7)
    for seed in range(60):
        mask = np.asarray(draw(jax.random.key(seed)))
        for ids, taken in zip(maps, mask, strict=True):
            present = set(ids.ravel().tolist()) - {ignore, 255}
            chosen = set(ids[taken].tolist())
            assert len(chosen) == -(-len(present) // 2)
            assert chosen <= present
            np.testing.assert_array_equal(taken, np.isin(ids, list(chosen)))
        often += np.isin(np.arange(7), maps[0][mask[0]])
    classes = np.arange(7) != ignore
    expected = 60 * -(-classes.sum() // 2) / classes.sum()
    assert (np.abs(often - expected)[classes] < 4 * np.sqrt(60) / 2).all()


def test_classmix_pastes_ids_as_they_are():
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 4, (3, 8, 6)), jnp.uint8)
    ids = ids.at[:, 0].set(255)
    partner = jnp.array([1, 2, 0])
    mask = mix.classmix_mask(jax.random.key(0), ids[partner], 4, ignore=255)
    plan = mix.plan_from_mask(mask, partner)
    mixed = mix.apply(plan, ids)
    np.testing.assert_array_equal(mixed, np.where(mask, ids[partner], ids))
    assert not mask[:, 0].any()
    np.testing.assert_array_equal(plan.lam, np.float32((~np.asarray(mask)).mean((1, 2))))
