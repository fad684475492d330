"""Writes the images of a source as array_record files in the layout of TFDS, and can be resumed.

A journal next to the files lists what it was started with and the files that are complete. The file
`dataset_info.json` comes last, so readers see the whole dataset or none.
"""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import pathlib
import re
import shutil
import threading
from collections.abc import Iterator
from typing import IO

from cutmix_jax import UserError
from cutmix_jax.data import cache, image_files, records, tfds_files
from cutmix_jax.data.records import Example, Part
from cutmix_jax.data.sources import Source
from cutmix_jax.data.tfds_files import JOURNAL

VERSION = "1.0.0"
UNFINISHED = "unfinished"
# Of the source per file, by default. Only whole files are kept when the command is stopped.
FILE_BYTES = 2**28
QUALITY = 95


@dataclasses.dataclass(frozen=True)
class Options:
    """How images are stored.

    Attributes:
        shorter_side: larger images are resized to this shorter side, in pixels, and become JPEG;
            None keeps the bytes of all images.
        quality: of JPEG, 1 to 100.
        shards: number of files per split, at most one per image; None: one per 256 MiB of source.
        workers: number of threads; does not change what is written.
    """

    shorter_side: int | None = None
    quality: int = QUALITY
    shards: int | None = None
    workers: int = 1


@dataclasses.dataclass(frozen=True)
class File:
    """A file to write: number `shard` of `shards` of a split, with examples `start` to `stop`."""

    dataset: str
    split: str
    shard: int
    shards: int
    start: int
    stop: int

    @property
    def file_name(self) -> str:
        return tfds_files.file_name(self.dataset, self.split, self.shard, self.shards)


def prepare(source: Source, out: pathlib.Path, options: Options) -> pathlib.Path:
    """Writes a dataset to the folder `out`, or goes on with one that was started.

    Every image is decoded once, so a damaged one is found here.

    Args:
        source: the images.
        out: folder to write to; created if it does not exist.
        options: how images are stored.

    Returns:
        The folder.

    Raises:
        UserError: the folder holds something else, or was started with other files or options; an
            image is damaged; or the disk is full. Files that are complete are kept.
    """
    records.require("array_record", "preparing a dataset", "pip install array_record")
    started = _description(source, out, options)
    try:
        with _journal(out, started) as (journal, name, done):
            files = _plan(source, name, options.shards)
            left = [file for file in files if file.file_name not in done]
            if left or not (out / tfds_files.INFO).is_file():
                (out / tfds_files.INFO).unlink(missing_ok=True)
                done |= _write_files(source, out, options, left, journal)
                if _fingerprint(source) != started["source"]:
                    raise _changed("source", out)
                _write_info(source, out, files, done)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror or error}). Complete files are kept: free "
            "some space, and start the same command again."
        ) from error
    return out


def _name(out: pathlib.Path) -> str:
    """A name for the dataset, from that of its folder."""
    name = re.sub(r"[^a-z0-9]+", "_", out.name.lower()).strip("_")
    return name if name[:1].isalpha() else f"images_{name}".strip("_")


def _plan(source: Source, name: str, shards: int | None) -> list[File]:
    """All files, with equal numbers of images up to one."""
    files = []
    for split, parts in source.splits.items():
        count = sum(len(part.labels) for part in parts)
        size = sum(map(os.path.getsize, source.files[split]))
        number = max(1, min(count, shards or -(-size // FILE_BYTES)))
        for i in range(number):
            span = count * i // number, count * (i + 1) // number
            files.append(File(name, split, i, number, *span))
    return files


def _description(source: Source, out: pathlib.Path, options: Options) -> dict:
    """What decides the bytes that are written."""
    found = {"name": _name(out), "source": _fingerprint(source), "shards": options.shards}
    found |= {**source.columns, "shorter-side": options.shorter_side}
    if options.shorter_side:
        found |= {"quality": options.quality, "libraries": image_files.libraries()}
    return found


def _fingerprint(source: Source) -> str:
    """A text that changes with the files of the source, and with the labels."""
    parts = [repr(source.class_names).encode(), str(source.num_classes).encode()]
    for split, paths in source.files.items():
        lines = "\n".join([split, *cache.stats(paths)])
        parts.append(lines.encode(errors="surrogateescape"))
        parts += [part.labels.tobytes() for part in source.splits[split]]
    return records.digest(parts)


@contextlib.contextmanager
def _journal(out: pathlib.Path, started: dict) -> Iterator[tuple[IO, str, dict[str, dict]]]:
    """(the open journal, name of the dataset, lines of the files that are complete by name)"""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, but a folder is expected. Choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    path = out / JOURNAL
    if not path.exists() and any(out.iterdir()):
        raise UserError(f"{out} holds other files. Choose an empty or new folder with --out.")
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"Another process is writing to {out}. Wait for it to end, or choose another --out."
            ) from error
        lines = _read_lines(file, path)
        if not lines:
            lines = [started]
            _append(file, started)
        before = lines[0]
        for key in started:
            if key != "name" and before.get(key) != started[key]:
                raise _changed(key, out, before.get(key), started[key])
        done = {line["file"]: line for line in lines[1:] if _is_whole(out / line["file"], line)}
        yield file, before["name"], done


def _read_lines(file: IO, path: pathlib.Path) -> list[dict]:
    """The lines of the journal; removes the last one if it was cut off."""
    file.seek(0)
    text = file.read()
    text = text[: text.rfind("\n") + 1]
    try:
        lines = [json.loads(line) for line in text.splitlines()]
    except ValueError as error:
        raise UserError(f"{path} is damaged. Choose another folder with --out.") from error
    file.truncate(len(text.encode()))
    return lines


def _append(file: IO, line: dict) -> None:
    file.write(json.dumps(line) + "\n")
    file.flush()


def _is_whole(path: pathlib.Path, line: dict) -> bool:
    return path.is_file() and path.stat().st_size == line["size"]


def _changed(key: str, out: pathlib.Path, before=None, now=None) -> UserError:
    if key == "source":
        return UserError(
            f"The files or the labels of the source have changed since {out} was started. Restore "
            "them, or choose another --out."
        )
    flag = key if key == "libraries" else f"--{key}"
    before, now = (value or "none" for value in (before, now))
    return UserError(
        f"{out} was started with {flag} {before}, but now there is {now}. Use the same, or choose "
        "another --out."
    )


def _write_files(
    source: Source, out: pathlib.Path, options: Options, files: list[File], journal: IO
) -> dict[str, dict]:
    """Writes files, and adds a line for each to the journal; returns the lines by file name."""
    unfinished = out / UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    stopped, writing = threading.Event(), threading.Lock()
    count = sum(file.stop - file.start for file in files)
    bar = tfds_files.progress_bar(count, f"writing {out.name}", unit=" images")

    def examples(file: File, shapes: set) -> Iterator[dict]:
        for example in read(source.splits[file.split], file.start, file.stop):
            if stopped.is_set():
                raise concurrent.futures.CancelledError
            image, shape = store(example, options)
            if len(shapes) < 2:  # enough to know that images differ in size
                shapes.add(shape)
            yield {"image": image, "label": example.label, "file_name": example.file_name}
            bar.update()

    def write(file: File) -> dict:
        shapes = set()
        number, size = tfds_files.write_shard(
            unfinished, file.dataset, file.split, file.shard, file.shards, examples(file, shapes)
        )
        if number != file.stop - file.start:
            raise _changed("source", out)
        path = out / file.file_name
        os.replace(unfinished / file.file_name, path)
        line = {
            "file": file.file_name,
            "size": path.stat().st_size,
            "examples": number,
            "bytes": size,
            "shapes": sorted(shapes),
        }
        with writing:  # at once: a file without its line would be written again after a kill
            _append(journal, line)
        return line

    lines = {}
    with bar, concurrent.futures.ThreadPoolExecutor(options.workers, "prepare") as pool:
        try:
            waiting = [pool.submit(write, file) for file in files]
            for future in concurrent.futures.as_completed(waiting):
                line = future.result()
                lines[line["file"]] = line
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    unfinished.rmdir()
    return lines


def read(parts: list[Part], start: int, stop: int) -> Iterator[Example]:
    """The examples from number `start` to `stop` of consecutive parts."""
    ends = itertools.accumulate(len(part.labels) for part in parts)
    for part, end in zip(parts, ends, strict=True):
        first = end - len(part.labels)
        if start < end and first < stop:
            yield from part.read(max(start - first, 0), min(stop, end) - first)


def store(example: Example, options: Options) -> tuple[bytes, tuple[int, int]]:
    """(bytes of the image, its height and width)."""
    image = image_files.decode(example.image, 3, example.name)
    height, width = image.shape[:2]
    side = options.shorter_side
    shorter = min(height, width)
    if side is None or shorter <= side:
        return example.image, (height, width)
    shape = side * height // shorter, side * width // shorter
    resized = image_files.crop_and_resize(image, (0, 0, height, width), shape)
    return image_files.encode_jpeg(resized, options.quality), shape


def _write_info(source: Source, out: pathlib.Path, files: list[File], done: dict) -> None:
    tfds = records.import_tfds()
    lines = [done[file.file_name] for file in files]
    shapes = {tuple(shape) for line in lines for shape in line["shapes"]}
    height, width = shapes.pop() if len(shapes) == 1 else (None, None)
    names = source.class_names
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(height, width, 3)),
            "label": tfds.features.ClassLabel(
                **({"names": names} if names else {"num_classes": source.num_classes})
            ),
            "file_name": tfds.features.Text(),
        }
    )
    splits = {}
    for file, line in zip(files, lines, strict=True):
        splits.setdefault(file.split, []).append((line["examples"], line["bytes"]))
    tfds_files.write_info(out, files[0].dataset, features, splits, __name__, [], VERSION)
