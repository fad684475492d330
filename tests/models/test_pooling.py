"""Max-pooling on CPUs: XLA's values and gradients. test_convolution.py has other platforms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutmix_jax.models.pooling import max_pool
from tests.models.reference import flax_max_pool


@st.composite
def poolings(draw):
    """Images with few different values, so that maxima are often equal, and the arguments."""
    window = draw(st.integers(1, 4))
    padding = draw(st.integers(0, window // 2))
    shape = (draw(st.integers(1, 2)), *(draw(st.integers(window, 9)) for _ in range(2)), 3)
    values = draw(st.sampled_from([2, 1000]))
    images = np.random.default_rng(draw(st.integers(0, 99))).integers(values, size=shape)
    return images.astype(np.float32) - 1, (window, draw(st.integers(1, 4)), padding)


@functools.partial(jax.jit, static_argnums=(0, 2))
def value_and_gradient(function, images, arguments):
    """The maxima, and the gradient of their weighted sum."""
    value, pullback = jax.vjp(lambda x: function(x, *arguments), images)
    weights = 1.0 + jnp.arange(value.size, dtype=value.dtype).reshape(value.shape)
    return value, pullback(weights)[0]


@settings(max_examples=25, deadline=None)
@given(poolings())
def test_value_and_gradient_are_those_of_flax(case):
    ours, flax = (value_and_gradient(f, *case) for f in (max_pool, flax_max_pool))
    for a, b in zip(ours, flax, strict=True):
        np.testing.assert_array_equal(a, b)  # sums of small whole numbers are exact


def test_gradient_is_that_of_torch():
    torch = pytest.importorskip("torch")
    images = np.maximum(np.random.default_rng(0).normal(size=(2, 12, 10, 3)), 0).astype(np.float32)
    value, gradient = value_and_gradient(max_pool, images, (3, 2, 1))
    theirs = torch.tensor(images.transpose(0, 3, 1, 2), requires_grad=True)
    maxima = torch.nn.functional.max_pool2d(theirs, 3, 2, 1)
    weights = 1.0 + np.arange(value.size, dtype=np.float32).reshape(value.shape)
    maxima.backward(torch.tensor(weights.transpose(0, 3, 1, 2)))
    np.testing.assert_array_equal(value, maxima.detach().numpy().transpose(0, 2, 3, 1))
    np.testing.assert_allclose(gradient, theirs.grad.numpy().transpose(0, 2, 3, 1))


def test_other_dtypes_are_passed_on():
    images = jnp.arange(32, dtype=jnp.bfloat16).reshape(1, 4, 4, 2)
    assert max_pool(images, 2, 2).dtype == jnp.bfloat16


@pytest.mark.parametrize("shape", [(1, 2, 2, 1), (5, 6, 3)])
def test_windows_beyond_the_image_and_single_images_are_passed_on(shape):
    case = (jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape), (3, 2, 0))
    for a, b in zip(
        *(value_and_gradient(f, *case) for f in (max_pool, flax_max_pool)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_under_vmap_and_remat():
    images = jnp.asarray(np.random.default_rng(0).normal(size=(3, 1, 8, 8, 2)), jnp.float32)

    def gradient(function, x):
        return jax.grad(lambda x: jnp.sum(function(x, 3, 2, 1) ** 2))(x)

    wanted = jax.vmap(lambda x: gradient(flax_max_pool, x))(images)
    rematted = jax.checkpoint(max_pool, static_argnums=(1, 2, 3))
    for function in (max_pool, rematted):
        found = jax.jit(jax.vmap(lambda x, f=function: gradient(f, x)))(images)
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
