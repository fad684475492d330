"""The public functions of the mixing library are typed, and a type checker finds wrong calls."""

import importlib.util
import inspect
import pathlib
import subprocess
import sys
from typing import get_args, get_type_hints

import pytest

from cutmix_jax import mix
from cutmix_jax.mix import sample, types

ROOT = pathlib.Path(__file__).resolve().parent.parent
FUNCTIONS = [getattr(mix, name) for name in mix.__all__ if inspect.isfunction(getattr(mix, name))]


@pytest.mark.parametrize("function", [*FUNCTIONS, mix.Mix.sample, mix.Mix.describe])
def test_every_argument_and_result_is_annotated(function):
    names = {*inspect.signature(function).parameters, "return"} - {"self"}
    assert set(get_type_hints(function)) == names


@pytest.mark.parametrize(
    ("options", "function"),
    [
        (types.ApplyOptions, mix.apply),
        (types.CutmixOptions, mix.sample_cutmix),
        (types.CutoutOptions, mix.sample_cutout),
        (types.MixupOptions, mix.sample_mixup),
    ],
)
def test_options_are_those_of_the_function(options, function):
    parameters = inspect.signature(function).parameters.values()
    keywords = {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert get_type_hints(options) == keywords


@pytest.mark.parametrize(
    ("words", "table"),
    [
        (types.BoxRule, sample.BOXES),
        (types.LabelRule, sample.LABELS),
        (types.Lengths, sample.LENGTHS),
        (types.Partner, sample.PARTNERS),
        (types.Placement, sample.PLACEMENTS),
        (types.Scope, sample.SCOPES),
    ],
)
def test_words_are_those_of_the_table(words, table):
    assert set(get_args(words)) == set(table)


@pytest.mark.skipif(not importlib.util.find_spec("mypy"), reason="needs mypy")
def test_a_type_checker_accepts_right_calls_and_finds_wrong_ones():
    """As `tests/typed_use.py` marks them; it takes 20 s without mypy's cache."""
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
