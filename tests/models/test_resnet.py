"""Residual networks: exact parameter counts, and the same numbers as PyTorch's."""

import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutmix_jax import UserError
from cutmix_jax.models import create_model, resnet
from cutmix_jax.models.layers import GatherExcite, SqueezeExcite
from cutmix_jax.models.resnet import BasicBlock, BottleneckBlock, PreActivationBlock, ResNet
from cutmix_jax.regularize import Regularization
from tests.models.reference import (
    assert_same_numbers,
    count,
    images_of,
    random_variables,
    shapes_of,
    torch_resnet,
)

PARAMETERS = [
    ("resnet20", 10, 272_474),
    ("resnet20", 100, 278_324),
    ("resnet32", 10, 466_906),
    ("resnet32", 100, 472_756),
    ("resnet44", 10, 661_338),
    ("resnet44", 100, 667_188),
    ("resnet56", 10, 855_770),
    ("resnet56", 100, 861_620),
    ("resnet110_basic", 10, 1_730_714),
    ("resnet110_basic", 100, 1_736_564),
    ("resnet110", 10, 1_147_738),
    ("resnet110", 100, 1_170_868),
    ("resnet29", 10, 313_114),
    ("resnet29", 100, 336_244),
    ("resnet164", 10, 1_704_154),
    ("resnet164", 100, 1_727_284),
    ("resnet18_cifar", 10, 11_173_962),
    ("resnet18_cifar", 100, 11_220_132),
    ("resnet34_cifar", 10, 21_282_122),
    ("resnet34_cifar", 100, 21_328_292),
    ("resnet50_cifar", 10, 23_520_842),
    ("resnet50_cifar", 100, 23_705_252),
    ("preact_resnet18", 10, 11_172_170),
    ("preact_resnet18", 100, 11_218_340),
    ("wide_resnet16_8", 10, 10_961_370),
    ("wide_resnet16_8", 100, 11_007_540),
    ("wide_resnet28_10", 10, 36_479_194),
    ("wide_resnet28_10", 100, 36_536_884),
    ("resnet18", 10, 11_181_642),
    ("resnet18", 100, 11_227_812),
    ("resnet18", 1000, 11_689_512),
    ("resnet34", 10, 21_289_802),
    ("resnet34", 100, 21_335_972),
    ("resnet34", 1000, 21_797_672),
    ("resnet50", 10, 23_528_522),
    ("resnet50", 100, 23_712_932),
    ("resnet50", 200, 23_917_832),
    ("resnet50", 1000, 25_557_032),
    ("resnet101", 10, 42_520_650),
    ("resnet101", 100, 42_705_060),
    ("resnet101", 1000, 44_549_160),
    ("resnext101_32x4d", 10, 42_149_194),
    ("resnext101_32x4d", 100, 42_333_604),
    ("resnext101_32x4d", 1000, 44_177_704),
    ("se_resnet50", 10, 26_059_514),
    ("se_resnet50", 100, 26_243_924),
    ("se_resnet50", 1000, 28_088_024),
    ("se_resnet101", 10, 47_298_362),
    ("se_resnet101", 100, 47_482_772),
    ("se_resnet101", 1000, 49_326_872),
    ("ge_resnet50", 1000, 33_637_592),
    ("ge_resnet101", 1000, 58_323_224),
    ("resnet152", 10, 58_164_298),
    ("resnet152", 100, 58_348_708),
    ("resnet152", 1000, 60_192_808),
]

# Odd and even sizes, so that every stride sees both.
SMALL = {
    "basic, CIFAR": (
        {"stage_sizes": (2, 1, 1), "block": BasicBlock, "width": 8, "large_stem": False},
        (18, 13),
    ),
    "bottleneck, CIFAR": (
        {"stage_sizes": (1, 2, 1), "block": BottleneckBlock, "width": 4, "large_stem": False},
        (16, 16),
    ),
    "basic, four stages of CIFAR": (
        {"stage_sizes": (2, 1, 1, 1), "block": BasicBlock, "width": 4, "large_stem": False},
        (17, 16),
    ),
    "basic, ImageNet": (
        {"stage_sizes": (1, 1, 1, 1), "block": BasicBlock, "width": 4, "large_stem": True},
        (64, 75),
    ),
    "bottleneck, ImageNet": (
        {"stage_sizes": (1, 1, 2, 1), "block": BottleneckBlock, "width": 4, "large_stem": True},
        (70, 65),
    ),
    "ResNeXt": (
        {
            "stage_sizes": (1, 2),
            "block": BottleneckBlock,
            "width": 16,
            "large_stem": False,
            "groups": 4,
            "base_width": 8,
        },
        (12, 9),
    ),
    "SE": (
        {
            "stage_sizes": (1, 2),
            "block": BottleneckBlock,
            "width": 8,
            "large_stem": False,
            "attention": functools.partial(SqueezeExcite, name="se"),
        },
        (9, 12),
    ),
    "GE": (
        {
            "stage_sizes": (1, 2),
            "block": BottleneckBlock,
            "width": 8,
            "large_stem": False,
            "attention": functools.partial(GatherExcite, name="ge"),
        },
        (8, 12),
    ),
}


def count_by_formula(name, classes):
    """Parameters of a network with basic blocks and a 3x3 stem, from its definition."""
    wide = re.fullmatch(r"wide_resnet(\d+)_(\d+)", name)
    if wide:
        pre_activation, blocks, width, stages, inputs = True, (int(wide[1]) - 4) // 6, 16, 3, 16
        width *= int(wide[2])
    else:
        base, _, factor = name.partition("x")
        pre_activation, blocks, stages = base == "preact_resnet18", 2, 4
        width = inputs = int(64 * float(factor or 1))
    total = 27 * inputs + 2 * inputs * (not pre_activation)
    for stage in range(stages):
        planes = width * 2**stage
        for _ in range(blocks):
            total += 9 * inputs * planes + 9 * planes**2
            total += 2 * (inputs if pre_activation else planes) + 2 * planes
            if inputs != planes:
                total += inputs * planes + 2 * planes * (not pre_activation)
            inputs = planes
    return total + 2 * inputs * pre_activation + (inputs + 1) * classes


def block_rates(model):
    """The probability that each block is dropped, in order."""
    rates = []

    def note(next_function, args, kwargs, context):
        if isinstance(context.module, BasicBlock) and context.method_name == "__call__":
            rates.append(context.module.regularization.stochastic_depth)
        return next_function(*args, **kwargs)

    side = 32 if model.first == 0 else 8
    channels = 3 if model.first == 0 else 256
    with nn.intercept_methods(note):
        rngs = {"params": jax.random.key(0), "drop": jax.random.key(1)}
        images = jnp.zeros((2, side, side, channels))
        jax.eval_shape(lambda: model.init(rngs, images, train=True))
    return rates


@pytest.fixture(scope="module")
def small():
    """A small net with its initial variables, shared because making it is half of the work."""
    model = ResNet((1, 1, 1), BasicBlock, 16, large_stem=False, num_classes=10)
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


class TestParameters:
    # Only the head depends on the number of classes, so one trace serves them all.
    @pytest.mark.parametrize("name", sorted({name for name, _, _ in PARAMETERS}))
    def test_counts_are_exact(self, name):
        side = 224 if name.startswith("ge") else 64
        shapes = shapes_of(create_model(name, 7), side)["params"]
        body = count({k: v for k, v in shapes.items() if k != "fc"})
        features = shapes["fc"]["kernel"].shape[0]
        rows = {k: n for net, k, n in PARAMETERS if net == name}
        assert {k: body + (features + 1) * k for k in rows} == rows

    def test_counts_of_networks_for_small_images_have_a_formula(self):
        names = ("resnet18_cifar", "preact_resnet18", "wide_resnet16_8", "wide_resnet28_10")
        rows = [row for row in PARAMETERS if row[0] in names]
        assert len(rows) == 2 * len(names)
        assert [count_by_formula(name, classes) for name, classes, _ in rows] == [
            number for _, _, number in rows
        ]

    @pytest.mark.parametrize("name", ["resnet18_cifarx0.5", "preact_resnet18x0.5"])
    def test_narrow_networks_have_the_count_of_the_formula(self, name):
        assert count(shapes_of(create_model(name, 7))["params"]) == count_by_formula(name, 7)

    def test_count_of_the_head(self):
        assert count(shapes_of(create_model("resnet20", 100))["params"]) == 278_324

    def test_everything_is_float32(self):
        shapes = shapes_of(create_model("resnet20", 10, dtype=jnp.bfloat16))
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}

    def test_width_multiplies_every_layer(self):
        narrow = shapes_of(create_model("resnet20", 10))["params"]
        wide = shapes_of(create_model("resnet20x4", 10))["params"]
        assert wide["conv1"]["kernel"].shape == (3, 3, 3, 64)
        assert wide["layer3_0"]["conv2"]["kernel"].shape == (3, 3, 256, 256)
        assert wide["fc"]["kernel"].shape == (256, 10)
        assert jax.tree.structure(narrow) == jax.tree.structure(wide)


class TestParts:
    def test_parts_after_each_other_are_the_whole(self):
        fields, side = SMALL["bottleneck, ImageNet"]
        images = images_of(side)
        whole = ResNet(num_classes=7, **fields)
        variables = random_variables(whole, images)
        stem, middle, end = (
            whole.clone(num_classes=classes, first=first, last=last)
            for classes, first, last in ((None, 0, 1), (None, 2, 3), (7, 4, None))
        )
        assert stem.feature_names == ("image", "stem", "layer1")
        assert middle.feature_names == ("layer2", "layer3")
        strides = [part.total_stride for part in (stem, middle, end, whole)]
        assert strides == [4, 4, 2, 32]

        def chain(variables, images):
            x = images
            for part in (stem, middle, end):
                x = part.apply(variables, x)
            return x

        found = jax.jit(chain)(variables, images)
        np.testing.assert_allclose(found, jax.jit(whole.apply)(variables, images), rtol=1e-5)

    def test_a_part_has_its_parameters_alone(self):
        part = create_model("resnet18", None).clone(first=3, last=4)
        names = shapes_of(part)["params"].keys()
        assert names == {"layer3_0", "layer3_1", "layer4_0", "layer4_1"}

    def test_a_part_is_regularized_as_in_the_whole(self):
        """Stochastic depth grows over the blocks of the whole network."""
        drops = Regularization(stochastic_depth=0.5)
        whole = create_model("resnet18", None, regularization=drops)
        rates = [block_rates(model) for model in (whole, whole.clone(first=4))]
        assert rates[1] == rates[0][-2:]
        assert rates[0][-1] == 0.5


class TestInit:
    def test_convolutions_are_he_normal_of_fan_out(self, small):
        _, variables = small
        kernels = {
            jax.tree_util.keystr(path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
            if leaf.ndim == 4
        }
        assert len(kernels) == 9
        scaled = []
        for name, kernel in kernels.items():
            side, _, _, features = kernel.shape
            z = np.ravel(kernel) / math.sqrt(2 / (side * side * features))
            assert abs(z.std() - 1) < 5 / math.sqrt(2 * z.size), name
            scaled.append(z)
        z = np.concatenate(scaled)
        assert abs(z.mean()) < 5 / math.sqrt(z.size)
        # A normal distribution without truncation: fourth moment 3, and values beyond 3 sigma.
        assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / z.size)
        assert np.abs(z).max() > 3.5

    def test_head_is_pytorchs_uniform(self, small):
        _, variables = small
        bound = 1 / math.sqrt(64)
        for leaf in variables["params"]["fc"].values():
            z = np.ravel(leaf) / bound
            assert np.abs(z).max() <= 1
            assert abs(z.std() - 1 / math.sqrt(3)) < 0.6 / math.sqrt(z.size)
            assert z.std() > 0.2

    def test_norms_start_as_the_identity(self, small):
        _, variables = small
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
            name = jax.tree_util.keystr(path)
            if "bn" in name:
                assert (leaf == (1.0 if "scale" in name else 0.0)).all(), name

    @pytest.mark.parametrize(("block", "last"), [(BasicBlock, "bn2"), (BottleneckBlock, "bn3")])
    def test_zero_init_makes_blocks_the_identity(self, block, last):
        # expansion 4 needs a projection in the first block of a stage, so look at the second
        model = ResNet((2,), block, 4, large_stem=False, num_classes=3, zero_init=True)
        maps = {}
        images = images_of((8, 8))
        variables = model.init(jax.random.key(0), images)
        assert (variables["params"]["layer1_1"][last]["scale"] == 0).all()
        assert (variables["params"]["layer1_1"]["bn1"]["scale"] == 1).all()
        _, state = model.apply(
            variables,
            images,
            train=True,
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=lambda module, _: isinstance(module, block),
        )
        maps = state["intermediates"]
        first, second = (maps[name]["__call__"][0] for name in ("layer1_0", "layer1_1"))
        np.testing.assert_array_equal(first, second)


class TestPreActivation:
    """What differs from networks whose activations come after the norms."""

    model = resnet.pre_activation((2, 1))(num_classes=10, width=4, zero_init=True)
    images = images_of((8, 8))

    def test_only_the_final_map_is_activated(self):
        lowest = {}

        def tap(name, x):
            lowest[name] = x.min()
            return x

        self.model.apply(random_variables(self.model, self.images), self.images, tap=tap)
        assert lowest.pop("final") == 0
        assert all(value < 0 for value in lowest.values())

    def test_the_head_starts_with_a_bias_of_zero_and_blocks_as_the_identity(self):
        """The last convolution is zero. A scale of zero before the activation would stay zero."""
        variables = jax.jit(self.model.init)(jax.random.key(0), self.images)
        assert (variables["params"]["fc"]["bias"] == 0).all()
        assert np.abs(variables["params"]["fc"]["kernel"]).max() > 0

        def loss(params):
            logits, state = self.model.apply(
                {**variables, "params": params},
                self.images,
                capture_intermediates=lambda module, _: isinstance(module, PreActivationBlock),
                mutable=["intermediates"],
            )
            return logits.sum(), state["intermediates"]

        grads, maps = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
        first, second = (maps[f"layer1_{i}"]["__call__"][0] for i in range(2))
        np.testing.assert_array_equal(first, second)
        assert np.abs(grads["layer1_1"]["conv2"]["kernel"]).max() > 0

    def test_swapping_a_map_swaps_the_logits(self):
        variables = random_variables(self.model, self.images)
        plain = self.model.apply(variables, self.images)
        assert self.model.feature_names == ("image", "stem", "layer1", "layer2", "final")
        for layer in self.model.feature_names:
            swapped = self.model.apply(
                variables, self.images, tap=lambda name, x, at=layer: x[::-1] if name == at else x
            )
            np.testing.assert_allclose(swapped, plain[::-1], rtol=1e-4, atol=1e-4, err_msg=layer)

    def test_only_the_last_part_ends_with_the_norm(self):
        start, end = (
            self.model.clone(num_classes=None, first=first, last=last)
            for first, last in ((0, 1), (2, 2))
        )
        assert start.feature_names == ("image", "stem", "layer1")
        assert end.feature_names == ("layer2", "final")
        assert shapes_of(start)["params"].keys() == {"conv1", "layer1_0", "layer1_1"}
        maps = jnp.zeros((1, 8, 8, 4))
        names = jax.eval_shape(end.init, jax.random.key(0), maps)["params"].keys()
        assert names == {"layer2_0", "bn_final"}


@pytest.mark.parametrize(("name", "words"), [("27_10", "Use 22 or 28"), ("4_2", "Use 10 or 16")])
def test_depths_that_no_wide_resnet_has_are_refused(name, words):
    with pytest.raises(UserError, match=rf"Wide ResNet is \d+, but 6n \+ 4 was expected.*{words}"):
        create_model(f"wide_resnet{name}", 10)


def test_the_width_of_a_wide_resnet_is_in_its_name_alone():
    with pytest.raises(
        UserError, match=r"no model 'wide_resnet28_10x0.5'.*wide_resnetDEPTH_FACTOR"
    ):
        create_model("wide_resnet28_10x0.5", 10)


class TestPadding:
    @pytest.mark.parametrize("name", ["resnet20", "resnet29", "resnet50"])
    def test_is_symmetric_also_at_stride_two(self, name):
        # On a CPU, the program contains its own convolution next to that of other platforms.
        model = create_model(name, 10).clone(conv_layer=nn.Conv)
        shapes = shapes_of(model, 64)
        jaxpr = jax.make_jaxpr(lambda v, x: model.apply(v, x))(shapes, jnp.zeros((1, 64, 64, 3)))
        strided = 0
        for eqn in equations(jaxpr.jaxpr):
            if eqn.primitive.name == "conv_general_dilated":
                side = eqn.invars[1].aval.shape[eqn.params["dimension_numbers"].rhs_spec[2]]
                assert eqn.params["padding"] == ((side // 2, side // 2),) * 2
                strided += eqn.params["window_strides"] == (2, 2)
            if eqn.primitive.name == "reduce_window_max":
                assert eqn.params["padding"] == ((0, 0), (1, 1), (1, 1), (0, 0))
        # Stride 2 in one convolution and one projection per stage. The ImageNet stem has one more.
        assert strided == {"resnet20": 4, "resnet29": 4, "resnet50": 7}[name]


def equations(jaxpr):
    """All equations, including those of inner jaxprs."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


class TestTap:
    @pytest.mark.parametrize(
        ("name", "side", "sides"),
        [
            ("resnet20", 32, (32, 32, 32, 16, 8)),
            ("resnet18_cifar", 32, (32, 32, 32, 16, 8, 4)),
            ("preact_resnet18", 32, (32, 32, 32, 16, 8, 4, 4)),
            ("wide_resnet10_1", 32, (32, 32, 32, 16, 8, 8)),
            ("resnet50", 224, (224, 112, 56, 28, 14, 7)),
        ],
    )
    def test_sees_every_named_map_in_order(self, name, side, sides):
        model = create_model(name, 10)
        seen = []

        def tap(name, x):
            seen.append((name, x.shape[1:3]))
            return x

        images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        jax.eval_shape(lambda v, x: model.apply(v, x, tap=tap), shapes_of(model), images)
        assert [name for name, _ in seen] == list(model.feature_names)
        assert [shape for _, shape in seen] == [(s, s) for s in sides]

    def test_may_replace_a_map(self, small):
        model, variables = small
        images = jnp.asarray(images_of((8, 8)))

        def last_map_is_zero(name, x):
            return jnp.zeros_like(x) if name == "layer3" else x

        logits = model.apply(variables, images, tap=last_map_is_zero)
        expected = np.broadcast_to(variables["params"]["fc"]["bias"], (4, 10))
        np.testing.assert_array_equal(logits, expected)

    def test_maps_are_taken_after_the_activation(self, small):
        model, variables = small
        lowest = {}

        def tap(name, x):
            lowest[name] = x.min()
            return x

        model.apply(variables, jnp.asarray(images_of((8, 8))), tap=tap)
        assert lowest.pop("image") < 0
        assert all(value == 0 for value in lowest.values())

    def test_reads_a_map_of_any_layer(self, small):
        """Swapping the maps of two examples at any layer swaps their logits."""
        model, variables = small
        images = jnp.asarray(images_of((8, 8)))
        plain = model.apply(variables, images)
        for layer in model.feature_names:
            swapped = model.apply(
                variables, images, tap=lambda name, x, at=layer: x[::-1] if name == at else x
            )
            np.testing.assert_allclose(swapped, plain[::-1], atol=1e-5, err_msg=layer)


class TestPrecision:
    def test_bfloat16_inside_float32_outside(self, small):
        model, variables = small
        half = model.copy(dtype=jnp.bfloat16)
        images = images_of((16, 16), batch=8)
        dtypes = {}

        def tap(name, x):
            dtypes[name] = x.dtype
            return x

        apply = jax.jit(lambda v, x: half.apply(v, x, True, tap, mutable=["batch_stats"]))
        logits, state = apply(variables, images)
        assert logits.dtype == jnp.float32
        assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
        assert {dtypes[name] for name in half.feature_names[1:]} == {jnp.dtype("bfloat16")}
        full, _ = model.apply(variables, images, True, mutable=["batch_stats"])
        assert np.abs(logits - full).max() > 0
        # About ten layers of eight bits: a few percent of the spread of the logits.
        assert np.sqrt(np.mean((logits - full) ** 2)) < 0.1 * np.std(full)

    def test_bfloat16_in_evaluation(self, small):
        model, variables = small
        images = images_of((16, 16), batch=8)
        full, logits = (
            jax.jit(functools.partial(net.apply, train=False))(variables, images)
            for net in (model, model.copy(dtype=jnp.bfloat16))
        )
        assert np.sqrt(np.mean((logits - full) ** 2)) < 0.1 * np.std(full)

    def test_head_works_in_float32(self):
        """Images whose means differ by less than bfloat16's resolution have different logits."""
        model = ResNet((1,), BasicBlock, 4, large_stem=False, num_classes=2, dtype=jnp.bfloat16)
        variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))

        def last(name, x):
            return jnp.ones_like(x).at[1, 0, 0].set(2) if name == "layer1" else x

        first, second = model.apply(variables, jnp.zeros((2, 32, 32, 3)), tap=last)
        assert (first != second).all()


class TestNormAxis:
    def test_statistics_are_of_all_shards(self):
        model = ResNet((1,), BasicBlock, 4, large_stem=False, num_classes=5)
        variables = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 8, 8, 3)))
        images = jnp.asarray(images_of((8, 8), batch=8))

        def run(shards, norm_axis):
            def apply(shard):
                net = model.copy(norm_axis=norm_axis)
                return net.apply(variables, shard, train=True, mutable=["batch_stats"])

            batches = images.reshape(shards, 8 // shards, 8, 8, 3)
            logits, state = jax.jit(jax.vmap(apply, axis_name="batch"))(batches)
            return logits.reshape(8, 5), state

        whole, whole_state = run(1, None)
        synced, synced_state = run(2, "batch")
        alone, _ = run(2, None)
        np.testing.assert_allclose(synced, whole, atol=1e-5)
        jax.tree.map(
            lambda both, one: np.testing.assert_allclose(
                both, np.broadcast_to(one, both.shape), atol=1e-6
            ),
            synced_state,
            whole_state,
        )
        assert np.abs(alone - whole).max() > 1e-3

    def test_evaluation_needs_no_axis(self):
        model = ResNet((1,), BasicBlock, 4, large_stem=False, num_classes=5, norm_axis="batch")
        variables = model.init(jax.random.key(1), jnp.zeros((1, 8, 8, 3)))
        assert model.apply(variables, jnp.zeros((2, 8, 8, 3))).shape == (2, 5)


@pytest.mark.parametrize("net", SMALL)
def test_same_numbers_as_pytorch(net):
    torch = pytest.importorskip("torch", reason="needs PyTorch as the numeric reference")
    fields, side = SMALL[net]
    model = ResNet(num_classes=7, **fields)
    assert_same_numbers(model, torch_resnet(torch, side, num_classes=7, **fields), side)


@pytest.mark.parametrize("net", ["preact_resnet", "wide_resnet"])
def test_pre_activation_has_the_same_numbers_as_pytorch(net):
    pytest.importorskip("torch", reason="needs PyTorch as the numeric reference")
    from tests import torch_models

    if net == "preact_resnet":
        sizes = (2, 1, 1, 1)
        model = resnet.pre_activation(sizes)(num_classes=7, width=4)
        reference, side = torch_models.PreActResNet(sizes, 7, width=4), (17, 16)
        names = [(r"downsample\.0", "shortcut.0"), ("^bn_final", "bn"), ("^fc", "linear")]
    else:
        model = resnet.wide(16, 2)(num_classes=7)
        reference, side = torch_models.WideResNet(16, 2, 7), (14, 13)
        names = [
            (r"^layer(\d)\.(\d)", r"block\1.layer.\2"),
            (r"downsample\.0", "convShortcut"),
            ("^bn_final", "bn1"),
        ]
    assert_same_numbers(model, reference, side, renamed=names)
