"""Writes the images of a source as array_record files in the layout of TFDS, and can be resumed.

A journal next to the files lists what it was started with and the files that are complete. The file
`dataset_info.json` comes last, so readers see the whole dataset or none.
"""

import concurrent.futures
import dataclasses
import itertools
import json
import os
import re
import threading
from collections.abc import Iterator

from cutmix_jax import UserError, lock
from cutmix_jax.data import cache, image_files, records, tfds_files
from cutmix_jax.data.records import Example, Part
from cutmix_jax.data.sources import Source
from cutmix_jax.data.tfds_files import JOURNAL
from cutmix_jax.paths import (
    explain_failure,
    is_temporary,
    sizes_in,
    whole_file,
    write_text,
)

VERSION = "1.0.0"
# Beginnings of names that are there before the journal is.
OWN = (lock.DATASET_LOCK, JOURNAL)
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


def prepare(source: Source, out, options: Options):
    """Writes a dataset to the folder `out`, or goes on with one that was started.

    Every image is decoded once, so a damaged one is found here.

    Args:
        source: the images.
        out: absolute path of the folder to write to, on a disk or in a bucket; created if it does
            not exist.
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
        _refuse_other_files(out)
        with lock.dataset_lock(out) as held:
            _write(source, out, options, started, held)
    except OSError as error:
        if explain_failure(error):  # of a bucket
            raise
        reason = f"{error.filename or out}: {error.strerror or error}"
        raise UserError(
            f"{out} cannot be completed ({reason}). Complete files are kept: free some space or "
            "change the permissions, and start the same command again."
        ) from error
    return out


def _write(source: Source, out, options: Options, started: dict, held: lock.Lock) -> None:
    sizes = sizes_in(out)
    for name in sizes:
        if is_temporary(name):  # of a process that was killed
            (out / name).unlink()
    lines = _read_journal(out / JOURNAL) if JOURNAL in sizes else [started]
    _refuse_changes(out, lines[0], started)
    lines[1:] = [line for line in lines[1:] if sizes.get(line["file"]) == line["size"]]
    done = {line["file"] for line in lines[1:]}
    files = _plan(source, lines[0]["name"], options.shards)
    left = [file for file in files if file.file_name not in done]
    if not left and tfds_files.INFO in sizes:
        return
    (out / tfds_files.INFO).unlink(missing_ok=True)
    _write_journal(out, lines)
    _write_files(source, out, options, left, lines, held)
    if _fingerprint(source) != started["source"]:
        raise _changed("source", out)
    held.confirm()
    _write_info(source, out, files, lines[1:])


def _name(out) -> str:
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


def _description(source: Source, out, options: Options) -> dict:
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


def _refuse_other_files(out) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, but a folder is expected. Choose another --out.")
    names = sizes_in(out)
    if JOURNAL not in names and not all(name.startswith(OWN) for name in names):
        raise UserError(f"{out} holds other files. Choose an empty or new folder with --out.")


def _read_journal(path) -> list[dict]:
    """What the dataset was started with, and a line for each file that was complete."""
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError as error:
        raise UserError(f"{path} is damaged. Choose another folder with --out.") from error


def _write_journal(out, lines: list[dict]) -> None:
    write_text(out / JOURNAL, "".join(json.dumps(line) + "\n" for line in lines))


def _refuse_changes(out, before: dict, started: dict) -> None:
    for key in started:
        if key != "name" and before.get(key) != started[key]:
            raise _changed(key, out, before.get(key), started[key])


def _changed(key: str, out, before=None, now=None) -> UserError:
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
    source: Source, out, options: Options, files: list[File], lines: list[dict], held: lock.Lock
) -> None:
    """Writes files; adds a line for each to `lines` and to the journal."""
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

    def write(file: File) -> None:
        shapes = set()
        with whole_file(out / file.file_name) as unfinished:
            number, size = tfds_files.write_shard(unfinished, examples(file, shapes))
            if number != file.stop - file.start:
                raise _changed("source", out)
            line = {
                "file": file.file_name,
                "size": unfinished.stat().st_size,
                "examples": number,
                "bytes": size,
                "shapes": sorted(shapes),
            }
            held.confirm()
        with writing:  # at once: a file without its line would be written again after a kill
            held.confirm()  # an upload takes long
            lines.append(line)
            _write_journal(out, lines)

    with bar, concurrent.futures.ThreadPoolExecutor(options.workers, "prepare") as pool:
        try:
            waiting = [pool.submit(write, file) for file in files]
            for future in concurrent.futures.as_completed(waiting):
                future.result()
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


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


def _write_info(source: Source, out, files: list[File], lines: list[dict]) -> None:
    tfds = records.import_tfds()
    by_name = {line["file"]: line for line in lines}
    lines = [by_name[file.file_name] for file in files]
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
