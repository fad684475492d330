"""Positions of central and random crops.

Random numbers depend only on (seed, epoch, index). So an image's crop is the same for any reader,
order and number of restarts.
"""

import math

import numpy as np

RATIO = 4 / 3  # largest aspect ratio of a random-resized crop; the smallest is its inverse
ATTEMPTS = 10
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def sample(seed: int, epoch: int, index: np.ndarray, copy: np.ndarray | None = None) -> np.ndarray:
    """The random numbers of given images in one epoch.

    Args:
        seed: seed of the run.
        epoch: epoch, counted from 0.
        index: int `[n]`, indices of the images.
        copy: int `[n]`, numbers of their repetitions; None: 0.

    Returns:
        float64 `[n, ATTEMPTS, 4]`, uniform in [0, 1): for each attempt the area, ratio, top and
        left of a box.

    Example:
        >>> numbers = sample(0, 1, np.array([5, 7]))
        >>> bool((numbers[1] == sample(0, 1, np.array([7]))[0]).all())
        True
    """
    key = np.random.SeedSequence((seed, epoch)).generate_state(2)
    # Each call of the generator returns two numbers.
    pair = np.arange(2 * ATTEMPTS, dtype=np.uint32)
    x, y = np.meshgrid(np.uint32(index), pair, indexing="ij")
    if copy is not None:
        y = y + np.uint32(2 * ATTEMPTS * copy)[:, None]
    bits = np.stack(threefry(key, x, y), -1)
    return bits.reshape(-1, ATTEMPTS, 4) * 2.0**-32


def threefry(key, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Threefry-2x32 with 20 rounds: two random uint32 arrays for a key and the counters (x, y).

    This is the generator of `jax.random`, in NumPy.

    Reference:
        Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011.
    """
    keys = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    x, y = x + keys[0], y + keys[1]
    for block in range(5):
        for rotation in ROTATIONS[block % 2]:
            x = x + y
            y = (y << np.uint32(rotation) | y >> np.uint32(32 - rotation)) ^ x
        x = x + keys[(block + 1) % 3]
        y = y + keys[(block + 2) % 3] + np.uint32(block + 1)
    return x, y


def random_resized(
    numbers: np.ndarray, height: int, width: int, area: tuple[float, float]
) -> tuple[int, int, int, int]:
    """The box (top, left, height, width) of a random-resized crop, as in torchvision.

    Each of ten attempts samples a fraction `a ~ U(area)` of the image and an aspect ratio `r` of
    width to height, log-uniform on [3/4, 4/3]. The box has height `sqrt(a H W / r)` and width
    `sqrt(a H W r)`. The first box that fits into the image is placed uniformly. If none fits, the
    result is the largest central box with an allowed ratio.

    Args:
        numbers: float `[ATTEMPTS, 4]`, from `sample`.
        height: H.
        width: W.
        area: smallest and largest fraction.

    Example:
        >>> random_resized(np.full((ATTEMPTS, 4), 0.5), 60, 80, (0.25, 0.25))
        (13, 23, 35, 35)
    """
    for fraction, ratio, down, right in numbers.tolist():
        pixels = height * width * (area[0] + (area[1] - area[0]) * fraction)
        ratio = RATIO ** (2 * ratio - 1)
        tall, wide = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 1 <= tall <= height and 1 <= wide <= width:
            return *position((down, right), (height, width), (tall, wide)), tall, wide
    ratio = min(max(width / height, 1 / RATIO), RATIO)
    tall, wide = min(height, round(width / ratio)), min(width, round(height * ratio))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def position(numbers, size, part) -> tuple[int, int]:
    """(top, left) of a crop `part` in an image of `size`, uniform for uniform `numbers` [2]."""
    top, left = (int(u * (n - k + 1)) for u, n, k in zip(numbers, size, part, strict=True))
    return top, left


def central(
    height: int, width: int, shape: tuple[int, int], resize: int, square: bool
) -> tuple[tuple[int, int], tuple[int, int]]:
    """((height, width) of the resized image, (top, left) of the central crop).

    `resize` is the shorter side, or both sides if `square` is set.

    Example:
        >>> central(300, 400, (224, 224), 256, square=False)
        ((256, 341), (16, 58))
    """
    shorter = min(height, width)
    resized = (resize * height // shorter, resize * width // shorter)
    if square:
        resized = (resize, resize)
    # Rounds half to even, as in torchvision.
    top, left = (round((n - k) / 2) for n, k in zip(resized, shape, strict=True))
    return resized, (top, left)
