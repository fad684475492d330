"""Datasets that do not fit into device memory: decoded by threads, batch by batch.

The order is the same permutation of indices as for resident data. Each process reads and decodes
its own slice of every global batch and nothing else; an epoch is entered in the middle by leaving
out indices, before anything is read. Padding, crop and flip run on the device, as for resident
data, keyed by (seed, epoch, index); the random-resized crop belongs to decoding and is keyed by
the same three numbers. So pixels do not depend on the number of threads.
"""

import collections
import concurrent.futures
import functools
import itertools
from collections.abc import Callable, Iterator

import numpy as np
from ml_collections import ConfigDict

from cutmix_jax import UserError, host
from cutmix_jax.config import crops_larger_images
from cutmix_jax.data import augment, batches, boxes, crops, image_files, records, resident
from cutmix_jax.data.batches import Data, Shards

DEFAULT_SIZE = 224
# The shorter side at evaluation in units of the crop: 256 for 224.
DEFAULT_RESIZE = 256 / 224
# Batches that are decoded at the same time, or wait for their step.
PREFETCH = 4
# Images that a thread takes at once: one by one, handing them out would cost more.
TOGETHER = 16


def open_streaming(config: ConfigDict, image_set: records.ImageSet, shards: Shards) -> Data:
    """Data over the records of `image_set`."""
    num_classes = len(image_set.class_names)
    indices = batches.choose_splits(
        {name: split.count for name, split in image_set.splits.items()}, config
    )
    for name, split in image_set.splits.items():
        if split.labels is not None:
            resident.check_labels(split.labels, num_classes, f"split {name}")
    shape = _shape(config, image_set)
    resize = _resize(config, image_set, shape)
    counts = {name: len(index) for name, (_, index) in indices.items()}
    size = config.batch_size
    area = (config.augment.min_area, config.augment.max_area)

    def center(height: int, width: int):
        """(size of the resized image, offset of the crop) at evaluation."""
        if resize is None:
            return (height, width), (0, 0)
        square = config.square_resize is not None
        return crops.central(height, width, shape[:2], resize, square)

    def for_eval(image: np.ndarray, numbers) -> np.ndarray:
        if resize is None:
            return image
        return image_files.resize_and_crop(image, *center(*image.shape[:2]), shape[:2])

    def for_train(image: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        if area[0] is not None:
            box = crops.random_resized(numbers, *image.shape[:2], area)
            return image_files.crop_and_resize(image, box, shape[:2])
        if config.square_resize is not None:
            square = (resize, resize)
            offset = crops.place(numbers[0, 2:], square, shape[:2])
            return image_files.resize_and_crop(image, square, offset, shape[:2])
        return for_eval(image, numbers)

    def boxes_of(name: str, i: int) -> np.ndarray:
        split = image_set.splits[name]
        stored = shape[:2] if resize is None else records.stored_size(split, i)
        return boxes.in_pixels(split.boxes(i), *center(*stored), shape)

    def stream(name: str, positions: np.ndarray, mask: np.ndarray, prepare, sample):
        origin, index = indices[name]
        split = image_set.splits[origin]

        def load(position: int, numbers) -> tuple[np.ndarray, int]:
            i = int(index[position])
            image, label = records.decode_record(split, i, shape[2])
            image = prepare(image, numbers)
            if image.shape != shape:
                raise UserError(
                    f"{split.name(i)} is {image.shape[0]}x{image.shape[1]}, but {image_set.name} "
                    f"says {shape[0]}x{shape[1]}: replace or remove it"
                )
            return image, label

        leading = positions.shape[1:]
        rows = positions.reshape(len(positions), -1)
        for step, (images, labels) in enumerate(_load_in_order(load, rows, sample, shape)):
            resident.check_labels(labels, num_classes, f"split {name}")
            yield {
                "image": images.reshape(*leading, *shape),
                "label": labels.reshape(leading).astype(np.int32),
                "index": positions[step].astype(np.int32),
                "mask": mask[step],
            }

    def train_batches(epoch: int, start_step: int = 0):
        positions = batches.train_positions(
            config.seed, epoch, counts["train"], size, shards, start_step
        )
        mask = np.ones(positions.shape, bool)
        sample = functools.partial(crops.sample, config.seed, epoch)
        for xs in stream("train", positions, mask, for_train, sample):
            yield xs | {"seed": batches.seeds(config.seed, shards)}

    def eval_batches(split: str, order: np.ndarray | None = None):
        positions, mask = batches.eval_positions(counts[split], size, shards, order)
        return stream(split, positions, mask, for_eval, np.zeros_like)

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
            pad=config.augment.pad,
            pad_mode=config.augment.pad_mode,
            flip=config.augment.flip,
        ),
        load_eval=load_eval,
        train_batches=train_batches,
        train_shapes=batches.train_shapes(size, shards, shape),
        eval_batches=eval_batches,
        color=augment.create_color(config.augment.color_jitter, config.augment.lighting),
        digest=digest,
        reader=image_files.libraries(),
        boxes=boxes.per_split(indices, boxes_of if records.have_boxes(image_set) else None),
    )


def load_eval(arrays, xs) -> dict:
    """The batch as it came from the host."""
    del arrays
    return {key: xs[key] for key in ("image", "label", "mask")}


def _shape(config: ConfigDict, image_set: records.ImageSet) -> tuple[int, int, int]:
    """(H, W, C) of the images handed out."""
    height, width, channels = image_set.shape
    if config.image_size:
        return config.image_size, config.image_size, channels
    if height is None or crops_larger_images(config):
        return DEFAULT_SIZE, DEFAULT_SIZE, channels
    return height, width, channels


def _resize(config: ConfigDict, image_set: records.ImageSet, shape) -> int | None:
    """The shorter side before the crop; None where images already have their size."""
    if not crops_larger_images(config):
        return None if image_set.shape == shape else shape[0]
    key = "eval_resize" if config.square_resize is None else "square_resize"
    resize = config[key] or round(shape[0] * DEFAULT_RESIZE)
    if resize < shape[0]:
        raise UserError(
            f"{key}={resize} is smaller than image_size={shape[0]}, which is cut out of "
            f"it: use a larger --config.{key}"
        )
    return resize


def _load_in_order(
    load: Callable, rows: np.ndarray, sample: Callable, shape
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(images, labels) of each row of positions, loaded ahead by a thread for each core.

    Args:
      load: (position, random numbers) -> (image, label). What it raises is raised here, for the
        first image in order that fails.
      rows: int `[steps, n]`.
      sample: positions `[n]` -> random numbers `[n, ...]`.
      shape: of an image.
    """
    pool = concurrent.futures.ThreadPoolExecutor(host.cores(), "images")

    def fill(images, labels, row, numbers):
        for slot, position in enumerate(row.tolist()):
            images[slot], labels[slot] = load(position, numbers[slot])

    def start(row):
        batch = np.empty((len(row), *shape), np.uint8), np.empty(len(row), np.int64)
        arrays = (*batch, row, sample(row))
        parts = [slice(i, i + TOGETHER) for i in range(0, len(row), TOGETHER)]
        return batch, [pool.submit(fill, *(array[part] for array in arrays)) for part in parts]

    rows = iter(rows)
    try:
        waiting = collections.deque(map(start, itertools.islice(rows, PREFETCH)))
        while waiting:
            batch, tasks = waiting.popleft()
            for task in tasks:
                task.result()
            waiting.extend(map(start, itertools.islice(rows, 1)))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)
