"""Runs several configs with several seeds, and compares their measures in one table.

    python -m cutmix_jax.sweep --configs configs/cifar.py:resnet110,baseline \\
        configs/cifar.py:resnet110,cutmix --seeds 3 --workdir runs/table6

A config may have overrides of its own, in quotes: 'configs/voc.py --config.init_from=runs/cutmix'.
"{seed}" in its `init_from` becomes the seed of the run.

Each run has its own folder in the workdir and is the run that `main.py` would train there.
Finished runs are skipped, and interrupted runs resume. `--worker 0/4` to `3/4` divide the runs
among four processes. Each has its own device (`CUDA_VISIBLE_DEVICES`), or runs on a machine that
mounts the workdir. After each run, its worker writes the table: `sweep.md` and `sweep.json`.
"""

import argparse
import gc
import pathlib
import re
import statistics
import sys

from absl import logging

from cutmix_jax import UserError
from cutmix_jax import config as config_lib
from cutmix_jax.command_line import Parser, fail, guard, read_config, run_name
from cutmix_jax.lock import sweep_lock
from cutmix_jax.paths import absolute, user_path, write_json, write_text

# The epochs that are compared: the end of their key in results.json, and their name in the table.
CHOICES = {"last": "last epoch", "held_out": "held-out choice", "best": "best on test"}
TABLE_NOTE = (
    "Mean ± sample standard deviation over the seeds. Gain: how much better than the baseline at "
    "the same seed, over the seeds that both have finished. 'Best on test' is chosen on the test "
    "split, as in the paper, and thus optimistic."
)


def parse(arguments):
    """The flags, and the overrides that apply to all configs."""
    parser = Parser(
        prog="python -m cutmix_jax.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="--config.KEY=VALUE overrides a key of every config.",
    )
    parser.add_argument("--configs", nargs="+", required=True, help="FILE:MODEL,METHOD of each")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds per config (3)")
    parser.add_argument("--seed_from", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--workdir", required=True, help="folder of all runs and of the table")
    parser.add_argument("--worker", default="0/1", help="I/N: worker I of N, counted from 0")
    parser.add_argument(
        "--baseline",
        help="the config to compare the others with; by default the one with the same file and "
        "model whose method is 'baseline'",
    )
    flags, overrides = parser.parse_known_args(arguments)
    unknown = [word for word in overrides if re.match("-", word) and "--config." not in word]
    if unknown:
        parser.error(f"{unknown[0]!r} is not a flag; write overrides as --config.KEY=VALUE")
    if any(re.match(r"--?config\.seed\b", word) for word in overrides):
        parser.error("set the seeds with --seeds and --seed_from, not with --config.seed")
    if flags.seeds < 1 or flags.seed_from < 0:
        parser.error("--seeds must be at least 1, and --seed_from at least 0")
    worker = re.fullmatch(r"(\d+)/(\d+)", flags.worker)
    if not worker or int(worker[1]) >= int(worker[2]):
        parser.error(f"--worker is {flags.worker!r}, but I/N with I from 0 to N-1 was expected")
    flags.worker = tuple(map(int, worker.groups()))
    return flags, overrides


def plan_runs(sources, seeds, overrides, workdir):
    """Every run of the sweep, seed by seed, to complete pairs early.

    Returns:
        A list of dictionaries with `source`, `seed`, `folder` and `config`.

    Raises:
        UserError: a config cannot be read, two of them are the same, or their measures differ.
    """
    from cutmix_jax.tasks import find_task

    configs, seen = {}, []
    for source in sources:
        name, *own = _words(source)
        configs[source] = read_config(name, [*own, *overrides])
        name, plain = _folder_name(source, 0), config_lib.to_plain(configs[source])
        for other, its_name, its_plain in seen:
            if name == its_name or plain == its_plain:
                raise UserError(
                    f"The configs {other!r} and {source!r} are the same run, or would share a "
                    "folder. Name each run once."
                )
        seen.append((source, name, plain))
    measures = {find_task(config.task).ranked_by: source for source, config in configs.items()}
    if len(measures) > 1:
        (one, first), (other, second), *_ = measures.items()
        raise UserError(
            f"A sweep compares one measure, but {first!r} is ranked by {one!r} and {second!r} by "
            f"{other!r}. Give them to two sweeps."
        )
    runs = []
    for seed in seeds:
        for source in sources:
            config = configs[source].copy_and_resolve_references()
            config.seed = seed
            if config.init_from:
                config.init_from = config.init_from.replace("{seed}", str(seed))
            folder = user_path(workdir, "--workdir") / _folder_name(source, seed)
            runs.append({"source": source, "seed": seed, "folder": folder, "config": config})
    return runs


def _words(source):
    """The config of a source, and its overrides."""
    return re.split(r"\s+(?=--?config\.)", source)


def _folder_name(source, seed):
    """The name of a run's folder. Of paths among its overrides, it has the last part."""
    config, *overrides = _words(source.replace("{seed}", str(seed)))
    named = {}
    for word in overrides:
        key, _, value = word.partition("=")
        named[key.partition(".")[2]] = pathlib.Path(value).name
    return run_name(config, seed, named)


def choose_baselines(sources, baseline=None):
    """The baseline of each config that has one.

    Raises:
        UserError: `baseline` is not one of the configs.

    Example:
        >>> choose_baselines(['a.py:resnet20,baseline', 'a.py:resnet20,cutmix', 'a.py:net,mixup'])
        {'a.py:resnet20,cutmix': 'a.py:resnet20,baseline'}
    """
    if baseline and baseline not in sources:
        raise UserError(
            f"--baseline is {baseline!r}, which is not one of the configs. Choose one of "
            f"{', '.join(sources)}."
        )
    found = {}
    for source in sources:
        plain = baseline or f"{source.partition(',')[0]},baseline"
        if plain in sources and plain != source:
            found[source] = plain
    return found


def finished_results(run):
    """The results of a run, if it is finished and has this config."""
    from cutmix_jax.run import read_json

    results = read_json(run["folder"] / "results.json")
    if not isinstance(results, dict) or "config" not in results:
        return None
    if config_lib.differences(config_lib.to_plain(run["config"]), results["config"]):
        return None
    return results


def summarize(runs, baselines):
    """Means and standard deviations over the finished runs.

    Args:
        runs: from `plan_runs`.
        baselines: from `choose_baselines`.

    Returns:
        ``{'configs': [...], 'unfinished': [folder, ...]}``. A config's entry has `config`,
        `params`, `seeds`, `baseline`. For each of `CHOICES` that its runs have, such as
        `top1_error_last`, it has `mean`, `deviation` (None for one seed), `values` by seed, and
        `gain` over the baseline, in the same form. Errors and mAP are fractions, not percent.
    """
    found = {(run["source"], run["seed"]): finished_results(run) for run in runs}
    unfinished = [str(r["folder"].name) for r in runs if not found[r["source"], r["seed"]]]
    return {"configs": compare(found, baselines, task_of(runs)), "unfinished": unfinished}


def task_of(runs):
    """The class of the task of the first run; the others have the same measure."""
    from cutmix_jax.tasks import find_task

    return find_task(runs[0]["config"].task)


def compare(found, baselines, task):
    """The entries of `summarize`, from results that are already loaded.

    Args:
        found: ``{(source, seed): results}``, with None for unfinished runs.
        baselines: from `choose_baselines`.
        task: a subclass of `tasks.Task`, whose measure is compared.
    """

    def gain(value, plain):
        return value - plain if task.higher_is_better else plain - value

    entries = []
    for source in dict.fromkeys(source for source, _ in found):
        done = {seed: r for (name, seed), r in found.items() if name == source and r}
        plain = {
            seed: r for (name, seed), r in found.items() if name == baselines.get(source) and r
        }
        entry = {
            "config": source,
            "params": next((r["params"] for r in done.values()), None),
            "seeds": sorted(done),
            "baseline": baselines.get(source),
        }
        for choice in CHOICES:
            key = f"{task.ranked_by}_{choice}"
            values = {seed: r[key] for seed, r in done.items() if key in r}
            gains = {s: gain(values[s], plain[s][key]) for s in values if key in plain.get(s, {})}
            if values:
                entry[key] = moments(values) | {"gain": moments(gains) if gains else None}
        entries.append(entry)
    return entries


def moments(values):
    """Mean and sample standard deviation of values by seed."""
    numbers = list(values.values())
    return {
        "mean": statistics.fmean(numbers),
        "deviation": statistics.stdev(numbers) if len(numbers) > 1 else None,
        "values": {str(seed): value for seed, value in sorted(values.items())},
    }


def table_cells(entries, task):
    """The head of the table and its rows, from the entries of `summarize`."""
    words = {f"{task.ranked_by}_{choice}": word for choice, word in CHOICES.items()}
    keys = [key for key in words if any(key in entry for entry in entries)]
    head = ["config", "seeds", *(word for key in keys for word in (words[key], "gain"))]
    rows = []
    for entry in entries:
        cells = [entry["config"], str(len(entry["seeds"]))]
        for key in keys:
            found = entry.get(key)
            cells += [shown(found, task), shown(found and found["gain"], task, counted=True)]
        rows.append(cells)
    return head, rows


def measure_in_words(task):
    """The measure of a task as the heading of a number.

    Example:
        >>> from cutmix_jax.tasks import find_task
        >>> measure_in_words(find_task('ssd')), measure_in_words(find_task('classification'))
        ('mAP in %', 'top-1 error in %')
        >>> measure_in_words(find_task('captioning'))
        'CIDEr'
    """
    return (task.measure_name or task.ranked_by) + " in %" * task.in_percent


def format_table(summary, task):
    """The summary as Markdown."""
    head, rows = table_cells(summary["configs"], task)
    lines = ["# Sweep", "", f"Compared: {measure_in_words(task)}. {TABLE_NOTE}", ""]
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(cells) + " |" for cells in rows]
    if summary["unfinished"]:
        lines += ["", "Not finished: " + ", ".join(summary["unfinished"]) + "."]
    return "\n".join(lines) + "\n"


def percent(found):
    """Formats the result of `moments` in percent."""
    return _shown(found, 100, ".2f", ".2f")


def shown(found, task, counted=False):
    """Formats the result of `moments` for a task's measure; `counted` adds the number of pairs."""
    if task.in_percent:
        text = percent(found)
    else:
        text = _shown(found, 1, ".4g", ".3g")
    return text + (f" ({len(found['values'])})" if found and counted else "")


def _shown(found, factor, *formats):
    if not found:
        return "–"
    pairs = zip((found["mean"], found["deviation"]), formats, strict=True)
    return " ± ".join(format(factor * number, how) for number, how in pairs if number is not None)


def write_table(runs, baselines, workdir):
    """Writes `sweep.md` and `sweep.json` from the finished runs, and returns the summary."""
    with sweep_lock(workdir):
        summary = summarize(runs, baselines)
        write_json(workdir / "sweep.json", summary)
        write_text(workdir / "sweep.md", format_table(summary, task_of(runs)))
    return summary


def train_all(runs, interruption, after_each):
    """Trains the unfinished runs, one after the other, in this process.

    A process per run would only add startup time. The compiled steps of a run are dropped when it
    ends, and the next run reuses its memory.

    Returns:
        A list of messages, one for each run that failed.
    """
    import jax

    from cutmix_jax import run as run_lib

    failures = []
    for number, run in enumerate(runs, 1):
        name = run["folder"].name
        if interruption.asked:
            break
        if finished_results(run):
            print(f"[{number}/{len(runs)}] {name}: finished before", flush=True)
            continue
        print(f"[{number}/{len(runs)}] {name}", flush=True)
        try:
            results = run_lib.train(run["config"], run["folder"])
        except UserError as error:  # the other runs may still work
            failures.append(f"{name}: {error}")
            print(f"error: {failures[-1]}", file=sys.stderr, flush=True)
            results = None
        else:
            if results is None:
                break
        jax.clear_caches()
        gc.collect()
        if results:
            after_each()
    return failures


def check_runs(runs):
    """Builds every config once, so mistakes show up now and not after days."""
    from cutmix_jax.tasks import create_task

    for source, run in {run["source"]: run for run in runs}.items():
        try:
            create_task(run["config"])
        except UserError as error:
            raise UserError(f"{source}: {error}") from error


def main(arguments):
    """Runs this worker's runs, prints the table, and returns the exit status."""
    flags, overrides = parse(arguments)
    sources, seeds = flags.configs, range(flags.seed_from, flags.seed_from + flags.seeds)
    workdir = absolute(user_path(flags.workdir, "--workdir"))
    try:
        runs = plan_runs(sources, seeds, overrides, workdir)
        baselines = choose_baselines(sources, flags.baseline)
    except UserError as error:
        fail(error, 2)
    with sweep_lock(workdir):  # shows now if it cannot be written
        pass

    from cutmix_jax import host
    from cutmix_jax.signals import Interruption

    host.set_up()
    index, workers = flags.worker
    mine = runs[index::workers]
    with Interruption() as interruption:
        check_runs([run for run in mine if not finished_results(run)])
        failures = train_all(mine, interruption, lambda: write_table(runs, baselines, workdir))
        summary = write_table(runs, baselines, workdir)
    print(
        f"\n{format_table(summary, task_of(runs))}\nWritten to {workdir / 'sweep.md'} and "
        "sweep.json.",
        flush=True,
    )
    if failures:
        raise UserError(
            f"{len(failures)} of {len(mine)} runs failed; see the errors above. Run the same "
            "command again to retry them; finished runs are skipped."
        )
    left = [run for run in mine if run["folder"].name in summary["unfinished"]]
    if left:
        print(
            f"Interrupted and saved; {len(left)} of {len(mine)} runs are left. Run the same "
            "command again to resume."
        )
    return 1 if left else 0


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    sys.exit(guard(main, sys.argv[1:]))
