"""Shapes: images of colored, textured shapes on cluttered backgrounds, rendered by NumPy.

Each example depends only on (seed, index). Its class is the form of the object. Color, texture,
position, size and rotation have the same distribution for all classes, so only the form reveals the
class. The background has scraps of every color, so color does not reveal the position.
"""

import dataclasses
import functools
import math
import sys

import numpy as np
from ml_collections import ConfigDict

from cutmix_jax import UserError
from cutmix_jax.data import cache
from cutmix_jax.data.batches import check_fits, pad, random_state

CLASS_NAMES = (
    "disc",
    "ring",
    "square",
    "triangle",
    "star",
    "cross",
    "heart",
    "crescent",
    "arrow",
    "hourglass",
)
COLORS = {
    "red": (205, 50, 45),
    "orange": (235, 140, 40),
    "yellow": (230, 210, 70),
    "green": (60, 155, 70),
    "cyan": (70, 185, 195),
    "blue": (55, 85, 190),
    "purple": (140, 70, 170),
    "pink": (235, 140, 180),
    "brown": (120, 80, 50),
    "gray": (130, 130, 130),
}
TEXTURES = ("plain", "striped", "dotted", "chequered")
# Part of the cache key. Increase it when examples change.
VERSION = 1
SEEDS = {"train": 0, "test": 1}
DEFAULT_SIZE, SMALLEST_SIZE = 64, 16
SMALLEST_OF_SEVERAL = 8  # times the square root of their number
TRAIN_EXAMPLES, TEST_EXAMPLES = 10_000, 2_000

_NAMES, _RGB = tuple(COLORS), np.array(list(COLORS.values()), np.float32)
RADIUS = (0.2, 0.38)  # of an object, relative to the side of the image
TURN = 20.0  # maximum rotation in degrees
JITTER = 20.0  # of a color's channels, in [0, 255]
SCRAPS = (2, 6)
MUTED, GRAY = 0.5, 150.0  # backgrounds are mixed with gray, so objects stand out
GRID = 5  # coarse squares per side of the background's shading
TRIES = 20  # to place another object next to the others


@dataclasses.dataclass(frozen=True)
class Example:
    """One image and its annotations.

    Attributes:
        image: uint8 [size, size, 3].
        label: class of the first object, which is the largest.
        labels: int32 [n], the class of each object.
        boxes: float32 [n, 4], (top, left, bottom, right) as fractions of the side, half-open,
            tight.
        mask: uint8 [size, size], 0 for the background and k for the k-th object.
        caption: one sentence.
    """

    image: np.ndarray
    label: int
    labels: np.ndarray
    boxes: np.ndarray
    mask: np.ndarray
    caption: str


def draw_example(seed: int, index: int, size: int = DEFAULT_SIZE, max_objects: int = 1) -> Example:
    """Renders one image, which depends only on the arguments.

    Args:
        seed: seed of a sequence of images; train and test have one each.
        index: index in the sequence.
        size: side in pixels, at least 16.
        max_objects: maximum number of objects; they do not overlap. Fewer fit into some images.

    Returns:
        An `Example`.

    Raises:
        UserError: the size is too small to distinguish the forms of so many objects.

    Example:
        >>> example = draw_example(seed=0, index=0)
        >>> example.image.shape, CLASS_NAMES[example.label], example.caption
        ((64, 64, 3), 'hourglass', 'A dotted gray hourglass on a purple ground.')
    """
    check_size(size, max_objects)
    random = random_state(seed, index)
    grounds = random.permutation(len(COLORS))
    image = _draw_ground(random, size, _RGB[grounds[0]])
    mask = np.zeros((size, size), np.uint8)
    labels, boxes, phrases = [], [], []
    count = random.randint(1, max_objects + 1)
    radii = np.sort(random.uniform(*RADIUS, count))[::-1] / np.sqrt(count)
    for radius in radii:
        label = random.randint(len(CLASS_NAMES))
        place = _find_place(random, radius, boxes)
        if place is None:
            continue
        color = grounds[random.randint(1, len(grounds))]  # differs from the background
        texture = random.randint(len(TEXTURES))
        box = _draw_object(
            random, image, mask, len(boxes) + 1, place, radius, label, color, texture
        )
        labels.append(label)
        boxes.append(box)
        adjectives = [TEXTURES[texture]] * (texture > 0) + [_NAMES[color]]
        phrases.append(_with_article(" ".join([*adjectives, CLASS_NAMES[label]])))
    listed = " and ".join([", ".join(phrases[:-1]), phrases[-1]] if phrases[1:] else phrases)
    caption = f"{listed} on {_with_article(f'{_NAMES[grounds[0]]} ground')}."
    return Example(
        image=np.clip(image + 0.5, 0, 255).astype(np.uint8),
        label=labels[0],
        labels=np.asarray(labels, np.int32),
        boxes=np.asarray(boxes, np.float32),
        mask=mask,
        caption=caption[0].upper() + caption[1:],
    )


def check_size(size: int, max_objects: int = 1) -> None:
    """Rejects images that are too small to show a form."""
    smallest = max(SMALLEST_SIZE, math.ceil(SMALLEST_OF_SEVERAL * math.sqrt(max_objects)))
    if size < smallest:
        raise UserError(
            f"image_size={size} is too small for dataset=shapes with max_objects={max_objects}, "
            f"which needs at least {smallest} pixels. Use a larger --config.image_size."
        )


def size_and_counts(config: ConfigDict) -> tuple[int, dict[str, int]]:
    """The side of the images and their number per split, from the config."""
    if config.source == "streaming":
        raise UserError(
            "shapes is always resident, but config.source is 'streaming'. Use --config.source=auto."
        )
    size = config.image_size or DEFAULT_SIZE
    check_size(size, config.max_objects)
    wanted = config.train_examples or TRAIN_EXAMPLES - config.held_out
    counts = {"train": wanted + config.held_out, "test": TEST_EXAMPLES}
    check_fits(config, sum(counts.values()), (size, size, 3))
    return size, counts


def read_arrays(
    size: int, counts: dict[str, int], max_objects: int = 1, keys=("image", "label", "boxes")
) -> dict:
    """`{'train': {'image', 'label', 'boxes'}, 'test': ...}`, rendered or from the cache.

    Labels are int32 [N], boxes float32 [N, 1, 4] as fractions of the side. With several objects,
    labels are [N, max_objects] and boxes [N, max_objects, 4]; the padding is -1 and 0. `keys`
    chooses among these and 'caption', text [N].
    """

    def make() -> dict[str, np.ndarray]:
        print(f"Rendering {sum(counts.values()):,} shapes, once.", file=sys.stderr, flush=True)
        flat = {}
        for split, count in counts.items():
            drawn = [draw_example(SEEDS[split], i, size, max_objects) for i in range(count)]
            labels = pad([example.labels for example in drawn], max_objects, -1)
            flat[f"{split}/image"] = np.stack([example.image for example in drawn])
            flat[f"{split}/label"] = labels[:, 0] if max_objects == 1 else labels
            flat[f"{split}/boxes"] = pad([example.boxes for example in drawn], max_objects, 0)
            flat[f"{split}/caption"] = np.array([example.caption for example in drawn])
        return flat

    several = "" if max_objects == 1 else f" {max_objects}"
    needed = [f"{split}/{key}" for split in counts for key in keys]
    flat = cache.load_or_make("shapes", f"{VERSION} {size} {counts}{several}", make, needed)
    return {split: {key: flat[f"{split}/{key}"] for key in keys} for split in counts}


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


@functools.cache
def _pixels(size: int) -> np.ndarray:
    """float32 [2, size, size]: y and x of the pixels' centers, as fractions of the side."""
    return (np.mgrid[:size, :size].astype(np.float32) + 0.5) / size


def _draw_ground(random, size: int, color: np.ndarray) -> np.ndarray:
    """float32 [size, size, 3]: uneven shading in one color, and scraps in all colors."""
    shading = random.uniform(-1, 1, (GRID, GRID, 1)).astype(np.float32) * 30
    shading = shading + random.uniform(-1, 1, (GRID, GRID, 3)).astype(np.float32) * 10
    pale = MUTED * color + (1 - MUTED) * GRAY
    image = _enlarge(shading, size) + (pale + _jitter(random))
    for _ in range(random.randint(*SCRAPS)):
        # Long and thin, or small, so none looks like an object.
        half = np.array([random.uniform(0.01, 0.035), random.uniform(0.05, 0.16)])
        center = random.uniform(0, 1, 2)
        reach = half[1] * 1.1
        window, pixels = _window(size, center, reach)
        y, x = np.abs(_turned(pixels, center, random.uniform(0, 360)))
        round_ends = random.randint(2)
        distance = (
            (np.hypot(y / half[0], x / half[1]) - 1) * half[0]
            if round_ends
            else np.maximum(y - half[0], x - half[1])
        )
        _paint(image, window, distance, _RGB[random.randint(len(COLORS))] + _jitter(random))
    return image + random.normal(0, 4, image.shape).astype(np.float32)


def _enlarge(grid: np.ndarray, size: int) -> np.ndarray:
    """Resizes [g, g, C] to [size, size, C], bilinear."""
    place = np.linspace(0, len(grid) - 1, size, dtype=np.float32)
    low = np.minimum(place.astype(int), len(grid) - 2)
    weight = (place - low)[:, None, None]
    rows = grid[low] * (1 - weight) + grid[low + 1] * weight
    weight = weight.reshape(1, -1, 1)
    return rows[:, low] * (1 - weight) + rows[:, low + 1] * weight


def _jitter(random) -> np.ndarray:
    return random.uniform(-JITTER, JITTER, 3).astype(np.float32)


def _window(size: int, center, reach: float):
    """(slices, pixels [2, h, w]) of the part of the image within `reach` of `center`."""
    low = np.clip(np.floor((center - reach) * size), 0, size).astype(int)
    high = np.clip(np.ceil((center + reach) * size) + 1, 0, size).astype(int)
    window = (slice(low[0], high[0]), slice(low[1], high[1]))
    return window, _pixels(size)[(slice(None), *window)]


def _turned(pixels: np.ndarray, center, degrees: float) -> np.ndarray:
    """[2, h, w]: y (down) and x of the pixels relative to a rotated `center`."""
    y, x = pixels[0] - np.float32(center[0]), pixels[1] - np.float32(center[1])
    c, s = np.float32(np.cos(np.radians(degrees))), np.float32(np.sin(np.radians(degrees)))
    return np.stack([c * y - s * x, s * y + c * x])


def _paint(image: np.ndarray, window, distance: np.ndarray, color) -> np.ndarray:
    """Paints where `distance` (as a fraction of the side) is negative; the edge is antialiased."""
    cover = np.clip(0.5 - distance * len(image), 0, 1).astype(np.float32)
    part = image[window]
    part += cover[..., None] * (color - part)
    return cover >= 0.5


def _find_place(random, radius: float, boxes: list):
    """A center (y, x) whose object fits into the image and overlaps no other; or None."""
    for _ in range(TRIES):
        center = random.uniform(radius, 1 - radius, 2)
        low, high = center - radius, center + radius
        if all((high < box[:2]).any() or (low > box[2:]).any() for box in boxes):
            return center
    return None


def _draw_object(random, image, mask, number, center, radius, label, color, texture):
    """Renders one object; returns its box as fractions of the side."""
    size = len(image)
    window, pixels = _window(size, center, radius * 1.05)
    place = _turned(pixels, center, random.uniform(-TURN, TURN)) / np.float32(radius)
    distance = FORMS[CLASS_NAMES[label]](*place) * np.float32(radius)
    paint = _RGB[color] + _jitter(random)
    # The second tone is darker or lighter than the first, depending on its brightness.
    other = paint * 0.65 if paint.mean() > 110 else paint * 0.7 + 75
    pattern = _pattern(random, TEXTURES[texture], place, radius * size)
    painted = _paint(image, window, distance, paint + pattern[..., None] * (other - paint))
    mask[window][painted] = number
    rows, columns = np.flatnonzero(painted.any(1)), np.flatnonzero(painted.any(0))
    top, left = window[0].start, window[1].start
    corners = (top + rows[0], left + columns[0], top + rows[-1] + 1, left + columns[-1] + 1)
    return np.asarray(corners, np.float32) / np.float32(size)


def _pattern(random, texture: str, place: np.ndarray, pixels: float) -> np.ndarray:
    """float32 [h, w], 1 for the second tone of a texture."""
    # Waves across the object, each at least four pixels wide.
    waves = min(random.uniform(1.6, 3.0), pixels / 2)
    y, x = np.sin(place * np.float32(np.pi * waves) + random.uniform(0, 6, (2, 1, 1)))
    wave = {
        "plain": -1.0 + 0 * y,
        "striped": y,
        "dotted": y * x - 0.3,
        "chequered": y * x,
    }[texture]
    return (wave > 0).astype(np.float32)


# Forms: y (down) and x in radii of the object -> (approximate) signed distance to the edge,
# negative inside. All forms lie within the unit disc.


def _polygon(y, x, corners):
    """Signed distance to the edges, by the even-odd rule."""
    nearest, inside = np.full(y.shape, 9.0, np.float32), np.zeros(y.shape, bool)
    for (y0, x0), (y1, x1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        dy, dx = y1 - y0, x1 - x0
        along = np.clip(((y - y0) * dy + (x - x0) * dx) / (dy * dy + dx * dx), 0, 1)
        nearest = np.minimum(nearest, (y - y0 - along * dy) ** 2 + (x - x0 - along * dx) ** 2)
        if dy:
            inside ^= ((y < y0) != (y < y1)) & (x < x0 + (y - y0) * (dx / dy))
    return np.where(inside, -1, 1) * np.sqrt(nearest)


def _around(*spokes):
    """Corners (y, x) from (degrees clockwise from the top, radius)."""
    return [(-r * np.cos(np.radians(a)), r * np.sin(np.radians(a))) for a, r in spokes]


def _disc(y, x):
    return np.hypot(y, x) - 0.9


def _ring(y, x):
    return np.abs(np.hypot(y, x) - 0.73) - 0.22


def _square(y, x):
    return np.maximum(np.abs(y), np.abs(x)) - 0.7


def _cross(y, x):
    y, x = np.abs(y), np.abs(x)
    return np.minimum(np.maximum(y - 0.95, x - 0.28), np.maximum(y - 0.28, x - 0.95))


def _heart(y, x):
    x = np.abs(x)
    lobes = np.hypot(y + 0.3, x - 0.42) - 0.48
    point = np.maximum((x * 0.8 + y * 0.62 - 0.56), -0.3 - y)
    return np.minimum(lobes, point)


def _crescent(y, x):
    return np.maximum(np.hypot(y, x) - 0.95, 0.72 - np.hypot(y + 0.1, x - 0.5))


FORMS = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "triangle": functools.partial(_polygon, corners=_around((0, 0.98), (120, 0.98), (240, 0.98))),
    "star": functools.partial(
        _polygon, corners=_around(*((36 * i, 0.42 if i % 2 else 0.98) for i in range(10)))
    ),
    "cross": _cross,
    "heart": _heart,
    "crescent": _crescent,
    "arrow": functools.partial(
        _polygon,
        corners=[
            (-0.95, 0),
            (-0.05, 0.7),
            (-0.05, 0.26),
            (0.9, 0.26),
            (0.9, -0.26),
            (-0.05, -0.26),
            (-0.05, -0.7),
        ],
    ),
    "hourglass": functools.partial(
        _polygon,
        corners=[(-0.75, -0.62), (-0.75, 0.62), (0, 0.08), (0.75, 0.62), (0.75, -0.62), (0, -0.08)],
    ),
}
