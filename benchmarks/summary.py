"""The results of several benchmarks, on one page and in one plot."""

import dataclasses
import re
import statistics

from benchmarks import timing

MET, MISSED, PLAIN = "#1b7f4d", "#d62728", "#1f77b4"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of one benchmark.

    Attributes:
        benchmark: its name.
        command: the command that runs it alone.
        seconds: how long it took.
        machine: where it ran; empty if it did not finish.
        rows: `timing.Row`s; if it did not finish, one row that says why.
        failed: whether it started and did not finish.
    """

    benchmark: str
    command: str
    seconds: float
    machine: str
    rows: list
    failed: bool = False


def clock(seconds):
    """725 seconds as '12:05'."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def page(outcomes):
    """The outcomes in Markdown: the times, then a table per benchmark."""
    total = clock(sum(outcome.seconds for outcome in outcomes))
    lines = ["# Benchmarks", "", f"In {total} min in all. {LEGEND}"]
    for outcome in outcomes:
        line = f"`{outcome.command}`: {clock(outcome.seconds)} min"
        line += f", on {outcome.machine}" if outcome.machine else ""
        lines += ["", f"## {outcome.benchmark}", "", line, "", timing.table(outcome.rows)]
    return "\n".join(lines) + "\n"


LEGEND = (
    "Medians of the repeats, with the least and the most in brackets. A ratio is the peer's value "
    "over ours where less is better, so above 1 ours is better."
)


def goal_of(row):
    """The number that a row's ratio should reach, or None.

    Example:
        >>> goal_of(timing.Row("step", "ms", [1], "peer", [2], [2], goal=">= 1.3"))
        1.3
    """
    found = re.fullmatch(r"(?:>= ?)?([\d.]+)", row.goal)
    return float(found[1]) if row.ratios and found else None


def draw(outcomes, path):
    """Plots the ratio of each row that has one: its median, its spread and its goal.

    Args:
        outcomes: a list of `Outcome`; those without ratios get no panel.
        path: the PNG file.

    Returns:
        Whether there was a ratio to plot.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    panels = [(outcome.benchmark, [r for r in outcome.rows if r.ratios]) for outcome in outcomes]
    panels = [(name, rows) for name, rows in panels if rows]
    if not panels:
        return False
    heights = [len(rows) + 1.5 for _, rows in panels]
    figure = Figure(figsize=(10, 0.21 * sum(heights) + 1), dpi=100, layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
    for axis, (name, rows) in zip(axes, panels, strict=True):
        for at, row in enumerate(rows):
            middle, goal = statistics.median(row.ratios), goal_of(row)
            color = PLAIN if goal is None else MET if middle >= goal else MISSED
            axis.plot([min(row.ratios), max(row.ratios)], [at, at], color=color, linewidth=1.5)
            axis.plot(middle, at, "o", color=color, markersize=5)
            if goal is not None:
                axis.plot(goal, at, "|", color="black", markersize=11)
        axis.axvline(1, color="0.6", linewidth=0.8, zorder=0)
        labels = [f"{row.what} | {row.peer}" for row in rows]
        axis.set_yticks(range(len(rows)), labels, fontsize=7, parse_math=False)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_title(name, fontsize=9, loc="left", fontweight="bold")
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(axis="x", labelsize=7)
        axis.set_xscale("log")
        low, high = axis.get_xlim()
        wide, narrow = LogLocator(subs=(1, 2, 5)), MaxNLocator(8, steps=(1, 2, 5, 10))
        axis.xaxis.set_major_locator(wide if high > 4 * low else narrow)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
    axes[-1].set_xlabel("ratio to the peer, above 1 if ours is better", fontsize=8)
    marks = [
        Line2D([], [], marker="o", color=color, label=label)
        for color, label in ((MET, "goal met"), (MISSED, "goal missed"), (PLAIN, "no goal"))
    ]
    marks.append(Line2D([], [], marker="|", color="black", linestyle="", label="goal"))
    figure.legend(handles=marks, loc="outside upper right", ncols=4, frameon=False, fontsize=8)
    figure.savefig(path)
    return True
