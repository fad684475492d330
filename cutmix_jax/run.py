"""One run in its workdir, from the config to the results: what `main.py` and the notebook call."""

import collections
import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import platform
import sys
from functools import partial

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from cutmix_jax import UserError, loggers
from cutmix_jax import config as config_lib
from cutmix_jax import train as train_lib
from cutmix_jax.checkpoint import Checkpoints, digest, read_weights
from cutmix_jax.host import start_in_background
from cutmix_jax.lock import workdir_lock
from cutmix_jax.paths import user_path, write_json, write_text
from cutmix_jax.profiler import Profiler
from cutmix_jax.reporter import Reporter
from cutmix_jax.signals import Interruption
from cutmix_jax.tasks import create_task

# Seconds for which processes wait for each other at the start; some may load data for minutes.
BARRIER = 600


def train(config, workdir, stream=None, profile=None):
    """Trains what `config` describes in `workdir`, or resumes where it was interrupted.

    Writes checkpoints, `metrics.jsonl`, the logs of `config.loggers`, `parameters.txt`, the plots
    of the task (`mixed.png` and `error.png` of a classifier), `vocabulary.json` of a captioner and,
    at the end, `results.json`.

    Args:
        config: from a file in `configs/`.
        workdir: path of a folder, local or gs://BUCKET/FOLDER; made if it is not there.
        stream: where progress is printed; standard output by default.
        profile: ``(start, count)``, to trace `count` steps after the first `start` into
            `WORKDIR/profile`; None traces nothing.

    Returns:
        The results, as in `results.json`, or None where the run was interrupted and saved.

    Raises:
        UserError: the config, the data, the workdir or a logger cannot be used, or the loss is not
            finite.
    """
    workdir = user_path(workdir, "The workdir")
    task = create_task(config)
    loggers.check_installed(config.loggers)
    described = describe_run(task)
    primary = jax.process_index() == 0
    profiler = None
    if profile and primary:
        profiler = Profiler(workdir / "profile", *profile)
        profiler.check(0, task.total_steps)
    with (
        Interruption() as interruption,
        hold_workdir(workdir, primary) as lock,
        Checkpoints(lock.folder) as checkpoints,
    ):
        folder = lock.folder
        programs = checkpoints.latest_step < task.total_steps and train_lib.compile_ahead(task)
        state, log, notes = open_run(task, checkpoints, described)
        step = int(state.step)
        reporter = Reporter(
            folder,
            epochs=config.epochs,
            epoch_steps=task.data.steps_per_epoch,
            batch_size=config.batch_size,
            step=step,
            history=log.history,
            primary=primary,
            stream=stream,
        )
        plotted = None
        try:
            for note in notes:
                reporter.say(note)
            if step == task.total_steps:
                reporter.say(
                    f"This run is finished. To train again, delete {str(folder)!r} or give another "
                    "--workdir."
                )
                results = read_json(folder / "results.json")
                if results:
                    reporter.say(describe_results(task, results, folder))
                    return results
            if task.word_heads and primary:
                write_json(folder / "vocabulary.json", task.data.class_names)
            arrays = task.mapping.replicate(task.data.arrays)
            if step < task.total_steps:
                if profiler:
                    profiler.check(step, task.total_steps)
                reporter.start_loggers(config)
                reporter.say(describe(task, state))
                programs = programs or train_lib.compile_ahead(task)
                if step == 0:
                    plotted = start_plotting(task, programs, state, arrays, folder)
            session = train_lib.Session(
                task=task,
                arrays=arrays,
                programs=programs,
                log=log,
                checkpoints=checkpoints,
                reporter=reporter,
                interruption=interruption,
                lock=lock,
                meta=described,
                profiler=profiler,
            )
            state = train_lib.fit(session, state)
            if plotted:
                plotted.result()
            if int(state.step) < task.total_steps:
                reporter.say(
                    f"Interrupted and saved at step {int(state.step)} of {task.total_steps}. Run "
                    "the same command again to resume."
                )
                return None
            results = summarize(task, state, log)
            if primary:
                write_json(folder / "results.json", results)
                task.plot_history(log.history, folder)
            reporter.say(describe_results(task, results, folder))
            return results
        finally:
            # After an error the picture is wanted too, but not waited for while the step compiles.
            if plotted and programs.done():
                concurrent.futures.wait([plotted])
            if profiler:
                profiler.close()
            reporter.close(failed=sys.exc_info()[0] is not None)


@contextlib.contextmanager
def hold_workdir(workdir, primary):
    """The lock of a workdir. With several processes, all of them end if the first is refused it.

    They wait for it at a barrier: a computation on all devices may give up after 30 s, and the lock
    of a dead run in a bucket takes longer.
    """
    barrier = ocp.multihost.get_barrier_sync_fn()  # of one process: does nothing
    refusal = None
    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context(workdir_lock(workdir, primary))
        except UserError as error:
            refusal = error
        barrier(key="workdir_lock", timeout_ms=1000 * BARRIER)
        if multihost_utils.broadcast_one_to_all(np.bool_(refusal is not None)):
            raise refusal or UserError(
                f"Process 0 cannot use the workdir {str(workdir)!r}. Its message says why."
            )
        yield lock


def evaluate(config, workdir, which="latest", stream=None, overrides=None, evals=None):
    """Measures a checkpoint of `workdir` on the test split (and the held-out one, if any).

    With `evals` it runs those instead, and writes ``evals/NAME.json`` with tables and figures.

    Args:
        config: the config the run was trained with; None takes it from the checkpoint.
        workdir: the run's folder, or one that `convert` wrote.
        which: 'latest' or 'best'.
        stream: where the result is printed; standard output by default.
        overrides: ``{'KEY': value}`` for the checkpoint's own config.
        evals: None, or names such as 'fgsm,ood', or 'all'.

    Returns:
        ``{'checkpoint': step, 'test_loss': ..., 'test_top1_error': ..., 'test_top5_error': ...}``,
        or ``{name: values}`` of `evals`.

    Raises:
        UserError: there is no intact checkpoint, it has another config, or an evaluation does not
            exist or apply.
    """
    names = ()
    if evals is not None:
        from cutmix_jax import evals as evals_lib  # its libraries take a second

        names = evals_lib.check_names(evals)
    workdir = user_path(workdir, "The workdir")
    missing = UserError(
        f"The workdir {str(workdir)!r} has no checkpoint. Train first (--mode train), or give "
        "another --workdir."
    )
    if not (workdir / "checkpoints").is_dir():
        raise missing
    with Checkpoints(workdir, read_only=True) as checkpoints:
        if config is None:
            config = config_lib.from_plain(checkpoints.read_meta(which)["config"])
            config.update_from_flattened_dict(overrides or {})
        task = create_task(config)
        # Converted weights are of no run, and any data may measure them.
        found = checkpoints.restore(
            partial(abstract_saved, task),
            which,
            lambda meta: "weights" in meta or check_same_run(task, meta, workdir),
        )
    if found is None:
        raise missing
    state, meta, notes = found
    step, weights = 0, state
    if "weights" not in meta:
        step, weights = int(state.step), state.evaluated()
    elif new := meta["weights"]["new"]:
        notes = [*notes, f"The {', '.join(new)} of these weights are as initialized, not trained."]
    primary = jax.process_index() == 0
    for note in notes if primary else ():
        print(note, file=sys.stderr)
    if names:
        subject = evals_lib.create_subject(task, weights, config.evals.split)
        every = "all" in evals.replace(" ", "").split(",")
        result = evals_lib.run_evals(subject, names, workdir, step, every)
    else:
        arrays = task.mapping.replicate(task.data.arrays)
        _, mapped_eval_step = train_lib.map_steps(task)
        means = train_lib.evaluate(task, mapped_eval_step, weights, arrays)
        result = {"checkpoint": step, **means}
    if primary:
        print(json.dumps(result, indent=2), file=stream, flush=True)
    return result


def open_run(task, checkpoints, described):
    """The state to start or resume from, replicated, with its log and notes to print.

    Args:
        task: a `tasks.Task`.
        checkpoints: of its workdir.
        described: from `describe_run`.

    Returns:
        ``(state, log, notes)``.
    """
    workdir = checkpoints.folder.parent
    found = checkpoints.restore(
        train_lib.abstract_state(task),
        check=lambda meta: check_same_run(task, meta, workdir, described["data"]),
    )
    if found is None:
        state, notes = train_lib.create_state(task), []
        if task.config.init_from:
            state, notes = initialize_from(task, state, task.config.init_from)
        return task.mapping.replicate(state), train_lib.Log(), notes
    state, meta, notes = found
    step = int(state.step)
    if notes:
        checkpoints.set_aside_after(step)
    if step < task.total_steps:
        notes = [*notes, f"Going on from step {step} of {task.total_steps}."]
        before = meta.get("reader", "TensorFlow, with other random crops")
        now = task.data.reader
        if before and now and before != now:  # None: resident
            notes.append(f"Images are now read by {now}. So far, they were read by {before}.")
    return state, train_lib.Log(**meta["progress"]), notes


def abstract_saved(task, saved):
    """Shapes and dtypes of what a checkpoint contains: the train state, or converted weights."""
    state = train_lib.abstract_state(task)
    if "opt_state" in saved:
        return state
    weights = {"params": state.params, "batch_stats": state.batch_stats}
    if unfit := find_unfit(saved, weights):
        raise UserError(
            f"The converted weights do not fit {task.config.model} with {task.data.num_classes} "
            f"classes ({', '.join(unfit[:3])} differ). Choose the data they were trained on, with "
            "--config.dataset and --config.data_dir, or convert them again with another --model."
        )
    return weights


flatten = partial(flax.traverse_util.flatten_dict, sep="/")


def find_unfit(given, wanted):
    """The names of arrays that are missing, superfluous or of another shape."""
    given, wanted = flatten(given), flatten(wanted)
    names = given.keys() | wanted.keys()
    missing = given.keys() ^ wanted.keys()
    return sorted(n for n in names if n in missing or np.shape(given[n]) != np.shape(wanted[n]))


def describe_run(task):
    """Config, data, class names and reader of a run, which every checkpoint keeps to compare."""
    # Reading all that is streamed would take as long as training on it.
    images = None if task.data.digest else digest(dict(task.data.arrays))
    return {
        "config": config_lib.to_plain(task.config),
        "data": describe_data(task) | {"images": images},
        "class_names": list(task.data.class_names),
        "reader": task.data.reader,
    }


def describe_data(task):
    """A dataset without its images: numbers of examples, and a digest of the class names."""
    names = hashlib.sha256("\n".join(task.data.class_names).encode()).hexdigest()
    return {"examples": dict(task.data.examples), "class_names": names}


def check_same_run(task, meta, workdir, data=None):
    """Refuses two different runs in one workdir, and names the first key that differs.

    With `data`, from `describe_run`, the images have to be the same too. An evaluation may use
    other images.
    """
    if "weights" in meta:
        raise UserError(
            f"The workdir {str(workdir)!r} contains weights converted from "
            f"{meta['weights']['file']}, not a run. Give this run another --workdir, and start it "
            f"from them with --config.init_from={workdir}."
        )
    known = {key: value for key, value in meta["data"].items() if key != "images"}
    for key, here, there in [
        *config_lib.differences(config_lib.to_plain(task.config), meta["config"]),
        *config_lib.differences({"data": describe_data(task)}, {"data": known}),
    ]:
        if key == "data.class_names":
            raise UserError(
                f"The workdir {str(workdir)!r} contains a run with other "
                f"{'words' if task.word_heads else 'classes'}"
                f"{_describe_other(meta.get('class_names'), task.data.class_names)}. Give this one "
                "another --workdir, or delete that one."
            )
        remedy = "or set the key as it was" if key in config_lib.SCHEMA else "or delete that one"
        raise UserError(
            f"The workdir {str(workdir)!r} contains a run with config.{key}={there!r}, but this "
            f"one has {here!r}. Give this one another --workdir, {remedy}."
        )
    images = meta["data"].get("images")  # of runs from before it was kept: None
    if data and images and data["images"] and images != data["images"]:
        raise UserError(
            f"The workdir {str(workdir)!r} contains a run on other images, with the same number "
            "and classes. Give this run another --workdir, or set config.data_dir as it was."
        )


def _describe_other(there, here):
    """How two lists of names differ, in words; nothing for a checkpoint that lacks them."""
    if there is None:
        return ""
    pairs = itertools.zip_longest(map(repr, there), map(repr, here), fillvalue="none")
    a, b = next((a, b) for a, b in pairs if a != b)
    return f" ({len(there)}, and {len(here)} here; the first that differs is {a}, and {b} here)"


def initialize_from(task, state, path):
    """Copies the weights of another run or of a file, except for a head that does not fit.

    The modules of `task.heads` may differ there, or be missing. Those of `task.left_out`, such as
    the head of the classifier that a detector starts from, may be superfluous. Those of
    `task.word_heads` do not fit weights for other words. With `config.new_head`, the head stays as
    initialized even if it fits.
    """
    found, meta, notes = read_start(path, task.config.model)
    start = {"params": state.params, "batch_stats": state.batch_stats}
    unfit = find_unfit(found["weights"], start)
    given, wanted = flatten(jax.device_get(found["weights"])), flatten(start)
    heads = [name for name in wanted if name.split("/")[1] in task.heads]
    known = meta.get("data", {}).get("class_names")
    same_words = known in (None, describe_data(task)["class_names"])
    strange = () if same_words else task.word_heads
    head = [name for name in heads if name in unfit or name.split("/")[1] in strange]
    gone = [name for name in unfit if name.split("/")[1] in task.left_out and name not in wanted]
    if other := sorted(set(unfit) - {*head, *gone}):
        raise UserError(
            f"config.init_from={path!r} does not fit config.model={task.config.model!r}: "
            f"{', '.join(other[:5])} differ. Set "
            "config.model to the network that was saved."
        )
    if task.config.new_head:
        head = sorted(heads)
    fitted = {name: wanted[name] if name in head else given[name] for name in wanted}
    weights = flax.traverse_util.unflatten_dict(fitted, sep="/")
    state = state.replace(**weights)
    if state.ema is not None:
        state = state.replace(ema=jax.tree.map(np.copy, weights))
    notes = [*notes, f"Starting from the weights of {path}."]
    if head:
        why = "is not used" if task.config.new_head else "does not fit"
        modules = sorted({name.split("/")[1] for name in head})
        notes.append(f"Its head {why} and starts from new weights: {', '.join(modules)}.")
    return state, notes


def read_start(path, model):
    """What `checkpoint.read_weights` returns, of a workdir or of a file of PyTorch weights.

    Args:
        path: of the workdir, or of a file that `convert.read_file` reads.
        model: the network that the file has to fit.
    """
    file = user_path(path, "config.init_from")
    if not file.is_file():
        return read_weights(path, name="config.init_from")
    from cutmix_jax.convert import from_torch, read_file  # no other run needs it

    converted = from_torch(read_file(file), model, file.name)
    return {"weights": converted.variables}, {}, list(converted.notes)


def start_plotting(task, programs, state, arrays, folder):
    """A future of the parameter table and the task's first pictures, after the step is compiled."""
    params = jax.device_get(state.params)  # the step takes over what is on the device

    def plot():
        programs.result()
        if jax.process_index() == 0:
            from clu import parameter_overview

            table = parameter_overview.get_parameter_overview(params)
            write_text(folder / "parameters.txt", table + "\n")
        task.plot_start(arrays["train"], folder)

    future = start_in_background(plot)
    if jax.process_count() > 1:  # all of them have to make their calls in the same order
        future.result()
    return future


def describe(task, state):
    """The config in words, the devices, the data and the parameters."""
    config, drop = task.config, task.config.drop_block
    threshold = config.bce_threshold
    targets = "" if threshold is None else f", targets above {threshold:g} count as 1"
    options = {
        "all weights random, because config.init_from is not set": config.new_head
        and not config.init_from,
        f"trained with a binary cross-entropy{targets}": config.loss == "bce",
        f"augmented by {config.augment.policy}": config.augment.policy != "none",
        f"random erasing of {config.augment.erasing:.0%} of the images": config.augment.erasing,
        f"warm-up of {config.warmup_epochs:g} epochs": config.warmup_epochs,
        f"label smoothing {config.label_smoothing:g}": config.label_smoothing,
        f"learning rate of the head x {config.head_lr_factor:g}": config.head_lr_factor != 1,
        f"gradients of {config.accumulate} parts a step": config.accumulate > 1,
        f"stochastic depth, the last block dropped with probability {config.stochastic_depth:g}, "
        "earlier ones less in proportion": config.stochastic_depth,
        f"ShakeDrop, the last block disturbed with probability {config.shake_drop:g}, earlier ones "
        "less in proportion": config.shake_drop,
        f"DropBlock, {drop.rate:g} of the maps of stages {', '.join(map(str, drop.stages))} in "
        f"squares of side {drop.size}{', growing from 0' * (drop.schedule == 'linear')}": drop.rate,
        f"batch statistics of {config.norm.groups} groups apart": config.norm.groups > 1,
        "blocks computed again for the gradient": config.remat,
        f"averaged weights (decay {config.ema:g} every "
        f"{f'{config.ema_every} steps' if config.ema_every > 1 else 'step'})": config.ema,
        "batch statistics over all devices": config.sync_batch_norm,
        config.dtype: config.dtype != "float32",
    }
    groups = collections.Counter()
    for name, tree in state.params.items():
        groups[name.split("_")[0]] += _count(tree)
    table = [("parameters", sum(groups.values())), *groups.items()]
    device = jax.devices()[0]
    return "\n".join(
        [
            *(f"{word:<10}{text}" for word, text in task.describe().items()),
            f"training  {config.epochs} epochs of {task.data.steps_per_epoch:,} steps, batch "
            f"{config.batch_size}, seed {config.seed}",
            f"          {task.describe_optimizer()}",
            *(f"          {option}" for option, there in options.items() if there),
            f"devices   {jax.device_count()} x {device.device_kind} in {jax.process_count()} "
            f"process{'es' * (jax.process_count() > 1)}, {task.mapping.kind}",
            *(f"{name:<12}{count:>14,}" for name, count in table),
        ]
    )


def summarize(task, state, log):
    """The results of a finished run, as they go into `results.json`."""
    return {
        "config": config_lib.to_plain(task.config),
        "params": _count(state.params),
        "epochs": task.config.epochs,
        "train_examples": task.data.examples["train"],
        **task.summarize(log.history),
        "images_per_second": log.history[-1].get("images_per_second"),
        "seconds": log.seconds,
        "devices": jax.device_count(),
        "device_kind": jax.devices()[0].device_kind,
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
    }


def describe_results(task, results, folder):
    """The results in words, and where the files are."""
    files = ", ".join(("results.json", *task.pictures))
    minutes = f"{results['seconds'] / 60:.1f} minutes; {files} in {folder}"
    return "\n".join([*task.describe_results(results), minutes])


def read_json(path):
    """What `write_json` wrote, or None."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
