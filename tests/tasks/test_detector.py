"""Detectors on mixed images: which objects they learn, and where."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutmix_jax import UserError, methods, mix, tasks
from cutmix_jax.command_line import read_config
from cutmix_jax.parallel import create_mapping
from cutmix_jax.tasks.detector import mix_objects
from tests.tasks.runs import SMALL_FASTER_RCNN, Colors, Linear, one_step

pytestmark = pytest.mark.usefixtures("small_network")

SMALL_SSD = {"model": "resnet10x0.0625", "image_size": 32, "train_examples": 32, "max_objects": 2}
SMALL = {"ssd": SMALL_SSD, "faster_rcnn": SMALL_FASTER_RCNN}


def create(detector, **overrides):
    config = read_config(f"configs/shapes_detection.py:resnet18x0.25,{detector}")
    config.update_from_flattened_dict(SMALL[detector] | overrides)
    return tasks.create_task(config, create_mapping("pmap", 1))


def plan_of(box, **fields):
    box = jnp.array([box], jnp.int32)
    return mix.Plan(partner=jnp.array([1, 0]), box=box, lam=jnp.ones(1), sides=(20, 10), **fields)


def batch_of(boxes, labels, **fields):
    return {
        "image": jnp.broadcast_to(jnp.array([0.0, 1.0])[:, None, None, None], (2, 20, 10, 3)),
        "boxes": jnp.array(boxes) / jnp.array([20.0, 10, 20, 10]),
        "label": jnp.array(labels),
        "difficult": jnp.array([[True, False], [False, False]]),
    } | fields


BOXES = [[[0, 0, 20, 5], [2, 6, 4, 8]], [[0, 0, 20, 10], [0, 0, 0, 0]]]


def test_objects_follow_the_pixels():
    batch = batch_of(BOXES, [[3, 4], [5, -1]])
    mixed = jax.jit(mix_objects)(plan_of([[0, 5], [12, 10]]), batch)
    image = np.zeros((20, 10, 3))
    image[:12, 5:] = 1
    np.testing.assert_array_equal(mixed["image"][0], image)
    # The second object is covered. Of the partner's, three tenths are pasted.
    np.testing.assert_array_equal(mixed["label"][0], [3, -1, 5, -1])
    np.testing.assert_allclose(mixed["boxes"][0, [0, 2]], [[0, 0, 1, 0.5], [0, 0.5, 0.6, 1]])
    np.testing.assert_array_equal(mixed["boxes"][0, [1, 3]], 0)
    np.testing.assert_array_equal(mixed["difficult"][0], [True, False, False, False])
    # The other image loses no object whole, and gets one below the tenth that is learned.
    np.testing.assert_array_equal(mixed["label"][1], [5, -1, -1, 4])


@pytest.mark.parametrize(("box", "label"), [([[0, 0], [20, 9]], 3), ([[0, 0], [19, 10]], -1)])
def test_an_object_is_learned_from_a_tenth_on(box, label):
    batch = batch_of([[[0, 0, 20, 10]] * 2] * 2, [[3, -1], [4, -1]])
    assert mix_objects(plan_of(box, fill=0.0), batch)["label"][0, 0] == label


def test_an_image_in_its_canvas_grows_with_what_is_pasted():
    size = jnp.array([[10, 10], [20, 6]])
    batch = batch_of(BOXES, [[3, 4], [5, -1]], size=size)
    for box, expected in (
        ([[5, 3], [15, 9]], [[15, 10], [20, 9]]),
        ([[10, 6], [20, 10]], [[10, 10], [20, 6]]),  # only padding is pasted
        ([[0, 0], [0, 0]], [[10, 10], [20, 6]]),
    ):
        mixed = mix_objects(plan_of(box), batch)
        np.testing.assert_array_equal(mixed["size"], expected)
        assert mixed["size"].dtype == size.dtype


@pytest.mark.parametrize(
    ("detector", "network", "options"),
    [
        ("ssd", Linear, {"num_classes": 10}),
        (
            "faster_rcnn",
            Colors,
            {"backbone": None, "num_classes": 10, "region_stage": 2, "scales": (1, 2)},
        ),
    ],
)
def test_a_detector_learns_from_mixed_images(detector, network, options):
    """The images are mixed as the step's plan says, and training takes a step."""
    task = create(detector, **{"mix.name": "cutmix", "mix.scope": "image", "mix.prob": 0.7})
    assert "CutMix: one 'exact' box per image" in task.describe()["mix"]
    task = dataclasses.replace(task, model=network(**options))
    plain = dataclasses.replace(task)
    vars(plain)["mix"] = mix.create_mix("none")
    arrays = task.mapping.replicate(task.data.arrays["train"])
    xs = task.mapping.shard(next(iter(task.data.train_batches(0))))
    step = task.mapping.replicate(np.int32(3))

    def images_of(task):
        batch = task.mapping.map(lambda *given: task.augmented(given[1], given[2], given[0]))
        return jax.device_get(batch(step, arrays, xs))

    before, after = images_of(plain), images_of(task)
    sample = methods.create_mix(task.config.mix).sample
    (plan,) = jax.vmap(
        lambda _: sample(tasks.mixing_key(0, 3), len(before["label"]), (32, 32), axis_name="batch"),
        axis_name="batch",
    )(jnp.arange(1))
    expected = jax.jit(mix_objects)(jax.tree.map(lambda x: x[0], plan), before)
    for name, value in expected.items():
        np.testing.assert_allclose(after[name], value, atol=1e-6, err_msg=name)
    assert (after["label"][:, 2:] >= 0).any()
    _, counters = one_step(task)
    assert np.isfinite(counters["loss"].total).all()


def test_cutout_fills_with_the_color_that_is_0_once_normalized():
    task = create("ssd", **{"mix.name": "cutout", "mix.size": 32.0, "mix.box": "paper"})
    batch = {
        "image": jnp.full((1, 32, 32, 3), 0.5),
        "boxes": jnp.array([[[0.0, 0, 1, 1]]]),
        "label": jnp.zeros((1, 1), jnp.int32),
        "difficult": jnp.zeros((1, 1), bool),
    }
    xs = {"seed": np.int32(0)}
    mixed = jax.vmap(lambda _: task.mixed(batch, xs, 0), axis_name="batch")(jnp.arange(1))
    colors = np.unique(np.round(mixed["image"].reshape(-1, 3), 4), axis=0)
    np.testing.assert_allclose(sorted(colors.tolist()), [[0.5] * 3, [0.58, 0.53, 0.51]], atol=1e-4)


@pytest.mark.parametrize(
    ("detector", "mixing", "message"),
    [
        ("ssd", {"name": "mixup"}, "'mixup', but objects in a blend have no box or weight"),
        ("ssd", {"name": "cutmix_or_mixup"}, "Use a mix of boxes, such as cutmix"),
        ("ssd", {"name": "feature_cutmix"}, r"at image, stem.*config\.mix\.layers=\('image',\)"),
        ("ssd", {"name": "cutmix", "size": 40.0}, r"images of \(32, 32\): size=40.0 does not fit"),
        ("ssd", {"name": "cutmx"}, "There is no method 'cutmx'"),
        ("ssd", {"alpha": 0.5}, "'none' has no parameter 'alpha'"),
        ("faster_rcnn", {"name": "mixup"}, "objects in a blend"),
    ],
)
def test_mixes_that_it_cannot_learn_from_are_refused(detector, mixing, message):
    with pytest.raises(UserError, match=message):
        create(detector, **{f"mix.{key}": value for key, value in mixing.items()})
