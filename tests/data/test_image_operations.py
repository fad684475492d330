"""Operations against Pillow, which timm and torchvision's Pillow backend use."""

import doctest
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from cutmix_jax.data import image_operations, policies
from cutmix_jax.data.image_operations import INDEX, OPERATIONS, apply_operations, create_operations

FILL = (12, 200, 99)
RESAMPLE = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR}
SHAPE = (36, 29)


def pillow(image, name, m, interpolation):
    """The definition of timm and torchvision for one image."""
    picture = Image.fromarray(image)
    warped = {"resample": RESAMPLE[interpolation], "fillcolor": FILL}

    def affine(*matrix):
        return picture.transform(picture.size, Image.Transform.AFFINE, matrix, **warped)

    add = [min(255, i + int(m)) if i < 128 else i for i in range(256)]
    results = {
        "identity": lambda: picture,
        "shear_x": lambda: affine(1, m, 0, 0, 1, 0),
        "shear_y": lambda: affine(1, 0, 0, m, 1, 0),
        "translate_x": lambda: affine(1, 0, -m, 0, 1, 0),
        "translate_y": lambda: affine(1, 0, 0, 0, 1, -m),
        "rotate": lambda: picture.rotate(m, **warped),
        "brightness": lambda: ImageEnhance.Brightness(picture).enhance(m),
        "color": lambda: ImageEnhance.Color(picture).enhance(m),
        "contrast": lambda: ImageEnhance.Contrast(picture).enhance(m),
        "sharpness": lambda: ImageEnhance.Sharpness(picture).enhance(m),
        "posterize": lambda: ImageOps.posterize(picture, int(m)),
        "solarize": lambda: ImageOps.solarize(picture, m),
        "solarize_add": lambda: picture.point(add * 3),
        "auto_contrast": lambda: ImageOps.autocontrast(picture),
        "equalize": lambda: ImageOps.equalize(picture),
        "invert": lambda: ImageOps.invert(picture),
    }
    return np.asarray(results[name]()).astype(int)


def kinds_of_images():
    """Noise, smooth, of few levels, of one color, with one flat channel, black but for a pixel."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
    coarse = Image.fromarray(random.integers(0, 256, (5, 4, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(SHAPE[::-1], Image.Resampling.BICUBIC))
    flat = smooth.copy()
    flat[..., 1] = 77
    one = np.full_like(noise, 201)
    dot = np.zeros_like(noise)
    dot[3, 4] = 255, 1, 128
    return np.stack([noise, smooth, smooth // 8 + 60, one, flat, dot])


def settings():
    """(names, magnitudes, index): all of TrivialAugment's grid, and some that only timm has."""
    grid = policies.magnitude_grid(policies.TRIVIAL_AUGMENT, SHAPE)
    index, magnitude = grid.index.reshape(-1), grid.magnitude.reshape(-1)
    more = [("solarize_add", 77.0), ("solarize_add", 128.0), ("invert", 0.0), ("solarize", 256.0)]
    index = np.concatenate([index, [INDEX[name] for name, _ in more]])
    magnitude = np.concatenate([magnitude.astype(np.float64), [value for _, value in more]])
    found = np.unique(np.stack([index, magnitude], 1), axis=0)
    return found[:, 0].astype(int), found[:, 1]


@pytest.mark.parametrize("interpolation", RESAMPLE)
def test_every_operation_equals_pillows_to_one_level(interpolation):
    index, magnitude = settings()
    images, apply = kinds_of_images(), jax.jit(apply_operations, static_argnames="interpolation")
    turn = np.arange(len(index)) % len(images)
    shifts = range(len(images)) if interpolation == "bilinear" else range(1)
    for shift in shifts:
        chosen = images[(turn + shift) % len(images)]
        operations = create_operations(index, magnitude, SHAPE)
        got = np.asarray(apply(operations, chosen, interpolation=interpolation, fill=FILL))
        for i, image in enumerate(chosen):
            name = OPERATIONS[index[i]]
            want = pillow(image, name, magnitude[i], interpolation)
            assert np.abs(got[i] - want).max() <= 1, (name, magnitude[i], (turn[i] + shift) % 6)
    assert set(index) == set(INDEX.values())


def test_most_pixels_are_pillows_to_the_bit():
    index, magnitude = settings()
    images = np.repeat(kinds_of_images()[:1], len(index), 0)
    operations = create_operations(index, magnitude, SHAPE)
    got = np.asarray(jax.jit(apply_operations)(operations, images, fill=jnp.array(FILL)))
    wrong = dict.fromkeys(OPERATIONS, 0.0)
    for i, image in enumerate(images):
        name = OPERATIONS[index[i]]
        fraction = np.mean(got[i] != pillow(image, name, magnitude[i], "bilinear"))
        wrong[name] = max(wrong[name], float(fraction))
    assert max(wrong.values()) < 0.01, wrong


def test_traced_magnitudes_equal_pillow_too():
    random = np.random.default_rng(1)
    names = ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"] * 12
    magnitude = np.float32(random.uniform(-30, 30, 60))
    magnitude[[i for i, name in enumerate(names) if "shear" in name]] /= 100
    index = np.array([INDEX[name] for name in names])
    images = np.repeat(kinds_of_images()[1:2], 60, 0)

    def transform(magnitude, interpolation):
        operations = create_operations(index, magnitude, SHAPE)
        return apply_operations(operations, images, interpolation=interpolation, fill=FILL)

    transform = jax.jit(transform, static_argnums=1)
    for interpolation in RESAMPLE:
        got = np.asarray(transform(magnitude, interpolation)).astype(int)
        given = zip(images, names, magnitude.astype(float), strict=True)
        want = np.stack([pillow(*each, interpolation) for each in given])
        # A float32 may put the border between two pixels on the other side.
        assert np.mean(np.abs(got - want) > 1) < 1e-3, interpolation


def test_accelerators_take_all_images_at_once_and_get_the_same():
    index, magnitude = settings()
    images = kinds_of_images()[np.arange(len(index)) % 6]
    operations = create_operations(index, magnitude, SHAPE)
    apply_one = functools.partial(image_operations._apply_one, interpolation="bilinear", fill=FILL)
    at_once = np.asarray(jax.jit(jax.vmap(apply_one))(operations, images))
    in_turn = np.asarray(
        jax.jit(functools.partial(apply_operations, fill=FILL))(operations, images)
    )
    assert np.abs(at_once.astype(int) - in_turn).max() <= 1
    assert np.mean(at_once != in_turn) < 1e-3


def test_bits_and_images_at_the_edge():
    """No bits give black, as older versions of Pillow did. Two rows have no inner pixel."""
    image = kinds_of_images()[:1]
    none = create_operations([INDEX["posterize"]], np.array([0.0]), SHAPE)
    assert not np.asarray(apply_operations(none, image)).any()
    small = image[:, :2]
    sharper = create_operations([INDEX["sharpness"]], np.array([1.9]), small.shape[1:3])
    np.testing.assert_array_equal(apply_operations(sharper, small), small)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda images: images.astype(np.float32), {}, "float32"),
        (lambda images: images[..., :1], {}, r"\[B, H, W, 3\] was expected"),
        (lambda images: images, {"interpolation": "bicubic"}, "'bicubic', but one of"),
    ],
)
def test_wrong_images_and_names_are_refused(change, options, message):
    images = kinds_of_images()[:1]
    operations = create_operations([0], np.array([0.0]), SHAPE)
    with pytest.raises(ValueError, match=message):
        apply_operations(operations, change(images), **options)


@pytest.mark.parametrize("module", [image_operations, policies])
def test_examples_in_docstrings_run(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed
