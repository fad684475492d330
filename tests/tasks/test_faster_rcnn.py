"""Faster R-CNN as a task: it trains, resumes and evaluates, and keeps what is frozen."""

import dataclasses
import functools

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutmix_jax import UserError, models, tasks, train
from cutmix_jax.command_line import read_config
from cutmix_jax.parallel import create_mapping
from cutmix_jax.tasks import faster_rcnn as faster_rcnn_task
from cutmix_jax.tasks.faster_rcnn import FasterRCNN
from tests.commands import checkpoint_digest
from tests.tasks.runs import (
    SMALL_FASTER_RCNN,
    Colors,
    compile_once,
    one_step,
    records,
    start_from,
    weights_of,
)

pytestmark = pytest.mark.usefixtures("small_network")

FLAT = functools.partial(flax.traverse_util.flatten_dict, sep="/")


def config_of(**overrides):
    config = read_config("configs/shapes_detection.py:resnet18x0.25,faster_rcnn")
    config.update_from_flattened_dict(SMALL_FASTER_RCNN | overrides)
    return config


@pytest.fixture(scope="module")
def task(small_network, module_patch):
    return compile_once(module_patch, tasks.create_task(config_of()))


def test_it_is_trained_and_reported(finished):
    folder, results, printed = finished
    first, last = records(folder)
    assert last["train_loss"] < first["train_loss"]
    parts = sum(last[f"train_{name}"] for name in FasterRCNN.losses)
    assert last["train_loss"] == pytest.approx(parts)
    assert results["map_last"] == last["test_map"]
    assert 0 < len(results["ap_last"]) <= 10
    assert "model     Faster R-CNN on resnet10x0.0625, 10 classes" in printed
    assert "maps      layer2, stride 8, for the RPN; 96 anchors" in printed
    assert "resized to a longer side of 32, resident" in printed
    for picture in FasterRCNN.pictures:
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


def test_stopped_within_an_epoch_it_ends_with_the_same_bits(finished, start, tmp_path):
    assert start(tmp_path, stop_at=2)[0] is None
    assert start(tmp_path, stop_at=5)[0] is None
    _, printed = start(tmp_path)
    assert "Going on from step 5 of 8" in printed
    assert checkpoint_digest(tmp_path) == checkpoint_digest(finished[0])


@pytest.mark.parametrize("what", ["nothing", "difficult", "empty", "everything"])
def test_losses_and_weights_stay_finite(task, what):
    """Without objects, with boxes of no width, and with as many objects as fit."""
    state, (steps, _) = train.create_state(task), train.map_steps(task)
    part = dict(task.data.arrays["train"])
    if what == "nothing":
        part["label"] = np.full_like(part["label"], -1)
    elif what == "difficult":
        part["difficult"] = np.ones_like(part["difficult"])
    else:
        width = 0 if what == "empty" else 5
        part["label"] = np.zeros_like(part["label"])
        part["boxes"] = np.zeros_like(part["boxes"]) + np.float32([3, 4, 9, 4 + width])
    xs = next(train.group(task.data.train_batches(0), 1))
    step = train.compile_ahead(task).result().get(train.signature(xs), steps)
    moved, counters = jax.device_get(
        step(task.mapping.replicate(state), task.mapping.replicate(part), task.mapping.shard(xs))
    )
    for leaf in jax.tree.leaves((moved.params, counters)):
        assert np.isfinite(leaf).all()
    objects = what == "everything"
    assert (counters["rpn_box_loss"].total[0] > 0) == objects
    assert (counters["box_loss"].total[0] > 0) == objects


def test_eight_devices_take_the_step_of_one(task):
    """Samples depend on seed, epoch and example, and losses are means over the whole batch."""
    many, one = (
        dataclasses.replace(
            tasks.create_task(config_of(), create_mapping("pmap", devices)),
            model=Colors(None, 10, 2, (1, 2)),
        )
        for devices in (8, 1)
    )
    (state, counters), (expected, expected_counters) = map(one_step, (many, one))
    losses = [float(c["loss"].total[0]) / c["loss"].count[0] for c in (counters, expected_counters)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    chex.assert_trees_all_close(state.params, expected.params, atol=1e-5)


@pytest.fixture(scope="module")
def frozen():
    return tasks.create_task(config_of(**{"detection.freeze": True}), create_mapping("pmap", 1))


def test_frozen_parameters_stay_and_keep_no_momentum(frozen):
    params = jax.eval_shape(frozen.init, jax.random.key(0))["params"]
    params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), params)
    state = frozen.optimizer.init(params)
    updates, _ = frozen.optimizer.update(params, state, params)
    still = {name for name, update in FLAT(updates).items() if not np.any(update)}
    assert still == {
        "conv1/kernel",
        *(name for name in FLAT(params) if name.startswith("layer1_") or "bn" in name),
    }
    momenta = [leaf for leaf in jax.tree.leaves(state) if np.ndim(leaf)]
    assert len(momenta) == len(FLAT(params)) - len(still)


def test_frozen_batch_norm_uses_and_keeps_the_statistics(frozen):
    variables = jax.eval_shape(frozen.init, jax.random.key(0))

    def statistics(weights, arrays, xs):
        batch = frozen.load(arrays, xs, 0)
        return frozen.loss(weights, batch, 0, jax.random.key(0))[1][0]

    traced = jax.make_jaxpr(statistics, axis_env=[("batch", 1)])(
        variables, frozen.data.arrays["train"], frozen.data.train_shapes[0]
    )
    assert set(traced.jaxpr.outvars) <= set(traced.jaxpr.invars)


def test_biases_are_not_decayed(task):
    zeros = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(task.init, jax.random.key(0))
    )["params"]
    ones = jax.tree.map(np.ones_like, zeros)
    updates, _ = task.optimizer.update(zeros, task.optimizer.init(ones), ones)
    for name, update in FLAT(updates).items():
        assert np.any(update) != name.endswith("bias"), name


def test_it_starts_from_the_backbone_of_a_classifier(task, monkeypatch):
    weights = weights_of(models.create_model(task.config.model, 7))
    state, notes = start_from(task, weights, monkeypatch)
    assert notes[1] == "Its head does not fit and starts from new weights: heads, rpn."
    for name, tree in state.params.items():
        if name not in FasterRCNN.heads:
            chex.assert_trees_all_equal(tree, weights["params"][name])
    assert "layer4_0" not in state.params


def test_another_network_is_refused(task, monkeypatch):
    wider = weights_of(models.create_model("resnet10x0.125", 7))
    with pytest.raises(UserError, match=r"does not fit config\.model='resnet10x0.0625': .*bn1"):
        start_from(task, wider, monkeypatch)


def test_measured_boxes_are_fractions_of_the_image(task, monkeypatch):
    """Not of the canvas, of which an image may be only a part."""
    whole = lambda logits, deltas, rois, valid, size, **_: (  # noqa: E731
        jnp.concatenate([jnp.zeros((1, 2)), size[None]], 1),
        jnp.ones(1),
        jnp.zeros(1, jnp.int32),
    )
    monkeypatch.setattr(faster_rcnn_task.rcnn, "rcnn_detections", whole)
    colors = dataclasses.replace(task, model=Colors(None, 10, 2, (1, 2)))
    arrays = {
        "image": np.zeros((2, 20, 40, 3), np.uint8),
        "size": np.array([[20, 40], [20, 10]], np.int32),
        "boxes": np.tile(np.float32([5, 2, 10, 8]), (2, 1, 1)),
        "label": np.zeros((2, 1), np.int32),
        "difficult": np.zeros((2, 1), bool),
    }
    xs = {"index": np.arange(2), "mask": np.ones(2, bool)}

    def measured(key):
        return colors.measure(colors.init(key), arrays, xs)[1]

    outputs = jax.jit(measured)(jax.random.key(0))
    np.testing.assert_allclose(outputs["found_boxes"][:, 0], [[0, 0, 1, 1]] * 2, rtol=1e-6)
    want = [[0.25, 0.05, 0.5, 0.2], [0.25, 0.2, 0.5, 0.8]]
    np.testing.assert_allclose(outputs["boxes"][:, 0], want, rtol=1e-5)


def test_detections_without_a_label_are_padding(task):
    box = np.float32([0.1, 0.2, 0.5, 0.6])
    outputs = {
        "found_boxes": np.broadcast_to(box, (1, 3, 4)),
        "scores": np.float32([[0.9, 0.8, 0.0]]),
        "found_labels": np.array([[3, 5, -1]]),
        "boxes": box[None, None],
        "label": np.array([[3]]),
        "difficult": np.array([[False]]),
    }
    assert task.score("test", outputs) == {"map": 1, "ap_triangle": 1}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", "resnet20", "strides 8, 16 and 32 that a detector needs"),
        ("image_size", None, r"config\.image_size, which is not set"),
        ("detection.crop", "cited", "the task 'faster_rcnn' does not use it"),
        ("detection.max_per_class", 9, "Leave it at 200"),
        ("detection.region_stage", 4, "one of 1, 2, 3 was expected"),
        ("detection.anchor_scales", (), "numbers above 0"),
        ("detection.test_proposals", (300,), "two numbers from 1"),
        ("stochastic_depth", 0.1, "with config.detection.freeze the backbone runs as in"),
    ],
)
def test_what_it_cannot_use_is_refused(key, value, message):
    config = config_of(**{key: value, "detection.freeze": key == "stochastic_depth"})
    with pytest.raises(UserError, match=message):
        tasks.create_task(config, create_mapping("pmap", 1))


def test_the_config_of_voc_is_the_papers_protocol():
    config = read_config("configs/voc.py:resnet50,faster_rcnn")
    assert (config.model, config.task, config.image_size) == ("resnet50", "faster_rcnn", 1000)
    assert (16_551 // config.batch_size) * config.epochs == 119_944
    detection = config.detection
    assert (detection.shorter_side, detection.nms_threshold, detection.freeze) == (600, 0.3, True)
