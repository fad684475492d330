"""Train steps on a CPU: with this project's convolution, with Flax's, and in PyTorch.

    python -m benchmarks.networks
    python -m benchmarks.networks --models resnext50_32x4d --flax resnext50_32x4d

Forward, backward and SGD with Nesterov momentum, on the same float32 batch, with all cores. PyTorch
uses channels last. The turns are interleaved in one process.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from benchmarks import timing
from cutmix_jax.models import create_model

CLASSES = 100
# Network: batch size, image size, turns per repeat.
NETWORKS = {
    "resnet20": (64, 32, 12),
    "resnet50": (8, 224, 3),
    "resnext50_32x4d": (8, 224, 3),
    "resnext101_32x4d": (4, 224, 3),
    "pyramidnet110": (16, 32, 5),
}


GOALS = {"resnet20": 0.85, "pyramidnet110": 0.85}  # of PyTorch's speed; 1.0 for the others


def batch_of(size, side):
    """Random normalized images and their labels, on the host."""
    images = np.random.default_rng(0).normal(size=(size, side, side, 3)).astype(np.float32)
    return images, np.arange(size) % CLASSES


def jax_step(name, size, side, conv_layer=None):
    """A function that takes one step and waits for it."""
    model = create_model(name, CLASSES)
    if conv_layer is not None:
        model = model.clone(conv_layer=conv_layer)
    images, labels = map(jnp.asarray, batch_of(size, side))
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    optimizer = optax.sgd(0.01, momentum=0.9, nesterov=True)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, images, labels):
        params, batch_stats, opt_state = state

        def loss_fn(params):
            logits, updates = model.apply(
                {"params": params, "batch_stats": batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return loss, updates["batch_stats"]

        grads, batch_stats = jax.grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), batch_stats, opt_state

    params = variables["params"]
    held = [(params, variables["batch_stats"], optimizer.init(params))]

    def call():
        held[0] = jax.block_until_ready(step(held[0], images, labels))

    return call


def torch_network(name):
    """The network in PyTorch; raises ImportError if PyTorch is not installed."""
    import torch

    from tests import torch_models

    torch.set_num_threads(timing.cores())  # torch_models sets it to one for the tests

    def resnet(sizes, **keys):
        return torch_models.ResNet(sizes, CLASSES, **keys)

    builders = {
        "resnet20": lambda: resnet((3, 3, 3), bottleneck=False),
        "resnet50": lambda: resnet((3, 4, 6, 3)),
        "resnet110": lambda: resnet((12, 12, 12)),
        "resnext50_32x4d": lambda: resnet((3, 4, 6, 3), groups=32, share=4),
        "resnext101_32x4d": lambda: resnet((3, 4, 23, 3), groups=32, share=4),
        "pyramidnet110": lambda: torch_models.PyramidNet(110, 64, CLASSES),
        "pyramidnet200": lambda: torch_models.PyramidNet(200, 240, CLASSES),
    }
    return builders[name]()


def torch_step(name, size, side):
    """The same in PyTorch; raises ImportError if it is not installed."""
    import torch
    from torch.nn import functional as F

    net = torch_network(name).train().to(memory_format=torch.channels_last)
    images, labels = map(torch.from_numpy, batch_of(size, side))
    images = images.permute(0, 3, 1, 2)  # channels last in memory already
    optimizer = torch.optim.SGD(net.parameters(), 0.01, 0.9, nesterov=True)

    def call():
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()

    return call


def measure(options):
    """Yields a row for each network and peer."""
    for name in options.models.split(","):
        size, side, rounds = NETWORKS[name]
        what = f"train step of {name}, {size} x {side} px"
        calls, missing = {"ours": jax_step(name, size, side)}, ""
        try:
            calls["PyTorch"] = torch_step(name, size, side)
        except ImportError as error:
            missing = f"not installed ({error}): pip install -r requirements-torch.txt"
        if name in options.flax.split(","):
            calls["Flax"] = jax_step(name, size, side, nn.Conv)
        for call in calls.values():
            call()
            call()
        seconds = timing.take_turns(calls, options.repeats, rounds)
        for peer, note, goal in (("PyTorch", missing, GOALS.get(name, 1.0)), ("Flax", "", 1.0)):
            if peer in seconds or note:
                theirs, words = seconds.get(peer, ()), {"goal": f">= {goal}", "note": note}
                yield timing.compare(what, "s", seconds["ours"], peer, theirs, **words)
        jax.clear_caches()


def main():
    parser = timing.parser(__doc__)
    parser.add_argument("--models", default=",".join(NETWORKS), help=", ".join(NETWORKS))
    # ResNeXt with Flax's convolution takes half a minute per step.
    parser.add_argument("--flax", default="resnet20,resnet50,pyramidnet110")
    options = parser.parse_args()
    timing.run(measure(options), options, "networks")


if __name__ == "__main__":
    main()
