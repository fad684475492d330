"""PASCAL VOC's folder tree: VOC2007, VOC2012, and other trees of the same form.

    ImageSets/Main/SPLIT.txt    one ID per line
    Annotations/ID.xml          size and objects: name, difficult, bndbox
    JPEGImages/ID.jpg

Corners in the files are inclusive pixels, counted from 1. So (xmin, ymin, xmax, ymax) becomes
(ymin - 1, xmin - 1, ymax, xmax), which is half-open.
"""

import dataclasses
import functools
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from cutmix_jax import UserError, first_names, nearest
from cutmix_jax.data import batches, boxes, cache, image_files, voc_records
from cutmix_jax.data.records import Annotated, ObjectSet, Split
from cutmix_jax.paths import existing_folder, local_path, resolved

CLASS_NAMES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
# Objects of one image. Every image is padded to the largest number in the dataset.
MOST_OBJECTS = 100
# Part of the cache key. Increase it when annotations are read in another way.
VERSION = 1


def open_voc(config: ConfigDict) -> ObjectSet:
    """The splits `config.voc.train` and `config.voc.test` below `config.data_dir`.

    Raises:
        UserError: a file is missing, cannot be read, or has what cannot be used; the message names
            the file.
    """
    if config.data_dir is None:
        raise UserError(
            "dataset=voc needs the folder that holds VOC2007 and VOC2012, or one such tree, or the "
            "folder of TFDS with voc. Set --config.data_dir=PATH."
        )
    root = existing_folder(config.data_dir, "data_dir", "the folder of PASCAL VOC")
    keys = ("train",) if config.test_split == "held_out" else ("train", "test")
    list_images = voc_records.list_records if voc_records.are_in(root) else _list_tree
    parts = {key: list_images(root, config.voc[key], f"voc.{key}") for key in keys}

    def make() -> dict[str, np.ndarray]:
        count = sum(part.images.count for part in parts.values())
        print(f"Reading {count:,} annotations, once.", file=sys.stderr, flush=True)
        return _read_annotations(parts, config.voc.classes, config.voc.max_side)

    # Images are not cached: 16 GB for VOC, which load no faster than several cores decode.
    counts = [part.images.count for part in parts.values()]
    names = [config.voc[key] for key in keys]
    described = [VERSION, config.voc.classes, config.voc.max_side, *counts, *names, resolved(root)]
    stats = cache.stats(path for part in parts.values() for path in part.files)
    fingerprint = "\n".join([*map(str, described), *stats])
    flat = cache.load_or_make(f"voc-{resolved(root).name}", fingerprint, make)
    splits = {
        key: {name: flat[f"{key}/{name}"] for name in ("size", "boxes", "label", "difficult")}
        for key in keys
    }
    canvas = np.concatenate([part["size"] for part in splits.values()]).max(0)
    return ObjectSet(
        class_names=tuple(flat["classes"].tolist()),
        shape=(*canvas.tolist(), 3),
        splits=splits,
        images={key: part.images for key, part in parts.items()},
        names={key: part.ids for key, part in parts.items()},
    )


def _list_tree(root: pathlib.Path, names: str, key: str) -> Annotated:
    """The images of the splits `names`, joined by '+', in folders."""
    root = local_path(root, "config.data_dir")
    annotations, images = zip(*_files(root, names, key), strict=True)
    trees = {pathlib.Path(annotation).parents[1].resolve().name for annotation in annotations}
    return Annotated(
        images=Split(
            count=len(images),
            read=functools.partial(image_files.read_nth, images),
            labels=None,
            name=images.__getitem__,
        ),
        read=lambda i: _read_files(annotations[i], images[i]),
        source=annotations.__getitem__,
        ids=[pathlib.Path(image).stem for image in images],
        files=[*annotations, *images],
        official=all(re.fullmatch(r"VOC\d{4}", tree) for tree in trees),
    )


def _files(root: pathlib.Path, names: str, key: str) -> list[tuple[str, str]]:
    """(annotation, image) of every ID in the splits `names`, joined by '+'."""
    pairs, seen = [], set()
    for name in names.split("+"):
        listed = _find_split(root, name, key)
        tree = listed.parents[2]
        text = image_files.read(listed).decode("utf-8-sig", errors="surrogateescape")
        ids = [line.strip() for line in text.splitlines() if line.strip()]
        if not ids:
            raise UserError(f"{listed} lists no image. Choose another split with --config.{key}.")
        found = [
            (tree / "Annotations" / f"{one}.xml", tree / "JPEGImages" / f"{one}.jpg") for one in ids
        ]
        for kind, paths in zip(("annotation", "image"), zip(*found, strict=True), strict=True):
            missing = [path for path in paths if not path.is_file()]
            if missing:
                raise UserError(
                    f"{len(missing)} of the {len(ids)} images in {listed} have no {kind} file "
                    f"({first_names(missing)}). Add the files, or remove the lines."
                )
        for annotation, image in found:
            if image in seen:
                raise UserError(
                    f"config.{key}={names} has {image} twice. Remove the repeated line or split."
                )
            seen.add(image)
            pairs.append((str(annotation), str(image)))
    return pairs


def _find_split(root: pathlib.Path, name: str, key: str) -> pathlib.Path:
    """The file of YEAR_SPLIT or SPLIT: in a tree of that year, or in `root` itself."""
    options = [(root, name)]
    if match := re.fullmatch(r"(\d{4})_(.+)", name):
        year, split = f"VOC{match[1]}", match[2]
        options += [(root / year, split), (root / "VOCdevkit" / year, split)]
        options += [(root, split)] * (root.resolve().name == year)
    trees = [
        (main, split) for tree, split in options if (main := tree / "ImageSets" / "Main").is_dir()
    ]
    for main, split in trees:
        if (main / f"{split}.txt").is_file():
            return main / f"{split}.txt"
    if not trees:
        raise UserError(
            f"{root} has no ImageSets/Main for the split {name!r} of config.{key}. Set "
            "--config.data_dir to the folder that holds VOC2007, for the split 2007_trainval, or "
            "to a tree itself, for trainval."
        )
    main, split = trees[-1]
    names = sorted(path.stem for path in main.glob("*.txt"))
    # VOC has also a file per class, such as aeroplane_train.
    names = [one for one in names if "_" not in one] or names
    raise UserError(
        f"{main} has no split {split!r}, only {', '.join(names) or 'no file'}. Choose one with "
        f"--config.{key}."
    )


def _read_files(annotation: str, image: str) -> boxes.Annotation:
    """The annotation of an image, with half-open corners."""
    found = boxes.read_xml(annotation)
    size = image_files.stored_size(image_files.read(image), image)
    if found.size != size:
        raise UserError(
            f"{annotation} is for an image of height {found.size[0]:g} and width "
            f"{found.size[1]:g}, but {image} has {size[0]} and {size[1]}. Replace one of them."
        )
    return dataclasses.replace(found, size=size, corners=found.corners - [1, 1, 0, 0])


def _read_annotations(
    parts: Mapping[str, Annotated], classes: Sequence[str] | None, max_side: int
) -> dict:
    """`{'SPLIT/size', 'SPLIT/boxes', 'SPLIT/label', 'SPLIT/difficult', 'classes'}`."""
    found = {
        key: [_shrink(part.read(i), part.source(i), max_side) for i in range(part.images.count)]
        for key, part in parts.items()
    }
    if classes is None:
        classes = _classes(parts["train"].official, found["train"])
    most = max(1, *(len(one.names) for part in found.values() for one in part))
    flat = {"classes": np.array(classes)}
    for key, part in found.items():
        labels = [_labels(one.names, classes, parts[key].source(i)) for i, one in enumerate(part)]
        flat[f"{key}/size"] = np.array([one.size for one in part], np.int32)
        flat[f"{key}/boxes"] = batches.pad([one.corners for one in part], most, 0)
        flat[f"{key}/label"] = batches.pad(labels, most, -1)
        flat[f"{key}/difficult"] = batches.pad([one.difficult for one in part], most, False)
    return flat


def _shrink(found: boxes.Annotation, source: str, max_side: int) -> boxes.Annotation:
    """The annotation of the image with a longest side of max_side, with checked float32 boxes."""
    if len(found.names) > MOST_OBJECTS:
        raise UserError(
            f"{source} has {len(found.names)} objects, but at most {MOST_OBJECTS} are "
            "supported. Remove some, or the image from its split."
        )
    corners = boxes.checked(found.corners, source, found.size, "in pixels")
    shrunk = image_files.shrunk_shape(found.size, max_side)
    ratio = np.divide(shrunk, found.size)
    corners = np.float32(corners * [*ratio, *ratio])
    return dataclasses.replace(found, size=shrunk, corners=corners)


def _classes(official: bool, found: list[boxes.Annotation]) -> Sequence[str]:
    """VOC's classes for VOC's trees, and for others with no other class; else those found."""
    names = {name for one in found for name in one.names if name}
    return CLASS_NAMES if official or names <= set(CLASS_NAMES) else sorted(names)


def _labels(names: list[str], classes: Sequence[str], annotation: str) -> np.ndarray:
    """int32 [n]: the index of each name in `classes`."""
    for name in names:
        if name not in classes:
            raise UserError(
                f"{annotation} has the class {name!r}, which is unknown "
                f"({nearest(name, classes)}). Correct it, or set --config.voc.classes."
            )
    return np.array([classes.index(name) for name in names], np.int32)
