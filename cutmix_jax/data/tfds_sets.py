"""Finds, downloads and reads datasets in the formats of TFDS; reading needs no TensorFlow.

Records are read by index. array_record files have an index. For tfrecord files, the position of
each record is looked up once.
"""

import bisect
import concurrent.futures
import difflib
import functools
import itertools
import os
import pathlib
import re
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable

import numpy as np

from cutmix_jax import UserError, first_line
from cutmix_jax.data import boxes, cache, cifar, image_files, imagenet, tfds_files
from cutmix_jax.data.records import (
    ImageSet,
    Split,
    choose_split,
    import_tensorflow,
    import_tfds,
    require,
)
from cutmix_jax.paths import in_bucket, resolved, user_path

# Datasets that do not use TFDS.
FOLDER = "folder"
OURS = ("digits", "shapes", FOLDER)
# Their 'test' split has no labels (-1).
UNLABELLED_TEST = ("imagenet2012", "imagenet2012_subset", "places365_small")
# Bytes of tfrecord files. Below this, scanning them is faster than caching the index.
INDEX_KEPT_ABOVE = 2**30


def open_prepared(dataset: str, root: pathlib.Path, test_split: str | None) -> ImageSet:
    """Opens a dataset in a TFDS folder; downloads it if it does not exist.

    `root` may also be the folder of one dataset. 'folder' reads it, whatever its name is.
    """
    folder = _as_prepared(dataset, root) or find_prepared(dataset, root)
    if folder is None:
        if in_bucket(root):
            raise UserError(
                f"{dataset} is not prepared in {root}. Prepare it in a local folder, and copy that "
                f"there: gcloud storage cp -r FOLDER/{dataset} {root}/"
            )
        if dataset in cifar.ARCHIVES:
            cifar.prepare(dataset, root)
        elif _parse(dataset)[0] == imagenet.NAME:
            raise UserError(
                f"{dataset} is not prepared in {root}. Download its archives from {imagenet.PAGE} "
                f"and run python -m cutmix_jax.data.prepare {imagenet.NAME} --source=FOLDER "
                f"--data_dir={root}, or read a folder of images with --config.dataset=folder "
                "--config.data_dir=PATH."
            )
        else:
            _prepare(dataset, root)
        folder = find_prepared(dataset, root)
        if folder is None:
            raise UserError(f"{dataset} was prepared, but is not in {root}.")
    tfds = import_tfds()
    if dataset == FOLDER:
        dataset = f"{FOLDER}-{resolved(root).name}"
    info, features = read_info(dataset, folder)
    shape = _image_shape(tfds, dataset, features)
    prefer = ("test", "validation")
    if dataset.partition(":")[0].partition("/")[0] in UNLABELLED_TEST:
        prefer = ("validation",)
    if folder == root:
        prefer = ("validation", "test")  # as in a folder of images
    if "train" not in info.splits:
        raise UserError(
            f"{dataset} has no split 'train', only {', '.join(sorted(info.splits))}. Choose "
            "another dataset."
        )
    names = {"train": "train"}
    if test_split != "held_out":
        names["test"] = choose_split(info.splits, test_split, prefer, dataset)
    box_key = _box_key(tfds, features)
    return ImageSet(
        name=dataset,
        class_names=_class_names(features["label"]),
        shape=shape,
        splits={split: open_split(dataset, info, name, box_key) for split, name in names.items()},
        fingerprint=lambda: _fingerprint(folder, names),
    )


def default_root() -> pathlib.Path:
    """$TFDS_DATA_DIR, or the folder that TFDS uses."""
    return user_path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"), "TFDS_DATA_DIR")


def _as_prepared(dataset: str, root: pathlib.Path) -> pathlib.Path | None:
    """The folder itself, if it holds one prepared dataset instead of several."""
    if not (root / tfds_files.INFO).is_file():
        return None
    name = read_info(dataset, root)[0].name
    if dataset not in (FOLDER, name):
        raise UserError(
            f"{root} is itself a prepared dataset, {name}, but the dataset is {dataset}. Set "
            f"--config.dataset={FOLDER} to read it, or --config.data_dir to another folder."
        )
    return root


def find_prepared(dataset: str, root: pathlib.Path) -> pathlib.Path | None:
    """The folder of the newest prepared version, without network access.

    TFDS itself may try the network for minutes if a dataset is missing.
    """
    name, config, version = _parse(dataset)

    def versions(folder: pathlib.Path) -> list[pathlib.Path]:
        found = [
            info.parent
            for info in folder.glob("*/dataset_info.json")
            if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name)
            and version in (None, info.parent.name)
        ]
        return sorted(found, key=lambda path: tuple(map(int, path.name.split("."))))

    base = root / name
    if found := versions(base / config if config else base):
        return found[-1]
    if config or not base.is_dir():
        return None
    configs = [path for path in sorted(base.iterdir()) if path.is_dir() and versions(path)]
    if len(configs) > 1:
        names = ", ".join(f"{name}/{path.name}" for path in configs)
        raise UserError(f"{name} is prepared in several configurations. Choose one of {names}.")
    return versions(configs[0])[-1] if configs else None


def _parse(dataset: str) -> tuple[str, str | None, str | None]:
    """(name, config, version) of name[/config][:version]."""
    match = re.fullmatch(r"([\w-]+)(?:/([^:]+))?(?::([\d.]+))?", dataset)
    if not match:
        raise UserError(
            f"dataset={dataset!r} is not the name of a dataset. Use digits, shapes, folder, or "
            "NAME[/CONFIG][:VERSION] of TFDS."
        )
    return match.groups()


def read_info(dataset: str, folder: pathlib.Path):
    """(splits and files, features) of a prepared dataset, from TFDS."""
    tfds = import_tfds()
    try:
        info = tfds.builder_from_directory(folder).info
        return info, info.features
    except Exception as error:
        raise UserError(
            f"{folder} cannot be read as a TFDS dataset ({first_line(error)}). Prepare "
            f"{dataset} again."
        ) from error


def _image_shape(tfds, dataset: str, features) -> tuple[int | None, int | None, int]:
    """Shape of the feature `image`, after checking the types of image and label."""
    named = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = named.get("image"), named.get("label")
    if not isinstance(image, tfds.features.Image) or not isinstance(
        label, tfds.features.ClassLabel
    ):
        raise UserError(
            f"{dataset} has the features {', '.join(sorted(named)) or 'no names'}, but an "
            "Image called 'image' and a ClassLabel called 'label' are expected. Choose another "
            "dataset."
        )
    shape = image.shape
    if np.dtype(image.np_dtype) != np.uint8 or len(shape) != 3 or shape[2] not in (1, 3):
        raise UserError(
            f"{dataset} has images of shape {shape} and type {np.dtype(image.np_dtype).name}, but "
            "[height, width, 1 or 3] of uint8 is expected. Choose another dataset."
        )
    return tuple(shape)


def _class_names(label) -> tuple[str, ...]:
    return tuple(label.names or map(str, range(label.num_classes)))


def _box_key(tfds, features) -> str | None:
    """The feature of a record that holds its boxes, as fractions of the image."""
    objects = dict(features.items()).get("objects")
    within = getattr(objects, "feature", None)  # of a sequence
    for key, parent in (("bbox", features), ("objects/bbox", within)):
        feature = dict(parent.items()).get("bbox") if hasattr(parent, "items") else None
        # Old datasets have this format, but do not name it.
        if isinstance(feature, tfds.features.BBoxFeature) and (
            feature.bbox_format is None or feature.bbox_format.value == "REL_YXYX"
        ):
            return key
    return None


def open_split(dataset: str, info, split: str, box_key: str | None = None) -> Split:
    """A split of a prepared dataset; its boxes are in the feature `box_key`, if there is one."""
    files = info.splits[split].filepaths
    here = {entry.name for folder in {file.parent for file in files} for entry in folder.iterdir()}
    for path in files:
        if path.name not in here:
            raise UserError(
                f"{path} is missing. Prepare {dataset} again, or copy its whole folder."
            )
    file_format = info.file_format.value
    if file_format not in READERS:
        raise UserError(
            f"{dataset} is prepared as {file_format}, but {' or '.join(READERS)} is expected. "
            "Prepare it again in one of these formats."
        )
    paths = [os.fspath(file) for file in files]
    if file_format == "tfrecord" and in_bucket(paths[0]):
        raise UserError(
            f"{dataset} is prepared as tfrecord in {info.data_dir}, but only array_record is read "
            "from a bucket. Copy it to a local folder, or prepare it as array_record."
        )
    files = _Files(dataset, split, file_format, paths, info.splits[split].shard_lengths)
    return Split(
        count=info.splits[split].num_examples,
        read=files.read,
        labels=None,
        name=files.name,
        boxes=(lambda i: boxes.of_record(files.read(i), box_key, files.name(i)))
        if box_key
        else None,
    )


class _Files:
    """The files of a split, opened at first use; other processes open them again."""

    def __init__(self, dataset: str, split: str, file_format: str, paths: list[str], lengths):
        self._arguments = dataset, split, file_format, paths, lengths
        self._ends = list(itertools.accumulate(lengths))
        self._opening = threading.Lock()

    def __reduce__(self):
        return _Files, self._arguments

    def name(self, i: int) -> str:
        _, split, _, paths, _ = self._arguments
        return f"record {i} of {split} (in {paths[bisect.bisect_right(self._ends, i)]})"

    def read(self, i: int) -> bytes:
        try:
            with self._opening:
                records = self._records
            return records(i)
        except OSError as error:
            raise image_files.unreadable(error.filename or self.name(i), error) from error

    @functools.cached_property
    def _records(self) -> Callable[[int], bytes]:
        dataset, split, file_format, paths, _ = self._arguments
        read, found = READERS[file_format](f"{dataset}-{split}", paths)
        if found != self._ends[-1]:
            raise UserError(
                f"{dataset} has {found} records in split {split}, but its dataset_info.json says "
                f"{self._ends[-1]}. Prepare it again."
            )
        return read


def _array_record(name: str, paths: list[str]) -> tuple[Callable[[int], bytes], int]:
    del name
    require("array_record", "a dataset in array_record files", "pip install array_record")
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    records = ArrayRecordDataSource(paths)
    return records.__getitem__, len(records)


def _tfrecord(name: str, paths: list[str]) -> tuple[Callable[[int], bytes], int]:
    """Random access to tfrecord files: each record is [length u64, crc u32, bytes, crc u32]."""
    large = sum(os.path.getsize(path) for path in paths) > INDEX_KEPT_ABOVE

    def make():
        if large:
            print(f"Looking up the records of {name}, once.", file=sys.stderr, flush=True)
        # Threads, because each record waits for the disk.
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            spans = list(pool.map(_tfrecord_spans, paths))
        return {
            "shard": np.repeat(np.arange(len(paths)), [len(span) for span in spans]),
            "span": np.concatenate(spans),
        }

    index = (
        cache.load_or_make(f"{name}-index", "\n".join(cache.stats(paths)), make)
        if large
        else make()
    )
    shard, span = index["shard"], index["span"]

    def read(i: int) -> bytes:
        offset, length = span[i]
        with open(paths[shard[i]], "rb", buffering=0) as file:
            file.seek(offset)
            return file.read(length)

    return read, len(shard)


def _tfrecord_spans(path: str) -> np.ndarray:
    """int64 [records, 2]: offset and length of each record's bytes."""
    spans, position, size = [], 0, os.path.getsize(path)
    with open(path, "rb", buffering=0) as file:
        while position < size:
            file.seek(position)
            length = int.from_bytes(file.read(8), "little")
            spans.append((position + 12, length))
            position += length + 16
    if position != size:
        raise UserError(f"{path} is truncated or damaged. Prepare or copy the dataset again.")
    return np.asarray(spans, np.int64).reshape(-1, 2)


READERS = {"array_record": _array_record, "tfrecord": _tfrecord}


def _fingerprint(folder: pathlib.Path, names: dict[str, str]) -> str:
    files = sorted(resolved(folder).iterdir(), key=lambda entry: entry.name)
    return "\n".join([repr(names), *cache.stats(files)])


def _prepare(dataset: str, root: pathlib.Path) -> None:
    """Downloads a dataset that TFDS knows."""
    tfds = import_tfds()
    name = _parse(dataset)[0]
    known = tfds.list_builders(with_community_datasets=False)
    if name not in known:
        here = {path.parents[1].name for path in root.glob("*/*/dataset_info.json")}
        near = difflib.get_close_matches(name, [*known, *here, *OURS], 3, 0.5)
        raise UserError(
            f"dataset={name!r} is not {', '.join(OURS)} or a dataset of TFDS, and is not prepared "
            f"in {root}. " + (f"Did you mean {', '.join(near)}?" if near else "Check the name.")
        )
    remedy = (
        f'prepare it where there is a network (python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{dataset}').download_and_prepare()\"), and give the folder with "
        "--config.data_dir"
    )
    missing = f"{dataset} is not prepared in {root}, and"
    require("tensorflow", f"{missing} preparing it", f"pip install tensorflow-cpu, or {remedy}")
    try:
        builder = tfds.builder(dataset, data_dir=root)
    except Exception as error:
        raise UserError(f"{missing} TFDS cannot make it ({first_line(error)}): {remedy}") from error
    by_hand = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    if by_hand:
        remedy = (
            f"download its files as TFDS says ({' '.join(by_hand.split())}), or read a folder of "
            "images with --config.dataset=folder --config.data_dir=PATH"
        )
    elif not reachable(builder.url_infos):
        raise UserError(f"{missing} there is no network to download it: {remedy}")
    print(f"{dataset} is not prepared in {root}: downloading it with TFDS.", file=sys.stderr)
    import_tensorflow()
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise UserError(
            f"{missing} TFDS could not download it ({first_line(error)}): {remedy}"
        ) from error


def reachable(urls: Iterable[str]) -> bool:
    """Whether any host of these URLs answers. TFDS itself tries for minutes."""
    parts = map(urllib.parse.urlsplit, urls)
    hosts = {f"{part.scheme}://{part.netloc}" for part in parts if part.scheme.startswith("http")}
    for host in sorted(hosts):
        try:
            urllib.request.urlopen(host, timeout=5)  # through the proxies of the environment
        except urllib.error.HTTPError:
            return True
        except OSError:
            continue
        return True
    return not hosts
