"""Ghost BatchNorm: statistics over parts of the batch, and the effect of the options."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutmix_jax import UserError
from cutmix_jax.models import create_model
from cutmix_jax.models.layers import GhostBatchNorm


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_statistics_are_those_of_each_group(groups):
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (6, 4, 5, 7)).astype(np.float32)
    x[:2] += 5
    norm = GhostBatchNorm(groups, momentum=0.8, epsilon=0.1)
    variables = norm.init(jax.random.key(0), x)
    scale, bias = rng.normal(size=(2, 7)).astype(np.float32)
    variables = {**variables, "params": {"scale": scale, "bias": bias}}
    y, state = norm.apply(variables, x, mutable=["batch_stats"])
    parts = np.split(x, groups)
    means = [part.mean((0, 1, 2)) for part in parts]
    variances = [part.var((0, 1, 2)) for part in parts]
    expected = [
        (part - mean) / np.sqrt(var + 0.1) * scale + bias
        for part, mean, var in zip(parts, means, variances, strict=True)
    ]
    np.testing.assert_allclose(y, np.concatenate(expected), rtol=1e-3, atol=1e-4)
    stats = state["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.2 * np.mean(means, 0), rtol=1e-4)
    np.testing.assert_allclose(stats["var"], 0.8 + 0.2 * np.mean(variances, 0), rtol=1e-4)


def test_one_group_is_batch_norm_with_the_same_variables():
    x = jax.random.normal(jax.random.key(0), (4, 3, 3, 5))
    ghost, plain = GhostBatchNorm(1), nn.BatchNorm(False, momentum=0.9, dtype=jnp.float32)
    variables = plain.init(jax.random.key(1), x)
    assert jax.tree.structure(variables) == jax.tree.structure(ghost.init(jax.random.key(1), x))
    ours, expected = (norm.apply(variables, x, mutable=["batch_stats"]) for norm in (ghost, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_network_with_groups_is_one_run_on_each_part(dtype):
    """The authors' GPUs: logits of both halves, and the mean of their running statistics."""
    model = create_model("resnet8", 10, dtype=dtype)
    images = jax.random.normal(jax.random.key(0), (8, 8, 8, 3))
    variables = jax.jit(model.init)(jax.random.key(1), images)

    def run(groups, images):
        net = model.copy(norm_groups=groups)
        return jax.jit(lambda x: net.apply(variables, x, train=True, mutable=["batch_stats"]))(
            images
        )

    logits, state = run(2, images)
    (first, one), (second, other) = run(1, images[:4]), run(1, images[4:])
    tolerance = {"float32": 1e-4, "bfloat16": 0.1}[dtype]
    np.testing.assert_allclose(logits, jnp.concatenate([first, second]), atol=tolerance)
    jax.tree.map(
        lambda both, a, b: np.testing.assert_allclose(both, (a + b) / 2, atol=tolerance),
        state,
        one,
        other,
    )
    assert np.abs(run(1, images)[0] - logits).max() > tolerance


def test_groups_that_cannot_share_the_batch_are_refused():
    with pytest.raises(UserError, match=r"batch of 4 .* 3 groups.*config\.norm\.groups"):
        GhostBatchNorm(3).init(jax.random.key(0), jnp.ones((4, 2)))


def test_momentum_and_epsilon_reach_every_norm():
    seen = set()

    def note(call, args, kwargs, context):
        if isinstance(context.module, nn.BatchNorm | GhostBatchNorm):
            seen.add((type(context.module), context.module.momentum, context.module.epsilon))
        return call(*args, **kwargs)

    images = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32)
    for name in ("resnet8", "pyramidnet11_6"):
        for groups in (1, 2):
            model = create_model(name, 10, norm_momentum=0.7, norm_epsilon=1e-3, norm_groups=groups)
            with nn.intercept_methods(note):
                jax.eval_shape(
                    lambda x, model=model: model.init(jax.random.key(0), x, train=True), images
                )
    assert seen == {(nn.BatchNorm, 0.7, 1e-3), (GhostBatchNorm, 0.7, 1e-3)}
