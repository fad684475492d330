"""Folders of images: train/CLASS/*.jpg and val/CLASS/*.jpg, classes and files sorted by name.

Subfolders of a class folder belong to that class, at any depth.
"""

import functools
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from cutmix_jax import UserError
from cutmix_jax.data import cache, image_files
from cutmix_jax.data.records import ImageSet, Split, choose_split
from cutmix_jax.paths import local_path


def open_folder(root: pathlib.Path, test_split: str | None) -> ImageSet:
    """Opens the folder `root` as a dataset."""
    root = local_path(root, "config.data_dir")
    folders = {entry.name for entry in image_files.list_folder(root) if os.path.isdir(entry)}
    if "train" not in folders:
        raise UserError(
            f"{root} has no folder train, but train/CLASS/*.jpg and val/CLASS/*.jpg are expected. "
            "Check --config.data_dir."
        )
    names = {"train": "train"}
    if test_split != "held_out":
        names["test"] = choose_split(
            folders - {"train"}, test_split, ("val", "validation", "test"), str(root)
        )
    classes, splits = open_splits(root, {split: root / name for split, name in names.items()})

    def fingerprint() -> str:
        paths = [split.name(i) for split in splits.values() for i in range(split.count)]
        return "\n".join([str(root.resolve()), *names.values(), *cache.stats(paths)])

    return ImageSet(
        name=f"folder-{root.resolve().name}",
        class_names=classes,
        shape=(None, None, 3),
        splits=splits,
        fingerprint=fingerprint,
    )


def open_splits(
    root: pathlib.Path, folders: Mapping[str, pathlib.Path]
) -> tuple[tuple[str, ...], dict[str, Split]]:
    """(class names, splits) of folders that hold CLASS/*.jpg; those of 'train' are the classes.

    One line on stderr says which files below `root` are skipped.
    """
    passed_over = {}
    classes = tuple(_class_folders(folders["train"], {}))
    splits = {}
    for split, folder in folders.items():
        files, labels = [], []
        for name in _class_folders(folder, passed_over):
            if name not in classes:
                raise UserError(
                    f"{folder / name} is a class without a folder in {folders['train']}. "
                    "Every class must occur in train."
                )
            found = image_files.find(folder / name, passed_over)
            if not found and split == "train":
                raise UserError(
                    f"{folder / name} holds no image with a suffix of "
                    f"{', '.join(image_files.SUFFIXES)}. Add images or remove the folder."
                )
            files += found
            labels += [classes.index(name)] * len(found)
        splits[split] = Split(
            count=len(files),
            read=functools.partial(image_files.read_nth, files),
            labels=np.asarray(labels, np.int32),
            name=files.__getitem__,
        )
    image_files.say_passed_over(root, passed_over)
    return classes, splits


def _class_folders(folder: pathlib.Path, passed_over: dict[str, list[str]]) -> list[str]:
    found = []
    for entry in image_files.list_folder(folder):
        if entry.name[0] == ".":
            passed_over.setdefault("hidden", []).append(entry.path)
        elif os.path.isdir(entry):
            found.append(entry.name)
        else:
            passed_over.setdefault("in no class folder", []).append(entry.path)
    for name in found:
        if not name.isprintable():  # bytes that are not UTF-8 become lone surrogates
            raise UserError(
                f"{folder} has the class folder {name!r}, whose name is not printable. Rename it "
                "in UTF-8."
            )
    if not found:
        raise UserError(
            f"{folder} has no class folders, but {folder.name}/CLASS/*.jpg is expected. Sort the "
            "images into one folder per class."
        )
    return found
