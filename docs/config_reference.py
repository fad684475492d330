"""Writes the tables of docs/config.md from `config.SCHEMA`: `python docs/config_reference.py`."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cutmix_jax.config import SCHEMA, is_free  # noqa: E402

PAGE = ROOT / "docs/config.md"

# The sections of the page, each with the first of its keys in the schema.
SECTIONS = {
    "Run": "task",
    "Network": "model",
    "Optimization": "learning_rate",
    "Regularization": "label_smoothing",
    "Mix": "mix.name",
    "Data": "dataset",
    "Augmentation": "augment.pad",
    "Detection": "detection.keep_difficult",
    "Captioning": "captions.train",
    "Evaluation": "evals.split",
}


def rows():
    """Every key once, as `(section, name, key)`."""
    section, starts = "", {key: section for section, key in SECTIONS.items()}
    for name, key in SCHEMA.items():
        section = starts.get(name, section)
        yield section, name, key


def accepted(rule):
    """The values that a rule accepts, in words."""
    words = "" if rule is None else rule.expected.strip(",")
    return words.replace("a finite number of ", "").replace("a finite number above", "above")


def table(section):
    """The Markdown table of one section."""
    lines = ["| key | type | default | explanation |", "|---|---|---|---|"]
    for where, name, key in rows():
        if where == section:
            rule = f" *{accepted(key.rule)}*" if key.rule else ""
            free = " †" if is_free(name) else ""
            lines.append(
                f"| `{name}`{free} | {key.type.__name__} | `{key.default}` | {key.meaning}{rule} |"
            )
    return "\n".join(lines)


def fill(page):
    """The page with the tables between its markers written again."""
    for section in SECTIONS:
        begin, end = f"<!-- table: {section} -->\n", "\n<!-- end -->"
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        page = f"{before}{begin}\n{table(section)}\n{end}{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
