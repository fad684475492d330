"""Convergence per cost: the test error against images seen and against seconds of training.

    python -m benchmarks.convergence runs/convergence --plot convergence.png

Reads any finished runs of `main.py` and compares those that differ only in method and seed. Seconds
are those of the train steps, without compilation, evaluation and start.
"""

import dataclasses
import statistics
import sys

from benchmarks import timing
from cutmix_jax import UserError
from cutmix_jax.command_line import guard
from cutmix_jax.paths import local_path
from cutmix_jax.report.runs import describe, group, read_runs

NO_RUNS = (
    "No run is given: train with `python -m cutmix_jax.sweep --configs "
    "configs/cifar10.py:resnet20,baseline configs/cifar10.py:resnet20,cutmix --workdir "
    "runs/convergence`, and name that folder."
)
BASELINE = "baseline"
STEP = 0.05  # between two thresholds
THRESHOLDS = 3  # the lowest of those that all reach


@dataclasses.dataclass(frozen=True)
class Curve:
    """How the error of one run fell, with one value per epoch in each list.

    Attributes:
        images: trained on up to the end of the epoch.
        seconds: of train steps up to then; empty if the run did not record its speed.
        errors: top-1 on the test split, between 0 and 1.
    """

    images: list
    seconds: list
    errors: list


def curve(run):
    """The `Curve` of a finished `cutmix_jax.report.runs.Run`."""
    images = [record["step"] * run.config["batch_size"] for record in run.measured]
    speeds = [record.get("images_per_second") for record in run.measured]
    seconds = [n / speed for n, speed in zip(images, speeds, strict=True)] if all(speeds) else []
    return Curve(images, seconds, [record["test_top1_error"] for record in run.measured])


def thresholds(curves):
    """The lowest multiples of `STEP` that every error starts above and falls below, descending.

    Example:
        >>> thresholds([Curve([1, 2], [], [0.71, 0.48]), Curve([1, 2], [], [0.64, 0.52])])
        [0.6, 0.55]
    """
    first = min(found.errors[0] for found in curves)
    least = max(min(found.errors) for found in curves)
    steps = [round(n * STEP, 2) for n in range(1, round(1 / STEP))]
    return [step for step in steps if least < step <= first][:THRESHOLDS][::-1]


def cost(found, amounts, threshold):
    """How much of `amounts` was spent when the error first fell below the threshold."""
    return next(n for n, error in zip(amounts, found.errors, strict=True) if error < threshold)


def compare(name, ours, theirs, note):
    """Yields the rows of a method against the baseline.

    Args:
        name: the method's name.
        ours: ``{seed: Curve}``.
        theirs: the baseline's curves, with the same seeds.
        note: what was trained.
    """
    curves = [*ours.values(), *theirs.values()]

    def row(what, unit, value, note=""):
        values = [[value(curves[seed]) for seed in ours] for curves in (ours, theirs)]
        ratios = [t / o for o, t in zip(*values, strict=True)]
        return timing.Row(f"{name}: {what}", unit, values[0], BASELINE, values[1], ratios, "", note)

    for threshold in thresholds(curves):
        what = f"until the error is below {threshold:.0%}"
        yield row(
            f"images {what}", "1000 images", lambda c, t=threshold: cost(c, c.images, t) / 1000
        )
        if all(found.seconds for found in curves):
            yield row(f"training {what}", "s", lambda c, t=threshold: cost(c, c.seconds, t))
    yield row("error of the last epoch", "%", lambda c: 100 * c.errors[-1], note)
    if all(found.seconds for found in curves):
        yield row("training in all", "s", lambda c: c.seconds[-1])


def rows_of(groups):
    """Yields the rows of ``[{name of the method: {seed: run}}]``."""
    for methods in groups:
        curves = curves_of(methods)
        one = next(iter(next(iter(methods.values())).values()))
        for name, found in curves.items():
            paired = [seed for seed in found if seed in curves.get(BASELINE, ())]
            device = f"{one.results['devices']} x {one.results['device_kind']}"
            note = f"{describe(one)}, {device}; seeds {', '.join(map(str, paired))}"
            if name != BASELINE and paired:
                ours, theirs = ({s: curves[key][s] for s in paired} for key in (name, BASELINE))
                yield from compare(name, ours, theirs, note)
            elif name != BASELINE or len(curves) == 1:
                missing = "no other method" if name == BASELINE else "no baseline of its seeds"
                last = [100 * found[seed].errors[-1] for seed in found]
                note = f"{describe(one)}, {device}; {missing} to compare with"
                yield timing.Row(f"{name}: error of the last epoch", "%", last, note=note)


def curves_of(methods):
    """The curve of each run."""
    return {
        name: {seed: curve(run) for seed, run in seeds.items() if run.history}
        for name, seeds in methods.items()
    }


def draw(groups, path):
    """Plots the error over images and over seconds. Each method is a line, its mean over seeds.

    Args:
        groups: ``[{name of the method: {seed: run}}]``, each a row of two panels.
        path: the PNG file.
    """
    from cutmix_jax.evals import figures
    from cutmix_jax.pictures import line_colors

    figure, axes = figures.new_figure(
        width=8, height=3.2 * len(groups), rows=len(groups), columns=2, dpi=90, squeeze=False
    )
    for methods, panels in zip(groups, axes, strict=True):
        curves = curves_of(methods)
        one = next(iter(next(iter(methods.values())).values()))
        panels[0].set_title(describe(one), fontsize=8, loc="left", parse_math=False)
        for color, (name, found) in zip(line_colors(len(curves)), curves.items(), strict=True):
            # Seeds are averaged per epoch, seconds like errors.
            errors = means(c.errors for c in found.values())
            seeds = f"{len(found)} seed" + "s" * (len(found) > 1)
            for axis, key in zip(panels, ("images", "seconds"), strict=True):
                amounts = means(getattr(c, key) for c in found.values())
                if amounts:
                    axis.plot(
                        amounts,
                        [100 * error for error in errors],
                        color=color,
                        label=f"{name}, {seeds}",
                        marker="." if len(amounts) < 5 else None,
                    )
        for axis, label in zip(panels, ("images seen", "seconds of training"), strict=True):
            axis.set_xlabel(label)
            axis.set_xlim(0, None)
            axis.set_ylabel("top-1 test error (%)")
            figures.plain(axis)
        panels[0].legend(frameon=False)
    figure.savefig(path)


def means(series):
    """Means over the series, up to the end of the shortest."""
    return [statistics.fmean(values) for values in zip(*series, strict=False)]


def main(arguments):
    """Prints and plots the runs that the command line names."""
    parser = timing.parser(__doc__)
    parser.add_argument("runs", nargs="*", help="workdirs, or folders of them")
    parser.add_argument("--plot", help="also plot the errors there")
    options = parser.parse_args(arguments)
    plot = options.plot and local_path(options.plot, "--plot")
    if not options.runs:
        raise UserError(NO_RUNS)
    groups = group(read_runs(options.runs))
    if not groups:
        raise UserError(
            f"No run in {', '.join(options.runs)} is finished: start its command again, or name "
            "another folder."
        )
    timing.run(rows_of(groups), options, "convergence")
    if plot:
        draw(groups, plot)


if __name__ == "__main__":
    guard(main, sys.argv[1:])
