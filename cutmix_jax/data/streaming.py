"""Datasets that do not fit into device memory. Threads or processes decode them batch by batch.

The order is the same permutation of indices as for resident data. Each process reads and decodes
only its own slice of every global batch. To resume in the middle of an epoch, indices are skipped
before anything is read. Padding, crop and flip run on the device, as for resident data. The
random-resized crop is part of decoding. All are keyed by (seed, epoch, index), so pixels do not
depend on the number of threads or processes.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from ml_collections import ConfigDict

from cutmix_jax import UserError, host
from cutmix_jax.config import crops_larger_images
from cutmix_jax.data import augment, batches, boxes, crops, image_files, records
from cutmix_jax.data.batches import Data, Shards
from cutmix_jax.data.loading import Loader
from cutmix_jax.data.workers import Workers

DEFAULT_SIZE = 224
# The shorter side in evaluation, relative to the crop: 256 for 224.
DEFAULT_RESIZE = 256 / 224
# Batches that are being decoded or wait for their step.
PREFETCH = 4
# Images per task of a thread and of a process, which has more overhead.
TOGETHER, SENT_TOGETHER = 16, 64


def open_streaming(config: ConfigDict, image_set: records.ImageSet, shards: Shards) -> Data:
    """Data over the records of `image_set`."""
    num_classes = len(image_set.class_names)
    indices = batches.choose_splits(
        {name: split.count for name, split in image_set.splits.items()}, config
    )
    for name, split in image_set.splits.items():
        if split.labels is not None:
            records.check_labels(split.labels, num_classes, f"split {name}")
    area = config.augment.min_area
    shape, eval_shape = (_shape(config, image_set, training) for training in (True, False))
    # Boxes are read here, and cannot be pickled.
    sent = {name: dataclasses.replace(s, boxes=None) for name, s in image_set.splits.items()}
    loader = Loader(
        set_name=image_set.name,
        shape=shape,
        eval_shape=eval_shape,
        resize=_resize(config, image_set, shape, training=True),
        eval_resize=_resize(config, image_set, eval_shape, training=False),
        square=config.square_resize is not None,
        area=None if area is None else (area, config.augment.max_area),
        splits={name: (sent[origin], index) for name, (origin, index) in indices.items()},
    )

    def boxes_of(name: str, i: int) -> np.ndarray:
        split = image_set.splits[name]
        stored = eval_shape[:2] if loader.eval_resize is None else records.stored_size(split, i)
        return boxes.in_pixels(split.boxes(i), *loader.center(*stored), eval_shape)

    def fields(name: str, images: np.ndarray, labels: np.ndarray) -> dict:
        records.check_labels(labels, num_classes, f"split {indices[name][0]}")
        return {"image": images, "label": labels.astype(np.int32)}

    def digest(name: str) -> str:
        split, index = loader.splits[name]
        return digest_of(loader, name, [] if split.labels is None else [split.labels[index]])

    sample = functools.partial(crops.sample, config.seed)
    train_batches, eval_batches = create_batches(config, loader, shards, fields, sample)
    return Data(
        kind="streaming",
        num_classes=num_classes,
        class_names=image_set.class_names,
        image_shape=shape,
        examples={name: len(index) for name, (_, index) in indices.items()},
        batch_size=config.batch_size,
        arrays=dict.fromkeys(indices, ()),
        load_train=augment.create_load_train(take, config),
        load_eval=batches.with_mask(take),
        train_batches=train_batches,
        train_shapes=batches.train_shapes(
            config, shards, image=(shape, np.uint8), label=((), np.int32)
        ),
        eval_batches=eval_batches,
        digest=digest,
        reader=image_files.libraries(),
        boxes=boxes.per_split(indices, boxes_of if records.have_boxes(image_set) else None),
        eval_shape=eval_shape,
    )


def create_batches(
    config: ConfigDict, loader, shards: Shards, fields: Callable, sample: Callable
) -> tuple[Callable, Callable]:
    """`Data.train_batches` and `Data.eval_batches` of what a loader decodes.

    Args:
        config: the config of the run.
        loader: a loader from `loading.py`.
        shards: how batches are split over devices and processes.
        fields: `(split, images, labels) -> xs` without 'index', 'seed' and 'mask'.
        sample: `(epoch, positions [n], copies [n] or None) -> random numbers [n, ...]` for
            `loader.fill` in training.
    """
    counts = {name: len(index) for name, (_, index) in loader.splits.items()}
    size = config.batch_size

    @functools.cache
    def start_workers() -> Workers:
        # The first read of a large dataset caches its index on disk, for all processes.
        for split, index in loader.splits.values():
            with contextlib.suppress(UserError):
                split.read(int(index[0]))
        return Workers(config.reader_processes, loader, SENT_TOGETHER)

    def stream(name: str, positions: np.ndarray, numbers: Iterable, training: bool):
        if config.reader_processes:
            fill = start_workers().fill
            threads, together = config.reader_processes, SENT_TOGETHER
        else:
            fill, threads, together = loader.fill, host.cores(), TOGETHER
        leading, shape = positions.shape[1:], loader.shape_in(training)
        rows = positions.reshape(len(positions), -1)
        fill = functools.partial(fill, name)
        loaded = load_in_order(fill, threads, together, rows, numbers, shape)
        for step, (images, labels) in enumerate(loaded):
            yield {
                **fields(name, images.reshape(*leading, *shape), labels.reshape(leading)),
                "index": positions[step].astype(np.int32),
            }

    def train_batches(epoch: int, start_step: int = 0, order: np.ndarray | None = None):
        taken = list(
            batches.train_indices(config, counts["train"], shards, epoch, start_step, order)
        )
        if not taken:
            return
        positions = np.stack([xs["index"] for xs in taken])
        numbers = (
            sample(epoch, xs["index"].ravel(), xs["copy"].ravel() if "copy" in xs else None)
            for xs in taken
        )
        for xs, part in zip(taken, stream("train", positions, numbers, True), strict=True):
            yield xs | part

    def eval_batches(split: str, order: np.ndarray | None = None):
        positions, masks = batches.eval_positions(counts[split], size, shards, order)
        streamed = stream(split, positions, itertools.repeat(None), False)
        for xs, mask in zip(streamed, masks, strict=True):
            yield xs | {"mask": mask}

    return train_batches, eval_batches


def open_beside_arrays(
    config: ConfigDict,
    loader,
    arrays: Mapping[str, Mapping],
    class_names: tuple[str, ...],
    shards: Shards,
    load_train: Callable,
    load_eval: Callable,
    image_shape: tuple[int, int, int],
) -> Data:
    """Data whose batches bring images alone, and whose `arrays` have the rest on the device.

    Args:
        config: the config of the run.
        loader: a loader from `loading.py`, for images without labels.
        arrays: `Data.arrays`, without images.
        class_names: one name per class.
        shards: how batches are split over devices and processes.
        load_train: `Data.load_train`.
        load_eval: `Data.load_eval`, without the mask.
        image_shape: (H, W, C) of the images that the model sees.
    """
    train_batches, eval_batches = create_batches(
        config,
        loader,
        shards,
        fields=lambda name, images, labels: {"image": images},
        sample=lambda epoch, row, copy: None,
    )
    return Data(
        kind="streaming",
        num_classes=len(class_names),
        class_names=class_names,
        image_shape=image_shape,
        examples={name: len(index) for name, (_, index) in loader.splits.items()},
        batch_size=config.batch_size,
        arrays=arrays,
        load_train=load_train,
        load_eval=batches.with_mask(load_eval),
        train_batches=train_batches,
        train_shapes=batches.train_shapes(config, shards, image=(loader.shape, np.uint8)),
        eval_batches=eval_batches,
        digest=lambda name: digest_of(loader, name, arrays[name].values()),
        reader=image_files.libraries(),
    )


def digest_of(loader, name: str, arrays: Iterable[np.ndarray]) -> str:
    """A text that changes with any record of a split, or with the arrays.

    Each record is read once. If some occur again, the order of all counts, too.
    """
    split, index = loader.splits[name]
    once = dict.fromkeys(index.tolist())
    stored = map(split.read, once)
    order = [index] if len(once) < len(index) else []
    return records.digest(
        itertools.chain(stored, (values.tobytes() for values in (*order, *arrays)))
    )


def take(arrays, xs) -> dict:
    """The batch from the host."""
    del arrays
    return {name: xs[name] for name in ("image", "label")}


def _shape(config: ConfigDict, image_set: records.ImageSet, training: bool) -> tuple[int, int, int]:
    """(H, W, C) of the resulting images."""
    height, width, channels = image_set.shape
    side = config.image_size if training else config.eval_size or config.image_size
    if side:
        return side, side, channels
    if height is None or crops_larger_images(config):
        return DEFAULT_SIZE, DEFAULT_SIZE, channels
    return height, width, channels


def _resize(
    config: ConfigDict, image_set: records.ImageSet, shape: tuple[int, int, int], training: bool
) -> int | None:
    """The shorter side before the crop; None if images already have their size."""
    if not crops_larger_images(config):
        return None if image_set.shape == shape else shape[0]
    if training and config.square_resize is None:
        return None  # the random-resized crop needs none
    key = "eval_resize" if config.square_resize is None else "square_resize"
    resize = config[key] or round(shape[0] * DEFAULT_RESIZE)
    if resize < shape[0]:
        size = "image_size" if training or not config.eval_size else "eval_size"
        raise UserError(
            f"{key}={resize} is smaller than {size}={shape[0]}, the size of the crop. "
            f"Use a larger --config.{key}."
        )
    return resize


def load_in_order(
    fill: Callable, threads: int, together: int, rows: np.ndarray, numbers: Iterable, shape
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (images, labels) of each row of positions, which threads load in advance.

    Args:
        fill: function of (images, labels, positions, random numbers), which writes the first two.
            Its errors are raised here, in the order of the images.
        threads: number of threads.
        together: maximum number of images per call of `fill`.
        rows: int `[steps, n]`.
        numbers: random numbers `[n, ...]` for each row, or None.
        shape: shape of an image.
    """
    pool = concurrent.futures.ThreadPoolExecutor(threads, "images")
    parts = [slice(i, i + together) for i in range(0, rows.shape[1], together)]
    # More for small batches, to keep all threads busy.
    ahead = max(PREFETCH, math.ceil(2 * threads / len(parts)))

    def start(row_and_numbers):
        row, numbers = row_and_numbers
        batch = np.empty((len(row), *shape), np.uint8), np.empty(len(row), np.int64)
        arrays = (*batch, row)
        return batch, [
            pool.submit(
                fill, *(array[part] for array in arrays), None if numbers is None else numbers[part]
            )
            for part in parts
        ]

    rows = zip(rows, numbers, strict=False)
    try:
        waiting = collections.deque(map(start, itertools.islice(rows, ahead)))
        while waiting:
            batch, tasks = waiting.popleft()
            for task in tasks:
                task.result()
            waiting.extend(map(start, itertools.islice(rows, 1)))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)
