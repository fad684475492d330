"""HMix, GMix, GridMix, FMix and CowMix: masks by NumPy from the definitions, and distributions."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, ndimage, special, stats

from cutmix_jax import mix
from cutmix_jax.mix import named
from cutmix_jax.mix import sampled_masks as masks
from cutmix_jax.mix.sample import NUMBERS, symmetric_beta

KEY = jax.random.key(0)


def uniform_numbers(rows, count, seed=0):
    return np.random.default_rng(seed).uniform(size=(rows, count)).astype(np.float32)


def compiled(function):
    return jax.jit(function, static_argnames="shape")


def sampled_lam(uniform, alpha=1.0):
    return np.asarray(symmetric_beta(uniform[:, 0], uniform[:, 1], alpha), np.float64)


@pytest.mark.parametrize("shape", [(9,), (6, 10), (4, 6, 5)])
def test_the_bump_of_gmix(shape):
    uniform = uniform_numbers(6, 2 + len(shape))
    found = compiled(masks.gmix_mask)(uniform, shape=shape, alpha=1.0)
    for row, lam, mask in zip(uniform, sampled_lam(uniform), found, strict=True):
        share = min(lam, 1 - lam)
        expected = np.zeros(shape)
        for pixel in np.ndindex(*shape):
            distances = [
                (i + 0.5) / side - c for i, side, c in zip(pixel, shape, row[2:], strict=True)
            ]
            bump = math.exp(-math.pi * np.square(distances).sum() / share ** (2 / len(shape)))
            expected[pixel] = bump if lam >= 0.5 else 1 - bump
        np.testing.assert_allclose(mask, expected, atol=2e-5)


GRID = {"min_area": 0.5, "max_area": 1.0, "min_aspect": 0.5, "max_aspect": 2.0} | {
    "min_cells": 2.0,
    "max_cells": 6.0,
}


@pytest.mark.parametrize("shape", [(32, 32), (21, 40), (3, 2)])
def test_the_grid_of_gridmix(shape):
    uniform = uniform_numbers(40, 7)
    found = compiled(masks.gridmix_mask)(uniform, shape=shape, alpha=1.0, **GRID)
    for row, lam, mask in zip(uniform.astype(float), sampled_lam(uniform), found, strict=True):
        area = math.prod(shape) * (0.5 + 0.5 * row[2])
        aspect = 0.5 + 1.5 * row[3]
        height = min(int(math.sqrt(area * aspect)), shape[0])
        width = min(int(math.sqrt(area / aspect)), shape[1])
        cell = max(math.ceil(width / (2 + int(5 * row[4]))), 2)
        hole = min(max(int(cell * math.sqrt(1 - lam)), 1), cell - 1)
        top = int((shape[0] - height + 1) * row[5])
        left = int((shape[1] - width + 1) * row[6])
        expected = np.zeros(shape, bool)
        for y in range(top, top + height, cell):
            for x in range(left, left + width, cell):
                bottom, right = min(y + hole, top + height), min(x + hole, left + width)
                expected[y:bottom, x:right] = True
        np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("shape", [(15,), (8, 11), (4, 6, 5)])
def test_the_noise_and_the_mask_of_fmix(shape):
    spectrum = (*shape[:-1], shape[-1] // 2 + 1)
    uniform = uniform_numbers(6, 2 + 2 * math.prod(spectrum))
    noise = np.asarray(compiled(masks.grey_noise)(uniform[:, 2:], shape=shape, decay=3.0))
    found = np.asarray(compiled(masks.fmix_mask)(uniform, shape=shape, alpha=1.0, decay=3.0))
    axes = [np.fft.fftfreq(side) for side in shape[:-1]] + [np.fft.rfftfreq(shape[-1])]
    frequency = np.sqrt(sum(f**2 for f in np.meshgrid(*axes, indexing="ij")))
    # The scale of noise has no effect on the mask.
    amplitude = (np.maximum(frequency, 1 / max(shape)) * max(shape)) ** -3
    for i, (row, lam) in enumerate(zip(uniform, sampled_lam(uniform), strict=True)):
        real, imaginary = stats.norm.ppf(row[2:].astype(float)).reshape(2, *spectrum)
        expected = np.fft.irfftn(amplitude * (real + 1j * imaginary), shape, range(len(shape)))
        np.testing.assert_allclose(noise[i], expected, atol=1e-4 * abs(expected).max())
        own = np.argsort(-noise[i].ravel(), kind="stable")[: round(lam * math.prod(shape))]
        mask = np.ones(math.prod(shape), bool)
        mask[own] = False
        np.testing.assert_array_equal(found[i].ravel(), mask)


def test_the_largest_values_are_as_many_as_asked_for():
    rng = np.random.default_rng(0)
    values = rng.integers(-2, 3, (50, 33)).astype(np.float32)  # most are equal to another
    values[:10] = rng.normal(size=(10, 33))
    values[10:15] = 0.0
    values[15:20, ::2] *= -1e30
    count = rng.integers(0, 34, 50)
    count[:20:5], count[1:20:5] = 0, 33
    found = np.asarray(jax.jit(masks.largest)(values, count))
    for row, n, mask in zip(values, count, found, strict=True):
        expected = np.zeros(33, bool)
        expected[np.argsort(-row, kind="stable")[:n]] = True
        np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("shape", [(20,), (16, 12), (7, 8, 6)])
def test_the_blur_and_the_threshold_of_cowmix(shape):
    sides = np.array(shape)
    uniform = uniform_numbers(5, 2 + math.prod(shape))
    options = {"min_area": 0.2, "max_area": 0.8, "min_sigma": 0.1, "max_sigma": 0.4}
    found = np.asarray(compiled(masks.cowmix_mask)(uniform, shape=shape, **options))
    for row, mask in zip(uniform.astype(float), found, strict=True):
        area, sigma = 0.2 + 0.6 * row[0], 0.1 * 4 ** row[1]
        noise = stats.norm.ppf(row[2:]).reshape(shape)
        blurred = ndimage.gaussian_filter(noise, sigma * sides, mode="constant", truncate=20)
        threshold = blurred.mean() + blurred.std() * math.sqrt(2) * special.erfinv(2 * area - 1)
        sure = abs(blurred - threshold) > 1e-4 * blurred.std()
        assert sure.mean() > 0.98
        np.testing.assert_array_equal(mask[sure], (blurred <= threshold)[sure])


def test_noise_of_fewer_points_has_the_same_covariance_after_the_blur():
    # 130 pixels have 64 points of noise. Each row has 1 at one of them, and 0 elsewhere.
    uniform = np.where(np.eye(64), stats.norm.cdf(1), 0.5).astype(np.float32)
    sigma = np.full(64, 1 / 32, np.float32)
    rows = np.asarray(compiled(masks.blurred_noise)(uniform, shape=(130,), sigma=sigma))
    place, points = ((np.arange(n) + 0.5) / n for n in (130, 1300))
    kernel = np.exp(-0.5 * ((place[:, None] - points) * 32) ** 2)
    expected = kernel @ kernel.T / 1300 * 64
    np.testing.assert_allclose(rows.T @ rows, expected, atol=6e-3 * expected.max())


# Samplers with options, by sides and the scope of the plan.
CASES = {
    "hmix": (mix.sample_hmix, {}, (12, 9), "image"),
    "hmix, box alone": (mix.sample_hmix, {"box_fraction": 1.0}, (5, 6), "device"),
    "hmix, series": (mix.sample_hmix, {}, (40,), "pair"),
    "gmix": (mix.sample_gmix, {"alpha": 0.5}, (12, 9), "image"),
    "gmix, series": (mix.sample_gmix, {}, (40,), "batch"),
    "gridmix": (mix.sample_gridmix, {}, (24, 30), "image"),
    "fmix": (mix.sample_fmix, {}, (13, 10), "image"),
    "fmix, coarse": (mix.sample_fmix, {"resolution": 7}, (20, 30), "pair"),
    "fmix, volume": (mix.sample_fmix, {"decay": 1.5}, (6, 5, 7), "batch"),
    "cowmix": (mix.sample_cowmix, {}, (13, 70), "image"),
}


def sample_case(case, key=KEY, **numbers):
    sampler, options, sides, scope = CASES[case]
    return sampler(key, 5, sides, scope=scope, **options | numbers)


@pytest.mark.parametrize("case", CASES)
def test_the_label_weight_is_the_share_of_the_pixels(case):
    plan, axes = sample_case(case), tuple(range(1, 1 + len(CASES[case][2])))

    @jax.jit
    def mixed(plan):
        sources = jnp.eye(5).reshape(5, *[1] * len(axes), 5)  # image i is 1 in channel i
        sources = jnp.broadcast_to(sources, (5, *plan.sides, 5))
        pixels = mix.apply(plan, sources, spatial_axes=axes)
        return pixels.mean(axes), mix.mix_labels(plan, jnp.arange(5), 5), mix.kept_fraction(plan)

    pixels, labels, kept = mixed(plan)
    np.testing.assert_array_equal(plan.lam, kept)
    np.testing.assert_allclose(labels, pixels, atol=2e-6)
    if plan.ratio is None and plan.mask.dtype == bool:
        cells = math.prod(plan.sides)
        counted = np.round(np.asarray(plan.lam, float) * cells) / cells
        np.testing.assert_array_equal(plan.lam, counted.astype(np.float32))
    draws = len(np.unique(plan.lam))
    assert draws == {"batch": 1, "device": 1, "pair": 3, "image": 5}[CASES[case][3]]
    if draws == 3:
        np.testing.assert_array_equal(plan.partner[plan.partner], np.arange(5))
        np.testing.assert_array_equal(plan.lam[plan.partner], plan.lam)


@pytest.mark.parametrize("case", ["hmix", "gmix", "gridmix", "fmix", "cowmix"])
def test_other_numbers_do_not_recompile_and_jit_agrees_with_eager(case):
    numbers = {k: v for k, v in named.parameters_of(case).items() if k in NUMBERS}
    numbers = {key: np.float32(value) for key, value in (numbers | CASES[case][1]).items()}
    step = jax.jit(lambda key, numbers: sample_case(case, key, **numbers))
    usual = step(KEY, numbers)
    jax.tree.map(np.testing.assert_array_equal, usual, sample_case(case))
    others = step(KEY, {key: np.float32(value * 0.7 + 0.2) for key, value in numbers.items()})
    off = step(KEY, numbers | {"prob": np.float32(0)})
    assert step._cache_size() == 1
    assert (usual.lam != others.lam).any()
    np.testing.assert_array_equal(off.lam, 1)
    assert off.mask is None or not off.mask.any()
    assert off.ratio is None or (off.ratio == 1).all()
    assert not (off.box[:, 1] > off.box[:, 0]).any()


@functools.cache
def jitted(sampler, sides, draws):
    return jax.jit(lambda numbers: sampler(KEY, draws, sides, scope="image", **numbers))


def many(sampler, sides, draws=4000, **numbers):
    """Returns a plan of many draws as NumPy arrays."""
    numbers = {key: np.float32(value) for key, value in numbers.items()}
    return jax.tree.map(np.asarray, jitted(sampler, sides, draws)(numbers))


@pytest.mark.parametrize("box_fraction", [0.0, 0.5, 1.0])
def test_the_label_weight_of_hmix_is_beta_and_its_box_a_part_of_it(box_fraction):
    plan = many(mix.sample_hmix, (64, 64), alpha=0.7, box_fraction=box_fraction)
    area = np.prod(plan.box[:, 1] - plan.box[:, 0], axis=-1) / 64**2
    # The blend makes up for what is clipped.
    assert stats.kstest(plan.lam, stats.beta(0.7, 0.7).cdf).pvalue > 1e-3
    whole = (plan.box[:, 0] > 0).all(-1) & (plan.box[:, 1] < 64).all(-1)
    expected = box_fraction * (1 - plan.lam[whole])
    np.testing.assert_allclose(np.sqrt(area[whole]), np.sqrt(expected), atol=1 / 64)
    assert (plan.ratio <= 1).all()
    if box_fraction == 1:  # CutMix, where the box is not clipped
        assert np.median(plan.ratio[whole]) == pytest.approx(1, abs=2e-3)


def test_the_mean_of_gmix():
    plan = many(mix.sample_gmix, (40, 24))
    assert plan.lam.mean() == pytest.approx(0.5, abs=4 * plan.lam.std() / np.sqrt(4000))

    def mean_of_bump(share):
        """The mean over centers and pixels: one double integral of a Gaussian per axis."""
        a = math.pi / share
        line = math.sqrt(math.pi / a) * special.erf(math.sqrt(a)) + (math.exp(-a) - 1) / a
        return line**2

    smaller = np.minimum(plan.lam, 1 - plan.lam)
    expected = integrate.quad(lambda share: 2 * mean_of_bump(share), 1e-6, 0.5)[0]
    assert smaller.mean() == pytest.approx(expected, abs=4 * smaller.std() / np.sqrt(4000))


def test_the_region_and_the_cells_of_gridmix():
    fixed = {"min_aspect": 1, "max_aspect": 1, "alpha": 1e6}
    numbers = fixed | {"min_area": 1, "max_area": 1, "min_cells": 2, "max_cells": 6}
    plan = many(mix.sample_gridmix, (60, 60), 2000, **numbers)
    counts = [ndimage.label(mask)[1] for mask in plan.mask]
    found, frequency = np.unique(counts, return_counts=True)
    np.testing.assert_array_equal(found, np.arange(2, 7) ** 2)
    assert stats.chisquare(frequency).pvalue > 1e-3
    # lambda is 0.5: holes have the side floor(cell / sqrt(2)).
    cell = 60 // np.sqrt(counts)
    np.testing.assert_allclose(1 - plan.lam, (np.floor(cell * np.sqrt(0.5)) / cell) ** 2, atol=1e-6)

    # With cells of two pixels, a quarter of the region is holes: so its area is seen.
    numbers = fixed | {"min_area": 0.5, "max_area": 1, "min_cells": 1e6, "max_cells": 1e6}
    area = 4 * (1 - many(mix.sample_gridmix, (60, 60), 2000, **numbers).lam)
    assert area.mean() == pytest.approx(0.75, abs=0.01)
    assert (area.min(), area.max()) == pytest.approx((0.5, 1.0), abs=0.03)


@pytest.mark.parametrize("decay", [1.0, 3.0])
def test_the_spectrum_of_fmix_falls_as_a_power(decay):
    uniform = uniform_numbers(400, 2 * 32 * 17)
    noise = np.asarray(compiled(masks.grey_noise)(uniform, shape=(32, 32), decay=decay))
    power = np.mean(abs(np.fft.fft2(noise)) ** 2, axis=0)
    line = np.fft.fftfreq(32)
    frequency = np.sqrt(line[:, None] ** 2 + line**2)
    inside = (frequency > 1 / 32) & (abs(line) < 0.5) & (abs(line[:, None]) < 0.5) & (line != 0)
    slope = np.polyfit(np.log(frequency[inside]), np.log(power[inside]), 1)[0]
    assert slope == pytest.approx(-2 * decay, abs=0.03)


def test_the_label_weight_of_fmix_is_beta():
    plan = many(mix.sample_fmix, (16, 16), draws=2000)
    jitter = np.random.default_rng(0).uniform(-0.5, 0.5, 2000) / 256  # undoes the rounding
    assert stats.kstest(np.clip(plan.lam + jitter, 0, 1), stats.uniform.cdf).pvalue > 1e-3


def test_the_area_of_cowmix():
    for area in (0.0, 0.25, 0.8, 1.0):
        numbers = {"min_area": area, "max_area": area, "min_sigma": 1 / 64, "max_sigma": 1 / 64}
        plan = many(mix.sample_cowmix, (64, 64), 40, **numbers)
        assert (1 - plan.lam).mean() == pytest.approx(area, abs=0.01)
    usual = {"min_area": 0.2, "max_area": 0.8, "min_sigma": 0.125, "max_sigma": 0.5}
    assert many(mix.sample_cowmix, (64, 64), 40, **usual).lam.mean() == pytest.approx(0.5, abs=0.15)


def test_devices_share_a_mask_per_batch_and_have_their_own_per_image():
    def on_devices(**options):
        def draw(_):
            return mix.sample_cowmix(KEY, 3, (8, 6), axis_name="batch", **options)

        return jax.jit(jax.vmap(draw, axis_name="batch"))(jnp.arange(4))

    shared = on_devices(scope="batch").mask
    assert (shared == shared[:1]).all()
    plan = on_devices(scope="image", across_devices=True)
    assert sorted(plan.partner.ravel().tolist()) == list(range(12))
    assert len(np.unique(np.asarray(plan.mask).reshape(12, -1), axis=0)) == 12


WRONG = {
    "alpha": (mix.sample_fmix, {"alpha": 0}, "alpha must be above 0, but got 0"),
    "alpha of hmix": (mix.sample_hmix, {"alpha": -1}, "alpha must be above 0, but got -1"),
    "box_fraction": (mix.sample_hmix, {"box_fraction": 1.5}, "box_fraction must be .* at most 1"),
    "decay": (mix.sample_fmix, {"decay": -1}, "decay must be at least 0, but got -1"),
    "resolution": (mix.sample_fmix, {"resolution": 2.5}, "resolution must be a whole number"),
    "sides of fmix": (mix.sample_fmix, {"sides": (2,) * 4}, "1 to 3 sides, but sides are"),
    "sides of gridmix": (mix.sample_gridmix, {"sides": (8,)}, "height and width of an image, but"),
    "area": (mix.sample_gridmix, {"min_area": 1.2}, "min_area must be .* at most 1"),
    "areas crossed": (
        mix.sample_cowmix,
        {"min_area": 0.9},
        r"^min_area=0\.9 is above max_area=0\.8\.$",
    ),
    "aspect": (mix.sample_gridmix, {"min_aspect": 0}, "min_aspect must be above 0"),
    "cells": (mix.sample_gridmix, {"min_cells": 0.5}, "min_cells must be at least 1"),
    "sigma": (mix.sample_cowmix, {"min_sigma": 0.001}, "min_sigma must be at least 0.015625"),
    "scope": (mix.sample_gmix, {"scope": "images"}, "scope 'images' is unknown.*'image'"),
}


@pytest.mark.parametrize(("sampler", "options", "message"), WRONG.values(), ids=WRONG)
def test_wrong_options_are_refused_in_a_sentence(sampler, options, message):
    with pytest.raises(ValueError, match=message) as refused:
        sampler(KEY, 4, **{"sides": (8, 8)} | options)
    assert "\n" not in str(refused.value)
