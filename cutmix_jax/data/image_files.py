"""Image files: which there are below a folder, and how the bytes of one become pixels.

Every reader of images goes through this file, so that a file is read alike, or refused alike,
wherever it is met. Pillow says what is an image and what its pixels are. simplejpeg gives the same
pixels of most JPEG files in half the time, and cykooz-resizer resizes training crops faster, where
they are installed.
"""

import functools
import importlib
import importlib.metadata
import io
import math
import os
import sys
from collections.abc import Callable, Sequence

import numpy as np

from cutmix_jax import UserError, first_line

# What is read, by Pillow's names, and how such files end. What the bytes say counts, not the name.
ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "GIF": (".gif",),
}
SUFFIXES = tuple(suffix for endings in ENDINGS.values() for suffix in endings)
MOST_PIXELS = 2**26  # of a JPEG; Pillow has its own limits and says so
PNG_START = b"\x89PNG\r\n\x1a\n"
BITS_PER_SAMPLE = 258  # a tag of TIFF
# How large an image may become on the way to its crop, in units of the image and the crop.
LARGEST = 4
# Of JPEG files that simplejpeg decodes, for each number of channels; Pillow decodes the others.
JPEG_START = b"\xff\xd8"
JPEG_COLORS = {3: ("YCbCr", "RGB", "Gray"), 1: ("Gray",)}
LIBRARIES = ("simplejpeg", "cykooz-resizer", "pillow")
# Names shown of what is passed over, for each reason.
SHOWN = 2
# Of a weight in Pillow's resize of bytes.
FRACTION_BITS = 22


def read(path) -> bytes:
    """The bytes of a file.

    Raises:
      UserError: the file cannot be opened; the message names it.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise unreadable(path, error) from error


def read_nth(paths: Sequence, i: int) -> bytes:
    """The bytes of one of several files."""
    return read(paths[i])


def unreadable(path, error: OSError) -> UserError:
    """What to say of a file that the system does not open."""
    return UserError(f"{os.fspath(path)} cannot be read ({error.strerror}): replace or remove it")


def decode(data: bytes, channels: int, name) -> np.ndarray:
    """Pixels of an encoded image: of its first frame, neither rotated nor blended.

    Args:
      data: the bytes of a file of one of the kinds in `ENDINGS`.
      channels: 3 for colors, 1 for gray; either is converted to the other.
      name: what to call the image in an error message.

    Returns:
      uint8 `[H, W, channels]`.

    Raises:
      UserError: the image is of another kind, damaged, or has more than 8 bits per channel.

    Example:
      >>> decode(b'P5 2 1 255 ' + bytes([7, 9]), 1, 'two.pgm').tolist()
      [[[7], [9]]]
    """

    if (found := _decode_jpeg(data, channels)) is not None:
        return found

    def pixels(image):
        if _is_deep(image):
            raise UserError(
                f"{name} has more than 8 bits per channel (mode {image.mode}), but 8 bits a "
                "channel are expected: convert it"
            )
        image.load()
        # Else Pillow warns that it drops the transparency.
        image.info.pop("transparency", None)
        return np.asarray(image.convert("RGB" if channels == 3 else "L"))

    found = _ask(data, name, pixels)
    return found.reshape(*found.shape[:2], channels)


def _decode_jpeg(data: bytes, channels: int) -> np.ndarray | None:
    """Pixels of a JPEG file that raises no doubt; None leaves it to Pillow."""
    simplejpeg = _optional("simplejpeg")
    if simplejpeg is None or not data.startswith(JPEG_START):
        return None
    try:
        height, width, color, _ = simplejpeg.decode_jpeg_header(data)
        if color not in JPEG_COLORS[channels] or height * width > MOST_PIXELS:
            return None
        return simplejpeg.decode_jpeg(data, "RGB" if channels == 3 else "GRAY")
    except ValueError:
        return None


@functools.cache
def _optional(package: str):
    """The module, or None where it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError:
        return None


def libraries() -> str:
    """The names and versions of all that makes pixels here."""
    found = []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def stored_size(data: bytes, name) -> tuple[int, int]:
    """(height, width) from the head of an encoded image; raises like `decode`."""
    return _ask(data, name, lambda image: (image.height, image.width))


def _ask(data: bytes, name, question: Callable):
    """The answer of the opened image."""
    from PIL import Image

    attempts = [data]
    if data.startswith(PNG_START):
        attempts.append(_critical_chunks(data))
    for attempt in attempts:
        try:
            return question(Image.open(io.BytesIO(attempt), formats=tuple(ENDINGS)))
        except UserError:
            raise
        except Exception as error:
            cause = error
    raise UserError(
        f"{name} is not a readable image ({first_line(cause)}): replace or remove it"
    ) from cause


def _critical_chunks(data: bytes) -> bytes:
    """A PNG without texts and the like: their damage says nothing about the pixels."""
    kept, position = [PNG_START], len(PNG_START)
    while position + 8 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4])
        if data[position + 4 : position + 5].isupper():
            kept.append(data[position:end])
        position = end
    return b"".join(kept)


def _is_deep(image) -> bool:
    """Whether a channel has more than 8 bits in the file: Pillow cuts some of them off silently."""
    if image.mode[0] in "IF":  # integers of 16 or 32 bits, and floating point
        return True
    if image.format == "TIFF":
        return max(image.tag_v2.get(BITS_PER_SAMPLE, (1,))) > 8
    details = image.tile[0].args if image.tile else ()
    if image.format == "PPM":
        return any(isinstance(value, int) and value > 255 for value in details)
    return image.format == "PNG" and str(details).endswith(";16B")


def resize(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, C] to [*shape, C], bilinear, the filter widened where it shrinks."""
    return resize_and_crop(image, shape, (0, 0), shape)


def crop_and_resize(
    image: np.ndarray, box: tuple[int, int, int, int], shape: tuple[int, int]
) -> np.ndarray:
    """A box of the image, resized as `resize` does, within one level; pixels outside do not matter.

    Args:
      image: uint8 `[H, W, C]`.
      box: (top, left, height, width) in pixels.
      shape: (height, width) to resize the box to.

    Returns:
      uint8 `[*shape, C]`.

    Example:
      >>> image = np.array([[[9], [0], [100]]], np.uint8)
      >>> crop_and_resize(image, (0, 1, 1, 2), (1, 4))[..., 0].tolist()
      [[0, 25, 75, 100]]
    """
    top, left, height, width = box
    part = image[top : top + height, left : left + width]
    fast = _optional("cykooz_resizer")
    if fast is None:
        return resize(part, shape)
    kind = fast.PixelType.U8x3 if image.shape[2] == 3 else fast.PixelType.U8
    resized = fast.ImageData(shape[1], shape[0], kind)
    bilinear = fast.ResizeOptions(fast.ResizeAlg.convolution(fast.FilterType.bilinear))
    fast.Resizer().resize(fast.ImageData(width, height, kind, part.tobytes()), resized, bilinear)
    return np.frombuffer(resized.get_buffer(), np.uint8).reshape(*shape, image.shape[2])


def resize_and_crop(
    image: np.ndarray, resized: tuple[int, int], offset: tuple[int, int], shape: tuple[int, int]
) -> np.ndarray:
    """A crop of the resized image, in memory that the image and the crop bound.

    Where the resized image would be much larger than both, only what the crop shows of it is made,
    with the same bits.

    Args:
      image: uint8 `[H, W, C]`.
      resized: (height, width) of the whole image when resized, by Pillow's bilinear filter.
      offset: (top, left) of the crop in the resized image, in pixels.
      shape: (height, width) of the crop.

    Returns:
      uint8 `[*shape, C]`.

    Example:
      >>> image = np.array([[[0], [100]]], np.uint8)
      >>> resize_and_crop(image, (1, 4), (0, 1), (1, 2))[..., 0].tolist()
      [[25, 75]]
    """
    from PIL import Image

    stored, channels = image.shape[:2], image.shape[2]
    (height, width), (top, left) = shape, offset
    bound = LARGEST * (math.prod(stored) + height * width)
    if math.prod(resized) > bound and resized[0] >= stored[0] and resized[1] >= stored[1]:
        return _enlarge_and_crop(image, resized, offset, shape)
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    picture = picture.resize(resized[::-1], Image.Resampling.BILINEAR)
    picture = picture.crop((left, top, left + width, top + height))
    return np.asarray(picture).reshape(height, width, channels)


def _enlarge_and_crop(image: np.ndarray, resized, offset, shape) -> np.ndarray:
    """`resize_and_crop` without the resized image, where neither axis shrinks.

    As in Pillow, rows are made before columns, in fixed-point numbers, and rounded in between.
    """
    (rows, tall), (columns, wide) = map(_taps, image.shape[:2], resized, offset, shape)
    image = image[rows.min() : rows.max() + 1]
    image = _blend(image, 1, columns, wide)
    return _blend(image, 0, rows - rows.min(), tall)


def _taps(stored: int, resized: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 [count, 3], twice: which stored pixels make a pixel of the crop, with what weights."""
    center = (start + np.arange(count)[:, None] + 0.5) * (stored / resized)
    index = np.maximum(np.floor(center - 0.5), 0).astype(int) + np.arange(3)
    weight = np.maximum(1 - np.abs(index + 0.5 - center), 0) * (index < stored)
    weight /= weight.sum(1, keepdims=True)
    return np.minimum(index, stored - 1), np.floor(weight * 2**FRACTION_BITS + 0.5).astype(int)


def _blend(image: np.ndarray, axis: int, index: np.ndarray, weight: np.ndarray) -> np.ndarray:
    weight = np.expand_dims(weight, [i for i in range(3) if i != axis])
    parts = (image.take(index[:, i], axis) * weight[..., i] for i in range(3))
    return (sum(parts, 2 ** (FRACTION_BITS - 1)) >> FRACTION_BITS).astype(np.uint8)


def find(folder, passed_over: dict[str, list[str]]) -> list[str]:
    """Paths of all image files below a folder, at any depth, sorted part by part.

    Args:
      folder: where to look.
      passed_over: gets, by reason, the paths of what is no image file: add up several folders,
        and then call `say_passed_over`.

    Raises:
      UserError: a folder cannot be listed, or what is named like an image file is none.
    """
    files = []
    for entry in list_folder(folder):
        suffix = os.path.splitext(entry.name)[1].lower()
        kind = _kind(entry)
        if entry.name[0] == ".":
            reason = "hidden"
        elif kind == "folder" and suffix in SUFFIXES:
            reason = "named like an image but a folder"
        elif kind == "folder" and _is_above(entry, folder):
            reason = "linking to a folder above"
        elif kind == "folder":
            files += find(entry.path, passed_over)
            continue
        elif suffix not in SUFFIXES:
            reason = f"ending in {suffix}" if suffix else "without an ending"
        elif kind == "file":
            files.append(entry.path)
            continue
        else:
            raise UserError(
                f"{entry.path} is named like an image, but is {kind}: replace or remove it"
            )
        passed_over.setdefault(reason, []).append(entry.path)
    return files


def list_folder(folder) -> list[os.DirEntry]:
    """The entries of a folder, sorted by name.

    Raises:
      UserError: the folder cannot be listed; the message names it.
    """
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be listed ({error.strerror}): check its path and permissions"
        ) from error


def _kind(entry: os.DirEntry) -> str:
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        if entry.is_symlink():
            return f"a link to {os.readlink(entry.path)}, which is not a file"
    except OSError as error:
        return f"not a file ({error.strerror})"
    return "not a file"


def _is_above(entry: os.DirEntry, folder) -> bool:
    """Whether the entry is a link that would lead in a circle."""
    if not entry.is_symlink():
        return False
    target = os.path.realpath(entry.path)
    return os.path.commonpath([target, os.path.realpath(folder)]) == target


def say_passed_over(root, passed_over: dict[str, list[str]]) -> None:
    """One line on the standard error with counts and reasons; none if nothing was passed over."""
    if not passed_over:
        return
    reasons = []
    for reason, paths in sorted(passed_over.items()):
        names = [printable(os.path.relpath(path, root)) for path in paths[:SHOWN]]
        more = ", ..." if len(paths) > SHOWN else ""
        reasons.append(f"{len(paths)} {reason} ({', '.join(names)}{more})")
    line = f"{printable(root)}: passed over {'; '.join(reasons)}."
    print(line, file=sys.stderr, flush=True)


def printable(path) -> str:
    """The path with bytes that are not UTF-8 written out, as they cannot be printed."""
    return os.fsencode(path).decode(errors="backslashreplace")
