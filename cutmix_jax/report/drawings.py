"""The paper's figures from our runs, as PNG."""

import io
import statistics
from types import SimpleNamespace

from cutmix_jax import pictures, sweep
from cutmix_jax.evals import figures
from cutmix_jax.mix.named import LAYERS, parameters_of
from cutmix_jax.report.runs import (
    conditions,
    details,
    method,
    own_words,
    table_cell,
    to_number,
    with_conditions,
)


def png(draw):
    """The bytes that `draw(file)` writes."""
    file = io.BytesIO()
    draw(file)
    return file.getvalue()


def errors(methods):
    """Figure 2: the test error over the epochs, the mean over the seeds that have each epoch."""
    histories = mean_histories(methods, ("epoch", "test_top1_error", "train_weighted_accuracy"))
    return png(lambda file: pictures.draw_errors(histories, file)) if histories else None


def measure(methods, task):
    """The test measure of a task over the epochs, the mean over the seeds that have each epoch."""
    key = f"test_{task.ranked_by}"
    histories = mean_histories(methods, ("epoch", key))
    if not histories:
        return None
    figure, axis = figures.new_figure(width=6.4, height=4)
    colors = pictures.line_colors(len(histories))
    factor = 100 if task.in_percent else 1
    for color, (name, records) in zip(colors, histories.items(), strict=True):
        epochs = [record["epoch"] for record in records]
        values = [factor * record[key] for record in records]
        axis.plot(epochs, values, marker="o", ms=3, color=color, label=name)
    axis.set_xlabel("epoch")
    axis.set_ylabel(sweep.measure_in_words(task))
    axis.legend(frameon=False, fontsize=8)
    figures.plain(axis)
    return png(figure.savefig)


def mean_histories(methods, keys):
    """``{method: records}``: means over the seeds that have each epoch; without empty ones."""
    histories = {}
    for name, seeds in methods.items():
        epochs = zip(*(run.measured for run in seeds.values()), strict=False)
        histories[name] = [
            {key: statistics.fmean(record[key] for record in records) for key in keys}
            for records in epochs
        ]
    return {name: records for name, records in histories.items() if records}


def overlay(methods, evaluation, plots):
    """Curves of one evaluation, one line per method (its first seed that was evaluated).

    Legends name options that differ.

    Args:
        methods: ``{name: {seed: run}}``.
        evaluation: its name.
        plots: a list of ``(title, x column, y column, x label, {column: value} of its rows)``.
    """
    evaluated, words = {}, {}
    for name, seeds in methods.items():
        run = next((run for run in seeds.values() if evaluation in run.evals), None)
        if run and run.evals[evaluation]["rows"]:
            evaluated[name] = run
            words[name] = conditions(run, evaluation)
    if not evaluated:
        return None
    figure, axes = figures.new_figure(width=4.2 * len(plots), columns=len(plots), squeeze=False)
    colors = pictures.line_colors(len(evaluated))
    for axis, (title, x, y, xlabel, where) in zip(axes[0], plots, strict=True):
        for color, (name, run) in zip(colors, evaluated.items(), strict=True):
            points = table_points(run, evaluation, x, y, where)
            label = with_conditions(name, words[name], words.values())
            axis.plot(*zip(*points, strict=True), marker="o", ms=3, color=color, label=label)
        axis.set_title(title)
        axis.set_xlabel(xlabel)
        axis.set_ylabel("top-1 error (%)")
        axis.set_ylim(0, None)
        figures.plain(axis)
    axes[0][0].legend(frameon=False, fontsize=8)
    return png(figure.savefig)


def table_points(run, evaluation, x, y, where):
    """``[(x, y in %)]`` of the rows of an evaluation's table that have the values `where`."""
    path = run.folder / "evals" / f"{evaluation}.csv"
    points = []
    for row in run.evals[evaluation]["rows"]:
        cells = {key: table_cell(run, evaluation, row, key) for key in (x, y, *where)}
        if where.items() <= cells.items():
            points.append((to_number(path, x, cells[x]), 100 * to_number(path, y, cells[y])))
    return points


def over_parameter(methods, curve):
    """Figure 3: the last epoch's error over one parameter of CutMix, and the baseline's.

    Means over the seeds, with the sample deviation.

    Args:
        methods: ``{name: {seed: run}}``.
        curve: one of `PARAMETERS`.
    """
    lines = parameter_lines(methods, curve)
    if not lines:
        return None
    figure, axis = figures.new_figure(width=4.8, height=3.6)
    for color, (rest, points) in zip(pictures.line_colors(len(lines)), lines.items(), strict=True):
        means = [statistics.fmean(errors) for errors in points.values()]
        spread = [statistics.stdev(e) if len(e) > 1 else 0 for e in points.values()]
        own = own_words(rest, lines)
        label = f"CutMix ({own})" if own else "CutMix"
        axis.errorbar(
            list(points), means, spread, marker="o", ms=4, capsize=2, color=color, label=label
        )
    if "baseline" in methods:
        level = statistics.fmean(last_errors(methods["baseline"]))
        axis.axhline(level, color="0.35", linestyle="--", label="baseline")
    ticks = sorted(set().union(*lines.values()))
    axis.set_xscale(curve.scale)
    axis.set_xticks(ticks, [curve.tick(value) for value in ticks])
    axis.minorticks_off()
    axis.set_xlabel(curve.label)
    axis.set_ylabel("top-1 error, last epoch (%)")
    axis.legend(frameon=False, fontsize=8)
    figures.plain(axis)
    return png(figure.savefig)


def parameter_lines(methods, curve):
    """The points of `over_parameter`: one line for runs that share the rest of their mix.

    Returns:
        ``{the rest in words: {value: [error of each seed in %]}}``, by rising value. Lines with a
        single value are left out.
    """
    lines = {}
    for seeds in methods.values():
        config = next(iter(seeds.values())).config
        value = curve.read(config)
        if value is not None:
            rest = tuple(word for word in details(config) if not word.startswith(curve.key))
            lines.setdefault(rest, {}).setdefault(value, []).extend(last_errors(seeds))
    return {rest: dict(sorted(line.items())) for rest, line in lines.items() if len(line) > 1}


def last_errors(seeds):
    """Top-1 errors in %, one for each seed."""
    return [100 * run.results["top1_error_last"] for run in seeds.values()]


def alpha_of(config):
    """The alpha of a flat config whose method is CutMix; None for other methods."""
    if method(config) == "cutmix":
        return float(config.get("mix.alpha", parameters_of("cutmix")["alpha"]))
    return None


def layer_of(config):
    """The index of the one layer that CutMix mixes, or None for several layers or other methods.

    Example:
        >>> layer_of({'mix.name': 'feature_cutmix', 'mix.layers': [2]})
        2
        >>> layer_of({'mix.name': 'cutmix'})
        0
    """
    name = method(config)
    if name not in ("cutmix", "feature_cutmix"):
        return None
    layers = config.get("mix.layers", parameters_of(name)["layers"])
    if len(layers) != 1:
        return None
    return LAYERS.index(layers[0]) if layers[0] in LAYERS else layers[0]


# Figures of the paper that plot an evaluation: arguments of `overlay`.
CURVES = {
    "Figure 5a: occlusion": SimpleNamespace(
        name="occlusion",
        plots=[
            ("center occluded", "side", "center_top1_error", "side of the square (px)", {}),
            (
                "boundary occluded",
                "side",
                "boundary_top1_error",
                "side of the visible square (px)",
                {},
            ),
        ],
    ),
    "Figure 5b: in-between images": SimpleNamespace(
        name="between",
        plots=[
            ("Mixup", "at", "error", "lambda", {"form": "mixup"}),
            ("CutMix", "at", "error", "side of the patch (px)", {"form": "cutmix"}),
        ],
    ),
    "FGSM over the size of the perturbation": SimpleNamespace(
        name="fgsm",
        plots=[("FGSM", "eps_255", "top1_error", "eps (1/255)", {"attack": "fgsm"})],
    ),
}

# Figures over a parameter of CutMix, by the name of the paper's rows: arguments of
# `over_parameter`, and the runs that they need.
PARAMETERS = {
    "figure-3-left": SimpleNamespace(
        name="alpha",
        key="alpha=",
        read=alpha_of,
        scale="log",
        tick="{:g}".format,
        label="alpha",
        needs="CutMix with two or more alphas, such as cutmix_alpha0.5 and cutmix_alpha2",
    ),
    "figure-3-right": SimpleNamespace(
        name="layer",
        key="layers=",
        read=layer_of,
        scale="linear",
        tick=lambda layer: f"{layer}\n{LAYERS[layer]}",
        label="layer at which Feature CutMix is fixed",
        needs="Feature CutMix at two or more fixed layers, such as feature_cutmix_layer0 and "
        "feature_cutmix_layer4",
    ),
}
