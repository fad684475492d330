"""A network next to its PyTorch reference: names, random weights, and the comparison."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def images_of(side, batch=4, seed=0):
    height, width = side
    return np.random.default_rng(seed).normal(size=(batch, height, width, 3)).astype(np.float32)


def shapes_of(model, side=32):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean"}


def torch_state(variables):
    """Our variables or gradients, with PyTorch's names and layouts."""
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
        state[".".join([*modules, name])] = leaf
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


def assert_same_numbers(model, reference, side, rtol=1e-4):
    """Logits in evaluation; logits, running statistics and gradients in training.

    Args:
      model: of ours, with 7 classes.
      reference: a PyTorch module with the same names, in which weights of ours are loaded.
      side: height and width of the images.
      rtol: of the logits in evaluation; near zero, of their spread.
    """
    import torch

    torch.set_num_threads(1)
    images = images_of(side)
    variables = random_variables(model, images)
    before = torch_state(variables)
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
    for name, leaf in torch_state(state).items():
        # PyTorch keeps n/(n-1) times the batch variance, at a weight of 0.1: n is the batch where
        # GE has gathered the map, and at least 24 elsewhere.
        if name.endswith("ge.bn1.running_var"):
            leaf = 0.9 * before[name] + (leaf - 0.9 * before[name]) * 4 / 3
        tolerance = 0.02 if name.endswith("var") else 1e-3
        np.testing.assert_allclose(leaf, expected[name], rtol=tolerance, atol=1e-3, err_msg=name)
        assert np.abs(leaf - before[name]).max() > 1e-3, name

    expected = {name: leaf.grad.numpy() for name, leaf in reference.named_parameters()}
    ours = torch_state({"params": grads})
    assert ours.keys() == expected.keys()
    for name, leaf in ours.items():
        error = np.linalg.norm(leaf - expected[name])
        assert error <= 1e-3 * np.linalg.norm(expected[name]) + 1e-4, name


def flax_max_pool(x, window, stride, padding=0):
    """Flax's pooling, with the arguments of ours."""
    padding = ((padding, padding),) * 2
    return nn.max_pool(x, (window, window), (stride, stride), padding)
