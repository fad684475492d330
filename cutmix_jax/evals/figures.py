"""The style of the evaluations' figures. They need no window system."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cutmix_jax import pictures

TRUE, PREDICTED = "#e31a1c", "#33d17a"  # boxes, as in Figure 4 of the paper: red and green


def new_figure(width=6.4, height=4.0, rows=1, columns=1, dpi=120, **options):
    """A figure and its axes (a NumPy array if there are several)."""
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def plain(axis):
    """Removes the top and right spines, and adds a light grid."""
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    return axis


def curves(axis, x, lines, xlabel, ylabel):
    """Plots ``{name: values}`` over `x`, in percent."""
    for number, (name, values) in enumerate(lines.items()):
        axis.plot(x, 100 * np.asarray(values), marker="o", ms=3, color=f"C{number}", label=name)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.set_ylim(0, None)
    if len(lines) > 1:
        axis.legend(frameon=False)
    return plain(axis)


def show(axis, image, heat=None, title=""):
    """Shows an image in [0, 1], with a heat map ``[H, W]`` in [0, 1] on top if there is one."""
    pictures.show_image(axis, image)
    if heat is not None:
        axis.imshow(heat, cmap="jet", vmin=0, vmax=1, alpha=0.5, interpolation="bilinear")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    axis.set_title(title, fontsize=7, pad=3, parse_math=False)


def outline(axis, box, color):
    """Outlines a (top, left, bottom, right) box, half-open, in pixels."""
    top, left, bottom, right = (float(value) for value in box)
    if bottom > top and right > left:
        corner = (left - 0.5, top - 0.5)
        axis.add_patch(
            Rectangle(
                corner, right - left, bottom - top, fill=False, edgecolor=color, linewidth=1.6
            )
        )
