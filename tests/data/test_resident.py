"""Datasets in device memory: read without TensorFlow, cached, gathered by index."""

import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from cutmix_jax.data import Shards, cache, find_set, open_data, tfds_sets

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CUTMIX_JAX_CACHE", str(folder))
    return folder


def test_digits_split_is_stratified_and_fixed():
    data = open_data({"dataset": "digits", "batch_size": 50})
    assert data.kind == "resident"
    assert data.image_shape == (16, 16, 1)
    assert data.examples == {"train": 1500, "test": 297}
    assert data.steps_per_epoch == 30
    assert data.class_names == tuple("0123456789")
    for split, part in data.arrays.items():
        assert part["image"].dtype == np.uint8
        assert part["label"].dtype == np.int32
        share = np.bincount(part["label"]) / len(part["label"])
        assert np.ptp(share) < 0.02, split
    assert data.arrays["train"]["image"].max() == 255
    assert open_data({"batch_size": 50, "image_size": 8}).image_shape == (8, 8, 1)


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_prepared_set_is_read_exactly(toy_set, own_cache, file_format):
    data_dir, images, labels = toy_set(file_format=file_format)
    for _ in ("from the files", "from the cache"):
        data = open_data({"dataset": "toys", "data_dir": str(data_dir), "batch_size": 8})
        assert data.kind == "resident"
        assert data.image_shape == (8, 8, 3)
        np.testing.assert_array_equal(data.arrays["train"]["image"], images[:41])
        np.testing.assert_array_equal(data.arrays["test"]["image"], images[41:])
        np.testing.assert_array_equal(data.arrays["train"]["label"], labels[:41])
    assert len(list(own_cache.iterdir())) == 1


def test_real_cifar_is_read_as_tfds_reads_it(tfds_dir):
    """The reference is TFDS with TensorFlow: the same pixels and labels in the same order."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    data = open_data({"dataset": "cifar10", "data_dir": str(tfds_dir), "batch_size": 64})
    config = tfds.ReadConfig(interleave_cycle_length=1)
    theirs = tfds.load(
        "cifar10", split="test[:100]", data_dir=tfds_dir, download=False, read_config=config
    )
    for i, example in enumerate(theirs.as_numpy_iterator()):
        np.testing.assert_array_equal(data.arrays["test"]["image"][i], example["image"])
        assert data.arrays["test"]["label"][i] == example["label"]
    assert data.examples == {"train": 3000, "test": 1500}
    assert data.class_names[:2] == ("airplane", "automobile")


def test_folder_of_equal_images_is_resident(tmp_path, own_cache, toys):
    from PIL import Image

    images, _ = toys(12)
    for i, image in enumerate(images):
        folder = tmp_path / ("train" if i < 8 else "val") / ("b", "a")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:02d}.png")
    data = open_data({"dataset": "folder", "data_dir": str(tmp_path), "batch_size": 4})
    assert data.kind == "resident"
    assert data.class_names == ("a", "b")
    np.testing.assert_array_equal(
        data.arrays["train"]["image"], images[[1, 3, 5, 7, 0, 2, 4, 6]], "sorted by class"
    )
    np.testing.assert_array_equal(data.arrays["train"]["label"], [0] * 4 + [1] * 4)


def test_images_are_resized_where_resident_is_demanded(toy_set, own_cache):
    data_dir, *_ = toy_set()
    config = {"dataset": "toys", "data_dir": str(data_dir), "batch_size": 8, "image_size": 12}
    assert open_data({**config, "source": "resident"}).image_shape == (12, 12, 3)


def test_gray_images_keep_one_channel(own_cache, write_tfds, tmp_path, toys):
    from PIL import Image

    images, labels = toys(20, channels=1)
    examples = []
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{i}.png")
        examples.append(((tmp_path / f"{i}.png").read_bytes(), label))
    write_tfds(tmp_path, {"train": examples[:12], "test": examples[12:]}, shape=(8, 8, 1))
    data = open_data({"dataset": "toys", "data_dir": str(tmp_path), "batch_size": 4})
    np.testing.assert_array_equal(data.arrays["train"]["image"], images[:12])


def test_batches_are_gathered_and_masked():
    config = {"batch_size": 64, "train_examples": 200}
    data = open_data(config, Shards(8))
    part = data.arrays["test"]
    load = jax.jit(data.load_eval)
    seen = []
    for xs in data.eval_batches("test"):
        for device in range(8):
            shard = {name: value[device] for name, value in xs.items()}
            batch = load(part, shard)
            assert batch["image"].shape == (8, 16, 16, 1)
            assert batch["mask"].dtype == bool
            index = shard["index"][shard["mask"]]
            np.testing.assert_array_equal(batch["image"][shard["mask"]], part["image"][index])
            np.testing.assert_array_equal(batch["label"][shard["mask"]], part["label"][index])
            seen += index.tolist()
    assert sorted(seen) == list(range(297))


def test_resumed_epoch_equals_the_uninterrupted_one():
    data = open_data({"batch_size": 64, "augment": {"pad": 2, "flip": True}})

    def images(start):
        for xs in data.train_batches(3, start):
            shard = {name: value[0] for name, value in xs.items()}
            yield np.asarray(load(data.arrays["train"], shard, 3)["image"])

    load = jax.jit(data.load_train)
    whole = list(images(0))
    assert len(whole) == data.steps_per_epoch == 23
    rest = list(images(20))
    np.testing.assert_array_equal(np.stack(whole[20:]), np.stack(rest))
    assert not np.array_equal(whole[0], whole[20])


def cached_file(folder):
    (file,) = folder.iterdir()
    return file


@pytest.mark.parametrize("damage", ["truncated", "changed", "empty"])
def test_damaged_cache_is_read_again(toy_set, own_cache, damage, capsys):
    data_dir, images, _ = toy_set()
    config = {"dataset": "toys", "data_dir": str(data_dir), "batch_size": 8}
    open_data(config)
    file = cached_file(own_cache)
    whole = file.read_bytes()
    middle = len(whole) // 4
    file.write_bytes(
        {
            "truncated": whole[:middle],
            "changed": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            "empty": b"",
        }[damage]
    )
    data = open_data(config)
    np.testing.assert_array_equal(data.arrays["train"]["image"], images[:41])
    assert "reading the dataset again" in capsys.readouterr().err
    assert cached_file(own_cache).read_bytes() == whole


def test_cache_notices_another_preparation(toy_set, own_cache):
    data_dir, *_ = toy_set()
    config = {"dataset": "toys", "data_dir": str(data_dir), "batch_size": 8}
    open_data(config)
    (data_dir / "toys/1.0.0").rename(data_dir / "toys/1.0.1")
    open_data(config)
    assert len(list(own_cache.iterdir())) == 2, "another version"
    shard = next((data_dir / "toys/1.0.1").glob("toys-train*"))
    os.utime(shard, (time.time() + 9, time.time() + 9))
    open_data(config)
    assert len(list(own_cache.iterdir())) == 3, "another time of preparation"


def test_a_cache_that_cannot_be_written_stops_nothing(toy_set, tmp_path, monkeypatch, capsys):
    data_dir, images, _ = toy_set()
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("CUTMIX_JAX_CACHE", str(tmp_path / "a file" / "cache"))
    data = open_data({"dataset": "toys", "data_dir": str(data_dir), "batch_size": 8})
    np.testing.assert_array_equal(data.arrays["train"]["image"], images[:41])
    assert "could not be written" in capsys.readouterr().err


def test_large_tfrecord_index_is_kept(toy_set, own_cache, monkeypatch):
    data_dir, *_ = toy_set()
    monkeypatch.setattr(tfds_sets, "INDEX_KEPT_ABOVE", 0)
    split = find_set("toys", str(data_dir), None).splits["train"]
    first = split.read(40)
    assert [path.name.startswith("toys-train-index") for path in own_cache.iterdir()] == [True]
    monkeypatch.setattr(tfds_sets, "_tfrecord_spans", None)  # not needed a second time
    assert find_set("toys", str(data_dir), None).splits["train"].read(40) == first


def test_tensorflow_stays_away(toy_set, own_cache):
    """In a new process: digits, array_record, and tfrecord, without and with the cache."""
    data_dir, *_ = toy_set(file_format="array_record")
    toy_set(file_format="tfrecord", name="others")
    code = (
        "import sys\n"
        "from cutmix_jax.data import open_data\n"
        "open_data({'batch_size': 8})\n"
        "for name in ('toys', 'others', 'others'):\n"
        f"    open_data({{'dataset': name, 'data_dir': {str(data_dir)!r}, 'batch_size': 8}})\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    again = (
        "import sys\n"
        "from cutmix_jax.data import open_data\n"
        "open_data({'batch_size': 8})\n"
        "assert 'sklearn' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    for script in (code, again):
        subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    assert len(list(own_cache.iterdir())) == 3


def test_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.delenv("CUTMIX_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache.cache_dir() == pathlib.Path("/somewhere/cutmix_jax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_dir() == pathlib.Path.home() / ".cache/cutmix_jax"
