"""Landscapes and portraits have batches of their own, and nothing else about a run changes."""

import dataclasses
import io

import chex
import jax
import numpy as np
import pytest
from PIL import Image

from cutmix_jax import UserError, run, tasks, train
from cutmix_jax.command_line import read_config
from cutmix_jax.data.buckets import Canvas
from cutmix_jax.evals import detection
from cutmix_jax.evals.subject import create_subject
from cutmix_jax.parallel import create_mapping
from cutmix_jax.tasks.faster_rcnn import FasterRCNN
from tests.commands import checkpoint_digest
from tests.data.conftest import red_object, write_tree
from tests.tasks.runs import SMALL_FASTER_RCNN, Colors, compile_once

pytestmark = pytest.mark.usefixtures("unoptimized")

LANDSCAPE, PORTRAIT = CANVASES = Canvas(24, 32), Canvas(32, 24)
TRAIN = [(26, 40)] * 17 + [(40, 26)] * 9  # height and width of the photographs
TEST = [(40, 30), (30, 40), (30, 48), (40, 20), (36, 36), (48, 30), (30, 40)]


def photographs(sizes, first):
    """{ID: (noise with a red rectangle, its object)}, one per size."""
    random, found = np.random.RandomState(first), {}
    for i, (height, width) in enumerate(sizes):
        top, left = 2 + i % 3, 3 + i % 5
        box = (top, left, top + 14, left + 12)
        image, one = red_object(height, width, box, ("dog", "cat")[i % 2])
        noise = random.randint(0, 60, image.shape, np.uint8)
        found[f"{first + i:06}"] = np.minimum(image, 195) + noise, [one]
    return found


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    tree = tmp_path_factory.mktemp("voc")
    order = np.random.RandomState(0).permutation(len(TRAIN))
    write_tree(
        tree,
        {"train": photographs([TRAIN[i] for i in order], 0), "val": photographs(TEST, 100)},
    )
    config = read_config("configs/shapes_detection.py:resnet18x0.25,faster_rcnn")
    own = {
        "dataset": "voc",
        "data_dir": str(tree),
        "voc.train": "train",
        "voc.test": "val",
        "train_examples": None,
        "max_objects": 1,
        "batch_size": 8,
        "checkpoint_every": 1,
        "detection.shorter_side": 20,
        "detection.anchor_scales": (1,),
    }
    config.update_from_flattened_dict(SMALL_FASTER_RCNN | {"model": "resnet18x0.25"} | own)
    return config


def create_task(config, kind, devices):
    task = tasks.create_task(config, create_mapping(kind, devices))
    return dataclasses.replace(task, model=Colors(None, 20, 2, (1,)))


@pytest.fixture(scope="module")
def task(config, unoptimized, module_patch):
    return compile_once(module_patch, create_task(config, "pmap", 8))


def test_canvases_are_multiples_of_the_stride():
    voc = read_config("configs/voc.py:resnet50,faster_rcnn")
    assert FasterRCNN.canvases(voc) == (Canvas(608, 1008), Canvas(1008, 608))
    shapes = read_config("configs/shapes_detection.py:resnet18x0.25,faster_rcnn")
    assert FasterRCNN.canvases(shapes) == (Canvas(128, 128),)
    shapes.detection.shorter_side = 128
    assert FasterRCNN.canvases(shapes) == (Canvas(128, 128),)


def test_a_run_takes_turns_between_them(task, finished):
    _, results, printed = finished
    batches = [xs for epoch in (0, 1) for xs in train.group(task.data.train_batches(epoch), 1)]
    assert [xs["canvas"] for xs in batches].count(LANDSCAPE) == 2 * 2  # of 17 images
    assert [xs["canvas"] for xs in batches].count(PORTRAIT) == 2 * 1  # of 9
    assert {train.signature(xs) for xs in batches} == set(train.compile_ahead(task).result())
    assert "training  2 epochs of 3 steps" in printed
    assert "a shorter side of 20, a longer one of at most 32, in 24x32 or 32x24" in printed
    assert np.isfinite(results["map_last"])


def test_stopped_within_an_epoch_it_ends_with_the_same_bits(finished, start, tmp_path):
    assert start(tmp_path, stop_at=1)[0] is None
    assert start(tmp_path, stop_at=4)[0] is None
    _, printed = start(tmp_path)
    assert "Going on from step 4 of 6" in printed
    assert checkpoint_digest(tmp_path) == checkpoint_digest(finished[0])


def batch_of(task, canvas):
    batches = train.group(task.data.train_batches(0), 1)
    xs = next(xs for xs in batches if xs["canvas"] == canvas)
    return jax.tree.map(lambda x: x[:, 0], xs)


def test_a_landscape_has_the_loss_that_it_has_in_a_square(task):
    """Anchors of the padding learn nothing, and are too small to propose a part of the image."""
    xs = batch_of(task, LANDSCAPE)
    square = {name: value for name, value in xs.items() if name != "canvas"}

    def loss(weights, arrays, xs):
        batch = task.load(arrays, xs, 0)
        counters = task.loss(weights, batch, 0, jax.random.key(0))[1][1]
        return counters, batch["image"].shape, batch["offsets"].sum()

    weights = {
        "params": jax.tree.map(lambda x: 0.01 * x, train.create_state(task).params),
        "batch_stats": {},
    }
    measured = task.mapping.map(loss)
    narrow, wide = (
        jax.device_get(measured(weights, task.data.arrays["train"], own)) for own in (xs, square)
    )
    assert (narrow[1][1:3], wide[1][1:3]) == ((24, 32), (32, 32))
    assert abs(narrow[2]) > 0
    for name, counter in narrow[0].items():
        assert counter.total > 0
        np.testing.assert_allclose(counter.total, wide[0][name].total, rtol=1e-5, atol=1e-7)


def test_eight_devices_take_the_step_of_one(config, task):
    first = train.create_state(task)

    def one_step(task):
        state = task.mapping.replicate(first)
        arrays = task.mapping.replicate(task.data.arrays["train"])
        xs = jax.tree.map(lambda x: x[:, None], batch_of(task, PORTRAIT))
        step, _ = train.map_steps(task)
        state, counters = jax.device_get(step(state, arrays, task.mapping.shard(xs)))
        return state.params, {name: own.total / own.count for name, own in counters.items()}

    expected = one_step(create_task(config, "shard_map", 1))
    chex.assert_trees_all_close(one_step(task), expected, atol=1e-5, rtol=1e-5)


def test_evaluated_in_buckets_each_image_is_measured_as_alone(task, monkeypatch):
    state, (_, measure) = train.create_state(task), train.map_steps(task)
    weights, outputs = task.mapping.replicate(state).evaluated(), {}
    score = lambda self, split, found: outputs.update(found) or {}  # noqa: E731
    monkeypatch.setattr(FasterRCNN, "score", score)
    arrays, placed = task.data.arrays, task.mapping.replicate(dict(task.data.arrays))
    train.evaluate(task, measure, weights, placed)
    np.testing.assert_array_equal(outputs["label"], arrays["test"]["label"])
    boxes = arrays["test"]["boxes"] / np.tile(arrays["test"]["size"], 2)[:, None]
    np.testing.assert_allclose(outputs["boxes"], boxes, rtol=1e-5)

    for i, (height, width) in enumerate(TEST):
        canvas = PORTRAIT if height > width else LANDSCAPE
        index, mask = np.full((8, 1), i), np.arange(8)[:, None] == 5
        xs = task.mapping.shard({"index": index, "mask": mask, "canvas": canvas})
        found = jax.device_get(measure(weights, placed["test"], xs)[1])
        assert (found["found_labels"][5] >= 0).any()
        for name, values in outputs.items():
            np.testing.assert_allclose(values[i], found[name][5], atol=1e-5, err_msg=name)


def test_images_come_in_the_order_asked_for(task):
    subject, part = create_subject(task, {}, quiet=True), task.data.arrays["test"]
    order = [6, 0, 5, 3, 3, 1]
    found = subject.images(order)
    np.testing.assert_allclose(found["image"], part["image"][order] / 255, rtol=2e-7)
    np.testing.assert_array_equal(found["label"], part["label"][order])


def test_evaluations_restore_the_order(task, finished, tmp_path, monkeypatch):
    folder, results, _ = finished
    shown, draw = [], detection.draw
    monkeypatch.setattr(run, "create_task", lambda config: task)
    monkeypatch.setattr(
        detection, "draw", lambda images, *given: shown.append(images) or draw(images, *given)
    )
    for i, size in enumerate([(40, 30), (30, 50)]):
        Image.new("RGB", size).save(tmp_path / f"{i}.png")
    overrides = {"evals.detection.images": str(tmp_path)}
    found = run.evaluate(None, folder, overrides=overrides, evals="detection", stream=io.StringIO())
    assert found["detection"]["map_11_point"] == pytest.approx(results["map_last"])
    stored = task.data.arrays["test"]["image"]
    for image, whole, (height, width) in zip(shown[0], stored, TEST, strict=True):
        np.testing.assert_allclose(image, whole[:height, :width] / 255, rtol=2e-7)


def test_steps_of_one_call_have_one_canvas():
    turns = [LANDSCAPE] * 3 + [PORTRAIT] + [LANDSCAPE]
    batches = [{"index": np.full((1, 4), i), "canvas": own} for i, own in enumerate(turns)]
    groups = list(train.group(batches, 2))
    assert [own["index"][0, :, 0].tolist() for own in groups] == [[0, 1], [2], [3], [4]]
    assert [own["canvas"] for own in groups] == [LANDSCAPE, LANDSCAPE, PORTRAIT, LANDSCAPE]


def test_too_few_images_of_each_kind_are_refused(config):
    few = config.copy_and_resolve_references()
    few.batch_size = 24
    with pytest.raises(UserError, match="neither 17 nor 9 training images of similar shape"):
        tasks.create_task(few, create_mapping("pmap", 1))
