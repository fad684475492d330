"""A network next to its PyTorch reference: names, random weights, and the comparison."""

import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cutmix_jax.models.layers import GatherExcite


def images_of(side, batch=4, seed=0):
    height, width = side
    return np.random.default_rng(seed).normal(size=(batch, height, width, 3)).astype(np.float32)


def shapes_of(model, side=32):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean"}


def torch_state(variables, renamed=()):
    """Our variables or gradients, with PyTorch's names and layouts.

    `renamed` are pairs: a pattern of torchvision's names, and what a reference has instead.
    """
    state = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        *modules, last = [entry.key for entry in path][1:]
        modules = [
            name.replace("_", ".")
            if name.startswith(("layer", "features"))
            else {"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"}.get(
                name, name
            )
            for name in modules
        ]
        leaf = np.asarray(leaf)
        if last == "kernel":
            leaf = leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T
        name = {**LEAVES, "var": "running_var"}[last]
        name = ".".join([*modules, name])
        for pattern, there in renamed:
            name = re.sub(pattern, there, name)
        state[name] = leaf
    return state


def random_variables(model, images, seed=0):
    """Scales, shifts and statistics that are not 0 or 1, which would hide mistakes."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        spread = math.sqrt(2 / math.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.2
        return rng.normal(0, spread, leaf.shape).astype(np.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree_util.tree_map_with_path(draw, shapes)


def assert_same_numbers(model, reference, side, rtol=1e-4, renamed=()):
    """Logits in evaluation; logits, running statistics and gradients in training.

    Args:
      model: of ours, with 7 classes.
      reference: a PyTorch module with the same names, in which weights of ours are loaded.
      side: height and width of the images.
      rtol: of the logits in evaluation; near zero, of their spread.
      renamed: as for `torch_state`, if the reference has other names.
    """
    import torch

    torch.set_num_threads(1)
    images = images_of(side)
    variables = random_variables(model, images)
    before = torch_state(variables, renamed)
    missing, unexpected = reference.load_state_dict(
        {name: torch.tensor(leaf) for name, leaf in before.items()}, strict=False
    )
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    inputs = torch.tensor(images.transpose(0, 3, 1, 2))
    weights = np.random.default_rng(1).normal(size=(4, 7)).astype(np.float32)

    def loss(params):
        logits, state = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return (logits * weights).sum(), (logits, state)

    logits = jax.jit(model.apply)(variables, images)
    expected = reference.eval()(inputs).detach().numpy()
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(logits, expected, rtol=rtol, atol=rtol * np.std(expected))

    grads, (logits, state) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    outputs = reference.train()(inputs)
    (outputs * torch.tensor(weights)).sum().backward()
    np.testing.assert_allclose(logits, outputs.detach().numpy(), rtol=1e-3, atol=1e-3)

    expected = {name: leaf.numpy() for name, leaf in reference.state_dict().items()}
    for name, leaf in torch_state(state, renamed).items():
        # PyTorch keeps n/(n-1) times the batch variance, at a weight of 0.1: n is the batch where
        # GE has gathered the map, and at least 24 elsewhere.
        if name.endswith("ge.bn1.running_var"):
            leaf = 0.9 * before[name] + (leaf - 0.9 * before[name]) * 4 / 3
        tolerance = 0.02 if name.endswith("var") else 1e-3
        np.testing.assert_allclose(leaf, expected[name], rtol=tolerance, atol=1e-3, err_msg=name)
        assert np.abs(leaf - before[name]).max() > 1e-3, name

    expected = {name: leaf.grad.numpy() for name, leaf in reference.named_parameters()}
    ours = torch_state({"params": grads}, renamed)
    assert ours.keys() == expected.keys()
    for name, leaf in ours.items():
        error = np.linalg.norm(leaf - expected[name])
        assert error <= 1e-3 * np.linalg.norm(expected[name]) + 1e-4, name


def flax_max_pool(x, window, stride, padding=0):
    """Flax's pooling, with the arguments of ours."""
    padding = ((padding, padding),) * 2
    return nn.max_pool(x, (window, window), (stride, stride), padding)


def torch_resnet(
    torch,
    side,
    stage_sizes,
    block,
    width,
    large_stem,
    num_classes,
    groups=1,
    base_width=64,
    attention=None,
):
    """The same network in PyTorch, with torchvision's names."""
    nn = torch.nn
    expansion = block.expansion

    class Attention(nn.Module):
        """SE, or GE (theta plus) for maps of size `side`."""

        def __init__(self, features, side):
            super().__init__()
            self.gather = attention.func is GatherExcite
            if self.gather:
                self.conv1 = nn.Conv2d(features, features, side, groups=features, bias=False)
                self.bn1 = nn.BatchNorm2d(features)
            self.fc1 = nn.Conv2d(features, features // 16, 1)
            self.fc2 = nn.Conv2d(features // 16, features, 1)

        def forward(self, x):
            y = self.bn1(self.conv1(x)) if self.gather else x.mean((2, 3), keepdim=True)
            return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(y))))

    class Block(nn.Module):
        def __init__(self, channels, planes, stride, side):
            super().__init__()
            features = planes * expansion
            if expansion == 1:
                layers = [(channels, planes, 3, stride, 1), (planes, planes, 3, 1, 1)]
            else:
                inner = groups * (planes * base_width // 64)
                layers = [
                    (channels, inner, 1, 1, 1),
                    (inner, inner, 3, stride, groups),
                    (inner, features, 1, 1, 1),
                ]
            self.depth = len(layers)
            for i, (inputs, outputs, k, step, parts) in enumerate(layers, 1):
                convolution = nn.Conv2d(inputs, outputs, k, step, k // 2, groups=parts, bias=False)
                self.add_module(f"conv{i}", convolution)
                self.add_module(f"bn{i}", nn.BatchNorm2d(outputs))
            if attention:
                self.add_module(attention.keywords["name"], Attention(features, side))
            self.downsample = None
            if stride != 1 or channels != features:
                projection = nn.Conv2d(channels, features, 1, stride, bias=False)
                self.downsample = nn.Sequential(projection, nn.BatchNorm2d(features))

        def forward(self, x):
            y = x
            for i in range(1, self.depth + 1):
                y = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(y))
                y = torch.relu(y) if i < self.depth else y
            if attention:
                y = self.get_submodule(attention.keywords["name"])(y)
            return torch.relu(y + (x if self.downsample is None else self.downsample(x)))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            stem = (7, 2, 3) if large_stem else (3, 1, 1)
            self.conv1 = nn.Conv2d(3, width, *stem, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.pool = nn.MaxPool2d(3, 2, 1) if large_stem else nn.Identity()
            channels, self.stages, sides = width, [], side
            for stage, blocks in enumerate(stage_sizes, 1):
                planes, layers = width * 2 ** (stage - 1), []
                for index in range(blocks):
                    stride = 2 if stage > 1 and index == 0 else 1
                    sides = tuple(-(-n // stride) for n in sides)
                    layers.append(Block(channels, planes, stride, sides))
                    channels = planes * expansion
                self.add_module(f"layer{stage}", nn.Sequential(*layers))
            self.fc = nn.Linear(channels, num_classes)

        def forward(self, x):
            x = self.pool(torch.relu(self.bn1(self.conv1(x))))
            for stage in range(1, len(stage_sizes) + 1):
                x = self.get_submodule(f"layer{stage}")(x)
            return self.fc(x.mean((2, 3)))

    return Net()
