"""Finding data sets on disk, and reading single records of them, without TensorFlow.

Every set gives random access by index (array_record has it; for tfrecord the place of each record
is looked up once), so that both sources share one order: a permutation of indices.
"""

import bisect
import concurrent.futures
import contextlib
import dataclasses
import difflib
import functools
import importlib.util
import io
import itertools
import os
import pathlib
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Callable

import numpy as np

from cutmix_jax import UserError
from cutmix_jax.data import cache

# Their 'test' split carries no labels (-1).
UNLABELLED_TEST = ("imagenet2012", "imagenet2012_subset", "places365_small")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
# Bits per channel beyond eight would be cut off silently.
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
# Without the second, TensorFlow announces at every start that it uses oneDNN.
QUIET_TENSORFLOW = {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"}
# Bytes of tfrecord files; looking through less is faster than keeping where the records lie.
INDEX_KEPT_ABOVE = 2**30
# Either one answering means that there is a network.
PROBES = ("https://storage.googleapis.com", "https://pypi.org")


@dataclasses.dataclass(frozen=True)
class Split:
    """Records of one split.

    Attributes:
      count: number of records.
      read: index -> bytes; an encoded image where `labels` is given, else a serialised
        `tf.train.Example` with the features `image` and `label`.
      labels: int32 [count], or None.
      name: index -> what to call the record in an error message.
    """

    count: int
    read: Callable[[int], bytes]
    labels: np.ndarray | None
    name: Callable[[int], str]


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """A data set on disk; `shape` is (H, W, C), H and W None where images differ in size."""

    name: str
    class_names: tuple[str, ...]
    shape: tuple[int | None, int | None, int]
    splits: dict[str, Split]
    fingerprint: str


def find(dataset: str, data_dir: str | None, test_split: str | None) -> ImageSet:
    """The folder tree or TFDS set that the configuration names, with splits train and test."""
    if dataset == "folder":
        return _folder(_existing(data_dir), test_split)
    if data_dir is not None:
        root = _existing(data_dir)
    else:
        root = pathlib.Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    return _tfds(dataset, root, test_split)


def _existing(data_dir: str | None) -> pathlib.Path:
    if data_dir is None:
        raise UserError(
            "dataset=folder needs the folder that holds train/ and val/: "
            "give --config.data_dir=PATH"
        )
    if "://" in str(data_dir):
        raise UserError(
            f"data_dir={data_dir} is a remote address, but a local folder is expected: copy the "
            "data set to a local disk, or mount the bucket"
        )
    path = pathlib.Path(data_dir).expanduser()
    if not path.is_dir():
        raise UserError(
            f"data_dir={data_dir} is not a folder: expected the folder that holds the data set; "
            "check --config.data_dir"
        )
    return path


def _choose_split(splits, test_split: str | None, preferred: tuple[str, ...], name: str) -> str:
    """The split to evaluate on: the one asked for, or the first preferred one there."""
    # Folders say 'val' where TFDS says 'validation'.
    alike = {"val": ("validation",), "validation": ("val",)}
    wanted = (test_split, *alike.get(test_split, ())) if test_split else preferred
    for candidate in wanted:
        if candidate in splits:
            return candidate
    raise UserError(
        f"{name} has no split {test_split or ' or '.join(preferred)!r}, only "
        f"{', '.join(sorted(splits))}: choose one by --config.test_split=NAME, or hold out "
        "training images with --config.test_split=held_out --config.held_out=N"
    )


# --- folders of images -------------------------------------------------------------------------


def _folder(root: pathlib.Path, test_split: str | None) -> ImageSet:
    """A tree train/CLASS/*.jpg, val/CLASS/*.jpg; classes and files are sorted by name."""
    folders = {entry.name for entry in os.scandir(root) if entry.is_dir()}
    if "train" not in folders:
        raise UserError(
            f"{root} holds no folder train: expected train/CLASS/*.jpg and val/CLASS/*.jpg; "
            "check --config.data_dir"
        )
    names = {"train": "train"}
    if test_split == "held_out":
        pass
    else:
        names["test"] = _choose_split(
            folders - {"train"}, test_split, ("val", "validation", "test"), str(root)
        )
    classes = tuple(_class_folders(root / "train"))
    splits, stats = {}, []
    for split, folder in names.items():
        files, labels = [], []
        for name in _class_folders(root / folder):
            if name not in classes:
                raise UserError(
                    f"{root / folder / name} is a class without a folder in {root / 'train'}: "
                    "every class must occur in train"
                )
            found = _image_files(root / folder / name)
            if not found and split == "train":
                raise UserError(
                    f"{root / folder / name} holds no image: expected files ending in "
                    f"{', '.join(IMAGE_SUFFIXES)}; remove the folder or fill it"
                )
            files += [entry.path for entry in found]
            labels += [classes.index(name)] * len(found)
            stats += [f"{e.path} {e.stat().st_size} {e.stat().st_mtime_ns}" for e in found]
        splits[split] = Split(
            count=len(files),
            read=lambda i, files=files: pathlib.Path(files[i]).read_bytes(),
            labels=np.asarray(labels, np.int32),
            name=files.__getitem__,
        )
    return ImageSet(
        name=f"folder-{root.resolve().name}",
        class_names=classes,
        shape=(None, None, 3),
        splits=splits,
        fingerprint="\n".join([str(root.resolve()), *names.values(), *stats]),
    )


def _class_folders(folder: pathlib.Path) -> list[str]:
    found = sorted(e.name for e in os.scandir(folder) if e.is_dir() and e.name[0] != ".")
    if not found:
        raise UserError(
            f"{folder} holds no class folders: expected {folder.name}/CLASS/*.jpg; sort the "
            "images into one folder a class"
        )
    return found


def _image_files(folder: pathlib.Path) -> list[os.DirEntry]:
    entries = (e for e in os.scandir(folder) if e.name[0] != ".")
    found = [e for e in entries if e.name.lower().endswith(IMAGE_SUFFIXES)]
    return sorted(found, key=lambda entry: entry.name)


# --- TFDS --------------------------------------------------------------------------------------


def _tfds(dataset: str, root: pathlib.Path, test_split: str | None) -> ImageSet:
    folder = _prepared(dataset, root)
    if folder is None:
        _prepare(dataset, root)
        folder = _prepared(dataset, root)
        if folder is None:
            raise UserError(f"{dataset} was prepared, but not found in {root} afterwards")
    tfds = _import_tfds()
    try:
        info = tfds.builder_from_directory(folder).info
        features = info.features
    except Exception as error:
        raise UserError(
            f"{folder} could not be read as a TFDS data set ({_first_line(error)}): prepare "
            f"{dataset} again"
        ) from error
    shape = _image_shape(tfds, dataset, features)
    prefer = ("test", "validation")
    if dataset.partition(":")[0].partition("/")[0] in UNLABELLED_TEST:
        prefer = ("validation",)
    names = {"train": _choose_split(info.splits, "train", (), dataset)}
    if test_split != "held_out":
        names["test"] = _choose_split(info.splits, test_split, prefer, dataset)
    return ImageSet(
        name=dataset,
        class_names=_class_names(features["label"]),
        shape=shape,
        splits={split: _tfds_split(dataset, info, name) for split, name in names.items()},
        fingerprint=_tfds_fingerprint(folder, names),
    )


def _import_tfds():
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise UserError(
            "this data set needs the package tensorflow-datasets, which is not installed: "
            "pip install tensorflow-datasets"
        )
    import tensorflow_datasets

    return tensorflow_datasets


def _prepared(dataset: str, root: pathlib.Path) -> pathlib.Path | None:
    """The folder of the newest prepared version, found in the file system alone.

    TFDS itself may try the network for minutes when a set is missing.
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
        raise UserError(f"{name} is prepared in several configurations: choose one of {names}")
    return versions(configs[0])[-1] if configs else None


def _parse(dataset: str) -> tuple[str, str | None, str | None]:
    """(name, config, version) of name[/config][:version]."""
    match = re.fullmatch(r"([\w-]+)(?:/([^:]+))?(?::([\d.]+))?", dataset)
    if not match:
        raise UserError(
            f"dataset={dataset!r} is no name of a data set: expected digits, folder, or "
            "NAME[/CONFIG][:VERSION] of TFDS"
        )
    return match.groups()


def _image_shape(tfds, dataset: str, features) -> tuple[int | None, int | None, int]:
    """Shape of the feature `image`, after checking that image and label are what they must be."""
    named = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = named.get("image"), named.get("label")
    if not isinstance(image, tfds.features.Image) or not isinstance(
        label, tfds.features.ClassLabel
    ):
        raise UserError(
            f"{dataset} has the features {', '.join(named) or 'no names'}, but an "
            "image-classification set with an Image called 'image' and a ClassLabel called "
            "'label' is expected: choose another data set"
        )
    shape = image.shape
    if np.dtype(image.np_dtype) != np.uint8 or len(shape) != 3 or shape[2] not in (1, 3):
        raise UserError(
            f"{dataset} has images of shape {shape} and type {np.dtype(image.np_dtype).name}, but "
            "[height, width, 1 or 3] of uint8 is expected: choose another data set"
        )
    return tuple(shape)


def _class_names(label) -> tuple[str, ...]:
    return tuple(label.names or map(str, range(label.num_classes)))


def _tfds_split(dataset: str, info, split: str) -> Split:
    paths = [str(path) for path in info.splits[split].filepaths]
    for path in paths:
        if not os.path.isfile(path):
            raise UserError(f"{path} is missing: prepare {dataset} again, or copy the whole folder")
    count = info.splits[split].num_examples
    file_format = info.file_format.value
    if file_format not in READERS:
        raise UserError(
            f"{dataset} is prepared as {file_format}, but {' or '.join(READERS)} is expected: "
            "prepare it again in one of these formats"
        )

    @functools.cache
    def reader() -> Callable[[int], bytes]:
        read, found = READERS[file_format](f"{dataset}-{split}", paths)
        if found != count:
            raise UserError(
                f"{dataset} has {found} records in split {split}, but its dataset_info.json says "
                f"{count}: prepare it again"
            )
        return read

    ends = list(itertools.accumulate(info.splits[split].shard_lengths))
    return Split(
        count=count,
        # Opened at the first use: a cached set is never opened.
        read=lambda i: reader()(i),
        labels=None,
        name=lambda i: f"record {i} of {split} (in {paths[bisect.bisect_right(ends, i)]})",
    )


def _array_record(name: str, paths: list[str]) -> tuple[Callable[[int], bytes], int]:
    del name
    if importlib.util.find_spec("array_record") is None:
        raise UserError(
            "this data set is prepared as array_record, and the package array_record is not "
            "installed: pip install array_record"
        )
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    records = ArrayRecordDataSource(paths)
    return records.__getitem__, len(records)


def _tfrecord(name: str, paths: list[str]) -> tuple[Callable[[int], bytes], int]:
    """Random access to tfrecord files: each record is [length u64, crc u32, bytes, crc u32]."""
    stats = [f"{path} {os.stat(path).st_size} {os.stat(path).st_mtime_ns}" for path in paths]

    large = sum(os.path.getsize(path) for path in paths) > INDEX_KEPT_ABOVE

    def make():
        if large:
            print(f"Looking up the records of {name}, once.", file=sys.stderr, flush=True)
        # Threads, because each record costs a wait for the disk.
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            spans = list(pool.map(_tfrecord_spans, paths))
        return {
            "shard": np.repeat(np.arange(len(paths)), [len(span) for span in spans]),
            "span": np.concatenate(spans),
        }

    index = cache.load_or_make(f"{name}-index", "\n".join(stats), make) if large else make()
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
        raise UserError(f"{path} is cut short or damaged: prepare or copy the data set again")
    return np.asarray(spans, np.int64).reshape(-1, 2)


READERS = {"array_record": _array_record, "tfrecord": _tfrecord}


def _tfds_fingerprint(folder: pathlib.Path, names: dict[str, str]) -> str:
    lines = [str(folder.resolve()), repr(names)]
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        lines.append(f"{entry.name} {entry.stat().st_size} {entry.stat().st_mtime_ns}")
    return "\n".join(lines)


def _prepare(dataset: str, root: pathlib.Path) -> None:
    """Downloads a set that TFDS knows."""
    tfds = _import_tfds()
    name = _parse(dataset)[0]
    known = tfds.list_builders(with_community_datasets=False)
    if name not in known:
        here = {path.parents[1].name for path in root.glob("*/*/dataset_info.json")}
        near = difflib.get_close_matches(name, [*known, *here, "digits", "folder"], 3, 0.5)
        raise UserError(
            f"dataset={name!r} is neither digits, nor folder, nor known to TFDS, nor prepared in "
            f"{root}: " + (f"did you mean {', '.join(near)}?" if near else "check the name")
        )
    remedy = (
        f'prepare it where there is a network (python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{dataset}').download_and_prepare()\"), and give the folder by "
        "--config.data_dir"
    )
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"{dataset} is not prepared in {root}, and preparing it needs TensorFlow: pip install "
            f"tensorflow-cpu, or {remedy}"
        )
    if not network():
        raise UserError(f"{dataset} is not prepared in {root}, and there is no network: {remedy}")
    print(f"{dataset} is not prepared in {root}: downloading it with TFDS.", file=sys.stderr)
    import_tensorflow()
    try:
        tfds.builder(dataset, data_dir=root).download_and_prepare()
    except Exception as error:
        raise UserError(
            f"{dataset} is not prepared in {root}, and TFDS could not download it "
            f"({_first_line(error)}): {remedy}"
        ) from error


def network() -> bool:
    """Whether a well-known host answers, through the proxies that the environment names."""
    for probe in PROBES:
        try:
            urllib.request.urlopen(probe, timeout=5)
        except urllib.error.HTTPError:
            return True
        except OSError:
            continue
        return True
    return False


def import_tensorflow():
    """TensorFlow, kept off the accelerator, whose memory belongs to JAX."""
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            "streaming images from disk needs TensorFlow, which is not installed: pip install "
            "tensorflow-cpu (or use a data set that fits, with --config.source=resident)"
        )
    for name, value in QUIET_TENSORFLOW.items():
        os.environ.setdefault(name, value)
    import tensorflow

    for kind in ("GPU", "TPU"):
        # In a notebook that has used TensorFlow before, it is too late: then it stays as it is.
        with contextlib.suppress(RuntimeError):
            tensorflow.config.set_visible_devices([], kind)
    return tensorflow


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


# --- pixels ------------------------------------------------------------------------------------


def decode_record(split: Split, i: int, channels: int) -> tuple[np.ndarray, int]:
    """(uint8 [H, W, C], label) of one record, by Pillow."""
    data = split.read(i)
    if split.labels is not None:
        return decode_image(data, channels, split.name(i)), int(split.labels[i])
    from tensorflow_datasets.proto import tf_example_pb2

    feature = tf_example_pb2.Example.FromString(data).features.feature
    image = decode_image(feature["image"].bytes_list.value[0], channels, split.name(i))
    return image, feature["label"].int64_list.value[0]


def decode_image(data: bytes, channels: int, name: str) -> np.ndarray:
    """uint8 [H, W, C] of an encoded image."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data))
        mode = image.mode
        pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    except Exception as error:
        raise UserError(
            f"{name} is not a readable image ({_first_line(error)}): replace or remove it"
        ) from error
    if mode not in EIGHT_BIT_MODES:
        raise UserError(
            f"{name} has pixels of mode {mode}, but 8 bits a channel are expected: convert it"
        )
    return pixels.reshape(*pixels.shape[:2], channels)


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """(height, width) from the header of an encoded image."""
    from PIL import Image

    try:
        width, height = Image.open(io.BytesIO(data)).size
    except Exception as error:
        raise UserError(
            f"{name} is not a readable image ({_first_line(error)}): replace or remove it"
        ) from error
    return height, width


def first_shape(image_set: ImageSet) -> tuple[int, int, int]:
    """(H, W, C) of the first training image."""
    return decode_record(image_set.splits["train"], 0, image_set.shape[2])[0].shape


def headers_are_cheap(image_set: ImageSet) -> bool:
    """Whether the size of an image is known from the head of its file alone."""
    return all(split.labels is not None for split in image_set.splits.values())


def all_of_size(image_set: ImageSet, size: tuple[int, int]) -> bool:
    """Whether every image file says that it is of this size."""
    return all(
        image_size(split.read(i), split.name(i)) == size
        for split in image_set.splits.values()
        for i in range(split.count)
    )
