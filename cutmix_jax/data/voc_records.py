"""PASCAL VOC as TFDS prepares it: voc/2007 and voc/2012, read without TensorFlow.

TFDS stores corners as in VOC's files, inclusive and counted from 1, divided by height and width.
Its records are shuffled. Here they are sorted by their IDs, so images and boxes have the bits and
the order of VOC's folders.
"""

import dataclasses
import pathlib
import re

import numpy as np

from cutmix_jax import UserError
from cutmix_jax.data import boxes, cache, image_files, records, tfds_sets
from cutmix_jax.data.records import Annotated, Split

# VOC's splits, and what they are in TFDS.
SPLITS = {
    "train": ("train",),
    "val": ("validation",),
    "trainval": ("train", "validation"),
    "test": ("test",),
}
# Decimals of a corner in pixels that fractions in float32 preserve.
DECIMALS = 3


def are_in(root: pathlib.Path) -> bool:
    """Whether TFDS has prepared a year of VOC in this folder."""
    return any((root / "voc").glob("*/*/dataset_info.json"))


def list_records(root: pathlib.Path, names: str, key: str) -> Annotated:
    """The images of the splits `names`, YEAR_SPLIT joined by '+'.

    Args:
        root: a folder of TFDS datasets.
        names: the splits.
        key: their key in the config, for error messages.

    Raises:
        UserError: a split does not exist, occurs twice, or cannot be read.
    """
    groups = [_parts(name, key) for name in names.split("+")]
    parts = [part for group in groups for part in group]
    if repeated := [part for part in parts if parts.count(part) > 1]:
        raise UserError(
            f"config.{key}={names} has the records of {' '.join(repeated[0])} twice. Remove the "
            "repeated split."
        )
    opened = {year: _open(root, year, key) for year, _ in parts}
    splits, files = [], []
    for year, split in parts:
        info, _ = opened[year]
        if split not in info.splits or not info.splits[split].num_examples:
            raise UserError(
                f"voc/{year} in {root} has no records of {split}. Prepare it with TFDS again, or "
                f"choose another split with --config.{key}."
            )
        splits.append(tfds_sets.open_split(f"voc/{year}", info, split))
        files += map(str, info.splits[split].filepaths)
    ranks = [rank for rank, group in enumerate(groups) for _ in group]
    # One row per image: rank of its name in `names`, ID, split, index in the split.
    rows = sorted(
        (rank, one, number, i)
        for number, (rank, ids) in enumerate(zip(ranks, _ids(splits, files), strict=True))
        for i, one in enumerate(ids)
    )
    ordered = _Ordered(tuple(splits), np.array([row[2:] for row in rows]))
    classes = [opened[year][1] for year, _ in parts]
    return Annotated(
        images=Split(count=len(rows), read=ordered.image, labels=None, name=ordered.name),
        read=lambda i: _annotation(ordered, i, classes[ordered.positions[i, 0]]),
        source=ordered.name,
        ids=[one for _, one, _, _ in rows],
        files=files,
        official=True,
    )


@dataclasses.dataclass(frozen=True)
class _Ordered:
    """Records of several splits in one order. It can be pickled.

    Attributes:
        splits: the splits as they are stored.
        positions: int [n, 2], (split, index in the split) of each record.
    """

    splits: tuple[Split, ...]
    positions: np.ndarray

    def name(self, i: int) -> str:
        split, index = self.positions[i].tolist()
        return self.splits[split].name(index)

    def features(self, i: int):
        split, index = self.positions[i].tolist()
        return records.parse_example(self.splits[split].read(index))

    def image(self, i: int) -> bytes:
        return self.features(i)["image"].bytes_list.value[0]


def _parts(name: str, key: str) -> list[tuple[str, str]]:
    """(year, split of TFDS) of each part of YEAR_SPLIT."""
    match = re.fullmatch(r"(\d{4})_(\w+)", name)
    if not match or match[2] not in SPLITS:
        raise UserError(
            f"config.{key} has the split {name!r}, but YEAR_SPLIT is expected for records of TFDS, "
            f"such as 2007_trainval. SPLIT is one of {', '.join(SPLITS)}."
        )
    return [(match[1], split) for split in SPLITS[match[2]]]


def _open(root: pathlib.Path, year: str, key: str):
    """(`tfds.core.DatasetInfo`, names of the classes) of a year."""
    folder = tfds_sets.find_prepared(f"voc/{year}", root)
    if folder is None:
        found = sorted({path.parents[1].name for path in root.glob("voc/*/*/dataset_info.json")})
        raise UserError(
            f"{root / 'voc'} has no {year}, only {', '.join(found)}. Prepare voc/{year} with TFDS, "
            f"or choose another split with --config.{key}."
        )
    info, features = tfds_sets.read_info(f"voc/{year}", folder)
    try:
        within = features["objects"].feature
        _, _, classes = within["bbox"], within["is_difficult"], within["label"].names
    except (KeyError, AttributeError) as error:
        raise UserError(
            f"{folder} does not have the boxes, labels and difficult objects of VOC. Prepare "
            f"voc/{year} with TFDS again."
        ) from error
    return info, tuple(classes)


def _ids(splits: list[Split], files: list[str]) -> list[list[str]]:
    """The IDs of each split, such as 000005; read once."""

    def make() -> dict[str, np.ndarray]:
        return {
            str(number): np.array(
                [pathlib.Path(records.file_name(split, i)).stem for i in range(split.count)], str
            )
            for number, split in enumerate(splits)
        }

    stored = cache.load_or_make("voc-ids", "\n".join(cache.stats(files)), make)
    return [stored[str(number)].tolist() for number in range(len(splits))]


def _annotation(ordered: _Ordered, i: int, classes: tuple[str, ...]) -> boxes.Annotation:
    """The annotation of a record, with half-open corners in pixels."""
    feature, name = ordered.features(i), ordered.name(i)
    size = image_files.stored_size(feature["image"].bytes_list.value[0], name)
    labels = np.array(feature["objects/label"].int64_list.value, int)
    records.check_labels(labels, len(classes), name)
    fractions = np.array(feature["objects/bbox"].float_list.value).reshape(-1, 4)
    corners = np.round(fractions * [*size, *size], DECIMALS) - [1, 1, 0, 0]
    difficult = np.array(feature["objects/is_difficult"].int64_list.value, bool)
    return boxes.Annotation(size, [classes[label] for label in labels], corners, difficult)
