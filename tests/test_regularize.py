"""What is dropped: how much, where, and the effect on the gradient."""

import doctest

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutmix_jax import UserError, regularize
from cutmix_jax.models import create_model
from cutmix_jax.regularize import DropBlock, Regularization, ShakeDrop, StochasticDepth

pytestmark = pytest.mark.usefixtures("unoptimized")


KEYS = jax.random.split(jax.random.key(0), 4000)


def train(module, x, key, *args):
    return module.apply({}, x, *args, deterministic=False, rngs={"drop": key})


def factors(module, keys=KEYS, batch=3):
    """Forward and backward factors [keys, batch] of a module for a branch of ones."""

    def both(key):
        forward, pull = jax.vjp(lambda x: train(module, x, key), jnp.ones((batch, 2, 1)))
        (backward,) = pull(jnp.ones((batch, 2, 1)))
        return forward, backward

    forward, backward = map(np.asarray, jax.jit(jax.vmap(both))(keys))
    for factor in (forward, backward):  # one per example, not per element
        np.testing.assert_array_equal(factor[:, :, 0], factor[:, :, 1])
    return forward[:, :, 0, 0], backward[:, :, 0, 0]


class TestStochasticDepth:
    def test_expectation_in_training_is_the_value_in_evaluation(self):
        forward, backward = factors(StochasticDepth(0.25))
        np.testing.assert_array_equal(forward, backward)
        assert set(forward.ravel()) == {0, 1}
        error = 4 * np.sqrt(0.25 * 0.75 / len(KEYS))
        assert forward[:, 0].mean() == pytest.approx(0.75, abs=error)
        branch = jnp.full((3, 2), 8.0, jnp.bfloat16)
        evaluated = StochasticDepth(0.25).apply({}, branch, deterministic=True)
        assert evaluated.dtype == jnp.bfloat16
        assert (evaluated == 6).all()

    def test_one_sample_for_the_batch_or_one_per_example(self):
        forward, _ = factors(StochasticDepth(0.5))
        assert (forward == forward[:, :1]).all()
        forward, _ = factors(StochasticDepth(0.5, per_example=True))
        both = forward[:, 0] * forward[:, 1]
        assert both.mean() == pytest.approx(0.25, abs=0.03)

    def test_what_is_dropped_is_gone_whatever_it_was(self):
        values = jax.vmap(lambda key: train(StochasticDepth(0.5), jnp.ones(1), key))(KEYS)
        dropped = KEYS[int(jnp.argmin(values))]
        assert train(StochasticDepth(0.5), jnp.array([jnp.inf]), dropped)[0] == 0


class TestShakeDrop:
    def test_factors_are_those_of_the_definition(self):
        forward, backward = factors(ShakeDrop(0.4))
        kept = forward[:, 0] == 1
        assert kept.mean() == pytest.approx(0.6, abs=0.03)
        # b is the same for the batch, and in the forward and backward pass.
        assert (forward[kept] == 1).all()
        assert (backward[kept] == 1).all()
        alpha, beta = forward[~kept], backward[~kept]
        for draws, low, high in ((alpha, -1, 1), (beta, 0, 1)):
            # Uniform: the largest distance between the distribution functions (Kolmogorov, 0.1 %).
            ranks = np.sort((draws[:, 0] - low) / (high - low))
            distance = np.abs(ranks - (np.arange(len(ranks)) + 0.5) / len(ranks)).max()
            assert distance < 1.95 / np.sqrt(len(ranks))
        for one, other in ((alpha[:, 0], alpha[:, 1]), (alpha[:, 0], beta[:, 0])):
            assert abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(len(one))

    def test_expectation_in_training_is_the_value_in_evaluation(self):
        forward, _ = factors(ShakeDrop(0.4))
        assert forward.mean() == pytest.approx(0.6, abs=4 * forward.std() / np.sqrt(len(KEYS)))
        assert ShakeDrop(0.4).apply({}, jnp.ones(1), True)[0] == pytest.approx(0.6)

    def test_b_may_be_sampled_per_example(self):
        forward, backward = factors(ShakeDrop(0.5, per_example=True))
        np.testing.assert_array_equal(forward == 1, backward == 1)
        assert np.mean((forward[:, 0] == 1) & (forward[:, 1] == 1)) == pytest.approx(0.25, abs=0.03)

    @pytest.mark.parametrize("place", [0, 1])
    def test_gradient_against_finite_differences(self, place):
        """With fixed samples: the gradient of the branch, times the backward factor."""
        x = jax.random.normal(jax.random.key(1), (3, 5)) * 0.5
        weights = jax.random.normal(jax.random.key(2), (3, 5))
        key = [k for k in KEYS[:50] if train(ShakeDrop(0.5), jnp.ones((1, 1)), k)[0] != 1][place]

        def differences(function):
            step = 1e-3
            shifts = step * jnp.eye(15).reshape(15, 3, 5)
            total = jax.vmap(lambda shift: (weights * function(x + shift)).sum())
            return ((total(shifts) - total(-shifts)) / (2 * step)).reshape(3, 5)

        # If both factors are the same constant, it is the gradient of the function.
        plain = ShakeDrop(0.5, alpha=(0.3, 0.3), beta=(0.3, 0.3))

        def fixed(x):
            return train(plain, jnp.tanh(x), key)

        grad = jax.grad(lambda x: (weights * fixed(x)).sum())(x)
        np.testing.assert_allclose(grad, differences(fixed), rtol=2e-2, atol=2e-3)
        np.testing.assert_allclose(grad, 0.3 * weights * (1 - jnp.tanh(x) ** 2), rtol=1e-5)

        # If they differ, it is the branch's times beta. The gradient of the function has alpha.
        def shaken(x):
            return train(ShakeDrop(0.5), jnp.tanh(x), key)

        _, pull = jax.vjp(lambda y: train(ShakeDrop(0.5), y, key), jnp.ones((3, 5)))
        beta = np.asarray(pull(jnp.ones((3, 5)))[0])
        alpha = np.asarray(train(ShakeDrop(0.5), jnp.ones((3, 5)), key))
        grad = jax.grad(lambda x: (weights * shaken(x)).sum())(x)
        np.testing.assert_allclose(grad, beta * differences(jnp.tanh), rtol=2e-2, atol=2e-3)
        np.testing.assert_allclose(
            differences(shaken), alpha * differences(jnp.tanh), rtol=2e-2, atol=2e-3
        )
        assert np.abs(alpha - beta).min() > 1e-3

    def test_half_precision_keeps_what_is_kept(self):
        key = next(k for k in KEYS if train(ShakeDrop(0.5), jnp.ones((1, 1)), k)[0] == 1)
        branch = jax.random.normal(key, (2, 64)).astype(jnp.bfloat16)
        shaken = train(ShakeDrop(0.5), branch, key)
        assert shaken.dtype == jnp.bfloat16
        np.testing.assert_array_equal(shaken, branch)


class TestDropBlock:
    # From a simulation: the fraction of W x W maps that squares of size s drop at rate 0.1.
    @pytest.mark.parametrize(
        ("width", "size", "share"), [(8, 4, 0.092), (16, 4, 0.095), (14, 7, 0.094), (7, 7, 0.10)]
    )
    def test_share_that_is_dropped(self, width, size, share):
        x = jnp.ones((64, width, width, 96))
        y = train(DropBlock(0.1, size), x, jax.random.key(width))
        assert float(jnp.mean(y == 0)) == pytest.approx(share, abs=0.003)

    @pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 4), (5, 9, 3), (7, 7, 7)])
    def test_squares_fit_and_the_rest_is_scaled(self, height, width, size):
        x = np.random.default_rng(0).uniform(1, 2, (6, height, width, 5)).astype(np.float32)
        y = np.asarray(train(DropBlock(0.3, size), x, jax.random.key(1)))
        dropped = y == 0
        assert 0 < dropped.mean() < 1
        # Everything dropped is covered by squares inside the map that are dropped completely.
        covered = np.zeros_like(dropped)
        for i in range(height - size + 1):
            for j in range(width - size + 1):
                window = dropped[:, i : i + size, j : j + size]
                covered[:, i : i + size, j : j + size] |= window.all((1, 2), keepdims=True)
        np.testing.assert_array_equal(covered, dropped)
        scale = dropped.size / (~dropped).sum()
        np.testing.assert_allclose(y[~dropped], x[~dropped] * scale, rtol=1e-6)
        # Every channel and every example has its own squares.
        assert (dropped != dropped[:1]).any()
        assert (dropped != dropped[..., :1]).any()

    def test_seeds_are_as_frequent_as_gamma_says(self):
        """At size 1 every seed is visible: gamma is the rate. So it is at the size of the map."""
        for size in (1, 6):
            y = train(DropBlock(0.2, size), jnp.ones((256, 6, 6, 64)), jax.random.key(2))
            share = float(jnp.mean(y == 0))
            assert share == pytest.approx(0.2, abs=0.02 if size == 6 else 0.003)

    def test_the_schedule_raises_the_rate_without_compiling_again(self):
        traces = []

        @jax.jit
        def share(progress):
            traces.append(progress)
            drop = DropBlock(0.2, 1, "linear")
            return jnp.mean(train(drop, jnp.ones((64, 8, 8, 64)), KEYS[0], progress) == 0)

        shares = [float(share(jnp.float32(progress))) for progress in (0, 0.5, 1)]
        np.testing.assert_allclose(shares, [0, 0.1, 0.2], atol=0.003)
        assert len(traces) == 1
        constant = train(DropBlock(0.2, 1), jnp.ones((64, 8, 8, 64)), KEYS[0], 0.5)
        assert float(jnp.mean(constant == 0)) == pytest.approx(0.2, abs=0.003)

    def test_evaluation_is_the_identity_and_dtypes_stay(self):
        x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3)).astype(jnp.bfloat16)
        assert DropBlock(0.5, 4).apply({}, x, deterministic=True) is x
        assert train(DropBlock(0.5, 4), x, KEYS[0]).dtype == jnp.bfloat16

    def test_gradient_is_that_of_the_mask(self):
        x = jnp.ones((2, 8, 8, 3))
        y, pull = jax.vjp(lambda x: train(DropBlock(0.5, 3), x, KEYS[0]), x)
        np.testing.assert_allclose(pull(x)[0], y)

    def test_squares_larger_than_the_map_are_refused(self):
        x = jnp.ones((1, 4, 6, 1))
        with pytest.raises(UserError, match=r"side of 5.*4 x 6.*config\.drop_block\.size"):
            DropBlock(0.1, 5).apply({}, x, deterministic=True)


@pytest.mark.parametrize("kind", [StochasticDepth, ShakeDrop, DropBlock])
@pytest.mark.parametrize("rate", [1.0, -0.1, float("nan")])
def test_rates_that_are_not_probabilities_below_one_are_refused(kind, rate):
    with pytest.raises(UserError, match=rf"{kind.__name__} has a rate of"):
        kind(rate).apply({}, jnp.ones((1, 8, 8, 1)), deterministic=True)


def calls_in(name, side, regularization):
    """Every call of a regularizer in a network: (kind, block, rate, shape)."""
    found = []

    def note(call, args, kwargs, context):
        kinds = (StochasticDepth, ShakeDrop, DropBlock)
        if isinstance(context.module, kinds) and context.method_name == "__call__":
            module = context.module
            found.append((type(module), module.path[0], module.rate, args[0].shape[1:]))
        return call(*args, **kwargs)

    model = create_model(name, 10, regularization=regularization)
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    with nn.intercept_methods(note):
        jax.eval_shape(model.init, jax.random.key(0), images)
    return found


class TestPlaces:
    @pytest.mark.parametrize("name", ["resnet29", "pyramidnet29_9", "wide_resnet22_1"])
    @pytest.mark.parametrize(
        ("kind", "option"), [(StochasticDepth, "stochastic_depth"), (ShakeDrop, "shake_drop")]
    )
    def test_branches_are_dropped_by_the_linear_rule(self, name, kind, option):
        calls = calls_in(name, 32, Regularization(**{option: 0.5}))
        assert [(kind_, block) for kind_, block, _, _ in calls] == [
            (kind, f"layer{stage}_{index}") for stage in (1, 2, 3) for index in range(3)
        ]
        np.testing.assert_allclose([rate for _, _, rate, _ in calls], np.arange(1, 10) / 18)

    @pytest.mark.parametrize("name", ["resnet29", "pyramidnet29_9", "wide_resnet22_1"])
    def test_drop_block_for_cifar(self, name):
        """At a constant rate, at the end of branch and shortcut."""
        calls = calls_in(name, 32, Regularization(drop_block=0.1, size=4, stages=(2, 3)))
        assert [(block, rate, shape[0]) for _, block, rate, shape in calls] == [
            (f"layer{stage}_{index}", 0.1, 32 // 2 ** (stage - 1))
            for stage in (2, 3)
            for index in range(3)
            for _ in range(2)
        ]

    def test_drop_block_for_imagenet(self):
        """After each of three norms and on the shortcut, with a quarter of the rate in stage 3."""
        calls = calls_in("resnet50", 224, Regularization(drop_block=0.1))
        assert len(calls) == 4 * (6 + 3)
        rates = {(block[:6], rate, shape[0]) for _, block, rate, shape in calls}
        # conv1 of the first block comes before the stride.
        assert rates == {
            ("layer3", 0.025, 28),
            ("layer3", 0.025, 14),
            ("layer4", 0.1, 14),
            ("layer4", 0.1, 7),
        }

    def test_no_key_is_needed_where_nothing_is_dropped(self):
        images = jnp.zeros((2, 8, 8, 3))
        plain = create_model("resnet8", 10)
        dropping = create_model("resnet8", 10, regularization=Regularization(0.5, 0.5))
        variables = jax.eval_shape(dropping.init, jax.random.key(0), images)

        def run(model, train):
            def apply(variables):
                return model.apply(variables, images, train=train, mutable=["batch_stats"])

            return jax.eval_shape(apply, variables)

        run(plain, train=True)
        run(dropping, train=False)
        with pytest.raises(flax.errors.InvalidRngError, match="drop"):
            run(dropping, train=True)

    def test_a_dropped_block_is_its_shortcut(self):
        """Under stochastic depth, training outputs are those with or without each block."""
        model = create_model("pyramidnet11_6", 10, regularization=Regularization(0.6))
        images = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
        variables = jax.jit(model.init)(jax.random.key(0), images)

        @jax.jit
        def logits(key):
            return model.apply(
                variables, images, train=True, rngs={"drop": key}, mutable=["batch_stats"]
            )[0]

        outputs = [np.asarray(logits(key)) for key in KEYS[:60]]
        kinds = {tuple(np.round(out.ravel(), 4)) for out in outputs}
        assert 4 <= len(kinds) <= 8  # three blocks, each dropped or not
        np.testing.assert_array_equal(logits(KEYS[0]), outputs[0])


def test_recomputed_blocks_sample_the_same():
    """A block that is computed again has the gradient of one that is kept."""
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    drops = Regularization(0.3, 0.5, drop_block=0.2, size=2, stages=(2, 3), schedule="linear")

    def grads(remat):
        model = create_model("pyramidnet11_6", 10, remat=remat, regularization=drops)
        variables = jax.jit(model.init)(jax.random.key(0), images)

        def loss(params, progress):
            logits, state = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                progress=progress,
                rngs={"drop": KEYS[5]},
                mutable=["batch_stats"],
            )
            return (logits**2).sum(), state

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"], 0.8)

    kept, again = grads(False), grads(True)
    assert jax.tree.structure(kept) == jax.tree.structure(again)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), kept, again)


def test_examples_of_the_docstrings():
    result = doctest.testmod(regularize)
    assert result.attempted > 15
    assert result.failed == 0
