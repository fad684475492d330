"""PyramidNet: exact parameter counts, and the same numbers as PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutmix_jax import UserError
from cutmix_jax.models import create_model, pyramidnet
from tests.models.reference import assert_same_numbers, count, shapes_of

PARAMETERS = [
    ("pyramidnet110", 10, 1_696_410),
    ("pyramidnet110", 100, 1_725_300),
    ("pyramidnet110_48_basic", 10, 1_772_706),
    ("pyramidnet110_48_basic", 100, 1_778_556),
    ("pyramidnet110_84_basic", 10, 3_904_446),
    ("pyramidnet110_84_basic", 100, 3_913_536),
    ("pyramidnet110_270_basic", 10, 28_485_477),
    ("pyramidnet110_270_basic", 100, 28_511_307),
    ("pyramidnet200", 10, 26_752_702),
    ("pyramidnet200", 100, 26_844_952),
]


@pytest.mark.parametrize("name", sorted({name for name, _, _ in PARAMETERS}))
def test_counts_are_exact(name):
    shapes = shapes_of(create_model(name, 7))["params"]
    body = count({k: v for k, v in shapes.items() if k != "fc"})
    features = shapes["fc"]["kernel"].shape[0]
    rows = {k: n for net, k, n in PARAMETERS if net == name}
    assert {k: body + (features + 1) * k for k in rows} == rows


def test_planes_of_the_papers_network():
    planes = create_model("pyramidnet200", 100).planes
    assert planes[:4] == (20, 23, 27, 31)
    assert [planes[i] for i in (21, 22, 43, 44, 65)] == [96, 100, 176, 180, 256]
    assert create_model("pyramidnet110", 100).planes[-1] * 4 == 320


def test_the_papers_names_are_short_for_their_sizes():
    for short, long in (("pyramidnet200", "pyramidnet200_240"), ("pyramidnet110",) * 2):
        assert create_model(short, 10) == create_model(long, 10)
    assert create_model("pyramidnet110", 10) == create_model("pyramidnet110_64", 10)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pyramidnet100_64", r"depth is 100, but 9n \+ 2 .*bottleneck.*Use 92 or 101"),
        ("pyramidnet111_48_basic", r"depth is 111, but 6n \+ 2 .*basic.*Use 110 or 116"),
        ("pyramidnet2_64", r"Use 11 or 20"),
    ],
)
def test_depths_that_no_network_has_are_refused(name, words):
    with pytest.raises(UserError, match=words):
        create_model(name, 10)


def test_sees_every_named_map_in_order():
    model, seen = create_model("pyramidnet20_12", 10), {}

    def tap(name, x):
        seen[name] = x.shape[1:]
        return x

    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    jax.eval_shape(lambda x: model.init(jax.random.key(0), x, tap=tap), images)
    assert tuple(seen) == model.feature_names
    assert [shape[0] for shape in seen.values()] == [32, 32, 32, 16, 8, 8]
    assert seen["final"] == seen["layer3"]


def test_only_the_final_map_is_activated():
    model, lowest = create_model("pyramidnet11_6", 10), {}

    def tap(name, x):
        lowest[name] = x.min()
        return x

    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    model.apply(model.init(jax.random.key(1), images), images, tap=tap)
    assert lowest.pop("final") == 0
    assert all(value < 0 for value in lowest.values())


def test_the_shortcut_averages_and_pads_with_zeros():
    x = np.arange(2 * 5 * 4 * 3, dtype=np.float32).reshape(2, 5, 4, 3)
    block = pyramidnet.PyramidBlock(planes=1, stride=2, conv=None, norm=None)
    y = np.asarray(pyramidnet.pooled(block, jnp.asarray(x), 5))
    assert y.shape == (2, 3, 2, 5)
    np.testing.assert_allclose(y[:, 0, 0, :3], x[:, :2, :2].mean((1, 2)))
    np.testing.assert_allclose(y[:, 2, 1, :3], x[:, 4:, 2:].mean((1, 2)))  # the odd last row
    assert (y[..., 3:] == 0).all()


@pytest.mark.parametrize(
    ("block", "bottleneck", "side"),
    [
        (pyramidnet.BottleneckBlock, True, (8, 12)),
        (pyramidnet.BasicBlock, False, (13, 15)),
    ],
)
def test_same_numbers_as_pytorch(block, bottleneck, side):
    pytest.importorskip("torch", reason="needs PyTorch as the numeric reference")
    from tests import torch_models

    depth = 11 if bottleneck else 14
    model = pyramidnet.pyramidnet(depth, 7, block)(num_classes=7)
    reference = torch_models.PyramidNet(depth, 7, 7, bottleneck=bottleneck)
    assert_same_numbers(model, reference, side)
