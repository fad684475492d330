"""SSD as a task: it trains, resumes and evaluates like a classifier, on any number of devices."""

import dataclasses
import functools
import io
import json

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cutmix_jax import UserError, models, run, tasks, train
from cutmix_jax.command_line import read_config
from cutmix_jax.detection import augment
from cutmix_jax.parallel import create_mapping
from cutmix_jax.tasks.ssd import SSD, detections
from tests.commands import checkpoint_digest
from tests.tasks.runs import (
    Linear,
    compile_once,
    one_step,
    records,
    start_from,
    weights_of,
)

pytestmark = pytest.mark.usefixtures("small_network")

SMALL = {
    "model": "resnet10x0.0625",
    "image_size": 32,
    "train_examples": 64,
    "max_objects": 2,
    "epochs": 2,
    "eval_every": 1,
    "checkpoint_every": 3,
    "detection.max_per_class": 8,
}


def config_of(**overrides):
    config = read_config("configs/shapes_detection.py")
    config.update_from_flattened_dict(SMALL | overrides)
    return config


@pytest.fixture(scope="module")
def task(small_network, module_patch):
    return compile_once(module_patch, tasks.create_task(config_of()))


def test_it_is_trained_and_reported(finished):
    folder, results, printed = finished
    first, last = records(folder)
    assert last["train_loss"] < first["train_loss"]
    assert last["train_loss"] == pytest.approx(last["train_box_loss"] + last["train_class_loss"])
    assert results == json.loads((folder / "results.json").read_text())
    assert results["map_last"] == last["test_map"]
    assert results["map_best"] == max(first["test_map"], last["test_map"])
    each = list(results["ap_last"].values())
    assert 0 < len(each) <= 10
    assert np.mean(each) == pytest.approx(results["map_last"])
    assert "model     SSD on resnet10x0.0625, 10 classes" in printed
    assert "maps      of sides 4, 2, 1; 84 priors" in printed
    assert f"mAP, last epoch       {results['map_last']:.3f}" in printed
    for picture in SSD.pictures:
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


def test_what_it_finds_is_evaluated(finished, tmp_path):
    folder, results, _ = finished
    for i, size in enumerate([(40, 30), (50, 60)]):
        Image.new("RGB", size).save(tmp_path / f"{i}.png")
    overrides = {"evals.detection.images": str(tmp_path)}
    found = run.evaluate(None, folder, overrides=overrides, evals="detection", stream=io.StringIO())
    assert found["detection"]["map_11_point"] == pytest.approx(results["map_last"])
    written = {path.name for path in (folder / "evals").iterdir()}
    assert {"comp4_det_test_disc.txt", "detection.png", "detection_photographs.png"} <= written


def test_evaluations_of_classifiers_are_refused(finished):
    with pytest.raises(UserError, match="Fgsm is for tasks of the class Classification"):
        run.evaluate(None, finished[0], evals="fgsm", stream=io.StringIO())


def test_stopped_within_an_epoch_it_ends_with_the_same_bits(finished, start, tmp_path):
    assert start(tmp_path, stop_at=2)[0] is None
    assert start(tmp_path, stop_at=5)[0] is None
    _, printed = start(tmp_path)
    assert "Going on from step 5 of 8" in printed
    assert checkpoint_digest(tmp_path) == checkpoint_digest(finished[0])


def test_eight_devices_take_the_step_of_one(monkeypatch):
    """The loss is divided by the positive priors of the whole batch, not by those of a device."""
    monkeypatch.setattr(augment, "augment_ssd", lambda _, *given: augment.resize_batch(*given[:2]))
    many, one = (
        dataclasses.replace(
            tasks.create_task(config_of(), create_mapping("pmap", devices)), model=Linear(10)
        )
        for devices in (8, 1)
    )
    (state, counters), (expected, expected_counters) = map(one_step, (many, one))
    losses = [float(c["loss"].total[0]) / c["loss"].count[0] for c in (counters, expected_counters)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    chex.assert_trees_all_close(state.params, expected.params, atol=1e-5)


def test_difficult_objects_are_learned_only_if_asked(task):
    batch = {"label": jnp.array([[4, 7, -1]]), "difficult": jnp.array([[False, True, False]])}
    assert task.learned(batch).tolist() == [[4, -1, -1]]
    config = config_of(**{"detection.keep_difficult": True})
    keeping = dataclasses.replace(task, config=config)
    assert keeping.learned(batch).tolist() == [[4, 7, -1]]


def outputs_of(scores, found_labels, labels, difficult):
    """Two images with one place each; every detection is exactly there."""
    found = np.array(found_labels)[:, None] == np.arange(10)
    box = np.array([0.1, 0.2, 0.5, 0.6], np.float32)
    return {
        "found_boxes": np.broadcast_to(box, (2, 10, 1, 4)),
        "scores": np.broadcast_to(np.reshape(scores, (2, 1, 1)), (2, 10, 1)),
        "found": found[..., None],
        "boxes": np.broadcast_to(box, (2, 1, 4)),
        "label": np.reshape(labels, (2, 1)),
        "difficult": np.reshape(difficult, (2, 1)),
    }


def test_the_score_is_the_mean_over_classes_with_objects(task):
    score = functools.partial(task.score, "test")
    both = outputs_of((0.9, 0.8), (3, 5), (3, 5), (False, False))
    assert score(both) == {"map": 1, "ap_triangle": 1, "ap_cross": 1}
    wrong = outputs_of((0.9, 0.8), (3, 3), (3, 5), (False, False))
    assert score(wrong) == {"map": 0.5, "ap_triangle": 1, "ap_cross": 0}
    difficult = outputs_of((0.9, 0.8), (3, 5), (3, 5), (False, True))
    assert score(difficult) == {"map": 1, "ap_triangle": 1}


def test_detections_are_without_padding():
    found = np.array([[[True, False], [False, False]], [[True, True], [True, False]]])
    boxes, scores = np.random.RandomState(0).uniform(size=(2, 2, 2, 2, 4)).astype(np.float32)
    given = detections(boxes, scores[..., 0], found)
    assert [labels.tolist() for labels in given.labels] == [[0], [0, 0, 1]]
    np.testing.assert_array_equal(given.boxes[1][2], boxes[1, 1, 0])
    np.testing.assert_array_equal(given.scores[1], scores[1, (0, 0, 1), (0, 1, 0), 0])


def test_it_starts_from_the_backbone_of_a_classifier(task, monkeypatch):
    weights = weights_of(models.create_model(task.config.model, 7))
    state, notes = start_from(task, weights, monkeypatch)
    assert notes[1] == "Its head does not fit and starts from new weights: heads, norm."
    fresh = train.create_state(task).params
    for name, tree in state.params.items():
        expected = fresh[name] if name in SSD.heads else weights["params"][name]
        chex.assert_trees_all_equal(tree, expected)
    chex.assert_trees_all_equal(state.batch_stats, weights["batch_stats"])


def test_it_starts_from_a_detector_with_other_classes(task, monkeypatch):
    other = task.model.clone(num_classes=3)
    state, notes = start_from(task, weights_of(other), monkeypatch)
    assert notes[1] == "Its head does not fit and starts from new weights: heads."
    assert np.all(state.params["heads"]["box1"]["kernel"] == 0.5)
    assert np.all(state.params["heads"]["class1"]["bias"] == 0)


def test_another_network_is_refused(task, monkeypatch):
    wider = weights_of(models.create_model("resnet10x0.125", 7))
    with pytest.raises(UserError, match=r"does not fit config\.model='resnet10x0.0625': .*bn1"):
        start_from(task, wider, monkeypatch)
    deeper = weights_of(models.create_model("resnet18x0.0625", 7))
    with pytest.raises(UserError, match="layer1_1"):
        start_from(task, deeper, monkeypatch)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", "resnet20", "strides 8, 16 and 32 that a detector needs. Use .* resnet50"),
        ("model", "ge_resnet50", "strides 8, 16 and 32"),
        ("last_stride", 1, r"config.last_stride=1 does not have"),
        ("image_size", 16, "too small for resnet10x0.0625"),
        ("image_size", None, r"config\.image_size, which is not set"),
        ("label_smoothing", 0.1, "does not use it"),
        ("augment.flip", True, "a detector does not use it"),
        ("augment.policy", "trivial_augment", "a detector does not use it"),
        ("augment.erasing", 0.5, "a detector does not use it"),
        ("normalize.mean", (0.5, 0.5), "2 values"),
        ("detection.ap_rule", "11", "one of '11-point', 'area'"),
    ],
)
def test_what_it_cannot_use_is_refused(key, value, message):
    config = config_of(**{key: value})
    if key == "normalize.mean":
        config.normalize.std = value
    with pytest.raises(UserError, match=message):
        tasks.create_task(config, create_mapping("pmap", 1))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_without_objects_is_refused(task, split):
    part = task.data.arrays[split]
    arrays = {**task.data.arrays, split: {**part, "difficult": np.ones_like(part["difficult"])}}
    empty = dataclasses.replace(task, data=dataclasses.replace(task.data, arrays=arrays))
    with pytest.raises(UserError, match=f"The split {split} of 'shapes' has no object"):
        empty.check()


def test_the_config_of_voc_is_the_papers_protocol():
    config = read_config("configs/voc.py:resnet101")
    assert (config.model, config.task, config.image_size) == ("resnet101", "ssd", 300)
    assert (16_551 // config.batch_size) * config.epochs == 119_944
    with pytest.raises(UserError, match="There is no detector 'sdd'"):
        read_config("configs/voc.py:resnet50,sdd")
