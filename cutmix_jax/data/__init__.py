"""Images by the batch, from device memory or streamed from disk, behind one face."""

import dataclasses
import os
import pathlib

from cutmix_jax import UserError
from cutmix_jax.data import boxes, cache, records, tiny_imagenet
from cutmix_jax.data.batches import Data, Shards
from cutmix_jax.data.folder import open_folder
from cutmix_jax.data.prepared import open_prepared
from cutmix_jax.data.records import ImageSet
from cutmix_jax.data.settings import Settings, read_settings
from cutmix_jax.paths import place

__all__ = ["Data", "Shards", "open_data"]

ONE_DEVICE = Shards()


def open_data(config, shards: Shards = ONE_DEVICE) -> Data:
    """Opens the data set that the configuration names.

    `source='auto'` holds a set in device memory where its images are all of one size, this size
    is the `image_size` asked for (if any), no crop of larger images is asked for, and the whole
    takes at most `resident_limit_mib`; it streams the others. Under `source='resident'` images
    are resized to `image_size`.

    Args:
      config: the configuration (keys: see `settings.Settings`; `augment` is a section).
      shards: how batches are divided over devices and processes.

    Returns:
      The opened set; nothing is on a device yet.

    Raises:
      UserError: the configuration or the data set cannot be used; the message says why.

    Example:
      >>> data = open_data({'dataset': 'digits', 'batch_size': 50})
      >>> data.kind, data.image_shape, dict(data.examples), data.steps_per_epoch
      ('resident', (16, 16, 1), {'train': 1500, 'test': 297}, 30)
    """
    settings = read_settings(config)
    if settings.batch_size % shards.devices:
        raise UserError(
            f"batch_size={settings.batch_size} cannot be divided evenly among {shards.devices} "
            f"devices: use a multiple of {shards.devices}"
        )
    if settings.dataset == "digits":
        data = _open_digits(settings, shards)
    elif settings.dataset == "shapes":
        from cutmix_jax.data.shapes import open_shapes

        data = open_shapes(settings, shards)
    else:
        data = _open_set(settings, shards)
    if data.color is not None and data.image_shape[2] != 3:
        raise UserError(
            f"augment.color_jitter and augment.lighting need images of 3 channels, but those of "
            f"{settings.dataset} have {data.image_shape[2]}: set both to 0"
        )
    return data


def _open_digits(settings: Settings, shards: Shards) -> Data:
    if settings.source == "streaming" or settings.streaming_only:
        raise UserError(
            "digits is always resident, but streaming or a crop of larger images was asked for: "
            "use --config.source=auto without augment.min_area and square_resize"
        )
    if settings.test_split not in (None, "test", "held_out"):
        raise UserError(f"digits has no split {settings.test_split!r}, only test and train")
    from cutmix_jax.data import resident

    arrays, class_names = resident.digits()
    size = settings.image_size or resident.DIGITS_SIZE
    settings = dataclasses.replace(settings, image_size=size)
    return resident.open_resident(settings, arrays, class_names, shards, "digits")


def _open_set(settings: Settings, shards: Shards) -> Data:
    image_set = find_set(settings.dataset, settings.data_dir, settings.test_split)
    if settings.boxes_dir:
        image_set = _with_xml_boxes(image_set, settings.boxes_dir)
    if _is_resident(settings, image_set):
        from cutmix_jax.data import resident

        return resident.open_resident(
            settings,
            resident.read(image_set),
            image_set.class_names,
            shards,
            settings.dataset,
            (lambda split, i: image_set.splits[split].boxes(i))
            if records.have_boxes(image_set)
            else None,
        )
    from cutmix_jax.data import streaming

    return streaming.open_streaming(settings, image_set, shards)


def _with_xml_boxes(image_set: ImageSet, folder: str) -> ImageSet:
    splits = {
        name: dataclasses.replace(split, boxes=boxes.of_xml_files(folder, split))
        for name, split in image_set.splits.items()
    }
    return dataclasses.replace(image_set, splits=splits)


def _is_resident(settings: Settings, image_set: ImageSet) -> bool:
    """Whether the set is to be held on the device; see `open_data`."""
    demanded = settings.source == "resident"
    if settings.source == "streaming" or settings.streaming_only:
        return False
    shape, by_file = image_set.shape, image_set.shape[0] is None
    if by_file:
        if not demanded and not records.headers_are_cheap(image_set):
            return False
        shape = records.first_shape(image_set)
    side = settings.image_size or 0
    count = sum(split.count for split in image_set.splits.values())
    mib = count * max(shape[0] * shape[1], side * side) * shape[2] / 2**20
    if mib > settings.resident_limit_mib:
        if demanded:
            raise UserError(
                f"{settings.dataset} takes {mib:,.1f} MiB in device memory, more than "
                f"resident_limit_mib={settings.resident_limit_mib}: use "
                "--config.source=streaming, or raise --config.resident_limit_mib"
            )
        return False
    if demanded:
        return True
    if side and shape[:2] != (side, side):
        return False
    if not by_file or cache.is_stored(image_set.name, image_set.fingerprint()):
        return True
    return records.all_of_size(image_set, shape[:2])


def find_set(dataset: str, data_dir: str | None, test_split: str | None) -> ImageSet:
    """The folder tree or TFDS set that the configuration names, with splits train and test."""
    if dataset == "folder":
        return open_folder(_existing(data_dir), test_split)
    if data_dir is not None:
        root = _existing(data_dir)
    else:
        root = place(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"), "TFDS_DATA_DIR")
    if dataset == "tiny_imagenet" and (tree := tiny_imagenet.find_tree(root)):
        return tiny_imagenet.open_tree(tree, test_split)
    return open_prepared(dataset, root, test_split)


def _existing(data_dir: str | None) -> pathlib.Path:
    if data_dir is None:
        raise UserError(
            "dataset=folder needs the folder that holds train/ and val/: "
            "give --config.data_dir=PATH"
        )
    path = place(data_dir, "config.data_dir")
    if not path.is_dir():
        raise UserError(
            f"data_dir={data_dir} is not a folder: expected the folder that holds the data set; "
            "check --config.data_dir"
        )
    return path
