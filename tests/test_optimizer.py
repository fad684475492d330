"""The learning rate over the steps, and what happens to gradients before the optimizer's rule."""

import flax
import jax
import numpy as np
import optax
import pytest
from jax import numpy as jnp

from cutmix_jax.optimizer import create_optimizer, create_schedule, describe
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
