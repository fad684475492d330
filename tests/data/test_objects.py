"""Images with several objects: what a detector sees, resident or streamed, and what is refused."""

import doctest

import jax
import numpy as np
import pytest

from cutmix_jax import UserError
from cutmix_jax.checkpoint import digest
from cutmix_jax.data import Shards, cache, objects, open_data, shapes
from cutmix_jax.data.objects import open_objects

from .conftest import encode, photograph, red_object, voc_config, write_tree

CONFIG = {
    "dataset": "shapes",
    "max_objects": 3,
    "image_size": 24,
    "train_examples": 20,
    "held_out": 6,
    "batch_size": 8,
}


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch):
    monkeypatch.setattr(shapes, "TEST_EXAMPLES", 11)


def test_several_shapes_are_those_that_are_drawn():
    data = open_objects(CONFIG)
    assert data.kind == "resident"
    assert data.class_names == shapes.CLASS_NAMES
    assert data.image_shape == (24, 24, 3)
    assert data.examples == {"train": 20, "held_out": 6, "test": 11}
    assert data.digest is None
    part = data.arrays["test"]
    assert {name: (values.shape[1:], values.dtype.name) for name, values in part.items()} == {
        "image": ((24, 24, 3), "uint8"),
        "size": ((2,), "int32"),
        "boxes": ((3, 4), "float32"),
        "label": ((3,), "int32"),
        "difficult": ((3,), "bool"),
    }
    counts = set()
    for i in range(11):
        example = shapes.draw_example(shapes.SEEDS["test"], i, 24, 3)
        n = len(example.labels)
        np.testing.assert_array_equal(part["image"][i], example.image)
        np.testing.assert_allclose(part["boxes"][i, :n], example.boxes * 24)
        assert part["label"][i].tolist() == example.labels.tolist() + [-1] * (3 - n)
        assert not part["boxes"][i, n:].any()
        counts.add(n)
    assert counts == {1, 2, 3}
    assert not part["difficult"].any()
    assert (part["size"] == 24).all()


def test_held_out_shapes_are_no_training_shapes():
    data = open_objects(CONFIG)
    drawn = [shapes.draw_example(0, i, 24, 3).image.tobytes() for i in range(26)]
    train, held = (
        [drawn.index(image.tobytes()) for image in data.arrays[split]["image"]]
        for split in ("train", "held_out")
    )
    assert sorted(train + held) == list(range(26))
    tested = open_objects({**CONFIG, "test_split": "held_out"})
    assert tested.examples == {"train": 20, "test": 6}
    np.testing.assert_array_equal(tested.arrays["test"]["boxes"], data.arrays["held_out"]["boxes"])


def test_shapes_are_drawn_once(monkeypatch):
    several = open_objects(CONFIG)
    classified = open_data({**CONFIG, "max_objects": 1})
    monkeypatch.setattr(shapes, "draw_example", None)
    np.testing.assert_array_equal(
        open_objects(CONFIG).arrays["train"]["image"], several.arrays["train"]["image"]
    )
    # One object per image: the stored arrays of the classifier.
    single = open_objects({**CONFIG, "max_objects": 1})
    for split, part in single.arrays.items():
        np.testing.assert_array_equal(part["image"], classified.arrays[split]["image"])
        np.testing.assert_array_equal(part["label"][:, 0], classified.arrays[split]["label"])
        np.testing.assert_array_equal(part["boxes"], classified.boxes(split))
    counts = {"train": 26, "test": 11}
    assert cache.is_stored("shapes", f"{shapes.VERSION} 24 {counts}")


def test_batches_are_gathered_in_the_order_of_classification():
    shards = Shards(local_devices=2)
    data = open_objects(CONFIG, shards)
    ours, theirs = (
        list(d.train_batches(3, 1)) for d in (data, open_data({**CONFIG, "max_objects": 1}, shards))
    )
    assert data.steps_per_epoch == 2
    assert len(ours) == len(theirs) == 1
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    one_device = jax.tree.map(lambda x: x[1], ours[0])
    assert jax.tree.map(lambda x: (x.shape, x.dtype), one_device) == jax.tree.map(
        lambda x: (x.shape, x.dtype), data.train_shapes[0]
    )
    batch = jax.jit(data.load_train)(data.arrays["train"], one_device, 3)
    assert batch.keys() == data.arrays["train"].keys()
    for name, values in batch.items():
        expected = data.arrays["train"][name][one_device["index"]]
        np.testing.assert_array_equal(values, expected)
        assert values.dtype == expected.dtype


def test_every_test_image_is_evaluated_once():
    data = open_objects(CONFIG)
    labels = []
    for xs in data.eval_batches("test"):
        batch = jax.jit(data.load_eval)(data.arrays["test"], jax.tree.map(lambda x: x[0], xs))
        labels.append(batch["label"][batch["mask"]])
    np.testing.assert_array_equal(np.concatenate(labels), data.arrays["test"]["label"])


def test_a_moved_box_changes_the_digest_of_the_data():
    """So a run does not resume on other boxes."""
    arrays = open_objects(CONFIG).arrays
    part = arrays["train"]
    moved = part | {"boxes": part["boxes"] + np.float32([0, 0, 0, 1])}
    assert digest(dict(arrays)) == digest(dict(open_objects(CONFIG).arrays))
    assert digest(dict(arrays)) != digest(dict(arrays) | {"train": moved})


class TestStreaming:
    """Photographs of VOC's form, decoded for each batch."""

    @pytest.fixture
    def photographs(self, tmp_path):
        """Ten and five JPEG files of different sizes, some over max_side, with 0 to 2 objects."""
        splits = {}
        for split, start, count in (("train", 0, 10), ("val", 10, 5)):
            splits[split] = {}
            for i in range(start, start + count):
                image = photograph(i, 20 + 3 * i, 40 - 2 * i)
                _, one = red_object(*image.shape[:2], (2, 3 + i % 3, 7, 10 + i % 2))
                splits[split][f"{i:06d}"] = (
                    image,
                    [one, one | {"name": "cat", "difficult": 1}][: i % 3],
                )
        tree = write_tree(tmp_path / "tree", splits)
        for examples in splits.values():
            for name, (image, _) in examples.items():
                (tree / f"JPEGImages/{name}.jpg").write_bytes(encode(image, "jpeg"))
        return voc_config(tree, batch_size=4, held_out=1, voc={"max_side": 36})

    @staticmethod
    def batches_of(config):
        """An epoch, another one from its second step on, and the test images, on two devices."""
        data = open_objects(config, Shards(local_devices=2))

        def loaded(load, split, found, *epoch):
            for xs in found:
                for device in range(2):
                    own = jax.tree.map(lambda x, device=device: x[device], xs)
                    yield jax.device_get(load(data.arrays[split], own, *epoch)) | own

        train = [
            loaded(data.load_train, "train", data.train_batches(*at), at[0])
            for at in ((2,), (3, 1))
        ]
        test = loaded(data.load_eval, "test", data.eval_batches("test"))
        return data.kind, [batch for found in (*train, test) for batch in found]

    @pytest.mark.parametrize("processes", [0, 2])
    def test_batches_have_the_bits_of_resident_ones(self, photographs, processes):
        kind, expected = self.batches_of(photographs)
        assert kind == "resident"
        streamed = photographs | {"source": "streaming", "reader_processes": processes}
        kind, found = self.batches_of(streamed)
        assert kind == "streaming"
        assert len(found) == 2 * (2 + 1 + 2)
        for batch, other in zip(found, expected, strict=True):
            assert batch.keys() == other.keys()
            for name, values in batch.items():
                assert values.dtype == other[name].dtype
                np.testing.assert_array_equal(values, other[name])
        assert {tuple(size) for size in found[0]["size"]} <= {
            tuple(size) for size in open_objects(photographs).arrays["train"]["size"]
        }

    def test_only_images_are_streamed(self, photographs):
        resident, data = map(open_objects, (photographs, photographs | {"source": "streaming"}))
        for split, part in data.arrays.items():
            assert part.keys() == resident.arrays[split].keys() - {"image"}
        assert data.examples == resident.examples == {"train": 9, "held_out": 1, "test": 5}
        assert data.names == resident.names
        xs = next(data.train_batches(0))
        assert {name: (x[0].shape, x.dtype) for name, x in xs.items()} == {
            name: (x.shape, x.dtype) for name, x in data.train_shapes[0].items()
        }
        assert "pillow" in data.reader

    def test_images_from_elsewhere_are_loaded_like_resident_ones(self, photographs):
        """As the evaluation of detectors loads photographs."""
        load = open_objects(photographs | {"source": "streaming"}).load_eval
        arrays = open_objects(photographs).arrays["test"]
        xs = {"index": np.array([3, 1]), "mask": np.array([True, False])}
        batch = load(arrays, xs)
        np.testing.assert_array_equal(batch["image"], arrays["image"][xs["index"]])
        np.testing.assert_array_equal(batch["size"], arrays["size"][xs["index"]])

    def test_images_that_do_not_fit_are_streamed(self, photographs):
        assert open_objects(photographs | {"resident_limit_mib": 0}).kind == "streaming"

    @pytest.mark.parametrize("processes", [0, 1])
    def test_a_damaged_image_is_named(self, photographs, processes):
        config = photographs | {"source": "streaming", "reader_processes": processes}
        data = open_objects(config)
        path = f"{config['data_dir']}/JPEGImages/000012.jpg"
        with open(path, "rb+") as file:
            file.truncate(400)
        with pytest.raises(UserError, match=r"000012\.jpg is not a readable image") as caught:
            list(data.eval_batches("test"))
        assert "\n" not in str(caught.value)
        assert len(list(data.train_batches(0))) == 2, "other images are still read"
        with pytest.raises(UserError, match=r"000012\.jpg is not a readable image"):
            open_objects(photographs)

    def test_the_digest_changes_with_an_image_or_a_box(self, photographs):
        data = open_objects(photographs | {"source": "streaming"})
        before = [data.digest(split) for split in ("train", "test")]
        data.arrays["train"]["boxes"][0, 0, 0] += 1
        path = f"{photographs['data_dir']}/JPEGImages/000012.jpg"
        with open(path, "ab") as file:
            file.write(b"more")
        after = [data.digest(split) for split in ("train", "test")]
        assert before[0] != after[0]
        assert before[1] != after[1]


def test_the_example_is_right():
    result = doctest.testmod(objects)
    assert (result.attempted, result.failed) == (3, 0)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"dataset": "cifar10"}, "dataset=cifar10 is not for detectors"),
        ({"dataset": "voc"}, "max_objects is 3, but it is for shapes"),
        ({"dataset": "voc", "max_objects": 1}, "needs the folder that holds VOC2007"),
        ({"source": "streaming"}, "shapes is always resident, but .*streaming"),
        ({"test_split": "val"}, r"test_split is 'val', but .* --config\.voc\.test"),
        ({"augment": {"flip": True}}, r"config\.augment\.flip is True, but it is for classifiers"),
        ({"augment": {"min_area": 0.1}}, "Leave it at None"),
        ({"boxes_dir": "xml"}, "boxes_dir is 'xml'"),
        ({"max_objects": 0}, "max_objects is 0, but a finite number of at least 1"),
        ({"max_objects": 101}, "at most 100 was expected"),
        ({"max_objects": 50}, r"image_size=24 is too small .* at least 57 pixels"),
        ({"batch_size": 24}, "20 training examples are fewer than one batch"),
        ({"held_out": 0, "test_split": "held_out"}, r"--config\.held_out=N"),
        ({"resident_limit_mib": 0}, r"shapes takes 0\.1 MiB in device memory"),
    ],
)
def test_what_a_detector_cannot_use_is_refused(config, match):
    with pytest.raises(UserError, match=match) as caught:
        open_objects(CONFIG | config)
    assert "\n" not in str(caught.value)


def test_a_batch_that_devices_cannot_share_is_refused():
    with pytest.raises(UserError, match="batch_size is 8, which 3 devices"):
        open_objects(CONFIG, Shards(local_devices=3))


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"dataset": "voc", "data_dir": "."}, "voc has boxes instead of one label per image"),
        ({"dataset": "shapes", "max_objects": 2}, "max_objects is 2, but .* has one label"),
    ],
)
def test_a_classifier_does_not_get_several_objects(config, match):
    with pytest.raises(UserError, match=match):
        open_data(config)
