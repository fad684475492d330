"""Converts the two official archives of ImageNet to array_record, without TensorFlow.

    python -m cutmix_jax.data.prepare imagenet2012 --source=FOLDER --data_dir=PATH

The package tensorflow-datasets contains the labels of the validation images.
"""

import contextlib
import dataclasses
import hashlib
import pathlib
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from cutmix_jax import UserError, first_line
from cutmix_jax.data import tfds_files
from cutmix_jax.data.records import import_tfds, require

NAME, VERSION = "imagenet2012", "5.1.0"  # of the dataset in TFDS
PAGE = "https://image-net.org/download-images"


@dataclasses.dataclass(frozen=True)
class Archive:
    """An official archive: name, size and SHA-256 as in TFDS."""

    name: str
    size: int
    sha256: str


TRAIN = Archive(
    "ILSVRC2012_img_train.tar",
    147897477120,
    "b08200a27a8e34218a0e58fde36b0fe8f73bc377f4acea2d91602057c3ca45bb",
)
VALIDATION = Archive(
    "ILSVRC2012_img_val.tar",
    6744924160,
    "c7e06a6c0baccf06d8dbeb6577d71efff84673a5dbdd50633ab44f8ea0456ae0",
)


def prepare(source: pathlib.Path, root: pathlib.Path) -> pathlib.Path:
    """Writes ``root/imagenet2012/5.1.0`` in the layout of TFDS, and returns this folder.

    The folder appears when it is complete. The bytes of the images are unchanged; TFDS reencodes 23
    of them.

    Args:
        source: the folder that holds both archives.
        root: the folder of TFDS datasets; created if it does not exist.

    Raises:
        UserError: an archive is missing, truncated or has other content, or the folder cannot be
            written.
    """
    require("array_record", f"preparing {NAME}", "pip install array_record")
    if (target := root / NAME / VERSION).exists():
        return target
    for archive in (TRAIN, VALIDATION):
        _check_size(source, archive)
    tfds, classes = import_tfds(), read_list("labels.txt")
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=classes),
            "file_name": tfds.features.Text(),
        }
    )
    with tfds_files.unfinished(NAME, VERSION, root) as folder:
        splits = {
            # First, because it takes minutes and not hours to find damage.
            "validation": _write_validation(source, classes, folder),
            "train": _write_train(source, classes, folder),
        }
        module = "tensorflow_datasets.datasets.imagenet2012.imagenet2012_dataset_builder"
        tfds_files.write_info(folder, NAME, features, splits, module, [PAGE])
    return target


def read_list(name: str) -> list[str]:
    """The WordNet ids in a file that TFDS has for this dataset."""
    folder = pathlib.Path(import_tfds().__file__).parent / "datasets" / NAME
    return (folder / name).read_text().split()


def _write_validation(source, classes, folder) -> list[tuple[int, int]]:
    # The labels are in the order of the file names.
    labels = {
        f"ILSVRC2012_val_{number:08d}.JPEG": classes.index(label)
        for number, label in enumerate(read_list("validation_labels.txt"), 1)
    }
    with _open(source, VALIDATION) as images:
        examples = (
            _example(images, image, _find(labels, image.name)) for image in images if image.isfile()
        )
        path = folder / tfds_files.file_name(NAME, "validation", 0, 1)
        return [tfds_files.write_shard(path, examples)]


def _write_train(source, classes, folder) -> list[tuple[int, int]]:
    """Writes one file per class, in the order of the archive."""
    labels, written = {f"{name}.tar": label for label, name in enumerate(classes)}, {}
    with _open(source, TRAIN) as tars:
        for member in tars:
            label = _find(labels, member.name)
            with tarfile.open(fileobj=tars.extractfile(member), mode="r|") as images:
                examples = (_example(images, image, label) for image in images if image.isfile())
                path = folder / tfds_files.file_name(NAME, "train", label, len(classes))
                written[label] = tfds_files.write_shard(path, examples)
    return [written[label] for label in sorted(written)]


def _find(labels: dict[str, int], name: str) -> int:
    name = pathlib.PurePosixPath(name).name
    if name not in labels:
        raise tarfile.TarError(f"it holds {name}")
    return labels[name]


def _example(tar: tarfile.TarFile, member: tarfile.TarInfo, label: int) -> dict:
    name = pathlib.PurePosixPath(member.name).name
    return {"file_name": name.encode(), "image": tar.extractfile(member).read(), "label": label}


def _check_size(source: pathlib.Path, archive: Archive) -> None:
    path = source / archive.name
    if not path.is_file():
        raise UserError(
            f"{source} does not hold {archive.name}. Download it from {PAGE}, and give its folder "
            "with --source."
        )
    if (size := path.stat().st_size) != archive.size:
        raise UserError(
            f"{path} is not the official archive: it has {size:,} bytes instead of "
            f"{archive.size:,}. Download it again."
        )


@contextlib.contextmanager
def _open(source: pathlib.Path, archive: Archive) -> Iterator[tarfile.TarFile]:
    """Opens the archive to read it once from start to end, and then checks its SHA-256."""
    path = source / archive.name
    words = f"reading {archive.name}"
    with (
        path.open("rb") as opened,
        tfds_files.progress_bar(archive.size, words, unit="B", unit_scale=True) as bar,
    ):
        file = _Hashed(opened, bar)
        try:
            with tarfile.open(fileobj=file, mode="r|", bufsize=1 << 20) as tar:
                yield tar
        except (tarfile.TarError, EOFError) as error:
            raise UserError(
                f"{path} is damaged ({first_line(error)}). Download it again."
            ) from error
        while file.read(1 << 20):
            pass
        if file.sha256.hexdigest() != archive.sha256:
            raise UserError(
                f"{path} is not the official archive: its SHA-256 is {file.sha256.hexdigest()} "
                f"instead of {archive.sha256}. Download it again."
            )


class _Hashed:
    """A file that computes its hash as it is read."""

    def __init__(self, file: BinaryIO, bar):
        self._file, self._bar, self.sha256 = file, bar, hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.sha256.update(data)
        self._bar.update(len(data))
        return data
