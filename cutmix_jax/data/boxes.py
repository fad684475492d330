"""Where the objects are: boxes of TFDS records and of ILSVRC's XML files, moved with the image.

A box is (top, left, bottom, right), half-open: in shares of the image as it is stored, in pixels
once it is moved to the model's input. Boxes are read only when they are asked for.
"""

import os
import pathlib
import xml.etree.ElementTree
from collections.abc import Callable, Mapping

import numpy as np

from cutmix_jax import UserError
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


def of_record(data: bytes, key: str) -> np.ndarray:
    """float32 [n, 4] of a serialised `tf.train.Example`, in shares of the image."""
    values = records.parse_example(data)[key].float_list.value
    return np.asarray(values, np.float32).reshape(-1, 4)


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
    found = {
        pathlib.Path(name).stem: os.path.join(folder, name)
        for folder, _, names in os.walk(root)
        for name in names
        if name.endswith(".xml")
    }
    stems = [pathlib.Path(records.file_name(split, i)).stem for i in range(split.count)]
    missing = [stem for stem in stems if stem not in found]
    if missing:
        some = ", ".join(f"{stem}.xml" for stem in missing[:SHOWN])
        raise UserError(
            f"boxes_dir={root} holds {len(found)} XML files, but {len(missing)} of {split.count} "
            f"images have none ({some}{', ...' if len(missing) > SHOWN else ''}): give the folder "
            "with a file for every image of this split by --config.boxes_dir"
        )
    files |= {i: found[stem] for i, stem in enumerate(stems)}


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
            f"{path} is not an annotation file ({records.first_line(error)}): expected the XML of "
            "ILSVRC, with size and object/bndbox; replace it"
        ) from error
    boxes = np.asarray(corners, np.float64).reshape(-1, 4)
    boxes[:, 2:] += 1
    return np.clip(boxes / (size * 2), 0, 1).astype(np.float32)
