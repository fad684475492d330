"""VGG16-GAP: exact parameter counts, and the same numbers as PyTorch's."""

import jax
import jax.numpy as jnp
import pytest

from cutmix_jax import UserError
from cutmix_jax.models import create_model
from cutmix_jax.regularize import Regularization
from tests.models.reference import assert_same_numbers, count, shapes_of


def test_counts_are_exact():
    shapes = shapes_of(create_model("vgg16_gap", 7))["params"]
    body = count({k: v for k, v in shapes.items() if k != "fc"})
    rows = {10: 19_444_554, 100: 19_536_804, 200: 19_639_304, 1000: 20_459_304}
    assert {k: body + 1025 * k for k in rows} == rows


def test_modules_have_torchvisions_positions():
    shapes = shapes_of(create_model("vgg16_gap", 7))["params"]
    places = sorted(int(name.split("_")[1]) for name in shapes if name.startswith("features"))
    assert places == [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]


def test_sees_every_named_map_in_order():
    model, seen = create_model("vgg16_gap", 10), {}

    def tap(name, x):
        seen[name] = x.shape[1:]
        return x

    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    jax.eval_shape(lambda x: model.init(jax.random.key(0), x, tap=tap), images)
    assert tuple(seen) == model.feature_names
    assert [shape[0] for shape in seen.values()] == [224, 224, 112, 56, 28, 14, 14]
    assert seen["conv6"] == (14, 14, 1024)


@pytest.mark.parametrize("options", [{"remat": True}, {"regularization": Regularization(0.5)}])
def test_what_is_about_residual_blocks_is_refused(options):
    with pytest.raises(UserError, match=r"vgg16_gap has no residual blocks"):
        create_model("vgg16_gap", 10, **options)


def test_same_numbers_as_pytorch():
    pytest.importorskip("torch", reason="needs PyTorch as the numeric reference")
    from tests import torch_models

    assert_same_numbers(create_model("vgg16_gap", 7), torch_models.VGG16GAP(7), (16, 17))
