"""Folders of images: train/CLASS/*.jpg and val/CLASS/*.jpg, classes and files sorted by name."""

import os
import pathlib

import numpy as np

from cutmix_jax import UserError
from cutmix_jax.data import cache
from cutmix_jax.data.records import ImageSet, Split, choose_split

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")


def open_folder(root: pathlib.Path, test_split: str | None) -> ImageSet:
    """The tree below `root`, with its class names."""
    folders = {entry.name for entry in os.scandir(root) if entry.is_dir()}
    if "train" not in folders:
        raise UserError(
            f"{root} holds no folder train: expected train/CLASS/*.jpg and val/CLASS/*.jpg; "
            "check --config.data_dir"
        )
    names = {"train": "train"}
    if test_split != "held_out":
        names["test"] = choose_split(
            folders - {"train"}, test_split, ("val", "validation", "test"), str(root)
        )
    classes = tuple(_class_folders(root / "train"))
    splits, entries = {}, []
    for split, folder in names.items():
        files, labels = [], []
        for name in _class_folders(root / folder):
            if name not in classes:
                raise UserError(
                    f"{root / folder / name} is a class without a folder in {root / 'train'}: "
                    "every class must occur in train"
                )
            found = _image_files(root / folder / name)
            if not found and split == "train":
                raise UserError(
                    f"{root / folder / name} holds no image: expected files ending in "
                    f"{', '.join(IMAGE_SUFFIXES)}; remove the folder or fill it"
                )
            files += [entry.path for entry in found]
            labels += [classes.index(name)] * len(found)
            entries += found
        splits[split] = Split(
            count=len(files),
            read=lambda i, files=files: pathlib.Path(files[i]).read_bytes(),
            labels=np.asarray(labels, np.int32),
            name=files.__getitem__,
        )
    return ImageSet(
        name=f"folder-{root.resolve().name}",
        class_names=classes,
        shape=(None, None, 3),
        splits=splits,
        fingerprint=lambda: "\n".join(
            [str(root.resolve()), *names.values(), *cache.stats(entries)]
        ),
    )


def _class_folders(folder: pathlib.Path) -> list[str]:
    found = sorted(e.name for e in os.scandir(folder) if e.is_dir() and e.name[0] != ".")
    for name in found:
        if not name.isprintable():  # bytes that are not UTF-8 come as lone surrogates
            raise UserError(
                f"{folder} holds the class folder {name!r}, whose name cannot be printed: rename "
                "it in UTF-8"
            )
    if not found:
        raise UserError(
            f"{folder} holds no class folders: expected {folder.name}/CLASS/*.jpg; sort the "
            "images into one folder a class"
        )
    return found


def _image_files(folder: pathlib.Path) -> list[os.DirEntry]:
    entries = (e for e in os.scandir(folder) if e.name[0] != ".")
    found = [e for e in entries if e.name.lower().endswith(IMAGE_SUFFIXES)]
    return sorted(found, key=lambda entry: entry.name)
