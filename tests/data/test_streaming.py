"""Streaming decodes each process's slice in the order of resident data, with any threads."""

import dataclasses
import io
import shutil
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from PIL import Image

from cutmix_jax import UserError
from cutmix_jax.config import from_plain
from cutmix_jax.data import Shards, crops, find_set, image_files, open_data, records, streaming

from .conftest import photo_config


def test_folder_is_streamed_with_its_class_names(photo_folder):
    data = open_data(photo_config(photo_folder))
    assert data.kind == "streaming"
    assert data.class_names == ("ant", "bee", "cat")
    assert data.examples == {"train": 24, "test": 7}
    assert data.steps_per_epoch == 3
    assert data.arrays == {"train": (), "test": ()}
    xs = next(data.train_batches(0))
    assert {name: (value.shape, value.dtype.name) for name, value in xs.items()} == {
        "image": ((1, 8, 16, 16, 3), "uint8"),
        "label": ((1, 8), "int32"),
        "index": ((1, 8), "int32"),
        "seed": ((1,), "int32"),
    }


def epoch_of(config, local_devices=1, process_count=1, epoch=2, start=0):
    """Global batches of images and labels, and what each process has read."""
    parts, read = [], []
    for process in range(process_count):
        data = open_data(config, Shards(local_devices, process, process_count))
        steps = list(data.train_batches(epoch, start))
        parts.append([(xs["image"], xs["label"]) for xs in steps])
        read.append({int(i) for xs in steps for i in xs["index"].ravel()})
    batches = []
    for step in zip(*parts, strict=True):
        images, labels = (np.concatenate([part[k] for part in step]) for k in (0, 1))
        batches.append((images.reshape(-1, *images.shape[2:]), labels.ravel()))
    return batches, read


@pytest.mark.parametrize("layout", [(8, 1), (2, 2)])
def test_batches_are_the_same_on_any_number_of_devices_and_processes(photo_folder, layout):
    config = photo_config(photo_folder)
    alone, _ = epoch_of(config)
    shared, read = epoch_of(config, *layout)
    for (image, label), (same_image, same_label) in zip(alone, shared, strict=True):
        np.testing.assert_array_equal(image, same_image)
        np.testing.assert_array_equal(label, same_label)
    assert sum(map(len, read)) == 24, "no image is decoded twice"
    assert set.union(*read) == set(range(24))


def test_resumed_epoch_equals_the_uninterrupted_one(photo_folder):
    config = photo_config(photo_folder)
    whole, _ = epoch_of(config)
    rest, read = epoch_of(config, start=2)
    assert len(rest) == 1
    assert len(read[0]) == 8, "skipped images are not decoded"
    np.testing.assert_array_equal(rest[0][0], whole[2][0])
    np.testing.assert_array_equal(rest[0][1], whole[2][1])


@pytest.mark.parametrize("cut", [{"augment": {"min_area": 0.08}}, {"square_resize": 40}])
def test_batches_are_the_same_for_any_number_of_threads(photo_folder, monkeypatch, cut):
    config = photo_config(photo_folder, **{"augment": {}, **cut})
    monkeypatch.setattr(streaming.host, "cores", lambda: 1)
    alone, _ = epoch_of(config)
    for threads, together, ahead in ((2, 16, 4), (4, 3, 1), (4, 1, 9)):
        monkeypatch.setattr(streaming.host, "cores", lambda threads=threads: threads)
        monkeypatch.setattr(streaming, "TOGETHER", together)
        monkeypatch.setattr(streaming, "PREFETCH", ahead)
        for start in (0, 1):
            shared, _ = epoch_of(config, start=start)
            jax.tree.map(np.testing.assert_array_equal, alone[start:], shared)


def test_epochs_and_seeds_differ(photo_folder):
    config = photo_config(photo_folder)
    one = epoch_of(config, epoch=2)[0][0][0]
    assert not np.array_equal(one, epoch_of(config, epoch=3)[0][0][0])
    assert not np.array_equal(one, epoch_of({**config, "seed": 1}, epoch=2)[0][0][0])


def test_each_image_has_a_crop_of_its_own(tmp_path):
    """Eight copies of one image: eight crops."""
    image = Image.linear_gradient("L").resize((80, 80)).convert("RGB")
    image.paste((255, 0, 0), (0, 0, 30, 80))
    for split, count in (("train", 8), ("val", 1)):
        (tmp_path / split / "ant").mkdir(parents=True)
        for i in range(count):
            image.save(tmp_path / split / "ant" / f"{i}.png")
    (xs,) = open_data(photo_config(tmp_path)).train_batches(0)
    assert len(np.unique(xs["image"][0].reshape(8, -1), axis=0)) == 8


@pytest.mark.parametrize(("local_devices", "process_count"), [(1, 1), (4, 2)])
def test_evaluation_sees_each_image_once(photo_folder, local_devices, process_count):
    config, seen, steps = photo_config(photo_folder), [], set()
    for process in range(process_count):
        data = open_data(config, Shards(local_devices, process, process_count))
        batches = list(data.eval_batches("test"))
        steps.add(len(batches))
        for xs in batches:
            seen += xs["index"][xs["mask"]].tolist()
    assert sorted(seen) == list(range(7))
    assert steps == {1}


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_streaming_equals_resident_bit_for_bit(toy_set, file_format):
    """Without a random-resized crop both sources give the same augmented batches."""
    data_dir, *_ = toy_set(file_format=file_format)
    config = {
        "dataset": "toys",
        "data_dir": str(data_dir),
        "batch_size": 8,
        "train_examples": 30,
        "held_out": 5,
        "augment": {"pad": 2, "flip": True},
    }
    sources = [open_data({**config, "source": source}) for source in ("resident", "streaming")]
    assert [data.kind for data in sources] == ["resident", "streaming"]

    def batches(data):
        load_train, load_eval = jax.jit(data.load_train), jax.jit(data.load_eval)
        for xs in data.train_batches(1):
            shard = {name: value[0] for name, value in xs.items()}
            yield load_train(data.arrays["train"], shard, 1)
        for split in ("held_out", "test"):
            for xs in data.eval_batches(split):
                shard = {name: value[0] for name, value in xs.items()}
                yield load_eval(data.arrays[split], shard)

    for one, other in zip(*map(batches, sources), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def pillow_center_crop(image, resize, crop):
    """torchvision's Resize and CenterCrop."""
    shorter = min(image.size)
    width, height = (int(resize * side / shorter) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - crop) / 2), round((height - crop) / 2)
    return np.asarray(image.crop((left, top, left + crop, top + crop)))


def test_evaluation_crop_equals_pillow(photo_folder):
    config = photo_config(photo_folder, image_size=33, eval_resize=38)
    (xs,) = open_data(config).eval_batches("test")
    split = find_set("folder", str(photo_folder), None).splits["test"]
    for i in range(7):
        picture = Image.open(io.BytesIO(split.read(i))).convert("RGB")
        np.testing.assert_array_equal(xs["image"][0, i], pillow_center_crop(picture, 38, 33))


@pytest.mark.parametrize("processes", [0, 1])
def test_the_size_in_evaluation_may_be_another(photo_folder, processes):
    config = {"eval_size": 33, "eval_resize": 38, "reader_processes": processes}
    data = open_data(photo_config(photo_folder, image_size=17, **config))
    plain = open_data(photo_config(photo_folder, image_size=17))
    assert (data.image_shape, data.eval_shape) == ((17, 17, 3), (33, 33, 3))
    for xs, same in zip(data.train_batches(1), plain.train_batches(1), strict=True):
        jax.tree.map(np.testing.assert_array_equal, xs, same)
    (xs,) = data.eval_batches("test")
    split = find_set("folder", str(photo_folder), None).splits["test"]
    for i in range(7):
        picture = Image.open(io.BytesIO(split.read(i))).convert("RGB")
        np.testing.assert_array_equal(xs["image"][0, i], pillow_center_crop(picture, 38, 33))


def test_larger_evaluation_without_random_crops_is_resized_as_without(photo_folder):
    config = {"augment": {"flip": True}, "source": "streaming"}
    data = open_data(photo_config(photo_folder, image_size=17, eval_size=33, **config))
    plain = open_data(photo_config(photo_folder, image_size=33, **config))
    (xs,), (same,) = data.eval_batches("test"), plain.eval_batches("test")
    np.testing.assert_array_equal(xs["image"], same["image"])
    small = open_data(photo_config(photo_folder, image_size=17, **config))
    xs, same = next(data.train_batches(0)), next(small.train_batches(0))
    np.testing.assert_array_equal(xs["image"], same["image"])


@pytest.mark.parametrize("processes", [0, 1])
def test_repetitions_of_a_photograph_have_crops_of_their_own(photo_folder, processes):
    data = open_data(photo_config(photo_folder, repeats=4, reader_processes=processes))
    (xs, *_) = data.train_batches(2)
    split = find_set("folder", str(photo_folder), None).splits["train"]
    for image, i, copy in zip(*(xs[name][0] for name in ("image", "index", "copy")), strict=True):
        pixels, _ = records.decode_record(split, int(i), 3)
        numbers = crops.sample(0, 2, np.array([i]), np.array([copy]))[0]
        box = crops.random_resized(numbers, *pixels.shape[:2], (0.08, 1.0))
        want = image_files.crop_and_resize(pixels, box, (16, 16))
        np.testing.assert_array_equal(image, want)
    assert len(np.unique(xs["index"])) == 2


def test_evaluation_of_real_photographs_equals_pillow(tfds_dir):
    config = {"dataset": "imagenet_photos", "data_dir": str(tfds_dir), "batch_size": 8}
    data = open_data({**config, "augment": {"min_area": 0.08}, "eval_resize": 256})
    assert data.image_shape == (224, 224, 3)
    xs = next(data.eval_batches("test"))
    split = find_set("imagenet_photos", str(tfds_dir), None).splits["test"]
    for i in range(4):
        pixels, label = records.decode_record(split, i, 3)
        want = pillow_center_crop(Image.fromarray(pixels), 256, 224)
        np.testing.assert_array_equal(xs["image"][0, i], want)
        assert xs["label"][0, i] == label


def test_training_crops_are_pillow_s_within_one_level(photo_folder):
    (xs, *_) = open_data(photo_config(photo_folder, image_size=33)).train_batches(2)
    split = find_set("folder", str(photo_folder), None).splits["train"]
    for image, i in zip(xs["image"][0], xs["index"][0], strict=True):
        picture = Image.open(io.BytesIO(split.read(int(i)))).convert("RGB")
        numbers = crops.sample(0, 2, np.array([i]))[0]
        top, left, height, width = crops.random_resized(
            numbers, picture.height, picture.width, (0.08, 1.0)
        )
        picture = picture.crop((left, top, left + width, top + height))
        want = np.asarray(picture.resize((33, 33), Image.Resampling.BILINEAR), int)
        assert np.abs(want - image).max() <= 1


def test_each_record_is_read_once_and_only_those_asked_for(photo_folder, monkeypatch):
    """Records are read several at a time, even if their number is not a multiple of that."""
    monkeypatch.setattr(streaming, "TOGETHER", 5)
    folder = find_set("folder", str(photo_folder), None)
    read = []

    def noted(i):
        read.append(int(i))
        return folder.splits["train"].read(i)

    train = dataclasses.replace(folder.splits["train"], read=noted)
    noting = dataclasses.replace(folder, splits={**folder.splits, "train": train})
    config = from_plain(photo_config(photo_folder))
    data = streaming.open_streaming(config, noting, Shards())
    for start, count in ((0, 24), (1, 16)):
        read.clear()
        index = [i for xs in data.train_batches(0, start) for i in xs["index"].ravel()]
        assert len(read) == count
        assert sorted(read) == sorted(index)


def test_squares_are_resized_without_aspect_and_cropped_at_random(photo_folder):
    """Each training image is a window of Pillow's square. Evaluation uses the central one."""
    config = photo_config(photo_folder, image_size=33, square_resize=38, augment={})
    data = open_data(config)
    sets = find_set("folder", str(photo_folder), None).splits
    corners = set()
    for name, batches in (("train", data.train_batches(0)), ("test", data.eval_batches("test"))):
        for xs in batches:
            for image, i in zip(xs["image"][0], xs["index"][0], strict=True):
                picture = Image.open(io.BytesIO(sets[name].read(int(i)))).convert("RGB")
                square = np.asarray(picture.resize((38, 38), Image.Resampling.BILINEAR), int)
                windows = np.lib.stride_tricks.sliding_window_view(square, (33, 33), (0, 1))
                error = np.abs(np.moveaxis(windows, 2, 4) - image).max((2, 3, 4))
                assert error.min() == 0
                corner = np.unravel_index(error.argmin(), error.shape)
                if name == "train":
                    corners.add(corner)
                else:
                    assert corner == (2, 2)
    assert len(corners) > 12
    assert {0, 5} <= {int(place) for corner in corners for place in corner}
    assert not np.array_equal(*(next(data.train_batches(e))["image"] for e in (0, 1)))


def image_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("images")]


def test_the_first_unreadable_file_is_named_and_the_threads_end(photo_folder, tmp_path):
    root = shutil.copytree(photo_folder, tmp_path / "photos")
    split = find_set("folder", str(root), None).splits["train"]
    config = photo_config(root)
    order = np.concatenate([xs["index"].ravel() for xs in open_data(config).train_batches(0)])
    for place in (13, 12, 22):
        broken = root / split.name(order[place])
        broken.write_bytes(broken.read_bytes()[:90])
    batches = open_data(config).train_batches(0)
    next(batches)
    with pytest.raises(UserError, match="is not a readable image") as caught:
        next(batches)
    assert str(caught.value).startswith(split.name(order[12]))
    assert not image_threads()


def test_threads_end_with_the_epoch_and_where_it_is_left(photo_folder):
    data = open_data(photo_config(photo_folder))
    for _ in data.train_batches(0):
        assert image_threads()
    assert not image_threads()
    batches = data.eval_batches("test")
    next(batches)
    batches.close()
    assert not image_threads()


def test_an_error_ends_the_process(photo_folder, tmp_path):
    """Even if other threads still have images to decode."""
    root = shutil.copytree(photo_folder, tmp_path / "photos")
    for path in (root / "train/bee").iterdir():
        path.write_bytes(b"")
    code = (
        "from cutmix_jax.data import open_data; "
        f"list(open_data({photo_config(root)!r}).train_batches(0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "is not a readable image" in done.stderr


def test_an_image_of_another_size_than_the_set_says_is_named(toy_set):
    data_dir, *_ = toy_set(shape=(9, 8, 3))
    config = {"dataset": "toys", "data_dir": str(data_dir), "batch_size": 8}
    data = open_data({**config, "source": "streaming"})
    with pytest.raises(UserError, match=r"of train \(in .*\) is 8x8, but toys says 9x8"):
        list(data.train_batches(0))


def test_label_outside_the_classes_is_an_error(toy_set):
    data_dir, *_ = toy_set(num_classes=7)
    config = {"dataset": "toys", "data_dir": str(data_dir), "batch_size": 8}
    data = open_data({**config, "source": "streaming"})
    with pytest.raises(UserError, match="labels from 0 to 6 are expected"):
        list(data.train_batches(0))


def test_tensorflow_stays_away(photo_folder):
    code = (
        "import sys; from cutmix_jax.data import open_data; "
        f"data = open_data({photo_config(photo_folder)!r}); "
        "list(data.train_batches(0)), list(data.eval_batches('test')); "
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
