"""Images with boxes of their objects, for detectors: padded to one shape, resident or streamed."""

import dataclasses
import functools

import numpy as np
from ml_collections import ConfigDict

from cutmix_jax import UserError, host
from cutmix_jax.config import DEFAULTS, check_unused
from cutmix_jax.data import batches, resident, shapes, streaming, voc
from cutmix_jax.data.batches import Data, Shards
from cutmix_jax.data.loading import PaddedLoader
from cutmix_jax.data.records import ObjectSet

ONE_DEVICE = Shards()
SETS = ("shapes", "voc")
# Keys that change the images of classifiers. A detector's task has its own augmentation.
UNUSED = ("augment.", "boxes_dir", "eval_size", "eval_resize", "square_resize", "repeats")


def open_objects(config, shards: Shards = ONE_DEVICE) -> Data:
    """Opens a dataset of images with boxes.

    Each split of `Data.arrays` has, for `N` images of at most `G` objects,

    - `image`: uint8 `[N, H, W, 3]`. A smaller image lies in the top left corner, zeros elsewhere.
    - `size`: int32 `[N, 2]`, height and width of the image inside, in pixels.
    - `boxes`: float32 `[N, G, 4]`, (top, left, bottom, right) in pixels, half-open.
    - `label`: int32 `[N, G]`, -1 for padding.
    - `difficult`: bool `[N, G]`.

    `load_train` and `load_eval` gather these arrays at `xs['index']`, without augmentation.

    Streamed images have the same bits. They come as `xs['image']` instead, and `arrays` has the
    rest. `source='auto'` streams if the images take more than `resident_limit_mib`. Those of
    'shapes' are always resident.

    Args:
        config: a config that passed `check_config`, or a mapping with the keys that differ from the
            defaults of `config.SCHEMA`. `dataset` is 'shapes' or 'voc'.
        shards: how batches are split over devices and processes.

    Returns:
        The opened dataset; nothing is on a device yet.

    Raises:
        UserError: the config or the dataset cannot be used; the message says why.

    Example:
        >>> config = {'dataset': 'shapes', 'max_objects': 3, 'train_examples': 64}
        >>> data = open_objects(config)
        >>> {name: values.shape for name, values in data.arrays['train'].items()}
        {'image': (64, 64, 64, 3), 'size': (64, 2), 'boxes': (64, 3, 4), 'label': (64, 3), \
'difficult': (64, 3)}
    """
    config = batches.prepare(config, shards)
    _check(config)
    found = _shapes(config) if config.dataset == "shapes" else voc.open_voc(config)
    counts = {split: len(part["label"]) for split, part in found.splits.items()}
    indices = batches.choose_splits(counts, config)
    arrays = {
        split: {name: values[index] for name, values in found.splits[origin].items()}
        for split, (origin, index) in indices.items()
    }
    loader = PaddedLoader(
        shape=found.shape,
        splits={name: (found.images[origin], index) for name, (origin, index) in indices.items()},
        sizes={name: part["size"] for name, part in arrays.items()},
    )
    count = sum(len(index) for _, index in indices.values())
    # `shapes` has checked that they fit.
    if config.dataset == "shapes" or batches.is_resident(config, count, found.shape):
        arrays = {name: {"image": _read(loader, name), **part} for name, part in arrays.items()}
        data = resident.open_arrays(config, arrays, found.class_names, shards, _load_train)
    else:
        data = streaming.open_beside_arrays(
            config, loader, arrays, found.class_names, shards, _load_train, _load, found.shape
        )
    if found.names is None:
        return data
    names = {
        split: [found.names[origin][i] for i in index] for split, (origin, index) in indices.items()
    }
    return dataclasses.replace(data, names=names)


def _read(loader: PaddedLoader, name: str) -> np.ndarray:
    """uint8 [n, H, W, 3]: all images of a split."""
    images, index = loader.splits[name]
    if isinstance(images, np.ndarray):
        return images[index]
    fill, rows = functools.partial(loader.fill, name), np.arange(len(index))[None]
    ((found, _),) = streaming.load_in_order(
        fill, host.cores(), streaming.TOGETHER, rows, [None], loader.shape
    )
    return found


def _load(arrays, xs) -> dict:
    """The examples at `xs['index']`, with the images of `xs` if they are streamed."""
    batch = resident.gather(arrays, xs)
    return batch | {"image": xs["image"]} if "image" in xs else batch


def _load_train(arrays, xs, epoch) -> dict:
    del epoch  # the task augments
    return _load(arrays, xs)


def _check(config: ConfigDict) -> None:
    """Rejects what the images of a detector do not support."""
    if config.dataset not in SETS:
        raise UserError(
            f"dataset={config.dataset} is not for detectors, which need boxes and classes of all "
            "objects. Use --config.dataset=voc with a folder tree of PASCAL VOC, or shapes."
        )
    if config.dataset == "voc" and config.max_objects != 1:
        raise UserError(
            f"config.max_objects is {config.max_objects}, but it is for shapes: images of voc "
            "keep all their objects. Leave it at 1."
        )
    if config.test_split not in (None, "test", "held_out"):
        raise UserError(
            f"config.test_split is {config.test_split!r}, but a detector has only test and "
            "held_out. Name the split of VOC in --config.voc.test."
        )
    unused = [key for key in DEFAULTS if key.startswith(UNUSED)]
    check_unused(config, unused, "it is for classifiers, and a detector does not use it")


def _shapes(config: ConfigDict) -> ObjectSet:
    size, counts = shapes.size_and_counts(config)
    arrays = shapes.read_arrays(size, counts, config.max_objects)
    splits = {}
    for split, part in arrays.items():
        labels = part["label"].reshape(len(part["label"]), config.max_objects)
        splits[split] = {
            "size": np.full((len(labels), 2), size, np.int32),
            "boxes": part["boxes"] * np.float32(size),
            "label": labels,
            "difficult": np.zeros(labels.shape, bool),
        }
    return ObjectSet(
        class_names=shapes.CLASS_NAMES,
        shape=(size, size, 3),
        splits=splits,
        images={split: part["image"] for split, part in arrays.items()},
    )
