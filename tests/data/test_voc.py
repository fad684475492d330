"""PASCAL VOC's folder tree and TFDS's records: what is read, and which mistakes are named."""

import re

import numpy as np
import pytest
from PIL import Image

from cutmix_jax import UserError
from cutmix_jax.data import boxes, records, voc, voc_records
from cutmix_jax.data.objects import open_objects

from .conftest import (
    encode,
    red_object,
    tree_examples,
    voc_config,
    write_tree,
    write_voc_records,
    write_xml,
)


def found(image):
    """The box of the red pixels."""
    red = image[..., 0].astype(int) - image[..., 1] > 80
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    return [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]


def test_boxes_are_half_open_pixels_of_the_padded_images(tree):
    data = open_objects(voc_config(tree))
    assert data.image_shape == (12, 16, 3)
    assert data.examples == {"train": 3, "test": 2}
    assert data.class_names == voc.CLASS_NAMES
    assert data.num_classes == 20
    for part in data.arrays.values():
        assert part["size"].tolist() == [[10, 16], [11, 16], [12, 16]][: len(part["size"])]
        for image, (height, width), (box,) in zip(
            part["image"], part["size"], part["boxes"], strict=True
        ):
            assert found(image) == box.tolist()
            assert not image[height:].any()
            assert image[height - 1, width - 1].tolist() == [90, 90, 90]
    assert data.arrays["train"]["label"].tolist() == [[voc.CLASS_NAMES.index("dog")]] * 3
    assert data.arrays["test"]["label"].tolist() == [[voc.CLASS_NAMES.index("cat")]] * 2


@pytest.mark.parametrize("inside", ["", "VOCdevkit"])
def test_years_are_joined(tmp_path, inside):
    devkit = tmp_path / inside
    write_tree(devkit / "VOC2007", {"trainval": tree_examples(), "test": tree_examples(3)})
    write_tree(devkit / "VOC2012", {"trainval": tree_examples(0, 4, "cat")})
    data = open_objects({"dataset": "voc", "data_dir": str(tmp_path), "batch_size": 7})
    assert data.examples == {"train": 7, "test": 3}
    dog, cat = map(voc.CLASS_NAMES.index, ("dog", "cat"))
    assert data.arrays["train"]["label"].ravel().tolist() == [dog] * 3 + [cat] * 4
    sides = {"train": "2007_trainval", "test": "test"}
    alone = open_objects(voc_config(devkit / "VOC2007", voc=sides))
    assert alone.examples == {"train": 3, "test": 3}


def test_a_class_that_voc_does_not_have_is_refused_in_its_own_trees(tmp_path):
    write_tree(tmp_path / "VOC2007", {"train": tree_examples(name="hound")})
    with pytest.raises(UserError, match=r"000000\.xml has the class 'hound', which is unknown"):
        open_objects(voc_config(tmp_path, voc={"train": "2007_train", "test": "2007_train"}))


def test_other_trees_have_their_own_classes(tmp_path):
    zebra, apple = tree_examples(0, 2, "zebra"), tree_examples(2, 2, "apple")
    tree = write_tree(tmp_path / "fruit", {"train": zebra | apple, "val": zebra})
    assert open_objects(voc_config(tree)).class_names == ("apple", "zebra")
    given = open_objects(voc_config(tree, voc={"classes": ("zebra", "pear", "apple")}))
    assert given.class_names == ("zebra", "pear", "apple")
    assert given.arrays["train"]["label"].ravel().tolist() == [0, 0, 2, 2]
    with pytest.raises(UserError, match=r"the class 'apple', which is unknown .*voc\.classes"):
        open_objects(voc_config(tree, voc={"classes": ("zebra",)}))
    with pytest.raises(UserError, match=r"voc\.classes is .* none of them twice"):
        open_objects(voc_config(tree, voc={"classes": ("zebra", "zebra")}))


def test_long_images_are_shrunk_with_their_boxes(tmp_path):
    tall, wide = (red_object(400, 240, (80, 60, 200, 180)), red_object(90, 120, (30, 30, 60, 90)))
    split = {name: (image, [one]) for name, (image, one) in zip("ab", (tall, wide), strict=True)}
    tree = write_tree(tmp_path / "tree", {"train": split})
    part = open_objects(voc_config(tree, voc={"test": "train", "max_side": 100})).arrays["train"]
    assert part["size"].tolist() == [[100, 60], [75, 100]]
    np.testing.assert_allclose(part["boxes"][0, 0], [20, 15, 50, 45])
    np.testing.assert_allclose(part["boxes"][1, 0], [25, 25, 50, 75])
    for image, (height, width), box, source in zip(
        part["image"], part["size"], part["boxes"][:, 0], (tall[0], wide[0]), strict=True
    ):
        np.testing.assert_allclose(found(image), box, atol=1)
        expected = Image.fromarray(source).resize((width, height), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(image[:height, :width], expected)
        assert not image[height:].any()
        assert not image[:, width:].any()


def test_objects_are_padded_and_images_may_have_none(tmp_path):
    image, one = red_object(10, 12, (1, 2, 5, 9))
    hard = one | {"name": "cat", "difficult": 1, "corners": (1, 1, 12, 10)}
    split = {"a": (image, [one, hard]), "b": (image, []), "c": (image, [one | {"difficult": 0}])}
    tree = write_tree(tmp_path / "tree", {"train": split, "val": {"b": (image, [])}})
    data = open_objects(voc_config(tree))
    part = data.arrays["train"]
    dog, cat = map(voc.CLASS_NAMES.index, ("dog", "cat"))
    assert part["label"].tolist() == [[dog, cat], [-1, -1], [dog, -1]]
    assert part["difficult"].tolist() == [[False, True], [False, False], [False, False]]
    assert part["boxes"][0].tolist() == [[1, 2, 5, 9], [0, 0, 10, 12]]
    assert not part["boxes"][1].any()
    assert data.arrays["test"]["label"].tolist() == [[-1, -1]]
    nothing = open_objects(voc_config(tree, batch_size=1, voc={"train": "val"}))
    assert nothing.arrays["train"]["label"].tolist() == [[-1]]


def test_a_box_that_reaches_over_the_edge_is_clipped(tree):
    write_xml(
        tree / "Annotations/000000.xml", (10, 16), [{"name": "dog", "corners": (0, -1, 17.5, 11)}]
    )
    part = open_objects(voc_config(tree)).arrays["train"]
    assert part["boxes"][0].tolist() == [[0, 0, 10, 16]]


def test_training_images_are_held_out(tree):
    data = open_objects(
        voc_config(tree, held_out=1, test_split="held_out", voc={"train": "train", "test": "no"})
    )
    assert data.examples == {"train": 2, "test": 1}
    assert open_objects(voc_config(tree, train_examples=2)).examples == {"train": 2, "test": 2}


def test_annotations_are_read_once(tree, monkeypatch):
    first = open_objects(voc_config(tree))
    path = tree / "Annotations/000001.xml"
    with monkeypatch.context() as patch:
        patch.setattr(boxes, "read_xml", None)
        second = open_objects(voc_config(tree))
    for name, values in first.arrays["train"].items():
        np.testing.assert_array_equal(values, second.arrays["train"][name])
    path.write_text(path.read_text().replace("<xmax>13", "<xmax>9").replace("dog", "bird"))
    changed = open_objects(voc_config(tree)).arrays["train"]
    assert changed["label"][1] == voc.CLASS_NAMES.index("bird")


def replace(tree, old, new):
    path = tree / "Annotations/000001.xml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


OBJECT = {"name": "dog", "corners": (1, 1, 4, 4)}
OUTSIDE = {"name": "dog", "corners": (17, 1, 20, 4)}

BROKEN = {
    "no folder": (lambda tree: tree.rename(tree.parent / "other"), "is not a folder"),
    "no tree": (
        lambda tree: (tree / "ImageSets").rename(tree / "Sets"),
        r"no ImageSets/Main for the split 'train' of config\.voc\.train",
    ),
    "no such split": (
        lambda tree: (tree / "ImageSets/Main/val.txt").rename(tree / "ImageSets/Main/test.txt"),
        r"no split 'val', only test, train\. Choose one with --config\.voc\.test",
    ),
    "an empty split": (
        lambda tree: (tree / "ImageSets/Main/val.txt").write_text("\n"),
        r"val\.txt lists no image",
    ),
    "an image listed twice": (
        lambda tree: (tree / "ImageSets/Main/val.txt").write_text("000001\n000001\n"),
        r"voc\.test=val has .*000001\.jpg twice",
    ),
    "no annotation": (
        lambda tree: (tree / "Annotations/000001.xml").unlink(),
        r"1 of the 3 images in .*train\.txt have no annotation file \(.*000001\.xml\)",
    ),
    "no image": (
        lambda tree: (tree / "JPEGImages/000001.jpg").unlink(),
        r"1 of the 3 images in .*train\.txt have no image file \(.*000001\.jpg\)",
    ),
    "a damaged image": (
        lambda tree: (tree / "JPEGImages/000001.jpg").write_bytes(b"\xff\xd8oh"),
        r"000001\.jpg is not a readable image",
    ),
    "broken XML": (
        lambda tree: replace(tree, "</annotation>", ""),
        r"000001\.xml is not an annotation file \(no element found",
    ),
    "no size": (
        lambda tree: replace(tree, "size>", "sizes>"),
        r"not an annotation file \(size/height is missing\)",
    ),
    "no box": (
        lambda tree: replace(tree, "bndbox>", "box>"),
        r"not an annotation file \(bndbox/ymin is missing\)",
    ),
    "a word for a number": (
        lambda tree: replace(tree, "<xmax>", "<xmax>about "),
        r"not an annotation file \(could not convert",
    ),
    "an unknown class": (
        lambda tree: replace(tree, "dog", "hound"),  # so the classes are those of train
        r"000003\.xml has the class 'cat', which is unknown \(.* dog, hound\)",
    ),
    "a class without a name": (
        lambda tree: replace(tree, "dog", " "),
        r"000001\.xml has the class '', which is unknown",
    ),
    "another size": (
        lambda tree: replace(tree, "<width>16", "<width>61"),
        r"000001\.xml is for an image of height 11 and width 61, but .*000001\.jpg has 11 and 16",
    ),
    "a reversed box": (
        lambda tree: replace(tree, "<xmax>", "<xmax>-"),
        r"000001\.xml has the box \[2\.0, 4\.0, 7\.0, -12\.0\] \(.* in pixels of the image\)",
    ),
    "an empty box": (
        lambda tree: replace(tree, "<xmax>12", "<xmax>4"),
        r"has the box \[2\.0, 4\.0, 7\.0, 4\.0\]",
    ),
    "a box outside": (
        lambda tree: write_xml(tree / "Annotations/000001.xml", (11, 16), [OUTSIDE]),
        r"has the box \[0\.0, 16\.0, 4\.0, 20\.0\]",
    ),
    "a box of no number": (
        lambda tree: replace(tree, "<xmax>12", "<xmax>nan"),
        "has the box",
    ),
    "too many objects": (
        lambda tree: write_xml(tree / "Annotations/000001.xml", (11, 16), [OBJECT] * 101),
        r"000001\.xml has 101 objects, but at most 100",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_trees_are_refused(tree, case):
    damage, match = BROKEN[case]
    damage(tree)
    with pytest.raises(UserError, match=match) as caught:
        open_objects(voc_config(tree))
    assert "\n" not in str(caught.value)


def test_a_hundred_objects_are_read(tree):
    write_xml(tree / "Annotations/000001.xml", (11, 16), [OBJECT] * 100)
    assert (open_objects(voc_config(tree)).arrays["train"]["label"] >= 0).sum(1).tolist() == [
        1,
        100,
        1,
    ]


def test_images_that_do_not_fit_into_memory_are_refused(tree):
    match = r"voc takes .* MiB in device memory, .*resident_limit_mib=0\. Use .*source=streaming"
    with pytest.raises(UserError, match=match):
        open_objects(voc_config(tree, source="resident", resident_limit_mib=0))


def test_real_photographs_are_read_as_a_plain_loop_reads_them(voc_sample):
    data = open_objects(voc_config(voc_sample, voc={"max_side": 1000}))
    assert data.examples == {"train": 36, "test": 22}
    assert data.class_names == voc.CLASS_NAMES
    assert data.image_shape == (640, 640, 3)
    total = 0
    for split, file in (("train", "train"), ("test", "val")):
        part = data.arrays[split]
        ids = (voc_sample / f"ImageSets/Main/{file}.txt").read_text().split()
        for i, name in enumerate(ids):
            image = np.asarray(Image.open(voc_sample / f"JPEGImages/{name}.jpg").convert("RGB"))
            height, width, _ = image.shape
            assert part["size"][i].tolist() == [height, width]
            np.testing.assert_array_equal(part["image"][i, :height, :width], image)
            text = (voc_sample / f"Annotations/{name}.xml").read_text()
            names = re.findall(r"<name>(\w+)</name>", text)
            numbers = {
                key: [int(n) for n in re.findall(rf"<{key}>(\d+)</{key}>", text)]
                for key in ("xmin", "ymin", "xmax", "ymax", "difficult")
            }
            n = len(names)
            labels = [data.class_names[label] for label in part["label"][i, :n]]
            assert labels == names
            assert (part["label"][i, n:] == -1).all()
            top, left, bottom, right = part["boxes"][i, :n].T
            assert (left + 1).tolist() == numbers["xmin"]
            assert (top + 1).tolist() == numbers["ymin"]
            assert right.tolist() == numbers["xmax"]
            assert bottom.tolist() == numbers["ymax"]
            assert part["difficult"][i, :n].tolist() == [d == 1 for d in numbers["difficult"]]
            total += n
    assert total == 245


class TestRecords:
    """voc/2007 and voc/2012 as TFDS prepares them."""

    @pytest.fixture
    def both(self, tmp_path):
        """Configs of VOC's folders and of records with the same images and objects."""
        image, one = red_object(10, 12, (1, 2, 5, 9))
        fraction = one | {"corners": (1.25, 2, 7.5, 9), "name": "sofa", "difficult": 1}
        train = tree_examples(0, 3) | {"000008": (image, []), "000009": (image, [one, fraction])}
        val = tree_examples(4, 3, "cat")
        trainval = dict(sorted((train | val).items()))
        test, later = tree_examples(20, 4), tree_examples(30, 2, "bird")
        devkit = tmp_path / "VOCdevkit"
        write_tree(devkit / "VOC2007", {"trainval": trainval, "test": test})
        write_tree(devkit / "VOC2012", {"trainval": later})
        records = tmp_path / "records"
        write_voc_records(records, "2007", {"train": train, "validation": val, "test": test})
        write_voc_records(records, "2012", {"train": later, "validation": tree_examples(40, 1)})
        voc_splits = {"train": "2012_train+2007_trainval", "test": "2007_test"}
        (devkit / "VOC2012/ImageSets/Main/train.txt").write_text("\n".join(later))
        return [voc_config(folder, voc=dict(voc_splits)) for folder in (devkit, records)]

    def test_they_have_the_bits_and_the_order_of_folders(self, both):
        folders, found = map(open_objects, both)
        assert found.examples == folders.examples == {"train": 10, "test": 4}
        assert found.class_names == folders.class_names
        assert found.names == folders.names
        for split, part in found.arrays.items():
            for name, values in part.items():
                assert values.dtype == folders.arrays[split][name].dtype
                np.testing.assert_array_equal(values, folders.arrays[split][name])

    @pytest.mark.parametrize("processes", [0, 1])
    def test_they_are_streamed(self, both, processes):
        config = both[1] | {"source": "streaming", "reader_processes": processes}
        images = open_objects(both[0]).arrays["train"]["image"]
        for xs in open_objects(config).train_batches(0):
            np.testing.assert_array_equal(xs["image"], images[xs["index"]])

    def test_annotations_are_read_once(self, both, monkeypatch):
        expected = open_objects(both[1])
        monkeypatch.setattr(voc_records, "_annotation", None)
        monkeypatch.setattr(records, "file_name", None)
        assert open_objects(both[1]).names == expected.names
        other = both[1] | {"voc": {"train": "2007_val+2007_train", "test": "2007_test"}}
        with pytest.raises(TypeError):  # other splits are other annotations
            open_objects(other)

    @pytest.mark.parametrize(
        ("train", "match"),
        [
            ("train", r"voc\.train has the split 'train', but YEAR_SPLIT is expected"),
            ("2007_all", "one of train, val, trainval, test"),
            ("2010_train", r"has no 2010, only 2007, 2012\. Prepare voc/2010"),
            ("2007_trainval+2007_val", r"has the records of 2007 validation twice"),
            ("2012_test", r"voc/2012 in .* has no records of test"),
        ],
    )
    def test_splits_that_do_not_exist_are_refused(self, both, train, match):
        both[1]["voc"]["train"] = train
        with pytest.raises(UserError, match=match) as caught:
            open_objects(both[1])
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"corners": (9, 9, 3, 12)}, r"record 0 of train .* has the box .* in pixels"),
            ({"corners": (20, 1, 30, 5)}, "which covers none of it"),
        ],
    )
    def test_a_bad_box_is_named(self, tmp_path, change, match):
        image, one = red_object(10, 12, (1, 2, 5, 9))
        bad = {"000001": (image, [one | change])}
        root = write_voc_records(tmp_path, "2007", {"train": bad, "test": tree_examples()})
        sides = {"train": "2007_train", "test": "2007_test"}
        with pytest.raises(UserError, match=match):
            open_objects(voc_config(root, batch_size=1, voc=sides))

    def test_other_records_are_refused(self, tmp_path, write_tfds, toys):
        images, labels = toys(4)
        examples = [(encode(image), label) for image, label in zip(images, labels, strict=True)]
        write_tfds(tmp_path, {"train": examples}, name="voc", config="2007")
        with pytest.raises(UserError, match="does not have the boxes, labels and difficult"):
            open_objects(voc_config(tmp_path, voc={"train": "2007_train", "test": "2007_train"}))
