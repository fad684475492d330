"""The tests of the mixing library catch the mistakes that they are written for."""

import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.commands import environment
from tests.mix_mutants import MUTANTS

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("file", "right", "wrong", "test"),
    [pytest.param(*mutant, id=name) for name, mutant in MUTANTS.items()],
)
def test_the_code_that_mutants_replace_exists(file, right, wrong, test):
    assert (ROOT / "cutmix_jax" / "mix" / file).read_text().count(right) == 1
    module, name = test.split("::")
    assert f"def {name}(" in (ROOT / "tests" / module).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name, tmp_path):
    file, right, wrong, test = MUTANTS[name]
    for folder in ("cutmix_jax", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    source = tmp_path / "cutmix_jax" / "mix" / file
    source.write_text(source.read_text().replace(right, wrong))
    options = ["-n0", "-q", "-x", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"tests/{test}"],
        cwd=tmp_path,
        env=environment(),  # what a mistake does not change is not compiled again
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1, run.stdout[-2000:]
    assert " failed" in run.stdout
