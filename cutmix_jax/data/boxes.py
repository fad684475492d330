"""Where the objects are: boxes of TFDS records and of ILSVRC's XML files, moved with the image.

A box is (top, left, bottom, right), half-open: in shares of the image as it is stored, in pixels
once it is moved to the model's input. Boxes are read only when they are asked for.
"""

import collections
import os
import pathlib
import xml.etree.ElementTree
from collections.abc import Callable, Mapping

import numpy as np

from cutmix_jax import UserError, first_line
from cutmix_jax.data import records
from cutmix_jax.paths import place

# Names shown where files are missing.
SHOWN = 3


def in_pixels(shares: np.ndarray, resized, offset, shape) -> np.ndarray:
    """Boxes of an image that is resized and then cropped, as the crop shows them.

    A coordinate `y` in shares of the height `H` of the resized image is at `H y - top`, clipped
    to the crop; a box outside the crop becomes empty.

    Args:
      shares: float `[n, 4]`, (top, left, bottom, right) in shares of the image.
      resized: (height, width) in pixels that the whole image is resized to.
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
    """`Data.boxes`, from `(split of the data set, index there) -> boxes in pixels`."""
    if boxes_of is None:
        return None

    def boxes(split: str) -> list[np.ndarray]:
        origin, index = indices[split]
        return [boxes_of(origin, int(i)) for i in index]

    return boxes


def checked(shares: np.ndarray, name: str) -> np.ndarray:
    """Boxes in shares of the image, as float32 [n, 4], clipped to it.

    Raises:
      UserError: a corner is not a number, or nothing of the image lies within a box; the message
        names `name`.
    """
    shares = np.asarray(shares, np.float64).reshape(-1, 4)
    clipped = np.clip(shares, 0, 1)
    for box, (top, left, bottom, right) in zip(shares, clipped, strict=True):
        if not (np.isfinite(box).all() and top < bottom and left < right):
            raise UserError(
                f"{name} has the box {np.round(box, 4).tolist()} (top, left, bottom, right, in "
                "shares of the image), which holds nothing of it: correct it or take it out"
            )
    return clipped.astype(np.float32)


def from_corners(corners, size, name: str) -> np.ndarray:
    """`checked` boxes from inclusive corners (top, left, bottom, right) in pixels, counted from 0.

    `size` is (height, width) of the image that they were drawn in.

    Example:
      >>> from_corners([[0, 8, 31, 15]], (64, 16), 'cat.xml').tolist()
      [[0.0, 0.5, 0.5, 1.0]]
    """
    if not all(0 < side < np.inf for side in size):
        raise UserError(
            f"{name} says that its image has height {size[0]:g} and width {size[1]:g}, but pixels "
            "are expected: correct it"
        )
    boxes = np.asarray(corners, np.float64).reshape(-1, 4)
    boxes = boxes + np.array([0, 0, 1, 1])
    return checked(boxes / (*size, *size), name)


def of_record(data: bytes, key: str, name: str) -> np.ndarray:
    """float32 [n, 4] of a serialized `tf.train.Example`, in shares of the image."""
    return checked(records.parse_example(data)[key].float_list.value, name)


def of_xml_files(folder: str, split: records.Split) -> Callable[[int], np.ndarray]:
    """Boxes of the ILSVRC XML files below `folder`, which are named like the images of `split`."""
    root = place(folder, "config.boxes_dir")
    if not root.is_dir():
        raise UserError(
            f"boxes_dir={folder} is not a folder: expected the folder of ILSVRC's XML files; "
            "check --config.boxes_dir"
        )
    files = {}

    def read(i: int) -> np.ndarray:
        if not files:  # looked up at the first use, and all at once: one answer names what lacks
            _find_xml_files(root, split, files)
        return _of_xml_file(files[i])

    return read


def _find_xml_files(root: pathlib.Path, split: records.Split, files: dict) -> None:
    """Fills `files` with the path for every index of the split."""
    found = collections.defaultdict(list)
    for folder, _, names in os.walk(root):
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix == ".xml":
                found[stem].append(os.path.join(folder, name))
    images = [records.file_name(split, i) for i in range(split.count)]
    stems = [pathlib.Path(name).stem for name in images]
    missing = [stem for stem in stems if stem not in found]
    if missing:
        some = ", ".join(f"{stem}.xml" for stem in missing[:SHOWN])
        raise UserError(
            f"boxes_dir={root} holds {sum(map(len, found.values()))} XML files, but "
            f"{len(missing)} of {split.count} images have none "
            f"({some}{', ...' if len(missing) > SHOWN else ''}): give the folder "
            "with a file for every image of this split by --config.boxes_dir"
        )
    images_of = collections.defaultdict(list)
    for stem, image in zip(stems, images, strict=True):
        images_of[stem].append(image)
    for stem in images_of:
        for same in (images_of[stem], found[stem]):
            if len(same) > 1:
                raise UserError(
                    f"{same[0]} and {same[1]} have the same name, so that boxes_dir={root} does "
                    "not say which boxes belong to which image: give every image a name of its own"
                )
    files |= {i: found[stem][0] for i, stem in enumerate(stems)}


def _of_xml_file(path: str) -> np.ndarray:
    """float32 [n, 4], in shares of the image; the file has inclusive corners from 0."""
    try:
        tree = xml.etree.ElementTree.parse(path).getroot()
        size = [float(tree.findtext(f"size/{name}")) for name in ("height", "width")]
        corners = [
            [float(box.findtext(name)) for name in ("ymin", "xmin", "ymax", "xmax")]
            for box in tree.iterfind("object/bndbox")
        ]
    except (xml.etree.ElementTree.ParseError, TypeError, ValueError, OSError) as error:
        raise UserError(
            f"{path} is not an annotation file ({first_line(error)}): expected the XML of "
            "ILSVRC, with size and object/bndbox; replace it"
        ) from error
    return from_corners(corners, size, path)
