"""Finds labeled images in parquet files, tar files or folders, to prepare a dataset from them."""

import concurrent.futures
import dataclasses
import functools
import glob
import itertools
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from cutmix_jax import UserError
from cutmix_jax.data import image_files, tar_files, tfds_files
from cutmix_jax.data.folder import open_splits
from cutmix_jax.data.records import Example, Part, Split, require
from cutmix_jax.paths import local_path

# Words in the names of files and folders that tell their split.
WORDS = {
    "train": {"train", "training"},
    "validation": {"val", "valid", "validation", "dev"},
    "test": {"test", "testing"},
}
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{},]*(?:,[^{},]*)+)\}")
EXPECTED = "parquet files, tar files, or folders train/CLASS/*.jpg"


@dataclasses.dataclass(frozen=True)
class Source:
    """Images to prepare a dataset from.

    Attributes:
        splits: name -> its parts, in order.
        files: name -> the paths of all files of a split.
        class_names: one name per class, or None.
        num_classes: number of classes.
        columns: flag -> the column that it chose.
    """

    splits: Mapping[str, list[Part]]
    files: Mapping[str, list[str]]
    class_names: tuple[str, ...] | None
    num_classes: int
    columns: Mapping[str, str | None]


def open_source(
    words: Sequence[str],
    patterns: Mapping[str, str],
    image_column: str | None,
    label_column: str | None,
    workers: int,
) -> Source:
    """Finds the files and reads their labels.

    Args:
        words: a folder, or patterns of files, with `*`, `**` and `{0..9}`.
        patterns: split -> pattern of its files in the folder. Empty: the names tell the splits.
        image_column: the column, or the ending in a tar file, of the images; None: `image`, or the
            only ending of an image.
        label_column: the same of the labels; None: `label`, or the ending `cls`.
        workers: number of threads.

    Raises:
        UserError: no file is found, or a file cannot be used; the message names it.
    """
    files = find_files(words, patterns)
    if os.path.isdir(next(iter(files.values()))[0]):
        if image_column or label_column:
            raise UserError(
                "Folders of images have no columns. Leave out --image-column and --label-column."
            )
        return _open_folders(files)
    splits = _open_files(files, image_column, label_column, workers)
    if not any(len(part.labels) for part in splits["train"]):
        raise UserError(f"{files['train'][0]} and the other training files hold no images.")
    class_names = _class_names(files, splits)
    num_classes = len(class_names or ()) or _count_classes(splits["train"])
    for name, parts in list(splits.items()):
        if name != "train" and all((part.labels == -1).all() for part in parts):
            line = f"The split {name} has no labels (all are -1), so it is left out."
            print(line, file=sys.stderr, flush=True)
            del splits[name]
        else:
            _check_labels(parts, num_classes)
    files = {name: files[name] for name in splits}
    columns = {"image-column": image_column, "label-column": label_column}
    return Source(splits, files, class_names, num_classes, columns)


def find_files(words: Sequence[str], patterns: Mapping[str, str]) -> dict[str, list[str]]:
    """The paths of the files of each split, or of its folder of images."""
    words = [os.path.abspath(local_path(word, "The source")) for word in words]
    root = words[0] if len(words) == 1 and os.path.isdir(words[0]) else None
    if patterns:
        if root is None:
            raise UserError("--split names files in a folder. Give the folder as the source.")
        files = {
            name: _matches(os.path.join(root, local_path(text, f"--split {name}")))
            for name, text in patterns.items()
        }
    elif root is not None:
        files = _in_folder(root)
    else:
        found = list(itertools.chain.from_iterable(map(_matches, words)))
        files = _by_split({path: os.path.basename(path) for path in found})
    if "train" not in files:
        raise UserError(
            f"{', '.join(words)}: no training images were found, only {', '.join(files)}. Name the "
            "files with --split train=PATTERN."
        )
    _check_once(files)
    return files


def _matches(pattern: str) -> list[str]:
    """All files of a pattern; braces are like those of a shell."""
    if os.path.exists(pattern):
        return [pattern]
    found = []
    for text in expand_braces(pattern):
        paths = [text] if os.path.exists(text) else sorted(glob.glob(text, recursive=True))
        if not paths:
            raise UserError(
                f"{text} does not exist, and matches no file. Expected are {EXPECTED}: check the "
                "source, and --split if you use it."
            )
        found += paths
    return found


def expand_braces(pattern: str) -> list[str]:
    """The words of a pattern with braces.

    Example:
        >>> expand_braces('{a,b}-{08..10}.tar')[:4]
        ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar']
    """
    match = BRACES.search(pattern)
    if match is None:
        return [pattern]
    first, last, words = match.groups()
    if words is None:
        padded = any(text.startswith("0") and len(text) > 1 for text in (first, last))
        width = max(len(first), len(last)) if padded else 0
        words = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    else:
        words = words.split(",")
    start, end = pattern[: match.start()], pattern[match.end() :]
    return [text for word in words for text in expand_braces(f"{start}{word}{end}")]


def split_of(path: str) -> str | None:
    """The split that the name of a file tells, or else the name of a folder above.

    Example:
        >>> split_of('data/imagenet1k-train-0001.tar'), split_of('val/0001.tar'), split_of('a.tar')
        ('train', 'validation', None)
    """
    for part in reversed(pathlib.PurePath(path).parts):
        words = re.split(r"[^a-z]+", part.lower())
        found = [split for split, names in WORDS.items() if not names.isdisjoint(words)]
        if len(found) == 1:
            return found[0]
    return None


def _in_folder(root: str) -> dict[str, list[str]]:
    """The files of a folder, or its folders of images, by split."""
    paths = sorted(
        path
        for ending in KINDS
        for path in glob.glob(f"{glob.escape(root)}/**/*{ending}", recursive=True)
        if os.path.isfile(path)
    )
    if not paths:
        return _image_folders(root)
    names = {path: os.path.relpath(path, root) for path in paths}
    # A folder of the Hub may hold several datasets, with the same splits.
    above = {
        os.path.join(
            "", *(part for part in pathlib.PurePath(name).parts[:-1] if not split_of(part))
        )
        for name in names.values()
    }
    if len(above) > 1:
        raise UserError(
            f"{root} has images in several folders ({', '.join(sorted(above))}). Give one of them, "
            "or name the files with --split NAME=PATTERN."
        )
    return _by_split(names)


def _by_split(names: Mapping[str, str]) -> dict[str, list[str]]:
    """Paths by split, from their names; all are training images if no name tells a split."""
    found = {path: split_of(name) for path, name in names.items()}
    unknown = [path for path, split in found.items() if split is None]
    if len(unknown) == len(found):
        return {"train": list(found)}
    if unknown:
        raise UserError(
            f"{unknown[0]} does not tell its split by the words train, validation or test. Name "
            "the files with --split NAME=PATTERN."
        )
    return {
        split: [path for path in found if found[path] == split]
        for split in WORDS
        if split in found.values()
    }


def _image_folders(root: str) -> dict[str, list[str]]:
    found = {}
    for entry in image_files.list_folder(root):
        split = next((s for s, names in WORDS.items() if entry.name.lower() in names), None)
        if split and entry.is_dir():
            found.setdefault(split, []).append(entry.path)
    for split, paths in found.items():
        if len(paths) > 1:
            raise UserError(
                f"{root} has several folders of the split {split} ({', '.join(paths)}). Choose one "
                f"with --split {split}=FOLDER."
            )
    if not found:
        raise UserError(f"{root} holds none of what is expected: {EXPECTED}. Check the source.")
    return {split: found[split] for split in WORDS if split in found}


def _check_once(files: Mapping[str, list[str]]) -> None:
    seen = {}
    for split, paths in files.items():
        for path in map(os.path.realpath, paths):
            if path in seen:
                raise UserError(
                    f"{path} occurs twice, in {seen[path]} and {split}. Correct the patterns."
                )
            seen[path] = split


def _open_files(files, image_column, label_column, workers) -> dict[str, list[Part]]:
    paths = list(itertools.chain.from_iterable(files.values()))
    kinds = {kind for kind in KINDS for path in paths if path.lower().endswith(kind)}
    other = [path for path in paths if not path.lower().endswith(tuple(KINDS))]
    if other or len(kinds) > 1:
        raise UserError(
            f"{(other or paths)[0]} is among the files, but either only parquet or only tar files "
            "are expected. Unpack compressed files, and choose with --split NAME=PATTERN."
        )
    open_part = functools.partial(
        KINDS[kinds.pop()], image_column=image_column, label_column=label_column
    )
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        try:
            opened = pool.map(open_part, paths)
            opened = iter(list(tfds_files.progress_bar(opened, "reading labels", total=len(paths))))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return {name: list(itertools.islice(opened, len(found))) for name, found in files.items()}


def _open_parquet(path: str, **columns) -> Part:
    require("pyarrow", "reading parquet files", "pip install pyarrow")
    from cutmix_jax.data import parquet_files

    return parquet_files.open_part(path, **columns)


KINDS = {".parquet": _open_parquet, ".tar": tar_files.open_part}


def _open_folders(files: Mapping[str, list[str]]) -> Source:
    for split, paths in files.items():
        if len(paths) > 1 or not os.path.isdir(paths[0]):
            raise UserError(
                f"The split {split} is {', '.join(paths)}, but one folder of classes is expected. "
                "Choose it with --split NAME=FOLDER."
            )
    folders = {split: pathlib.Path(path) for split, (path,) in files.items()}
    root = pathlib.Path(os.path.commonpath([path.parent for path in folders.values()]))
    class_names, splits = open_splits(root, folders)
    return Source(
        splits={
            name: [
                Part(
                    labels=split.labels,
                    read=functools.partial(_read_folder, split, folders[name]),
                    name=split.name,
                    class_names=class_names,
                )
            ]
            for name, split in splits.items()
        },
        files={name: list(map(s.name, range(s.count))) for name, s in splits.items()},
        class_names=class_names,
        num_classes=len(class_names),
        columns={},
    )


def _read_folder(split: Split, root: pathlib.Path, start: int, stop: int) -> Iterator[Example]:
    for i in range(start, stop):
        path = split.name(i)
        relative = os.fsencode(os.path.relpath(path, root))
        yield Example(path, relative, split.read(i), int(split.labels[i]))


def _class_names(files, splits) -> tuple[str, ...] | None:
    """The names that all files agree on."""
    first = splits["train"][0].class_names
    for name, parts in splits.items():
        for path, part in zip(files[name], parts, strict=True):
            if part.class_names != first:
                raise UserError(
                    f"{path} has other class names than {files['train'][0]}. Prepare datasets with "
                    "other classes separately."
                )
    if first is not None and len(set(first)) < len(first):
        twice = next(name for name in first if first.count(name) > 1)
        raise UserError(f"{files['train'][0]} has two classes called {twice!r}. Rename one.")
    return first


def _count_classes(parts: Sequence[Part]) -> int:
    """One class per label from 0 to the largest one in training."""
    largest = max((int(part.labels.max()) for part in parts if len(part.labels)), default=-1)
    count = sum(len(part.labels) for part in parts)
    if largest >= count:
        part = next(part for part in parts if (part.labels == largest).any())
        raise UserError(
            f"{part.name(int(part.labels.argmax()))} has the label {largest}, but there are only "
            f"{count} training images. Correct the labels, or choose others with --label-column."
        )
    return largest + 1


def _check_labels(parts: Sequence[Part], num_classes: int) -> None:
    for part in parts:
        wrong = np.flatnonzero((part.labels < 0) | (part.labels >= num_classes))
        if len(wrong):
            raise UserError(
                f"{part.name(int(wrong[0]))} has the label {part.labels[wrong[0]]}, but labels "
                f"from 0 to {num_classes - 1} are expected. Correct the labels."
            )
