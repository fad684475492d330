"""Faster R-CNN's network: parameters, shapes, how its parts fit together, PyTorch's step."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cutmix_jax import optimizer
from cutmix_jax.config import base_config
from cutmix_jax.detection import faster_rcnn, rcnn
from cutmix_jax.detection.roi_align import roi_align
from cutmix_jax.models import create_model
from cutmix_jax.models.resnet import BasicBlock, ResNet
from tests.models.reference import (
    count,
    images_of,
    random_variables,
    shapes_of,
    torch_resnet,
    torch_state,
)

TINY = {"stage_sizes": (1, 1, 1, 1), "block": BasicBlock, "width": 4, "large_stem": True}


pytestmark = pytest.mark.usefixtures("unoptimized")


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


# A step of a tiny Faster R-CNN, next to PyTorch's with the same sampled anchors and regions.

BATCH, SIDE = 4, 64


def samples_of(anchors, seed=0):
    """Kinds and offsets of anchors; regions inside the image, their classes and offsets."""
    random = np.random.RandomState(seed)
    low = random.uniform(0, 30, (BATCH, 8, 2))
    regions = np.concatenate([low, low + random.uniform(4, 34, low.shape)], -1)
    kinds, classes = (
        random.randint(-1, most, (BATCH, count)) for most, count in ((2, anchors), (4, 8))
    )
    offsets, own_offsets = (
        np.where(x[..., None] > 0, random.normal(size=(*x.shape, 4)), 0) for x in (kinds, classes)
    )
    floats = offsets, regions, own_offsets
    offsets, regions, own_offsets = (x.astype(np.float32) for x in floats)
    return kinds, offsets, regions, classes, own_offsets


@functools.partial(jax.jit, static_argnums=0)
def step_gradient(model, variables, images, kinds, offsets, regions, classes, own_offsets):
    """The loss and its gradient, as in training that freezes nothing."""

    def loss(params):
        run = functools.partial(model.apply, {**variables, "params": params})
        features, _ = run(images, train=True, method="features", mutable=["batch_stats"])
        head = run(features, regions, method="classify")
        rpn = rcnn.rpn_loss(*run(features, method="propose"), kinds, offsets)
        return sum(rpn) + sum(rcnn.head_loss(*head, classes, own_offsets))

    return jax.value_and_grad(loss)(variables["params"])


def torch_faster_rcnn(torch, variables):
    """The same network in PyTorch, with our weights. ROIAlign is `grid_sample` and a mean."""
    net = torch_resnet(torch, (SIDE, SIDE), num_classes=1, **TINY)
    net.rpn = torch.nn.ModuleDict(
        {
            "conv": torch.nn.Conv2d(16, 32, 3, padding=1),
            "class": torch.nn.Conv2d(32, 2 * 6, 1),
            "box": torch.nn.Conv2d(32, 4 * 6, 1),
        }
    )
    net.heads = torch.nn.ModuleDict(
        {"class": torch.nn.Linear(32, 4), "box": torch.nn.Linear(32, 4 * 4)}
    )
    del net.fc
    state = {name: torch.tensor(x) for name, x in torch_state(variables).items()}
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    net.train().layer4.eval()  # regions are normalized by the running statistics
    return net


def torch_cut(torch, features, regions):
    """The 7x7 cells of each region, in which 2x2 bilinear samples are averaged."""
    height, width = features.shape[2:]
    corners, steps = regions[..., None] / 16 - 0.5, (torch.arange(14) + 0.5) / 14
    y, x = ((1 - steps) * corners[:, :, k] + steps * corners[:, :, k + 2] for k in (0, 1))
    y, x = torch.broadcast_tensors(y[..., None], x[:, :, None])
    grid = torch.stack([2 * x / (width - 1), 2 * y / (height - 1)], -1) - 1
    samples = torch.nn.functional.grid_sample(
        features, grid.flatten(1, 2), padding_mode="border", align_corners=True
    )
    cells = torch.nn.functional.avg_pool2d(samples, 2).unflatten(2, (-1, 7))
    return cells.transpose(1, 2).flatten(0, 1)


def torch_loss(torch, net, images, kinds, offsets, regions, classes, own_offsets):
    def loss(logits, deltas, classes, offsets, sigma):
        used, objects = classes >= 0, classes > 0
        error = torch.nn.functional.smooth_l1_loss(
            deltas[objects], offsets[objects], reduction="sum", beta=1 / sigma**2
        )
        return torch.nn.functional.cross_entropy(logits[used], classes[used]) + error / used.sum()

    x = net.layer1(net.pool(torch.relu(net.bn1(net.conv1(images)))))
    features = net.layer3(net.layer2(x))
    hidden = torch.relu(net.rpn["conv"](features))
    logits, deltas = (
        net.rpn[name](hidden).permute(0, 2, 3, 1).reshape(len(images), -1, size)
        for name, size in (("class", 2), ("box", 4))
    )
    means = net.layer4(torch_cut(torch, features, regions)).mean((2, 3))
    classes = classes.flatten()
    own = net.heads["box"](means).unflatten(1, (-1, 4))[range(len(means)), classes]
    return loss(logits, deltas, kinds, offsets, 3) + loss(
        net.heads["class"](means), own, classes, own_offsets.flatten(0, 1), 1
    )


def test_a_step_of_sgd_is_pytorchs(tiny):
    torch = pytest.importorskip("torch", reason="needs PyTorch as the numeric reference")
    torch.set_num_threads(1)
    model, variables = tiny
    images, samples = images_of((SIDE, SIDE), BATCH), samples_of(len(model.anchors(SIDE, SIDE)))
    loss, grads = step_gradient(model, variables, images, *samples)
    config = base_config()
    config.weight_decay, config.nesterov = 1e-4, False
    schedule = optax.constant_schedule(1e-2)
    sgd = optimizer.create_optimizer(config, schedule, undecayed=("bias",))
    before = variables["params"]
    updates, _ = jax.jit(sgd.update)(grads, sgd.init(before), before)
    ours = jax.tree.map(np.add, before, updates)

    net = torch_faster_rcnn(torch, variables)
    named = dict(net.named_parameters())
    groups = [
        {"params": [x for name, x in named.items() if name.endswith("bias") == bias], **options}
        for bias, options in ((True, {"weight_decay": 0}), (False, {"weight_decay": 1e-4}))
    ]
    theirs = torch.optim.SGD(groups, 1e-2, momentum=0.9)
    # oneDNN corrupts memory in the gradient of small maps.
    with torch.backends.mkldnn.flags(enabled=False):
        inputs = images.transpose(0, 3, 1, 2), *samples
        expected = torch_loss(torch, net, *map(torch.tensor, inputs))
        expected.backward()
    theirs.step()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    assert torch_state({"params": grads}).keys() == named.keys()
    for tree, values in ((grads, {k: x.grad for k, x in named.items()}), (ours, named)):
        for name, x in torch_state({"params": tree}).items():
            np.testing.assert_allclose(x, values[name].detach(), atol=1e-5, err_msg=name)


def test_what_does_not_fit_is_refused():
    for name in ("resnet20", "ge_resnet50"):
        with pytest.raises(ValueError, match="strides 8, 16 and 32 and without a head"):
            shapes_of(network(name), 224)
    with pytest.raises(ValueError, match="without a head"):
        shapes_of(faster_rcnn.FasterRCNN(create_model("resnet18x0.25", 5), 3), 64)
    with pytest.raises(ValueError, match="region_stage is 4, but 1, 2 or 3"):
        shapes_of(network(region_stage=4), 64)
