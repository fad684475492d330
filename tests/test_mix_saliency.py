"""The spectral residual against NumPy, and SaliencyMix's boxes against its maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats

from cutmix_jax import mix

KEY = jax.random.key(0)


def saliency_by_numpy(image):
    """The definition for one gray image, in float64 and with angles."""
    spectrum = np.fft.fftn(image)
    log_amplitude = np.log(np.abs(spectrum))
    residual = log_amplitude - ndimage.uniform_filter(log_amplitude, 3, mode="wrap")
    found = np.abs(np.fft.ifftn(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
    line = np.exp(-(np.arange(-3, 4) ** 2) / 18)
    kernel = np.multiply.outer(line, line) if image.ndim == 2 else line
    return ndimage.convolve(found, kernel / kernel.sum(), mode="constant")


def natural(seed, *shape):
    """Images whose spectrum falls as 1 / f, as that of photographs does."""
    noise = np.random.default_rng(seed).normal(size=shape)
    return np.clip(128 + 60 * ndimage.gaussian_filter(noise, 1.5) * 5, 0, 255)


def with_blobs(places, side=32):
    """Images `[B, side, side, 3]` with a bright square of 5 pixels around each place."""
    images = np.random.default_rng(0).normal(0, 0.02, (len(places), side, side, 3))
    for image, (row, column) in zip(images, places, strict=True):
        image[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3] += 1
    return images.astype(np.float32)


@pytest.mark.parametrize("shape", [(24, 32), (17, 9), (128, 100), (64,)])
def test_the_map_is_the_spectral_residual(shape):
    gray = np.stack([natural(seed, *shape) for seed in range(3)])
    axes = tuple(range(1, gray.ndim))
    found = mix.saliency(gray.astype(np.float32), spatial_axes=axes)
    expected = np.stack([saliency_by_numpy(image) for image in gray.astype(np.float32)])
    assert found.dtype == jnp.float32
    error = np.abs(found - expected).max() / expected.max()
    assert error < 1e-4
    np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_images_of_any_dtype_have_the_same_map():
    pixels = natural(0, 2, 24, 20, 3).astype(np.uint8)
    expected = np.stack([saliency_by_numpy(image) for image in pixels.mean(-1)])
    for images in (pixels, pixels.astype(np.int32), pixels / np.float32(255)):
        np.testing.assert_allclose(mix.saliency(images), expected, rtol=2e-3)
    half = mix.saliency(pixels.astype(jnp.bfloat16))  # holds 0 to 255
    np.testing.assert_array_equal(half, mix.saliency(pixels))
    np.testing.assert_array_equal(
        mix.saliency(pixels[..., :1]), mix.saliency(np.repeat(pixels[..., :1], 3, 3))
    )


def test_large_images_are_resized_first():
    image = natural(0, 300, 150).astype(np.float32)
    small = np.asarray(Image.fromarray(image).resize((64, 128), Image.Resampling.BILINEAR))
    found = mix.saliency(image[None])
    assert found.shape == (1, 128, 64)
    expected = saliency_by_numpy(small)
    np.testing.assert_allclose(found[0], expected, atol=1e-3 * expected.max())


@pytest.mark.parametrize("layout", [(0, 3, 1, 2), (0, 1, 3, 2), (0, 2, 1, 3)])
def test_any_layout_has_the_same_map(layout):
    images = natural(0, 2, 16, 20, 3).astype(np.float32)
    axes = tuple(layout.index(axis) for axis in (1, 2))
    found = mix.saliency(images.transpose(layout), spatial_axes=axes)
    np.testing.assert_allclose(found, mix.saliency(images), rtol=1e-3)


def test_what_stands_out_is_salient():
    places = [(8, 20), (25, 5), (16, 16)]
    found = np.asarray(mix.saliency(with_blobs(places)))
    for image, place in zip(found, places, strict=True):
        peak = np.unravel_index(image.argmax(), image.shape)
        assert np.abs(np.subtract(peak, place)).max() <= 3


@pytest.mark.parametrize("value", [0, 7])
def test_constant_images_have_finite_maps(value):
    images = jnp.full((2, 16, 16, 3), value, jnp.uint8)
    assert jnp.isfinite(mix.saliency(images)).all()
    plan = mix.sample_saliencymix(KEY, 2, (16, 16), images=images)
    assert (plan.box >= 0).all()
    assert (plan.box <= 16).all()


def test_the_box_is_at_the_peak_of_the_partner():
    rng = np.random.default_rng(0)
    images = with_blobs(rng.integers(0, 32, (64, 2)))
    plan = mix.sample_saliencymix(KEY, 64, (32, 32), images=images)
    maps = np.stack([saliency_by_numpy(image) for image in images.mean(-1)])
    assert sorted(plan.partner.tolist()) == list(range(64))
    empty = 0
    for box, partner in zip(np.asarray(plan.box), plan.partner, strict=True):
        if (box[0] == box[1]).any():
            empty += 1
            continue
        peak = np.unravel_index(maps[partner].argmax(), (32, 32))
        for (low, high), at in zip(box.T, peak, strict=True):
            assert low <= at < high
            before, behind = at + 0.5 - low, high - at - 0.5
            assert (
                abs(before - behind) <= 1
                or (low == 0 and before < behind)
                or (high == 32 and behind < before)
            )
    assert empty < 4
    areas = np.prod(np.diff(plan.box, axis=1)[:, 0], axis=1)
    np.testing.assert_array_equal(plan.lam, ((1024 - areas) / 1024).astype(np.float32))


def test_the_area_is_beta_where_nothing_is_clipped():
    images = np.tile(with_blobs([(32, 32)], 65), (2000, 1, 1, 1))[..., :1]
    lam = jax.jit(lambda images: mix.sample_saliencymix(KEY, 2000, (65, 65), images=images).lam)(
        images
    )
    assert stats.kstest(np.asarray(lam), stats.uniform.cdf).statistic < 0.06


def test_boxes_of_resized_maps_are_in_pixels_of_the_image():
    images = with_blobs([(40, 200)], 256)
    images[0, 35:46, 195:206] += 1
    plan = mix.sample_saliencymix(KEY, 1, (256, 256), images=images, alpha=1e3)
    low, high = np.asarray(plan.box[0])
    assert low[0] == 0
    assert high[1] == 256
    assert abs(high[0] - 40 - 256 * 0.5**0.5 / 2) < 10
    assert abs(200 - low[1] - 256 * 0.5**0.5 / 2) < 10


@pytest.mark.parametrize("scope", ["batch", "pair", "image"])
def test_who_shares_the_size_of_a_box(scope):
    images = np.tile(with_blobs([(8, 20)]), (6, 1, 1, 1))
    plan = mix.sample_saliencymix(KEY, 6, (32, 32), images=images, scope=scope)
    assert plan.box.shape == (6, 2, 2)
    different = len(np.unique(np.asarray(plan.box), axis=0))
    assert {"batch": different == 1, "pair": different == 3, "image": different == 6}[scope]
    off = mix.sample_saliencymix(KEY, 6, (32, 32), images=images, scope=scope, prob=0.0)
    assert (off.lam == 1).all()
    assert not off.box.any()


def test_other_layouts_have_the_same_boxes():
    images = with_blobs([(8, 20), (25, 5), (3, 30)])
    options = {"images": images.transpose(0, 3, 1, 2), "spatial_axes": (-2, -1)}
    plan = mix.sample_saliencymix(KEY, 3, (32, 32), **options)
    expected = mix.sample_saliencymix(KEY, 3, (32, 32), images=images)
    jax.tree.map(np.testing.assert_array_equal, plan, expected)
    (named,) = mix.create_mix("saliencymix").sample(KEY, 3, (32, 32), **options)
    jax.tree.map(np.testing.assert_array_equal, named, expected)


def test_combined_mixes_hand_the_images_on():
    images = with_blobs([(8, 20), (25, 5), (3, 30)])
    salient = mix.create_mix("saliencymix")
    assert salient.needs_images
    for combined in (
        mix.chain(mix.create_mix("cutout"), salient),
        mix.random_choice(mix.create_mix("mixup"), salient, scope="image"),
    ):
        assert combined.needs_images
        plans = combined.sample(KEY, 3, (32, 32), images=images)
        assert plans[-1].box.shape == (3, 2, 2)
        with pytest.raises(ValueError, match="mix 'saliencymix' depends on the images, but"):
            combined.sample(KEY, 3, (32, 32))
    assert not mix.create_mix("cutmix").needs_images


def test_peaks_are_gathered_across_devices():
    images = with_blobs([(4, 4), (4, 28), (28, 4), (28, 28)])

    def step(images):
        options = {"axis_name": "batch", "across_devices": True, "alpha": 1e3}
        return mix.sample_saliencymix(KEY, 2, (32, 32), images=images, **options)

    plan = jax.vmap(step, axis_name="batch")(images.reshape(2, 2, 32, 32, 3))
    for box, partner in zip(plan.box.reshape(4, 2, 2), plan.partner.ravel(), strict=True):
        touched = np.asarray(box[0]) == 0
        np.testing.assert_array_equal(touched, [partner < 2, partner % 2 == 0])


def test_jit_agrees_with_eager():
    images = with_blobs([(8, 20), (25, 5), (3, 30)])
    sample = lambda images: mix.sample_saliencymix(KEY, 3, (32, 32), images=images)  # noqa: E731
    jax.tree.map(np.testing.assert_array_equal, jax.jit(sample)(images), sample(images))


def test_images_that_do_not_fit_are_refused():
    images = jnp.zeros((2, 8, 6, 3))
    with pytest.raises(ValueError, match=r"shape \(2, 8, 6, 3\), but batch_size=2 and .*\(8, 8\)"):
        mix.sample_saliencymix(KEY, 2, (8, 8), images=images)
    with pytest.raises(ValueError, match="batch_size=3"):
        mix.sample_saliencymix(KEY, 3, (8, 6), images=images)
    with pytest.raises(ValueError, match=r"real images .* complex64"):
        mix.saliency(images.astype(jnp.complex64))
    with pytest.raises(ValueError, match=r"no axes \(2, 5\)"):
        mix.saliency(images, spatial_axes=(2, 5))
    with pytest.raises(ValueError, match=r"mix 'saliencymix' is for images, but layers="):
        mix.create_mix("saliencymix", layers=("layer1",))
    with pytest.raises(ValueError, match="alpha must be above 0"):
        mix.create_mix("saliencymix", alpha=0)
