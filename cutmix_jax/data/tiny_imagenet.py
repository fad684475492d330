"""Tiny-ImageNet in its official form: the folder tiny-imagenet-200, with one box per image.

    wnids.txt  words.txt
    train/CLASS/images/*.JPEG        train/CLASS/CLASS_boxes.txt    FILE x0 y0 x1 y1
    val/images/*.JPEG                val/val_annotations.txt        FILE CLASS x0 y0 x1 y1

Corners are inclusive pixels. Classes are sorted by their WordNet id.
"""

import functools
import os
import pathlib

import numpy as np

from cutmix_jax import UserError
from cutmix_jax.data import boxes, cache, image_files
from cutmix_jax.data.records import ImageSet, Split, choose_split
from cutmix_jax.paths import local_path

SIDE = 64
FOLDER = "tiny-imagenet-200"


def find_tree(root: pathlib.Path) -> pathlib.Path | None:
    """The official folder, if it is `root` or in it."""
    for folder in (root, root / FOLDER):
        if (folder / "wnids.txt").is_file() and (folder / "train").is_dir():
            return folder
    return None


def open_tree(root: pathlib.Path, test_split: str | None) -> ImageSet:
    """The official folder as a dataset of encoded images."""
    root = local_path(root, "config.data_dir")
    classes = tuple(sorted(_read(root / "wnids.txt").split()))
    splits = {"train": _train(root, classes)}
    if test_split != "held_out":
        choose_split(("train", "validation"), test_split, ("validation",), str(root))
        splits["test"] = _validation(root, classes)
    paths = [split.name(i) for split in splits.values() for i in range(split.count)]
    return ImageSet(
        name="tiny_imagenet-tree",
        class_names=classes,
        shape=(SIDE, SIDE, 3),
        splits=splits,
        fingerprint=lambda: "\n".join(cache.stats(paths)),
    )


def read_words(root: pathlib.Path) -> dict[str, str]:
    """WordNet id -> English words."""
    lines = _read(root / "words.txt").splitlines()
    return dict(line.split("\t", 1) for line in lines if "\t" in line)


def _train(root: pathlib.Path, classes: tuple[str, ...]) -> Split:
    files, labels, passed_over = [], [], {}
    for label, name in enumerate(classes):
        folder = root / "train" / name / "images"
        found = image_files.find(folder, passed_over) if folder.is_dir() else []
        if not found:
            raise UserError(
                f"{folder} holds no image, but wnids.txt lists {name}. Unpack "
                f"{FOLDER}.zip again, or remove the line."
            )
        files += found
        labels += [label] * len(found)
    image_files.say_passed_over(root, passed_over)

    @functools.cache
    def boxes_of(name: str) -> dict[str, list[str]]:
        return _table(root / "train" / name / f"{name}_boxes.txt", 5)

    def box(i: int) -> np.ndarray:
        name = classes[labels[i]]
        return _box(boxes_of(name), root / "train" / name / f"{name}_boxes.txt", files[i])

    return _split(files, labels, box)


def _validation(root: pathlib.Path, classes: tuple[str, ...]) -> Split:
    path = root / "val" / "val_annotations.txt"
    table = _table(path, 6)
    number = {name: label for label, name in enumerate(classes)}
    rows = sorted(item for item in table.items() if item[1][0] in number)
    if not rows:
        raise UserError(f"{path} lists no image of the classes in wnids.txt. Unpack it again.")
    folder, passed_over = root / "val" / "images", {}
    for file in image_files.find(folder, passed_over):
        name = os.path.basename(file)
        if name not in table:
            passed_over.setdefault(f"without a line in {path.name}", []).append(file)
        elif table[name][0] not in number:
            passed_over.setdefault("of classes not in wnids.txt", []).append(file)
    image_files.say_passed_over(root, passed_over)
    files = [str(folder / name) for name, _ in rows]
    labels = [number[fields[0]] for _, fields in rows]
    return _split(files, labels, lambda i: _box(table, path, files[i]))


def _split(files: list[str], labels: list[int], box) -> Split:
    return Split(
        count=len(files),
        read=functools.partial(image_files.read_nth, files),
        labels=np.asarray(labels, np.int32),
        name=files.__getitem__,
        boxes=box,
    )


def _table(path: pathlib.Path, columns: int) -> dict[str, list[str]]:
    """File name -> the other columns of a tab-separated file."""
    rows = [line.split() for line in _read(path).splitlines() if line.strip()]
    for row in rows:
        if len(row) != columns or not all(field.isdecimal() for field in row[-4:]):
            raise UserError(
                f"{path} has the line {' '.join(row)!r}, but {columns} columns that end in four "
                f"whole numbers are expected. Unpack {FOLDER}.zip again."
            )
    return {row[0]: row[1:] for row in rows}


def _box(table: dict[str, list[str]], path: pathlib.Path, file: str) -> np.ndarray:
    """float32 [1, 4], half-open, as fractions of the image."""
    name = os.path.basename(file)
    if name not in table:
        raise UserError(f"{path} has no line for {name}. Unpack {FOLDER}.zip again.")
    left, top, right, bottom = map(int, table[name][-4:])
    return boxes.from_corners([[top, left, bottom, right]], (SIDE, SIDE), f"{name} of {path}")


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise UserError(f"{path} cannot be read ({reason}). Unpack {FOLDER}.zip again.") from error
