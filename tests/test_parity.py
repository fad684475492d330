"""A step of SGD equals PyTorch's: the same parameters and the same running statistics."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutmix_jax import convert, tasks, train
from cutmix_jax.parallel import create_mapping
from tests.commands import small_config

torch = pytest.importorskip("torch", reason="needs PyTorch as the numeric reference")
torch_models = pytest.importorskip("tests.torch_models")

NETS = {
    "resnet20": lambda: torch_models.ResNet((3, 3, 3), bottleneck=False, channels=1),
    "pyramidnet20_48": lambda: torch_models.PyramidNet(20, 48, channels=1),
    "pyramidnet110": lambda: torch_models.PyramidNet(110, 64, channels=1),
    "wide_resnet10_1": lambda: torch_models.WideResNet(10, 1, channels=1),
    "preact_resnet18x0.125": lambda: torch_models.PreActResNet(width=8, channels=1),
}
STEPS = 2  # so that the second shows the momentum of the first


def to_float64(tree):
    return jax.tree.map(lambda x: x.astype(np.float64) if x.dtype.kind == "f" else x, tree)


@contextlib.contextmanager
def float64():
    """`jax.enable_x64`, which JAX has from 0.8 on."""
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


def train_here(config, variables):
    """Takes the steps of `train.train_step` in float64, and returns their batches as well."""
    with float64():
        task = tasks.create_task(config, create_mapping("pmap", 1))
        task = dataclasses.replace(task, model=task.model.copy(dtype=jnp.float64))
        state = train.create_state(task).replace(**variables)
        state = task.mapping.replicate(to_float64(jax.device_get(state)))
        arrays = task.mapping.replicate(task.data.arrays["train"])
        take_step, _ = train.map_steps(task)
        prepare = task.mapping.map(
            lambda step, arrays, xs: {
                name: value
                for name, value in task.make_batch(arrays, xs, step).items()
                if name in ("image", "target")
            }
        )
        batches = []
        for _, xs in zip(range(STEPS), task.data.train_batches(0), strict=False):
            batches.append(jax.device_get(prepare(state.step, arrays, task.mapping.shard(xs))))
            state, _ = take_step(state, arrays, task.mapping.shard(jax.tree.map(stacked, xs)))
        return jax.device_get({"params": state.params, "batch_stats": state.batch_stats}), batches


def stacked(x):
    """The arguments of a call of one step."""
    return x[:, None]


def train_there(net, config, batches):
    """The same in PyTorch; also returns how many numbers each norm averaged over."""
    net = net.double().train()
    sizes = {}
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(
                lambda _, inputs, __, name=name: sizes.update(
                    {name: inputs[0].numel() // inputs[0].shape[1]}
                )
            )
    optimizer = torch.optim.SGD(
        net.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )
    for batch in batches:
        images = torch.tensor(batch["image"].transpose(0, 3, 1, 2), dtype=torch.float64)
        targets = torch.tensor(batch["target"], dtype=torch.float64)
        loss = -(targets * torch.log_softmax(net(images), 1)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return sizes


@pytest.mark.parametrize(
    "name",
    [
        "resnet20",
        "pyramidnet20_48",
        "wide_resnet10_1",
        pytest.param("preact_resnet18x0.125", marks=pytest.mark.slow),
    ],
)
def test_two_steps_of_sgd_are_pytorchs(name):
    # Weight decay strong enough to be visible next to the gradient.
    config = small_config(
        **{"model": name, "batch_size": 8, "weight_decay": 0.01, "augment.pad": 0}
    )
    net = torch_models.randomise(NETS[name]())
    before = {key: tensor.double().numpy() for key, tensor in net.state_dict().items()}
    converted = convert.from_torch({key: x.astype(np.float32) for key, x in before.items()})
    assert converted.model == name

    after, batches = train_here(config, converted.variables)
    assert any(((batch["target"] > 0).sum(1) == 2).any() for batch in batches)  # they are mixed
    sizes = train_there(net, config, batches)

    ours = convert.to_torch(after, dtype=np.float64)
    kept = config.norm.momentum**STEPS
    for key, theirs in net.state_dict().items():
        module, _, leaf = key.rpartition(".")
        if leaf == "num_batches_tracked":
            assert theirs == STEPS
            continue
        expected = theirs.numpy()
        if leaf == "running_var":  # PyTorch's are of n / (n - 1) times the batch's variance
            added = (expected - kept * before[key]) * (sizes[module] - 1) / sizes[module]
            expected = kept * before[key] + added
        moved = np.abs(expected - before[key]).max()
        assert moved > 1e-4, key
        np.testing.assert_allclose(ours[key], expected, rtol=0, atol=1e-6, err_msg=key)
