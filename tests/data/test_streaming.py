"""Streaming decodes each process's slice in the order of resident data; torchvision's crops."""

import dataclasses
import io
import shutil

import jax
import numpy as np
import pytest
from PIL import Image, ImageDraw

from cutmix_jax import UserError
from cutmix_jax.data import Shards, find_set, open_data, records
from cutmix_jax.data.settings import read_settings

tf = pytest.importorskip("tensorflow")

from cutmix_jax.data import streaming  # noqa: E402


def photo_config(photo_folder, **changes):
    return {
        "dataset": "folder",
        "data_dir": str(photo_folder),
        "batch_size": 8,
        "image_size": 16,
        "augment": {"min_area": 0.08, "flip": True},
        **changes,
    }


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
        "mask": ((1, 8), "bool"),
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
    """Without a random-resized crop both sources give the same batches, augmented alike."""
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
        want = pillow_center_crop(picture, 38, 33)
        # Pillow rounds between its two passes.
        difference = np.abs(xs["image"][0, i].astype(int) - want)
        assert difference.max() <= 2
        assert difference.mean() < 0.3


def test_evaluation_of_real_photographs_equals_pillow(tfds_dir):
    config = {"dataset": "imagenet_photos", "data_dir": str(tfds_dir), "batch_size": 8}
    data = open_data({**config, "augment": {"min_area": 0.08}, "eval_resize": 256})
    assert data.image_shape == (224, 224, 3)
    xs = next(data.eval_batches("test"))
    split = find_set("imagenet_photos", str(tfds_dir), None).splits["test"]
    for i in range(4):
        pixels, label = records.decode_record(split, i, 3)
        want = pillow_center_crop(Image.fromarray(pixels), 256, 224)
        assert np.abs(xs["image"][0, i].astype(int) - want).max() <= 2
        assert xs["label"][0, i] == label


@pytest.mark.parametrize("size", [(20, 300), (224, 224), (333, 150), (700, 501)])
@pytest.mark.parametrize("channels", [1, 3])
def test_one_side_after_the_other_equals_both_at_once(size, channels):
    """The resize of TensorFlow in one call, up to what rounds to either side of a half."""
    image = np.random.RandomState(0).randint(0, 256, (*size, channels), np.uint8)
    image[:5], image[-5:] = 0, 255  # the ends of the range stay within it
    got = streaming._resized(tf.constant(image), (224, 200)).numpy()
    want = np.round(tf.image.resize(image, (224, 200), antialias=True).numpy()).astype(int)
    assert got.dtype == np.uint8
    assert np.abs(got - want).max() <= 1
    assert (got != want).mean() < 1e-3


@pytest.mark.parametrize("channels", [1, 3])
def test_resize_equals_pillow(channels):
    image = np.random.RandomState(0).randint(0, 256, (300, 180, channels), np.uint8)
    picture = Image.fromarray(image if channels == 3 else image[..., 0])
    want = np.asarray(picture.resize((200, 224), Image.Resampling.BILINEAR), int)
    got = streaming._resized(tf.constant(image), (224, 200)).numpy()
    assert np.abs(got - want.reshape(224, 200, channels)).max() <= 1


def test_each_record_is_read_once_and_only_those_asked_for(photo_folder, monkeypatch):
    """Records are read several at a time, also where their number is no multiple of that."""
    monkeypatch.setattr(streaming, "READ_TOGETHER", 5)
    folder = find_set("folder", str(photo_folder), None)
    read = []

    def noted(i):
        read.append(int(i))
        return folder.splits["train"].read(i)

    train = dataclasses.replace(folder.splits["train"], read=noted)
    noting = dataclasses.replace(folder, splits={**folder.splits, "train": train})
    settings = read_settings(photo_config(photo_folder))
    data = streaming.open_streaming(settings, noting, Shards())
    for start, count in ((0, 24), (1, 16)):
        read.clear()
        index = [i for xs in data.train_batches(0, start) for i in xs["index"].ravel()]
        assert len(read) == count
        assert sorted(read) == sorted(index)


def test_bytes_of_a_record_come_whole():
    split = records.Split(3, lambda i: b"\0ab\0"[: i + 2] + b"\0" * i, np.arange(3), str)
    encoded, labels = streaming._fetch(split, np.array([2, 0]))
    assert encoded.numpy().tolist() == [b"\0ab\0\0\0", b"\0a"]
    assert labels.numpy().tolist() == [2, 0]


def test_squares_are_resized_without_aspect_and_cropped_at_random(photo_folder):
    """Each training image is a window of Pillow's square; evaluation has the central one."""
    config = photo_config(photo_folder, image_size=33, square_resize=38, augment={})
    data = open_data(config)
    sets = find_set("folder", str(photo_folder), None).splits
    corners = set()
    for name, batches in (("train", data.train_batches(0)), ("test", data.eval_batches("test"))):
        for xs in batches:
            for image, i in zip(xs["image"][0][xs["mask"][0]], xs["index"][0], strict=False):
                picture = Image.open(io.BytesIO(sets[name].read(int(i)))).convert("RGB")
                square = np.asarray(picture.resize((38, 38), Image.Resampling.BILINEAR), int)
                windows = np.lib.stride_tricks.sliding_window_view(square, (33, 33), (0, 1))
                error = np.abs(np.moveaxis(windows, 2, 4) - image).max((2, 3, 4))
                assert error.min() <= 2
                corner = np.unravel_index(error.argmin(), error.shape)
                if name == "train":
                    corners.add(corner)
                else:
                    assert corner == (2, 2)
    assert len(corners) > 12
    assert {0, 5} <= {int(place) for corner in corners for place in corner}
    assert not np.array_equal(*(next(data.train_batches(e))["image"] for e in (0, 1)))


def boxes(height, width, count=3000, area=(0.08, 1.0)):
    """int [count, 4] of random-resized boxes."""

    @tf.function
    def draw(seeds):
        return tf.map_fn(
            lambda seed: tf.stack(streaming.random_resized_box(seed, height, width, area)),
            seeds,
            fn_output_signature=tf.int32,
            parallel_iterations=1,
        )

    return draw(np.stack([np.full(count, 7), np.arange(count)], axis=1)).numpy()


def test_random_resized_boxes_are_torchvision_s():
    """A box of share a fits a square if its ratio is at most 1/a: known moments, loosely bound."""
    side = 400
    top, left, height, width = boxes(side, side).T
    share, ratio = height * width / side**2, width / height
    assert share.min() > 0.078
    assert ratio.min() > 0.74
    assert ratio.max() < 1.35
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= side).all()
    assert (left + width <= side).all()
    # A reference drawn independently, by rejection in NumPy.
    random = np.random.RandomState(0)
    a = random.uniform(0.08, 1, (60000, 10))
    r = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3), (60000, 10)))
    fits = (a * r <= 1) & (a / r <= 1)
    first = fits.argmax(1)
    want = np.where(fits.any(1), a[np.arange(60000), first], 1.0)
    error = 5 * want.std() / np.sqrt(3000)
    assert abs(share.mean() - want.mean()) < error
    for q in (0.1, 0.5, 0.9):
        assert abs(np.quantile(share, q) - np.quantile(want, q)) < 0.04
    # Symmetric in the logarithm: neither tall nor wide boxes are preferred.
    assert abs(np.log(ratio).mean()) < 5 * np.log(ratio).std() / np.sqrt(3000)
    # The place is uniform: relative offsets average to one half.
    free = side - height > 20
    assert abs((top[free] / (side - height[free])).mean() - 0.5) < 0.03
    assert abs((left[free] / np.maximum(side - width[free], 1)).mean() - 0.5) < 0.04


@pytest.mark.parametrize(
    ("size", "want"), [((100, 500), (0, 183, 100, 133)), ((500, 100), (183, 0, 133, 100))]
)
def test_elongated_images_fall_back_to_the_central_box(size, want):
    got = boxes(*size, count=4, area=(0.9, 1.0))
    np.testing.assert_array_equal(got, [want] * 4)


def test_area_can_be_the_whole_image():
    np.testing.assert_array_equal(boxes(60, 60, 1, (1.0, 1.0)), [[0, 0, 60, 60]])


def test_box_is_cut_out_of_jpeg_and_png_alike():
    picture = Image.new("RGB", (64, 48), (10, 200, 30))
    ImageDraw.Draw(picture).rectangle((16, 16, 31, 31), (200, 10, 90))
    for kind in ("png", "jpeg"):
        file = io.BytesIO()
        picture.save(file, kind, **({"quality": 100, "subsampling": 0} if kind == "jpeg" else {}))
        cut = streaming._decode(file.getvalue(), 3, lambda h, w: (16, 16, 16, 16)).numpy()
        assert cut.shape == (16, 16, 3)
        assert np.abs(cut.astype(int) - [200, 10, 90]).max() <= 3, kind


def test_unreadable_file_is_named(photo_folder, tmp_path):
    root = shutil.copytree(photo_folder, tmp_path / "photos")
    broken = root / "train/bee/07.JPEG"
    broken.write_bytes(broken.read_bytes()[:90])
    with pytest.raises(UserError, match=r"train/bee/07\.JPEG is not a readable image"):
        list(open_data(photo_config(root)).train_batches(0))


def test_label_outside_the_classes_is_an_error(toy_set):
    data_dir, *_ = toy_set(num_classes=7)
    config = {"dataset": "toys", "data_dir": str(data_dir), "batch_size": 8}
    data = open_data({**config, "source": "streaming"})
    with pytest.raises(UserError, match="labels from 0 to 6 are expected"):
        list(data.train_batches(0))


def test_missing_tensorflow_is_named(photo_folder, monkeypatch):
    real = records.importlib.util.find_spec
    monkeypatch.setattr(
        records.importlib.util,
        "find_spec",
        lambda name: None if name == "tensorflow" else real(name),
    )
    with pytest.raises(UserError, match="pip install tensorflow-cpu"):
        open_data(photo_config(photo_folder))


def test_tensorflow_leaves_the_accelerator_alone(monkeypatch):
    hidden = []
    monkeypatch.setattr(
        tf.config, "set_visible_devices", lambda devices, kind: hidden.append((devices, kind))
    )
    records.import_tensorflow()
    assert hidden == [([], "GPU"), ([], "TPU")]
