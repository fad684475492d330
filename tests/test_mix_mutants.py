"""The tests of the mixing library catch the mistakes that they are written for."""

import os
import pathlib
import shutil
import sys
from unittest import mock

import hypothesis
import pytest

from tests.mix_mutants import MUTANTS

ROOT = pathlib.Path(__file__).resolve().parent.parent
COPIED = ("cutmix_jax", "tests")

# A failure is enough here: no smaller one is looked for, and none is kept for later.
hypothesis.settings.register_profile(
    "mutants", phases=[hypothesis.Phase.generate], derandomize=True, database=None
)


@pytest.mark.parametrize(
    ("file", "right", "wrong", "test"),
    [pytest.param(*mutant, id=name) for name, mutant in MUTANTS.items()],
)
def test_the_code_that_mutants_replace_exists(file, right, wrong, test):
    assert (ROOT / "cutmix_jax" / "mix" / file).read_text().count(right) == 1
    module, name = test.partition("[")[0].split("::")
    assert f"def {name}(" in (ROOT / "tests" / module).read_text()


def take_modules():
    """Removes the modules of both packages from those that are imported, and returns them."""
    names = [name for name in sys.modules if name.partition(".")[0] in COPIED]
    return {name: sys.modules.pop(name) for name in names}


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A folder with copies of both packages, which this process imports until the test ends."""
    for folder in COPIED:
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    originals = take_modules()
    with mock.patch.dict(os.environ):
        yield tmp_path
    take_modules()
    sys.modules.update(originals)
    hypothesis.settings.load_profile("default")


class Failures(list):
    """A plugin of pytest that notes which parts of a test failed."""

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.append(report.when)


def failures(copy, file, right, wrong, test):
    """Runs a test with the mistake. In this process, because most of it would be starting one."""
    source = copy / "cutmix_jax" / "mix" / file
    source.write_text(source.read_text().replace(right, wrong))
    found = Failures()
    options = ["-n0", "-x", "--assert=plain", "--hypothesis-profile=mutants"]
    options += ["-pno:cacheprovider", "-pno:unraisableexception"]  # the latter collects garbage
    assert pytest.main([*options, f"tests/{test}"], plugins=[found]) in (0, 1)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name, copy):
    assert failures(copy, *MUTANTS[name]) == ["call"], "it survived"


@pytest.mark.slow
def test_what_is_no_mistake_is_not_caught(copy):
    file, right, _, test = MUTANTS["pairs sample separately"]
    assert not failures(copy, file, right, right, test)
