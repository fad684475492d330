"""The tables of docs/evidence.md match the records in docs/evidence/."""

import csv
import gzip
import json
import pathlib
import re
import statistics

import pytest
import scipy.stats

from cutmix_jax.data import shapes

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"
RECORDS = DOCS / "evidence/cifar100_resnet18"
RUNS = {
    "baseline": (0, 1),
    "cutmix": (0, 1),
    "cutmix_alpha1_prob0.5": (0, 1),
    "mixup": (0,),
    "cutout": (0,),
    "manifold_mixup": (0,),
}
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


def read(method, seed, name):
    return json.loads((RECORDS / f"{method}-seed{seed}" / name).read_text())


def percent(value):
    return f"{100 * value:.2f}"


def of_seeds(method, name, key):
    return [percent(read(method, seed, name)[key]) for seed in RUNS[method]]


def errors():
    key = "top1_error_median_10"
    for method, seeds in RUNS.items():
        found = [read(method, seed, "results.json") for seed in seeds]
        # Of the printed numbers, so that the table can be checked by eye.
        medians = [float(percent(result[key])) for result in found]
        baselines = [float(value) for value in of_seeds("baseline", "results.json", key)]
        gains = [f"{base - own:.2f}" for base, own in zip(baselines, medians, strict=False)]
        yield [
            method,
            *(
                ", ".join(percent(result[name]) for result in found)
                for name in (key, "top1_error_last", "top1_error_best", "top5_error_last")
            ),
            "–" if method == "baseline" else ", ".join(gains),
        ]


def evaluations():
    for words, name, key in EVALUATIONS:
        cells = [", ".join(of_seeds(method, f"evals/{name}.json", key)) for method in RUNS]
        yield [words, *cells]


def shapes_ssd():
    return maps_of("shapes_ssd")


def shapes_faster_rcnn():
    return maps_of("shapes_faster_rcnn")


def maps_of(name):
    for folder in sorted((DOCS / "evidence" / name).iterdir()):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        maps = [json.loads(line).get("test_map") for line in lines]
        results = json.loads((folder / "results.json").read_text())
        assert results["map_last"] == maps[-1]
        cells = [f"{value:.3f}" for value in maps if value is not None]
        yield [str(results["config"]["seed"]), *cells, f"{results['seconds'] / 60:.1f}"]


PAPER_SSD = {"baseline": "76.7", "mixup": "76.6", "cutout": "76.8", "cutmix": "77.6"}


def shapes_transfer():
    """The error of the classifiers and the mAP of the detectors, and the paper's, in percent."""
    folder = DOCS / "evidence/shapes_transfer"

    def of_seeds(kind, start, key):
        found = [
            json.loads((folder / f"{kind}-{start}-seed{seed}/results.json").read_text())
            for seed in (0, 1)
        ]
        for seed, result in enumerate(found):
            assert result["config"]["seed"] == seed
            if kind == "ssd":
                classifier = None if start == "nothing" else f"classifier-{start}-seed{seed}"
                assert result["config"]["init_from"] == classifier
        return ", ".join(f"{100 * result[key]:.1f}" for result in found)

    yield ["from nothing", "–", of_seeds("ssd", "nothing", "map_last"), "–"]
    for method, paper in PAPER_SSD.items():
        yield [
            method,
            of_seeds("classifier", method, "top1_error_last"),
            of_seeds("ssd", method, "map_last"),
            paper,
        ]


def seeds_of(name, start, seeds, file="results.json"):
    """What a file of a run says at each seed."""
    for seed in range(seeds):
        folder = DOCS / f"evidence/{name}/{start}-seed{seed}"
        assert json.loads((folder / "results.json").read_text())["config"]["seed"] == seed
        yield json.loads((folder / file).read_text())


def paired(baseline, method):
    """The gains in percent, paired by seed, and their mean with Student's 95 % interval."""
    gains = [100 * (a - b) for a, b in zip(baseline, method, strict=True)]
    half = scipy.stats.t.ppf(0.975, len(gains) - 1) * scipy.stats.sem(gains)
    return ", ".join(f"{gain:.2f}" for gain in gains), f"{statistics.mean(gains):.2f} ± {half:.2f}"


FOUR = ("baseline", "mixup", "cutout", "cutmix")


def cifar100_10000():
    """The errors of four methods on 10,000 images, and their differences from the baseline."""

    def read(method, key):
        return [result[key] for result in seeds_of("cifar100_10000", method, 3)]

    def listed(method, key):
        return ", ".join(map(percent, read(method, key)))

    def gain(method, key):
        return "–" if method == "baseline" else paired(read("baseline", key), read(method, key))[1]

    for method in FOUR:
        row = [method]
        for key in ("top1_error_last", "top1_error_held_out"):
            row += [listed(method, key), gain(method, key)]
        yield [*row, listed(method, "top1_error_best"), listed(method, "top5_error_last")]


def cifar100_10000_evaluations():
    """The evaluations of one network of each method on 10,000 images, but out-of-distribution."""
    for words, name, key in EVALUATIONS:
        if name != "ood":
            found = [next(seeds_of("cifar100_10000", x, 1, f"{name}.json")) for x in FOUR]
            yield [words, *(percent(values[key]) for values in found)]


def shapes_localization():
    """Errors and localization accuracies of classifiers of shapes, in percent."""
    keys = ("top1_error", "top1_loc_acc", "best_top1_loc_acc", "max_box_acc", "max_box_acc_v2")
    centered = set()
    for method in ("baseline", "cutmix"):
        found = list(seeds_of("shapes_localization", method, 3, "localization.json"))
        yield [method, *(", ".join(f"{100 * x[key]:.1f}" for x in found) for key in keys)]
        centered |= {x["center_box_gt_known_loc_acc"] for x in found}
    assert centered == {0.412}  # as the page says


def tiny_imagenet_finetuned():
    """Errors on Tiny-ImageNet's 17 classes from nothing and from a classifier of shapes."""
    name = "tiny_imagenet_finetuned"
    nothing = [result["top1_error_last"] for result in seeds_of(name, "nothing", 2)]
    yield ["nothing", "0.1", ", ".join(map(percent, nothing)), "–"]
    for start, rate in (("shapes", "0.1"), ("shapes_low_rate", "0.01, head 0.1")):
        results = list(seeds_of(name, start, 2))
        for result in results:
            assert result["config"]["init_from"] == "shapes.safetensors"
            assert result["config"]["learning_rate"] == float(rate.split(",")[0])
        errors = [result["top1_error_last"] for result in results]
        yield ["shapes", rate, ", ".join(map(percent, errors)), paired(nothing, errors)[0]]


def voc_overfit():
    lines = (DOCS / "evidence/voc_overfit/metrics.jsonl").read_text().splitlines()
    maps = [json.loads(line).get("test_map") for line in lines]
    yield ["mAP", *(f"{value:.3f}" for value in maps if value is not None)]


def name_parts(caption):
    """(form, texture, color, color of the ground) in a caption of `shapes`; None: not named."""
    of_object, _, of_ground = caption.lower().partition(" on ")
    kinds = (shapes.CLASS_NAMES, shapes.TEXTURES[1:], shapes.COLORS)
    found = [next((word for word in kind if word in of_object.split()), None) for kind in kinds]
    return *found, next((word for word in shapes.COLORS if word in of_ground.split()), None)


def captions_of(folder):
    """The scores of a captioner, and the shares that name each part right, in percent."""
    scores = json.loads((folder / "captions.json").read_text())
    with gzip.open(folder / "captions.csv.gz", "rt") as file:
        rows = [
            (name_parts(row["caption"]), name_parts(row["references"]))
            for row in csv.DictReader(file)
        ]
    assert len(rows) == scores["examples"] == 2000
    return scores, [sum(a[i] == b[i] for a, b in rows) / 20 for i in range(4)]


def shapes_captions():
    for encoder in ("frozen", "fine-tuned"):
        folders = sorted((DOCS / "evidence/shapes_captions").glob(f"{encoder}-seed*"))
        cells = []
        for seed, folder in enumerate(folders):
            results = json.loads((folder / "results.json").read_text())
            assert results["config"]["seed"] == seed
            assert results["config"]["captions"]["finetune"] == (encoder == "fine-tuned")
            scores, right = captions_of(folder)
            values = [scores["cider"], scores["bleu4"], *right, results["seconds"] / 60]
            cells.append([f"{value:.1f}" for value in values])
        yield [encoder, *(", ".join(values) for values in zip(*cells, strict=True))]


PAPER_NIC = {"baseline": "71.2", "mixup": "72.2", "cutout": "74.1", "cutmix": "77.6"}


def captions_transfer():
    """The error of the classifiers and the scores of captioners, and the paper's."""
    for method, paper in PAPER_NIC.items():
        cells = []
        for seed in (0, 1):
            classifier = f"classifier-{method}-seed{seed}"
            folder = DOCS / "evidence/captions_transfer"
            error = json.loads((folder / classifier / "results.json").read_text())
            results = json.loads((folder / f"nic-{method}-seed{seed}/results.json").read_text())
            assert error["config"]["seed"] == results["config"]["seed"] == seed
            assert results["config"]["init_from"] == classifier
            scores, (form, *_) = captions_of(folder / f"nic-{method}-seed{seed}")
            values = [100 * error["top1_error_last"], scores["cider"], scores["bleu4"], form]
            cells.append([f"{value:.1f}" for value in values])
        yield [method, *(", ".join(values) for values in zip(*cells, strict=True)), paper]


def coco_overfit():
    folder = DOCS / "evidence/coco_overfit"
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if "test_bleu4" in record]
    for words, key in (("BLEU-4", "test_bleu4"), ("CIDEr", "test_cider")):
        yield [words, *(f"{record[key]:.1f}" for record in records)]


@pytest.mark.parametrize(
    "table",
    [
        errors,
        evaluations,
        shapes_ssd,
        shapes_faster_rcnn,
        shapes_transfer,
        cifar100_10000,
        cifar100_10000_evaluations,
        shapes_localization,
        tiny_imagenet_finetuned,
        voc_overfit,
        shapes_captions,
        captions_transfer,
        coco_overfit,
    ],
    ids=lambda table: table.__name__,
)
def test_the_table_is_that_of_the_records(table):
    page = (DOCS / "evidence.md").read_text()
    printed = page.split(f"<!-- table: {table.__name__} -->")[1].split("\n\n")[0]
    rows = [re.split(r" *\| *", line.strip("| ")) for line in printed.strip().splitlines()]
    assert rows[2:] == list(table())


def test_every_record_is_in_the_tables():
    names = {f"{method}-seed{seed}" for method, seeds in RUNS.items() for seed in seeds}
    assert {folder.name for folder in RECORDS.iterdir()} == names


@pytest.mark.parametrize(("method", "seed"), [(m, s) for m, seeds in RUNS.items() for s in seeds])
def test_results_are_those_of_the_epochs(method, seed):
    results = read(method, seed, "results.json")
    lines = (RECORDS / f"{method}-seed{seed}/metrics.jsonl").read_text()
    records = [json.loads(line) for line in lines.splitlines()]
    last = [record["test_top1_error"] for record in records[-10:]]
    assert len(records) == results["epochs"] == 100
    assert results["top1_error_last"] == last[-1]
    assert results["top1_error_best"] == min(record["test_top1_error"] for record in records)
    assert results["top1_error_median_10"] == statistics.median(last)
    assert results["config"]["seed"] == seed
    mix = "none" if method == "baseline" else method.split("_alpha")[0]
    assert results["config"]["mix"]["name"] == mix
