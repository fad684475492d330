"""Converts the official archives of CIFAR-10 and CIFAR-100 to array_record, without TensorFlow."""

import dataclasses
import hashlib
import http.client
import io
import pathlib
import pickle
import sys
import tarfile
import urllib.request
from collections.abc import Iterator

import numpy as np

from cutmix_jax import UserError, first_line
from cutmix_jax.data import tfds_files
from cutmix_jax.data.records import import_tfds, require

VERSION = "3.0.2"  # of the dataset in TFDS
SIDE = 32


@dataclasses.dataclass(frozen=True)
class Archive:
    """One of the official archives: a tar file of pickled batches.

    Attributes:
        url: download address.
        files: for each split, the MD5 of each batch by its name in the archive.
        meta: name and MD5 of the file with the class names.
        labels: for each label feature, its key in a batch and the key of its class names.
    """

    url: str
    files: dict[str, dict[str, str]]
    meta: tuple[str, str]
    labels: dict[str, tuple[str, str]]


ARCHIVES = {
    "cifar10": Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        files={
            "train": {
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            },
            "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
        },
        meta=("batches.meta", "5ff9c542aee3614f3951f8cda6e48888"),
        labels={"label": ("labels", "label_names")},
    ),
    "cifar100": Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        files={
            "train": {"train": "16019d7e3df5f24257cddd939b257f8d"},
            "test": {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        },
        meta=("meta", "7973b15100ade9c7d40fb424638fde48"),
        labels={
            "label": ("fine_labels", "fine_label_names"),
            "coarse_label": ("coarse_labels", "coarse_label_names"),
        },
    ),
}


def prepare(name: str, root: pathlib.Path) -> None:
    """Writes a dataset of `ARCHIVES` to ``root/NAME/VERSION``, in the layout of TFDS.

    The archive is read from `root` if it exists there, and downloaded otherwise. The folder appears
    when it is complete.

    Args:
        name: a key of `ARCHIVES`.
        root: the folder of TFDS datasets; created if it does not exist.

    Raises:
        UserError: the archive cannot be downloaded, is truncated or has other content, or the
            folder cannot be written.
    """
    require("array_record", f"preparing {name}", "pip install array_record")
    archive = ARCHIVES[name]
    with tfds_files.unfinished(name, VERSION, root) as folder:
        path = root / pathlib.PurePosixPath(archive.url).name
        if not path.is_file():
            path = _download(name, archive.url, folder.parent, root)
        _write(name, archive, _read(path, archive), folder)


def _download(name: str, url: str, folder: pathlib.Path, root: pathlib.Path) -> pathlib.Path:
    """Downloads the archive to `folder`, and returns its path."""
    path = folder / pathlib.PurePosixPath(url).name
    print(f"{name} is not prepared in {root}: downloading {url}.", file=sys.stderr, flush=True)
    with path.open("wb") as file:
        for part in _parts(name, url, root):
            file.write(part)
    return path


def _parts(name: str, url: str, root: pathlib.Path) -> Iterator[bytes]:
    """The bytes at a URL, in parts of 1 MiB."""
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            size = int(response.headers.get("Content-Length") or 0) or None
            with tfds_files.progress_bar(size, "downloading", unit="B", unit_scale=True) as bar:
                while part := response.read(1 << 20):
                    bar.update(len(part))
                    yield part
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"{name} is not prepared in {root}, and {url} cannot be downloaded "
            f"({first_line(error)}). Download it elsewhere and put it into {root}, or give the "
            "folder of a prepared dataset with --config.data_dir."
        ) from error


def _read(path: pathlib.Path, archive: Archive) -> dict[str, dict]:
    """The batches and class names by their names in the archive, after checking their MD5."""
    wanted = {archive.meta[0]: archive.meta[1]}
    for files in archive.files.values():
        wanted |= files
    found = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                name = pathlib.PurePosixPath(member.name).name
                if name not in wanted or not member.isfile():
                    continue
                data = tar.extractfile(member).read()
                if hashlib.md5(data).hexdigest() != wanted[name]:
                    raise UserError(
                        f"{path} is not the official archive: its file {name} has other content. "
                        f"Delete it, and download {archive.url} again."
                    )
                # The MD5 matches, so unpickling is safe.
                found[name] = pickle.loads(data, encoding="latin1")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(
            f"{path} is truncated or damaged ({first_line(error)}). Delete it, and download "
            f"{archive.url} again."
        ) from error
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise UserError(
            f"{path} does not hold {', '.join(missing)}. Delete it, and download {archive.url} "
            "again."
        )
    return found


def _write(name: str, archive: Archive, batches: dict[str, dict], folder: pathlib.Path) -> None:
    """Writes records, features and `dataset_info.json`."""
    tfds = import_tfds()
    names = batches[archive.meta[0]]
    labels = {
        feature: tfds.features.ClassLabel(names=names[key])
        for feature, (_, key) in archive.labels.items()
    }
    features = tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(SIDE, SIDE, 3)),
            **labels,
        }
    )
    splits = {}
    for split, files in archive.files.items():
        examples = _examples(split, [batches[file] for file in files], archive)
        path = folder / tfds_files.file_name(name, split, 0, 1)
        splits[split] = [tfds_files.write_shard(path, examples)]
    module = "tensorflow_datasets.image_classification.cifar"
    tfds_files.write_info(folder, name, features, splits, module, [archive.url])


def _examples(split: str, batches: list[dict], archive: Archive) -> Iterator[dict]:
    """The examples of a split in the official order."""
    from PIL import Image

    # A row holds the red, green and blue planes.
    pixels = np.concatenate([batch["data"] for batch in batches])
    pixels = pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    labels = {
        feature: np.concatenate([batch[key] for batch in batches])
        for feature, (key, _) in archive.labels.items()
    }
    for i, image in enumerate(tfds_files.progress_bar(pixels, f"writing {split}", unit=" images")):
        png = io.BytesIO()
        Image.fromarray(image).save(png, "PNG")
        yield {
            "id": f"{split}_{i:05d}".encode(),
            "image": png.getvalue(),
            **{feature: int(values[i]) for feature, values in labels.items()},
        }
