"""ImageNet from its official archives: checked, and written completely or not at all."""

import hashlib
import io
import pathlib
import tarfile

import numpy as np
import pytest
from PIL import Image

from cutmix_jax import UserError
from cutmix_jax.data import find_set, imagenet, open_data, prepare, records, tfds_sets
from tests.data.conftest import encode, photograph

CLASSES = ["n01440764", "n01443537", "n01484850"]
PER_CLASS = 4
VALIDATION_LABELS = [2, 0, 1, 1, 0]


def pack(files):
    """The bytes of a tar file; `files`: name -> bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


TRAIN = {
    f"{name}_{i}.JPEG": encode(photograph(10 * label + i, 40, 50), "jpeg")
    for label, name in enumerate(CLASSES)
    for i in range(PER_CLASS)
}
VALIDATION = {
    f"ILSVRC2012_val_{i + 1:08d}.JPEG": encode(photograph(100 + i, 60, 45), "jpeg")
    for i in range(len(VALIDATION_LABELS))
}


def write_archives(folder, train=TRAIN, validation=VALIDATION):
    """Archives in the form of the official ones; returns their paths."""
    folder.mkdir(exist_ok=True)
    parts = {
        f"{name}.tar": pack({key: data for key, data in train.items() if key.startswith(name)})
        for name in reversed(CLASSES)  # in any order
    }
    paths = folder / "ILSVRC2012_img_train.tar", folder / "ILSVRC2012_img_val.tar"
    paths[0].write_bytes(pack(parts))
    paths[1].write_bytes(pack(dict(reversed(validation.items()))))
    return paths


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """Paths of two small archives, registered as the official ones."""
    paths = write_archives(tmp_path / "archives")
    for key, path in zip(("TRAIN", "VALIDATION"), paths, strict=True):
        data = path.read_bytes()
        official = imagenet.Archive(path.name, len(data), hashlib.sha256(data).hexdigest())
        monkeypatch.setattr(imagenet, key, official)
    lists = {
        "labels.txt": CLASSES,
        "validation_labels.txt": [CLASSES[label] for label in VALIDATION_LABELS],
    }
    monkeypatch.setattr(imagenet, "read_list", lists.__getitem__)
    return paths


def prepare_set(tmp_path):
    source, root = tmp_path / "archives", tmp_path / "tfds"
    return prepare.prepare("imagenet2012", str(root), str(source))


def refused(tmp_path, match):
    with pytest.raises(UserError, match=match) as caught:
        prepare_set(tmp_path)
    assert "\n" not in str(caught.value)
    assert not [path for path in tmp_path.glob("tfds/**/*") if path.is_file()]


def test_every_image_keeps_its_bytes_and_its_label(archives, tmp_path):
    assert prepare_set(tmp_path) == tmp_path / "tfds/imagenet2012/5.1.0"
    found = find_set("imagenet2012", str(tmp_path / "tfds"), None)
    assert found.class_names == tuple(CLASSES)
    expected = {
        "train": {name: (data, CLASSES.index(name[:9])) for name, data in TRAIN.items()},
        "test": {
            name: (data, label)
            for (name, data), label in zip(VALIDATION.items(), VALIDATION_LABELS, strict=True)
        },
    }
    for name, split in found.splits.items():
        numbers = range(split.count)
        read = {records.file_name(split, i): records.encoded(split, i) for i in numbers}
        assert read == expected[name]


def test_it_is_streamed(archives, tmp_path):
    prepare_set(tmp_path)
    config = {"dataset": "imagenet2012", "data_dir": str(tmp_path / "tfds"), "batch_size": 4}
    data = open_data(config | {"image_size": 32, "augment": {"min_area": 0.08}})
    assert dict(data.examples) == {"train": 12, "test": 5}
    assert [len(list(data.train_batches(0))), len(list(data.eval_batches("test")))] == [3, 2]


def test_it_is_written_once(archives, tmp_path):
    prepare_set(tmp_path)
    for path in archives:
        path.unlink()
    assert prepare_set(tmp_path).is_dir()
    assert [path.name for path in (tmp_path / "tfds/imagenet2012").iterdir()] == ["5.1.0"]


@pytest.mark.parametrize("which", [0, 1])
def test_a_missing_archive_is_named(archives, tmp_path, which):
    archives[which].unlink()
    refused(tmp_path, rf"does not hold {archives[which].name}.*image-net\.org.*--source")


@pytest.mark.parametrize("which", [0, 1])
def test_an_archive_that_is_cut_short_is_refused(archives, tmp_path, which):
    archives[which].write_bytes(archives[which].read_bytes()[:-512])
    refused(tmp_path, f"{archives[which].name} is not the official archive: it has .* bytes")


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("place", ["header", "inner header", "pixels", "end"])
def test_a_changed_byte_is_found(archives, tmp_path, which, place):
    data = bytearray(archives[which].read_bytes())
    data[{"header": 3, "inner header": 515, "pixels": 2000, "end": -1}[place]] ^= 1
    archives[which].write_bytes(data)
    refused(tmp_path, rf"{archives[which].name} is (damaged|not the official archive)")


def test_a_class_that_tfds_does_not_list_is_refused(archives, tmp_path, monkeypatch):
    lists = {"labels.txt": CLASSES[:1], "validation_labels.txt": CLASSES[:1] * 5}
    monkeypatch.setattr(imagenet, "read_list", lists.__getitem__)
    refused(tmp_path, r"img_train\.tar is damaged \(it holds n01484850\.tar\)")


@pytest.mark.parametrize("options", [{"source": None}, {"source": "here", "examples": 5}])
def test_other_options_are_refused(tmp_path, options):
    with pytest.raises(UserError, match="give their folder with --source"):
        prepare.prepare("imagenet2012", str(tmp_path), **options)


def test_kinds_other_than_jpeg_are_kept(tmp_path, archives, monkeypatch):
    """One official image is a PNG named .JPEG, and 22 are CMYK. They are decoded as they are."""
    cmyk, png = io.BytesIO(), encode(photograph(1, 40, 50), "png")
    Image.fromarray(photograph(2, 40, 50)).convert("CMYK").save(cmyk, "jpeg")
    names = list(TRAIN)
    path, _ = write_archives(
        tmp_path / "archives", TRAIN | {names[0]: png, names[1]: cmyk.getvalue()}
    )
    data = path.read_bytes()
    official = imagenet.Archive(path.name, len(data), hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(imagenet, "TRAIN", official)
    prepare_set(tmp_path)
    split = find_set("imagenet2012", str(tmp_path / "tfds"), None).splits["train"]
    assert records.file_name(split, 0) == names[0]
    np.testing.assert_array_equal(records.decode_record(split, 0, 3)[0], photograph(1, 40, 50))
    assert records.decode_record(split, 1, 3)[0].shape == (40, 50, 3)


def test_names_sizes_and_hashes_are_those_of_tfds():
    tfds = pytest.importorskip("tensorflow_datasets")
    path = pathlib.Path(tfds.__file__).parent / "datasets/imagenet2012/checksums.tsv"
    listed = [line.split() for line in path.read_text().splitlines()]
    ours = [[a.name, str(a.size), a.sha256] for a in (imagenet.TRAIN, imagenet.VALIDATION)]
    assert [[url.rpartition("/")[2], *rest] for url, *rest in listed] == ours
    assert len(imagenet.read_list("labels.txt")) == 1000
    assert len(imagenet.read_list("validation_labels.txt")) == 50_000


def test_an_unprepared_imagenet_names_the_command(tmp_path):
    with pytest.raises(UserError, match=r"data\.prepare imagenet2012 --source=FOLDER"):
        tfds_sets.open_prepared("imagenet2012", tmp_path, None)
