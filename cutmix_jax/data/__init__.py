"""Batches of images from device memory or streamed from disk, with one interface."""

import dataclasses

from ml_collections import ConfigDict

from cutmix_jax import UserError
from cutmix_jax.config import crops_larger_images
from cutmix_jax.data import (
    batches,
    boxes,
    cache,
    records,
    tfds_files,
    tiny_imagenet,
)
from cutmix_jax.data.batches import Data, Shards
from cutmix_jax.data.folder import open_folder
from cutmix_jax.data.records import ImageSet
from cutmix_jax.data.tfds_sets import default_root, open_prepared
from cutmix_jax.paths import existing_folder

__all__ = ["Data", "Shards", "open_data"]

ONE_DEVICE = Shards()


def open_data(config, shards: Shards = ONE_DEVICE) -> Data:
    """Opens the dataset of a config.

    `source='auto'` keeps a dataset in device memory if all images have the same size, `image_size`
    (if set) equals it, the config does not crop larger images, and the dataset takes at most
    `resident_limit_mib`. Other datasets are streamed. `source='resident'` resizes images to
    `image_size`.

    Args:
        config: a config that passed `check_config`, or a mapping with the keys that differ from the
            defaults of `config.SCHEMA`.
        shards: how batches are split over devices and processes.

    Returns:
        The opened dataset; nothing is on a device yet.

    Raises:
        UserError: the config or the dataset cannot be used; the message says why.

    Example:
        >>> data = open_data({'dataset': 'digits', 'batch_size': 50})
        >>> data.kind, data.image_shape, dict(data.examples), data.steps_per_epoch
        ('resident', (16, 16, 1), {'train': 1500, 'test': 297}, 30)
    """
    config = batches.prepare(config, shards)
    if config.dataset == "voc":
        raise UserError(
            "dataset=voc has boxes instead of one label per image. Set --config.task to a "
            "detector, or use another dataset."
        )
    if config.dataset == "coco_captions":
        raise UserError(
            "dataset=coco_captions has captions instead of one label per image. Set --config.task "
            "to captioning, or use another dataset."
        )
    if config.max_objects > 1:
        raise UserError(
            f"config.max_objects is {config.max_objects}, but an image of this task has one label. "
            "Set --config.max_objects=1, or --config.task to a detector."
        )
    if config.dataset in ("digits", "shapes"):
        data = _open_made(config, shards)
    else:
        data = _open_set(config, shards)
    colors_change = config.augment.color_jitter or config.augment.lighting
    if colors_change and data.image_shape[2] != 3:
        raise UserError(
            f"config.augment.color_jitter and config.augment.lighting need images of 3 channels, "
            f"but those of {config.dataset} have {data.image_shape[2]}. Set both to 0."
        )
    if config.augment.policy != "none" and data.image_shape[2] != 3:
        raise UserError(
            f"config.augment.policy={config.augment.policy} needs images of 3 channels, but those "
            f"of {config.dataset} have {data.image_shape[2]}. Set it to 'none'."
        )
    return data


def _open_made(config: ConfigDict, shards: Shards) -> Data:
    """Digits or shapes, which need no files and are always resident."""
    name = config.dataset
    if config.source == "streaming" or crops_larger_images(config):
        raise UserError(
            f"{name} is always resident, but the config asks for streaming or a crop of larger "
            "images. Use --config.source=auto without augment.min_area and square_resize."
        )
    from cutmix_jax.data import resident, shapes  # import jax, which reader processes do not need

    if config.test_split not in (None, "test", "held_out"):
        raise UserError(f"{name} has no split {config.test_split!r}, only test and train.")
    if name == "digits":
        arrays, names = resident.digits(config.image_size or resident.DIGITS_SIZE)
        return resident.open_resident(config, arrays, names, shards, name)
    arrays = shapes.read_arrays(*shapes.size_and_counts(config))
    return resident.open_resident(
        config, arrays, shapes.CLASS_NAMES, shards, name, lambda split, i: arrays[split]["boxes"][i]
    )


def _open_set(config: ConfigDict, shards: Shards) -> Data:
    image_set = find_set(config.dataset, config.data_dir, config.test_split)
    if config.boxes_dir:
        image_set = _with_xml_boxes(image_set, config.boxes_dir)
    if _is_resident(config, image_set):
        from cutmix_jax.data import resident

        return resident.open_resident(
            config,
            resident.read(image_set),
            image_set.class_names,
            shards,
            config.dataset,
            (lambda split, i: image_set.splits[split].boxes(i))
            if records.have_boxes(image_set)
            else None,
        )
    from cutmix_jax.data import streaming

    return streaming.open_streaming(config, image_set, shards)


def _with_xml_boxes(image_set: ImageSet, folder: str) -> ImageSet:
    splits = {
        name: dataclasses.replace(split, boxes=boxes.of_xml_files(folder, split))
        for name, split in image_set.splits.items()
    }
    return dataclasses.replace(image_set, splits=splits)


def _is_resident(config: ConfigDict, image_set: ImageSet) -> bool:
    """Whether to keep the dataset in device memory; see `open_data`."""
    demanded = config.source == "resident"
    if config.source == "streaming" or crops_larger_images(config):
        return False
    shape, by_file = image_set.shape, image_set.shape[0] is None
    if by_file:
        if not demanded and not records.headers_are_cheap(image_set):
            return False
        shape = records.first_shape(image_set)
    side = config.image_size or 0
    largest = max(side, config.eval_size or 0)
    count = sum(split.count for split in image_set.splits.values())
    pixels = max(shape[0] * shape[1], largest * largest)
    if not batches.is_resident(config, count, (pixels, 1, shape[2])):
        return False
    if demanded:
        return True
    if side and shape[:2] != (side, side):
        return False
    if not by_file or cache.is_stored(image_set.name, image_set.fingerprint()):
        return True
    return records.all_of_size(image_set, shape[:2])


def find_set(dataset: str, data_dir: str | None, test_split: str | None) -> ImageSet:
    """The folder or TFDS dataset of a config, with splits train and test."""
    if dataset == "folder" and data_dir is None:
        raise UserError(
            "dataset=folder needs the folder that holds train/ and val/. "
            "Set --config.data_dir=PATH."
        )
    if data_dir is not None:
        root = existing_folder(data_dir, "data_dir", "the folder of the dataset")
    else:
        root = default_root()
    if tfds_files.is_unfinished(root):
        raise UserError(
            f"{root} is not complete. Start the command that prepares it again: it goes on where "
            "it stopped."
        )
    if dataset == "folder" and not (root / tfds_files.INFO).is_file():
        return open_folder(root, test_split)
    if dataset == "tiny_imagenet" and (tree := tiny_imagenet.find_tree(root)):
        return tiny_imagenet.open_tree(tree, test_split)
    return open_prepared(dataset, root, test_split)
