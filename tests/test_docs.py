"""The snippets in docs/ run, and what the pages name exists."""

import ast
import importlib
import importlib.util
import pathlib
import re

import pytest

from cutmix_jax.config import SCHEMA
from cutmix_jax.mix.named import MIXES
from cutmix_jax.models import NETS

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = sorted(ROOT.glob("docs/*.md")) + sorted(ROOT.glob("docs/log/*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
PLACEHOLDERS = {"KEY", "evals.NAME.KEY"}
SCRIPT = importlib.util.spec_from_file_location(
    "config_reference", ROOT / "docs/config_reference.py"
)
config_reference = importlib.util.module_from_spec(SCRIPT)
SCRIPT.loader.exec_module(config_reference)


def names_of(pages):
    return [str(page.relative_to(ROOT)) for page in pages]


def snippets():
    for page in [ROOT / "README.md", *DOCS]:
        found = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
        for number, code in enumerate(found, 1):
            yield pytest.param(code, id=f"{page.name}-{number}")


@pytest.mark.parametrize("code", list(snippets()))
def test_snippets_run(code, monkeypatch):
    monkeypatch.setattr("cutmix_jax.models.NETS", dict(NETS))  # some snippets add to these
    monkeypatch.setattr("cutmix_jax.mix.named.MIXES", dict(MIXES))
    if "from torch" in code:
        pytest.importorskip("torch", reason="the snippet loads data with PyTorch")
    names = {}
    exec(compile(code, "docs", "exec"), names)
    if "get_config" in names:
        assert names["get_config"](",baseline").mix.name == "none"
    if "loss" in names:
        assert 0 < names["loss"] < 10


@pytest.mark.parametrize("page", PAGES, ids=names_of(PAGES))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=names_of(PAGES))
def test_commands_name_what_exists(page):
    commands = "\n".join(re.findall(r"```sh\n(.*?)```", page.read_text(), re.S))
    for key in re.findall(r"--config\.([\w.]+)", page.read_text()):
        assert key in {*SCHEMA, *PLACEHOLDERS}, key
    for path, model in re.findall(r"(configs/\w+\.py)(?::(\w+),)?", commands):
        assert (ROOT / path).is_file() or path == "configs/photos.py", path
        assert model in {"", *NETS} or "x" in model, model


def test_the_config_page_is_generated_from_the_config():
    """Write it again with `python docs/config_reference.py`."""
    page = config_reference.PAGE.read_text()
    assert page == config_reference.fill(page)


def test_every_config_key_has_one_row():
    rows = re.findall(r"^\| `([\w.]+)`(?: †)? \|", config_reference.PAGE.read_text(), re.M)
    assert sorted(rows) == sorted(SCHEMA)


def test_troubleshooting_quotes_messages_of_the_code():
    """A heading in backticks is a message. `...` and capitals stand for the parts that differ."""
    said = " ".join(text for path in [*ROOT.glob("cutmix_jax/**/*.py"), ROOT / "main.py"]
                    for text in texts(ast.parse(path.read_text())))  # fmt: skip
    headings = re.findall(r"^### `(.*)`$", (ROOT / "docs/troubleshooting.md").read_text(), re.M)
    assert len(headings) >= 15
    for heading in headings:
        for part in re.split(r"\.\.\.|\b[A-Z]+\b", heading):
            assert part.strip(" .,=/") in said, heading


def texts(tree):
    """The strings of a module, with a blank for each formatted value."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (p.value if isinstance(p, ast.Constant) else " " for p in node.values)
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
