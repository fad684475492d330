"""Reads images and labels from tar files in the form of webdataset: KEY.jpg, KEY.cls or KEY.json.

Files with the same KEY follow each other. It ends at the first dot of the file's name.
"""

import contextlib
import functools
import json
import os
import re
import tarfile
from collections.abc import Iterator

import numpy as np

from cutmix_jax import UserError, first_line
from cutmix_jax.data import image_files
from cutmix_jax.data.records import Example, Part

LABEL = "cls"  # the ending of labels in webdataset
FIELD = "label"


def open_part(path: str, image_column: str | None, label_column: str | None) -> Part:
    """Reads the labels of a file.

    Args:
        path: the file.
        image_column: the ending of the images; None: that of an image file.
        label_column: the ending of the labels, or their name in `KEY.json`; None: `cls` or `label`.

    Raises:
        UserError: the file is damaged, or a label or an image is missing.
    """
    labels, offsets = [], []
    with _opened(path, 0) as tar:
        for key, members in _groups(tar):
            name = f"{path}, {key}"
            image = _find_image(name, members, image_column)
            label = _read_label(name, tar, members, label_column)
            if image is None and label is None:
                continue
            if image is None or label is None:
                missing = "image" if image is None else "label"
                flag = "--image-column" if image is None else "--label-column"
                raise UserError(
                    f"{name} has no {missing} among its files {', '.join(members)}. Choose one "
                    f"with {flag}."
                )
            labels.append(label)
            offsets.append(next(iter(members.values())).offset)
    return Part(
        labels=np.asarray(labels, np.int64),
        read=functools.partial(read, path, image_column, label_column, np.asarray(offsets)),
        name=lambda i: f"{path}, image {i}",
        class_names=None,
    )


def read(
    path: str,
    image_column: str | None,
    label_column: str | None,
    offsets: np.ndarray,
    start: int,
    stop: int,
) -> Iterator[Example]:
    """Yields the images from number `start` to `stop`; `offsets` are the bytes where they begin."""
    with _opened(path, int(offsets[start])) as tar:
        left = stop - start
        for key, members in _groups(tar):
            name = f"{path}, {key}"
            image = _find_image(name, members, image_column)
            if image is None:
                continue
            member = members[image]
            label = _read_label(name, tar, members, label_column)
            data = tar.extractfile(member).read()
            file_name = os.path.basename(member.name)
            yield Example(f"{path}, {member.name}", os.fsencode(file_name), data, label)
            left -= 1
            if not left:
                return


def _groups(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """(key, ending -> file) of files with the same key."""
    key, members = None, {}
    while (member := tar.next()) is not None:
        tar.members.clear()  # the library keeps all of them
        folder, base = os.path.split(member.name)
        if member.isdir() or base.startswith("."):
            continue
        if not member.isreg():
            raise tarfile.ReadError(f"{member.name} is not a regular file")
        stem, _, ending = base.partition(".")
        found = os.path.join(folder, stem)
        if found != key:
            if members:
                yield key, members
            key, members = found, {}
        if ending.lower() in members:
            raise tarfile.ReadError(f"{member.name} occurs twice")
        members[ending.lower()] = member
    # The library takes a damaged header for the end.
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no header and no end at byte {tar.offset}")
    if members:
        yield key, members


def _find_image(name: str, members: dict, column: str | None) -> str | None:
    """The ending of the image."""
    if column is not None:
        return column.lower() if column.lower() in members else None
    found = [ending for ending in members if f".{ending}" in image_files.SUFFIXES]
    like = [ending for ending in members if ending.endswith(image_files.SUFFIXES)]
    if len(found) > 1 or (like and not found):
        raise UserError(
            f"{name} has the files {', '.join(members)}. Choose the images with --image-column "
            "ENDING."
        )
    return found[0] if found else None


def _read_label(name: str, tar: tarfile.TarFile, members: dict, column: str | None) -> int | None:
    """The label, or None if there is none."""
    ending, field = column or LABEL, column or FIELD
    if ending.lower() in members:
        text = tar.extractfile(members[ending.lower()]).read().strip()
        if re.fullmatch(rb"[+-]?\d{1,18}", text):
            return int(text)
        found = repr(text[:40].decode(errors="replace"))
    elif "json" in members:
        try:
            document = json.loads(tar.extractfile(members["json"]).read())
        except ValueError as error:
            raise UserError(f"{name}.json is damaged ({first_line(error)}). Correct it.") from error
        if not isinstance(document, dict) or field not in document:
            return None
        label = document[field]
        if isinstance(label, int) and not isinstance(label, bool) and abs(label) < 2**63:
            return label
        found = repr(label)[:40]
    else:
        return None
    raise UserError(
        f"{name} has the label {found}, but an integer is expected. Choose another one with "
        "--label-column."
    )


@contextlib.contextmanager
def _opened(path: str, offset: int) -> Iterator[tarfile.TarFile]:
    """The tar file from the header at `offset` on."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                yield tar
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(
            f"{path} is damaged or cannot be read as tar ({first_line(error)}). Download it again."
        ) from error
