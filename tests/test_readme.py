"""The README is short, and requirements, notebook and options match the pages."""

import json
import pathlib
import re
import tomllib

import pytest
from packaging.requirements import Requirement

from cutmix_jax.config import SCHEMA as KEYS

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_it_is_short():
    assert len(README.splitlines()) <= 150


def test_options_of_the_evaluations_are_on_their_page():
    page = (ROOT / "docs/evaluations.md").read_text()
    for key in KEYS:
        if key.startswith("evals."):
            assert re.search(rf"\b{key.split('.')[-1]}\b", page), key
    for key in re.findall(r"--config\.([\w.]+)", page):
        assert key in {*KEYS, "evals.NAME.KEY"}, key


def test_requirements_are_those_of_the_package():
    """requirements.txt is the extra for training, with the same bounds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    expected = extras["train"]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    assert listed == [requirement.replace("'", '"') for requirement in expected]


@pytest.mark.parametrize("extra", ["torch", "captions", "gcs"])
def test_optional_requirements_are_those_of_the_package(extra):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*filter(None, map(plain, (ROOT / f"requirements-{extra}.txt").open()))]
    assert listed == project["optional-dependencies"][extra]


def test_every_requirement_has_its_reason():
    page = (ROOT / "docs/dependencies.md").read_text()
    for extra in ("", "-captions", "-gcs", "-dev"):
        file = f"requirements{extra}.txt"
        for name in re.findall(r"^([\w-]+)>=", (ROOT / file).read_text(), re.M):
            assert re.search(rf"\b{name}\b", page), name


def test_colabs_versions_are_within_the_bounds():
    """Offline. Continuous integration resolves them with pip."""
    lines = (ROOT / "tests/colab-constraints.txt").read_text().splitlines()
    colab = dict(line.split("==") for line in lines if "==" in line)
    listed = map(Requirement, filter(None, map(plain, (ROOT / "requirements.txt").open())))
    found = {needed.name: needed for needed in listed if needed.name in colab}
    assert {"jax", "flax", "optax", "orbax-checkpoint"} <= found.keys()
    for name, needed in found.items():
        assert needed.specifier.contains(colab[name]), needed


def plain(line):
    """A line of a requirements file without its comment."""
    return line.partition("#")[0].strip()


def test_the_notebook_asks_for_a_gpu_and_for_the_repository():
    notebook = json.loads((ROOT / "notebooks/quickstart.ipynb").read_text())
    assert notebook["metadata"]["accelerator"] == "GPU"
    fields = [line for cell in notebook["cells"] for line in cell["source"] if "@param" in line]
    assert [field.split()[0] for field in fields] == ["REPOSITORY", "DATA"]
    assert not any(cell.get("outputs") for cell in notebook["cells"])
