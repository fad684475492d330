"""Boxes stay on their object: a rectangle drawn at a box is found in the loaded pixels."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from cutmix_jax import UserError
from cutmix_jax.data import boxes, find_set, open_data
from cutmix_jax.data.records import decode_record, file_name

from .conftest import encode

RED, GRAY = (255, 0, 0), (90, 90, 90)


def drawn(random, height, width):
    """(image with a red rectangle, its box relative to the image)."""
    top, left = random.randint(0, height // 2), random.randint(0, width // 2)
    bottom, right = random.randint(top + 8, height), random.randint(left + 8, width)
    image = Image.new("RGB", (width, height), GRAY)
    ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), fill=RED)
    return np.asarray(image), np.array([top, left, bottom, right]) / ([height, width] * 2)


def found(image):
    """The box of the pixels that are more red than gray; empty if the crop shows none."""
    red = np.asarray(image, int)[..., 0] > (RED[0] + GRAY[0]) / 2
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    if not len(rows):
        return [0, 0, 0, 0]
    return [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]


@pytest.fixture
def rectangles(tmp_path, write_tfds):
    """make(sizes, box_key) -> data_dir: 12 training and 20 test images with a red rectangle."""

    def make(sizes, box_key="bbox", boxes_of=lambda box: [box]):
        random, examples = np.random.RandomState(1), []
        for i in range(32):
            image, box = drawn(random, *sizes(random))
            examples.append((encode(image), i % 10, boxes_of(box), box_key, f"photo_{i}.JPEG"))
        shape = (*sizes(random), 3) if sizes is one_size else (None, None, 3)
        splits = {"train": examples[:12], "test": examples[12:]}
        write_tfds(tmp_path, splits, shape=shape, box_key=box_key)
        return str(tmp_path)

    return make


def one_size(random):
    return 40, 56


def any_size(random):
    return random.randint(40, 90, 2)


def images_of(data, split):
    """uint8 [N, H, W, C], as `load_eval` returns them."""
    loaded = []
    for xs in data.eval_batches(split):
        batch = data.load_eval(data.arrays[split], {name: x[0] for name, x in xs.items()})
        loaded += list(np.asarray(batch["image"])[np.asarray(batch["mask"])])
    return np.stack(loaded)


@pytest.mark.parametrize(
    ("source", "sizes", "box_key", "config"),
    [
        ("resident", one_size, "bbox", {}),
        ("resident", one_size, "objects/bbox", {"image_size": 32}),
        ("streaming", one_size, "bbox", {}),
        ("streaming", any_size, "bbox", {"image_size": 32}),
        (
            "streaming",
            any_size,
            "objects/bbox",
            {"image_size": 33, "eval_resize": 40, "augment": {"min_area": 0.5}},
        ),
        ("streaming", any_size, "bbox", {"image_size": 33, "square_resize": 40}),
    ],
)
def test_boxes_follow_the_images(rectangles, source, sizes, box_key, config):
    data_dir = rectangles(sizes, box_key)
    data = open_data(
        {"dataset": "toys", "data_dir": data_dir, "batch_size": 4, "source": source, **config}
    )
    assert data.kind == source
    for split, count in (("train", 12), ("test", 20)):
        given = data.boxes(split)
        assert len(given) == count
        for image, box in zip(images_of(data, split), given, strict=True):
            assert box.shape == (1, 4)
            assert box.dtype == np.float32
            if (box[0, 2:] - box[0, :2]).min() > 0:
                np.testing.assert_allclose(box[0], found(image), atol=0.75)
            else:
                assert found(image) == [0, 0, 0, 0]


def test_boxes_of_subsets_are_theirs(rectangles):
    data_dir = rectangles(one_size)
    config = {"dataset": "toys", "data_dir": data_dir, "batch_size": 4, "train_examples": 8}
    data = open_data({**config, "held_out": 4})
    for split in ("train", "held_out"):
        for image, box in zip(images_of(data, split), data.boxes(split), strict=True):
            assert box[0].tolist() == found(image)


def test_an_image_may_have_any_number_of_boxes(rectangles):
    whole = [0.0, 0.0, 1.0, 1.0]
    counts = iter([0, 1, 3] * 20)
    data_dir = rectangles(one_size, "objects/bbox", lambda box: [whole] * next(counts))
    data = open_data({"dataset": "toys", "data_dir": data_dir, "batch_size": 4})
    assert [len(box) for box in data.boxes("train")] == [0, 1, 3] * 4
    assert data.boxes("train")[1].tolist() == [[0, 0, 40, 56]]
    assert data.boxes("train")[0].shape == (0, 4)


def test_boxes_outside_the_crop_are_empty():
    shares = np.array([[0.0, 0.0, 0.05, 1.0], [0.0, 0.0, 1.0, 1.0]])
    moved = boxes.in_pixels(shares, (256, 256), (16, 16), (224, 224))
    assert moved.tolist() == [[0, 0, 0, 224], [0, 0, 224, 224]]


def test_sets_without_boxes_say_so(toy_set):
    data_dir, *_ = toy_set()
    assert open_data({"dataset": "toys", "data_dir": str(data_dir), "batch_size": 8}).boxes is None
    assert open_data({"batch_size": 8}).boxes is None


def write_xml(path, size, corners):
    """An ILSVRC annotation; corners: inclusive (xmin, ymin, xmax, ymax) in pixels."""
    objects = "".join(
        "<object><name>n01</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
        "<ymax>{}</ymax></bndbox></object>".format(*corner)
        for corner in corners
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<annotation><size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth>"
        f"</size>{objects}</annotation>"
    )


@pytest.mark.parametrize("dataset", ["toys", "folder"])
def test_xml_boxes_are_matched_by_file_name(rectangles, tmp_path, dataset):
    data_dir = rectangles(one_size)
    config = {"dataset": dataset, "data_dir": data_dir, "batch_size": 4}
    prepared = open_data({**config, "dataset": "toys"})
    if dataset == "folder":
        config["data_dir"] = str(tmp_path / "tree")
        for split, folder in (("train", "train"), ("test", "val")):
            for i, image in enumerate(prepared.arrays[split]["image"]):
                number = i + 12 * (split == "test")
                path = tmp_path / "tree" / folder / "ant" / f"photo_{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path)
    config["boxes_dir"] = str(tmp_path / "xml")
    (tmp_path / "xml").mkdir()
    data = open_data(config)
    with pytest.raises(UserError, match=r"20 of 20 images have none \(photo_12.xml, .*, \.\.\.\)"):
        data.boxes("test")
    split = find_set(dataset, config["data_dir"], None).splits["test"]
    for i in range(20):
        top, left, bottom, right = found(decode_record(split, i, 3)[0])
        stem = file_name(split, i).rpartition("/")[2].rpartition(".")[0]
        write_xml(
            tmp_path / "xml" / f"{i % 2}" / f"{stem}.xml",
            (40, 56),
            [(left, top, right - 1, bottom - 1)] * (1 + i % 2),
        )
    for i, (image, box) in enumerate(zip(images_of(data, "test"), data.boxes("test"), strict=True)):
        np.testing.assert_allclose(box, [found(image)] * (1 + i % 2), atol=1e-4)
    with pytest.raises(UserError, match="12 of 12 images have none"):
        data.boxes("train")


def test_bad_annotations_are_refused(rectangles, tmp_path, toy_set):
    data_dir = rectangles(one_size)
    config = {"dataset": "toys", "data_dir": data_dir, "batch_size": 4}
    with pytest.raises(UserError, match="boxes_dir=/no/such is not a folder"):
        open_data({**config, "boxes_dir": "/no/such"})
    for i in range(32):
        write_xml(tmp_path / "xml" / f"photo_{i}.xml", (40, 56), [(0, 0, 9, 9)])
    (tmp_path / "xml" / "photo_12.xml").write_text("<annotation></annotation>")
    with pytest.raises(UserError, match=r"photo_12.xml is not an annotation file"):
        open_data({**config, "boxes_dir": str(tmp_path / "xml")}).boxes("test")
    other, *_ = toy_set(name="nameless")
    config = {"dataset": "nameless", "data_dir": str(other), "batch_size": 4}
    with pytest.raises(UserError, match="does not say which file it comes from"):
        open_data({**config, "boxes_dir": str(tmp_path / "xml")}).boxes("test")


WRONG_BOXES = {
    "reversed": ((40, 56), (9, 0, 3, 9), r"has the box \[0.0, 0.1607, 0.25, 0.0714\]"),
    "upside down": ((40, 56), (0, 9, 9, 3), "has the box"),
    "not a number": ((40, 56), ("nan", 0, 9, 9), r"has the box \[0.0, nan"),
    "infinite": ((40, 56), (0, 0, "inf", 9), "has the box"),
    "outside": ((40, 56), (60, 0, 70, 9), "has the box"),
    "of an image without height": ((0, 56), (0, 0, 9, 9), "has height 0 and width 56"),
    "of an image of negative width": ((40, -5), (0, 0, 9, 9), "width -5"),
    "of an image of unknown size": (("nan", 56), (0, 0, 9, 9), "has height nan"),
}


@pytest.mark.parametrize(("size", "corners", "match"), WRONG_BOXES.values(), ids=WRONG_BOXES)
def test_a_box_without_pixels_is_named(tmp_path, size, corners, match):
    path = tmp_path / "photo_3.xml"
    write_xml(path, size, [(0, 0, 5, 5), corners])
    with pytest.raises(UserError, match=rf"photo_3\.xml .*{match}"):
        boxes._of_xml_file(str(path))


def test_a_box_of_one_pixel_and_one_that_reaches_over_the_edge_are_kept(tmp_path):
    write_xml(tmp_path / "a.xml", (40, 50), [(5, 8, 5, 8), (25, -3, 60, 39)])
    want = [[0.2, 0.1, 0.225, 0.12], [0, 0.5, 1, 1]]
    np.testing.assert_allclose(boxes._of_xml_file(str(tmp_path / "a.xml")), want, atol=1e-7)


def test_a_box_without_pixels_in_a_record_is_named(rectangles):
    data_dir = rectangles(one_size, boxes_of=lambda box: [box[[2, 1, 0, 3]]])
    data = open_data({"dataset": "toys", "data_dir": data_dir, "batch_size": 4})
    with pytest.raises(UserError, match=r"record 0 of test \(in .*\) has the box"):
        data.boxes("test")


@pytest.mark.parametrize("twice", ["images", "files"])
def test_names_that_occur_twice_are_refused(tmp_path, twice):
    """Otherwise two images would silently have the boxes of one."""
    for split, name in (("train", "ant"), ("train", "bee"), ("val", "ant"), ("val", "bee")):
        path = tmp_path / split / name / ("0.png" if twice == "images" else f"{name}.png")
        path.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(path)
        for folder in (name, "more") if twice == "files" else ("all",):
            write_xml(tmp_path / "xml" / folder / f"{path.stem}.xml", (8, 8), [(0, 0, 5, 5)])
    config = {"dataset": "folder", "data_dir": str(tmp_path), "batch_size": 2}
    data = open_data({**config, "boxes_dir": str(tmp_path / "xml")})
    both = {"images": r"val/ant/0\.png and .*val/bee/0\.png", "files": r"ant\.xml and .*/ant\.xml"}
    with pytest.raises(UserError, match=f"{both[twice]} have the same name"):
        data.boxes("test")


def test_boxes_of_real_images_are_those_of_tfds(tfds_dir):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    data = open_data({"dataset": "tiny_imagenet", "data_dir": str(tfds_dir), "batch_size": 64})
    theirs = tfds.load("tiny_imagenet", split="validation", data_dir=tfds_dir, download=False)
    given = data.boxes("test")
    for i, example in enumerate(theirs.take(50).as_numpy_iterator()):
        np.testing.assert_array_equal(given[i][0], example["bbox"] * 64)
