"""MODEL,METHOD: each word sets what the paper says, and nonsense is refused."""

import functools
import inspect
import math
import pathlib
import re

import jax
import numpy as np
import pytest
from flax import linen as nn

from cutmix_jax import UserError, methods, paper, tasks, train
from cutmix_jax.captioning import nic
from cutmix_jax.config import base_config, check_config, from_plain, to_plain
from cutmix_jax.data import resident
from cutmix_jax.detection import ssd
from cutmix_jax.mix import named
from cutmix_jax.models import NETS, create_model, from_config
from cutmix_jax.parallel import create_mapping
from cutmix_jax.tasks import classification

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"


def read(path_and_arg):
    """The config of 'FILE:ARG', without flags."""
    name, _, arg = path_and_arg.partition(":")
    names = {}
    exec(compile((CONFIGS.parent / name).read_text(), name, "exec"), names)
    return names["get_config"](arg or None)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("cifar.py:resnet110,cutmix", {"mix.prob": 1.0, "mix.box": "paper", "learning_rate": 0.1}),
        ("cifar.py:pyramidnet110,cutmix", {"mix.prob": 0.5, "learning_rate": 0.25, "epochs": 300}),
        ("cifar.py:pyramidnet200,cutout", {"mix.name": "cutout", "mix.size": 16, "mix.prob": None}),
        ("cifar.py:pyramidnet200,scheduled_cutmix", {"mix.prob": 1.0}),
        ("cifar.py:pyramidnet200,fixed_size_cutmix", {"mix.size": 16.0, "mix.prob": 0.5}),
        ("cifar.py:,cutmix_alpha0.1", {"model": "resnet110", "mix.alpha": 0.1}),
        ("cifar.py:pyramidnet200,feature_cutmix_layer3", {"mix.layers": (3,), "mix.prob": 0.5}),
        (
            "cifar.py:pyramidnet200,cutout+manifold_mixup",
            {"mix.name": "cutout_size16+manifold_mixup", "mix.size": None},
        ),
        (
            "cifar.py:pyramidnet200,drop_block+label_smoothing",
            {
                "mix.name": "none",
                "drop_block.rate": 0.1,
                "drop_block.size": 4,
                "drop_block.stages": (2, 3),
                "drop_block.schedule": "constant",
                "label_smoothing": 0.1,
            },
        ),
        (
            "cifar.py:pyramidnet200,cutmix+shake_drop+label_smoothing",
            {"mix.name": "cutmix", "mix.prob": 0.5, "shake_drop": 0.5, "label_smoothing": 0.1},
        ),
        ("cifar10.py", {"model": "pyramidnet200", "dataset": "cifar10", "learning_rate": 0.25}),
        ("cifar10.py:resnet20,baseline", {"model": "resnet20", "mix.name": "none"}),
        (
            "cifar_openmixup.py:,cutmix",
            {"model": "resnet18_cifar", "mix.alpha": 0.2, "mix.prob": None, "mix.box": "paper"},
        ),
        (
            "cifar_openmixup.py:,cutmix_alpha1_prob0.5",
            {"mix.alpha": 1.0, "mix.prob": 0.5, "nesterov": False, "schedule": "cosine"},
        ),
        ("cifar_openmixup.py:,manifold_mixup", {"mix.alpha": 2.0, "mix.layers": None}),
        ("imagenet.py", {"model": "resnet50", "mix.prob": 1.0, "mix.box": "paper"}),
        ("imagenet.py:resnet50,cutout", {"mix.size": 112.0}),
        ("imagenet.py:resnet50,stochastic_depth", {"stochastic_depth": 0.25, "mix.name": "none"}),
        (
            "imagenet.py:resnet50,drop_block",
            {"drop_block.size": 7, "drop_block.schedule": "linear", "epochs": 270},
        ),
        ("imagenet.py:resnet50,drop_block+cutmix", {"epochs": 300, "drop_block.rate": 0.1}),
        ("digits.py:,baseline", {"model": "resnet20", "mix.name": "none"}),
        ("digits.py", {"mix.name": "cutmix", "mix.prob": None, "mix.box": None}),
    ],
)
def test_a_method_sets_what_the_paper_says(config, expected):
    config = read(f"configs/{config}")
    for key, value in expected.items():
        found = config
        for part in key.split("."):
            found = found[part]
        assert found == value, key
    check_config(config)
    assert to_plain(from_plain(to_plain(config))) == to_plain(config)


@pytest.mark.parametrize("kind", [None, "cifar", "imagenet"])
@pytest.mark.parametrize(
    "method",
    [
        *methods.WORDS,
        *(f"cutout+{name}" for name in methods.PAPER_VALUES if name != "cutout"),
        *(f"mixup_or_{name}" for name in methods.PAPER_VALUES if name != "mixup"),
        *(f"cutmix+{name}" for name in methods.REGULARIZERS),
        *(
            f"{word}_{parameter}{'2' if parameter in ('layer', 'size') else '0.5'}"
            for word, parameters in methods.PARAMETERS.items()
            for parameter in parameters
        ),
    ],
)
def test_every_method_makes_a_config_that_a_run_can_use(kind, method):
    config = base_config()
    methods.apply_method(config, f"resnet20,{method}", "resnet20", kind)
    check_config(config)
    methods.create_mix(config.mix)


def test_every_mix_has_its_word_and_its_parameters():
    assert methods.PAPER_VALUES.keys() == named.MIXES.keys()
    for name, parameters in methods.PARAMETERS.items():
        if name in methods.PAPER_VALUES:
            assert set(parameters.values()) <= set(named.parameters_of(name))


def test_mixes_are_chosen_by_the_weights_in_their_words():
    config = base_config()
    method = "cutmix_weight3_or_mixup_alpha0.2_weight0.5_or_erasing"
    methods.apply_method(config, f",{method}", "resnet20")
    assert config.mix.name == method
    mixing = methods.create_mix(config.mix)
    assert (mixing.weights, mixing.scope) == ((3.0, 0.5, 1.0), "batch")
    assert mixing.parts[1].options["alpha"] == 0.2
    config.mix.switch_scope = "image"
    assert methods.create_mix(config.mix).scope == "image"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"name": "cutmix_weight0_or_mixup_weight0"}, "not all of them 0"),
        ({"name": "cutmix_weight-1_or_mixup"}, "each of the weights must be at least 0"),
        ({"name": "cutmix_weight2_or_mixup", "switch_prob": 0.5}, "without weights in their names"),
        ({"name": "cutmix", "switch_scope": "image"}, "'cutmix' has no parameter 'switch_scope'"),
        ({"name": "cutmix_or_mixup", "switch_scope": "pair"}, "scope 'pair' is unknown"),
        ({"name": "mixup_weight2"}, "'mixup_weight2' has a weight, but only"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(settings, expected):
    with pytest.raises(UserError, match=expected):
        methods.create_mix(settings)


def test_each_of_several_mixes_has_its_own_parameters():
    config = base_config()
    methods.apply_method(config, ",cutout_size8+cutmix_alpha0.5", "resnet20", "cifar")
    assert config.mix.name == "cutout_size8+cutmix_alpha0.5_prob0.5"
    cutout, cutmix = methods.create_mix(config.mix).parts
    assert cutout.options["size"] == 8
    assert cutout.options["prob"] == 1.0
    assert cutmix.options["size"] is None
    assert (cutmix.options["alpha"], cutmix.options["prob"]) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("cutmx", r"no method 'cutmx'.*nearest are cutmix"),
        ("drop_blok+cutmix", r"no method 'drop_blok'.*drop_block"),
        ("xyz", r"no method 'xyz'.*there are baseline, cutmix"),
        ("cutmix_alpha", r"no method 'cutmix_alpha'"),
        ("cutmix_beta1", r"'cutmix' has no parameter 'beta'.*alpha, prob, size, layer"),
        ("mixup_size3", r"'mixup' has no parameter 'size'.*alpha, prob"),
        ("baseline_prob0.5", r"'baseline' has no parameter 'prob'"),
        ("feature_cutmix_layer1.5", r"1\.5, but a whole number"),
        ("cutmix+cutmix_alpha0.5", r"names 'cutmix' twice"),
        ("cutmix_weight2", r"'cutmix_weight2' has a weight, but only mixes that '_or_' joins"),
        ("cutmix_weight2+mixup", r"'cutmix_weight2' has a weight"),
        ("drop_block_weight2", r"'drop_block' has no parameter 'weight'"),
        ("baseline+cutmix", r"joins 'baseline' with other methods"),
        ("cutmix_or_shake_drop", r"'_or_'.*joins only mixes"),
    ],
)
def test_nonsense_is_refused_in_one_sentence(method, expected):
    with pytest.raises(UserError, match=expected) as refused:
        methods.read_method(method)
    assert "\n" not in str(refused.value)


def test_examples_in_docstrings():
    import doctest

    failed, tried = doctest.testmod(methods)
    assert (failed, tried > 5) == (0, True)
    assert not re.search(r"import jax\b", inspect.getsource(methods))


# The networks of the paper's rows: exact trainable parameters by network and classes, computed
# from the authors' and torchvision's definitions; GE by formula.
PARAMS = {
    ("resnet50", 1000): 25_557_032,
    ("resnet101", 1000): 44_549_160,
    ("resnet152", 1000): 60_192_808,
    ("resnext101_32x4d", 1000): 44_177_704,
    ("se_resnet50", 1000): 28_088_024,
    ("se_resnet101", 1000): 49_326_872,
    ("ge_resnet50", 1000): 33_637_592,
    ("ge_resnet101", 1000): 58_323_224,
    ("resnet110", 100): 1_170_868,
    ("pyramidnet110", 100): 1_725_300,
    ("pyramidnet200", 100): 26_844_952,
    ("pyramidnet200", 10): 26_752_702,
    ("resnet50", 200): 23_917_832,
    ("vgg16_gap", 1000): 20_459_304,
    ("vgg16_gap", 200): 19_639_304,
}
CLASSES = {"imagenet2012": 1000, "caltech_birds2011": 200, "cifar100": 100, "cifar10": 10}
LISTED = paper.list_rows()


def open_nothing(config, shards):
    """The shapes of the dataset that a config names. No image is read."""
    side = config.image_size or 32
    images = np.broadcast_to(np.uint8(0), (config.batch_size, side, side, 3))
    labels = np.zeros(config.batch_size, np.int32)
    arrays = {split: {"image": images, "label": labels} for split in ("train", "test")}
    names = tuple(map(str, range(CLASSES[config.dataset])))
    return resident.open_resident(config, arrays, names, shards, config.dataset)


def with_one_block(network):
    """The network with one block per stage: the others repeat it, and take minutes to trace."""
    if not network.args:  # VGG has no such blocks
        return network
    blocks, *others = network.args
    ones = (1,) * len(blocks) if isinstance(blocks, tuple) else 1
    return functools.partial(network.func, ones, *others, **network.keywords)


def trace_step(path_and_arg):
    """Traces a training step of a config, with the blocks of its network and few of them."""
    config = read(path_and_arg)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETS, config.model, with_one_block(NETS[config.model]))
        patch.setattr(classification, "open_data", open_nothing)
        task = tasks.create_task(config, create_mapping("pmap", local_devices=1))
    before = train.abstract_state(task)
    xs = next(train.group(task.data.train_batches(0), 1))
    step = task.mapping.map(functools.partial(train.train_steps, task))
    arrays = jax.eval_shape(lambda: task.data.arrays["train"])
    after, counters = jax.eval_shape(step, before, arrays, xs)
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), state) for state in (before, after)]
    assert shapes[0] == shapes[1]
    assert counters["loss"].total.shape == (1,)


def test_the_networks_of_the_list_are_those_of_the_paper():
    networks = {key[:2]: network["params"] for key, network in paper.read_networks().items()}
    assert networks == PARAMS
    for row in LISTED:
        if row["loc_acc"] or row["backbone"]:  # the paper prints no parameters there
            continue
        printed = next(
            known["params_m"]
            for known in paper.read_tables()
            if (known["table"], known["row"]) == (row["table"], row["row"])
        )
        # Up to a digit: some of the paper's numbers are truncated, or include running statistics.
        assert abs(row["params"] / 1e6 - printed) < 0.16, row


@pytest.mark.parametrize("config", sorted({row["config"] for row in LISTED}))
def test_every_row_has_a_config_that_can_be_used(config):
    check_config(read(config))


# One network per family. The others are slow tests.
QUICK = [
    "configs/cifar.py:resnet110,cutmix",
    "configs/imagenet.py:resnet50,feature_cutmix",
    "configs/imagenet.py:resnet50,drop_block",
    "configs/imagenet.py:se_resnet50,baseline",
    "configs/imagenet.py:ge_resnet50,baseline",
    "configs/cifar.py:pyramidnet110,cutmix",
]


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(config, marks=[] if config in QUICK else pytest.mark.slow)
        for config in sorted({row["config"] for row in LISTED if not row["backbone"]})
    ],
)
def test_a_step_of_a_row_traces(config):
    trace_step(config)


@pytest.mark.parametrize("row", LISTED, ids=lambda row: f"{row['table']}-{row['row']}")
def test_rows_have_the_parameters_and_epochs_of_their_config(row):
    config = read(row["config"])
    if not row["backbone"]:
        assert row["params"] == PARAMS[config.model, CLASSES[config.dataset]]
    assert row["epochs"] == config.epochs


@pytest.mark.parametrize("row", [row for row in LISTED if row["backbone"]], ids=lambda r: r["row"])
def test_detectors_and_captioners_start_from_the_classifier_of_another_row(row):
    config, backbone = read(row["config"]), read(row["backbone"])
    assert (config.task, config.model) == (row["task"], backbone.model)
    assert row["backbone"] in {other["config"] for other in LISTED}


@pytest.mark.slow
def test_parameters_and_operations_of_ssd_are_those_that_jax_counts():
    listed = paper.read_transfer_tasks()["ssd"]
    config = read(listed["config"])
    network = ssd.SSD(from_config(config, num_classes=None), 20)
    images = jax.ShapeDtypeStruct((1, *listed["image_shape"], 3), np.float32)
    variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x), images)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    assert count == listed["params"]
    lowered = jax.jit(lambda v, x: network.apply(v, x, train=False)).lower(variables, images)
    assert lowered.cost_analysis()["flops"] == pytest.approx(listed["flops"], rel=0.01)


@pytest.mark.slow
def test_parameters_and_operations_of_nic_are_those_that_jax_counts():
    listed = paper.read_transfer_tasks()["captioning"]
    config = read(listed["config"])
    options, length = config.captions, config.captions.max_words + 2
    backbone = from_config(config, num_classes=None)
    network = nic.NIC(backbone, listed["vocabulary_size"], options.embed, options.hidden)
    images = jax.ShapeDtypeStruct((1, *listed["image_shape"], 3), np.float32)
    tokens = jax.ShapeDtypeStruct((1, length), np.int32)
    variables = jax.eval_shape(lambda *x: network.init(jax.random.key(0), *x), images, tokens)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    # By hand: projection and its normalization, words, LSTM, output.
    words = listed["vocabulary_size"]
    new = 2048 * 100 + 2 * 100 + words * 100 + 4 * 300 * (100 + 300 + 1) + words * 301
    assert count == listed["params"] == PARAMS["resnet50", 1000] - 1000 * 2049 + new

    def operations(function, *inputs):
        return jax.jit(function).lower(*inputs).cost_analysis()["flops"]

    def encode(variables, images):
        return network.apply(variables, images, method="encode")

    def step(variables, carry, last):
        return network.apply(variables, carry, last, method="step")

    encoded = operations(encode, variables, images)
    carry = jax.eval_shape(encode, variables, images)
    last = jax.ShapeDtypeStruct((1,), np.int32)
    # XLA counts a loop's body once, so the steps of the LSTM are counted here.
    total = encoded + (length - 1) * operations(step, variables, carry, last)
    assert total == pytest.approx(listed["flops"], rel=0.01)
    # The classifier's operations without those of its head.
    head = 2 * 2048 * 1000
    frozen = paper.read_networks()["resnet50", 1000, 2]["flops"] - head
    assert listed["frozen_flops"] == pytest.approx(frozen, rel=0.01)
    assert listed["frozen_flops"] < encoded


@pytest.mark.parametrize(
    ("model", "num_classes", "last_stride"),
    [
        pytest.param(*key, marks=[] if key[0] in ("resnet50", "resnet110") else pytest.mark.slow)
        for key in paper.read_networks()
    ],
)
def test_operations_of_the_list_are_those_that_xla_counts(model, num_classes, last_stride):
    network = paper.read_networks()[model, num_classes, last_stride]
    side = network["image_side"]
    # XLA also counts the zeros with which convolution.py fills the blocks of a grouped kernel.
    net = create_model(model, num_classes, last_stride=last_stride).clone(conv_layer=nn.Conv)
    images = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    variables = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, train=False), images)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    assert count == network["params"] == PARAMS[model, num_classes]
    lowered = jax.jit(lambda v, x: net.apply(v, x, train=False)).lower(variables, images)
    assert lowered.cost_analysis()["flops"] == pytest.approx(network["flops"], rel=0.01)
