"""TrivialAugment and RandAugment: which operation each image gets, and how strong it is.

Every function takes one key per image, as those of `augment.py` do.

References:
    Müller and Hutter, TrivialAugment: Tuning-free yet state-of-the-art data augmentation, 2021.
    Cubuk et al., RandAugment: Practical automated data augmentation with a reduced search space,
        NeurIPS 2020.
    Wightman et al., ResNet strikes back: An improved training procedure in timm, 2021.
    torchvision.transforms.TrivialAugmentWide and RandAugment, with a grid of 31 magnitudes.
    timm.data.auto_augment, with its increasing operations.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from cutmix_jax.data.image_operations import (
    INDEX,
    Operations,
    apply_operations,
    create_operations,
)

BINS = 31
# The strongest magnitude of timm.
TIMM_MAX = 10
# Least and greatest magnitude of torchvision's operations. Enhancements are 1 +- magnitude.
TRIVIAL_AUGMENT = {
    "identity": (0, 0),
    "shear_x": (0, 0.99),
    "shear_y": (0, 0.99),
    "translate_x": (0, 32),
    "translate_y": (0, 32),
    "rotate": (0, 135),
    "brightness": (0, 0.99),
    "color": (0, 0.99),
    "contrast": (0, 0.99),
    "sharpness": (0, 0.99),
    "posterize": (8, 2),
    "solarize": (255, 0),
    "auto_contrast": (0, 0),
    "equalize": (0, 0),
}
# Translations are fractions of the width or height.
RAND_AUGMENT = {
    "identity": (0, 0),
    "shear_x": (0, 0.3),
    "shear_y": (0, 0.3),
    "translate_x": (0, 150 / 331),
    "translate_y": (0, 150 / 331),
    "rotate": (0, 30),
    "brightness": (0, 0.9),
    "color": (0, 0.9),
    "contrast": (0, 0.9),
    "sharpness": (0, 0.9),
    "posterize": (8, 4),
    "solarize": (255, 0),
    "auto_contrast": (0, 0),
    "equalize": (0, 0),
}
TIMM_OPERATIONS = (
    "auto_contrast",
    "equalize",
    "invert",
    "rotate",
    "posterize",
    "solarize",
    "solarize_add",
    "color",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
TRANSLATIONS = ("translate_x", "translate_y")
SIGNED = ("shear_x", "shear_y", *TRANSLATIONS, "rotate")
ENHANCEMENTS = ("brightness", "color", "contrast", "sharpness")


def trivial_augment(keys: jax.Array, images: jax.Array, **options) -> jax.Array:
    """TrivialAugment (wide): one operation per image, of any magnitude.

    Args:
        keys: `[B]` keys, one per image.
        images: uint8 `[B, H, W, 3]`.
        options: `interpolation` and `fill`, as in `image_operations.apply_operations`.

    Returns:
        uint8 `[B, H, W, 3]`.

    Raises:
        ValueError: as in `image_operations.apply_operations`.

    Example:
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> images = jnp.full((4, 8, 8, 3), 7, jnp.uint8)
        >>> jax.jit(trivial_augment)(keys, images).shape
        (4, 8, 8, 3)

    Reference:
        Müller and Hutter, 2021; torchvision.transforms.TrivialAugmentWide.
    """
    return apply_operations(sample_trivial_augment(keys, images.shape[1:3]), images, **options)


def rand_augment(
    keys: jax.Array, images: jax.Array, *, operations: int = 2, magnitude: int = 9, **options
) -> jax.Array:
    """RandAugment of torchvision: several operations per image, all of one magnitude.

    Args:
        keys: `[B]` keys, one per image.
        images: uint8 `[B, H, W, 3]`.
        operations: how many, one after the other. The same one may come again.
        magnitude: 0 to 30, the position in torchvision's grid of magnitudes.
        options: `interpolation` and `fill`, as in `image_operations.apply_operations`.

    Returns:
        uint8 `[B, H, W, 3]`.

    Raises:
        ValueError: the magnitude is not a whole number from 0 to 30, or as in
            `image_operations.apply_operations`.

    Example:
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> images = jnp.full((4, 8, 8, 3), 7, jnp.uint8)
        >>> rand_augment(keys, images, operations=1, magnitude=15).shape
        (4, 8, 8, 3)

    Reference:
        Cubuk et al., 2020; torchvision.transforms.RandAugment.
    """
    sample = functools.partial(
        sample_rand_augment, spatial_shape=images.shape[1:3], magnitude=magnitude
    )
    return _apply_in_turn(keys, images, operations, sample, options)


def rand_augment_timm(
    keys: jax.Array,
    images: jax.Array,
    *,
    operations: int = 2,
    magnitude: float = 7.0,
    magnitude_std: float = 0.5,
    probability: float = 0.5,
    **options,
) -> jax.Array:
    """RandAugment of timm, by default `rand-m7-mstd0.5-inc1`.

    timm interpolates bilinearly or bicubically at random, and fills with the mean color.

    Args:
        keys: `[B]` keys, one per image.
        images: uint8 `[B, H, W, 3]`.
        operations: how many, one after the other. The same one may come again.
        magnitude: mean magnitude, 0 to 10.
        magnitude_std: standard deviation of the magnitude, which is then clipped to 0 to 10.
        probability: that of each operation to be applied at all.
        options: `interpolation` and `fill`, as in `image_operations.apply_operations`.

    Returns:
        uint8 `[B, H, W, 3]`.

    Raises:
        ValueError: the magnitude is not from 0 to 10, or as in
            `image_operations.apply_operations`.

    Example:
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> images = jnp.full((4, 8, 8, 3), 7, jnp.uint8)
        >>> rand_augment_timm(keys, images, fill=(124, 116, 104)).shape
        (4, 8, 8, 3)

    Reference:
        timm.data.auto_augment; Wightman et al., 2021.
    """
    sample = functools.partial(
        sample_rand_augment_timm,
        spatial_shape=images.shape[1:3],
        magnitude=magnitude,
        magnitude_std=magnitude_std,
        probability=probability,
    )
    return _apply_in_turn(keys, images, operations, sample, options)


def _apply_in_turn(keys, images, count, sample, options):
    for step in range(count):
        images = apply_operations(sample(fold_in_each(keys, step)), images, **options)
    return images


def fold_in_each(keys: jax.Array, number: int) -> jax.Array:
    """Other keys `[B]`, each a function of its own key and `number`."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def sample_trivial_augment(keys: jax.Array, spatial_shape: tuple[int, int]) -> Operations:
    """An operation per image, its magnitude and its sign, each of them uniform.

    Args:
        keys: `[B]` keys, one per image.
        spatial_shape: (height, width) of the images, in pixels.

    Returns:
        `Operations`, `[B]`.

    Example:
        >>> sample_trivial_augment(jax.random.split(jax.random.key(0), 4), (8, 8)).index.shape
        (4,)

    Reference:
        Müller and Hutter, 2021; torchvision.transforms.TrivialAugmentWide.
    """
    names, bins, signs = _draws(keys, len(TRIVIAL_AUGMENT), BINS, 2)
    grid = magnitude_grid(TRIVIAL_AUGMENT, spatial_shape)
    return jax.tree.map(lambda values: jnp.asarray(values)[names, bins, signs], grid)


def sample_rand_augment(
    keys: jax.Array, spatial_shape: tuple[int, int], magnitude: int = 9
) -> Operations:
    """An operation per image and its sign, both uniform.

    Args:
        keys: `[B]` keys, one per image.
        spatial_shape: (height, width) of the images, in pixels.
        magnitude: 0 to 30.

    Returns:
        `Operations`, `[B]`.

    Raises:
        ValueError: the magnitude is not a whole number from 0 to 30.

    Example:
        >>> sample_rand_augment(jax.random.split(jax.random.key(0), 4), (8, 8)).index.shape
        (4,)

    Reference:
        Cubuk et al., 2020; torchvision.transforms.RandAugment.
    """
    if magnitude not in range(BINS):
        raise ValueError(
            f"magnitude is {magnitude}, but a whole number from 0 to {BINS - 1} was expected"
        )
    height, width = spatial_shape
    spans = {"translate_x": width, "translate_y": height}
    ranges = {name: (low, high * spans.get(name, 1)) for name, (low, high) in RAND_AUGMENT.items()}
    names, signs = _draws(keys, len(RAND_AUGMENT), 2)
    grid = magnitude_grid(ranges, spatial_shape)
    return jax.tree.map(lambda values: jnp.asarray(values)[names, int(magnitude), signs], grid)


def sample_rand_augment_timm(
    keys: jax.Array,
    spatial_shape: tuple[int, int],
    magnitude: float = 7.0,
    magnitude_std: float = 0.5,
    probability: float = 0.5,
) -> Operations:
    """An operation per image, or with `1 - probability` the identity, with a noisy magnitude.

    Args:
        keys: `[B]` keys, one per image.
        spatial_shape: (height, width) of the images, in pixels.
        magnitude: mean magnitude, 0 to 10.
        magnitude_std: standard deviation of the magnitude, which is then clipped to 0 to 10.
        probability: that of an operation.

    Returns:
        `Operations`, `[B]`.

    Raises:
        ValueError: the magnitude is not from 0 to 10.

    Example:
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> sample_rand_augment_timm(keys, (8, 8), probability=0.0).index.tolist()
        [0, 0, 0, 0]

    Reference:
        timm.data.auto_augment; Wightman et al., 2021.
    """
    if not 0 <= magnitude <= TIMM_MAX:
        raise ValueError(
            f"magnitude is {magnitude}, but a number from 0 to {TIMM_MAX} was expected"
        )

    def draw(key):
        for_skip, for_noise, for_choice = jax.random.split(key, 3)
        return (
            jax.random.uniform(for_skip) < probability,
            jax.random.normal(for_noise),
            jax.random.bits(for_choice, (2,)),
        )

    used, noise, bits = jax.vmap(draw)(keys)
    names = bits[:, 0] % len(TIMM_OPERATIONS)
    level = jnp.clip(magnitude + magnitude_std * noise, 0, TIMM_MAX)
    magnitudes = timm_magnitudes(level, bits[:, 1] >> 31 == 1, spatial_shape)
    chosen = jnp.stack([magnitudes[name] for name in TIMM_OPERATIONS])[names, jnp.arange(len(keys))]
    index = jnp.array([INDEX[name] for name in TIMM_OPERATIONS])[names]
    return create_operations(jnp.where(used, index, INDEX["identity"]), chosen, spatial_shape)


def _draws(keys, *counts):
    """Integers `[B]` from 0 to below each of `counts`, all equally likely."""
    bits = jax.vmap(lambda key: jax.random.bits(key, (len(counts),)))(keys)
    return [(bits[:, i] % count).astype(jnp.int32) for i, count in enumerate(counts)]


def magnitude_grid(ranges: dict, spatial_shape: tuple[int, int]) -> Operations:
    """All operations of a policy of torchvision: `[operations, 31, 2]`, the last axis for the sign.

    Args:
        ranges: least and greatest magnitude for each operation's name.
        spatial_shape: (height, width) of the images, in pixels.

    Returns:
        `Operations` of NumPy's arrays. Both signs of an operation without sign are the same.

    Example:
        >>> grid = magnitude_grid({'posterize': (8, 4), 'shear_x': (0, 0.3)}, (8, 8))
        >>> grid.magnitude[:, 30].round(2).tolist()
        [[4.0, 4.0], [0.30000001192092896, -0.30000001192092896]]

    Reference:
        torchvision.transforms.autoaugment.
    """
    magnitudes = []
    for name, (low, high) in ranges.items():
        values = np.linspace(low, high, BINS, dtype=np.float32).astype(np.float64)
        if name == "posterize":
            values = values.round()
        if name in TRANSLATIONS:
            values = np.trunc(values)
        signed = name in SIGNED or name in ENHANCEMENTS
        both = np.stack([values, -values if signed else values], -1)
        magnitudes.append(1 + both if name in ENHANCEMENTS else both)
    index = np.array([INDEX[name] for name in ranges])[:, None, None]
    index = np.broadcast_to(index, (len(ranges), BINS, 2))
    return create_operations(index, np.stack(magnitudes), spatial_shape)


def timm_magnitudes(level, negative, spatial_shape: tuple[int, int]) -> dict:
    """The magnitude of each operation for a level of timm's increasing set.

    Args:
        level: float `[B]`, 0 to 10.
        negative: bool `[B]`, whether those with a sign get the other one.
        spatial_shape: (height, width) of the images, in pixels.

    Returns:
        A dict from names to float `[B]`, in the operations' own units.

    Example:
        >>> found = timm_magnitudes(jnp.array([7.0]), jnp.array([False]), (10, 10))
        >>> {name: found[name].tolist() for name in ('posterize', 'solarize', 'solarize_add')}
        {'posterize': [2.0], 'solarize': [77.0], 'solarize_add': [77.0]}

    Reference:
        timm.data.auto_augment, with `inc1`.
    """
    height, width = spatial_shape
    part = level / TIMM_MAX
    signed = jnp.where(negative, -part, part)
    nothing = jnp.zeros_like(part)
    enhancement = jnp.maximum(0.1, 1 + 0.9 * signed)
    return {
        "auto_contrast": nothing,
        "equalize": nothing,
        "invert": nothing,
        "rotate": 30 * signed,
        "posterize": 4 - jnp.floor(4 * part),
        "solarize": 256 - jnp.floor(256 * part),
        "solarize_add": jnp.floor(110 * part),
        **dict.fromkeys(ENHANCEMENTS, enhancement),
        "shear_x": 0.3 * signed,
        "shear_y": 0.3 * signed,
        "translate_x": 0.45 * width * signed,
        "translate_y": 0.45 * height * signed,
    }
