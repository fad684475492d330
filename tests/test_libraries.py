"""What works alone, detection and captioning: public, on the API page, with examples that run."""

import doctest
import importlib
import inspect
import pathlib
import re

import pytest

from cutmix_jax import captioning, detection

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs/api.md"
LIBRARIES = (detection, captioning)
LONG_EXAMPLES = {"cutmix_jax.captioning.nic", "cutmix_jax.captioning.search"}
NOT_PUBLIC = {"as_boxes"}  # modules share it


def modules_of(library):
    return [path.stem for path in pathlib.Path(library.__file__).parent.glob("[!_]*.py")]


MODULES = [f"{library.__name__}.{name}" for library in LIBRARIES for name in modules_of(library)]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > (5 if name in LONG_EXAMPLES else 0)
    assert result.failed == 0


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.__name__)
def test_all_modules_are_public(library):
    assert sorted(modules_of(library)) == sorted(library.__all__)


@pytest.mark.parametrize("name", MODULES)
def test_all_functions_are_on_the_page(name):
    """Also that each is documented with its arguments, result and example."""
    page, module = PAGE.read_text(), importlib.import_module(name)
    for key, value in vars(module).items():
        if getattr(value, "__module__", None) != name or key[0] == "_":
            continue
        where = f"{name}.{key}"
        assert inspect.getdoc(value), where
        if key in NOT_PUBLIC:
            continue
        assert re.search(rf":: {where}$", page, re.M), where
        if inspect.isfunction(value):
            takes_none = not inspect.signature(value).parameters
            for section in ("Args:", "Returns:", "Example:")[takes_none:]:
                assert section in value.__doc__, (where, section)
