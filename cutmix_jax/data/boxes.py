"""Boxes of objects from TFDS records and ILSVRC's XML files, transformed with the image.

A box is (top, left, bottom, right), half-open. It is stored as fractions of the image, and
converted to pixels of the model's input. Boxes are read only when needed.
"""

import collections
import dataclasses
import os
import pathlib
import xml.etree.ElementTree
from collections.abc import Callable, Mapping

import numpy as np

from cutmix_jax import UserError, first_line, first_names
from cutmix_jax.data import records
from cutmix_jax.paths import existing_folder, files_below, user_path


def in_pixels(shares: np.ndarray, resized, offset, shape) -> np.ndarray:
    """Boxes of an image after a resize and a crop.

    A coordinate `y`, as a fraction of the height `H` of the resized image, moves to `H y - top`,
    clipped to the crop. A box outside the crop becomes empty.

    Args:
        shares: float `[n, 4]`, (top, left, bottom, right) as fractions of the image.
        resized: (height, width) of the whole resized image, in pixels.
        offset: (top, left) of the crop in the resized image, in pixels.
        shape: (height, width) of the crop in pixels.

    Returns:
        float32 `[n, 4]`, (top, left, bottom, right) in pixels of the crop, half-open.

    Example:
        >>> in_pixels(np.array([[0.0, 0.25, 0.5, 1.0]]), (256, 256), (16, 16), (224, 224)).tolist()
        [[0.0, 48.0, 112.0, 224.0]]
    """
    corners = np.asarray(shares, np.float64).reshape(-1, 2, 2)
    moved = corners * np.asarray(resized) - np.asarray(offset)
    return np.clip(moved, 0, np.asarray(shape[:2])).reshape(-1, 4).astype(np.float32)


def per_split(indices: Mapping, boxes_of: Callable | None) -> Callable | None:
    """`Data.boxes`, from `(split of the dataset, index there) -> boxes in pixels`."""
    if boxes_of is None:
        return None

    def boxes(split: str) -> list[np.ndarray]:
        origin, index = indices[split]
        return [boxes_of(origin, int(i)) for i in index]

    return boxes


def checked(boxes: np.ndarray, name: str, size=(1, 1), unit="as fractions") -> np.ndarray:
    """Boxes in an image of this (height, width), float32 [n, 4], clipped to it.

    Raises:
        UserError: a corner is not finite, or a box covers none of the image; the message contains
            `name` and `unit`.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    clipped = np.clip(boxes, 0, (*size, *size))
    for box, (top, left, bottom, right) in zip(boxes, clipped, strict=True):
        if not (np.isfinite(box).all() and top < bottom and left < right):
            raise UserError(
                f"{name} has the box {np.round(box, 4).tolist()} (top, left, bottom, right, {unit} "
                "of the image), which covers none of it. Correct or remove the box."
            )
    return clipped.astype(np.float32)


def from_corners(corners, size, name: str) -> np.ndarray:
    """`checked` boxes from inclusive corners (top, left, bottom, right) in pixels, counted from 0.

    `size` is (height, width) of the annotated image.

    Example:
        >>> from_corners([[0, 8, 31, 15]], (64, 16), 'cat.xml').tolist()
        [[0.0, 0.5, 0.5, 1.0]]
    """
    if not all(0 < side < np.inf for side in size):
        raise UserError(
            f"{name} says that its image has height {size[0]:g} and width {size[1]:g}. Correct "
            "them to positive numbers of pixels."
        )
    boxes = np.asarray(corners, np.float64).reshape(-1, 4)
    boxes = boxes + np.array([0, 0, 1, 1])
    return checked(boxes / (*size, *size), name)


def of_record(data: bytes, key: str, name: str) -> np.ndarray:
    """float32 [n, 4] of a serialized `tf.train.Example`, as fractions of the image."""
    return checked(records.parse_example(data)[key].float_list.value, name)


def of_xml_files(folder: str, split: records.Split) -> Callable[[int], np.ndarray]:
    """Boxes from the ILSVRC XML files below `folder`, matched to images of `split` by name."""
    root = existing_folder(folder, "boxes_dir", "the folder of ILSVRC's XML files")
    files = {}

    def read(i: int) -> np.ndarray:
        if not files:  # finds all files at first use, so one error lists all missing ones
            _find_xml_files(root, split, files)
        return _of_xml_file(files[i])

    return read


def _find_xml_files(root: pathlib.Path, split: records.Split, files: dict) -> None:
    """Fills `files` with the path for every index of the split."""
    found = collections.defaultdict(list)
    for file in files_below(root, ".xml"):
        found[file.stem].append(os.fspath(file))
    images = [records.file_name(split, i) for i in range(split.count)]
    stems = [pathlib.Path(name).stem for name in images]
    missing = [f"{stem}.xml" for stem in stems if stem not in found]
    if missing:
        raise UserError(
            f"boxes_dir={root} holds {sum(map(len, found.values()))} XML files, but "
            f"{len(missing)} of {split.count} images have none "
            f"({first_names(missing)}). Set "
            "--config.boxes_dir to a folder with a file for every image of this split."
        )
    images_of = collections.defaultdict(list)
    for stem, image in zip(stems, images, strict=True):
        images_of[stem].append(image)
    for stem in images_of:
        for same in (images_of[stem], found[stem]):
            if len(same) > 1:
                raise UserError(
                    f"{same[0]} and {same[1]} have the same name, so boxes in boxes_dir={root} "
                    "cannot be matched to images. Give every image its own name."
                )
    files |= {i: found[stem][0] for i, stem in enumerate(stems)}


def _of_xml_file(path: str) -> np.ndarray:
    """float32 [n, 4], as fractions of the image; the file has inclusive corners from 0."""
    annotation = read_xml(path)
    return from_corners(annotation.corners, annotation.size, path)


@dataclasses.dataclass(frozen=True)
class Annotation:
    """The objects in an XML file of PASCAL VOC or ILSVRC.

    Attributes:
        size: (height, width) of the image in pixels.
        names: the class of each object.
        corners: float64 [n, 4], (top, left, bottom, right) as in the file.
        difficult: bool [n], False where the file does not say.
    """

    size: tuple[float, float]
    names: list[str]
    corners: np.ndarray
    difficult: np.ndarray


def read_xml(path) -> Annotation:
    """The annotation in an XML file.

    Raises:
        UserError: the file cannot be read, or lacks an element; the message names both.
    """
    try:
        with user_path(path, "boxes_dir").open("rb") as file:
            tree = xml.etree.ElementTree.parse(file).getroot()
        objects = tree.findall("object")
        height, width = (_number(tree, f"size/{name}") for name in ("height", "width"))
        corners = [
            [_number(found, f"bndbox/{name}") for name in ("ymin", "xmin", "ymax", "xmax")]
            for found in objects
        ]
        difficult = [_number(found, "difficult", 0) != 0 for found in objects]
    except (xml.etree.ElementTree.ParseError, ValueError, OSError) as error:
        raise UserError(
            f"{path} is not an annotation file ({first_line(error)}). Replace it by an XML file "
            "of PASCAL VOC or ILSVRC, with size and object/bndbox."
        ) from error
    return Annotation(
        size=(height, width),
        names=[found.findtext("name", "").strip() for found in objects],
        corners=np.asarray(corners, np.float64).reshape(-1, 4),
        difficult=np.asarray(difficult, bool),
    )


def _number(element: xml.etree.ElementTree.Element, path: str, default: float | None = None):
    """The number at a path below an element."""
    text = element.findtext(path)
    if text is None and default is None:
        raise ValueError(f"{path} is missing")
    return default if text is None else float(text)
