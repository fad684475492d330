"""CIFAR from its official archive: checked, and written completely or not at all."""

import dataclasses
import hashlib
import io
import pickle
import tarfile
import urllib.error

import numpy as np
import pytest

from cutmix_jax import UserError
from cutmix_jax.data import cifar, open_data

COUNTS = {"train": 30, "test": 20}


def batch(count, seed):
    rng = np.random.default_rng(seed)
    return {
        "data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
        "fine_labels": rng.integers(0, 5, count).tolist(),
        "coarse_labels": rng.integers(0, 2, count).tolist(),
    }


BATCHES = {name: batch(count, seed) for seed, (name, count) in enumerate(COUNTS.items())}
META = {"fine_label_names": list("abcde"), "coarse_label_names": ["x", "y"]}


@pytest.fixture
def archive(monkeypatch):
    """The bytes of a small archive in CIFAR-100's form, registered as the official one."""
    files = {name: pickle.dumps(value, 2) for name, value in {**BATCHES, "meta": META}.items()}
    sums = {name: hashlib.md5(data).hexdigest() for name, data in files.items()}
    official = dataclasses.replace(
        cifar.ARCHIVES["cifar100"],
        files={split: {split: sums[split]} for split in COUNTS},
        meta=("meta", sums["meta"]),
    )
    monkeypatch.setitem(cifar.ARCHIVES, "cifar100", official)
    return pack(files)


def pack(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"cifar-100-python/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def read(root):
    return open_data({"dataset": "cifar100", "data_dir": str(root), "batch_size": 5})


def refused(root, match):
    with pytest.raises(UserError, match=match) as caught:
        read(root)
    assert "\n" not in str(caught.value)
    # Nothing is left that a later start could take for a dataset.
    assert [path for path in root.glob("cifar100/**/*") if path.is_file()] == []


def test_an_archive_in_the_folder_is_written_once(archive, tmp_path, monkeypatch):
    path = tmp_path / "cifar-100-python.tar.gz"
    path.write_bytes(archive)
    data = read(tmp_path)
    assert dict(data.examples) == COUNTS
    assert data.class_names == tuple("abcde")
    for split, expected in BATCHES.items():
        pixels = expected["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(data.arrays[split]["image"], pixels)
        np.testing.assert_array_equal(data.arrays[split]["label"], expected["fine_labels"])
    path.unlink()
    monkeypatch.setenv("CUTMIX_JAX_CACHE", str(tmp_path / "another cache"))
    assert dict(read(tmp_path).examples) == COUNTS


def test_tfds_reads_what_was_written(archive, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(archive)
    cifar.prepare("cifar100", tmp_path)
    builder = tfds.builder_from_directory(tmp_path / "cifar100" / cifar.VERSION)
    examples = list(builder.as_data_source(split="train"))
    assert [example["id"] for example in examples[:2]] == [b"train_00000", b"train_00001"]
    labels = [example["coarse_label"] for example in examples]
    assert labels == BATCHES["train"]["coarse_labels"]
    assert builder.info.features["label"].names == list("abcde")


def test_the_archive_is_downloaded(archive, tmp_path, monkeypatch):
    asked = []

    class Response(io.BytesIO):
        headers = {"Content-Length": str(len(archive))}  # noqa: RUF012

    def urlopen(url, timeout):
        asked.append(url)
        return Response(archive)

    monkeypatch.setattr(cifar.urllib.request, "urlopen", urlopen)
    assert dict(read(tmp_path).examples) == COUNTS
    assert asked == ["https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"]
    assert [path.name for path in (tmp_path / "cifar100").iterdir()] == [cifar.VERSION]


@pytest.mark.parametrize("error", [urllib.error.URLError("no route"), OSError("no route")])
def test_without_a_network_the_remedy_is_named(tmp_path, monkeypatch, error):
    def urlopen(url, timeout):
        raise error

    monkeypatch.setattr(cifar.urllib.request, "urlopen", urlopen)
    refused(tmp_path, r"cannot be downloaded \(.*no route.*put it into")


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_an_archive_that_is_cut_short_is_refused(archive, tmp_path, keep):
    size = int(keep * len(archive)) if keep < 1 else keep
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(archive[:size])
    refused(tmp_path, "truncated or damaged")


def test_an_archive_of_other_content_is_refused(archive, tmp_path):
    files = {name: pickle.dumps(value, 2) for name, value in {**BATCHES, "meta": META}.items()}
    changed = pack(files | {"test": files["train"]})
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(changed)
    refused(tmp_path, "its file test has other content")


def test_an_archive_without_a_batch_is_refused(archive, tmp_path):
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(pack({"meta": pickle.dumps(META, 2)}))
    refused(tmp_path, "does not hold test, train")
