"""Shapes are a function of (seed, index), boxes match, and only the form reveals the class."""

import dataclasses
import doctest

import numpy as np
import pytest

from cutmix_jax import UserError
from cutmix_jax.data import open_data, shapes


def tight_box(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]


def test_an_example_is_a_function_of_seed_and_index():
    forwards = [shapes.draw_example(3, i, 32, 3) for i in range(4)]
    backwards = [shapes.draw_example(3, i, 32, 3) for i in reversed(range(4))][::-1]
    for one, other in zip(forwards, backwards, strict=True):
        for field in dataclasses.fields(shapes.Example):
            np.testing.assert_array_equal(*(getattr(e, field.name) for e in (one, other)))
    for seed, index in ((3, 1), (4, 0)):
        assert not np.array_equal(shapes.draw_example(seed, index, 32).image, forwards[0].image)
    assert doctest.testmod(shapes).attempted == 2
    assert doctest.testmod(shapes).failed == 0


def test_images_do_not_change():
    """Earlier runs are comparable only with the same images. If they change, raise VERSION."""
    example = shapes.draw_example(0, 0)
    assert shapes.VERSION == 1
    assert example.caption == "A dotted gray hourglass on a purple ground."
    assert (example.boxes * 64).tolist() == [[5, 24, 28, 43]]
    assert example.image.mean() == pytest.approx(149.440, abs=0.05)


@pytest.mark.parametrize("size", [16, 47, 128])
def test_boxes_masks_and_labels_belong_together(size):
    several = 0
    for i in range(60):
        example = shapes.draw_example(1, i, size, max_objects=4)
        assert example.image.shape == (size, size, 3)
        assert example.image.dtype == example.mask.dtype == np.uint8
        count = len(example.labels)
        assert sorted(np.unique(example.mask)) == list(range(count + 1))
        for k, box in enumerate(example.boxes):
            assert np.round(box * size).tolist() == tight_box(example.mask == k + 1)
        areas = (example.boxes[:, 2:] - example.boxes[:, :2]).prod(1)
        assert example.label == example.labels[0]
        assert areas[0] > 0.4 * areas.max(), "the label is that of a large object"
        for label in example.labels:
            assert shapes.CLASS_NAMES[label] in example.caption
        assert example.caption[0] == "A"
        assert example.caption.count(".") == 1
        several += count > 1
    assert several > 10


@pytest.mark.parametrize("name", shapes.CLASS_NAMES)
def test_forms_are_unlike_and_within_the_unit_disc(name):
    place = np.mgrid[-120:121, -120:121].astype(np.float32) / 100
    inside = {form: distance(*place) < 0 for form, distance in shapes.FORMS.items()}
    assert set(inside) == set(shapes.CLASS_NAMES)
    assert not (inside[name] & (np.hypot(*place) > 1.0)).any()
    assert inside[name].mean() > 0.1
    for other in shapes.CLASS_NAMES:
        overlap = (inside[name] & inside[other]).sum() / (inside[name] | inside[other]).sum()
        assert other == name or overlap < 0.8


def test_the_edge_is_where_the_distance_says():
    """Close to an edge, the distance grows with slope one."""
    y, x = np.mgrid[-120:121, -120:121].astype(np.float32) / 100
    for name, form in shapes.FORMS.items():
        distance = form(y, x)
        slope = np.hypot(*np.gradient(distance, 0.01))[np.abs(distance) < 0.05]
        assert 0.8 < np.median(slope) < 1.2, name


CONFIG = {"dataset": "shapes", "batch_size": 40, "image_size": 32, "train_examples": 1000}


@pytest.fixture(scope="module")
def data():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "TEST_EXAMPLES", 800)
        return open_data(CONFIG)


def test_neither_color_nor_position_gives_away_the_class(data):
    """A linear classifier on colors or on boxes is at chance, with ten classes."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    labels = {split: data.arrays[split]["label"] for split in ("train", "test")}
    assert np.bincount(labels["train"]).min() > 60

    def colors(split):
        images = data.arrays[split]["image"] // 64
        codes = images[..., 0] * 16 + images[..., 1] * 4 + images[..., 2]
        return np.stack([np.bincount(code.ravel(), minlength=64) for code in codes]) / 1024

    for features in (colors, lambda split: np.concatenate(data.boxes(split))[:, :2] / 32):
        model = linear_model.LogisticRegression(max_iter=500).fit(
            features("train"), labels["train"]
        )
        assert model.score(features("test"), labels["test"]) < 0.17


def test_a_box_in_the_center_misses_most_objects(data):
    boxes = np.concatenate(data.boxes("test"))
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    for half in range(4, 17):
        low, high = np.maximum(boxes[:, :2], 16 - half), np.minimum(boxes[:, 2:], 16 + half)
        common = np.maximum(high - low, 0).prod(1)
        assert (common / (area + 4 * half * half - common) > 0.5).mean() < 0.45


def test_shapes_are_a_dataset_like_others(data):
    assert (data.kind, data.image_shape) == ("resident", (32, 32, 3))
    assert data.examples == {"train": 1000, "test": 800}
    assert data.class_names == shapes.CLASS_NAMES
    np.testing.assert_array_equal(
        data.arrays["train"]["image"][7], shapes.draw_example(shapes.SEEDS["train"], 7, 32).image
    )
    mask = shapes.draw_example(shapes.SEEDS["test"], 3, 32).mask
    assert data.boxes("test")[3].tolist() == [tight_box(mask)]
    assert not (data.arrays["train"]["image"][0] == data.arrays["test"]["image"][0]).all()


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"image_size": 15}, "image_size=15 is too small"),
        ({"source": "streaming"}, "shapes is always resident"),
        ({"test_split": "validation"}, "no split 'validation'"),
        ({"image_size": 512, "train_examples": 4000}, "--config.train_examples=N"),
    ],
)
def test_shapes_that_cannot_be_rendered_are_refused(config, match):
    with pytest.raises(UserError, match=match):
        open_data({"dataset": "shapes", "batch_size": 8, **config})
