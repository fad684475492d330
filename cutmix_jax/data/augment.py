"""Augmentation on the device: pad, crop and flip of uint8; colors and random erasing of float.

`policies.py` has TrivialAugment and RandAugment, which come between them.

Every function takes one key per image. Keys from `example_keys` depend on the example, not on its
position in the batch. So an image is augmented alike on any number of devices.
"""

import functools

import jax
import jax.numpy as jnp

from cutmix_jax import mix
from cutmix_jax.data import policies
from cutmix_jax.data.policies import fold_in_each
from cutmix_jax.mix.plan import rescaled_fill

# Eigenvalues and eigenvectors (rows R, G, B) of ImageNet's colors, in [0, 1] units.
EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)
GRAY = (0.299, 0.587, 0.114)
PAD_MODES = {"zero": "constant", "reflect": "reflect"}  # NumPy's names
# Folded into an image's key: its colors change by other numbers than its position.
COLOR = 2**31 - 1
# The same for operations of a policy, and for random erasing.
POLICY, ERASING = COLOR - 1, COLOR - 2
# The fills of random erasing, as `mix.sample_erasing` names them, for normalized images.
ERASING_FILLS = {"constant": 0.0, "color": "color", "noise": "noise"}


def example_keys(
    seed: jax.Array, epoch: jax.Array, index: jax.Array, copy: jax.Array | None = None
) -> jax.Array:
    """One key per example, as a function of (seed, epoch, index), and of `copy` if it is given."""
    key = jax.random.fold_in(jax.random.key(seed), epoch)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
    return keys if copy is None else jax.vmap(jax.random.fold_in)(keys, copy)


def crop_and_flip(
    keys: jax.Array,
    images: jax.Array,
    *,
    pad: int,
    flip: bool,
    pad_mode: str = "zero",
    size: tuple[int, int] | None = None,
) -> jax.Array:
    """Pads each side, crops at a random position, and flips at random.

    The position is uniform on all of those in the padded image. So without `size`, each image moves
    by `(dy, dx)`, both uniform on `{-pad, ..., pad}`. If `flip` is set, it is flipped horizontally
    with probability 1/2.

    Args:
        keys: `[B]` keys, one per image.
        images: `[B, H, W, C]` of any dtype.
        pad: pixels per side; 0 for no crop.
        flip: whether to flip at random.
        pad_mode: 'zero', or 'reflect' for the image mirrored at its border, without the border
            pixel.
        size: (height, width) of the crop; None for that of the images.

    Returns:
        `[B, *size, C]`, in the dtype of `images`.

    Example:
        >>> keys = example_keys(0, 0, jnp.arange(4))
        >>> images = jnp.full((4, 32, 32, 3), 7, jnp.uint8)
        >>> crop_and_flip(keys, images, pad=4, flip=True).shape
        (4, 32, 32, 3)
    """
    height, width = size or images.shape[1:3]
    larger = (images.shape[1] - height, images.shape[2] - width)
    top, left, mirror = crop_and_flip_draws(keys, pad, larger)
    if pad:
        widths, mode = ((0, 0), (pad, pad), (pad, pad), (0, 0)), PAD_MODES[pad_mode]
        images = jnp.pad(images, widths, mode)
    if pad or any(larger):
        shape = (height, width, images.shape[3])
        images = jax.vmap(lambda x, i, j: jax.lax.dynamic_slice(x, (i, j, 0), shape))(
            images, top, left
        )
    if flip:
        images = jnp.where(mirror[:, None, None, None], images[:, :, ::-1], images)
    return images


def crop_and_flip_draws(
    keys: jax.Array, pad: int, larger: tuple[int, int] = (0, 0)
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(top, left) int32 [B] in 0..2*pad and mirror bool [B].

    `larger` says by how many rows and columns the images exceed the crop. Offsets grow by them.
    """
    bits = jax.vmap(lambda key: jax.random.bits(key, (3,)))(keys)
    top, left = (
        (bits[:, axis] % (2 * pad + larger[axis] + 1)).astype(jnp.int32) for axis in (0, 1)
    )
    return top, left, bits[:, 2] >> 31 == 1


def load_augmented(
    arrays,
    xs,
    epoch,
    *,
    load,
    pad: int = 0,
    pad_mode: str = "zero",
    flip: bool = False,
    jitter: float = 0.0,
    light: float = 0.0,
    size: tuple[int, int] | None = None,
    policy=None,
    erase=None,
) -> dict:
    """A batch for training: `load(arrays, xs)`, augmented as a function of (seed, epoch, index).

    Args:
        arrays: what `load` reads.
        xs: one device's part of a batch, with `seed` and `index`, and `copy` if images repeat.
        epoch: epoch, counted from 0.
        load: `(arrays, xs) -> {'image': uint8 [b, H, W, C], ...}`.
        pad: as in `crop_and_flip`.
        pad_mode: as in `crop_and_flip`.
        flip: as in `crop_and_flip`.
        jitter: strength of `color_jitter`; 0 for none.
        light: standard deviation of `lighting`; 0 for none.
        size: as in `crop_and_flip`.
        policy: None, or `(keys, uint8 images) -> uint8 images`, from `create_policy`.
        erase: None, or `(keys, float images) -> float images`, from `create_erasing`.

    Returns:
        What `load` returns, with images as float32 `[b, *size, C]`. They are in [0, 1], or may
        leave it if their colors change.
    """
    batch = load(arrays, xs)
    images, keys = batch["image"], example_keys(xs["seed"], epoch, xs["index"], xs.get("copy"))
    if pad or flip or size:
        images = crop_and_flip(keys, images, pad=pad, flip=flip, pad_mode=pad_mode, size=size)
    if policy:
        images = policy(fold_in_each(keys, POLICY), images)
    images = images.astype(jnp.float32) / 255
    if jitter or light:
        color_keys = jax.vmap(jax.random.split)(fold_in_each(keys, COLOR))
    if jitter:
        images = color_jitter(color_keys[:, 0], images, jitter)
    if light:
        images = lighting(color_keys[:, 1], images, light)
    if erase:
        images = erase(fold_in_each(keys, ERASING), images)
    return batch | {"image": images}


def create_load_train(load, config, size=None):
    """`load_augmented` with the sections `augment` and `normalize` of a config."""
    section = config.augment
    return functools.partial(
        load_augmented,
        load=load,
        pad=section.pad,
        pad_mode=section.pad_mode,
        flip=section.flip,
        jitter=section.color_jitter,
        light=section.lighting,
        size=size,
        policy=create_policy(config),
        erase=create_erasing(config),
    )


def create_policy(config):
    """The policy of `augment.policy`, `(keys, images) -> images`, or None."""
    section = config.augment
    several = {"operations": section.operations}
    if section.magnitude is not None:
        several["magnitude"] = section.magnitude
    options = {"interpolation": section.interpolation}
    if section.policy == "trivial_augment":
        return functools.partial(policies.trivial_augment, **options)
    if section.policy == "rand_augment":
        return functools.partial(policies.rand_augment, **several, **options)
    if section.policy == "rand_augment_timm":
        mean = config.normalize.mean * (3 // len(config.normalize.mean))  # one value, or three
        return functools.partial(
            policies.rand_augment_timm,
            **several,
            **options,
            magnitude_std=section.magnitude_std,
            probability=section.operation_prob,
            fill=tuple(min(255, round(255 * float(value))) for value in mean),
        )
    return None


def create_erasing(config):
    """`random_erasing` of `augment.erasing`, `(keys, images) -> images`, or None."""
    if not config.augment.erasing:
        return None
    return functools.partial(
        random_erasing,
        probability=config.augment.erasing,
        fill=config.augment.erasing_fill,
        mean=tuple(config.normalize.mean),
        std=tuple(config.normalize.std),
    )


def random_erasing(
    keys: jax.Array,
    images: jax.Array,
    *,
    probability: float,
    fill: str = "constant",
    mean: tuple[float, ...] = (0.0,),
    std: tuple[float, ...] = (1.0,),
) -> jax.Array:
    """Random erasing: with some probability, a random box of an image is filled.

    `mix.sample_erasing` samples the box, with its default area and aspect ratio. It becomes
    `mean + std z`. So images in [0, 1] become what timm and torchvision erase after normalization,
    as `z`.

    Args:
        keys: `[B]` keys, one per image.
        images: float `[B, H, W, C]`.
        probability: that of a box, from 0 to 1.
        fill: 'constant' for `z = 0`, 'color' for a `z ~ N(0, 1)` per channel, 'noise' for one per
            channel and pixel.
        mean: of the normalization that follows: one value, or one per channel.
        std: the same for the standard deviation. By default, images are already normalized.

    Returns:
        `[B, H, W, C]`, in the dtype of `images`.

    Raises:
        ValueError: there is no such fill, or the probability is not from 0 to 1.

    Example:
        >>> keys = jax.random.split(jax.random.key(0), 100)
        >>> erased = random_erasing(keys, jnp.ones((100, 16, 16, 1)), probability=1.0)
        >>> area = 1 - erased.mean((1, 2, 3))
        >>> bool(0.01 < area.min()), bool(area.max() < 0.36), bool(abs(area.mean() - 0.17) < 0.03)
        (True, True, True)

    Reference:
        Zhong et al., Random erasing data augmentation, AAAI 2020; timm.data.RandomErasing and
        torchvision.transforms.RandomErasing.
    """
    if fill not in ERASING_FILLS:
        raise ValueError(f"fill is {fill!r}, but one of {tuple(ERASING_FILLS)} was expected")
    if not 0 <= probability <= 1:
        raise ValueError(f"probability is {probability}, but a number from 0 to 1 was expected")

    def erase(key, image):
        plan = mix.sample_erasing(
            key, 1, image.shape[:2], prob=probability, fill=ERASING_FILLS[fill]
        )
        return mix.apply(rescaled_fill(plan, mean, std), image[None], paste="mask")[0]

    return jax.vmap(erase)(keys, images)


def color_jitter(keys: jax.Array, images: jax.Array, strength: float) -> jax.Array:
    """Brightness, contrast and saturation, in a random order per image, without clipping.

    Each operation is `x <- (1 - a) x + a t` with its own `a ~ U(-strength, strength)` and the
    target `t`: 0 (brightness), the mean gray value (contrast), the gray image (saturation).

    Args:
        keys: `[B]` keys, one per image.
        images: float `[B, H, W, 3]` in [0, 1].
        strength: largest `|a|`; the authors of CutMix use 0.4.

    Returns:
        float `[B, H, W, 3]`.

    Example:
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> gray = color_jitter(keys, jnp.full((4, 8, 8, 3), 0.5), 0.4)[0, 0, 0]
        >>> bool(jnp.ptp(gray) < 1e-6), bool(0.3 <= gray[0] <= 0.7)  # only brightness changes
        (True, True)
    """
    weights, order = jitter_draws(keys, strength, images.dtype)
    for step in range(3):
        operation = order[:, step][:, None, None, None]
        a = weights[:, step][:, None, None, None]
        # A sum of products, because a matmul would round to bfloat16 on TPU.
        gray = jnp.sum(images * jnp.asarray(GRAY, images.dtype), axis=-1, keepdims=True)
        contrast = jnp.mean(gray, axis=(1, 2), keepdims=True)
        target = jnp.where(operation == 0, 0.0, jnp.where(operation == 1, contrast, gray))
        images = (1 - a) * images + a * target
    return images


def jitter_draws(keys: jax.Array, strength: float, dtype=jnp.float32):
    """(a float [B, 3], operation int32 [B, 3]), both in the order of application."""

    def draw(key):
        for_a, for_order = jax.random.split(key)
        a = jax.random.uniform(for_a, (3,), dtype, -strength, strength)
        return a, jax.random.permutation(for_order, 3)

    return jax.vmap(draw)(keys)


def lighting(keys: jax.Array, images: jax.Array, std: float) -> jax.Array:
    """AlexNet's PCA noise: shifts all pixels of an image along the principal colors of ImageNet.

    Channel `c` gets `sum_j V[c, j] a_j e_j` with `a_j ~ N(0, std)`.

    Args:
        keys: `[B]` keys, one per image.
        images: float `[B, H, W, 3]` in [0, 1].
        std: standard deviation of `a`; the authors of CutMix use 0.1.

    Returns:
        float `[B, H, W, 3]`.

    Example:
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> images = jnp.full((4, 8, 8, 3), 0.5)
        >>> shift = lighting(keys, images, 0.1) - images
        >>> bool(jnp.allclose(shift, shift[:, :1, :1])), shift.shape  # one shift per image
        (True, (4, 8, 8, 3))

    Reference:
        Krizhevsky et al., ImageNet classification with deep convolutional neural networks, 2012.
    """
    a = lighting_draws(keys, std, images.dtype)
    scaled = a * jnp.asarray(EIGENVALUES, images.dtype)
    shift = jnp.sum(jnp.asarray(EIGENVECTORS, images.dtype) * scaled[:, None, :], axis=-1)
    return images + shift[:, None, None, :]


def lighting_draws(keys: jax.Array, std: float, dtype=jnp.float32) -> jax.Array:
    """a, float [B, 3]."""
    return std * jax.vmap(lambda key: jax.random.normal(key, (3,), dtype))(keys)
