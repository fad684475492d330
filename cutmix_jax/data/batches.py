"""Order, subsets and shards of examples, computed from indices."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cutmix_jax import UserError
from cutmix_jax.config import check_config, from_plain

# Subsets must not depend on config.seed, so runs with other seeds train on the same images.
SUBSET_SEED = 20190513


@dataclasses.dataclass(frozen=True)
class Shards:
    """How a global batch is split: by processes, then by the devices of each."""

    local_devices: int = 1
    process_index: int = 0
    process_count: int = 1

    @property
    def devices(self) -> int:
        return self.local_devices * self.process_count


@dataclasses.dataclass(frozen=True)
class Data:
    """An opened dataset, as the training loop sees it.

    The arrays below are those of classification. `objects.open_objects` describes a detector's, and
    `captions.open_captions` those of images with captions.

    `load_train` and `load_eval` are traced inside the step, for one device's shard. Their first
    argument is one split's entry of `arrays`.

    Attributes:
        kind: 'resident' (the arrays live on the device, `xs` holds indices) or 'streaming' (`xs`
            holds the images).
        num_classes: number of classes.
        class_names: one name per class.
        image_shape: (H, W, C) of the images that the model is trained on.
        examples: number of examples per split: 'train', 'test' and, if configured, 'held_out'.
        batch_size: examples per step over all devices and processes.
        arrays: per split `{'image': uint8 [N, H, W, C], 'label': int32 [N]}`, or `()` if streaming.
            A detector's annotations are here in both cases.
        load_train: `(arrays[split], xs, epoch) -> {'image': float32 [b, H, W, C] in [0, 1],
            'label': int32 [b]}`, augmented.
        load_eval: `(arrays[split], xs) -> {'image': uint8 [b, H, W, C], 'label': int32 [b],
            'mask': bool [b]}`, not augmented.
        train_batches: `(epoch, start_step=0, order=None) -> iterator of xs`, with this process's
            part of each batch from `start_step` on. Leaves are `[local_devices, per_device, ...]`.
            `seed`, int32 `[local_devices]`, is the run's seed for sampling on the device. So one
            compiled step serves every seed. With `config.repeats`, `copy`, int32, numbers the
            repetitions of an image. `order`, int `[n]`, is used instead of the epoch's permutation.
        train_shapes: for each kind of such batches, shapes and dtypes of one device's part, without
            the leading axis. With them the steps can be compiled before the first batch arrives.
        eval_batches: `(split, order=None) -> iterator of xs`. Every example occurs once over all
            devices and processes. `mask` is False for the padding of the last batch. All processes
            have the same number of batches. `order`, int `[n]`, selects other positions, in any
            order. Data in `buckets` come bucket by bucket, so `xs['index']` has another order.
        digest: None if the images are in `arrays`. Else `(split) -> text`, which changes with any
            image or label of the split. Calling it reads the records.
        reader: names and versions of the libraries that decode each batch, because other versions
            may give other pixels. None if images are not decoded per batch.
        boxes: None if the dataset has no boxes. Else `(split) -> list of float32 [n_i, 4]`, one
            entry per example in the order of the split: (top, left, bottom, right), half-open, in
            pixels of the images of `load_eval`. Calling it reads the boxes.
        names: None, or a name for each example of each split, such as VOC's IDs.
        epoch_steps: the number of batches in an epoch, by default all that are whole.
        eval_shape: (H, W, C) of the images of `load_eval`; None: `image_shape`.
    """

    kind: str
    num_classes: int
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    examples: Mapping[str, int]
    batch_size: int
    arrays: Mapping[str, Any]
    load_train: Callable[..., dict]
    load_eval: Callable[..., dict]
    train_batches: Callable[..., Iterator[dict]]
    train_shapes: Sequence[Mapping[str, Any]]
    eval_batches: Callable[..., Iterator[dict]]
    digest: Callable[[str], str] | None = None
    reader: str | None = None
    boxes: Callable[[str], list[np.ndarray]] | None = None
    names: Mapping[str, list[str]] | None = None
    epoch_steps: int | None = None
    eval_shape: tuple[int, int, int] | None = None

    @property
    def steps_per_epoch(self) -> int:
        if self.epoch_steps is None:
            return self.examples["train"] // self.batch_size
        return self.epoch_steps


def prepare(config, shards: Shards) -> ConfigDict:
    """A checked config, made from a mapping if it is one, whose batches `shards` can split."""
    if not isinstance(config, ConfigDict):
        config = from_plain(config)
        check_config(config)
    if config.batch_size % (parts := shards.devices * config.accumulate * config.norm.groups):
        raise UserError(
            f"config.batch_size is {config.batch_size}, which {shards.devices} devices with "
            f"config.accumulate={config.accumulate} and config.norm.groups={config.norm.groups} "
            f"cannot share: make it a multiple of {parts}."
        )
    return config


def mib(count: int, shape: tuple[int, int, int]) -> float:
    """MiB of `count` images of uint8 with this shape."""
    return count * math.prod(shape) / 2**20


def check_fits(
    config: ConfigDict,
    count: int,
    shape: tuple[int, int, int],
    remedy: str = "Use fewer with --config.train_examples=N",
) -> None:
    """Rejects resident images that take more memory than `config.resident_limit_mib`."""
    if mib(count, shape) > config.resident_limit_mib:
        raise UserError(
            f"{config.dataset} takes {mib(count, shape):,.1f} MiB in device memory, more than "
            f"resident_limit_mib={config.resident_limit_mib}. {remedy}, or raise "
            "--config.resident_limit_mib."
        )


def is_resident(
    config: ConfigDict,
    count: int,
    shape: tuple[int, int, int],
    remedy: str = "Use --config.source=streaming",
) -> bool:
    """Whether images of files stay in device memory: as `source` says; for 'auto', if they fit."""
    if config.source == "auto":
        return mib(count, shape) <= config.resident_limit_mib
    if config.source == "resident":
        check_fits(config, count, shape, remedy)
    return config.source == "resident"


def random_state(*seed: int) -> np.random.RandomState:
    """A generator whose numbers are stable across NumPy versions, unlike those of Generator."""
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))


def permutation(seed: int, stream: int, n: int) -> np.ndarray:
    """int64 [n] permutation, which depends only on the arguments."""
    return random_state(seed, stream).permutation(n)


def choose_examples(n: int, held_out: int = 0, train_examples: int | None = None):
    """Fixed, sorted index sets (train, held out); the held-out one is sampled first."""
    if held_out >= n:
        raise UserError(
            f"held_out={held_out} leaves none of the {n} training examples. "
            "Use a smaller --config.held_out."
        )
    order = permutation(SUBSET_SEED, 0, n)
    held, rest = order[:held_out], order[held_out:]
    if train_examples is not None and train_examples > len(rest):
        raise UserError(
            f"train_examples={train_examples}, but only {len(rest)} training examples are "
            "left. Use a smaller --config.train_examples."
        )
    return np.sort(rest[:train_examples]), np.sort(held)


def train_positions(
    seed: int,
    epoch: int,
    n: int,
    batch_size: int,
    shards: Shards,
    start_step: int = 0,
    order: np.ndarray | None = None,
    repeats: int = 1,
) -> np.ndarray:
    """int64 [steps, local_devices, per_device]: this process's positions from start_step on.

    They are a permutation of 0 to n - 1, or those in `order`. With `repeats`, an epoch has the
    first n / repeats of them, each that often, and the same number of steps. The repetitions of an
    image are in one batch, or at the end of one and the start of the next.
    """
    order = permutation(seed, epoch, n) if order is None else np.asarray(order)
    order = np.repeat(order, repeats)[: len(order)]
    return _share_train(order, batch_size, shards, start_step, repeats)


def train_copies(
    n: int, batch_size: int, shards: Shards, start_step: int = 0, repeats: int = 1
) -> np.ndarray:
    """int64 [steps, local_devices, per_device]: which repetition each of `train_positions` is."""
    return _share_train(np.arange(n) % repeats, batch_size, shards, start_step, repeats)


def _share_train(
    values: np.ndarray, batch_size: int, shards: Shards, start_step: int, repeats: int
) -> np.ndarray:
    """This process's part of an epoch's whole batches.

    The repetitions of an image are as far apart in the batch as possible, so that devices share
    them: a device whose batch has an image twice has worse statistics for BatchNorm.
    """
    steps = len(values) // batch_size
    slots = np.argsort(np.arange(batch_size) % repeats, kind="stable")
    whole = values[: steps * batch_size].reshape(steps, batch_size)[start_step:, slots]
    return _share(whole, batch_size, shards)


def eval_positions(
    n: int, batch_size: int, shards: Shards, order: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Positions and mask, each [steps, local_devices, per_device]; padding points at example 0.

    The positions are 0 to n - 1, or those in `order`.
    """
    order = np.arange(n) if order is None else np.asarray(order)
    steps = -(-len(order) // batch_size)
    padded = np.zeros(steps * batch_size, order.dtype)
    padded[: len(order)] = order
    mask = np.arange(len(padded)) < len(order)
    return _share(padded, batch_size, shards), _share(mask, batch_size, shards)


def with_mask(load: Callable[..., dict]) -> Callable[..., dict]:
    """`load`, whose batch also has the mask of `xs`."""
    return lambda arrays, xs: load(arrays, xs) | {"mask": xs["mask"]}


def train_indices(
    config: ConfigDict,
    n: int,
    shards: Shards,
    epoch: int,
    start_step: int = 0,
    order: np.ndarray | None = None,
) -> Iterator[dict]:
    """`Data.train_batches` of resident data: the part of `xs` that says which examples to take."""
    size, repeats = config.batch_size, config.repeats
    positions = train_positions(config.seed, epoch, n, size, shards, start_step, order, repeats)
    count = n if order is None else len(order)
    copies = train_copies(count, size, shards, start_step, repeats)
    for index, copy in zip(positions, copies, strict=True):
        xs = {"index": index.astype(np.int32), "seed": seeds(config.seed, shards)}
        yield xs | ({"copy": copy.astype(np.int32)} if repeats > 1 else {})


def train_shapes(config: ConfigDict, shards: Shards, **streamed) -> tuple[dict]:
    """`Data.train_shapes`. `streamed`: shape and dtype per example of what is not resident."""
    import jax  # here, because reader processes do not need it

    part = (config.batch_size // shards.devices,)
    shapes = {"index": (part, np.int32), "seed": ((), np.int32)}
    if config.repeats > 1:
        shapes["copy"] = (part, np.int32)
    shapes |= {name: ((*part, *shape), dtype) for name, (shape, dtype) in streamed.items()}
    return ({name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()},)


def seeds(seed: int, shards: Shards) -> np.ndarray:
    """int32 [local_devices]: the seed for each device."""
    return np.full(shards.local_devices, seed, np.int32)


def _share(values: np.ndarray, batch_size: int, shards: Shards) -> np.ndarray:
    """This process's part of values in batch order."""
    shape = (-1, shards.process_count, shards.local_devices, batch_size // shards.devices)
    return values.reshape(shape)[:, shards.process_index]


def pad(values: Sequence[np.ndarray], length: int, fill) -> np.ndarray:
    """Arrays [n_i, ...] as one [N, length, ...], filled at the end.

    Example:
        >>> pad([np.array([5, 6]), np.array([7])], 3, -1).tolist()
        [[5, 6, -1], [7, -1, -1]]
    """
    first = np.asarray(values[0])
    padded = np.full((len(values), length, *first.shape[1:]), fill, first.dtype)
    for row, value in zip(padded, values, strict=True):
        row[: len(value)] = value
    return padded


def choose_splits(counts, config, examples=len) -> dict[str, tuple[str, np.ndarray]]:
    """split -> (split of the dataset it comes from, indices there).

    `examples` gives the number of training examples at some indices, which must fill a batch.
    """
    train, held = choose_examples(counts["train"], config.held_out, config.train_examples)
    splits = {"train": ("train", train)}
    if config.test_split == "held_out":
        if not len(held):
            raise UserError(
                "test_split=held_out, but no example is held out. Set --config.held_out=N."
            )
        splits["test"] = ("train", held)
    else:
        splits["test"] = ("test", np.arange(counts["test"]))
        if len(held):
            splits["held_out"] = ("train", held)
    if not counts["train"] or not len(splits["test"][1]):
        raise UserError("The dataset has an empty split, but train and test need examples.")
    if examples(train) < config.batch_size:
        raise UserError(
            f"{examples(train)} training examples are fewer than one batch of {config.batch_size}. "
            "Use a smaller --config.batch_size."
        )
    return splits
