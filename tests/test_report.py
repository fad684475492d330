"""The report: its words and numbers, in a real browser, and for broken runs."""

import functools
import json
import re
import shutil
import subprocess
import sys

import jax.numpy as jnp
import pytest
from matplotlib.figure import Figure

from cutmix_jax import UserError
from cutmix_jax.checkpoint import Checkpoints
from cutmix_jax.command_line import read_config
from cutmix_jax.config import to_plain
from cutmix_jax.report import drawings, sections
from cutmix_jax.report.__main__ import main
from cutmix_jax.report.runs import conditions, group, method, read_runs, with_conditions

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def write_run(folder, source, error, seed=0, **changes):
    """A workdir as main.py leaves it, without any training."""
    overrides = [f"--config.{key}={value}" for key, value in changes.items()]
    config = to_plain(read_config(source, [*overrides, f"--config.seed={seed}"]))
    folder.mkdir(parents=True)
    results = {
        "config": config,
        "params": 1000,
        "epochs": config["epochs"],
        "train_examples": config["train_examples"] or 50_000,
        "top1_error_last": error,
        "top1_error_best": error - 0.01,
        "best_epoch": 1,
    }
    (folder / "results.json").write_text(json.dumps(results))
    lines = [
        {"epoch": epoch, "test_top1_error": error + 0.1 / epoch, "train_weighted_accuracy": 0.5}
        for epoch in (1, 2)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figure = Figure(figsize=(2, 1))
    figure.savefig(folder / "mixed.png")
    return folder


def write_detector(folder, source, found, seed=0, **changes):
    """The same for a detector; `found` is its mAP."""
    write_run(folder, source, 0, seed, **changes)
    results = json.loads((folder / "results.json").read_text())
    results |= {"map_last": found, "map_best": found + 0.01, "ap_last": {"dog": found}}
    results = {key: value for key, value in results.items() if "top1" not in key}
    (folder / "results.json").write_text(json.dumps(results))
    lines = [{"epoch": 1}, {"epoch": 2, "test_map": found, "test_loss": 1.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_captioner(folder, source, cider, seed=0, meteor=None, **changes):
    """The same for a captioner; BLEU-1 is 60, BLEU-4 is 20 and so on."""
    write_run(folder, source, 0, seed, **changes)
    results = json.loads((folder / "results.json").read_text())
    scores = {"bleu1": 60.0, "bleu2": 40.0, "bleu3": 30.0, "bleu4": 20.0}
    scores |= {"meteor": meteor} if meteor else {}
    scores |= {"rouge_l": 45.5, "cider": cider}
    results |= {"cider_last": cider, "cider_best": cider + 1, "scores_last": scores}
    results = {key: value for key, value in results.items() if "top1" not in key}
    (folder / "results.json").write_text(json.dumps(results))
    lines = [{"epoch": 1}, {"epoch": 2, **{f"test_{name}": x for name, x in scores.items()}}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_eval(folder, name, values, rows=""):
    """The file of an evaluation."""
    (folder / "evals").mkdir(exist_ok=True)
    (folder / "evals" / f"{name}.json").write_text(json.dumps(values))
    if rows:
        (folder / "evals" / f"{name}.csv").write_text(rows)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The folder with the report of a few runs."""
    folder = tmp_path_factory.mktemp("report")
    small = functools.partial(write_run, epochs=2, train_examples=500, model="resnet20")
    for seed, errors in enumerate([(0.50, 0.44), (0.52, 0.50)]):
        small(folder / f"runs/baseline{seed}", "configs/cifar.py:,baseline", errors[0], seed)
        last = small(folder / f"runs/cutmix{seed}", "configs/cifar.py:,cutmix", errors[1], seed)
    write_run(folder / "runs/paper", "configs/cifar.py:resnet110,cutmix", 0.201)
    write_eval(
        last,
        "fgsm",
        {"examples": 9, "fgsm_8_top1_accuracy": 0.123},
        "attack,eps_255,top1_error\nfgsm,0.0,0.5\nfgsm,8.0,0.9\n",
    )
    write_eval(last, "ood", {"mean_auroc": 0.654, "uniform_auroc": 0.321}, "set\nuniform\n")
    write_eval(last, "mine", {"<b>a|b": "<img src=http://localhost/x>\n\n# 2"})
    (folder / "runs/begun").mkdir()
    line = {"epoch": 7, "test_top1_error": 0.5, "train_weighted_accuracy": 0.5}
    (folder / "runs/begun/metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert main([str(folder / "runs"), "--output", str(folder / "out")]) == 0
    return folder / "out"


def of_images(folder, count):
    """The run on a dataset with that many training images."""
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({**results, "train_examples": count}))
    return folder


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The folder with a report of full runs of the paper, and two with another alpha."""
    folder = tmp_path_factory.mktemp("full")
    write_run(folder / "cifar", "configs/cifar.py:resnet110,cutmix", 0.2)
    of_images(write_run(folder / "part", "configs/cifar.py:resnet110,cutmix", 0.7), 1234)
    for alpha, error in ((0.1, 0.61), (0.5, 0.65)):
        source = f"configs/cifar.py:,cutmix_alpha{alpha}"
        run = write_run(folder / str(alpha), source, error, model="resnet20", epochs=2)
        write_eval(run, "fgsm", {"fgsm_8_top1_accuracy": alpha / 10})
    run = write_run(folder / "imagenet", "configs/imagenet.py:resnet50,cutmix", 0.2)
    write_eval(of_images(run, 1_281_167), "fgsm", {"fgsm_8_top1_accuracy": 0.31})
    run = write_run(folder / "wsol", "configs/wsol.py:resnet50,cutmix", 0.2, init_from="elsewhere")
    write_eval(of_images(run, 5_994), "localization", {"top1_loc_acc": 0.54})
    assert main([str(folder), "--output", str(folder / "out")]) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def figure_3(tmp_path_factory):
    """The folder of runs with several alphas and layers and a baseline, and their report."""
    folder = tmp_path_factory.mktemp("figure3")
    small = functools.partial(write_run, model="resnet20", epochs=2)
    for seed in (0, 1):
        small(folder / f"baseline{seed}", "configs/cifar.py:,baseline", 0.50 + 0.02 * seed, seed)
        small(folder / f"one{seed}", "configs/cifar.py:,cutmix", 0.42 + 0.02 * seed, seed)
    for alpha, error in ((4, 0.47), (0.1, 0.48), (0.5, 0.44)):
        small(folder / f"alpha{alpha}", f"configs/cifar.py:,cutmix_alpha{alpha}", error)
    small(folder / "often", "configs/cifar.py:,cutmix_alpha2", 0.3, **{"mix.prob": 0.9})
    for layer, error in ((3, 0.49), (1, 0.45), (2, 0.46), (4, 0.52)):
        small(folder / f"layer{layer}", f"configs/cifar.py:,feature_cutmix_layer{layer}", error)
    small(folder / "random", "configs/cifar.py:,feature_cutmix", 0.2)
    assert main([str(folder), "--output", str(folder / "out")]) == 0
    return folder


@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("figure-3-left", {0.1: [48], 0.5: [44], 1: [42, 44], 4: [47]}),
        # Layer 0 is the image: CutMix itself. Layers sampled at random have no point in the figure.
        ("figure-3-right", {0: [42, 44], 1: [45], 2: [46], 3: [49], 4: [52]}),
    ],
)
def test_figure_3_is_plotted_over_alpha_and_over_the_layer(figure_3, name, points):
    (methods,) = group(read_runs([figure_3]))
    curve = drawings.PARAMETERS[name]
    (line,) = drawings.parameter_lines(methods, curve).values()
    assert list(line) == list(points)
    for value, errors in points.items():
        assert sorted(line[value]) == pytest.approx(errors)
    text = (figure_3 / "out/index.md").read_text()
    assert f"(figures/group1_{curve.name}.png)\n{sections.TITLES[name]}\n" in text


def test_figure_3_says_what_it_lacks(page, figure_3, tmp_path):
    text = (page / "index.md").read_text()
    assert "Figure 3, left: the parameter alpha: not run (CutMix with two or" in text
    assert "Figure 3, right: the layer that is mixed: not run (Feature CutMix at two or" in text
    without = [str(path) for path in figure_3.glob("[al]*[0-9]")]
    assert main([*without, "--output", str(tmp_path)]) == 0
    text = (tmp_path / "index.md").read_text()
    assert "Figure 3, right: the layer that is mixed; baseline not run\n" in text


def test_evaluations_under_other_options_are_separate_rows(tmp_path):
    """Seeds share a row if all options are equal. An older file has no options."""
    rows = "side,center_top1_error,boundary_top1_error\n0,0.5,0.5\n8,0.9,0.5\n"
    asked = {
        "cutmix0": {"options.clip": True},
        "cutmix1": {"options.clip": True},
        "cutmix2": {"options.clip": False},
        "cutmix3": {},
        "baseline0": {"options.clip": True},
    }
    for seed, (name, options) in enumerate(asked.items()):
        source = f"configs/cifar.py:resnet20,{name[:-1]}"
        run = write_run(tmp_path / name, source, 0.5, seed, epochs=2)
        values = {"examples": 9, "split": "test", **options}
        write_eval(run, "fgsm", {**values, "fgsm_8_top1_accuracy": 0.1 * seed})
        fill = "mean" if name < "cutmix" else "black"
        write_eval(run, "occlusion", {"options.fill": fill}, rows)
        sets = str(("uniform",) + ("svhn",) * (name == "baseline0"))
        write_eval(run, "ood", {"options.seed": 0, "sets": sets, "mean_auroc": 0.1 * seed})
    assert main([str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    cells = {row[0]: row[2] for row in rows_of(tmp_path / "out") if "scaled down: " in row[-1]}
    assert cells["cutmix, evaluated with clip=True"] == "5.00 ± 7.07"
    assert cells["cutmix, evaluated with clip=False"] == "20.00"
    assert cells["cutmix, evaluated with unknown options"] == "30.00"
    assert cells["baseline, evaluated with clip=True"] == "40.00"
    assert cells["cutmix, evaluated with sets=('uniform',)"] == "15.00 ± 12.91"
    assert cells["baseline, evaluated with sets=('uniform', 'svhn')"] == "40.00"
    (methods,) = group(read_runs([tmp_path]))
    found = {name: conditions(next(iter(r.values())), "occlusion") for name, r in methods.items()}
    labels = [with_conditions(name, words, found.values()) for name, words in found.items()]
    assert labels == ["baseline, evaluated with fill=mean", "cutmix, evaluated with fill=black"]


def rows_of(page):
    """The rows of the Markdown, as lists of cells."""
    lines = (page / "index.md").read_text().splitlines()
    return [re.split(r" \| ", line.strip("| ")) for line in lines if line.startswith("| ")]


def test_runs_are_compared_over_seeds_with_paired_gains(page):
    row = next(row for row in rows_of(page) if row[:2] == ["cutmix", "2"])
    # By hand: the mean of 44 and 50, deviation 6 / sqrt(2), gains of 6 and 2.
    assert row == ["cutmix", "2", "47.00 ± 4.24", "4.00 ± 2.83 (2)", "46.00 ± 4.24",
                   "4.00 ± 2.83 (2)", "14.47"]  # fmt: skip


@pytest.fixture(scope="module")
def detectors(tmp_path_factory):
    """The folder with a report of detectors that started from classifiers, and from nothing."""
    folder = tmp_path_factory.mktemp("detectors")
    small = {"epochs": 2, "train_examples": 500}
    for seed, found in enumerate([(0.60, 0.66), (0.62, 0.64)]):
        for name, value in zip(("baseline", "cutmix"), found, strict=True):
            source, start = f"configs/shapes.py:resnet18x0.25,{name}", folder / f"from/{name}{seed}"
            write_run(start, source, 0.2, seed, epochs=3, train_examples=500)
            source = "configs/shapes_detection.py"
            write_detector(folder / f"{name}{seed}", source, value, seed, init_from=start, **small)
    write_detector(folder / "nothing", source, 0.40, **small)
    with Checkpoints(folder / "files") as checkpoints:
        config = to_plain(read_config("configs/shapes.py"))
        meta = {"config": config, "weights": {"file": "resnet.pth", "new": []}}
        checkpoints.save(0, {"params": jnp.zeros(3)}, meta)
        checkpoints.wait()
    write_detector(folder / "converted", source, 0.50, init_from=folder / "files", **small)
    start = write_run(folder / "full", "configs/imagenet.py:resnet50,cutmix", 0.2)
    of_images(start, 1_281_167)
    source = "configs/voc.py:resnet50,ssd"
    of_images(write_detector(folder / "voc", source, 0.776, init_from=start), 16_551)
    start = write_run(folder / "short", "configs/imagenet.py:resnet50,mixup", 0.2, epochs=30)
    of_images(start, 1_281_167)
    of_images(write_detector(folder / "voc_short", source, 0.7, init_from=start), 16_551)
    (folder / "begun").mkdir()
    (folder / "begun/metrics.jsonl").write_text('{"epoch": 7, "test_map": 0.5}\n')
    assert main([str(folder), "--output", str(folder / "out")]) == 0
    return folder / "out"


def test_detectors_are_compared_by_map_and_named_after_the_method_of_their_classifier(detectors):
    rows = {row[0]: row[1:] for row in reversed(rows_of(detectors)) if row[1:2] in (["1"], ["2"])}
    # By hand: 66 and 64, gains of 6 and 2; the paper's mAP of SSD from each classifier.
    gain = ["4.00 ± 2.83 (2)"]
    assert rows["cutmix"] == ["2", "65.00 ± 1.41", *gain, "66.00 ± 1.41", *gain, "77.60"]
    assert rows["baseline"][1:] == ["61.00 ± 1.41", "–", "62.00 ± 1.41", "–", "76.70"]
    assert rows["from nothing"] == ["1", "40.00", "-20.00 (1)", "41.00", "-20.00 (1)", "–"]
    assert rows["weights of files"][1] == "50.00"
    text = (detectors / "index.md").read_text()
    assert "Compared: mAP in %" in text
    assert "ssd on resnet18x0.25, shapes (500 training images, 128 px), 2 epochs" in text
    assert "begun: unfinished, 7 epochs done" in text
    starts = [row for row in rows_of(detectors) if row[-1] == "resnet18x0.25, shapes, 3 epochs"]
    assert [row[:2] for row in starts] == [
        [name, seed] for name in ("baseline", "cutmix") for seed in "01"
    ]
    assert starts[2][2].endswith("from/cutmix0")
    assert ["dog", "0.776"] in rows_of(detectors)


def test_a_detector_is_full_if_its_classifier_is(detectors):
    rows = {
        row[0]: row[2:4]
        for row in rows_of(detectors)
        if row[4:5] == ["configs/voc.py:resnet50,ssd"]
    }
    assert rows["CutMix-trained"][0].startswith(
        "77.60 / 78.60, 1 seed (ssd on resnet50, voc (16,551"
    )
    assert rows["Mixup-trained"] == ["not run", rows["Mixup-trained"][1]]
    assert rows["Mixup-trained"][1].startswith("70.00 / 71.00, 1 seed")
    assert rows["Mixup-trained"][1].endswith("; classifier: resnet50, imagenet2012, 30 epochs)")
    assert rows["Cutout-trained"] == ["not run", "–"]


@pytest.fixture(scope="module")
def captioners(tmp_path_factory):
    """The folder with a report of captioners that started from classifiers, and from nothing."""
    folder = tmp_path_factory.mktemp("captioners")
    small, source = {"epochs": 2, "train_examples": 500}, "configs/shapes_captions.py"
    for seed, found in enumerate([(250.0, 290.0), (254.0, 286.0)]):
        for name, value in zip(("baseline", "cutmix"), found, strict=True):
            start = folder / f"from/{name}{seed}"
            write_run(start, f"configs/shapes.py:resnet18x0.25,{name}", 0.2, seed, epochs=3)
            write_captioner(folder / f"{name}{seed}", source, value, seed, init_from=start, **small)
        # The evaluation of the same captions has METEOR.
        values = {"split": "test", "meteor": 30.0 + 2 * seed, "cider": found[1]}
        write_eval(folder / f"cutmix{seed}", "captions", values)
    # Other captions, and those of one seed only, are not those of the last epochs.
    values = {"split": "test", "meteor": 99.0, "cider": 111.0}
    write_eval(folder / "baseline0", "captions", values)
    write_eval(folder / "baseline1", "captions", {**values, "cider": 254.0})
    write_captioner(folder / "nothing", source, 100.0, meteor=10.5, **small)
    source = "configs/captions.py:resnet50"
    for name, epochs in (("cutmix", 300), ("mixup", 30)):
        start = folder / f"classifier_{name}"
        write_run(start, f"configs/imagenet.py:resnet50,{name}", 0.2, epochs=epochs)
        of_images(start, 1_281_167)
        run = write_captioner(folder / f"coco_{name}", source, 77.5, meteor=23.25, init_from=start)
        of_images(run, 414_113)
    (folder / "begun").mkdir()
    (folder / "begun/metrics.jsonl").write_text('{"epoch": 7, "test_cider": 50.0}\n')
    assert main([str(folder), "--output", str(folder / "out")]) == 0
    return folder / "out"


def test_captioners_are_compared_by_cider_and_have_all_scores_beside_those_of_the_paper(captioners):
    text = (captioners / "index.md").read_text()
    part = text[text.index("### captioning on resnet18x0.25") : text.index("over the epochs")]
    assert part.startswith(
        "### captioning on resnet18x0.25, shapes (500 training captions, 64 px), 2 epochs"
    )
    assert "Compared: CIDEr, mean" in part
    rows = [line.strip("| ").split(" | ") for line in part.splitlines()]
    # By hand: 290 and 286, gains of 40 and 32; the paper's CIDEr from each classifier.
    gain = ["36 ± 5.66 (2)"]
    assert ["cutmix", "2", "288 ± 2.83", *gain, "289 ± 2.83", *gain, "77.60"] in rows
    assert ["baseline", "2", "252 ± 2.83", "–", "253 ± 2.83", "–", "71.20"] in rows
    assert ["from nothing", "1", "100", "-150 (1)", "101", "-150 (1)", "–"] in rows
    bleu = ["60", "40", "30", "20"]
    bleus = [f"{x} ± 0" for x in bleu]
    first = rows.index(
        ["method", "source", *(f"BLEU-{n}" for n in range(1, 5)), "METEOR", "ROUGE-L", "CIDEr"]
    )
    assert rows[first + 2 : first + 7] == [
        ["baseline", "ours", *bleus, "–", "45.5 ± 0", "252 ± 2.83"],
        ["baseline", "paper", "61.4", "43.8", "31.4", "22.9", "22.8", "44.7", "71.2"],
        ["cutmix", "ours", *bleus, "31 ± 1.41", "45.5 ± 0", "288 ± 2.83"],
        ["cutmix", "paper", "64.2", "46.3", "33.6", "24.9", "23.1", "49.0", "77.6"],
        ["from nothing", "ours", *bleu, "10.5", "45.5", "100"],
    ]
    assert re.search(r"!\[CIDEr over the epochs]\(figures/group\d+_measure.png\)", text)
    assert "begun: unfinished, 7 epochs done" in text
    assert ["METEOR", "32"] in rows_of(captioners)


@pytest.mark.parametrize(
    ("title", "row", "paper", "scores"),
    [
        ("Table 10:", "CutMix-trained", "64.2 24.9", "60 20"),
        (
            "Table A1:",
            "ResNet-50 + CutMix",
            "64.2 46.3 33.6 24.9 23.1 49.0 77.6",
            "60 40 30 20 23.25 45.5 77.5",
        ),
    ],
)
def test_tables_10_and_a1_have_runs_of_the_captioner_and_a_full_one_has_a_full_classifier(
    captioners, title, row, paper, scores
):
    config, text = "configs/captions.py:resnet50", (captioners / "index.md").read_text()
    part = text[text.index(f"### {title}") :].split("\n### ", 1)[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines()]
    printed = rows.index(
        [row, "paper", *paper.split(), f"{config} from configs/imagenet.py:resnet50,cutmix"]
    )
    name, source, *cells, words = rows[printed + 1]
    assert [name, source, *cells] == [row, "ours", *scores.split()]
    run = "1 seed, captioning on resnet50, coco_captions (414,113 training captions"
    assert words.startswith(run)
    ours = [found for found in rows if found[1:2] == ["ours"]]
    short = [found for found in ours if "Mixup" in found[0]]
    assert short[0][1:] == ["ours", *["–"] * len(cells), "not run"]
    assert short[1][-1].startswith(f"scaled down: {run}")
    assert short[1][-1].endswith("; classifier: resnet50, imagenet2012, 30 epochs")
    assert [found[-1] for found in ours if "Cutout" in found[0]] == ["not run"]


def test_classifiers_that_were_trained_differently_are_named(tmp_path):
    for name, epochs, seed in (("a", 3, 0), ("b", 6, 0), ("c", 3, 1), ("d", 3, 0)):
        start = write_run(tmp_path / f"of/{name}", "configs/shapes.py", 0.2, seed, epochs=epochs)
        source = "configs/shapes_detection.py"
        write_detector(tmp_path / f"ssd_{name}", source, 0.6, seed, init_from=start)
    (methods,) = group([run for run in read_runs([tmp_path]) if "ssd" in run.folder.name])
    names = {name: [run.folder.name for run in seeds.values()] for name, seeds in methods.items()}
    words = "cutmix (classifier's epochs="
    assert names == {
        f"{words}3), a": ["ssd_a"], f"{words}3), c": ["ssd_c"], f"{words}3), d": ["ssd_d"],
        f"{words}6)": ["ssd_b"],
    }  # fmt: skip


def test_only_a_full_run_is_compared_with_the_paper(page):
    row = next(row for row in rows_of(page) if row[-1] == "configs/cifar.py:resnet110,cutmix")
    assert row[1:3] == ["20.11", "4.43"]
    assert row[3].startswith("20.10 / 19.10, 1 seed (resnet110, cifar100 (50,000 training images)")
    assert row[4].startswith("47.00 ± 4.24 / 46.00 ± 4.24, 2 seeds (resnet20")
    assert "(500 training images" in row[4]
    other = next(row for row in rows_of(page) if row[-1] == "configs/cifar.py:pyramidnet110,cutmix")
    assert other[3] == "not run"


def test_training_on_part_of_the_images_is_not_a_full_run(full):
    row = next(row for row in rows_of(full) if row[-1] == "configs/cifar.py:resnet110,cutmix")
    assert row[3].startswith("20.00 / 19.00, 1 seed (resnet110, cifar100 (50,000 training images)")
    assert "70.00 / 69.00, 1 seed (resnet110, cifar100 (1,234 training images)" in row[4]
    assert len([row for row in rows_of(full) if row[:3] == ["cutmix", "1", "20.00"]]) == 3


def test_a_row_has_the_runs_of_its_own_parameters(full):
    cells = {row[-1]: row[4] for row in rows_of(full) if row[-1].startswith("configs/")}
    for alpha, error in ((0.1, "61.00 / 60.00"), (0.5, "65.00 / 64.00")):
        cell = cells[f"configs/cifar.py:pyramidnet200,cutmix_alpha{alpha}"]
        assert cell.startswith(f"{error}, 1 seed (resnet20")
        assert cell.count("seed") == 1
        # The evaluation has two rows as well, instead of two seeds in one row.
        (row,) = [row for row in rows_of(full) if row[0] == f"cutmix (alpha={alpha})"
                  and row[-1].startswith("scaled down: resnet20")]  # fmt: skip
        assert row[2] == f"{10 * alpha:.2f}"


@pytest.mark.parametrize(("place", "number"), [(2, "31.00"), (1, "54.00")])
def test_only_what_is_smaller_is_called_so(full, place, number):
    names = [row[-1] for row in rows_of(full) if row[place : place + 1] == [number]]
    data_set = {"31.00": "imagenet2012", "54.00": "caltech_birds2011"}[number]
    assert any(words.startswith(f"resnet50, {data_set}") for words in names)


def test_what_was_evaluated_and_what_was_not(page):
    rows = rows_of(page)
    fgsm = next(row for row in rows if row[0] == "cutmix" and "12.30" in row)
    assert fgsm[-1].startswith("scaled down: resnet20")
    assert any(row[:2] == ["cutmix", "32.10"] for row in rows)
    assert ["not run: --mode evaluate --evals localization"] in rows
    assert "begun: unfinished, 7 epochs done" in (page / "index.md").read_text()


def test_every_table_of_the_paper_is_there(page):
    text = (page / "index.md").read_text()
    for name in (*(f"Table {n}:" for n in range(1, 13)), "Figure 3, left", "Figure 3, right"):
        assert name in text
    figures = re.findall(r"\(figures/([^)]+)\)", text)
    assert figures
    assert all((page / "figures" / name).is_file() for name in figures)


def test_text_from_files_is_not_markup(page):
    assert "<img src=http" not in (page / "index.html").read_text()
    assert "<" not in (page / "index.md").read_text()
    assert ["&lt;b>a\\|b", "&lt;img src=http://localhost/x> # 2"] in rows_of(page)


@pytest.mark.skipif(not BROWSER, reason="needs Chromium or Chrome")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_and_asks_for_nothing(page, width, tmp_path):
    def open_page(path):
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr"]
        command += ["--window-size=1400,900", path.as_uri()]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        # The page's own policy would refuse a request, and the console would report it.
        assert not [line for line in shown.stderr.splitlines() if ":CONSOLE" in line]
        return shown.stdout

    html = (page / "index.html").read_text()
    assert "default-src 'none'" in open_page(page / "index.html")
    assert not re.search(r"""(src|href)=["'](?!data:)""", html)
    # The same page in a frame that measures it: the page's policy lets no script run, and a
    # window may not be as narrow as a phone.
    script = (
        "<script>document.querySelectorAll('details').forEach(d => d.open = true);"
        "onload = () => parent.postMessage(JSON.stringify({"
        "images: [...document.images].map(i => i.naturalWidth), inner: innerWidth,"
        "tables: document.querySelectorAll('table').length,"
        "width: document.documentElement.scrollWidth}), '*')</script>"
    )
    probe = tmp_path / "probe.html"
    probe.write_text(re.sub(r"<meta http-equiv.*?>", "", html).replace("</body>", script))
    frame = tmp_path / "frame.html"
    frame.write_text(
        "<script>onmessage = event => document.body.dataset.seen = event.data</script>"
        f"<iframe src='probe.html' width='{width}' height='900'></iframe>"
    )
    seen = re.search(r'data-seen="(.*?)"', open_page(frame))[1].replace("&quot;", '"')
    seen = json.loads(seen)
    assert seen["images"]
    assert min(seen["images"]) > 0
    assert seen["tables"] > 20
    assert seen["width"] <= seen["inner"] == width


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (None, "is not a folder"),
        ({}, "contains no run"),
        ({"results.json": "{"}, "results.json' is not JSON"),
        ({"evals/fgsm.json": "[]"}, "fgsm.json' is not a JSON object"),
        ({"results.json": '{"config": {"seed": 0}}'}, "lacks 'config.model'"),
        (
            {"results.json": '{"config": {"task": "x:Box"}}'},
            "config.task='x:Box', which cannot be imp",
        ),
        ({"metrics.jsonl": '{"loss": 1}'}, "metrics.jsonl' lacks 'epoch'"),
        ({"metrics.jsonl": "\udcff"}, "metrics.jsonl' is not JSON"),
    ],
)
def test_what_cannot_be_read_is_named(broken, expected, tmp_path):
    folder = tmp_path / "run"
    for name, text in (broken or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, errors="surrogateescape")
    if broken == {}:
        folder.mkdir()
    with pytest.raises(UserError, match=re.escape(expected)):
        main([str(folder), "--output", str(tmp_path)])


def test_a_mistake_is_one_line(tmp_path):
    command = [sys.executable, "-m", "cutmix_jax.report", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(r"error: .* is not a folder.*\n", done.stderr)


@pytest.mark.parametrize(
    ("name", "damage", "expected"),
    [
        ("evals/occlusion.csv", "\0\udcff", "occlusion.csv' is not a table"),
        ("evals/occlusion.csv", "side\n0\n", "occlusion.csv' has a row without 'center_top1"),
        (
            "evals/occlusion.csv",
            "side,center_top1_error,boundary_top1_error\n0,0.5,0.5\n8,none,0.5\n",
            "occlusion.csv' has 'none' for 'center_top1_error', which is not a number",
        ),
        ("evals/occlusion.csv", "side,center_top1_error,boundary_top1_error\n0,0.5\n",
         "occlusion.csv' has a row without 'boundary_top1_error'"),
        ("evals/between.csv", "at,error\n0,0.5\n", "between.csv' has a row without 'form'"),
        ("evals/ood.csv", "name\nuniform\n", "ood.csv' has a row without 'set'"),
        ("evals/ood.json", {"mean_auroc": "high"}, "ood.json' has 'high' for 'mean_auroc'"),
        ("evals/ood.json", {"uniform_auroc": [1]}, "ood.json' has [1] for 'uniform_auroc'"),
        ("results.json", {"top1_error_last": "low"}, "has 'low' for 'top1_error_last'"),
        ("results.json", {"epochs": None}, "results.json' has None for 'epochs'"),
        ("metrics.jsonl", {"epoch": 3}, "metrics.jsonl' lacks 'train_weighted_accuracy'"),
        ("metrics.jsonl", {"epoch": "x"}, "metrics.jsonl' has 'x' for 'epoch'"),
    ],
)  # fmt: skip
def test_a_damaged_file_of_a_finished_run_is_named(name, damage, expected, tmp_path):
    run = write_run(tmp_path / "run", "configs/cifar.py:resnet20,cutmix", 0.5, epochs=2)
    rows = "form,at,error\nmixup,0,0.5\n"
    write_eval(run, "between", {}, rows)
    write_eval(run, "occlusion", {}, "side,center_top1_error,boundary_top1_error\n0,0.5,0.5\n")
    write_eval(run, "ood", {"uniform_auroc": 0.5}, "set\nuniform\n")
    assert main([str(run), "--output", str(tmp_path / "out")]) == 0
    text = damage
    if isinstance(damage, dict):
        text = json.dumps(damage)
        if name == "metrics.jsonl":  # a further line
            text = (run / name).read_text() + text
        else:
            text = json.dumps(json.loads((run / name).read_text()) | damage)
    (run / name).write_text(text, errors="surrogateescape")
    with pytest.raises(UserError, match=re.escape(expected)):
        main([str(run), "--output", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("name", "damage", "expected"),
    [
        ("results.json", {"scores_last": {"cider": 50.0}}, "lacks 'scores_last.bleu1', which"),
        ("results.json", {"scores_last": {"meteor": "-"}}, "has '-' for 'scores_last.meteor'"),
        ("evals/captions.json", {"meteor": "-"}, "captions.json' has '-' for 'meteor'"),
    ],
)
def test_a_damaged_file_of_a_captioner_is_named(name, damage, expected, tmp_path):
    run = write_captioner(tmp_path / "run", "configs/shapes_captions.py", 50.0, epochs=2)
    write_eval(run, "captions", {"split": "test", "cider": 50.0, "meteor": 20.0})
    assert main([str(run), "--output", str(tmp_path / "out")]) == 0
    found = json.loads((run / name).read_text())
    if "meteor" in damage.get("scores_last", {}):
        damage = {"scores_last": found["scores_last"] | damage["scores_last"]}
    (run / name).write_text(json.dumps(found | damage))
    with pytest.raises(UserError, match=re.escape(expected)):
        main([str(run), "--output", str(tmp_path / "out")])


def test_epochs_that_were_not_evaluated_are_left_out_of_the_curves(tmp_path):
    folder = write_run(tmp_path / "run", "configs/cifar.py:resnet20,cutmix", 0.3, epochs=3)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "train_weighted_accuracy": 0.5}\n')
    (run,) = read_runs([tmp_path])
    assert [record["epoch"] for record in run.measured] == [1, 2]
    assert main([str(tmp_path), "--output", str(tmp_path / "out")]) == 0


def test_methods_with_the_same_words_are_distinguished(tmp_path):
    for alpha in (0.5, 1.0):
        source = f"configs/cifar.py:resnet20,cutmix_alpha{alpha}"
        write_run(tmp_path / str(alpha), source, 0.3, epochs=2)
    (names,) = [list(members) for members in group(read_runs([tmp_path]))]
    assert [re.search(r"alpha=[\d.]+", name)[0] for name in names] == ["alpha=0.5", "alpha=1.0"]


def test_methods_are_named_by_all_that_regularizes():
    assert method({"mix.name": "none", "label_smoothing": 0.1}) == "label_smoothing"
    assert method({"mix.name": "mixup", "drop_block.rate": 0.1}) == "mixup+drop_block"
