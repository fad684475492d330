"""SSD's network and detections: shapes and counts, PyTorch's step, NMS in a plain loop."""

import doctest
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cutmix_jax import optimizer
from cutmix_jax.config import base_config
from cutmix_jax.detection import boxes as boxes_lib
from cutmix_jax.detection import priors, ssd
from cutmix_jax.detection.matching import ssd_targets
from cutmix_jax.detection.ssd_loss import ssd_loss
from cutmix_jax.models import create_model
from cutmix_jax.models.resnet import BasicBlock, ResNet
from tests.models.reference import count, images_of, random_variables, shapes_of, torch_resnet

TINY = {"stage_sizes": (1, 1, 1, 1), "block": BasicBlock, "width": 4, "large_stem": True}
SIDE, CLASSES = 48, 3


pytestmark = pytest.mark.usefixtures("unoptimized")


@pytest.mark.parametrize(
    ("size", "sides", "number"),
    [(300, (38, 19, 10, 5, 3, 1), 8732), (128, (16, 8, 4, 2, 1), 1524), (32, (4, 2, 1), 84)],
)
def test_maps_and_priors_of_an_image_size(size, sides, number):
    layout = ssd.ssd_layout(size)
    assert layout.map_shapes == tuple((side, side) for side in sides)
    assert ssd.priors_of(size).shape == (number, 4)
    shape = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    model = ssd.SSD(create_model("resnet18x0.25", None), CLASSES)
    (logits, offsets), _ = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x), shape
    )
    assert logits.shape == (2, number, CLASSES + 1)
    assert offsets.shape == (2, number, 4)


def test_in_bfloat16_the_outputs_are_float32():
    model = ssd.SSD(create_model("resnet18x0.25", None, dtype=jnp.bfloat16), CLASSES)
    images, maps = jnp.zeros((1, 64, 64, 3)), []

    def note(next_function, args, kwargs, context):
        if isinstance(context.module, ssd.Heads):
            maps.extend(args[0])
        return next_function(*args, **kwargs)

    with nn.intercept_methods(note):
        found, variables = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images))
    assert {x.dtype for x in (*found, *jax.tree.leaves(variables))} == {jnp.dtype("float32")}
    assert {x.dtype for x in maps} == {jnp.dtype("bfloat16")}


def test_300_pixels_have_the_priors_of_ssd300():
    np.testing.assert_array_equal(ssd.priors_of(300), priors.ssd_priors())
    defaults = priors.MAP_SHAPES, priors.STEPS, priors.SIZES, priors.RATIOS
    assert ssd.ssd_layout(300) == defaults


@pytest.mark.parametrize("size", [32, 33, 64, 200, 320, 512])
def test_a_cell_of_the_last_map_sees_the_whole_image(size):
    *_, last = ssd.priors_of(size)
    np.testing.assert_allclose((last[:2] + last[2:]) / 2, 0.5)
    centers = (ssd.priors_of(size)[:, :2] + ssd.priors_of(size)[:, 2:]) / 2
    assert centers.min() > 0
    assert centers.max() <= 1 + 1e-6


def test_parameters_of_ssd300():
    """The cited code has 31,990,958, with an extra that no map of 300 pixels reaches."""
    whole = shapes_of(ssd.SSD(create_model("resnet50", None), 20), 300)["params"]
    assert count(whole) == 31_662_894
    assert count(whole) + (256 + 1) * 128 + (128 * 9 + 1) * 256 == 31_990_958
    assert (count(whole["norm"]), count(whole["heads"])) == (512, 5_760_750)


@pytest.mark.parametrize("name", ["resnet18x0.25", "resnet50", "resnext50_32x4d", "se_resnet50"])
def test_the_backbone_has_the_parameters_of_a_classifier(name):
    detector = shapes_of(ssd.SSD(create_model(name, None), CLASSES), 64)
    classifier = shapes_of(create_model(name, 10), 64)
    del classifier["params"]["fc"]
    for collection, tree in classifier.items():
        for module, shapes in tree.items():
            assert detector[collection][module] == shapes
    new = detector["params"].keys() - classifier["params"].keys()
    assert new == {"norm", "extras", "heads"}
    assert detector["batch_stats"].keys() == classifier["batch_stats"].keys()


@pytest.mark.parametrize("name", ["resnet20", "resnet18_cifar", "vgg16_gap", "ge_resnet50"])
def test_networks_without_the_strides_do_not_fit(name):
    assert not ssd.fits(create_model(name, None))
    with pytest.raises(ValueError, match="strides 8, 16 and 32"):
        shapes_of(ssd.SSD(create_model(name, None), CLASSES), 64)


def test_what_does_not_fit_is_refused():
    assert not ssd.fits(create_model("resnet50", None, last_stride=1))
    with pytest.raises(ValueError, match="without a head"):
        shapes_of(ssd.SSD(create_model("resnet18", 10), CLASSES), 64)
    with pytest.raises(ValueError, match="image_size is 31"):
        ssd.ssd_layout(31)
    model = ssd.SSD(create_model("resnet18", None), CLASSES)
    with pytest.raises(ValueError, match=r"images has shape \(1, 64, 32, 3\)"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 32, 3)))
    with pytest.raises(ValueError, match="logits has shape"):
        ssd.detect(jnp.zeros((1, 5, 3)), jnp.zeros((1, 4, 4)), jnp.zeros((4, 4)))


def test_outputs_are_in_the_order_of_the_priors():
    """Maps, then rows, then columns, then the priors of a cell: heads that copy their input."""
    first = np.arange(6, dtype=np.float32).reshape(1, 2, 3, 1)
    heads = ssd.Heads(functools.partial(nn.Conv), [4, 6], 1)
    shapes = jax.eval_shape(heads.init, jax.random.key(0), [first, first + 10])
    copying = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    for i, cells in enumerate((4, 6), 1):
        layer = copying["params"][f"box{i}"]
        layer["kernel"][1, 1] = 1
        layer["bias"] += np.repeat(np.arange(cells) * 100, 4)
    logits, offsets = jax.jit(heads.apply)(copying, [first, first + 10])
    want = [
        [pixel + 100 * cell] * 4
        for start, cells in ((0, 4), (10, 6))
        for pixel in range(start, start + 6)
        for cell in range(cells)
    ]
    np.testing.assert_array_equal(offsets[0], want)
    assert logits.shape == (1, 60, 2)


def test_the_norm_of_a_pixel_is_its_scale():
    x = np.random.RandomState(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    norm = ssd.L2Norm()
    scaled, variables = norm.init_with_output(jax.random.key(0), x)
    np.testing.assert_allclose(np.linalg.norm(scaled, axis=-1), 20, rtol=1e-6)
    gradient = jax.grad(lambda x: norm.apply(variables, x).sum())(jnp.zeros((1, 1, 1, 5)))
    assert np.isfinite(gradient).all()


# One step of a tiny SSD, next to PyTorch.

MODEL = ssd.SSD(ResNet(num_classes=None, **TINY), CLASSES)
PRIORS = ssd.priors_of(SIDE)


@jax.jit
def step_gradient(variables, images, boxes, labels):
    """The loss, its gradient, and the targets."""
    targets = jax.vmap(functools.partial(ssd_targets, PRIORS))(boxes, labels)

    def loss(params):
        found, _ = MODEL.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return sum(ssd_loss(*found, *targets))

    return *jax.value_and_grad(loss)(variables["params"]), targets


def torch_ssd(torch, variables):
    """The same network in PyTorch, with our weights."""
    backbone = torch_resnet(torch, (SIDE, SIDE), num_classes=1, **TINY)
    extras, heads = variables["params"]["extras"], variables["params"]["heads"]

    def conv(tree, **options):
        kernel = torch.tensor(np.asarray(tree["kernel"]).transpose(3, 2, 0, 1))
        layer = torch.nn.Conv2d(kernel.shape[1], kernel.shape[0], kernel.shape[2], **options)
        layer.weight.data, layer.bias.data = kernel, torch.tensor(np.asarray(tree["bias"]))
        return layer

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = backbone
            scale = variables["params"]["norm"]["scale"]
            self.scale = torch.nn.Parameter(torch.tensor(np.asarray(scale)))
            # Maps of sides 6, 3, 2 and 1.
            self.extras = torch.nn.Sequential(
                conv(extras["layer1_conv1"]),
                torch.nn.ReLU(),
                conv(extras["layer1_conv2"], stride=2, padding=1),
                torch.nn.ReLU(),
            )
            names = [f"{kind}{i}" for kind in ("class", "box") for i in range(1, 5)]
            self.heads = torch.nn.ModuleDict({name: conv(heads[name], padding=1) for name in names})

        def forward(self, x):
            net, maps = self.backbone, []
            x = net.layer1(net.pool(torch.relu(net.bn1(net.conv1(x)))))
            for layer in (net.layer2, net.layer3, net.layer4, self.extras):
                maps.append(x := layer(x))
            maps[0] = torch.nn.functional.normalize(maps[0]) * self.scale[:, None, None]

            def flat(kind, size):
                outputs = [self.heads[f"{kind}{i}"](x) for i, x in enumerate(maps, 1)]
                rows = [x.permute(0, 2, 3, 1).reshape(len(x), -1, size) for x in outputs]
                return torch.cat(rows, 1)

            return flat("class", CLASSES + 1), flat("box", 4)

    return Net()


def torch_loss(torch, logits, offsets, classes, true_offsets):
    """As SSD's, by a sort of every image's losses."""
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), classes.flatten(), reduction="none"
    ).reshape(classes.shape)
    positive, total = classes > 0, 0
    for own, mask in zip(losses, positive, strict=True):
        hard = own[~mask].sort(descending=True).values[: 3 * int(mask.sum())]
        total = total + own[mask].sum() + hard.sum()
    error = torch.nn.functional.smooth_l1_loss(
        offsets[positive], true_offsets[positive], reduction="sum"
    )
    return (total + error) / positive.sum()


def some_objects(seed=0, images=4, objects=3):
    random = np.random.RandomState(seed)
    low = random.uniform(0, 0.6, (images, objects, 2))
    boxes = np.concatenate([low, low + random.uniform(0.1, 0.4, low.shape)], -1)
    return boxes.astype(np.float32), random.randint(0, CLASSES, (images, objects))


@pytest.fixture(scope="module")
def tiny():
    """Images, and variables that are not as initialized."""
    images = images_of((SIDE, SIDE))
    return images, random_variables(MODEL, images)


def test_two_steps_of_sgd_are_pytorchs(tiny):
    torch = pytest.importorskip("torch", reason="needs PyTorch as the numeric reference")
    torch.set_num_threads(1)
    from tests.models.reference import torch_state

    images, variables = tiny
    boxes, labels = some_objects()
    net = torch_ssd(torch, variables)
    new = {"norm", "extras", "heads"}

    def of_backbone(tree):
        return {k: {m: x for m, x in v.items() if m not in new} for k, v in tree.items()}

    state = {k: torch.tensor(v) for k, v in torch_state(of_backbone(variables)).items()}
    net.backbone.load_state_dict(state, strict=False)
    ours = {key: variables["params"][key] for key in variables["params"]}
    config = base_config()
    config.learning_rate, config.weight_decay, config.nesterov = 1e-3, 5e-4, False
    sgd = optimizer.create_optimizer(config, optax.constant_schedule(1e-3), ())
    opt_state, update = sgd.init(ours), jax.jit(sgd.update)
    theirs = torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4)
    inputs = torch.tensor(images.transpose(0, 3, 1, 2))
    for _ in range(2):
        loss, grads, targets = step_gradient({**variables, "params": ours}, images, boxes, labels)
        updates, opt_state = update(grads, opt_state, ours)
        ours = jax.tree.map(np.add, ours, updates)
        theirs.zero_grad()
        targets = [torch.tensor(np.asarray(x)) for x in targets]
        # oneDNN corrupts memory in the gradient of maps of side 1.
        with torch.backends.mkldnn.flags(enabled=False):
            expected = torch_loss(torch, *net(inputs), targets[0].long(), targets[1])
            expected.backward()
        theirs.step()
        assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    moved = {name: x.detach().numpy() for name, x in net.named_parameters()}
    pairs = torch_state(of_backbone({"params": ours})).items()
    found = {f"backbone.{name}": x for name, x in pairs} | {"scale": ours["norm"]["scale"]}
    for i, name in ((0, "layer1_conv1"), (2, "layer1_conv2")):
        found |= torch_arrays(f"extras.{i}", ours["extras"][name])
    for name, tree in ours["heads"].items():
        found |= torch_arrays(f"heads.{name}", tree)
    assert found.keys() == {name for name in moved if not name.startswith("backbone.fc")}
    for name, x in found.items():
        np.testing.assert_allclose(x, moved[name], atol=1e-5, err_msg=name)


def torch_arrays(name, tree):
    kernel = np.asarray(tree["kernel"]).transpose(3, 2, 0, 1)
    return {f"{name}.weight": kernel, f"{name}.bias": tree["bias"]}


@pytest.mark.parametrize("case", ["none", "one", "all", "degenerate", "mixed"])
def test_no_case_gives_nan(tiny, case):
    images, variables = tiny
    boxes, labels = some_objects()
    boxes, labels = boxes.copy(), labels.copy()
    if case in ("none", "mixed"):
        labels[: 4 if case == "none" else 1] = -1
    if case in ("one", "mixed"):
        labels[:, 1:] = -1
    if case in ("degenerate", "mixed"):
        boxes[:, 0, 2:] = boxes[:, 0, :2]  # empty
        boxes[:, 1] = [0.5, 0.2, 0.5, 0.8]  # a line
        boxes[:, 2] = 0
    with jax.debug_nans(True):
        loss, grads, _ = step_gradient(variables, images, boxes, labels)
    assert np.isfinite(loss)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    if case == "none":
        assert loss == 0
        assert not any(map(np.any, jax.tree.leaves(grads)))


# Detections.

OWN = ssd.priors_of(32)
find = jax.jit(functools.partial(ssd.detect, max_outputs=8))


def plain_nms(boxes, scores, threshold, most):
    """Indices of the boxes that stay, best first."""
    kept = []
    for i in np.argsort(-scores, kind="stable")[:most]:
        if scores[i] > 0.01 and all(plain_iou(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


def plain_iou(a, b):
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    common = max(height, 0) * max(width, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def test_detections_are_those_of_a_plain_loop():
    random = np.random.RandomState(0)
    logits = random.normal(0, 2, (2, len(OWN), CLASSES + 1)).astype(np.float32)
    offsets = random.normal(0, 0.5, (2, len(OWN), 4)).astype(np.float32)
    found, scores, mask = find(logits, offsets, OWN)
    assert found.shape == (2, CLASSES, 8, 4)
    exponents = np.exp(logits.astype(float))
    chances = exponents / exponents.sum(-1, keepdims=True)
    for i in range(2):
        moved = np.asarray(boxes_lib.decode(offsets[i], OWN))
        for label in range(CLASSES):
            kept = plain_nms(moved, chances[i, :, label + 1], 0.45, 8)
            assert mask[i, label].sum() == len(kept) > 0
            np.testing.assert_array_equal(found[i, label][mask[i, label]], moved[kept])
            want = np.pad(chances[i, kept, label + 1], (0, 8 - len(kept)))
            np.testing.assert_allclose(scores[i, label], want, rtol=1e-5)


def test_a_background_is_not_detected():
    logits = np.zeros((2, len(OWN), CLASSES + 1), np.float32)
    logits[..., 0] = 20
    _, scores, mask = find(logits, np.zeros((2, len(OWN), 4), np.float32), OWN)
    assert not mask.any()
    assert not scores.any()


def test_examples_of_the_docstrings():
    result = doctest.testmod(ssd)
    assert result.attempted > 5
    assert result.failed == 0
