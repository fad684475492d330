"""Networks by name, and what a wrong name or size is answered with."""

import doctest

import pytest

from cutmix_jax import UserError, models
from cutmix_jax.models import check_image_size, create_model


def test_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"no model 'resnet55' \(the nearest is 'resnet5"):
        create_model("resnet55", 10)


def test_unknown_name_is_answered_with_all_names():
    with pytest.raises(UserError, match=r"there are resnet8, .*vgg16_gap.*pyramidnetDEPTH_ALPHA"):
        create_model("transformer", 10)


@pytest.mark.parametrize("name", ["resnet20x0", "resnet20x", "resnet20x4x2", "x4", ""])
def test_factor_of_width_is_a_positive_integer(name):
    with pytest.raises(UserError, match="There is no model"):
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


def test_examples_of_the_docstrings():
    result = doctest.testmod(models)
    assert result.attempted > 0
    assert result.failed == 0
