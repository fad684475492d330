"""The evaluations of the paper, one file each."""

import csv
import hashlib
import io
import json
import sys
import time

import jax

from cutmix_jax import UserError, nearest
from cutmix_jax import config as config_lib
from cutmix_jax.checkpoint import digest
from cutmix_jax.evals import (
    between,
    cam,
    captions,
    classification,
    detection,
    fgsm,
    localization,
    occlusion,
    ood,
)
from cutmix_jax.evals.evaluation import Evaluation, Report
from cutmix_jax.evals.subject import Subject, create_subject
from cutmix_jax.paths import write_json, write_text
from cutmix_jax.pictures import save_figure

__all__ = [
    "EVALS",
    "Evaluation",
    "Report",
    "Subject",
    "check_names",
    "create_subject",
    "run_evals",
]

EVALS = {
    "classification": classification.EVALUATION,
    "cam": cam.EVALUATION,
    "localization": localization.EVALUATION,
    "fgsm": fgsm.EVALUATION,
    "occlusion": occlusion.EVALUATION,
    "between": between.EVALUATION,
    "ood": ood.EVALUATION,
    "detection": detection.EVALUATION,
    "captions": captions.EVALUATION,
}


def check_names(names):
    """The evaluations in a list such as 'fgsm,ood', or in 'all'.

    Raises:
        UserError: there is no evaluation of that name.
    """
    found = [name.strip() for name in names.split(",") if name.strip()]
    for name in found:
        if name not in EVALS and name != "all":
            raise UserError(
                f"There is no evaluation {name!r} ({nearest(name, EVALS)}): choose from "
                f"{', '.join(EVALS)}, or all."
            )
    if not found:
        raise UserError(f"--evals is empty: choose from {', '.join(EVALS)}, or all.")
    return list(EVALS) if "all" in found else list(dict.fromkeys(found))


def run_evals(subject, names, folder, checkpoint, every=False, stream=None):
    """Runs evaluations, or reads their earlier results, and writes ``evals/NAME.*``.

    Args:
        subject: a `Subject`.
        names: keys of `EVALS`.
        folder: the workdir, a `pathlib.Path`.
        checkpoint: the step of the weights.
        every: leave out evaluations that do not apply, and say so, instead of refusing.
        stream: where progress is printed; standard error by default.

    Returns:
        ``{name: values}``. The values include 'checkpoint', 'examples', 'seconds' and each
        'options.KEY'.

    Raises:
        UserError: an evaluation that was named does not apply.
    """
    stream = stream or sys.stderr
    primary = jax.process_index() == 0

    def say(text):
        if primary:
            print(text, file=stream, flush=True)

    reasons = {name: why_not(subject, name) for name in names}
    refused = [reason for reason in reasons.values() if reason]
    if refused and not every:
        raise UserError(refused[0][0].upper() + refused[0][1:])
    measured = {
        "weights": digest(jax.device_get(subject.weights)),
        "images": images_digest(subject),
        "class_names": list(subject.task.data.class_names),
    }
    results = {}
    for name in names:
        if reasons[name]:
            say(f"{name} is left out: {reasons[name]}")
            continue
        options = subject.task.config.evals[name].copy_and_resolve_references()
        if name == "ood":
            options.skip_missing = every
        inputs, inputs_digest = EVALS[name].find(subject, options)
        key = fingerprint(subject, name, {**measured, "inputs": inputs_digest})
        known = read_values(folder, name, key)
        if known is not None:
            say(f"{name}: as measured before (delete {folder / 'evals' / name}.json to repeat it)")
            results[name] = known
            continue
        say(f"{name}: {subject.examples:,} images ...")
        began = time.monotonic()
        report = EVALS[name].run(subject, options, *inputs)
        for sentence in report.left_out:
            say(f"{name} leaves out {sentence}")
        values = {
            "checkpoint": checkpoint,
            "examples": subject.examples,
            "seconds": round(time.monotonic() - began, 1),
            **report.values,
            "split": subject.split,
            **option_values(subject, name),
            "digest": None if report.again else key,
        }
        if report.left_out:
            values["left_out"] = " ".join(report.left_out)
        if primary:
            write_report(folder, name, values, report)
        say(f"{name}: {values['seconds']:.0f} s")
        results[name] = values
    if not results:
        raise UserError("None of the evaluations applies to this network and its dataset.")
    return results


def why_not(subject, name):
    """None, or a sentence that says why an evaluation does not apply to a network."""
    task = EVALS[name].task
    if not isinstance(subject.task, task):
        return (
            f"{name} is for tasks of the class {task.__name__}, and config.task is "
            f"{subject.task.config.task!r}: choose another evaluation."
        )
    return EVALS[name].why_not(subject)


def images_digest(subject):
    """A string that changes if an image or a label of the split does."""
    data = subject.task.data
    return data.digest(subject.split) if data.digest else digest(data.arrays[subject.split])


def fingerprint(subject, name, measured):
    """A digest of everything that the results of an evaluation depend on.

    Args:
        subject: a `Subject`.
        name: a key of `EVALS`.
        measured: ``{name: digest}`` of weights, images and further inputs of the evaluation.
    """
    config = config_lib.to_plain(subject.task.config)
    inputs = {
        **measured,
        "version": EVALS[name].version,
        "split": subject.split,
        "examples": subject.examples,
        "options": option_values(subject, name),
        # Only what differs from the defaults, so that a new key does not repeat old evaluations.
        "config": config_lib.differences(config, config_lib.to_plain(config_lib.base_config())),
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def option_values(subject, name):
    """The options of an evaluation as ``{'options.KEY': value}``, tuples as on a command line."""
    return {
        f"options.{key}": str(value) if isinstance(value, tuple) else value
        for key, value in subject.task.config.evals[name].to_dict().items()
    }


def read_values(folder, name, key):
    """Earlier results, if weights, images and options are the same."""
    try:
        values = json.loads((folder / "evals" / f"{name}.json").read_text())
    except (OSError, ValueError):
        return None
    return values if values.get("digest") == key else None


def write_report(folder, name, values, report):
    """Writes tables and figures. The values come last: their file says that all are there."""
    written_to = folder / "evals"
    written_to.mkdir(parents=True, exist_ok=True)
    (written_to / f"{name}.json").unlink(missing_ok=True)
    for file, rows in {f"{name}.csv": report.rows, **report.tables}.items():
        text = io.StringIO()
        table = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_text(written_to / file, text.getvalue())
    for file, text in report.texts.items():
        write_text(written_to / file, text)
    for file, figure in report.figures.items():
        save_figure(figure, written_to / file)
    write_json(written_to / f"{name}.json", values)
