"""Datasets that fit into device memory: arrays of uint8, and batches of indices.

The whole dataset is an argument of the step, which gathers, crops and flips a batch. The host only
creates an epoch's permutation of indices.
"""

import dataclasses
import importlib.metadata
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cutmix_jax import UserError
from cutmix_jax.data import augment, batches, boxes, cache, image_files, records
from cutmix_jax.data.batches import Data, Shards

DIGITS_TEST = 297
DIGITS_SIZE = 16


def digits(size: int = 8) -> tuple[dict, tuple[str, ...]]:
    """Arrays and class names of scikit-learn's handwritten digits.

    scikit-learn defines no split. This one is fixed and stratified by digit.
    """
    records.require("sklearn", "dataset=digits", "pip install scikit-learn")

    def make() -> dict[str, np.ndarray]:
        from sklearn.datasets import load_digits

        pixels, label = load_digits(return_X_y=True)
        image = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        return {"image": image, "label": label}

    # Cached, because importing scikit-learn takes more than a second.
    stored = cache.load_or_make("digits", importlib.metadata.version("scikit-learn"), make)
    image, label = resize(stored["image"], size), stored["label"]
    # Random order within each class, then interleaved, so any cut is nearly stratified.
    shuffled = batches.permutation(batches.SUBSET_SEED, 1, len(label))
    rank = np.empty(len(label))
    for digit in range(10):
        members = shuffled[label[shuffled] == digit]
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
    order = np.argsort(rank, kind="stable")
    parts = {"test": np.sort(order[:DIGITS_TEST]), "train": np.sort(order[DIGITS_TEST:])}
    arrays = {
        split: {"image": image[part], "label": label[part].astype(np.int32)}
        for split, part in parts.items()
    }
    return arrays, tuple(map(str, range(10)))


def read(image_set: records.ImageSet) -> dict:
    """Arrays of every split, decoded or from the cache."""

    def make() -> dict[str, np.ndarray]:
        flat = {}
        for name, split in image_set.splits.items():
            flat[f"{name}/image"], flat[f"{name}/label"] = _decode(image_set, split)
        return flat

    flat = cache.load_or_make(image_set.name, image_set.fingerprint(), make)
    return {
        name: {key: flat[f"{name}/{key}"] for key in ("image", "label")}
        for name in image_set.splits
    }


def _decode(image_set: records.ImageSet, split: records.Split) -> tuple[np.ndarray, np.ndarray]:
    channels = image_set.shape[2]
    labels = np.empty(split.count, np.int64)  # as in the records, for check_labels
    images = None
    for i in range(split.count):
        image, labels[i] = records.decode_record(split, i, channels)
        if images is None:
            images = np.empty((split.count, *image.shape), np.uint8)
        if image.shape != images.shape[1:]:
            raise UserError(
                f"{image_set.name} has images of different sizes ({split.name(0)} is "
                f"{images.shape[1]}x{images.shape[2]}, {split.name(i)} {image.shape[0]}x"
                f"{image.shape[1]}), but source=resident needs one size. Use "
                "--config.source=streaming."
            )
        images[i] = image
    return images, labels


def resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """uint8 [N, H, W, C] to [N, size, size, C], bilinear."""
    if pixels.shape[1:3] == (size, size):
        return pixels
    out = np.empty((len(pixels), size, size, pixels.shape[3]), np.uint8)
    for i, image in enumerate(pixels):
        out[i] = image_files.resize(image, (size, size))
    return out


def open_resident(
    config: ConfigDict,
    arrays: Mapping,
    class_names: tuple[str, ...],
    shards: Shards,
    name: str,
    find_boxes: Callable | None = None,
) -> Data:
    """Data over `{'train': {'image', 'label'}, 'test': ...}`.

    `find_boxes` is None, or `(split, index) -> float [n, 4]` as fractions of the image.
    """
    for split, part in arrays.items():
        records.check_labels(part["label"], len(class_names), f"split {split} of {name}")
    indices = batches.choose_splits(
        {split: len(part["label"]) for split, part in arrays.items()}, config
    )
    chosen = {}
    for split, (origin, index) in indices.items():
        images = arrays[origin]["image"][index]
        side = config.image_size
        if split != "train":
            side = config.eval_size or side
        if side:
            images = resize(images, side)
        labels = arrays[origin]["label"][index].astype(np.int32)
        chosen[split] = {"image": images, "label": labels}
    shapes = {part["image"].shape[1:] for part in chosen.values()}
    if len(shapes) > 1 and not config.eval_size:
        raise UserError(
            f"The splits of {name} have images of different sizes ({shapes}). "
            "Set --config.image_size=N."
        )
    shape, eval_shape = (chosen[split]["image"].shape[1:] for split in ("train", "test"))
    if config.augment.pad > min(shape[:2]):
        raise UserError(
            f"augment.pad={config.augment.pad} is larger than the images of {name} ({shape[0]}x"
            f"{shape[1]}). Use a smaller one."
        )

    def boxes_of(split: str, i: int) -> np.ndarray:
        return boxes.in_pixels(find_boxes(split, i), eval_shape[:2], (0, 0), eval_shape)

    load_train = augment.create_load_train(gather, config)
    data = open_arrays(config, chosen, class_names, shards, load_train)
    return dataclasses.replace(data, boxes=boxes.per_split(indices, find_boxes and boxes_of))


def open_arrays(
    config: ConfigDict,
    arrays: Mapping[str, Mapping],
    class_names: tuple[str, ...],
    shards: Shards,
    load_train: Callable,
    counted: str = "label",
) -> Data:
    """Data over `Data.arrays`, `{split: {'image', 'label', ...}}`, one leading axis per example.

    The array `counted` has an entry per example of its split.
    """
    size = config.batch_size
    counts = {split: len(part[counted]) for split, part in arrays.items()}

    def train_batches(epoch: int, start_step: int = 0, order: np.ndarray | None = None):
        return batches.train_indices(config, counts["train"], shards, epoch, start_step, order)

    def eval_batches(split: str, order: np.ndarray | None = None):
        positions, masks = batches.eval_positions(counts[split], size, shards, order)
        for index, mask in zip(positions.astype(np.int32), masks, strict=True):
            yield {"index": index, "mask": mask}

    return Data(
        kind="resident",
        num_classes=len(class_names),
        class_names=class_names,
        image_shape=arrays["train"]["image"].shape[1:],
        examples=counts,
        batch_size=size,
        arrays=arrays,
        load_train=load_train,
        load_eval=batches.with_mask(gather),
        train_batches=train_batches,
        train_shapes=batches.train_shapes(config, shards),
        eval_batches=eval_batches,
        eval_shape=arrays["test"]["image"].shape[1:] if config.eval_size else None,
    )


def gather(arrays: Mapping[str, jax.Array], xs: Mapping[str, jax.Array]) -> dict:
    """The examples at `xs['index']`."""
    return {
        name: jnp.take(values, xs["index"], axis=0, mode="clip") for name, values in arrays.items()
    }
