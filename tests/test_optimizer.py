"""The learning rate over the steps, and what happens to gradients before the optimizer's rule."""

import functools
import re

import flax
import jax
import numpy as np
import optax
import pytest
from jax import numpy as jnp

from cutmix_jax.optimizer import create_optimizer, create_schedule, describe
from cutmix_jax.train import update_ema
from tests.commands import plain_config


@pytest.mark.parametrize(
    ("overrides", "rates"),
    [
        # The paper's schedule for ImageNet: x 0.1 at the start of epochs 75, 150 and 225 of 300.
        (
            {"lr_drops": (0.25, 0.5, 0.75)},
            {0: 0.1, 74.9: 0.1, 75: 0.01, 150: 1e-3, 225: 1e-4, 299: 1e-4},
        ),
        ({"schedule": "cosine"}, {0: 0.1, 150: 0.05, 300: 0.0}),
        ({"warmup_epochs": 5.0}, {0: 0.0, 2.5: 0.05, 5: 0.1, 149: 0.1, 150: 0.01}),
        (
            {"warmup_epochs": 5.0, "warmup_start": 0.1},
            {0: 0.01, 2.5: 0.055, 5: 0.1, 149: 0.1, 150: 0.01},
        ),
        ({"schedule": "cosine", "min_learning_rate": 0.02}, {0: 0.1, 150: 0.06, 300: 0.02}),
    ],
)
def test_the_learning_rate_at_chosen_epochs(overrides, rates):
    schedule = create_schedule(plain_config(epochs=300, **overrides), steps_per_epoch=10)
    for epoch, rate in rates.items():
        assert float(schedule(round(10 * epoch))) == pytest.approx(rate, rel=1e-5, abs=1e-8)


def test_frozen_leaves_stay_and_keep_no_momentum_and_some_are_not_decayed():
    config = plain_config(weight_decay=0.5, learning_rate=1.0, momentum=0.9)
    params = {name: {"kernel": jnp.ones(3), "bias": jnp.ones(2)} for name in ("stem", "fc")}
    optimizer = create_optimizer(
        config, lambda step: 1.0, frozen=("stem",), undecayed=("bias", "scale")
    )
    state = optimizer.init(params)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
    assert not updates["stem"]["kernel"].any()
    assert not updates["fc"]["bias"].any()
    # d = g + wd w, and Nesterov's first step is d + m d.
    np.testing.assert_allclose(updates["fc"]["kernel"], -0.5 * 1.9, rtol=1e-6)
    momenta = [leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert sorted(momenta) == [(2,), (3,)]


def test_a_star_in_what_is_frozen_is_any_beginning():
    names = ("bn1/scale", "layer1/conv1/kernel", "layer2/bn1/scale", "layer2/conv1/kernel")
    params = flax.traverse_util.unflatten_dict({name: jnp.ones(1) for name in names}, sep="/")
    optimizer = create_optimizer(plain_config(), lambda step: 1.0, frozen=("layer1", "*/bn"))
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    moved = flax.traverse_util.flatten_dict(updates, sep="/")
    assert [bool(moved[name].any()) for name in names] == [True, False, False, True]


def test_a_long_gradient_is_clipped_before_the_decay():
    config = plain_config(weight_decay=0.5, momentum=0.0, nesterov=False, clip_gradient=1.0)
    optimizer = create_optimizer(config, lambda step: 1.0)
    params, short = {"a": jnp.ones(2), "b": jnp.ones(1)}, {"a": jnp.zeros(2), "b": jnp.full(1, 0.3)}
    long = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}  # of norm 5
    for gradient, a, b in ((long, (0.6, 0.0), 0.8), (short, (0.0, 0.0), 0.3)):
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        np.testing.assert_allclose(updates["a"], -np.array(a) - 0.5, rtol=1e-6)
        np.testing.assert_allclose(updates["b"], [-b - 0.5], rtol=1e-6)
    assert describe(config).endswith("weight decay 0.5, gradients clipped at norm 1")
    assert "clipped" not in describe(plain_config())


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_is_that_of_pytorch(decay):
    torch = pytest.importorskip("torch")
    config = plain_config(optimizer="adam", learning_rate=0.01, weight_decay=decay, momentum=0.8)
    optimizer = create_optimizer(config, lambda step: config.learning_rate)
    params = {"a": jnp.array([1.0, -2.0, 0.5])}
    theirs = torch.tensor(np.asarray(params["a"]), requires_grad=True)
    reference = torch.optim.Adam([theirs], lr=0.01, betas=(0.8, 0.999), weight_decay=decay)
    state = optimizer.init(params)
    for _ in range(20):
        gradient = {"a": 4 * params["a"] ** 3 - 3}
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        theirs.grad = 4 * theirs.detach() ** 3 - 3
        reference.step()
    np.testing.assert_allclose(params["a"], theirs.detach(), rtol=1e-5)
    assert describe(config).startswith("Adam, learning rate 0.01 x 0.1 after epoch")
    assert f"beta1 0.8, weight decay {decay:g}" in describe(config)


# The parameters of a small network, with the groups in which PyTorch's scripts put them.
SHAPES = {
    "conv1/kernel": (3, 2),
    "bn1/scale": (2,),
    "bn1/bias": (2,),
    "fc/kernel": (2, 4),
    "fc/bias": (4,),
}
DECAYED = {
    "all": set(SHAPES),
    "all_but_norms": {"conv1/kernel", "fc/kernel", "fc/bias"},
    "kernels": {"conv1/kernel", "fc/kernel"},
}


def train_toy(config, gradients, steps_per_epoch=4):
    """{name: array} after a step for each of the gradients."""
    schedule = create_schedule(config, steps_per_epoch)
    optimizer = create_optimizer(config, schedule)
    unflatten = functools.partial(flax.traverse_util.unflatten_dict, sep="/")
    params = unflatten({name: jnp.asarray(value) for name, value in first_values().items()})
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for gradient in gradients:
        params, state = step(params, state, unflatten(gradient))
    return flax.traverse_util.flatten_dict(jax.device_get(params), sep="/")


def first_values():
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def draw_gradients(count=20):
    random = np.random.default_rng(1)
    return [
        {name: random.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
        for _ in range(count)
    ]


def torch_rates(torch, optimizer, config, steps_per_epoch):
    """torchvision's schedule, at every step: a linear rise, then a cosine."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    rise = torch.optim.lr_scheduler.LinearLR(optimizer, config.warmup_start, 1.0, warmup)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, config.epochs * steps_per_epoch - warmup, config.min_learning_rate
    )
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, fall], [warmup])


@pytest.mark.parametrize("kind", DECAYED)
@pytest.mark.parametrize(("name", "rate"), [("sgd", 0.05), ("adamw", 0.005)])
def test_schedule_groups_and_rule_are_those_of_pytorch(name, rate, kind):
    torch = pytest.importorskip("torch")
    config = plain_config(
        epochs=5,
        learning_rate=rate,
        schedule="cosine",
        warmup_epochs=1.0,
        warmup_start=0.01,
        min_learning_rate=1e-3,
        optimizer=name,
        nesterov=False,
        weight_decay=0.3,
        weight_decay_on=kind,
    )
    gradients = draw_gradients()
    theirs = {name: torch.tensor(x, requires_grad=True) for name, x in first_values().items()}
    groups = [
        {"params": [x for n, x in theirs.items() if (n in DECAYED[kind]) == decayed],
         "weight_decay": 0.3 * decayed}
        for decayed in (True, False)
    ]  # fmt: skip
    reference = {
        "sgd": lambda: torch.optim.SGD(groups, lr=rate, momentum=0.9),
        "adamw": lambda: torch.optim.AdamW(groups, lr=rate),
    }[name]()
    scheduler = torch_rates(torch, reference, config, 4)
    for gradient in gradients:
        for key, value in gradient.items():
            theirs[key].grad = torch.tensor(value)
        reference.step()
        scheduler.step()
    for key, value in train_toy(config, gradients).items():
        np.testing.assert_allclose(value, theirs[key].detach(), atol=1e-6, err_msg=key)


def lamb(values, gradients, rates, decayed, decay, clip, b1=0.9, b2=0.999, eps=1e-6):
    """timm's LAMB from its definition, in NumPy."""
    values = {name: value.astype(np.float64) for name, value in values.items()}
    first, second = ({name: np.zeros_like(x) for name, x in values.items()} for _ in range(2))
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradient.values()))
        for name, value in values.items():
            g = gradient[name] / max(norm / clip, 1)
            first[name] = b1 * first[name] + (1 - b1) * g
            second[name] = b2 * second[name] + (1 - b2) * g**2
            update = first[name] / (1 - b1**t) / (np.sqrt(second[name] / (1 - b2**t)) + eps)
            if decay and name in decayed:
                update = update + decay * value
                sizes = np.linalg.norm(value), np.linalg.norm(update)
                update = update * (sizes[0] / sizes[1] if all(sizes) else 1)
            values[name] = value - rate * update
    return values


@pytest.mark.parametrize(("kind", "decay"), [("kernels", 0.02), ("all", 0.02), ("kernels", 0.0)])
def test_lamb_is_that_of_timm(kind, decay):
    config = plain_config(
        epochs=5,
        learning_rate=0.005,
        schedule="cosine",
        optimizer="lamb",
        weight_decay=decay,
        weight_decay_on=kind,
        clip_gradient=1.0,
    )
    gradients = draw_gradients()
    gradients[3] = {name: 0.01 * x for name, x in gradients[3].items()}  # not clipped
    rates = 0.0025 * (1 + np.cos(np.pi * np.arange(20) / 20))
    expected = lamb(first_values(), gradients, rates, DECAYED[kind], decay, clip=1.0)
    for name, value in train_toy(config, gradients).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6, err_msg=name)


def test_arrays_of_zeros_have_no_trust_ratio():
    config = plain_config(optimizer="lamb", learning_rate=0.5, lr_drops=())
    optimizer = create_optimizer(config, lambda step: 0.5)
    params = {"conv1": {"kernel": jnp.zeros(3)}, "fc": {"kernel": jnp.full(4, 2.0)}}
    updates, _ = optimizer.update(
        jax.tree.map(jnp.ones_like, params), optimizer.init(params), params
    )
    np.testing.assert_allclose(updates["conv1"]["kernel"], -0.5, rtol=1e-5)
    np.testing.assert_allclose(updates["fc"]["kernel"], -0.5 * 2.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("adamw", "kernels", "AdamW, .*weight decay 0.1 on kernels$"),
        ("lamb", "all_but_norms", "LAMB, .*weight decay 0.1 except on norms$"),
    ],
)
def test_a_run_says_what_is_decayed(name, kind, words):
    config = plain_config(optimizer=name, weight_decay=0.1, weight_decay_on=kind)
    assert re.match(words, describe(config))


@pytest.mark.parametrize("every", [1, 3])
def test_ema_is_that_of_pytorch(every):
    torch = pytest.importorskip("torch")
    from torch.optim import swa_utils

    config = plain_config(ema=0.9, ema_every=every)
    model = torch.nn.BatchNorm1d(3)
    # torchvision's: the average of all weights and statistics, at every n-th step.
    average = swa_utils.AveragedModel(
        model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    average.update_parameters(model)  # the first call copies
    random = np.random.default_rng(0)

    def weights():
        return {"mean": jnp.asarray(model.running_mean.numpy())}

    ema, update = jax.tree.map(jnp.copy, weights()), jax.jit(functools.partial(update_ema, config))
    for step in range(20):
        model.running_mean.copy_(torch.tensor(random.normal(size=3)))
        ema = update(jnp.int32(step), ema, weights())
        if (step + 1) % every == 0:
            average.update_parameters(model)
    np.testing.assert_allclose(ema["mean"], average.module.running_mean, atol=1e-6)
