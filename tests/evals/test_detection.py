"""What a detector finds: result files, curves, pictures."""

import types

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from cutmix_jax import UserError
from cutmix_jax.config import base_config
from cutmix_jax.detection.average_precision import Detections
from cutmix_jax.evals import detection

NAMES = ("cat", "dog")
# Two images of 10 x 20 and 20 x 20 pixels. Boxes are fractions.
TRUE = np.array([[[0.1, 0.2, 0.5, 0.6], [0, 0, 0, 0]], [[0, 0, 1, 0.5], [0.5, 0.5, 1, 1]]])
OUTPUTS = {
    "boxes": np.float32(TRUE),
    "label": np.array([[0, -1], [0, 1]]),
    "difficult": np.zeros((2, 2), bool),
    "found_boxes": np.float32(TRUE),
    "scores": np.array([[0.9, 0], [0.3, 0.8]], np.float32),
    "found_labels": np.array([[0, -1], [1, 1]]),
}


def subject_of(outputs, monkeypatch, **data):
    part = {"image": np.zeros((2, 20, 20, 3), np.uint8), "size": np.array([[10, 20], [20, 20]])}
    monkeypatch.setattr(detection, "measure", lambda *arguments: outputs)
    found = Detections(outputs["found_boxes"], outputs["scores"], outputs["found_labels"])
    task = types.SimpleNamespace(
        config=base_config(),
        data=types.SimpleNamespace(arrays={"test": part}, class_names=NAMES, names=None),
        detections=lambda outputs: found,
    )
    vars(task.data).update(data)
    return types.SimpleNamespace(
        task=task,
        split="test",
        arrays=part,
        examples=2,
        batches=lambda: None,
        images=lambda order: {"image": part["image"][list(order)] / 255},
    )


def options_of(**values):
    return ConfigDict(base_config().evals.detection.to_dict() | values)


@pytest.fixture
def report(monkeypatch):
    return detection.run(subject_of(OUTPUTS, monkeypatch), options_of())


def test_average_precision_by_both_rules(report):
    # Cats: one of two is found. Dogs: the best of two detections is right.
    assert report.values["map_area"] == pytest.approx((0.5 + 1) / 2)
    assert report.values["map_11_point"] == pytest.approx((6 / 11 + 1) / 2)
    assert [(row["class"], row["objects"], row["detections"]) for row in report.rows] == [
        ("cat", 2, 1),
        ("dog", 1, 2),
    ]


def test_result_files_have_inclusive_corners_from_1(report):
    assert report.texts["comp4_det_test_cat.txt"] == (
        "000000 0.900000 5.000000 2.000000 12.000000 5.000000\n"
    )
    assert report.texts["comp4_det_test_dog.txt"].splitlines()[1] == (
        "000001 0.800000 11.000000 11.000000 20.000000 20.000000"
    )


def test_images_have_the_ids_of_the_dataset(monkeypatch):
    subject = subject_of(OUTPUTS, monkeypatch, names={"test": ["2008_000002", "2008_000003"]})
    texts = detection.run(subject, options_of()).texts
    assert texts["comp4_det_test_cat.txt"].startswith("2008_000002 0.9")


def test_a_class_without_objects_does_not_count(monkeypatch):
    outputs = OUTPUTS | {"label": np.array([[0, -1], [0, -1]])}
    report = detection.run(subject_of(outputs, monkeypatch), options_of())
    assert np.isnan(report.rows[1]["ap_area"])
    assert report.values["map_area"] == pytest.approx(0.5)


def test_curves(report):
    cats = [row for row in report.tables["detection_curves.csv"] if row["class"] == "cat"]
    assert [(row["precision"], row["recall"]) for row in cats] == [(1, 0.5)]
    assert report.figures.keys() == {"detection.png", "detection_curves.png"}


def test_nothing_is_found(monkeypatch):
    outputs = OUTPUTS | {"found_labels": np.full((2, 2), -1)}
    report = detection.run(subject_of(outputs, monkeypatch), options_of())
    assert report.values["map_area"] == 0
    assert set(report.texts.values()) == {""}
    assert report.tables == {}


class TestPhotographs:
    def test_long_images_are_shrunk(self, tmp_path, monkeypatch):
        Image.new("RGB", (900, 450)).save(tmp_path / "wide.jpg")
        Image.new("L", (30, 40)).save(tmp_path / "small.png")
        subject = subject_of(OUTPUTS, monkeypatch)
        (paths, images), digest = detection.find_photographs(
            subject, options_of(images=str(tmp_path))
        )
        assert [image.shape for image in images] == [(40, 30, 3), (250, 500, 3)]
        assert len(paths) == 2
        assert digest

    def test_there_are_none_by_default(self, monkeypatch):
        subject = subject_of(OUTPUTS, monkeypatch)
        assert detection.find_photographs(subject, options_of()) == (((), ()), "")

    @pytest.mark.parametrize(
        ("count", "message"),
        [(None, "is not a folder"), (0, "contains no image"), (3, "3 images, more than .*=2")],
    )
    def test_a_folder_that_cannot_be_used(self, count, message, tmp_path, monkeypatch):
        folder = tmp_path / "photographs"
        if count is not None:
            folder.mkdir()
        for i in range(count or 0):
            Image.new("RGB", (8, 8)).save(folder / f"{i}.png")
        subject = subject_of(OUTPUTS, monkeypatch)
        options = options_of(images=str(folder), most_images=2)
        with pytest.raises(UserError, match=message):
            detection.find_photographs(subject, options)
