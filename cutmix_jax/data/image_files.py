"""Finds image files in folders, and decodes them to pixels.

All images are read by this file, so each one is decoded or rejected in the same way everywhere.
Pillow defines what a valid image is, and its pixels. If installed, simplejpeg decodes most JPEG
files to the same pixels in half the time, and cykooz-resizer resizes training crops faster.
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

# Supported formats, by Pillow's names, and their suffixes. The content decides, not the name.
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
MOST_PIXELS = 2**26  # of a JPEG for simplejpeg; Pillow has its own limits
PNG_START = b"\x89PNG\r\n\x1a\n"
BITS_PER_SAMPLE = 258  # a tag of TIFF
# Maximum size of the resized image, relative to the stored image and the crop together.
LARGEST = 4
# Color spaces that simplejpeg decodes, per number of channels. Pillow decodes the others.
JPEG_START = b"\xff\xd8"
JPEG_COLORS = {3: ("YCbCr", "RGB", "Gray"), 1: ("Gray",)}
LIBRARIES = ("simplejpeg", "cykooz-resizer", "pillow")
# Number of skipped files to list for each reason.
SHOWN = 2
# Precision of the weights in Pillow's resize of uint8.
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
    """The bytes of the i-th file."""
    return read(paths[i])


def unreadable(path, error: OSError) -> UserError:
    """The error for a file that cannot be opened."""
    return UserError(f"{os.fspath(path)} cannot be read ({error.strerror}). Replace or remove it.")


def decode(data: bytes, channels: int, name) -> np.ndarray:
    """Decodes the first frame of an image, without rotation or blending.

    Args:
        data: the bytes of a file in a format of `ENDINGS`.
        channels: 3 for color, 1 for gray; images are converted.
        name: name of the image in error messages.

    Returns:
        uint8 `[H, W, channels]`.

    Raises:
        UserError: the format is not supported, or the image is damaged or has more than 8 bits per
            channel.

    Example:
        >>> decode(b'P5 2 1 255 ' + bytes([7, 9]), 1, 'two.pgm').tolist()
        [[[7], [9]]]
    """

    if (found := _decode_jpeg(data, channels)) is not None:
        return found

    def pixels(image):
        if _is_deep(image):
            raise UserError(
                f"{name} has more than 8 bits per channel (mode {image.mode}). Convert it to 8 "
                "bits per channel."
            )
        image.load()
        # Otherwise Pillow warns that it drops the transparency.
        image.info.pop("transparency", None)
        return np.asarray(image.convert("RGB" if channels == 3 else "L"))

    found = _ask(data, name, pixels)
    return found.reshape(*found.shape[:2], channels)


def _decode_jpeg(data: bytes, channels: int) -> np.ndarray | None:
    """Pixels of a regular JPEG file; None leaves the file to Pillow."""
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


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    """A JPEG file of uint8 [H, W, 3], with 4:2:0 chroma.

    By Pillow everywhere: simplejpeg is an eighth faster, but computes a less exact transform.

    Example:
        >>> data = encode_jpeg(np.full((9, 8, 3), 7, np.uint8), 95)
        >>> stored_size(data, 'gray.jpg')
        (9, 8)
    """
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return file.getvalue()


@functools.cache
def _optional(package: str):
    """The module, or None if it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError:
        return None


def libraries() -> str:
    """The names and versions of all libraries that decode images."""
    found = []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def stored_size(data: bytes, name) -> tuple[int, int]:
    """(height, width) from the header of an encoded image; raises like `decode`."""
    return _ask(data, name, lambda image: (image.height, image.width))


def _ask(data: bytes, name, question: Callable):
    """Opens the image, and returns `question(image)`."""
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
        f"{name} is not a readable image ({first_line(cause)}). Replace or remove it."
    ) from cause


def _critical_chunks(data: bytes) -> bytes:
    """A PNG without its ancillary chunks, whose damage does not affect the pixels."""
    kept, position = [PNG_START], len(PNG_START)
    while position + 8 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4])
        if data[position + 4 : position + 5].isupper():
            kept.append(data[position:end])
        position = end
    return b"".join(kept)


def _is_deep(image) -> bool:
    """Whether a channel has more than 8 bits in the file. Pillow silently truncates some."""
    if image.mode[0] in "IF":  # integers of 16 or 32 bits, and floating point
        return True
    if image.format == "TIFF":
        return max(image.tag_v2.get(BITS_PER_SAMPLE, (1,))) > 8
    details = image.tile[0].args if image.tile else ()
    if image.format == "PPM":
        return any(isinstance(value, int) and value > 255 for value in details)
    return image.format == "PNG" and str(details).endswith(";16B")


def shrunk_shape(shape: tuple[int, int], most: int) -> tuple[int, int]:
    """(height, width) of an image whose longer side is reduced to at most `most` pixels."""
    scale = min(1, most / max(shape))
    return tuple(max(1, round(side * scale)) for side in shape)


def resize(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resizes uint8 [H, W, C] to [*shape, C], bilinear with antialiasing."""
    return resize_and_crop(image, shape, (0, 0), shape)


def crop_and_resize(
    image: np.ndarray, box: tuple[int, int, int, int], shape: tuple[int, int]
) -> np.ndarray:
    """Resizes a box of the image, like `resize` up to one level. Pixels outside have no effect.

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
    """A crop of the resized image, with memory bounded by the image and the crop.

    If the resized image would be much larger than both, only the crop is computed, with the same
    bits.

    Args:
        image: uint8 `[H, W, C]`.
        resized: (height, width) of the whole resized image, with Pillow's bilinear filter.
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
    """`resize_and_crop` without the resized image, if neither axis shrinks.

    As in Pillow, rows come before columns, in fixed-point numbers, with rounding in between.
    """
    (rows, tall), (columns, wide) = map(_taps, image.shape[:2], resized, offset, shape)
    image = image[rows.min() : rows.max() + 1]
    image = _blend(image, 1, columns, wide)
    return _blend(image, 0, rows - rows.min(), tall)


def _taps(stored: int, resized: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Stored pixels of each pixel of the crop, and their weights; both int64 [count, 3]."""
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
    """Paths of all image files below a folder, at any depth, sorted by path component.

    Args:
        folder: the folder to search.
        passed_over: collects the paths of skipped files by reason, for one or more folders. Call
            `say_passed_over` afterwards.

    Raises:
        UserError: a folder cannot be listed, or something named like an image file is not a file.
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
                f"{entry.path} is named like an image, but is {kind}. Replace or remove it."
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
            f"{folder} cannot be listed ({error.strerror}). Check its path and permissions."
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
    """Whether the entry is a link that creates a cycle."""
    if not entry.is_symlink():
        return False
    target = os.path.realpath(entry.path)
    return os.path.commonpath([target, os.path.realpath(folder)]) == target


def say_passed_over(root, passed_over: dict[str, list[str]]) -> None:
    """Prints one line with counts and reasons to stderr, if files were skipped."""
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
    """The path as printable text, with escapes for bytes that are not UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")
