"""Faster R-CNN's network: parameters, shapes, and how its parts fit together."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutmix_jax.detection import faster_rcnn
from cutmix_jax.detection.roi_align import roi_align
from cutmix_jax.models import create_model
from cutmix_jax.models.resnet import BasicBlock, ResNet
from tests.models.reference import count, random_variables, shapes_of

TINY = {"stage_sizes": (1, 1, 1, 1), "block": BasicBlock, "width": 4, "large_stem": True}


@pytest.fixture(autouse=True, scope="module")
def _quick_compilation():
    """Compiling takes longer than running in these tests."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def network(name="resnet18x0.25", classes=3, **options):
    return faster_rcnn.FasterRCNN(create_model(name, None), classes, **options)


def test_parameters_with_resnet50_and_voc():
    """The backbone has those of torchvision's ResNet-50, 25,557,032, without its head."""
    found = shapes_of(network("resnet50", 20), 64)["params"]
    rpn = (9 * 1024 + 1) * 512 + (512 + 1) * (2 + 4) * 9
    heads = (2048 + 1) * (1 + 4) * 21
    assert (count(found["rpn"]), count(found["heads"])) == (rpn, heads)
    assert count(found) == 25_557_032 - 2049 * 1000 + rpn + heads


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("name", ["resnet18x0.25", "resnext50_32x4d", "se_resnet50"])
def test_the_backbone_has_the_parameters_of_a_classifier(name, stage):
    detector = shapes_of(network(name, region_stage=stage), 64)
    classifier = shapes_of(create_model(name, 10), 64)
    for collection, tree in detector.items():
        for module, shapes in tree.items():
            if module not in ("rpn", "heads"):
                assert classifier[collection][module] == shapes
    gone = {module.split("_")[0] for module in classifier["params"].keys() - detector["params"]}
    assert gone == {"fc", *(f"layer{i}" for i in range(stage + 2, 5))}


@pytest.mark.parametrize(("height", "width", "stage"), [(128, 96, 3), (100, 131, 3), (50, 77, 2)])
def test_there_is_an_output_for_each_anchor(height, width, stage):
    model = network(region_stage=stage, scales=(2, 4))
    images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
    init = functools.partial(model.init_with_output, jax.random.key(0))
    (features, rpn, head), _ = jax.eval_shape(init, images)
    assert features.shape[1:3] == (-(-height // model.stride), -(-width // model.stride))
    anchors = len(model.anchors(height, width))
    assert anchors == 6 * features.shape[1] * features.shape[2]
    assert [x.shape for x in rpn] == [(2, anchors, 2), (2, anchors, 4)]
    assert [x.shape for x in head] == [(2, 1, 4), (2, 1, 4, 4)]


def test_in_bfloat16_the_outputs_are_float32():
    backbone = create_model("resnet18x0.25", None, dtype=jnp.bfloat16)
    model = faster_rcnn.FasterRCNN(backbone, 3)
    init = functools.partial(model.init_with_output, jax.random.key(0))
    (features, *found), variables = jax.eval_shape(init, jnp.zeros((1, 64, 64, 3)))
    assert features.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves((found, variables))} == {jnp.dtype("float32")}


@pytest.fixture(scope="module")
def tiny():
    model = faster_rcnn.FasterRCNN(ResNet(num_classes=None, **TINY), 3, scales=(1, 2))
    return model, random_variables(model, jnp.zeros((1, 64, 64, 3)))


def test_outputs_are_in_the_order_of_the_anchors(tiny):
    """What changes in one cell of the map concerns the anchors in the 3x3 cells around it."""
    model, variables = tiny
    features = np.ones((2, 4, 5, 16), np.float32)
    features[1, 1, 3] = 9
    logits, deltas = model.apply(variables, features, method="propose")
    anchors = model.anchors(64, 80)
    cells = (anchors[:, :2] + anchors[:, 2:]) / 2 // 16
    near = (np.abs(cells - [1, 3]) <= 1).all(1)
    assert near.sum() == 9 * 6
    for found in (logits, deltas):
        np.testing.assert_array_equal((found[0] != found[1]).any(-1), near)


def test_regions_are_seen_by_the_last_stage_each_alone(tiny):
    model, variables = tiny
    features = np.random.RandomState(0).uniform(size=(2, 4, 5, 16)).astype(np.float32)
    regions = np.float32([[[0, 0, 40, 30], [9, 5, 64, 80]], [[20, 30, 60, 70], [0, 0, 0, 0]]])
    logits, deltas = model.apply(variables, features, regions, method="classify")
    last = ResNet(num_classes=None, first=4, **TINY)
    heads = nn.Dense(4), nn.Dense(16)
    names = "class", "box"
    for i in range(2):
        for j in range(2):
            cut = roi_align(features[i], regions[i, j][None])
            mean = last.apply(variables, cut).mean((1, 2))
            want = [
                head.apply({"params": variables["params"]["heads"][name]}, mean)[0]
                for head, name in zip(heads, names, strict=True)
            ]
            np.testing.assert_allclose(logits[i, j], want[0], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(deltas[i, j].ravel(), want[1], rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused():
    for name in ("resnet20", "ge_resnet50"):
        with pytest.raises(ValueError, match="strides 8, 16 and 32 and without a head"):
            shapes_of(network(name), 224)
    with pytest.raises(ValueError, match="without a head"):
        shapes_of(faster_rcnn.FasterRCNN(create_model("resnet18x0.25", 5), 3), 64)
    with pytest.raises(ValueError, match="region_stage is 4, but 1, 2 or 3"):
        shapes_of(network(region_stage=4), 64)
