"""The paper's figures from our runs, as PNG."""

import io
import statistics
from types import SimpleNamespace

from cutmix_jax import pictures
from cutmix_jax.evals import figures


def png(draw):
    """What `draw(file)` writes."""
    file = io.BytesIO()
    draw(file)
    return file.getvalue()


def errors(methods):
    """Figure 2: the test error over the epochs, the mean over the seeds that have each epoch."""
    histories = {}
    for name, seeds in methods.items():
        epochs = zip(*(run.history for run in seeds.values()), strict=False)
        histories[name] = [
            {
                key: statistics.fmean(record[key] for record in records)
                for key in ("epoch", "test_top1_error", "train_weighted_accuracy")
                if key in records[0]
            }
            for records in epochs
        ]
    histories = {name: records for name, records in histories.items() if records}
    return png(lambda file: pictures.draw_errors(histories, file)) if histories else None


def overlay(methods, evaluation, plots, where=lambda row: True):
    """Curves of one evaluation, a line for each method (its first seed that was evaluated).

    Args:
      methods: ``{name: {seed: run}}``.
      evaluation: its name.
      plots: a list of ``(title, x column, y column, label of x, condition on a row)``.
      where: further condition on a row.
    """
    asked = {}
    for name, seeds in methods.items():
        rows = next(
            (run.evals[evaluation]["rows"] for run in seeds.values() if evaluation in run.evals), ()
        )
        if rows:
            asked[name] = [row for row in rows if where(row)]
    if not asked:
        return None
    figure, axes = figures.new_figure(width=4.2 * len(plots), columns=len(plots), squeeze=False)
    colors = pictures.line_colors(len(asked))
    for axis, (title, x, y, label, condition) in zip(axes[0], plots, strict=True):
        for color, (name, rows) in zip(colors, asked.items(), strict=True):
            points = [(float(r[x]), 100 * float(r[y])) for r in rows if condition(r)]
            axis.plot(*zip(*points, strict=True), marker="o", ms=3, color=color, label=name)
        axis.set_title(title)
        axis.set_xlabel(label)
        axis.set_ylabel("top-1 error (%)")
        axis.set_ylim(0, None)
        figures.plain(axis)
    axes[0][0].legend(frameon=False, fontsize=8)
    return png(figure.savefig)


def every(row):
    """The condition that all rows meet."""
    return bool(row)


def form(name):
    """The condition that a row is of this form."""
    return lambda row: row["form"] == name


# Figures of the paper that are curves of an evaluation: what `overlay` takes.
CURVES = {
    "Figure 5a: occlusion": SimpleNamespace(
        name="occlusion",
        plots=[
            ("centre hidden", "side", "center_top1_error", "side of the square (px)", every),
            ("boundary hidden", "side", "boundary_top1_error", "side of what is left (px)", every),
        ],
    ),
    "Figure 5b: in-between images": SimpleNamespace(
        name="between",
        plots=[
            ("Mixup", "at", "error", "lambda", form("mixup")),
            ("CutMix", "at", "error", "side of the patch (px)", form("cutmix")),
        ],
    ),
    "FGSM over the size of the perturbation": SimpleNamespace(
        name="fgsm",
        plots=[
            (
                "FGSM",
                "eps_255",
                "top1_error",
                "eps (1/255)",
                lambda row: row["attack"] == "fgsm",
            )
        ],
    ),
}
