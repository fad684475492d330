"""The contents of the page, as plain structures that both templates render."""

import dataclasses
import functools

from cutmix_jax import paper, sweep
from cutmix_jax.command_line import read_config
from cutmix_jax.config import differences, flatten, to_plain
from cutmix_jax.report import drawings
from cutmix_jax.report.runs import (
    conditions,
    describe,
    details,
    flat_config,
    full_method,
    group,
    is_classifier,
    method,
    mixes_alike,
    regime,
    table_cell,
    to_number,
    training_of,
    with_conditions,
)
from cutmix_jax.tasks import find_task

TITLES = {
    "1": "Table 1: classification, localization and detection, overview",
    "2": "Table 2: comparison of the methods",
    "3": "Table 3: ImageNet, ResNet-50",
    "4": "Table 4: ImageNet, deeper networks",
    "5": "Table 5: CIFAR-100, PyramidNet-200",
    "6": "Table 6: CIFAR-100, lighter networks",
    "7": "Table 7: CIFAR-10, PyramidNet-200",
    "8": "Table 8: ablation of CutMix, CIFAR-100",
    "figure-3-left": "Figure 3, left: the parameter alpha",
    "figure-3-right": "Figure 3, right: the layer that is mixed",
    "9": "Table 9: weakly supervised localization",
    "10": "Table 10: transfer to detection and captioning",
    "11": "Table 11: FGSM",
    "12": "Table 12: out-of-distribution detection",
    "A1": "Table A1: captioning in detail",
    "A2": "Table A2: out-of-distribution detection in detail",
}
RERUNS = {
    "3": ("README-imagenet", "issue-9"),
    "5": ("README-cifar100", "issue-7"),
    "6": ("issue-10",),
    "9": ("README-transfer",),
    "10": ("issue-13",),
}
HIDDEN = (
    *("table", "row", "config", "configs", "backbone", "source", "dataset", "model", "params_m"),
    "note",
)
# The evaluation, and those of its values that are shown, in percent.
MEASURED = {
    "9": (
        "localization",
        {
            "top1_loc_acc": "top-1 loc acc",
            "gt_known_loc_acc": "GT-known loc acc",
            "max_box_acc_v2": "MaxBoxAccV2",
            "center_box_gt_known_loc_acc": "center box, GT-known",
        },
    ),
    "11": (
        "fgsm",
        {
            "clean_top1_error": "clean top-1 error",
            "fgsm_8_top1_accuracy": "FGSM 8/255 top-1 acc",
            "pgd_8_top1_accuracy": "PGD 8/255 top-1 acc",
        },
    ),
    "12": (
        "ood",
        {
            "mean_tnr_at_tpr95": "TNR at TPR 95",
            "mean_auroc": "AUROC",
            "mean_detection_accuracy": "detection acc",
        },
    ),
}
# The table whose rows train the networks that another table measures.
TRAINED_FOR = {"11": "3", "12": "5"}
NOT_RUN = "not run"
SMALL = "scaled down"


@dataclasses.dataclass
class Table:
    """A header and rows of text."""

    head: list
    rows: list
    title: str = ""


@dataclasses.dataclass
class Figure:
    """A figure; `name` is the name of its file."""

    name: str
    caption: str
    png: bytes

    @property
    def is_wide(self):
        """Whether it needs the whole width of the page."""
        width, height = (int.from_bytes(self.png[at : at + 4], "big") for at in (16, 20))
        return width > 1.8 * height


@dataclasses.dataclass
class Section:
    """A heading with its contents. Readers can open `folded` ones."""

    title: str
    texts: list = dataclasses.field(default_factory=list)
    tables: list = dataclasses.field(default_factory=list)
    figures: list = dataclasses.field(default_factory=list)
    parts: list = dataclasses.field(default_factory=list)
    folded: bool = False


def build(runs):
    """All sections, from the runs."""
    groups = group(runs)
    rows = {}
    for row in paper.read_tables():
        rows.setdefault(row["table"], []).append(row)
    ours = [compare(methods, rows, number) for number, methods in enumerate(groups, 1)]
    tables = [paper_table(name, rows, runs) for name in TITLES]
    pages = [page(run, number) for number, run in enumerate(runs, 1)]
    return [
        Section("Our runs, compared", [] if ours else ["No run is finished."], parts=ours),
        Section("Tables of the paper", [f"In %. {sweep.TABLE_NOTE}"], parts=tables),
        Section("Each run", parts=pages),
    ]


def paper_column(task, rows):
    """The head of the paper's column, and {method: number} next to runs of a task; or None.

    Classifiers have the top-1 error of PyramidNet-200 on CIFAR-100, of Tables 5 and 8. Detectors
    have the mAP of theirs on ResNet-50, by the method of the backbone, of Table 10.
    """
    detectors = {found["name"]: name for name, found in paper.read_detectors().items()}
    if task == "classification":
        head, key, source, rows = "PyramidNet-200", "top1_err", "config", rows["5"] + rows["8"]
    elif task in detectors.values():
        (head,) = (f"ResNet-50, VOC, {words}" for words, name in detectors.items() if name == task)
        key, source, rows = f"{task}_map", "backbone", rows["10"]
    else:
        return None
    found = {}
    for row in rows:
        found.setdefault(method(flatten(plain_config(row[source]))), row[key])
    return f"paper, {head} in full", found


def compare(methods, rows, number):
    """The section of runs that differ only in method and seed."""
    results = {
        (name, seed): run.results for name, seeds in methods.items() for seed, run in seeds.items()
    }
    plain = "baseline" if "baseline" in methods else None
    baselines = {name: plain for name in methods if plain and name != plain}
    first = {name: next(iter(seeds.values())) for name, seeds in methods.items()}
    one = next(iter(first.values()))
    task = one.task
    head, cells = sweep.table_cells(sweep.compare(results, baselines, task), task)
    head = ["method", *head[1:]]
    words = (
        f"Compared: {sweep.measure_in_words(task)}, mean ± sample deviation over seeds; gain over "
        "the baseline of the same seed (pairs)."
    )
    section = Section(describe(one), [words], [Table(head, cells)])
    if column := paper_column(one.config["task"], rows):
        head.append(column[0])
        for row in cells:
            known = column[1].get(first[row[0]].method)
            row.append("–" if known is None else f"{known:.2f}")
        section.texts[0] += " Compare only the order of the methods with the last column."
    if not task.uses_mix:
        section.tables.append(backbones(methods))
    if not is_classifier(task):
        if curve := drawings.measure(methods, task):
            caption = f"{sweep.measure_in_words(task)} over the epochs"
            section.figures.append(Figure(f"group{number}_measure.png", caption, curve))
        return section
    curve = drawings.errors(methods)
    if curve:
        caption = "Figure 2: test error over the epochs" + (
            ", mean over seeds" if max(map(len, methods.values())) > 1 else ""
        )
        section.figures.append(Figure(f"group{number}_errors.png", caption, curve))
    for name, curve in drawings.PARAMETERS.items():
        drawn = drawings.over_parameter(methods, curve)
        if drawn:
            caption = TITLES[name] + ("" if plain else f"; baseline {NOT_RUN}")
            section.figures.append(Figure(f"group{number}_{curve.name}.png", caption, drawn))
        else:
            section.texts.append(f"{TITLES[name]}: {NOT_RUN} ({curve.needs}).")
    for caption, curve in drawings.CURVES.items():
        drawn = drawings.overlay(methods, curve.name, curve.plots)
        if drawn:
            section.figures.append(Figure(f"group{number}_{curve.name}.png", caption, drawn))
        else:
            section.texts.append(f"{caption}: {NOT_RUN} (--mode evaluate --evals {curve.name}).")
    for file, caption in (
        ("cam_mixed.png", "Figure 1: maps of both classes on mixed images"),
        ("cam.png", "Figure 4: maps and boxes"),
        ("ood.png", "scores inside and outside"),
    ):
        for name, run in first.items():
            if (run.folder / "evals" / file).is_file():
                picture = (run.folder / "evals" / file).read_bytes()
                where = f"group{number}_{len(section.figures)}_{file}"
                section.figures.append(Figure(where, f"{caption}; {name}", picture))
    return section


def paper_table(name, rows, runs):
    """A table of the paper, next to our runs."""
    if name in ("figure-3-left", "figure-3-right") or "config" in rows[name][-1]:
        tables = [trained(rows[name], runs)]
    else:
        tables = [printed(rows[name])]
    if "backbone" in rows[name][-1]:
        tables += transferred(rows[name], runs)
    section = Section(TITLES[name], tables=tables, folded=name in ("A1", "A2", "2"))
    if any(row.get("from_original_paper") for row in rows[name]):
        section.texts.append("* The paper copies this number from the original paper.")
    for source in RERUNS.get(name, ()):
        table = printed(rows[source])
        table.title = f"From the authors: {rows[source][0]['source']}"
        section.tables.append(table)
    if name in MEASURED:
        section.tables += measured(*MEASURED[name], runs, rows[TRAINED_FOR.get(name, name)])
    elif name == "1":
        section.texts.append("Classification and localization, ours: see Tables 3 and 9.")
    elif name in ("10", "A1"):
        section.texts.append(f"Captioning, ours: {NOT_RUN}.")
    elif name == "A2":
        section.texts.append("Ours: see the datasets of each run below.")
    return section


@functools.cache
def plain_config(name):
    """The config of 'FILE:MODEL,METHOD' as nested dictionaries."""
    return to_plain(read_config(name))


def label(row):
    """A row's name, with a star if the paper copied it."""
    return row["row"] + " *" * bool(row.get("from_original_paper"))


def text(value):
    """The text of a cell."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else str(value)


def printed(rows):
    """The paper's rows, unchanged."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    keys = [k for k in keys if k not in HIDDEN and k != "from_original_paper" and "delta" not in k]
    head = ["row", *(key.replace("_", " ") for key in keys)]
    return Table(head, [[label(row), *(text(row.get(key)) for key in keys)] for row in rows])


def trained(rows, runs):
    """Rows with a config: errors of the paper, of runs of this config, and of smaller runs."""
    cells = []
    for row in rows:
        errors = (text(row.get(key)) for key in ("top1_err", "top5_err"))
        cells.append([label(row), *errors, *ours(runs, row["config"]), row["config"]])
    head = ["row", "paper, top-1", "top-5", "ours, in full: last / best", SMALL, "config"]
    return Table(head, cells)


def transferred(rows, runs):
    """Detectors: a table for each, with mAP of the paper, and of runs by their backbones."""
    tables = []
    for detector, network in paper.read_detectors().items():
        cells = []
        for row in rows:
            for key, config in row["configs"].items():
                if config.endswith(f",{detector}"):
                    found = ours(runs, config, row["backbone"])
                    cells.append([label(row), text(row[key]), *found, config, row["backbone"]])
        head = ["row", f"paper, mAP of {network['name']}", "ours, in full: last / best", SMALL]
        if cells:
            tables.append(Table([*head, "config", "backbone"], cells))
    return tables


def ours(runs, name, backbone=None):
    """Two cells: the runs of a config in full, and smaller ones with its method and dataset.

    Args:
        runs: all runs.
        name: the config.
        backbone: the config of the classifier that a detector starts from.
    """
    flat, mixed = (flatten(plain_config(found)) for found in (name, backbone or name))
    full, small = [], {}
    for run in runs:
        if not run.results or not run.mixed:
            continue
        alike = all(run.config[key] == flat[key] for key in ("task", "dataset"))
        if is_full(run, name, backbone):
            full.append(run)
        elif alike and mixes_alike(run.mixed, mixed):
            small.setdefault(kind(run), []).append(run)

    def cell(group):
        run = group[0]
        start = f"; classifier: {training(run)}" if run.backbone else ""
        return f"{numbers(group)} ({describe(run)}{start})"

    return cell(full) if full else NOT_RUN, "; ".join(map(cell, small.values())) or "–"


def is_full(run, name, backbone=None):
    """Whether a run has the config `name` and trained on all images of its dataset.

    With the config of a `backbone`, the classifier that it started from must be full, too.
    """
    if not run.config or (backbone and not has_trained(run.backbone or {}, backbone)):
        return False
    return has_trained(run.results, name)


def has_trained(results, name):
    """Whether results are those of the config `name` on all images of its dataset."""
    examples = paper.DATA_SETS[paper.data_name(name)][2]
    if results.get("train_examples") != examples:
        return False
    config = plain_config(name)
    # With a new head and for a detector, every run names the weights that it starts from.
    starts = config["new_head"] or not find_task(config["task"]).uses_mix
    free = ("seed", "init_from") if starts else ("seed",)
    return not any(key not in free for key, *_ in differences(config, results["config"]))


def backbones(methods):
    """Where the backbones of detectors come from, for every run."""
    rows = []
    for name, seeds in methods.items():
        for seed, run in seeds.items():
            start = run.config["init_from"]
            rows.append([name, str(seed), start or "–", training(run) if run.backbone else "–"])
    return Table(["method", "seed", "starts from", "trained"], rows)


def training(run):
    """Network, data and length of the classifier that a detector started from."""
    return "{model}, {dataset}, {epochs} epochs".format(**flat_config(run.backbone))


def kind(run):
    """A key that is equal for runs that differ only in their seeds."""
    learned = (regime(run.config), training_of(run))
    return run.method, details(run.mixed), describe(run), learned


def numbers(runs):
    """The measure after the last and the best epoch of runs that differ only in their seeds."""
    cells, task = [], runs[0].task
    for choice in ("last", "best"):
        values = {
            (run.config["seed"], run.config["init_from"] or ""): run.results[
                f"{task.ranked_by}_{choice}"
            ]
            for run in runs
        }
        cells.append(sweep.shown(sweep.moments(values), task))
    return f"{' / '.join(cells)}, {len(values)} seed{'s' * (len(values) != 1)}"


def measured(evaluation, columns, runs, rows):
    """Results of an evaluation for each run, in percent, and for each out-of-distribution dataset.

    Seeds share a row if they were evaluated under the same options. Otherwise rows name the options
    that differ.

    Args:
        evaluation: its name.
        columns: ``{name of a value: head of its column}``.
        runs: all runs.
        rows: of the paper, whose configs train the networks that the paper evaluated.
    """
    evaluated = [run for run in runs if evaluation in run.evals]
    if not evaluated:
        return [Table(["ours"], [[f"{NOT_RUN}: --mode evaluate --evals {evaluation}"]])]
    configs = [c for row in rows for c in row.get("configs", {"": row.get("config")}).values() if c]
    grouped, variants = {}, {}
    for run in evaluated:
        images = text(run.evals[evaluation]["values"].get("examples"))
        key = (*kind(run), images, conditions(run, evaluation))
        grouped.setdefault(key, []).append(run)
        variants.setdefault((method(run.config), describe(run)), set()).add(details(run.config))

    def cell(members, key):
        values = {
            number: to_number(run.folder / "evals" / f"{evaluation}.json", key, found[key])
            for number, run in enumerate(members)
            if (found := run.evals[evaluation]["values"]).get(key) is not None
        }
        return sweep.percent(sweep.moments(values)) if values else "–"

    head = ["ours, in %", *columns.values(), "images", "run"]
    cells, names = [], []
    for (name, _, words, _, images, made), members in grouped.items():
        apart = full_method(members[0].config, variants[name, words])
        names.append(with_conditions(apart, made, [key[-1] for key in grouped]))
        full = any(is_full(members[0], config) for config in configs)
        cells.append(
            [
                names[-1],
                *(cell(members, key) for key in columns),
                images,
                words if full else f"{SMALL}: {words}",
            ]
        )
    tables = [Table(head, cells)]
    if evaluation == "ood":
        sets = dict.fromkeys(
            table_cell(run, "ood", row, "set")
            for run in evaluated
            for row in run.evals["ood"]["rows"]
        )
        head = ["AUROC by dataset, in %", *sets]
        cells = [
            [name, *(cell(members, f"{other}_auroc") for other in sets)]
            for name, members in zip(names, grouped.values(), strict=True)
        ]
        tables.append(Table(head, cells))
    return tables


def page(run, number):
    """One run, with all its numbers and figures."""
    section = Section(f"{run.folder.name}: {run.state}", [describe(run)], folded=True)
    if run.results:
        flat = {key: value for key, value in run.results.items() if not isinstance(value, dict)}
        section.tables.append(Table(["result", "value"], [[k, short(v)] for k, v in flat.items()]))
        config = [[key, short(value)] for key, value in run.config.items() if "evals" not in key]
        section.tables.append(Table(["config", "value"], config))
        each = run.results.get("ap_last")
        if each:
            rows = [[name, short(value)] for name, value in each.items()]
            section.tables.append(Table(["AP, last epoch", "value"], rows))
    for name, found in run.evals.items():
        values = [[k, short(v)] for k, v in found["values"].items() if k != "digest"]
        section.tables.append(Table([name, "value"], values))
    for path in run.pictures():
        section.figures.append(Figure(f"run{number}_{path.name}", path.stem, path.read_bytes()))
    return section


def short(value):
    """A number with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else text(value)


def headline(runs):
    """What the page shows, and how to read it."""
    finished = [run for run in runs if run.results]
    return (
        f"{len(runs)} runs, {len(finished)} of them finished. "
        "Each of our numbers is next to the data, network and epochs it comes from. "
        f"Do not compare runs that are '{SMALL}' with the paper's numbers, only with each other."
    )
