"""The tables of docs/evidence.md match the records in docs/evidence/."""

import json
import pathlib
import re

import pytest

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"
METHODS = ("baseline", "cutmix")
EVALUATIONS = (
    ("expected calibration error", "classification", "ece"),
    ("center occlusion, mean over 9 sizes", "occlusion", "center_mean_top1_error"),
    ("boundary occlusion, mean over 9 sizes", "occlusion", "boundary_mean_top1_error"),
    ("between two images by Mixup, mean", "between", "mixup_mean_error"),
    ("between two images by CutMix, mean", "between", "cutmix_mean_error"),
    ("FGSM, 8/255", "fgsm", "fgsm_8_top1_error"),
    ("PGD, 8/255, 10 steps", "fgsm", "pgd_8_top1_error"),
    ("out of distribution, uniform noise, AUROC", "ood", "uniform_auroc"),
    ("out of distribution, Gaussian noise, AUROC", "ood", "gaussian_auroc"),
    ("out of distribution, digits, AUROC", "ood", "digits_auroc"),
)


def read(method, name):
    path = DOCS / "evidence/cifar100_resnet18" / f"{method}-seed0" / name
    return json.loads(path.read_text())


def percent(value):
    return f"{100 * value:.2f}"


def errors():
    for method in METHODS:
        found = read(method, "results.json")
        yield [
            method,
            percent(found["top1_error_median_10"]),
            percent(found["top1_error_last"]),
            f"{percent(found['top1_error_best'])} ({found['best_epoch']})",
            percent(found["top5_error_last"]),
        ]


def evaluations():
    for words, name, key in EVALUATIONS:
        yield [words, *(percent(read(method, f"evals/{name}.json")[key]) for method in METHODS)]


@pytest.mark.parametrize("table", [errors, evaluations], ids=["errors", "evaluations"])
def test_the_table_is_that_of_the_records(table):
    page = (DOCS / "evidence.md").read_text()
    printed = page.split(f"<!-- table: {table.__name__} -->")[1].split("\n\n")[0]
    rows = [re.split(r" *\| *", line.strip("| ")) for line in printed.strip().splitlines()]
    assert rows[2:] == list(table())


@pytest.mark.parametrize("method", METHODS)
def test_results_are_those_of_the_epochs(method):
    results = read(method, "results.json")
    lines = (DOCS / f"evidence/cifar100_resnet18/{method}-seed0/metrics.jsonl").read_text()
    records = [json.loads(line) for line in lines.splitlines()]
    assert len(records) == results["epochs"] == 100
    assert results["top1_error_last"] == records[-1]["test_top1_error"]
    assert results["top1_error_best"] == min(record["test_top1_error"] for record in records)
    assert results["config"]["seed"] == 0
    assert results["config"]["mix"]["name"] == ("none" if method == "baseline" else method)
