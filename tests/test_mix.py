"""Properties of pixels and labels under each mix. Each test catches a mutant.

The mutants are in `mix_mutants.py`, under the names of the tests. `test_mix_mutants.py` runs them.
"""

import math
import operator
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutmix_jax import mix

quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**31 - 1)

# One compilation per case: batches of 1 and odd sizes; one pixel, one channel, odd, not square.
CASES = {
    "cutmix": (mix.sample_cutmix, {}, (4, 8, 8, 3), jnp.uint8),
    "cutmix, box of the paper": (mix.sample_cutmix, {"box": "paper"}, (3, 7, 5, 1), jnp.float32),
    "cutmix, batch of 1": (mix.sample_cutmix, {"partner": "rotate"}, (1, 6, 7, 2), jnp.uint8),
    "cutmix, one pixel": (mix.sample_cutmix, {"partner": "reverse"}, (2, 1, 1, 1), jnp.int32),
    "cutmix, each image": (
        mix.sample_cutmix,
        {"scope": "image", "partner": "rotate"},
        (5, 2, 9, 3),
        jnp.bfloat16,
    ),
    "cutmix, pairs": (mix.sample_cutmix, {"scope": "pair"}, (5, 6, 4, 1), jnp.int32),
    "cutmix, inside": (
        mix.sample_cutmix,
        {"scope": "image", "placement": "inside", "min_ratio": 0.2, "max_ratio": 0.7},
        (3, 10, 9, 1),
        jnp.uint8,
    ),
    "cutmix, gaussian": (
        mix.sample_cutmix,
        {"placement": "gaussian", "box": "paper", "scope": "image"},
        (3, 9, 6, 1),
        jnp.float32,
    ),
    "cutmix, fixed size": (mix.sample_cutmix, {"size": (2, 3)}, (3, 5, 4, 1), jnp.uint8),
    "mixup": (mix.sample_mixup, {}, (3, 5, 4, 2), jnp.float32),
    "mixup, uint8": (mix.sample_mixup, {"scope": "image"}, (4, 3, 3, 1), jnp.uint8),
    "cutout": (mix.sample_cutout, {"fill": 7, "size": 3}, (5, 7, 6, 1), jnp.uint8),
    "erasing": (mix.sample_erasing, {"fill": 7, "area": (0.1, 0.5)}, (4, 7, 6, 2), jnp.uint8),
}


def random_images(seed, shape, dtype):
    pixels = np.random.default_rng(seed).integers(0, 256, shape)
    return jnp.asarray(pixels, dtype)


def images_by_numpy(plan, images):
    """The reference: one example at a time, with slice assignment, in float64."""
    images = np.asarray(images)
    mixed = images.copy()
    for i, partner in enumerate(np.asarray(plan.partner)):
        if plan.ratio is not None:
            ratio = np.float64(plan.ratio[i % len(plan.ratio)])
            blend = ratio * images[i].astype(float) + (1 - ratio) * images[partner].astype(float)
            mixed[i] = np.round(blend) if images.dtype == np.uint8 else blend
        box = np.asarray(plan.box)[i % len(plan.box)]
        region = tuple(slice(low, high) for low, high in box.T)
        mixed[i][region] = images[partner][region] if plan.fill is None else plan.fill
    return mixed


def kept_by_numpy(plan):
    """The pixels outside each box, counted one by one."""
    kept = []
    for box in np.asarray(plan.box):
        canvas = np.ones(plan.sides, bool)
        canvas[tuple(slice(low, high) for low, high in box.T)] = False
        kept.append(canvas.sum())
    return np.array(kept)


@quick
@given(case=st.sampled_from(list(CASES)), alpha=st.floats(0.1, 4), seed=seeds)
def test_pixels_come_from_the_plan(case, alpha, seed):
    _, _, shape, dtype = CASES[case]
    images = random_images(seed, shape, dtype)
    mixed, plan = mixed_by_case(case)(jax.random.key(seed), images, alpha)

    assert mixed.dtype == dtype
    expected = images_by_numpy(plan, images)
    if plan.ratio is None:
        np.testing.assert_array_equal(mixed, expected)
    else:
        tolerance = 1 if dtype == jnp.uint8 else 1e-4  # a half may round to either side
        np.testing.assert_allclose(mixed.astype(float), expected.astype(float), atol=tolerance)


@quick
@given(case=st.sampled_from(list(CASES)), alpha=st.floats(0.1, 4), seed=seeds)
def test_share_and_lam_are_the_pixels_kept(case, alpha, seed):
    _, _, shape, dtype = CASES[case]
    _, plan = mixed_by_case(case)(jax.random.key(seed), random_images(seed, shape, dtype), alpha)
    expected = (kept_by_numpy(plan) / math.prod(plan.sides)).astype(np.float32)
    if plan.ratio is not None:
        expected = expected * np.asarray(plan.ratio)
    np.testing.assert_array_equal(jax.jit(mix.kept_fraction)(plan), expected)
    np.testing.assert_array_equal(plan.lam, 1 if plan.fill is not None else expected)


@quick
@given(case=st.sampled_from(list(CASES)), seed=seeds)
def test_boxes_lie_inside_and_partners_in_the_batch(case, seed):
    _, options, shape, dtype = CASES[case]
    _, plan = mixed_by_case(case)(jax.random.key(seed), random_images(0, shape, dtype), 1.0)
    low, high = np.moveaxis(np.asarray(plan.box), 1, 0)
    assert (low >= 0).all()
    assert (high <= plan.sides).all()
    assert (low <= high).all()
    assert sorted(plan.partner.tolist()) == list(range(shape[0]))
    if options.get("partner") == "rotate" and shape[0] > 1:
        assert (plan.partner != np.arange(shape[0])).all()
    if options.get("scope") == "pair":
        np.testing.assert_array_equal(plan.partner[plan.partner], np.arange(shape[0]))
        np.testing.assert_array_equal(plan.box[plan.partner], plan.box)
        np.testing.assert_array_equal(plan.lam[plan.partner], plan.lam)
    if options.get("placement") == "inside":
        lengths = np.round(np.array(plan.sides) * 0.2), np.round(np.array(plan.sides) * 0.7)
        mixed = plan.lam < 1
        assert ((high - low)[mixed] >= lengths[0]).all()
        assert ((high - low)[mixed] <= lengths[1]).all()


_mixed = {}


def mixed_by_case(case):
    if case not in _mixed:
        sampler, options, shape, _ = CASES[case]

        @jax.jit
        def mixed(key, images, alpha):
            drawn = {} if "fill" in options else {"alpha": alpha}
            plan = sampler(key, shape[0], shape[1:3], **drawn, **options)
            return mix.apply(plan, images, paste="mask" if plan.ratio is None else "auto"), plan

        _mixed[case] = mixed
    return _mixed[case]


BOXES = {
    "empty": [[3, 4], [3, 4]],
    "empty in height alone": [[3, 0], [3, 11]],
    "one pixel": [[6, 10], [7, 11]],
    "low edge": [[0, 0], [2, 3]],
    "high edge": [[4, 8], [7, 11]],
    "long and thin": [[2, 0], [3, 11]],
    "full": [[0, 0], [7, 11]],
}


def plan_with(box, partner, sides, **fields):
    box = jnp.asarray(box, jnp.int32).reshape(-1, 2, len(sides))
    plan = mix.Plan(partner=jnp.asarray(partner, jnp.int32), box=box, lam=None, sides=sides)
    fields = {"lam": mix.kept_fraction(plan)} | fields
    return mix.Plan(partner=plan.partner, box=box, sides=sides, **fields)


@jax.jit
def window_and_mask(plan, images):
    return mix.apply(plan, images, paste="window"), mix.apply(plan, images, paste="mask")


def same_bits(plan, images):
    expected = images_by_numpy(plan, images)
    for mixed in window_and_mask(plan, images):
        np.testing.assert_array_equal(np.asarray(mixed).view(np.uint32), expected.view(np.uint32))


def images_with_nan(shape):
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    images[:, ::2, ::3] = np.nan
    return images


@pytest.mark.parametrize("fill", [None, 0.5])
@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_window_and_mask_give_the_same_bits(box, fill):
    same_bits(plan_with(box, [1, 2, 0], (7, 11), fill=fill), images_with_nan((3, 7, 11, 2)))


@quick
@given(st.data())
def test_window_and_mask_give_the_same_bits_on_random_boxes(data):
    edges = [sorted(data.draw(st.tuples(*[st.integers(0, side)] * 2))) for side in (7, 11)]
    same_bits(plan_with(np.transpose(edges), [1, 2, 0], (7, 11)), images_with_nan((3, 7, 11, 2)))


def test_nan_outside_the_pasted_region_stays_out():
    images = jnp.stack([jnp.zeros((6, 6, 1)), jnp.full((6, 6, 1), jnp.nan).at[2:4, 1:5].set(7.0)])
    for paste in ("window", "mask"):
        mixed = mix.apply(plan_with([[2, 1], [4, 5]], [1, 0], (6, 6)), images, paste=paste)
        assert jnp.isfinite(mixed[0]).all()
        assert mixed[0].sum() == 7 * 8


def test_nan_of_a_partner_without_weight_stays_out_of_a_blend():
    plan = plan_with([[0, 0], [0, 0]], [1, 0], (2, 2), ratio=jnp.array([1.0, 0.5]))
    mixed = mix.apply(plan, jnp.stack([jnp.ones((2, 2)), jnp.full((2, 2), jnp.nan)]))
    assert (mixed[0] == 1).all()
    labels = mix.mix_values(plan, jnp.array([1.0, jnp.nan]))
    assert labels[0] == 1


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param(jnp.array([0, 1]), id="class ids"),
        pytest.param(jnp.array([0, 1], jnp.uint8), id="class ids, uint8"),
        pytest.param(np.eye(3)[:2], id="rows, float64 of NumPy"),
        pytest.param(jnp.eye(3, dtype=jnp.bfloat16)[:2], id="rows, bfloat16"),
        pytest.param(jnp.eye(3, dtype=jnp.int32)[:2], id="multi-hot, int"),
        pytest.param(jnp.eye(3, dtype=bool)[:2], id="multi-hot, bool"),
    ],
)
def test_lam_is_the_weight_of_the_own_label(labels):
    plan = plan_with([[0, 0], [1, 4]], [1, 0], (4, 4))
    mixed = mix.mix_labels(plan, labels, 3)
    np.testing.assert_array_equal(mixed, [[0.75, 0.25, 0], [0.25, 0.75, 0]])
    assert mixed.dtype == jnp.float32


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.uint32])
def test_class_ids_of_any_dtype_meet_any_number_of_classes(dtype):
    plan = plan_with([[0, 0], [1, 4]], [1, 0], (4, 4))
    mixed = np.asarray(mix.mix_labels(plan, np.array([3, 100], dtype), 70_000))
    rows, classes = np.nonzero(mixed)
    assert (rows.tolist(), classes.tolist()) == ([0, 0, 1, 1], [3, 100, 3, 100])
    assert mixed[0, [3, 100]].tolist() == mixed[1, [100, 3]].tolist() == [0.75, 0.25]


@pytest.mark.parametrize("call", [mix.cutmix, mix.mixup])
def test_narrow_class_ids_in_one_call(call):
    ids = np.array([3, 7, 3, 7], np.uint8)
    _, labels, _ = call(jax.random.key(0), jnp.zeros((4, 8, 8, 3)), ids, num_classes=1000)
    np.testing.assert_allclose(labels.sum(1), 1)
    assert set(np.nonzero(np.asarray(labels))[1]) == {3, 7}


@quick
@given(lam=st.floats(0, 1, width=32), seed=seeds)
def test_labels_sum_to_one(lam, seed):
    soft = np.random.default_rng(seed).dirichlet(np.ones(5), 4).astype(np.float32)
    plan = plan_with([[0, 0], [0, 0]], [2, 0, 1, 3], (4, 4), lam=jnp.full(1, lam, jnp.float32))
    np.testing.assert_allclose(mix.mix_labels(plan, soft).sum(-1), 1, atol=1e-6)
    expected = lam * soft + (1 - lam) * soft[np.asarray(plan.partner)]
    np.testing.assert_allclose(mix.mix_labels(plan, soft), expected, atol=1e-6)


def test_mixing_losses_equals_mixing_labels_for_cross_entropy():
    logits = jax.random.normal(jax.random.key(0), (6, 5))
    labels = jnp.arange(6) % 5
    plan = mix.sample_cutmix(jax.random.key(1), 6, (9, 9), scope="image")
    log_probs = jax.nn.log_softmax(logits)

    def loss_fn(labels):
        return -jnp.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0]

    of_mixed_labels = -(mix.mix_labels(plan, labels, 5) * log_probs).sum(-1)
    np.testing.assert_allclose(mix.mix_losses(plan, loss_fn, labels), of_mixed_labels, rtol=1e-5)
    with pytest.raises(ValueError, match=r"shape \(\), expected one loss per example, \(6,\)"):
        mix.mix_losses(plan, lambda labels: loss_fn(labels).mean(), labels)


def test_lam_is_rounded_once_under_jit():
    # XLA's division by a constant is off by one unit for one in four areas of such sizes.
    kept = np.arange(225)
    boxes = np.stack([np.zeros((225, 2)), np.stack([225 - kept, np.full(225, 225)], 1)], 1)
    expected = (kept.astype(np.float64) / 225).astype(np.float32)
    plan = plan_with(boxes, kept, (225, 225))
    np.testing.assert_array_equal(jax.jit(mix.kept_fraction)(plan), expected)


def test_a_batch_is_mixed_in_all_its_parts():
    key = jax.random.key(4)
    image = jax.random.normal(key, (3, 16, 12, 3))
    batch = {
        "image": image.astype(jnp.bfloat16),
        "depth": image[..., 0],
        "mask": jax.random.randint(key, (3, 16, 12), 0, 20, jnp.int32),
        "quarter": jax.random.randint(key, (3, 4, 3), 0, 20, jnp.uint8),
    }
    plan = plan_with([[4, 3], [13, 9]], [1, 2, 0], (16, 12))
    mixed = mix.apply(plan, batch)
    for name in ("image", "depth", "mask"):
        np.testing.assert_array_equal(mixed[name], images_by_numpy(plan, batch[name]), name)
    # A cell of 4 x 4 pixels is the partner's if its center is. Rows 4..13 hold centers of cells
    # 1 and 2 (at 6 and 10), columns 3..9 those of cell 1 (at 6).
    quarter = plan_with([[1, 1], [3, 2]], [1, 2, 0], (4, 3))
    np.testing.assert_array_equal(mixed["quarter"], images_by_numpy(quarter, batch["quarter"]))


def test_boxes_of_narrow_dtypes_are_as_good_as_wide_ones():
    images = random_images(0, (2, 250, 4), jnp.int32)
    box, partner = np.array([[[100, 1], [230, 3]]]), np.array([1, 0])
    wide = plan_with(box, partner, (250, 4))
    narrow = mix.Plan(
        partner=jnp.asarray(partner, jnp.uint8),
        box=jnp.asarray(box, jnp.uint8),
        lam=mix.kept_fraction(wide),
        sides=(250, 4),
    )
    np.testing.assert_array_equal(mix.kept_fraction(narrow), mix.kept_fraction(wide))
    for array in (images, images[:, ::2, ::2]):
        for paste in ("window", "mask"):
            expected = mix.apply(wide, array, paste="mask")
            np.testing.assert_array_equal(mix.apply(narrow, array, paste=paste), expected)


def test_a_smaller_mask_of_a_long_series():
    low, high = 1_000_000, 3_000_001
    plan = plan_with([[low], [high]], [1, 0], (4_000_000,))
    mixed = mix.apply(plan, np.array([[0] * 1_000_000, [1] * 1_000_000]), spatial_axes=1)
    (pasted,) = np.nonzero(np.asarray(mixed[0]))
    # Cell i is in the box if its center, pixel 4 i + 2, is.
    assert (pasted[0], pasted[-1]) == (250_000, 749_999)
    unlike = mix.sample_cutmix(jax.random.key(0), 2, (3_999_999,))
    with pytest.raises(ValueError, match="need more than 32 bits"):
        mix.apply(unlike, jnp.zeros((2, 1_000_000)), spatial_axes=1)


@pytest.mark.parametrize(
    ("shape", "spatial_axes", "sides"),
    [
        ((3, 20, 2), (1,), (20,)),
        ((3, 2, 20), (-1,), (20,)),
        ((3, 2, 8, 6), (2, 3), (8, 6)),
        ((3, 2, 8, 6), (-2, -1), (8, 6)),
        ((3, 5, 8, 6, 2), (2, 3), (8, 6)),
        ((3, 6, 5, 4, 1), (1, 2, 3), (6, 5, 4)),
    ],
    ids=["series", "series, channels first", "BCHW", "BCHW from the end", "video", "volume"],
)
def test_any_layout_by_its_spatial_axes(shape, spatial_axes, sides):
    images = random_images(0, shape, jnp.float32)
    plan = mix.sample_cutmix(jax.random.key(5), 3, sides)
    axes = [axis % len(shape) for axis in spatial_axes]
    to_front = (0, *axes, *(a for a in range(1, len(shape)) if a not in axes))
    expected = images_by_numpy(plan, np.transpose(images, to_front))
    assert 0 < plan.lam[0] < 1
    for paste in ("window", "mask"):
        mixed = mix.apply(plan, images, spatial_axes=spatial_axes, paste=paste)
        np.testing.assert_array_equal(np.transpose(mixed, to_front), expected)


def test_cutout_fills_with_a_value_per_channel():
    images = random_images(0, (2, 5, 4, 3), jnp.uint8)
    plan = plan_with([[1, 0], [4, 2]], [0, 1], (5, 4), fill=jnp.array([1.0, 2.4, 3.6]))
    expected = np.array(images)
    expected[:, 1:4, 0:2] = [1, 2, 4]
    np.testing.assert_array_equal(mix.apply(plan, images), expected)


@pytest.mark.parametrize("fill", [(1.0, 2.4, 3.6), [1.0, 2.4, 3.6], np.float64([1, 2.4, 3.6])])
def test_fills_per_channel_may_be_lists(fill):
    images = random_images(0, (2, 5, 4, 3), jnp.uint8)
    key, expected = jax.random.key(0), jnp.array([1.0, 2.4, 3.6])
    wanted, _ = mix.cutout(key, images, fill=expected, size=2)
    np.testing.assert_array_equal(mix.cutout(key, images, fill=fill, size=2)[0], wanted)
    plan = mix.sample_cutout(key, 2, (5, 4), fill=fill, size=2)
    np.testing.assert_array_equal(mix.apply(plan, images), wanted)
    mixing = mix.create_mix("cutout", fill=fill, size=np.array(2))
    mixed = jax.jit(lambda images: mix.apply_at(mixing.sample(key, 2, (5, 4)), "image", images))
    np.testing.assert_array_equal(mixed(images), wanted)
    by_hand = replace(plan, fill=tuple(fill))
    np.testing.assert_array_equal(mix.apply(by_hand, images), wanted)


@pytest.mark.parametrize("fill", [300, -1, math.nan, [0, 0, 255.6]])
def test_a_fill_that_pixels_cannot_hold_is_refused(fill):
    key, images = jax.random.key(0), jnp.zeros((2, 5, 4, 3), jnp.uint8)
    plan = mix.sample_cutout(key, 2, (5, 4), fill=fill)
    for call in (lambda: mix.apply(plan, images), lambda: mix.cutout(key, images, fill=fill)):
        with pytest.raises(ValueError, match=r"does not fit into an array of uint8\. .* 0 to 255"):
            call()
        with pytest.raises(ValueError, match=r"does not fit into an array of uint8\. .* 0 to 255"):
            jax.eval_shape(call)


def test_other_wrong_fills_are_refused():
    key, images = jax.random.key(0), jnp.zeros((2, 5, 4, 3))
    with pytest.raises(ValueError, match=r"shape \(4,\) does not broadcast .* \(2, 5, 4, 3\)"):
        mix.cutout(key, images, fill=[1, 2, 3, 4])
    for fill in (None, "gray"):
        with pytest.raises(ValueError, match="fill must be an array of numbers"):
            mix.cutout(key, images, fill=fill)
    with pytest.raises(ValueError, match="its rows differ in length"):
        mix.cutout(key, images, fill=[[1, 2], [3]])


@pytest.mark.parametrize(
    ("fill", "axes"), [("noise", (1, 2)), ("color", (1, 2)), ("color", (2, 3))]
)
def test_noise_fills_the_box_and_nothing_else(fill, axes):
    images = np.full((64, 12, 12, 12), 7.0, np.float32)
    plan = mix.sample_erasing(jax.random.key(0), 64, (12, 12), fill=fill)
    plan = replace(plan, fill=replace(plan.fill, mean=3.0, std=np.float32(0.5)))
    mixed = np.asarray(mix.apply(plan, images, spatial_axes=axes))
    channels_last = np.moveaxis(mixed, axes, (1, 2))
    values = []
    for image, (low, high) in zip(channels_last, np.asarray(plan.box), strict=True):
        inside = np.zeros((12, 12), bool)
        inside[low[0] : high[0], low[1] : high[1]] = True
        assert (image[~inside] == 7).all()
        values.append(image[inside] if fill == "noise" else np.unique(image[inside], axis=0))
        assert fill == "noise" or len(values[-1]) == 1
    z = (np.concatenate(values).ravel() - 3) / 0.5
    assert len(np.unique(z)) > 0.99 * len(z)  # each has its own
    assert abs(z.mean()) < 4 / np.sqrt(len(z))
    assert abs(z.std() - 1) < 4 / np.sqrt(2 * len(z))


def test_noise_is_refused_where_it_has_no_scale():
    plan = mix.sample_erasing(jax.random.key(0), 2, (4, 4), fill="noise", scope="batch")
    with pytest.raises(ValueError, match=r"cannot fill an array of uint8\. Normalize"):
        jax.eval_shape(lambda: mix.apply(plan, jnp.zeros((2, 4, 4, 3), jnp.uint8)))
    with pytest.raises(ValueError, match="the plan fills with noise"):
        mix.apply(plan, jnp.zeros((2, 4, 4, 3)), paste="window")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"area": (0.5, 0.2)}, r"area must be \(low, high\) with 0 < low <= high <= 1, but .*0.5"),
        ({"area": 0.5}, r"area must be \(low, high\), but got 0.5"),
        ({"aspect": (0, 2)}, r"aspect must be .* 0 < low <= high, but"),
        ({"fill": "nois"}, "mean 'noise'"),
        ({"scope": "pair"}, "scope 'pair' is unknown"),
        ({"prob": 2}, "prob must be"),
        ({"sides": (8,)}, r"height and width, .* \(8,\)"),
    ],
)
def test_wrong_options_of_erasing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mix.sample_erasing(jax.random.key(0), 2, **{"sides": (8, 8)} | options)


def test_complex_arrays_keep_both_of_their_parts():
    waves = np.array([[1 + 2j] * 4, [3 - 4j] * 4], np.complex64)
    plan = plan_with([[0], [0]], [1, 0], (4,), ratio=jnp.array([0.25]), lam=jnp.array([0.25]))
    expected = 0.25 * waves + 0.75 * waves[::-1]
    np.testing.assert_array_equal(mix.apply(plan, waves, spatial_axes=1), expected)
    np.testing.assert_array_equal(mix.mix_values(plan, waves), expected)


def test_gradients_flow_to_both_sources():
    plan = plan_with([[0, 0], [2, 2]], [1, 0], (4, 4))
    for paste in ("window", "mask"):
        gradient = jax.grad(lambda x, paste=paste: mix.apply(plan, x, paste=paste)[0].sum())(
            jnp.zeros((2, 4, 4))
        )
        assert gradient[0].sum() == 12
        assert gradient[1].sum() == 4


def test_same_key_same_plan_and_no_batch_is_changed():
    images = random_images(0, (4, 8, 8, 3), jnp.uint8)
    before = np.array(images)
    first, second = (
        mix.cutmix(jax.random.key(7), images, jnp.arange(4), num_classes=4) for _ in range(2)
    )
    jax.tree.map(np.testing.assert_array_equal, first, second)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("scope", ["batch", "pair", "image"])
def test_jit_and_vmap_agree_with_eager(scope):
    def draw(key):
        return mix.sample_cutmix(key, 5, (9, 7), alpha=0.7, prob=0.8, scope=scope)

    keys = jax.random.split(jax.random.key(0), 3)
    jitted, mapped = jax.jit(draw), jax.jit(jax.vmap(draw))(keys)
    for i, key in enumerate(keys):
        from_vmap = jax.tree.map(operator.itemgetter(i), mapped)
        jax.tree.map(np.testing.assert_array_equal, jitted(key), from_vmap)
    jax.tree.map(np.testing.assert_array_equal, draw(keys[0]), jitted(keys[0]))


def test_one_call_is_plan_apply_and_labels():
    key, images = jax.random.key(9), random_images(0, (4, 3, 8, 6), jnp.uint8)
    for call, sampler, options in (
        (mix.cutmix, mix.sample_cutmix, {"scope": "image", "size": [3, 2]}),
        (mix.mixup, mix.sample_mixup, {"alpha": 0.4}),
    ):
        mixed, labels, plan = call(
            key, images, jnp.arange(4), num_classes=4, spatial_axes=(2, 3), **options
        )
        expected = sampler(key, 4, (8, 6), **options)
        jax.tree.map(np.testing.assert_array_equal, plan, expected)
        np.testing.assert_array_equal(mixed, mix.apply(plan, images, spatial_axes=(2, 3)))
        np.testing.assert_array_equal(labels, mix.mix_labels(plan, jnp.arange(4), 4))
    mixed, plan = mix.cutout(key, images, spatial_axes=(2, 3), fill=3, size=2)
    np.testing.assert_array_equal(mixed, mix.apply(plan, images, spatial_axes=(2, 3)))


def test_only_new_shapes_recompile():
    from cutmix_jax.mix import calls

    images, labels = random_images(0, (2, 5, 5, 1), jnp.uint8), jnp.arange(2)
    before = calls._mix_jitted._cache_size()
    for seed, one in enumerate((1, 0.5, np.float64(1), np.float32(1), jnp.float32(1))):
        mix.cutmix(jax.random.key(seed), images + seed, labels, num_classes=2, alpha=one, prob=one)
    assert calls._mix_jitted._cache_size() == before + 1

    traces = []

    @jax.jit
    def step(key, progress):
        traces.append(1)
        return mix.create_mix("scheduled_cutmix").sample(key, 2, (5, 5), progress=progress)

    for i in range(3):
        step(jax.random.key(i), i / 3)
    assert len(traces) == 1


def test_constants_of_a_jitted_step_are_not_tracers():
    images, labels, half = jnp.zeros((3, 4, 4, 1)), jnp.arange(3), jnp.float32(0.5)
    options = {"alpha": half, "min_ratio": half / 2, "max_ratio": half, "num_classes": 3}
    jax.eval_shape(lambda key: mix.cutmix(key, images, labels, **options), jax.random.key(0))


IMAGES = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32)
CLASS_IDS = jax.ShapeDtypeStruct((4,), jnp.int32)


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


WRONG_CALLS = {
    "labels of another batch": (IMAGES, floats(3, 5), {}, r"float32\[3, 5\], expected \[4\]"),
    "labels of three axes": (IMAGES, floats(4, 5, 2), {}, r"float32\[4, 5, 2\], expected"),
    "ids without num_classes": (IMAGES, CLASS_IDS, {}, r"int32\[4\].*need num_classes"),
    "floating class ids": (IMAGES, floats(4), {"num_classes": 5}, "neither class ids"),
    "rows of another width": (IMAGES, floats(4, 3), {"num_classes": 5}, "num_classes=5"),
    "no spatial axes": (floats(4, 8), CLASS_IDS, {}, r"images of shape \(4, 8\).*\(1, 2\)"),
    "one axis twice": (IMAGES, CLASS_IDS, {"spatial_axes": (1, 1)}, r"no axes \(1, 1\)"),
    "the batch as an axis": (IMAGES, CLASS_IDS, {"spatial_axes": (0, 1)}, r"no axes \(0, 1\)"),
    "alpha zero": (IMAGES, CLASS_IDS, {"alpha": 0}, "alpha must be above 0"),
    "alpha nan": (IMAGES, CLASS_IDS, {"alpha": math.nan}, "alpha .* got nan"),
    "alpha per image": (IMAGES, CLASS_IDS, {"alpha": np.ones(4)}, r"shape is \(4,\)"),
    "prob above one": (IMAGES, CLASS_IDS, {"prob": 2}, "prob .* at most 1.*2"),
    "min_ratio below zero": (IMAGES, CLASS_IDS, {"min_ratio": -0.1}, "min_ratio .* at least 0"),
    "max_ratio above one": (IMAGES, CLASS_IDS, {"max_ratio": 1.5}, "max_ratio .* at most 1"),
    "ratios crossed": (
        IMAGES,
        CLASS_IDS,
        {"min_ratio": 0.5, "max_ratio": 0.2},
        "min_ratio=0.5 is above max_ratio=0.2",
    ),
    "lengths of another kind": (IMAGES, CLASS_IDS, {"lengths": "unifrm"}, "mean 'uniform'"),
    "lengths of a fixed size": (
        IMAGES,
        CLASS_IDS,
        {"lengths": "uniform", "size": 4},
        "lengths='uniform' samples the box, but size=4 fixes it",
    ),
    "box too large": (IMAGES, CLASS_IDS, {"size": 9}, r"size=9 does not fit .* \(8, 8\)"),
    "sizes for three sides": (IMAGES, CLASS_IDS, {"size": (2, 2, 2)}, r"size=\(2, 2, 2\)"),
    "unknown box": (IMAGES, CLASS_IDS, {"box": "papr"}, "mean 'paper'"),
    "unknown scope": (IMAGES, CLASS_IDS, {"scope": "images"}, "mean 'image'"),
    "pairs by rotation": (
        IMAGES,
        CLASS_IDS,
        {"scope": "pair", "partner": "rotate"},
        "scope='pair': partner 'rotate'.*'permutation', 'reverse'",
    ),
    "across no devices": (IMAGES, CLASS_IDS, {"across_devices": True}, "needs axis_name"),
    "num_classes of another kind": (IMAGES, CLASS_IDS, {"num_classes": 10.5}, "num_classes must"),
    "no classes": (IMAGES, CLASS_IDS, {"num_classes": 0}, "num_classes must be .* at least 1"),
    "ids with one axis too many": (
        IMAGES,
        jax.ShapeDtypeStruct((4, 1), jnp.int32),
        {},
        r"int32\[4, 1\]: class ids must be \[B\], with num_classes",
    ),
    "sizes in a matrix": (IMAGES, CLASS_IDS, {"size": np.ones((2, 2))}, "size must be one number"),
    "a word as an axis": (IMAGES, CLASS_IDS, {"spatial_axes": "hw"}, "spatial_axes must be whole"),
    "window for many boxes": (
        IMAGES,
        CLASS_IDS,
        {"scope": "image", "paste": "window"},
        "paste='window' needs one box .* has 4",
    ),
}


@pytest.mark.parametrize(
    ("images", "labels", "options", "message"), WRONG_CALLS.values(), ids=WRONG_CALLS
)
def test_wrong_calls_raise_while_tracing(images, labels, options, message):
    if labels is CLASS_IDS and "num_classes" not in message:
        options = {"num_classes": 5} | options
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda x, y: mix.cutmix(jax.random.key(0), x, y, **options), images, labels)


def test_class_ids_outside_the_classes_raise_where_they_are_known():
    images = jnp.zeros((3, 4, 4, 1))
    for labels, found in (([0, 1, 5], "from 0 to 5"), ([-1, 1, 2], "from -1 to 2")):
        with pytest.raises(ValueError, match=f"{found}, but num_classes=5 allows 0 to 4"):
            mix.cutmix(jax.random.key(0), images, jnp.array(labels), num_classes=5)


def test_integer_rows_other_than_zeros_and_ones_raise_where_they_are_known():
    key, images, rows = jax.random.key(0), jnp.zeros((2, 4, 4, 1)), np.array([[0, 1, 2], [1, 0, 0]])
    plan = mix.sample_cutmix(key, 2, (4, 4))
    for labels in (rows, jnp.asarray(rows), rows.astype(np.uint8), rows.tolist(), -rows):
        for call in (
            lambda labels: mix.cutmix(key, images, labels),
            lambda labels: mix.mix_labels(plan, labels),
        ):
            with pytest.raises(ValueError, match=r"integers from .* expected 0 and 1"):
                call(labels)
    np.testing.assert_array_equal(mix.mix_labels(plan, [[1], [0]], 1).sum(), 1)


def test_arguments_of_other_kinds_work():
    key, images, ids = jax.random.key(0), np.zeros((4, 8, 8, 3), np.float32), [0, 1, 2, 3]
    expected = mix.cutmix(key, images, jnp.array(ids), num_classes=10, size=(4, 2))
    for size in (np.array([4, 2]), [4, 2], jnp.array([4.0, 2.0])):
        found = mix.cutmix(key, images, tuple(ids), num_classes=np.int64(10), size=size)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        assert "4 x 2" in mix.create_mix("cutmix", size=size).describe()
    inside = jax.jit(lambda *ids: mix.mix_labels(expected[2], list(ids), 10.0))(*ids)
    np.testing.assert_array_equal(inside, expected[1])
    series = mix.cutmix(key, images[..., 0, 0], ids, num_classes=10, spatial_axes=1)
    plan = mix.sample_cutmix(key, np.uint8(4), np.array([8]))
    jax.tree.map(np.testing.assert_array_equal, series[2], plan)


def test_useless_arguments_are_refused_in_a_sentence():
    key, images, ids = jax.random.key(0), jnp.zeros((4, 8, 8, 3)), [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"images must be one array .* a list\. Stack them"):
        mix.cutmix(key, list(images), ids, num_classes=4)
    with pytest.raises(ValueError, match=r"one number per spatial axis, as in \(32, 32\).* 32"):
        mix.sample_cutmix(key, 4, 32)
    with pytest.raises(ValueError, match="labels must be an array of numbers"):
        mix.cutmix(key, images, ["a", "b", "c", "d"], num_classes=4)
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 0"):
        mix.sample_mixup(key, -1, (8, 8))
    with pytest.raises(ValueError, match=r"num_classes must be .* known while tracing"):
        jax.jit(lambda n: mix.cutmix(key, images, ids, num_classes=n))(4)
    with pytest.raises(ValueError, match=r"size must be .* known while tracing"):
        jax.jit(lambda size: mix.cutmix(key, images, ids, num_classes=4, size=size))(4)
    with pytest.raises(ValueError, match="more pixels than fit"):
        mix.sample_cutmix(key, 4, np.array([1 << 16, 1 << 16], np.int32))


@pytest.mark.parametrize(
    ("call", "scope", "partner"),
    [
        (mix.cutmix, "batch", "permutation"),
        (mix.cutmix, "pair", "permutation"),
        (mix.cutmix, "image", "rotate"),
        (mix.mixup, "image", "permutation"),
    ],
)
def test_a_batch_of_none_stays_one(call, scope, partner):
    images, labels = jnp.zeros((0, 4, 4, 1)), jnp.zeros(0, jnp.int32)
    options = {"scope": scope, "partner": partner, "num_classes": 3}
    mixed, rows, plan = call(jax.random.key(0), images, labels, **options)
    assert (mixed.shape, rows.shape, plan.partner.shape) == (images.shape, (0, 3), (0,))


def test_a_plan_refuses_images_it_was_not_sampled_for():
    plan = mix.sample_cutmix(jax.random.key(0), 4, (32, 32))
    with pytest.raises(ValueError, match=r"batch of 3.*batch of 4"):
        mix.apply(plan, jnp.zeros((3, 32, 32, 1)))
    with pytest.raises(ValueError, match=r"sides \(3, 32\).*sides \(32, 32\)"):
        mix.apply(plan, jnp.zeros((4, 3, 32, 32)))
    with pytest.raises(ValueError, match="names 3 axes"):
        mix.apply(plan, jnp.zeros((4, 8, 32, 32)), spatial_axes=(1, 2, 3))
    with pytest.raises(ValueError, match=r"values have shape \(3,\), expected \[4, ...\]"):
        mix.mix_values(plan, jnp.zeros(3))
    blend = mix.sample_mixup(jax.random.key(0), 4, (32, 32))
    with pytest.raises(ValueError, match="class ids have no mean"):
        mix.apply(blend, jnp.zeros((4, 32, 32), jnp.int32))
    with pytest.raises(ValueError, match="sides must be a whole number of at least 1"):
        mix.sample_cutmix(jax.random.key(0), 4, (32, 0))
    with pytest.raises(ValueError, match="more pixels than fit"):
        mix.sample_cutmix(jax.random.key(0), 4, (1 << 16, 1 << 16))


def test_importing_it_loads_jax_and_nothing_else():
    script = (
        "import sys, jax; before = set(sys.modules); import cutmix_jax.mix;"
        "loaded = {name.split('.')[0] for name in set(sys.modules) - before};"
        "print(*sorted(loaded - sys.stdlib_module_names))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert loaded.stdout.split() == ["cutmix_jax"], loaded.stderr
