"""MODEL,METHOD in words: each sets what the paper says, and nonsense is refused."""

import inspect
import pathlib
import re

import pytest

from cutmix_jax import UserError, recipes
from cutmix_jax.config import base_config, check_config, create_mix, from_plain, to_plain
from cutmix_jax.mix import recipe

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
        ("cifar.py:pyramidnet200,cutout+manifold_mixup", {"mix.cutout_size": 16, "mix.size": None}),
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
def test_a_recipe_sets_what_the_paper_says(config, expected):
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
        *recipes.WORDS,
        *(f"cutout+{name}" for name in recipes.MIXES if name != "cutout"),
        *(f"mixup_or_{name}" for name in recipes.MIXES if name != "mixup"),
        *(f"cutmix+{name}" for name in recipes.REGULARIZERS),
        *(
            f"{word}_{parameter}{'2' if parameter in ('layer', 'size') else '0.5'}"
            for word, parameters in recipes.PARAMETERS.items()
            for parameter in parameters
        ),
    ],
)
def test_every_method_makes_a_config_that_a_run_can_use(kind, method):
    config = base_config()
    recipes.apply_recipe(config, f"resnet20,{method}", "resnet20", kind)
    check_config(config)


def test_every_mix_has_its_word_and_its_parameters():
    assert recipes.MIXES.keys() == recipe.RECIPES.keys()
    for name, parameters in recipes.PARAMETERS.items():
        if name in recipes.MIXES:
            assert set(parameters.values()) <= set(recipe.parameters_of(name))


def test_each_of_several_mixes_has_its_own_parameters():
    config = base_config()
    recipes.apply_recipe(config, ",cutout_size8+cutmix_alpha0.5", "resnet20", "cifar")
    cutout, cutmix = create_mix(config).parts
    assert cutout.options["size"] == 8
    assert cutout.options["prob"] == 1.0
    assert cutmix.options["size"] is None
    assert (cutmix.options["alpha"], cutmix.options["prob"]) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("cutmx", r"no method 'cutmx'.*nearest are cutmix"),
        ("drop_blok+cutmix", r"no method 'drop_blok'.*drop_block"),
        ("xyz", r"no method 'xyz'.*there are baseline, cutmix"),
        ("cutmix_alpha", r"no method 'cutmix_alpha'"),
        ("cutmix_beta1", r"'cutmix' has no parameter 'beta'.*alpha, prob, size, layer"),
        ("mixup_size3", r"'mixup' has no parameter 'size'.*alpha, prob"),
        ("baseline_prob0.5", r"'baseline' has no parameter 'prob'"),
        ("feature_cutmix_layer1.5", r"1\.5 where a whole number"),
        ("cutmix+cutmix_alpha0.5", r"names 'cutmix' twice"),
        ("baseline+cutmix", r"'baseline', which is no method"),
        ("cutmix_or_mixup+cutout", r"'_or_' beside other mixes"),
        ("cutmix_or_shake_drop", r"'_or_'.*joins two mixes"),
    ],
)
def test_nonsense_is_refused_in_one_sentence(method, told):
    with pytest.raises(UserError, match=told) as refused:
        recipes.read_method(method)
    assert "\n" not in str(refused.value)


def test_examples_in_docstrings():
    import doctest

    failed, tried = doctest.testmod(recipes)
    assert (failed, tried > 5) == (0, True)
    assert not re.search(r"import jax\b", inspect.getsource(recipes))
