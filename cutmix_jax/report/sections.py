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
    is_captioner,
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
from cutmix_jax.tasks.captioning import SCORES

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
SCORES_NOTE = "Scores of captions: times 100, ours after the last epoch. METEOR needs Java."


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
        Section(
            "Tables of the paper",
            [f"In %, and scores of captions times 100. {sweep.TABLE_NOTE}"],
            parts=tables,
        ),
        Section("Each run", parts=pages),
    ]


def paper_column(task, rows):
    """The head of the paper's column, and {method: number} next to runs of a task; or None.

    Classifiers have the top-1 error of PyramidNet-200 on CIFAR-100, of Tables 5 and 8. Detectors
    have the mAP of theirs on ResNet-50, by the method of the backbone, of Table 10, and captioners
    CIDEr of Table A1.
    """
    transfer = paper.read_transfer_tasks()
    if task == "classification":
        head, key, source, rows = "PyramidNet-200", "top1_err", "config", rows["5"] + rows["8"]
    elif task in transfer:
        head, source = "ResNet-50, {dataset}, {name}".format(**transfer[task]), "backbone"
        table, key = ("A1", "cider") if task == "captioning" else ("10", f"{task}_map")
        rows = rows[table]
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
    if is_captioner(task):
        section.texts.append(f"{SCORES_NOTE} Those of the paper are for COCO.")
        section.tables.append(all_scores(methods, rows["A1"]))
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
    if name == "A1":
        tables = []
    elif name in ("figure-3-left", "figure-3-right") or "config" in rows[name][-1]:
        tables = [trained(rows[name], runs)]
    else:
        tables = [printed(rows[name])]
    if "backbone" in rows[name][-1]:
        tables += transferred(rows[name], runs)
    section = Section(TITLES[name], tables=tables, folded=name in ("A2", "2"))
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
        section.texts.append(SCORES_NOTE)
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
    """Tables of detectors and the captioner, with numbers of the paper, and of runs by backbone."""
    tables = []
    for task, found in paper.read_transfer_tasks().items():
        keys = name_numbers(rows[0], found["config"])
        if keys:
            make = captioned if task == "captioning" else detected
            tables.append(make(rows, keys, found, runs))
    return tables


def name_numbers(row, config):
    """The keys of a row's numbers that a config trains."""
    if row.get("config") == config:
        return [key for key in SCORES if key in row]
    return [key for key, own in row.get("configs", {}).items() if own == config]


def detected(rows, keys, detector, runs):
    """A detector's table: the paper's mAP, and the runs in full and smaller.

    Args:
        rows: of a table of the paper.
        keys: that of its mAP, in a list.
        detector: its entry of `paper.read_transfer_tasks`.
        runs: all runs.
    """
    (key,), config = keys, detector["config"]
    head = ["row", f"paper, mAP of {detector['name']}", "ours, in full: last / best", SMALL]
    cells = []
    for row in rows:
        measures = (text(row[key]), *ours(runs, config, row["backbone"]))
        cells.append([label(row), *measures, config, row["backbone"]])
    return Table([*head, "config", "backbone"], cells)


def captioned(rows, keys, captioner, runs):
    """The captioner's table: a row for the paper's scores, and one for every kind of run.

    Args:
        rows: of a table of the paper.
        keys: those of its scores.
        captioner: its entry of `paper.read_transfer_tasks`.
        runs: all runs.
    """
    names = [key.removeprefix("nic_") for key in keys]
    config, cells = captioner["config"], []
    for row in rows:
        printed = (text(row[key]) for key in keys)
        cells.append([label(row), "paper", *printed, f"{config} from {row['backbone']}"])
        full, small = find_ours(runs, config, row["backbone"])
        if not full:
            cells.append([label(row), "ours", *["–"] * len(keys), NOT_RUN])
        for found in filter(None, (full, *small)):
            words = f"{count_seeds(found)}, {describe_start(found)}"
            words = words if found is full else f"{SMALL}: {words}"
            cells.append([label(row), "ours", *scored(found, names), words])
    head = ["row", "source", *(SCORES[name] for name in names), "run"]
    return Table(head, cells, captioner["name"])


def all_scores(methods, rows):
    """All scores of captioners that can be compared, by method, each above those of the paper."""
    known = {method(flatten(plain_config(row["backbone"]))): row for row in rows}
    cells = []
    for name, seeds in methods.items():
        runs = list(seeds.values())
        cells.append([name, "ours", *scored(runs, SCORES)])
        if row := known.get(runs[0].method):
            cells.append([name, "paper", *(text(row[key]) for key in SCORES)])
    return Table(["method", "source", *SCORES.values()], cells)


def scored(runs, names):
    """Cells with scores of captioners that differ only in their seeds; "–" if one lacks it."""
    cells = []
    for name in names:
        values = {key: run.scores.get(name) for key, run in distinct(runs).items()}
        found = None if None in values.values() else sweep.moments(values)
        cells.append(sweep.shown(found, runs[0].task))
    return cells


def find_ours(runs, name, backbone=None):
    """The runs of a config in full, and groups of smaller ones with its method and dataset.

    Args:
        runs: all runs.
        name: the config.
        backbone: the config of the classifier that a detector or captioner starts from.
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
    return full, list(small.values())


def ours(runs, name, backbone=None):
    """Two cells: the runs of `find_ours` in full, and the smaller ones."""
    full, small = find_ours(runs, name, backbone)

    def cell(group):
        return f"{numbers(group)} ({describe_start(group)})"

    return cell(full) if full else NOT_RUN, "; ".join(map(cell, small)) or "–"


def describe_start(group):
    """Runs that differ only in their seeds in words, with the classifier that they started from."""
    run = group[0]
    return describe(run) + (f"; classifier: {training(run)}" if run.backbone else "")


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
    # With a new head, and for detectors and captioners, every run names the weights it starts from.
    starts = config["new_head"] or not find_task(config["task"]).uses_mix
    free = ("seed", "init_from") if starts else ("seed",)
    return not any(key not in free for key, *_ in differences(config, results["config"]))


def backbones(methods):
    """Where the backbones of detectors and captioners come from, for every run."""
    rows = []
    for name, seeds in methods.items():
        for seed, run in seeds.items():
            start = run.config["init_from"]
            rows.append([name, str(seed), start or "–", training(run) if run.backbone else "–"])
    return Table(["method", "seed", "starts from", "trained"], rows)


def training(run):
    """Network, data and length of the classifier that a run started from."""
    return "{model}, {dataset}, {epochs} epochs".format(**flat_config(run.backbone))


def kind(run):
    """A key that is equal for runs that differ only in their seeds."""
    learned = (regime(run.config), training_of(run))
    return run.method, details(run.mixed), describe(run), learned


def distinct(runs):
    """`{(seed, weights it starts from): run}` of runs that differ only in these."""
    return {(run.config["seed"], run.config["init_from"] or ""): run for run in runs}


def count_seeds(runs):
    """How many of these there are, in words."""
    count = len(distinct(runs))
    return f"{count} seed{'s' * (count != 1)}"


def numbers(runs):
    """The measure after the last and the best epoch of runs that differ only in their seeds."""
    cells, task = [], runs[0].task
    for choice in ("last", "best"):
        key = f"{task.ranked_by}_{choice}"
        values = {seed: run.results[key] for seed, run in distinct(runs).items()}
        cells.append(sweep.shown(sweep.moments(values), task))
    return f"{' / '.join(cells)}, {count_seeds(runs)}"


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
        if run.scores:
            rows = [[SCORES[name], short(value)] for name, value in run.scores.items()]
            section.tables.append(Table(["score, last epoch", "value"], rows))
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
