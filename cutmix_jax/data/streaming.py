"""Data sets that do not fit into device memory: decoded by tf.data, batch by batch.

The order is the same permutation of indices as for resident data. Each process reads and decodes
its own slice of every global batch and nothing else; an epoch is entered in the middle by leaving
out indices, before anything is read. Padding, crop and flip run on the device, as for resident
data, keyed by (seed, epoch, index); the random-resized crop belongs to decoding and is keyed by
the same three numbers.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from cutmix_jax import UserError, host
from cutmix_jax.data import augment, batches, boxes, records, resident
from cutmix_jax.data.batches import Data, Shards
from cutmix_jax.data.settings import Settings

DEFAULT_SIZE = 224
# The shorter side at evaluation in units of the crop: 256 for 224.
DEFAULT_RESIZE = 256 / 224
LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))
ATTEMPTS = 10
# Batches that wait on the host; each is decoded well before its step.
PREFETCH = 4
# Records that one call into Python reads; a call for each would take longer than its reading.
READ_TOGETHER = 16


def open_streaming(settings: Settings, image_set: records.ImageSet, shards: Shards) -> Data:
    """Data over the records of `image_set`."""
    records.import_tensorflow()
    num_classes = len(image_set.class_names)
    indices = batches.choose_splits(
        {name: split.count for name, split in image_set.splits.items()}, settings
    )
    for name, split in image_set.splits.items():
        if split.labels is not None:
            resident.check_labels(split.labels, num_classes, f"split {name}")
    shape = _shape(settings, image_set)
    counts = {name: len(index) for name, (_, index) in indices.items()}
    size = settings.batch_size
    resize = _resize(settings, image_set, shape)
    square = settings.square_resize is not None
    prepare_eval = functools.partial(_decode_for_eval, shape=shape, resize=resize, square=square)
    prepare_train = prepare_eval
    if square:
        prepare_train = functools.partial(_decode_square_and_crop, shape=shape, resize=resize)
    if settings.min_area is not None:
        area = (settings.min_area, settings.max_area)
        prepare_train = functools.partial(_decode_and_crop, shape=shape, area=area)

    def boxes_of(name: str, i: int) -> np.ndarray:
        split = image_set.splits[name]
        resized, offset = shape[:2], (0, 0)
        if resize is not None:
            size = records.stored_size(split, i)
            resized, offset = central_crop(*size, shape, resize, square, min)
        return boxes.in_pixels(split.boxes(i), resized, offset, shape)

    def stream(name, positions, mask, prepare, seed):
        origin, index = indices[name]
        split = image_set.splits[origin]
        leading = positions.shape[1:]
        decoded = _decode_all(split, index[positions], positions, prepare, seed, shape[2])
        for step, (images, labels) in enumerate(decoded):
            resident.check_labels(labels, num_classes, f"split {name}")
            yield {
                "image": images.reshape(*leading, *shape),
                "label": labels.reshape(leading).astype(np.int32),
                "index": positions[step].astype(np.int32),
                "mask": mask[step],
            }

    def train_batches(epoch: int, start_step: int = 0):
        positions = batches.train_positions(
            settings.seed, epoch, counts["train"], size, shards, start_step
        )
        seed = int(np.random.SeedSequence((settings.seed, epoch)).generate_state(1)[0])
        mask = np.ones(positions.shape, bool)
        for xs in stream("train", positions, mask, prepare_train, seed):
            yield xs | {"seed": batches.seeds(settings.seed, shards)}

    def eval_batches(split: str, order: np.ndarray | None = None):
        positions, mask = batches.eval_positions(counts[split], size, shards, order)
        return stream(split, positions, mask, prepare_eval, 0)

    def digest(name: str) -> str:
        origin, index = indices[name]
        split = image_set.splits[origin]
        labels = [] if split.labels is None else [split.labels[index].tobytes()]
        return records.digest(itertools.chain((split.read(int(i)) for i in index), labels))

    return Data(
        kind="streaming",
        num_classes=num_classes,
        class_names=image_set.class_names,
        image_shape=shape,
        examples=counts,
        batch_size=size,
        arrays=dict.fromkeys(indices, ()),
        load_train=functools.partial(
            augment.load_augmented,
            load=load_eval,
            pad=settings.pad,
            pad_mode=settings.pad_mode,
            flip=settings.flip,
        ),
        load_eval=load_eval,
        train_batches=train_batches,
        train_shapes=batches.train_shapes(size, shards, shape),
        eval_batches=eval_batches,
        color=augment.create_color(settings.color_jitter, settings.lighting),
        digest=digest,
        boxes=boxes.per_split(indices, boxes_of if records.have_boxes(image_set) else None),
    )


def load_eval(arrays, xs) -> dict:
    """The batch as it came from the host."""
    del arrays
    return {key: xs[key] for key in ("image", "label", "mask")}


def _shape(settings: Settings, image_set: records.ImageSet) -> tuple[int, int, int]:
    """(H, W, C) of the images handed out."""
    height, width, channels = image_set.shape
    if settings.image_size:
        return settings.image_size, settings.image_size, channels
    if height is None or settings.streaming_only:
        return DEFAULT_SIZE, DEFAULT_SIZE, channels
    return height, width, channels


def _resize(settings: Settings, image_set: records.ImageSet, shape) -> int | None:
    """The shorter side before the crop; None where images already have their size."""
    if not settings.streaming_only:
        return None if image_set.shape == shape else shape[0]
    key = "eval_resize" if settings.square_resize is None else "square_resize"
    resize = getattr(settings, key) or round(shape[0] * DEFAULT_RESIZE)
    if resize < shape[0]:
        raise UserError(
            f"{key}={resize} is smaller than image_size={shape[0]}, which is cut out of "
            f"it: use a larger --config.{key}"
        )
    return resize


def _decode_all(
    split: records.Split,
    rows: np.ndarray,
    positions: np.ndarray,
    prepare: Callable,
    seed: int,
    channels: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(images, labels) per step, for rows (indices of records) and positions [steps, ...]."""
    import tensorflow as tf

    steps = len(rows)
    rows, positions = rows.reshape(steps, -1), positions.reshape(steps, -1)
    if not steps:
        return

    def read(rows, positions):
        return (*_fetch(split, rows), positions)

    def decode(encoded, label, position):
        return prepare(encoded, channels, tf.stack([np.int64(seed), position])), label

    def load(row):
        (encoded,), (label,) = _fetch(split, row[None])
        return decode(encoded, label, np.int64(0))

    parallel = {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": True}
    stream = tf.data.Dataset.from_tensor_slices((rows.reshape(-1), positions.reshape(-1)))
    stream = stream.batch(READ_TOGETHER).map(read, **parallel).unbatch().map(decode, **parallel)
    stream = stream.batch(rows.shape[1], drop_remainder=True).prefetch(PREFETCH)
    options = tf.data.Options()
    # Images are shared among threads, one thread each: parts of an image are too small for that.
    options.threading.max_intra_op_parallelism = 1
    options.threading.private_threadpool_size = host.cores() + 1
    stream = stream.with_options(options)
    iterator = stream.as_numpy_iterator()
    for step in range(steps):
        try:
            images, labels = next(iterator)
        except tf.errors.OpError as error:
            raise _explained(split, rows[step], load, error) from error
        yield images, labels


def _fetch(split: records.Split, rows):
    """(encoded images, labels) of several records, as tensors."""
    import tensorflow as tf

    def read(rows):
        return np.array([split.read(row) for row in rows], object)

    # stateful=False: reading has no side effects, and tf.data may run it in parallel.
    data = tf.numpy_function(read, [rows], tf.string, stateful=False)
    data.set_shape((None,))
    if split.labels is not None:
        return data, tf.gather(split.labels, rows)
    features = {
        "image": tf.io.FixedLenFeature((), tf.string),
        "label": tf.io.FixedLenFeature((), tf.int64),
    }
    parsed = tf.io.parse_example(data, features)
    return parsed["image"], parsed["label"]


def _explained(split: records.Split, rows, load: Callable, error: Exception) -> Exception:
    """A UserError that names the record that fails; the error itself where none does."""
    import tensorflow as tf

    for row in rows:
        try:
            load(row)
        except tf.errors.OpError as cause:
            return UserError(
                f"{split.name(int(row))} is not a readable image of the expected shape "
                f"({str(cause.message).splitlines()[0]}): replace or remove it"
            )
    return error


def _decode(encoded, channels: int, box: Callable):
    """uint8 [h, w, C]: of an encoded image the part (top, left, h, w) = box(height, width)."""
    import tensorflow as tf

    def jpeg():
        # Only the blocks under the box are decoded.
        shape = tf.io.extract_jpeg_shape(encoded)
        return tf.io.decode_and_crop_jpeg(
            encoded,
            tf.stack(box(shape[0], shape[1])),
            channels=channels,
            dct_method="INTEGER_ACCURATE",  # the pixels that Pillow gives
        )

    def other():
        image = tf.io.decode_image(encoded, channels=channels, expand_animations=False)
        image.set_shape((None, None, channels))
        top, left, height, width = box(tf.shape(image)[0], tf.shape(image)[1])
        return image[top : top + height, left : left + width]

    return tf.cond(tf.io.is_jpeg(encoded), jpeg, other)


def _decode_and_crop(encoded, channels: int, seed, *, shape, area):
    """A random box of the image, resized to `shape`."""

    def box(height, width):
        return random_resized_box(seed, height, width, area)

    return _resized(_decode(encoded, channels, box), shape)


def _decode_square_and_crop(encoded, channels: int, seed, *, shape, resize: int):
    """The image resized to a square, whatever its aspect, and a random `shape` of it."""
    import tensorflow as tf

    image = _resized(_decode_whole(encoded, channels), (resize, resize))
    height, width = shape[:2]
    draws = tf.random.stateless_uniform((2,), seed)
    top = tf.cast(draws[0] * (resize - height + 1), tf.int32)
    left = tf.cast(draws[1] * (resize - width + 1), tf.int32)
    return tf.ensure_shape(image[top : top + height, left : left + width], shape)


def _decode_for_eval(encoded, channels: int, seed, *, shape, resize: int | None, square: bool):
    """The image resized as `central_crop` says, and the central `shape` of it."""
    import tensorflow as tf

    del seed
    image = _decode_whole(encoded, channels)
    if resize is None:
        return tf.ensure_shape(image, shape)
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    resized, (top, left) = central_crop(height, width, shape, resize, square, tf.minimum)
    image = _resized(image, resized)
    return tf.ensure_shape(image[top : top + shape[0], left : left + shape[1]], shape)


def _decode_whole(encoded, channels: int):
    return _decode(encoded, channels, lambda height, width: (0, 0, height, width))


def central_crop(height, width, shape, resize: int, square: bool, minimum: Callable):
    """((height, width) of the resized image, (top, left) of the crop), for integers or tensors.

    `resize` is the shorter side, or both where the image becomes a square.
    """
    shorter = minimum(height, width)
    resized = (resize * height // shorter, resize * width // shorter)
    if square:
        resized = (resize, resize)
    return resized, (_half(resized[0] - shape[0]), _half(resized[1] - shape[1]))


def _half(n):
    """n / 2, rounded to even, as torchvision's central crop has it."""
    return n // 2 + n % 2 * (n // 2 % 2)


def _resized(image, shape):
    """uint8 `shape`, bilinear, with the filter widened when shrinking, as Pillow does.

    The horizontal and then the vertical pass, with transposes between. TensorFlow's kernel takes
    a pixel at a time along a row, but whole rows along a column, so that this way takes half as
    long as `tf.image.resize` of both sides.
    """
    import tensorflow as tf

    height, width = shape[:2]
    channels = image.shape[2]
    columns = _resized_first(tf.transpose(image, (1, 2, 0)), width)  # [width, C, h]
    rows = tf.transpose(tf.reshape(columns, (width * channels, -1)))  # [h, width C]
    pixels = tf.reshape(_resized_first(rows, height), (height, width, channels))
    # Weighted means of bytes need no saturation.
    return tf.cast(tf.round(pixels), tf.uint8)


def _resized_first(array, size):
    """float32 [size, the product of all other axes], from numbers [n, ...]."""
    import tensorflow as tf

    array = tf.reshape(array, (tf.shape(array)[0], 1, -1))
    return tf.image.resize(array, (size, 1), method="bilinear", antialias=True)[:, 0]


def random_resized_box(seed, height, width, area: tuple[float, float]):
    """(top, left, height, width), int32, of a random-resized crop, as torchvision draws it.

    Ten times a share `a ~ U(area)` of the image and a ratio `r` of width to height, log-uniform
    on [3/4, 4/3], give a box of sides `sqrt(a H W / r)` and `sqrt(a H W r)`; the first that lies
    within the image is placed uniformly. If none does, the largest central box of an allowed
    ratio is taken.

    Args:
      seed: int64 `[2]`, the only source of randomness.
      height: int32 scalar tensor, H.
      width: int32 scalar tensor, W.
      area: lowest and highest share.

    Returns:
      Four int32 scalar tensors.
    """
    import tensorflow as tf

    draws = tf.random.stateless_uniform((4, ATTEMPTS), seed)
    tall, wide = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    pixels = tall * wide * (area[0] + (area[1] - area[0]) * draws[0])
    ratio = tf.exp(LOG_RATIO[0] + (LOG_RATIO[1] - LOG_RATIO[0]) * draws[1])
    box_height, box_width = tf.round(tf.sqrt(pixels / ratio)), tf.round(tf.sqrt(pixels * ratio))
    fits = (box_height >= 1) & (box_width >= 1) & (box_height <= tall) & (box_width <= wide)
    first = tf.argmax(tf.cast(fits, tf.int32))
    found = fits[first]
    # Where none fits: the ratio of the image, brought into the allowed range.
    allowed = tf.clip_by_value(wide / tall, math.exp(LOG_RATIO[0]), math.exp(LOG_RATIO[1]))
    box_height = tf.where(found, box_height[first], tf.minimum(tall, tf.round(wide / allowed)))
    box_width = tf.where(found, box_width[first], tf.minimum(wide, tf.round(tall * allowed)))
    top = tf.where(
        found, tf.floor(draws[2, first] * (tall - box_height + 1)), (tall - box_height) // 2
    )
    left = tf.where(
        found, tf.floor(draws[3, first] * (wide - box_width + 1)), (wide - box_width) // 2
    )
    return tuple(tf.cast(value, tf.int32) for value in (top, left, box_height, box_width))
