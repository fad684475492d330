"""Records on disk: the parts of a dataset, and the decoding of records to pixels.

Every dataset has random access by index. So both sources use the same order, a permutation of
indices.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from cutmix_jax import UserError, first_line
from cutmix_jax.data import image_files

# Names of the TFDS feature with an image's file name.
FILE_NAMES = ("file_name", "image/filename")
# Without the second, TensorFlow logs at every start that it uses oneDNN.
QUIET_TENSORFLOW = {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"}


@dataclasses.dataclass(frozen=True)
class Split:
    """Records of one split.

    Attributes:
        count: number of records.
        read: index -> bytes: an encoded image if `labels` is set, else a serialized
            `tf.train.Example` with the features `image` and `label`.
        labels: int32 [count], or None.
        name: index -> name of the record in error messages.
        boxes: None, or index -> float32 [n, 4], (top, left, bottom, right) as fractions of the
            image.
    """

    count: int
    read: Callable[[int], bytes]
    labels: np.ndarray | None
    name: Callable[[int], str]
    boxes: Callable[[int], np.ndarray] | None = None


@dataclasses.dataclass(frozen=True)
class Example:
    """An encoded image.

    Attributes:
        name: name of the image in error messages.
        file_name: the name of its file, for the dataset.
        image: the bytes of the file.
        label: its class.
    """

    name: str
    file_name: bytes
    image: bytes
    label: int


@dataclasses.dataclass(frozen=True)
class Part:
    """The images of one file, or of one folder.

    Attributes:
        labels: int64 [count].
        read: (start, stop) -> the examples with these numbers, one after the other.
        name: number -> name of the example in error messages.
        class_names: the names that the file has for its labels, or None.
    """

    labels: np.ndarray
    read: Callable[[int, int], Iterator[Example]]
    name: Callable[[int], str]
    class_names: tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """A dataset on disk.

    Attributes:
        name: name in the config.
        class_names: one name per class.
        shape: (H, W, C), H and W None if images may differ in size.
        splits: 'train' and, unless held-out images replace it, 'test'.
        fingerprint: returns a text that changes with the files.
    """

    name: str
    class_names: tuple[str, ...]
    shape: tuple[int | None, int | None, int]
    splits: dict[str, Split]
    fingerprint: Callable[[], str]


@dataclasses.dataclass(frozen=True)
class Annotated:
    """Encoded images with an annotation each.

    Attributes:
        images: the images; `read` returns encoded ones.
        read: index -> `boxes.Annotation`, with half-open corners in pixels, counted from 0.
        source: index -> name of the annotation in error messages.
        ids: a name for each image.
        files: the files that all this is read from.
        official: whether the classes are those of PASCAL VOC.
    """

    images: Split
    read: Callable
    source: Callable[[int], str]
    ids: list[str]
    files: list[str]
    official: bool


@dataclasses.dataclass(frozen=True)
class ObjectSet:
    """Images with boxes.

    Attributes:
        class_names: one name per class.
        shape: (H, W, C) of the padded images.
        splits: per split its `size`, `boxes`, `label` and `difficult`, as in
            `objects.open_objects`.
        images: per split uint8 [N, H, W, C], or a `Split` whose `read` returns encoded images.
        names: per split a name for each image, or None.
    """

    class_names: tuple[str, ...]
    shape: tuple[int, int, int]
    splits: dict[str, dict[str, np.ndarray]]
    images: dict[str, np.ndarray | Split]
    names: dict[str, list[str]] | None = None


def choose_split(splits, test_split: str | None, preferred: tuple[str, ...], name: str) -> str:
    """The split to evaluate: `test_split` if set, or the first of `preferred` that exists."""
    # 'val' in folders is 'validation' in TFDS.
    alike = {"val": ("validation",), "validation": ("val",)}
    wanted = (test_split, *alike.get(test_split, ())) if test_split else preferred
    for candidate in wanted:
        if candidate in splits:
            return candidate
    raise UserError(
        f"{name} has no split {test_split or ' or '.join(preferred)}, only "
        f"{', '.join(sorted(splits))}. Choose one with --config.test_split=NAME, or hold out "
        "training images with --config.test_split=held_out --config.held_out=N."
    )


def require(package: str, purpose: str, remedy: str) -> None:
    """Raises a `UserError` if the package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{purpose} needs {package}, which is not installed: {remedy}")


def import_tfds():
    """Imports TFDS, which does not import TensorFlow by itself."""
    require("tensorflow_datasets", "this dataset", "pip install tensorflow-datasets")
    # With an incompatible package, importing TFDS logs pages of text and leaves it empty.
    log = logging.getLogger("absl")
    before, log.disabled = log.disabled, True
    try:
        import tensorflow_datasets.public_api
    except Exception as error:
        raise UserError(
            f"tensorflow_datasets cannot be imported ({first_line(error)}). Install compatible "
            "versions; with protobuf 5, pip install 'tensorflow-metadata<1.21'."
        ) from error
    finally:
        log.disabled = before
    return tensorflow_datasets


def import_tensorflow():
    """Imports TensorFlow without access to the accelerator, whose memory JAX needs."""
    require(
        "tensorflow",
        "preparing a TFDS dataset",
        "pip install tensorflow-cpu, or copy a prepared one",
    )
    for name, value in QUIET_TENSORFLOW.items():
        os.environ.setdefault(name, value)
    import tensorflow

    for kind in ("GPU", "TPU"):
        # In a notebook that has already used TensorFlow, it is too late to change this.
        with contextlib.suppress(RuntimeError):
            tensorflow.config.set_visible_devices([], kind)
    return tensorflow


def encoded(split: Split, i: int) -> tuple[bytes, int]:
    """(bytes of the image, label) of one record."""
    data = split.read(i)
    if split.labels is not None:
        return data, int(split.labels[i])
    feature = parse_example(data)
    return feature["image"].bytes_list.value[0], feature["label"].int64_list.value[0]


def decode_record(split: Split, i: int, channels: int) -> tuple[np.ndarray, int]:
    """(uint8 [H, W, C], label) of one record."""
    data, label = encoded(split, i)
    return image_files.decode(data, channels, split.name(i)), label


def check_labels(labels: np.ndarray, num_classes: int, what: str) -> None:
    """Rejects labels outside the classes, which would silently become one-hot rows of zeros."""
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        remedy = "Correct the labels."
        if (wrong == -1).all():
            remedy = "This split has no labels; choose another one with --config.test_split=NAME."
        raise UserError(
            f"{what} has the label {wrong[0]}, but labels from 0 to {num_classes - 1} are "
            f"expected. {remedy}"
        )


def parse_example(data: bytes):
    """The features of a serialized `tf.train.Example`, by name."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(data).features.feature


def file_name(split: Split, i: int) -> str:
    """The name of the image's file, or of the file that the record was made from."""
    if split.labels is not None:
        return split.name(i)
    feature = parse_example(split.read(i))
    key = next((key for key in FILE_NAMES if key in feature), None)
    if key is None:
        raise UserError(
            f"{split.name(i)} does not say which file it comes from: it lacks the feature "
            f"{' or '.join(FILE_NAMES)}. Use a dataset that has it, or a folder of images."
        )
    return feature[key].bytes_list.value[0].decode(errors="surrogateescape")


def stored_size(split: Split, i: int) -> tuple[int, int]:
    """(height, width) of the stored image."""
    return image_files.stored_size(encoded(split, i)[0], split.name(i))


def digest(parts: Iterable[bytes]) -> str:
    """SHA-256 of several byte strings and the boundaries between them."""
    result = hashlib.sha256()
    for part in parts:
        result.update(hashlib.sha256(part).digest())
    return result.hexdigest()


def have_boxes(image_set: ImageSet) -> bool:
    """Whether every split has boxes."""
    return all(split.boxes is not None for split in image_set.splits.values())


def first_shape(image_set: ImageSet) -> tuple[int, int, int]:
    """(H, W, C) of the first training image."""
    return decode_record(image_set.splits["train"], 0, image_set.shape[2])[0].shape


def headers_are_cheap(image_set: ImageSet) -> bool:
    """Whether the header of a file is enough to get the size of an image."""
    return all(split.labels is not None for split in image_set.splits.values())


def all_of_size(image_set: ImageSet, size: tuple[int, int]) -> bool:
    """Whether every image file has this size, according to its header."""
    return all(
        image_files.stored_size(split.read(i), split.name(i)) == size
        for split in image_set.splits.values()
        for i in range(split.count)
    )
