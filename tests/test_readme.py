"""What the README says is there, and what it shows runs."""

import json
import pathlib
import re
import tomllib

import pytest
from packaging.requirements import Requirement

from cutmix_jax.config import SCHEMA as KEYS
from cutmix_jax.models import NETS
from cutmix_jax.recipes import parse_arg

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["training loop", "plan"])
def test_snippets_run(snippet):
    names = {}
    exec(compile(snippet, "README.md", "exec"), names)
    assert names["images" if "images" in names else "batch"] is not None
    if "loss" in names:
        assert 1 < names["loss"] < 10
    else:
        assert names["targets"].shape == (8, 10)


def test_config_table_has_every_key():
    table = README.split("## Config")[1].split("## ")[0]
    told = set(re.findall(r"`([\w.]+)`", "\n".join(re.findall(r"^\| (.*?) \|", table, re.M))))
    assert told <= KEYS.keys()
    assert {key for key in KEYS if not key.startswith(("mix.", "evals."))} <= told


def test_options_of_the_evaluations_are_on_their_page():
    page = (ROOT / "docs/evaluations.md").read_text()
    for key in KEYS:
        if key.startswith("evals."):
            assert re.search(rf"\b{key.split('.')[-1]}\b", page), key
    for key in re.findall(r"--config\.([\w.]+)", page):
        assert key in {*KEYS, "evals.NAME.KEY"}, key


def test_commands_name_what_exists():
    for key in re.findall(r"--config\.([\w.]+)", README):
        assert key in {*KEYS, "KEY"}
    recipes = re.findall(r"(configs/\w+\.py)(?::(\S+))?", README)
    assert recipes
    for path, arg in recipes:
        assert (ROOT / path).is_file()
        assert parse_arg(arg, "resnet20")[0] in NETS


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        *sorted(f"docs/{page.name}" for page in ROOT.glob("docs/*.md")),
    ],
)
def test_links_lead_somewhere(page):
    path = ROOT / page
    for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if "://" not in link:
            assert (path.parent / link).exists(), link


def test_requirements_are_those_of_the_package():
    """requirements.txt is the extra for training, with the same bounds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    expected = extras["train"]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    assert listed == [requirement.replace("'", '"') for requirement in expected]


def test_every_requirement_has_its_reason():
    page = (ROOT / "docs/dependencies.md").read_text()
    for file in ("requirements.txt", "requirements-dev.txt"):
        for name in re.findall(r"^([\w-]+)>=", (ROOT / file).read_text(), re.M):
            assert re.search(rf"\b{name}\b", page), name


def test_colabs_versions_are_within_the_bounds():
    """Offline; continuous integration lets pip resolve them."""
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
