"""Reads workdirs: results, curves, evaluations. Groups runs that can be compared."""

import csv
import dataclasses
import functools
import io
import json
import math
import pathlib
from numbers import Real

from cutmix_jax import UserError
from cutmix_jax.checkpoint import Checkpoints
from cutmix_jax.config import base_config, flatten, is_free, to_plain
from cutmix_jax.paths import files_below, resolved, user_path
from cutmix_jax.tasks import find_task
from cutmix_jax.tasks.captioning import SCORES, Captioning

# The keys of the method. Runs that differ only in these and in their seed are compared.
REGULARIZERS = {
    "stochastic_depth": "stochastic_depth",
    "shake_drop": "shake_drop",
    "drop_block.rate": "drop_block",
    "label_smoothing": "label_smoothing",
}
# What is read from every finished run, besides the measure of its task. Some may be missing.
RESULT_KEYS = {
    "config.seed": Real,
    "config.model": str,
    "config.dataset": str,
    "config.batch_size": Real,
    "config.mix.name": str,
    "params": Real,
    "epochs": Real,
    "train_examples": Real,
}
OPTIONAL_KEYS = {
    "config.task": str,
    "config.init_from": str | None,
    "config.mix.alpha": Real,
    "config.mix.layers": list,
}
WORDS = {Real: "number", str: "text", str | None: "text", list: "list"}
FROM_NOTHING = "from nothing"  # instead of a method, for a detector or captioner
METHOD_SECTIONS = ("mix", "stochastic_depth", "shake_drop", "drop_block", "label_smoothing")


@dataclasses.dataclass(frozen=True)
class Run:
    """A workdir. `results` is None if the run is unfinished or holds converted weights.

    `backbone` has the results of the classifier that a detector or captioner started from, or as
    much of them as is known; None for other runs.
    """

    folder: pathlib.Path
    results: dict | None
    history: list
    evals: dict  # {name: {'values': {...}, 'rows': [...]}}
    backbone: dict | None = None

    @functools.cached_property
    def config(self):
        """Its config as {dotted key: value}, with the defaults of newer keys; empty if unknown."""
        return flat_config(self.results)

    @functools.cached_property
    def task(self):
        """The class of its task."""
        return find_task(self.config.get("task", "classification"))

    @functools.cached_property
    def mixed(self):
        """The flat config that has its method: its own, or that of its backbone."""
        return self.config if self.task.uses_mix else flat_config(self.backbone)

    @property
    def method(self):
        """Its method, as in MODEL,METHOD. A detector or captioner has that of its backbone."""
        start = self.config.get("init_from")
        if self.task.uses_mix or self.mixed:
            return method(self.mixed)
        return f"weights of {pathlib.Path(start).name}" if start else FROM_NOTHING

    @property
    def scores(self):
        """The scores of a captioner after its last epoch; {} for other runs.

        METEOR, if it is missing, is that of the evaluation, if this measured the same captions.
        """
        if not self.results or not is_captioner(self.task):
            return {}
        found = dict(self.results["scores_last"])
        evaluated = self.evals.get("captions", {}).get("values", {})
        if {"meteor", "cider"} <= evaluated.keys() and evaluated.get("split") == "test":
            cider, meteor = (
                to_number(self.folder / "evals/captions.json", name, evaluated[name])
                for name in ("cider", "meteor")
            )
            if math.isclose(cider, found["cider"], abs_tol=0.01):
                found.setdefault("meteor", meteor)
        return found

    @property
    def measured(self):
        """The records of the epochs that were evaluated."""
        return [record for record in self.history if f"test_{self.task.ranked_by}" in record]

    @property
    def state(self):
        """Whether it is finished, in words."""
        if self.results:
            return "finished"
        if self.history:
            return f"unfinished, {self.history[-1]['epoch']} epochs done"
        return "converted weights"

    def pictures(self):
        """The PNG files of its workdir and its evaluations."""
        return sorted(self.folder.glob("*.png")) + sorted(self.folder.glob("evals/*.png"))


def read_runs(paths):
    """Reads the runs in folders.

    Args:
        paths: workdirs, or folders that contain workdirs.

    Raises:
        UserError: one of them contains no run, or a file of a run cannot be read.
    """
    found = {}
    for path in (user_path(path, "RUNS") for path in paths):
        if not path.is_dir():
            raise UserError(f"{str(path)!r} is not a folder: give workdirs, or folders of them.")
        folders = {resolved(folder) for folder in find_workdirs(path)}
        if not folders:
            raise UserError(
                f"{str(path)!r} contains no run: give a workdir of main.py, or a folder of such "
                "workdirs."
            )
        found |= dict.fromkeys(sorted(folders))
    return [read_run(folder) for folder in found]


def find_workdirs(folder):
    """Yields a workdir in or below `folder` for each of its files that tell of a run."""
    for file in files_below(folder):
        if file.parent.name == "evals" and file.suffix == ".json":
            yield file.parent.parent
        elif file.name in ("results.json", "metrics.jsonl"):
            yield file.parent


def read_run(folder):
    """Reads one workdir.

    Raises:
        UserError: a file cannot be read, or the run's task does not exist here.
    """
    results, lines = folder / "results.json", folder / "metrics.jsonl"
    found, backbone, measures, optional = None, None, {}, {}
    if results.is_file():
        found = parse(results, results.read_bytes(), optional=OPTIONAL_KEYS)
        task = task_of(found, folder)
        key = task.ranked_by
        required = RESULT_KEYS | {f"{key}_last": Real, f"{key}_best": Real}
        if is_captioner(task):
            required |= {f"scores_last.{name}": Real for name in SCORES if name != "meteor"}
        check(results, found, required, {f"{key}_held_out": Real, "scores_last.meteor": Real})
        optional = {f"test_{key}": Real}
        measures = {"train_weighted_accuracy": Real} if is_classifier(task) else {}
        start = found["config"].get("init_from")
        if start and not task.uses_mix:
            backbone = read_backbone(start)
    evals = {}
    for path in sorted(folder.glob("evals/*.json")):
        values = parse(path, path.read_bytes())
        evals[path.stem] = {"values": values, "rows": read_rows(path.with_suffix(".csv"))}
    return Run(
        folder=folder,
        results=found,
        history=[
            parse(lines, line, {"epoch": Real} | measures, optional)
            for line in lines.read_bytes().splitlines()
            if line
        ]
        if lines.is_file()
        else [],
        evals=evals,
        backbone=backbone,
    )


def is_classifier(task):
    """Whether a task has the measures that the paper's figures plot."""
    return task.ranked_by == "top1_error"


def is_captioner(task):
    """Whether the results of a task have the scores of captions."""
    return issubclass(task, Captioning)


def task_of(results, folder):
    """The class of a run's task, from its results."""
    name = flatten(results).get("config.task", "classification")
    try:
        return find_task(name)
    except UserError as error:
        raise UserError(
            f"The run in {str(folder)!r} has config.task={name!r}, which cannot be imported. Leave "
            "it out, or put the folder of its module into PYTHONPATH."
        ) from error


def read_backbone(path):
    """The results of the classifier in a workdir, or its config alone; {} if neither is there.

    Converted weights have no method, so their config is not returned.
    """
    folder = user_path(path, "config.init_from")
    results = folder / "results.json"
    if results.is_file():
        return parse(results, results.read_bytes(), {"config.mix.name": str})
    if not (folder / "checkpoints").is_dir():
        return {}
    with Checkpoints(folder, read_only=True) as checkpoints:
        meta = checkpoints.read_meta()
    return {} if "weights" in meta else {"config": meta["config"]}


def flat_config(results):
    """The config of results as {dotted key: value}, with the defaults of newer keys; or {}."""
    if not results:
        return {}
    return flatten(to_plain(base_config())) | flatten(results["config"])


def read_rows(path):
    """The rows of an evaluation's table; none if the file does not exist."""
    if not path.is_file():
        return []
    try:
        text = path.read_bytes().decode()
        return list(csv.DictReader(io.StringIO(text, newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise damaged(path, f"is not a table ({error})") from error


def parse(path, text, keys=None, optional=None):
    """A JSON object with these dotted keys, or an error that names the file.

    Args:
        path: of the file.
        text: of the file.
        keys: ``{key: type of its value}``.
        optional: the same of keys that may be missing.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise damaged(path, f"is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise damaged(path, "is not a JSON object")
    check(path, value, keys or {}, optional or {})
    return value


def check(path, value, keys, optional):
    """Refuses an object of a file without these dotted keys; arguments as for `parse`."""
    flat = flatten(value)
    for key, kind in (keys | optional).items():
        if key in flat and not isinstance(flat[key], kind):
            raise damaged(path, f"has {flat[key]!r} for {key!r}, which is not a {WORDS[kind]}")
        if key not in flat and key in keys:
            raise damaged(path, f"lacks {key!r}, which main.py writes")


def table_cell(run, evaluation, row, column):
    """A row's value in a column, or an error that names the damaged file."""
    if row.get(column) is None:
        path = run.folder / "evals" / f"{evaluation}.csv"
        raise damaged(path, f"has a row without {column!r}, which evaluations write")
    return row[column]


def to_number(path, name, value):
    """A float, or an error that names the file."""
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise damaged(path, f"has {value!r} for {name!r}, which is not a number") from error


def damaged(path, what):
    """The error for a file that the report cannot use."""
    return UserError(f"{str(path)!r} {what}: remove it, or leave its run out.")


def method(config):
    """The method of a flat config, as in MODEL,METHOD.

    Example:
        >>> method({'mix.name': 'cutmix', 'shake_drop': 0.5})
        'cutmix+shake_drop'
        >>> method({'mix.name': 'none'})
        'baseline'
    """
    words = [name for name in [config.get("mix.name", "none")] if name != "none"]
    words += [word for key, word in REGULARIZERS.items() if config.get(key)]
    return "+".join(words) or "baseline"


def mixes_alike(config, other):
    """Whether two flat configs have the same method and the same mix.

    Probabilities and rates are not compared, since they depend on the network.
    """
    ours, theirs = (
        {k: v for k, v in flat.items() if k.startswith("mix.") and not k.endswith("prob")}
        for flat in (config, other)
    )
    return method(config) == method(other) and ours == theirs


def regime(config):
    """Everything in a flat config but method and seed, to compare by.

    The method of a detector or captioner is that of the classifier in `init_from`.
    """
    task = find_task(config.get("task", "classification"))
    own = METHOD_SECTIONS if task.uses_mix else ("init_from",)
    left_out = (*own, "seed")
    return tuple(
        (key, str(value))
        for key, value in sorted(config.items())
        if not is_free(key) and key.split(".")[0] not in left_out
    )


def details(config):
    """The method's own parameters, in words."""
    return tuple(
        f"{key.removeprefix('mix.')}={value}"
        for key, value in sorted(config.items())
        if key.split(".")[0] in METHOD_SECTIONS
        and key != "mix.name"
        and value not in (None, 0, 0.0)
    )


def full_method(config, variants):
    """The method of a flat config, with the details that not all variants share.

    Args:
        config: one of the variants.
        variants: the details of all variants of this method.
    """
    own = own_words(details(config), variants)
    return f"{method(config)} ({own})" if own else method(config)


def own_words(words, variants):
    """The words that not all variants share, joined.

    Example:
        >>> own_words(('clip=True', 'seed=1'), [('clip=True', 'seed=1'), ('clip=True', 'seed=2')])
        'seed=1'
    """
    shared = set.intersection(*map(set, variants))
    return ", ".join(word for word in words if word not in shared)


def conditions(run, evaluation):
    """The conditions of an evaluation in words: its options and its split.

    Only datasets that were measured are listed. Older files do not have the options.
    """
    values = run.evals[evaluation]["values"]
    known = {
        key.removeprefix("options."): value
        for key, value in values.items()
        if key.startswith("options.")
    }
    words = () if known else ("unknown options",)
    known |= {key: values[key] for key in ("split", "sets") if key in values}
    return words + tuple(f"{key}={value}" for key, value in sorted(known.items()))


def with_conditions(name, words, variants):
    """A name, with those of its `conditions` that not all variants share.

    Example:
        >>> with_conditions('cutmix', ('clip=True',), [('clip=True',), ('clip=False',)])
        'cutmix, evaluated with clip=True'
    """
    own = own_words(words, variants)
    return f"{name}, evaluated with {own}" if own else name


def group(runs):
    """Groups the finished runs that can be compared.

    Returns:
        A list of ``{name of the method: {seed: run}}``. Methods that differ only in parameters have
        the parameters in their names. So have detectors and captioners whose classifiers were
        trained differently. Those with one seed and several classifiers have the folder of the
        classifier.
    """
    groups = {}
    for run in runs:
        if run.results and run.config:
            images = run.results["train_examples"]  # a copy of a dataset may have fewer
            groups.setdefault((images, regime(run.config)), []).append(run)
    named = []
    for members in groups.values():
        methods = {}
        for run, name in zip(members, names_of(members), strict=True):
            methods.setdefault(name, {}).setdefault(run.config["seed"], run)
        order = sorted(methods, key=lambda name: (name != "baseline", name))
        named.append({name: methods[name] for name in order})
    return named


def names_of(runs):
    """The methods of runs that can be compared, each with what sets it apart from the others."""
    trainings = {training_of(run) for run in runs if run.backbone}
    variants, starts = {}, {}
    for run in runs:
        variants.setdefault(run.method, set()).add(details(run.mixed))
    names = []
    for run in runs:
        words = [own_words(details(run.mixed), variants[run.method])]
        words += [own_words(training_of(run), trainings)] if run.backbone else []
        words = ", ".join(filter(None, words))
        names.append(f"{run.method} ({words})" if words else run.method)
        start = None if run.task.uses_mix else run.config["init_from"]
        starts.setdefault((names[-1], run.config["seed"]), set()).add(start)
    several = {name for (name, _), found in starts.items() if len(found) > 1}
    return [
        f"{name}, {pathlib.Path(run.config['init_from']).name}" if name in several else name
        for run, name in zip(runs, names, strict=True)
    ]


def training_of(run):
    """How the classifier was trained that a run started from, in words; else ()."""
    if not run.backbone:
        return ()
    return tuple(f"classifier's {key}={value}" for key, value in regime(run.mixed))


def describe(run):
    """Network, data and length of a run, which belong next to every number."""
    if not run.config:
        return run.state
    config, results = run.config, run.results
    side = f", {config['image_size']} px" if config.get("image_size") else ""
    network = config["model"] if run.task.uses_mix else f"{config['task']} on {config['model']}"
    unit = "captions" if is_captioner(run.task) else "images"
    return (
        f"{network}, {config['dataset']} ({results['train_examples']:,} training {unit}"
        f"{side}), {results['epochs']} epochs, batch {config['batch_size']}"
    )
