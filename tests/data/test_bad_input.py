"""Mistakes of users: one sentence names the cause and the remedy, before training."""

import json
import shutil
import sys
import time
import urllib.error

import numpy as np
import pytest

from cutmix_jax import UserError
from cutmix_jax.data import find_set, open_data, records, tfds_sets


def refused(match, **config):
    """Opening fails with a UserError of one line that matches; returns the line."""
    with pytest.raises(UserError, match=match) as caught:
        open_data({"batch_size": 8, **config})
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"batch_size": 0}, r"config\.batch_size is 0, but a finite number of at least 1"),
        ({"seed": -1}, "config.seed is -1"),
        ({"train_examples": 0}, "train_examples is 0"),
        ({"held_out": -5}, "held_out is -5"),
        ({"image_size": 0}, "image_size is 0"),
        ({"resident_limit_mib": -1}, "resident_limit_mib is -1"),
        ({"reader_processes": -1}, "reader_processes is -1"),
        ({"source": "disk"}, "source is 'disk', but one of 'auto', 'resident', 'streaming'"),
        ({"augment": {"pad": -1}}, "augment.pad is -1"),
        ({"augment": {"pad": 17}}, "augment.pad=17 is larger than the images"),
        (
            {"augment": {"pad_mode": "edge"}},
            "pad_mode is 'edge', but one of 'zero', 'reflect'",
        ),
        ({"augment": {"color_jitter": float("nan")}}, "augment.color_jitter is nan"),
        ({"augment": {"lighting": -0.1}}, "augment.lighting is -0.1"),
        ({"augment": {"lighting": 0.1}}, "need images of 3 channels"),
        ({"augment": {"min_area": 0.0}}, "min_area is 0.0, but a finite number above 0"),
        ({"augment": {"min_area": 0.5, "max_area": 0.4}}, "min_area is 0.5, but at most .*=0.4"),
        ({"augment": {"min_area": 0.5, "pad": 4}}, "cropped in only one way"),
        ({"augment": {"min_area": 0.5}, "source": "resident"}, "--config.source=streaming"),
        ({"augment": {"min_area": 0.5}}, "digits is always resident"),
        ({"augment": {"policy": "auto"}}, "policy is 'auto', but one of 'none', 'trivial_augment'"),
        ({"augment": {"policy": "trivial_augment"}}, "needs images of 3 channels.*digits have 1"),
        ({"augment": {"magnitude": 9.0}}, "magnitude is 9.0, but config.augment.policy=none"),
        ({"augment": {"magnitude": 31.0}}, "magnitude is 31.0, but a finite number of at least 0"),
        (
            {"augment": {"policy": "trivial_augment", "operations": 3}},
            "operations is 3, but config.augment.policy=trivial_augment does not use it",
        ),
        (
            {"augment": {"policy": "rand_augment", "magnitude": 8.5}},
            "has whole magnitudes, from 0 to 30",
        ),
        ({"augment": {"policy": "rand_augment", "magnitude_std": 1.0}}, "magnitude_std is 1.0"),
        (
            {"augment": {"policy": "rand_augment_timm", "magnitude": 11.0}},
            "magnitude is 11, but at most 10",
        ),
        ({"augment": {"operation_prob": 1.5}}, "operation_prob is 1.5"),
        ({"augment": {"interpolation": "bicubic"}}, "one of 'nearest', 'bilinear'"),
        ({"augment": {"erasing": 1.5}}, "augment.erasing is 1.5"),
        ({"augment": {"erasing_fill": "noise"}}, "erasing_fill is 'noise', but .*erasing is 0"),
        ({"square_resize": 0}, "square_resize is 0"),
        ({"square_resize": 20}, "digits is always resident"),
        ({"square_resize": 20, "source": "resident"}, "square_resize crops larger images"),
        ({"square_resize": 20, "augment": {"pad": 4}}, "cropped in only one way"),
        ({"square_resize": 20, "eval_resize": 30}, "cropped in only one way"),
        ({"test_split": "validation"}, "digits has no split 'validation'"),
        ({"dataset": "a b"}, "is not the name of a dataset"),
        ({"dataset": "folder"}, "--config.data_dir=PATH"),
        ({"dataset": "folder", "data_dir": "/no/such"}, "data_dir=/no/such is not a folder"),
        ({"dataset": "cifar10", "data_dir": "/no/such"}, "data_dir=/no/such is not a folder"),
        ({"dataset": "cifar10", "data_dir": "s3://bucket"}, "a local path or gs:.* was expected"),
    ],
)
def test_configuration_is_refused(config, match):
    refused(match, **config)


def test_unknown_dataset_gets_the_nearest_names(tmp_path, toy_set):
    data_dir, *_ = toy_set(name="birdsong")
    assert "Did you mean cifar100" in refused(
        "dataset='cifar_100' is not", dataset="cifar_100", data_dir=str(data_dir)
    )
    assert "Did you mean birdsong" in refused(
        "birdsongs", dataset="birdsongs", data_dir=str(data_dir)
    )
    refused("Check the name", dataset="qqqqqqqq", data_dir=str(data_dir))


def test_tfds_that_cannot_be_imported_says_why(tmp_path, monkeypatch):
    """TFDS itself logs a traceback, and then lacks its functions."""
    monkeypatch.setitem(sys.modules, "tensorflow_datasets.public_api", None)
    (tmp_path / "toys/1.0.0").mkdir(parents=True)
    (tmp_path / "toys/1.0.0/dataset_info.json").write_text("{}")
    message = refused("cannot be imported", dataset="toys", data_dir=str(tmp_path))
    assert "public_api halted" in message
    assert "tensorflow-metadata<1.21" in message


def test_unprepared_set_without_network_is_refused_at_once(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow")  # its absence is noticed first

    def unreachable(url, timeout):
        raise OSError("Name or service not known")

    monkeypatch.setattr(tfds_sets.urllib.request, "urlopen", unreachable)
    start = time.monotonic()
    message = refused("there is no network", dataset="mnist", data_dir=str(tmp_path))
    assert time.monotonic() - start < 10
    assert "download_and_prepare()" in message
    assert "--config.data_dir" in message


class FailingBuilder:
    """Replaces the builder of TFDS."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = None
    url_infos = ()

    def download_and_prepare(self):
        raise OSError("the server said no\nand more")


@pytest.fixture
def failing_builder(monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    builder = FailingBuilder()
    monkeypatch.setattr(tfds, "builder", lambda *args, **kwargs: builder)
    return builder


def test_failed_download_is_one_sentence(tmp_path, failing_builder, capsys):
    refused(
        r"could not download it \(the server said no\)", dataset="mnist", data_dir=str(tmp_path)
    )
    assert "downloading it with TFDS" in capsys.readouterr().err


def test_files_to_be_downloaded_by_hand_are_named(tmp_path, failing_builder):
    failing_builder.MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the archives\n  into DIR."
    refused(
        r"as TFDS says \(Put the archives into DIR\.\)", dataset="mnist", data_dir=str(tmp_path)
    )


def test_network_is_sought_where_the_set_lies(monkeypatch):
    asked = []

    def answer(url, timeout):
        asked.append(url)
        raise urllib.error.HTTPError(url, 404, "Not Found", None, None)

    monkeypatch.setattr(tfds_sets.urllib.request, "urlopen", answer)
    assert tfds_sets.reachable(["https://a.org/x/y.zip", "https://a.org/z"])
    assert asked == ["https://a.org"]
    assert tfds_sets.reachable([]), "nothing to download"


def test_preparing_needs_tensorflow(tmp_path, monkeypatch):
    real = records.importlib.util.find_spec
    monkeypatch.setattr(
        records.importlib.util,
        "find_spec",
        lambda name: None if name == "tensorflow" else real(name),
    )
    refused("preparing it needs tensorflow", dataset="mnist", data_dir=str(tmp_path))


def test_tensorflow_leaves_the_accelerator_alone(monkeypatch):
    tf, hidden = pytest.importorskip("tensorflow"), []
    monkeypatch.setattr(
        tf.config, "set_visible_devices", lambda devices, kind: hidden.append((devices, kind))
    )
    records.import_tensorflow()
    assert hidden == [([], "GPU"), ([], "TPU")]


def test_newest_version_is_taken_and_configurations_are_named(toy_set, write_tfds, tmp_path):
    data_dir, *_ = toy_set()
    shutil.copytree(data_dir / "toys/1.0.0", data_dir / "toys/10.0.0")
    assert tfds_sets.find_prepared("toys", data_dir).name == "10.0.0"
    assert tfds_sets.find_prepared("toys:1.0.0", data_dir).name == "1.0.0"
    assert tfds_sets.find_prepared("toys:2.0.0", data_dir) is None
    for config in ("big", "small"):
        write_tfds(tmp_path, {"train": [], "test": []}, name="blurred", config=config)
    refused("Choose one of blurred/big, blurred/small", dataset="blurred", data_dir=str(tmp_path))
    assert tfds_sets.find_prepared("blurred/big", tmp_path).parent.name == "big"


def toys(data_dir, **config):
    return {"dataset": "toys", "data_dir": str(data_dir), **config}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"image_key": "picture"}, "has the features label, picture, but"),
        ({"dtype": "uint16", "shape": (8, 8, 1)}, "type uint16, but"),
        ({"shape": (8, 8, 4)}, r"shape \(8, 8, 4\)"),
        ({"num_classes": 5}, "but labels from 0 to 4 are expected"),
    ],
)
def test_datasets_that_are_not_image_classification(toy_set, options, match):
    data_dir, *_ = toy_set(**options)
    refused(match, **toys(data_dir))


@pytest.mark.parametrize("source", ["resident", "streaming"])
def test_labels_beyond_32_bits_do_not_become_small_ones(toy_set, source):
    data_dir, *_ = toy_set(add_to_labels=2**32)
    with pytest.raises(UserError, match=r"has the label 4294967\d{3}, but labels from 0 to 9"):
        next(open_data({**toys(data_dir), "batch_size": 8, "source": source}).train_batches(0))


def test_unlabelled_split_is_explained():
    with pytest.raises(UserError, match=r"no labels; choose another one with --config\.test_split"):
        records.check_labels(np.full(3, -1), 10, "split test of imagenet2012")


def test_unknown_split_is_refused(toy_set):
    data_dir, *_ = toy_set()
    refused("no split val, only test, train", **toys(data_dir, test_split="val"))


@pytest.mark.parametrize("damage", ["missing", "truncated", "count", "format", "garbage"])
def test_damaged_preparation(toy_set, damage):
    data_dir, *_ = toy_set()
    folder = data_dir / "toys/1.0.0"
    shard = next(folder.glob("toys-train*"))
    info = folder / "dataset_info.json"
    if damage == "missing":
        shard.unlink()
        match = "is missing. Prepare toys again"
    elif damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-100])
        match = "is truncated or damaged"
    elif damage == "count":
        document = json.loads(info.read_text())
        document["splits"][0]["shardLengths"] = ["20", "20"]
        info.write_text(json.dumps(document))
        match = "41 records in split train, but its dataset_info.json says 40"
    elif damage == "format":
        document = json.loads(info.read_text())
        document["fileFormat"] = "riegeli"
        info.write_text(json.dumps(document))
        for path in folder.glob("toys-*"):
            path.rename(str(path).replace("tfrecord", "riegeli"))
        match = "prepared as riegeli, but array_record or tfrecord is expected"
    else:
        info.write_text("{")
        match = "cannot be read as a TFDS dataset"
    refused(match, **toys(data_dir))


def test_shard_that_cannot_be_opened_is_named(toy_set):
    data_dir, *_ = toy_set()
    split = find_set("toys", str(data_dir), None).splits["train"]
    for shard in (data_dir / "toys/1.0.0").glob("toys-train*"):
        shard.unlink()
    with pytest.raises(UserError, match=r"toys-train\S* cannot be read \(No such file"):
        split.read(0)


def test_damaged_image_in_a_prepared_set_is_named(toy_set):
    data_dir, *_ = toy_set()
    shard = sorted((data_dir / "toys/1.0.0").glob("toys-train*"))[1]
    content = shard.read_bytes()
    place = content.rindex(b"IDAT") + 20
    shard.write_bytes(content[:place] + b"\0\0\0\0" + content[place + 4 :])
    refused(r"record 40 of train \(in .*00001-of-00002\) is not a readable image", **toys(data_dir))


def test_images_of_differing_size_are_not_resident(photo_folder):
    config = {"dataset": "folder", "data_dir": str(photo_folder), "source": "resident"}
    refused("images of different sizes .*--config.source=streaming", **config)


def test_sets_above_the_limit_are_not_resident(toy_set):
    data_dir, *_ = toy_set()
    config = toys(data_dir, source="resident", resident_limit_mib=0)
    refused("takes 0.0 MiB in device memory, more than resident_limit_mib=0.", **config)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda root: shutil.rmtree(root / "train"), "has no folder train"),
        (lambda root: shutil.rmtree(root / "val"), "no split val or validation or test"),
        (lambda root: (root / "train/dog").mkdir(), "dog holds no image"),
        (lambda root: (root / "val/dog").mkdir(), "dog is a class without a folder"),
        (
            lambda root: [shutil.rmtree(path) for path in (root / "val").iterdir()],
            "val has no class folders",
        ),
    ],
)
def test_folder_trees_of_another_form(photo_folder, tmp_path, change, match):
    root = shutil.copytree(photo_folder, tmp_path / "photos")
    change(root)
    refused(match, dataset="folder", data_dir=str(root))


def test_evaluation_crop_must_lie_within_the_resized_image(photo_folder):
    config = {"dataset": "folder", "data_dir": str(photo_folder), "augment": {"min_area": 0.1}}
    refused("eval_resize=100 is smaller than image_size=224", eval_resize=100, **config)
    refused("eval_resize=20 is smaller than eval_size=24", eval_resize=20, eval_size=24, **config)
    config["augment"]["min_area"] = None
    refused("square_resize=20 is smaller than eval_size=24", square_resize=20, eval_size=24,
            image_size=16, **config)  # fmt: skip
