"""Writes datasets as array_record files in the layout of TFDS, without TensorFlow."""

import contextlib
import errno
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping

import tqdm

from cutmix_jax import UserError, first_line
from cutmix_jax.paths import write_json

INFO = "dataset_info.json"
# What `prepare_files` writes on its way.
JOURNAL = "prepared.jsonl"


@contextlib.contextmanager
def unfinished(name: str, version: str, root: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write to, which becomes ``root/NAME/VERSION`` when it is complete.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        (root / name).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=root / name) as folder:
            written = pathlib.Path(folder, version)
            written.mkdir()
            yield written
            target = root / name / version
            if not target.exists():  # otherwise another process was faster
                os.rename(written, target)
    except OSError as error:
        raise UserError(
            f"{name} could not be written to {root} ({error.strerror or error}). Free some "
            "space, or choose another data_dir."
        ) from error


def write_shard(path: pathlib.Path, examples: Iterable[Mapping]) -> tuple[int, int]:
    """Writes one file of a split; returns its number of examples and of bytes.

    Args:
        path: file to write.
        examples: feature -> bytes or an integer.

    Raises:
        OSError: the file cannot be written.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    count, size = 0, 0
    with _writer(path) as writer:
        for values in examples:
            example = tf_example_pb2.Example()
            for feature, value in values.items():
                kind = "bytes_list" if isinstance(value, bytes) else "int64_list"
                getattr(example.features.feature[feature], kind).value.append(value)
            # Otherwise each process has its own order of the features.
            record = example.SerializeToString(deterministic=True)
            writer.write(record)
            count, size = count + 1, size + len(record)
    return count, size


def is_unfinished(folder: pathlib.Path) -> bool:
    """Whether a dataset was started in this folder, but is not complete."""
    return (folder / JOURNAL).is_file() and not (folder / INFO).is_file()


def file_name(name: str, split: str, shard: int, shards: int) -> str:
    """The name of a file of a split."""
    return f"{name}-{split}.array_record-{shard:05d}-of-{shards:05d}"


@contextlib.contextmanager
def _writer(path: pathlib.Path):
    """A writer of records. It reports a full disk when it closes, and not as an `OSError`."""
    from array_record.python.array_record_module import ArrayRecordWriter

    try:
        writer = ArrayRecordWriter(str(path), "group_size:1")
    except RuntimeError as error:
        raise OSError(errno.EIO, first_line(error), str(path)) from error
    yield writer
    try:
        writer.close()
    except RuntimeError as error:
        raise OSError(errno.EIO, first_line(error).partition(";")[0], str(path)) from error


def write_info(
    folder: pathlib.Path,
    name: str,
    features,
    splits: Mapping[str, list[tuple[int, int]]],
    module: str,
    urls: list[str],
    version: str | None = None,
) -> None:
    """Writes the metadata that TFDS reads before the records.

    Args:
        folder: folder to write to.
        name: name of the dataset.
        features: `tfds.features.FeaturesDict`.
        splits: (examples, bytes) of each file of each split.
        module: module of the TFDS builder.
        urls: sources of the data.
        version: version of the dataset; None: the name of the folder.
    """
    features.save_config(folder)
    info = {
        "name": name,
        "version": version or folder.name,
        "fileFormat": "array_record",
        "moduleName": module,
        "location": {"urls": urls},
        "splits": [
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": str(sum(size for _, size in shards)),
                "shardLengths": [str(count) for count, _ in shards],
            }
            for split, shards in splits.items()
        ],
    }
    write_json(folder / INFO, info)


def progress_bar(items, words: str, **options) -> tqdm.tqdm:
    """A progress bar over items, or up to a number; only on a terminal."""
    count = {"total": items} if items is None or isinstance(items, int) else {"iterable": items}
    return tqdm.tqdm(**count, desc=words, disable=None, leave=False, **options)
