"""The docstrings of the mixing library are complete, and their examples are true."""

import doctest
import importlib
import inspect
import pathlib
import pkgutil
import re

import pytest

from cutmix_jax import host, methods, mix

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "mix.md"
MODULES = [f"cutmix_jax.mix.{module.name}" for module in pkgutil.iter_modules(mix.__path__)]


@pytest.mark.parametrize("module", MODULES)
def test_examples_print_what_they_say(module):
    result = doctest.testmod(
        importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert result.failed == 0


def public_callables():
    for name in mix.__all__:
        thing = getattr(mix, name)
        if callable(thing):
            yield pytest.param(thing, id=name)
        if inspect.isclass(thing):
            for method_name, method in inspect.getmembers(thing, inspect.isfunction):
                if not method_name.startswith("_"):
                    yield pytest.param(method, id=f"{name}.{method_name}")


@pytest.mark.parametrize("thing", list(public_callables()))
def test_public_names_are_documented(thing):
    text = inspect.getdoc(thing) or ""
    assert text.split("\n\n")[0].endswith("."), "starts with a sentence"
    assert "Example:" in text
    assert ">>> " in text
    if inspect.isclass(thing):
        assert "Attributes:" in text
        return
    assert "Returns" in text
    parameters = set(inspect.signature(thing).parameters) - {"self"}
    undocumented = {name for name in parameters if f"{name}: " not in text}
    assert not undocumented


def test_every_public_name_of_the_modules_is_exported():
    defined = {
        name
        for module in map(importlib.import_module, MODULES)
        for name, thing in vars(module).items()
        if getattr(thing, "__module__", None) == module.__name__ and ">>> " in (thing.__doc__ or "")
    }
    assert defined <= set(mix.__all__)


def test_the_page_names_what_exists():
    page = PAGE.read_text()
    for call, parameters in re.findall(r"create_mix\('([\w+]+)'(?:, ([^)]*))?\)", page):
        mix.create_mix(call, **eval(f"dict({parameters})"))
    for name in re.findall(r"^\| ((?:`[\w+]+`(?:, )?)+) \|", page, re.MULTILINE):
        for word in re.findall(r"`([\w+]+)`", name):
            methods.create_mix({"name": word})


def test_memory_is_kept_where_there_is_glibc():
    assert host.keep_freed_memory() in (True, False)
    assert doctest.testmod(host).failed == 0
