"""ResizeMix: the whole partner, resized into a box, against Pillow and against NumPy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from cutmix_jax import mix
from cutmix_jax.mix import resize
from tests.test_mix import plan_with
from tests.test_mix_draws import close, draw

KEY = jax.random.key(0)


def framed_plan(frames, partner, sides):
    """A plan that resizes partners into the frames, which may reach outside the image."""
    frames = np.asarray(frames, np.int32).reshape(-1, 2, len(sides))
    plan = plan_with(np.clip(frames, 0, sides), partner, sides)
    return replace(plan, frame=jnp.asarray(frames))


def resized_by_numpy(image, frame, size):
    """The reference: a line of `size` cells. Those from low to high show the whole `image`."""
    low, high = frame
    canvas = np.zeros(size)
    for cell in range(size):
        scale = (high - low) / len(image)  # cells per pixel
        center = (cell + 0.5 - low) / scale - 0.5
        weights = np.maximum(0, 1 - np.abs(center - np.arange(len(image))) * min(scale, 1))
        if low <= cell + 0.5 < high:
            canvas[cell] = (weights * image).sum() / weights.sum()
    return canvas


FRAMES = {
    "inside": [[3, 5], [17, 14]],
    "cut at the low corner": [[-4, -6], [9, 12]],
    "cut at the high corner": [[12, 15], [25, 31]],
    "one pixel": [[7, 8], [8, 9]],
    "most of the image": [[-3, 2], [17, 25]],
    "larger than the image": [[-5, -5], [30, 40]],
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_pixels_are_those_of_pillow(frame):
    images = np.random.default_rng(0).integers(0, 256, (2, 20, 24, 3), np.uint8)
    (top, left), (bottom, right) = frame
    # Pillow resizes the whole partner, then it is pasted where the border cuts it off.
    resized = Image.fromarray(images[1]).resize(
        (right - left, bottom - top), Image.Resampling.BILINEAR
    )
    expected = Image.fromarray(images[0])
    expected.paste(resized, (left, top))
    mixed = mix.apply(framed_plan(frame, [1, 0], (20, 24)), images)
    assert mixed.dtype == jnp.uint8
    difference = np.abs(np.asarray(mixed[0], int) - np.asarray(expected, int))
    assert difference.max() <= 1  # Pillow rounds twice
    assert difference.mean() < 0.3


def test_the_partner_is_cut_off_and_not_squeezed():
    images = np.stack([np.zeros((8, 8)), np.tile(np.arange(8.0), (8, 1))])
    whole = mix.apply(framed_plan([[0, 0], [4, 4]], [1, 0], (8, 8)), images)
    cut = mix.apply(framed_plan([[-1, -2], [3, 2]], [1, 0], (8, 8)), images)
    np.testing.assert_array_equal(cut[0, :3, :2], whole[0, 1:4, 2:4])
    assert not cut[0, 3:].any()
    assert not cut[0, :, 2:].any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64])
def test_floats_are_resized_in_float32_and_rounded_once(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 20)), dtype)
    mixed = mix.apply(framed_plan([[-2], [5]], [1, 0], (20,)), x, spatial_axes=1)
    assert mixed.dtype == dtype
    own, other = np.asarray(x, np.complex128)
    expected = resized_by_numpy(other.real, (-2, 5), 20)
    if dtype == jnp.complex64:
        other = other + 1j * np.arange(20)
        mixed = mix.apply(
            framed_plan([[-2], [5]], [1, 0], (20,)),
            jnp.asarray([own, other], dtype),
            spatial_axes=1,
        )
        expected = expected + 1j * resized_by_numpy(np.arange(20), (-2, 5), 20)
    np.testing.assert_array_equal(mixed[0, 5:], x[0, 5:])
    tolerance = 1e-6 if jnp.finfo(dtype).bits == 32 else float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
        np.asarray(mixed[0, :5], np.complex128), expected[:5], rtol=tolerance, atol=1e-5
    )


@pytest.mark.parametrize(("scale", "dtype"), [(1, jnp.int32), (2, jnp.uint16), (4, bool)])
def test_class_ids_are_those_at_the_centers(scale, dtype):
    cells = (20 // scale, 24 // scale)
    ids = np.random.default_rng(0).integers(0, 2 if dtype is bool else 100, (2, *cells))
    for (top, left), (bottom, right) in FRAMES.values():
        expected = ids[0].copy()
        for row, column in np.ndindex(cells):
            y, x = (row + 0.5) * scale, (column + 0.5) * scale
            if top <= y < bottom and left <= x < right:
                line = int((y - top) / (bottom - top) * cells[0])
                expected[row, column] = ids[1, line, int((x - left) / (right - left) * cells[1])]
        plan = framed_plan([[top, left], [bottom, right]], [1, 0], (20, 24))
        mixed = mix.apply(plan, jnp.asarray(ids, dtype))
        np.testing.assert_array_equal(mixed[0], expected.astype(mixed.dtype))
        assert mixed.dtype == dtype


def test_smaller_arrays_have_the_partner_at_the_same_place():
    x = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)
    # In cells of 4 pixels the frame is from 3/4 to 3 3/4. Cells 1, 2 and 3 have centers in it.
    mixed = mix.apply(framed_plan([[3], [15]], [1, 0], (24,)), x, spatial_axes=1)
    expected = resized_by_numpy(x[1], (0.75, 3.75), 6)
    np.testing.assert_allclose(mixed[0, 1:4], expected[1:4], rtol=1e-5)
    np.testing.assert_array_equal(mixed[0, [0, 4, 5]], x[0, [0, 4, 5]])


LAYOUTS = {
    "series": ((3, 20, 2), (1,)),
    "BCHW": ((3, 2, 8, 6), (-2, -1)),
    "video": ((3, 5, 8, 6, 2), (2, 3)),
    "volume": ((3, 6, 5, 4, 1), (1, 2, 3)),
}


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.parametrize(("shape", "spatial_axes"), LAYOUTS.values(), ids=LAYOUTS)
def test_any_layout_is_resized_along_its_axes(shape, spatial_axes, dtype):
    axes = tuple(axis % len(shape) for axis in spatial_axes)
    sides = tuple(shape[axis] for axis in axes)
    plan = mix.sample_resizemix(jax.random.key(4), 3, sides, min_ratio=0.5, scope="image")
    x = np.random.default_rng(0).integers(0, 99, shape).astype(dtype)
    mixed = mix.apply(plan, x, spatial_axes=spatial_axes)
    resized = x[np.asarray(plan.partner)].astype(float)
    for i in range(3):
        for k, axis in enumerate(axes):
            low, high = frame = plan.frame[i, :, k].tolist()

            def along(line, frame=frame, low=low, high=high):
                if dtype == np.float32:
                    return resized_by_numpy(line, frame, len(line))
                at = (np.arange(len(line)) + 0.5 - low) / (high - low) * len(line)
                return line[np.clip(at.astype(int), 0, len(line) - 1)]

            resized[i] = np.apply_along_axis(along, axis - 1, resized[i])
    inside = np.zeros(shape, bool)
    for i, box in enumerate(np.asarray(plan.box)):
        region = [slice(None)] * (len(shape) - 1)
        for axis, edges in zip(axes, box.T, strict=True):
            region[axis - 1] = slice(*edges)
        inside[i][tuple(region)] = True
    assert 0 < inside.mean() < 1
    np.testing.assert_allclose(mixed, np.where(inside, resized, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("layout", "frames"), [("series", 1), ("BCHW", 3)])
def test_one_image_after_the_other_gives_the_same(layout, frames):
    shape, spatial_axes = LAYOUTS[layout]
    axes = tuple(axis % len(shape) for axis in spatial_axes)
    sides = tuple(3 * shape[axis] for axis in axes)
    x, weights = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)

    def total(x, corners, in_turn):
        return (weights * resize.bilinear(x, corners, sides, axes, in_turn=in_turn)).sum()

    resized = jax.jit(jax.value_and_grad(total), static_argnums=2)
    for low, length in ((-4, 6), (0, 3), (5, 12), (-5, 70), (70, 5)):
        corners = [[[low + i] * len(axes), [low + 2 * i + length] * len(axes)] for i in range(3)]
        found, expected = (
            resized(x, np.int32(corners[:frames]), in_turn) for in_turn in (True, False)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)


def test_nan_of_the_partner_stays_in_the_box():
    images = jnp.stack([jnp.zeros((9, 9)), jnp.full((9, 9), jnp.nan)])
    mixed = mix.apply(framed_plan([[2, -3], [6, 4]], [1, 0], (9, 9)), images)[0]
    assert jnp.isnan(mixed[2:6, :4]).all()
    assert jnp.isnan(mixed).sum() == 16


def test_the_frame_of_the_image_pastes_bits():
    images = np.random.default_rng(0).normal(size=(3, 7, 5)).astype(np.float32)
    images[1, ::2, ::3] = np.nan
    plan = mix.sample_cutmix(KEY, 3, (7, 5), scope="image", min_ratio=0.5)
    framed = replace(plan, frame=jnp.asarray([[[0, 0], [7, 5]]]))
    np.testing.assert_array_equal(mix.apply(framed, images), mix.apply(plan, images))


def test_a_choice_per_image_resizes_only_what_it_should():
    parts = [mix.create_mix(name, scope="image") for name in ("cutmix", "resizemix", "mixup")]
    (plan,) = mix.random_choice(*parts, scope="image").sample(KEY, 64, (8, 6))
    images = np.random.default_rng(0).normal(size=(64, 8, 6)).astype(np.float32)
    key, *keys = jax.random.split(KEY, 4)
    chosen = 2 - jnp.floor(3 * jax.random.uniform(key, (64,))).astype(jnp.int32)
    alone = [part.sample(key, 64, (8, 6))[0] for part, key in zip(parts, keys, strict=True)]
    expected = [mix.apply(plan, images) for plan in alone]
    mixed = mix.apply(plan, images)
    assert min(np.bincount(chosen)) > 10
    for i in range(3):
        np.testing.assert_array_equal(plan.lam[chosen == i], alone[i].lam[chosen == i])
        tolerance = 0 if i == 0 else 1e-6
        np.testing.assert_allclose(mixed[chosen == i], expected[i][chosen == i], atol=tolerance)


def test_side_and_center_are_uniform():
    plan = draw(mix.sample_resizemix, sides=(1000, 1000), draws=50_000)
    low, high = plan.frame[:, 0, 0], plan.frame[:, 0, 1]
    lengths = high - low
    np.testing.assert_array_equal(lengths[:, 0], lengths[:, 1])
    jitter = np.random.default_rng(0).uniform(-0.5, 0.5, (2, len(low)))
    tau = (lengths[:, 0] + jitter[0]) / 1000
    assert stats.kstest(tau, stats.uniform(0.1, 0.7).cdf).pvalue > 1e-3
    for axis in (0, 1):
        center = ((low + high)[:, axis] / 2 + jitter[axis]) / 1000
        assert stats.kstest(center, stats.uniform.cdf).pvalue > 1e-3
    np.testing.assert_array_equal(plan.box[:, 0], np.clip(plan.frame[:, 0], 0, 1000))


@pytest.mark.parametrize("bounds", [(0.1, 0.8), (0.4, 0.5)])
def test_mean_of_lam(bounds):
    # A side of tau shows tau (1 - tau / 4) of it, on average over its centers; twice, squared.
    def integral(tau):
        return tau**3 / 3 - tau**4 / 8 + tau**5 / 80

    low, high = bounds
    shown = (integral(high) - integral(low)) / (high - low)
    options = {"min_ratio": low, "max_ratio": high}
    lam = draw(mix.sample_resizemix, sides=(224, 224), draws=50_000, **options).lam[:, 0]
    assert close(lam.astype(float), 1 - shown)


def test_lam_is_the_area_that_shows():
    plan = mix.sample_resizemix(KEY, 50, (9, 7), scope="image")
    lengths = np.prod(np.diff(plan.box, axis=1)[:, 0], axis=1)
    np.testing.assert_array_equal(plan.lam, ((63 - lengths) / 63).astype(np.float32))
    off = mix.sample_resizemix(KEY, 50, (9, 7), scope="image", prob=0.0)
    assert (off.lam == 1).all()
    images = jnp.arange(50 * 63.0).reshape(50, 9, 7)
    np.testing.assert_array_equal(mix.apply(off, images), images)


def test_jit_agrees_with_eager_and_numbers_may_be_traced():
    images = jax.random.normal(KEY, (4, 12, 10, 3))

    def mixed(key, low, high):
        plan = mix.sample_resizemix(key, 4, (12, 10), min_ratio=low, max_ratio=high)
        return plan, mix.apply(plan, images)

    jitted = jax.jit(mixed)
    for seed in range(3):
        (plan, found), (eager, expected) = (
            f(jax.random.key(seed), 0.2, 0.9) for f in (jitted, mixed)
        )
        jax.tree.map(np.testing.assert_array_equal, plan, eager)
        np.testing.assert_allclose(found, expected, atol=2e-6)
    assert jitted._cache_size() == 1


def test_gradients_flow_to_both_sources():
    plan = framed_plan([[0, 0], [2, 2]], [1, 0], (4, 4))
    gradient = jax.grad(lambda x: mix.apply(plan, x)[0].sum())(jnp.ones((2, 4, 4)))
    assert gradient[0].sum() == 12
    np.testing.assert_allclose(gradient[1].sum(), 4, rtol=1e-6)
    assert (gradient[1] > 0).all(), "every pixel of the partner shows"


def test_feature_maps_are_resized_too():
    mixing = mix.create_mix("resizemix", layers=("image", "layer1"), partner="reverse")
    sides = {"image": (8, 8), "layer1": (4, 4)}
    plans = mixing.sample(jax.random.key(1), 2, sides)
    for name, side in (("image", 8), ("layer1", 4)):
        x = jnp.stack([jnp.zeros((side, side, 3)), jnp.ones((side, side, 3))])
        lam = [plan.lam[0] for plan in plans if plan.layer == name]
        mixed = mix.apply_at(plans, name, x)
        np.testing.assert_allclose(1 - mixed[0].mean(), lam[0], rtol=1e-5)


def test_partners_across_devices_are_resized():
    images = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)

    def step(images):
        options = {"scope": "image", "axis_name": "batch", "across_devices": True}
        plan = mix.sample_resizemix(KEY, 3, (8, 8), **options)
        return plan, mix.apply(plan, images)

    plan, mixed = jax.vmap(step, axis_name="batch")(images)
    every, partner = images.reshape(6, 8, 8), np.asarray(plan.partner).ravel()
    assert (partner >= 3).any()
    for i in range(6):
        device, place = divmod(i, 3)
        alone = framed_plan(plan.frame[device, place], [1, 0], (8, 8))
        expected = mix.apply(alone, every[[i, partner[i]]])[0]
        np.testing.assert_allclose(mixed[device, place], expected, atol=2e-6)


def test_the_name_and_its_words():
    mixing = mix.create_mix("resizemix", prob=0.5, max_ratio=0.6)
    assert mixing.describe() == (
        "ResizeMix: one whole partner per batch, resized to 0.1 to 0.6 of the side, partner by"
        " permutation; labels weighted by area; with probability 0.5"
    )
    (plan,) = mix.create_mix("resizemix").sample(KEY, 4, (8, 8))
    jax.tree.map(np.testing.assert_array_equal, plan, mix.sample_resizemix(KEY, 4, (8, 8)))


def test_what_cannot_be_resized_is_refused():
    plan = mix.sample_resizemix(KEY, 2, (8, 8))
    with pytest.raises(ValueError, match=r"paste='window' needs .* but the plan resizes it\. Use"):
        mix.apply(plan, jnp.zeros((2, 8, 8)), paste="window")
    with pytest.raises(ValueError, match=r"min_ratio=0\.9 is above max_ratio=0\.8"):
        mix.sample_resizemix(KEY, 2, (8, 8), min_ratio=0.9)
    with pytest.raises(ValueError, match="max_ratio must be at least 0 and at most 1"):
        mix.create_mix("resizemix", max_ratio=1.2)
    series = mix.sample_resizemix(KEY, 2, (40_000,))
    with pytest.raises(ValueError, match="40000 class ids along an image of 40000 pixels need"):
        mix.apply(series, jnp.zeros((2, 40_000), jnp.int32), spatial_axes=1)
