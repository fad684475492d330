"""Networks by name, and the messages for a wrong name or size."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutmix_jax import UserError, models
from cutmix_jax.models import check_image_size, create_model, find_small_variant
from cutmix_jax.regularize import Regularization


def test_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"no model 'resnet55' \(the nearest is 'resnet5"):
        create_model("resnet55", 10)


def test_unknown_name_is_answered_with_all_names():
    with pytest.raises(UserError, match=r"there are resnet8, .*vgg16_gap.*pyramidnetDEPTH_ALPHA"):
        create_model("transformer", 10)


@pytest.mark.parametrize(
    "name",
    ["resnet20x0", "resnet20x", "resnet20x4x2", "x4", "", "resnet20x0.0", "resnet20x1.0", "x0.5"],
)
def test_factor_of_width_is_a_positive_number_written_in_one_way(name):
    with pytest.raises(UserError, match="There is no model"):
        create_model(name, 10)


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("resnet18x0.25", 16),
        ("resnet18_cifarx0.5", 32),
        ("preact_resnet18x0.5", 32),
        ("resnet20x1.5", 24),
        ("se_resnet50x0.0625", 4),
        ("resnext50_32x4dx0.25", 16),
        ("resnet50x0.015625", 1),
    ],
)
def test_a_width_factor_can_be_a_fraction(name, width):
    model = create_model(name, 10)
    assert model.width == width
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    assert shapes["params"]["conv1"]["kernel"].shape[-1] == width


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18x0.3", r"19.2 planes, but a multiple of 1 .* multiple of 0\.015625"),
        ("resnext50_32x4dx0.125", r"8 planes, but a multiple of 16 .* multiple of 0\.25"),
        ("se_resnet50x0.03125", r"2 planes, but a multiple of 4 .* multiple of 0\.0625"),
    ],
)
def test_a_width_that_nothing_divides_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        create_model(name, 10)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("resnet20", (4, 4, 3)), ("resnet110", (32, 32, 3)), ("resnet50", (32, 48, 1))],
)
def test_images_that_fit(name, shape):
    check_image_size(name, shape)


@pytest.mark.parametrize(
    ("name", "shape", "stride"),
    [("resnet20", (3, 32, 3), 4), ("resnet50", (224, 31, 3), 32), ("resnet18x2", (8, 8, 1), 32)],
)
def test_images_that_are_too_small(name, shape, stride):
    with pytest.raises(UserError, match=f"too small for {name}.* at least {stride} x {stride}"):
        check_image_size(name, shape)


@pytest.mark.parametrize(
    ("name", "side", "meant"),
    [
        ("resnet18", 32, "resnet18_cifar"),
        ("resnet50x0.5", 32, "resnet50_cifarx0.5"),
        ("resnet18", 64, None),
        ("resnet101", 32, None),
        ("resnet18_cifar", 32, None),
        ("resnet20", 32, None),
    ],
)
def test_small_images_have_a_network_of_their_own(name, side, meant):
    assert find_small_variant(name, (side, side, 3)) == meant


@pytest.mark.parametrize("side", [(112, 112), (224, 192), (256, 256)])
def test_gather_excite_takes_images_of_its_own_size(side):
    check_image_size("ge_resnet50", (224, 224, 3))
    with pytest.raises(UserError, match=r"do not fit ge_resnet50.*config\.image_size=224"):
        check_image_size("ge_resnet50", (*side, 3))


@pytest.mark.parametrize("name", ["resnet20", "pyramidnet110", "vgg16_gap"])
def test_a_last_stride_needs_a_fourth_stage(name):
    with pytest.raises(UserError, match=rf"config\.last_stride is 1, but {name} has no layer4"):
        create_model(name, 10, last_stride=1)


def test_last_stride_leaves_maps_of_twice_the_side():
    sides = {}

    def tap(name, x):
        sides[name] = x.shape[1]
        return x

    model = create_model("resnet50", 10, last_stride=1)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    jax.eval_shape(lambda x: model.init(jax.random.key(0), x, tap=tap), images)
    assert (sides["layer3"], sides["layer4"]) == (14, 14)
    assert model.total_stride == 16
    check_image_size("resnet50", (16, 16, 3), last_stride=1)


@pytest.mark.parametrize(("name", "stages"), [("resnet20", (3, 4)), ("pyramidnet110", (4,))])
def test_drop_block_in_a_stage_that_is_not_there_is_refused(name, stages):
    drops = Regularization(drop_block=0.1, stages=stages)
    with pytest.raises(UserError, match=rf"drop_block\.stages.*{name} has 3 stages"):
        create_model(name, 10, regularization=drops)


@pytest.mark.parametrize(
    "name", ["resnet8", "pyramidnet29_8", "wide_resnet10_1", "vgg16_gapx0.0625"]
)
def test_without_classes_there_is_no_head(name):
    images = jnp.zeros((2, 32, 32, 3))
    with_head, without = create_model(name, 10), create_model(name, None)
    maps = {}

    def shapes_of(model):
        return jax.eval_shape(
            lambda: model.init_with_output(jax.random.key(0), images, tap=maps.setdefault)
        )

    _, whole = shapes_of(with_head)
    found, part = shapes_of(without)
    assert found.shape == maps[without.feature_names[-1]].shape
    assert whole["params"].pop("fc")
    assert part == whole


def macs(side, kernel, stride, inputs, outputs, groups=1):
    """Multiplications of a convolution on a square map: (all, without padding)."""
    places = np.arange(0, side, stride)[:, None] + np.arange(kernel) - kernel // 2
    taps = np.sum((places >= 0) & (places < side))
    channels = inputs * outputs // groups
    return np.array([(places.size**2) * channels, taps**2 * channels])


def resnet_macs(blocks, groups=1, base=64):
    total, channels, side = macs(224, 7, 2, 3, 64), 64, 56
    for stage, count in enumerate(blocks):
        planes = 64 * 2**stage
        inner = planes * base // 64 * groups
        for index in range(count):
            stride = 2 if stage and index == 0 else 1
            total = total + macs(side, 1, 1, channels, inner)
            total = total + macs(side, 3, stride, inner, inner, groups)
            if index == 0:
                total = total + macs(side, 1, stride, channels, 4 * planes)
            side, channels = side // stride, 4 * planes
            total = total + macs(side, 1, 1, inner, channels)
    return total + channels * 1000


def pyramid_macs(blocks, alpha):
    total, channels, side, exact = macs(32, 3, 1, 3, 16), 16, 32, 16.0
    for index in range(3 * blocks):
        exact += alpha / (3 * blocks)
        planes, stride = round(exact), 2 if index in (blocks, 2 * blocks) else 1
        total = total + macs(side, 1, 1, channels, planes)
        total = total + macs(side, 3, stride, planes, planes)
        side, channels = side // stride, 4 * planes
        total = total + macs(side, 1, 1, planes, channels)
    return total + channels * 1000


def vgg_macs():
    sizes, total, channels = "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 1024", 0, 3
    side = 224
    for size in sizes.split():
        if size == "M":
            side //= 2
        else:
            total, channels = total + macs(side, 3, 1, channels, int(size)), int(size)
    return total + 1024 * 1000


@pytest.mark.parametrize(
    ("name", "side", "expected", "published"),
    [
        # 10^9 multiplications that torchvision and timm print; None if they print none.
        ("resnet50", 224, resnet_macs((3, 4, 6, 3)), 4.09),
        ("resnet101", 224, resnet_macs((3, 4, 23, 3)), 7.80),
        ("resnext101_32x4d", 224, resnet_macs((3, 4, 23, 3), 32, 4), 8.01),
        ("pyramidnet110", 32, pyramid_macs(12, 64), None),
        ("vgg16_gap", 224, vgg_macs(), None),
    ],
)
def test_flops_of_the_program(name, side, expected, published):
    """Twice the multiplications by hand. Norms, activations and additions are a few percent."""
    padded, real = expected
    if published:
        assert padded / 1e9 == pytest.approx(published, rel=0.01)
    model = create_model(name, 1000)
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    flops = jax.jit(model.apply).lower(variables, images).cost_analysis()["flops"]
    assert 2 * real < flops < 2 * real * 1.1


def test_examples_of_the_docstrings():
    result = doctest.testmod(models)
    assert result.attempted > 0
    assert result.failed == 0
