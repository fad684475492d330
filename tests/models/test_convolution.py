"""Convolution on CPUs: XLA's values and gradients. On other platforms, XLA's own program."""

import collections
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from cutmix_jax.models import create_model, resnet
from cutmix_jax.models.convolution import conv_general_dilated
from tests.models.reference import flax_max_pool

LAYOUT = ("NHWC", "HWIO", "NHWC")
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


@st.composite
def convolutions(draw):
    """Shapes of images and kernels, and the other arguments."""
    groups = draw(st.sampled_from([1, 1, 2, 3, 8, 32]))
    inputs, outputs = (groups * draw(st.integers(1, 5)) for _ in range(2))
    sides = draw(st.sampled_from([(1, 1), (3, 3), (1, 3), (2, 2), (7, 7)]))
    padding = draw(
        st.sampled_from(["SAME", "VALID"])
        | st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 2)
    )
    size = tuple(draw(st.integers(side, 9)) for side in sides)
    return {
        "shapes": ((draw(st.integers(1, 3)), *size, inputs), (*sides, inputs // groups, outputs)),
        "strides": (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        "padding": padding,
        "groups": groups,
        "dtype": draw(st.sampled_from(["float32", "float32", "bfloat16"])),
    }


def both(case):
    """Our convolution and XLA's, as functions of images and kernels, and their arguments."""
    rng = np.random.default_rng(0)
    operands = [jnp.asarray(rng.normal(size=s), case["dtype"]) for s in case["shapes"]]
    options = {
        "window_strides": case["strides"],
        "padding": case["padding"],
        "dimension_numbers": lax.conv_dimension_numbers(*case["shapes"], LAYOUT),
        "feature_group_count": case["groups"],
    }
    functions = (conv_general_dilated, of_padded)
    return [functools.partial(f, **options) for f in functions], operands


def of_padded(x, kernel, *, padding, **options):
    """XLA's convolution of images that are padded first."""
    if not isinstance(padding, str):
        x, padding = jnp.pad(x, ((0, 0), *padding, (0, 0))), "VALID"
    return lax.conv_general_dilated(x, kernel, padding=padding, **options)


def value_and_gradients(function, weights):
    """The value at (x, kernel), and the gradients of its sum weighed by `weights`."""

    def run(x, kernel):
        y, backward = jax.vjp(function, x, kernel)
        return y, *backward(weights.astype(y.dtype))

    return run


def weights_of(function, operands):
    shape = jax.eval_shape(function, *operands).shape
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), "float32")


def assert_close(found, expected, dtype="float32"):
    for name, a, b in zip(("value", "dx", "dkernel"), found, expected, strict=True):
        assert a.dtype == b.dtype, name
        assert a.shape == b.shape, name
        a, b = (np.asarray(each, np.float64) for each in (a, b))
        scale = max(1.0, np.abs(b).max(initial=0.0))
        np.testing.assert_allclose(a, b, atol=TOLERANCE[dtype] * scale, err_msg=name)


@settings(max_examples=40, deadline=None)
@given(convolutions())
def test_values_and_both_gradients_are_those_of_lax(case):
    (ours, theirs), operands = both(case)
    weights = weights_of(theirs, operands)
    found, expected = (jax.jit(value_and_gradients(f, weights))(*operands) for f in (ours, theirs))
    assert_close(found, expected, case["dtype"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_windows_in_the_padding_alone(dtype):
    """There, XLA's own gradient for CPUs reads outside of the map."""
    case = {
        "shapes": ((2, 8, 2, 8), (2, 2, 8, 32)),
        "strides": (1, 1),
        "padding": ((2, 0), (2, 0)),
        "groups": 1,
        "dtype": dtype,
    }
    (ours, _), (x, kernel) = both(case)
    g = weights_of(ours, (x, kernel))
    found = jax.jit(value_and_gradients(ours, g))(x, kernel)[1]
    gradient = np.zeros((2, 10, 4, 8))
    for i, j in np.ndindex(2, 2):
        gradient[:, i : i + 9, j : j + 3] += np.float64(g) @ np.float64(kernel[i, j]).T
    tolerance = TOLERANCE[dtype] * np.abs(gradient).max()
    np.testing.assert_allclose(np.float64(found), gradient[:, 2:, 2:], atol=tolerance)


def one_case(kernel=(3, 3, 2, 16), groups=4, channels=8, padding=((1, 1), (1, 1))):
    return {
        "shapes": ((4, 6, 6, channels), kernel),
        "strides": (2, 2),
        "padding": padding,
        "groups": groups,
        "dtype": "float32",
    }


def eagerly(run):
    return run


def over_examples(run):
    mapped = jax.vmap(run, in_axes=(0, None))
    return lambda x, kernel: mapped(x[:, None], kernel)


def over_devices(run):
    mapped = jax.pmap(run, axis_name="batch", in_axes=(0, None))
    return lambda x, kernel: [each[0] for each in mapped(x[None], kernel)]


@pytest.mark.parametrize("transform", [eagerly, jax.checkpoint, over_devices])
@pytest.mark.parametrize(
    "case", [one_case(), one_case((1, 1, 8, 16), 1, padding="VALID"), one_case((3, 3, 8, 4), 1)]
)
def test_transformations_change_nothing(transform, case):
    (ours, theirs), operands = both(case)
    weights = weights_of(theirs, operands)
    found, expected = (transform(value_and_gradients(f, weights)) for f in (ours, theirs))
    assert_close(found(*operands), expected(*operands))


@pytest.mark.parametrize("case", [one_case(), one_case((1, 1, 8, 16), 1, padding="VALID")])
def test_vmap_over_images(case):
    (ours, theirs), operands = both(case)
    weights = weights_of(theirs, operands)[:1]
    found, expected = (over_examples(value_and_gradients(f, weights)) for f in (ours, theirs))
    assert_close(found(*operands), expected(*operands))


def test_gradient_of_a_gradient():
    (ours, theirs), operands = both(one_case())

    def penalty(function):
        def norm(x, kernel):
            return (jax.grad(lambda x: jnp.sin(function(x, kernel)).sum())(x) ** 2).sum()

        return jax.jit(jax.grad(norm, (0, 1)))

    for found, expected in zip(penalty(ours)(*operands), penalty(theirs)(*operands), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_kernels_as_large_as_the_map():
    """The convolution that gathers in Gather-Excite."""
    case = {**one_case((6, 6, 1, 8), 8, padding="VALID"), "strides": (1, 1)}
    (ours, theirs), operands = both(case)
    weights = weights_of(theirs, operands)
    assert_close(*(value_and_gradients(f, weights)(*operands) for f in (ours, theirs)))


@pytest.mark.parametrize("kernel", [(7, 7, 8, 4), (3, 3, 8, 0), (1, 1, 8, 0)])
def test_where_no_value_comes_out_the_gradients_are_zero(kernel):
    (ours, theirs), operands = both(one_case(kernel, 1, padding="VALID"))
    weights = weights_of(theirs, operands)
    assert_close(*(value_and_gradients(f, weights)(*operands) for f in (ours, theirs)))


def test_other_layouts_are_passed_on():
    x, kernel = jnp.ones((2, 3, 5, 5)), jnp.ones((4, 3, 3, 3))
    layout = ("NCHW", "OIHW", "NCHW")
    options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": layout}
    np.testing.assert_array_equal(
        conv_general_dilated(x, kernel, **options), lax.conv_general_dilated(x, kernel, **options)
    )


def test_wrong_shapes_are_named_as_lax_names_them():
    with pytest.raises((TypeError, ValueError), match="feature_group_count"):
        nn.Conv(5, (3, 3), feature_group_count=2, conv_general_dilated=conv_general_dilated).apply(
            {"params": {"kernel": jnp.ones((3, 3, 2, 5)), "bias": jnp.ones(5)}},
            jnp.ones((1, 6, 6, 4)),
        )


def instructions(model, platform):
    """How often each instruction with its types stands in the program of the gradient.

    Where a platform is chosen stands a branch with one side, which XLA removes: it, what it returns
    and its index do not count.
    """
    images = jnp.zeros((2, 32, 32, 3))
    variables = jax.eval_shape(functools.partial(model.init, jax.random.key(0)), images)

    def gradient(variables, images):
        def loss(params):
            changed = {**variables, "params": params}
            return model.apply(changed, images, train=True, mutable=["batch_stats"])[0].sum()

        return jax.grad(loss)(variables["params"])

    lowered = jax.jit(gradient).trace(variables, images).lower(lowering_platforms=(platform,))
    text = lowered.as_text()
    found = re.findall(r"= \"?((?:stablehlo|chlo)\.\w+)(.*?)(?: loc.*)?$", text, re.MULTILINE)
    written = collections.Counter((name, re.sub(r"%\w+(#\d+)?", "", rest)) for name, rest in found)
    for name, rest in list(written):
        if name == "stablehlo.case" or (name, rest) in INDICES:
            del written[name, rest]
    return written


INDICES = {("stablehlo.constant", f" dense<{i}> : tensor<i32>") for i in (0, 1)}


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize(
    ("name", "blocks"), [("resnet8", (1, 1, 1)), ("resnext50_32x4d", (2, 1, 1, 1))]
)
def test_programs_for_tpu_and_gpu_are_those_of_flax(name, blocks, platform, monkeypatch):
    model = create_model(name, num_classes=10).clone(stage_sizes=blocks)
    ours = instructions(model, platform)
    monkeypatch.setattr(resnet, "max_pool", flax_max_pool)
    flax = instructions(model.clone(conv_layer=nn.Conv), platform)
    assert sum(ours.values()) > 100
    assert ours == flax


def test_programs_for_cpus_differ():
    """This shows that the test above can fail."""
    model = create_model("resnet8", num_classes=10)
    ours, flax = (instructions(each, "cpu") for each in (model, model.clone(conv_layer=nn.Conv)))
    assert ours != flax
