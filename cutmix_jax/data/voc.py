"""PASCAL VOC's folder tree: VOC2007, VOC2012, and other trees of the same form.

    ImageSets/Main/SPLIT.txt    one ID per line
    Annotations/ID.xml          size and objects: name, difficult, bndbox
    JPEGImages/ID.jpg

Corners in the files are inclusive pixels, counted from 1. So (xmin, ymin, xmax, ymax) becomes
(ymin - 1, xmin - 1, ymax, xmax), which is half-open.
"""

import concurrent.futures
import pathlib
import re
import sys
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from cutmix_jax import UserError, host, nearest
from cutmix_jax.data import batches, boxes, cache, image_files
from cutmix_jax.data.records import ObjectSet
from cutmix_jax.paths import existing_folder

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
# Number of missing files to list.
SHOWN = 3
# Part of the cache key. Increase it when annotations are read in another way.
VERSION = 1


def open_tree(config: ConfigDict) -> ObjectSet:
    """The splits `config.voc.train` and `config.voc.test` below `config.data_dir`.

    Raises:
        UserError: a file is missing, cannot be read, or has what cannot be used; the message names
            the file.
    """
    if config.data_dir is None:
        raise UserError(
            "dataset=voc needs the folder that holds VOC2007 and VOC2012, or one such tree. Set "
            "--config.data_dir=PATH."
        )
    root = existing_folder(config.data_dir, "data_dir", "the folder of PASCAL VOC")
    keys = ("train",) if config.test_split == "held_out" else ("train", "test")
    files = {key: _files(root, config.voc[key], f"voc.{key}") for key in keys}

    def make() -> dict[str, np.ndarray]:
        count = sum(map(len, files.values()))
        print(f"Reading {count:,} annotations, once.", file=sys.stderr, flush=True)
        return _read_annotations(files, config.voc.classes, config.voc.max_side)

    # Images are not cached: 16 GB for VOC, which load no faster than several cores decode.
    paths = [path for pairs in files.values() for pair in pairs for path in pair]
    described = [VERSION, config.voc.classes, config.voc.max_side, *map(len, files.values())]
    fingerprint = "\n".join([*map(str, described), str(root.resolve()), *cache.stats(paths)])
    flat = cache.load_or_make(f"voc-{root.resolve().name}", fingerprint, make)
    splits = {
        key: {name: flat[f"{key}/{name}"] for name in ("size", "boxes", "label", "difficult")}
        for key in keys
    }
    canvas = np.concatenate([part["size"] for part in splits.values()]).max(0)

    def read(key: str, index: np.ndarray) -> np.ndarray:
        images = [files[key][i][1] for i in index]
        return _decode(images, splits[key]["size"][index], canvas)

    return ObjectSet(
        class_names=tuple(flat["classes"].tolist()),
        shape=(*canvas.tolist(), 3),
        splits=splits,
        read=read,
        names={
            key: [pathlib.Path(image).stem for _, image in pairs] for key, pairs in files.items()
        },
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
                some = ", ".join(str(path) for path in missing[:SHOWN])
                raise UserError(
                    f"{len(missing)} of the {len(ids)} images in {listed} have no {kind} file "
                    f"({some}{', ...' if len(missing) > SHOWN else ''}). Add the files, or remove "
                    "the lines."
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


def _read_annotations(files: dict, classes: Sequence[str] | None, max_side: int) -> dict:
    """`{'SPLIT/size', 'SPLIT/boxes', 'SPLIT/label', 'SPLIT/difficult', 'classes'}`."""
    parsed = {key: [_read_one(*pair, max_side) for pair in pairs] for key, pairs in files.items()}
    if classes is None:
        classes = _classes(files["train"], parsed["train"])
    most = max(1, *(len(names) for part in parsed.values() for _, names, _, _ in part))
    flat = {"classes": np.array(classes)}
    for key, part in parsed.items():
        sizes, names, found, difficult = zip(*part, strict=True)
        labels = [
            _labels(names_of, classes, annotation)
            for names_of, (annotation, _) in zip(names, files[key], strict=True)
        ]
        flat[f"{key}/size"] = np.array(sizes, np.int32)
        flat[f"{key}/boxes"] = batches.pad(found, most, 0)
        flat[f"{key}/label"] = batches.pad(labels, most, -1)
        flat[f"{key}/difficult"] = batches.pad(difficult, most, False)
    return flat


def _read_one(annotation: str, image: str, max_side: int):
    """(size, names, boxes in pixels, difficult) of an image, with a longest side of max_side."""
    found = boxes.read_xml(annotation)
    size = image_files.stored_size(image_files.read(image), image)
    if found.size != size:
        raise UserError(
            f"{annotation} is for an image of height {found.size[0]:g} and width "
            f"{found.size[1]:g}, but {image} has {size[0]} and {size[1]}. Replace one of them."
        )
    if len(found.names) > MOST_OBJECTS:
        raise UserError(
            f"{annotation} has {len(found.names)} objects, but at most {MOST_OBJECTS} are "
            "supported. Remove some, or the image from its split."
        )
    corners = boxes.checked(found.corners - [1, 1, 0, 0], annotation, size, "in pixels")
    shrunk = image_files.shrunk_shape(size, max_side)
    ratio = np.divide(shrunk, size)
    return shrunk, found.names, np.float32(corners * [*ratio, *ratio]), found.difficult


def _classes(files: list, parsed: list) -> Sequence[str]:
    """VOC's classes for VOC's trees, and for others with no other class; else those found."""
    found = {name for _, names, _, _ in parsed for name in names if name}
    trees = {pathlib.Path(annotation).parents[1].resolve().name for annotation, _ in files}
    official = all(re.fullmatch(r"VOC\d{4}", tree) for tree in trees)
    return CLASS_NAMES if official or found <= set(CLASS_NAMES) else sorted(found)


def _labels(names: list[str], classes: Sequence[str], annotation: str) -> np.ndarray:
    """int32 [n]: the index of each name in `classes`."""
    for name in names:
        if name not in classes:
            raise UserError(
                f"{annotation} has the class {name!r}, which is unknown "
                f"({nearest(name, classes)}). Correct it, or set --config.voc.classes."
            )
    return np.array([classes.index(name) for name in names], np.int32)


def _decode(paths: list[str], sizes: np.ndarray, canvas: np.ndarray) -> np.ndarray:
    """uint8 [n, *canvas, 3]: each image in the top left corner, resized to its size."""
    images = np.zeros((len(paths), *canvas, 3), np.uint8)

    def fill(i: int) -> None:
        height, width = shape = tuple(sizes[i].tolist())
        image = image_files.decode(image_files.read(paths[i]), 3, paths[i])
        if image.shape[:2] != shape:
            image = image_files.resize(image, shape)
        images[i, :height, :width] = image

    with concurrent.futures.ThreadPoolExecutor(host.cores(), "images") as pool:
        for _ in pool.map(fill, range(len(paths))):
            pass
    return images
