"""The plots of a run: training images as the model sees them, and a measure over the epochs."""

import io
import textwrap

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from cutmix_jax.paths import whole_file

# Uses Figure objects instead of pyplot, which needs a window system and shares state with callers.
ACCENT = "#d62728"


def draw_mixed(batch, class_names, path, columns=8, rows=4):
    """Plots training images as the model sees them, with label weights and outlined boxes.

    Args:
        batch: what `Classification.make_batch` returns, with float images ``[B, H, W, C]`` in
            [0, 1]; values outside are clipped.
        class_names: one name per class.
        path: of the PNG file.
        columns: images per row.
        rows: maximum number of rows.
    """
    count = min(len(batch["image"]), rows * columns)
    figure, axes = image_grid(count, columns, 1.5, 1.95)
    for i in range(count):
        show_image(axes[i], batch["image"][i])
        words = describe_target(batch["target"][i], batch["label"][i], class_names)
        axes[i].set_title(words, fontsize=7, parse_math=False)
        for plan in batch["plans"]:
            if plan.layer == "image":
                outline(axes[i], plan, i)
    figure.suptitle("Training images as the model sees them, with their label weights", fontsize=9)
    save_figure(figure, path)


def draw_boxes(batch, class_names, path, columns=4, rows=4):
    """Plots training images as a detector sees them, with their objects outlined.

    Args:
        batch: 'image', float ``[B, H, W, C]`` in [0, 1], values outside are clipped; 'boxes' ``[B,
            G, 4]``, (top, left, bottom, right) as fractions of the image; 'label' ``[B, G]``, -1
            for padding.
        class_names: one name per class.
        path: of the PNG file.
        columns: images per row.
        rows: maximum number of rows.
    """
    count = min(len(batch["image"]), rows * columns)
    figure, axes = image_grid(count, columns, 2.4, 2.5)
    colors = line_colors(len(class_names))
    for axis, image, boxes, labels in zip(
        axes, batch["image"], batch["boxes"], batch["label"], strict=False
    ):
        show_image(axis, image)
        scale = np.array([*image.shape[:2], *image.shape[:2]])
        for box, label in zip(boxes * scale - 0.5, labels, strict=True):
            if label >= 0:
                outline_box(axis, box, colors[label], shorten(class_names[label]))
    figure.suptitle("Training images as the model sees them, with their objects", fontsize=9)
    save_figure(figure, path)


def draw_captions(images, captions, path, columns=4, rows=4):
    """Plots training images as the network sees them, each below its caption.

    Args:
        images: float ``[B, H, W, C]`` in [0, 1].
        captions: B strings.
        path: of the PNG file.
        columns: images per row.
        rows: maximum number of rows.
    """
    count = min(len(images), rows * columns)
    figure, axes = image_grid(count, columns, 2.4, 2.8)
    for axis, image, caption in zip(axes, images, captions, strict=False):
        show_image(axis, image)
        axis.set_title(textwrap.fill(caption, 36), fontsize=7, parse_math=False)
    figure.suptitle("Training images as the network sees them, with their captions", fontsize=9)
    save_figure(figure, path)


def image_grid(count, columns, width, height):
    """A figure and the axes of `count` images, each `width` by `height` inches."""
    rows = -(-count // columns)
    figure = Figure(figsize=(columns * width, rows * height), dpi=100, layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis in axes:
        axis.set_axis_off()
        axis.set(xticks=(), yticks=())  # the layout measures ticks even if hidden
    return figure, axes


def outline_box(axis, box, color, words):
    """Outlines a box (top, left, bottom, right), and writes words at its corner."""
    top, left, bottom, right = box
    axis.add_patch(
        Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=color, linewidth=1)
    )
    axis.text(
        left,
        top,
        words,
        fontsize=6,
        color="white",
        va="top",
        clip_on=True,
        parse_math=False,
        bbox={"facecolor": color, "edgecolor": "none", "pad": 0.5},
    )


def show_image(axis, image):
    """Shows one image of one or three channels, without smoothing."""
    image = np.clip(image, 0, 1)
    gray = {"cmap": "gray", "vmin": 0, "vmax": 1} if image.shape[-1] == 1 else {}
    axis.imshow(image[..., 0] if gray else image, interpolation="nearest", **gray)


def describe_target(target, label, class_names):
    """A mixed label as text, with the image's own class first: 'cat 0.70 / dog 0.30'."""
    order = sorted(np.flatnonzero(target > 5e-3), key=lambda k: (k != label, -target[k]))
    return "\n".join(f"{shorten(class_names[k])} {target[k]:.2f}" for k in order[:3])


def outline(axis, plan, index, sides=None):
    """Outlines the region that `plan` pasted into image `index`, if any.

    `sides` are the height and width of the picture, if they differ from those of the plan.
    """
    scale = np.divide(sides or plan.sides, plan.sides)
    low, high = np.asarray(plan.box)[index if len(plan.box) > 1 else 0] * scale
    if (high > low).all():
        axis.add_patch(
            Rectangle(
                (low[1] - 0.5, low[0] - 0.5),
                high[1] - low[1],
                high[0] - low[0],
                fill=False,
                edgecolor=ACCENT,
                linewidth=1,
            )
        )


def line_colors(count):
    """Colors of `count` curves in one plot; they are distinct for up to twenty."""
    palette = colormaps["tab10" if count <= 10 else "tab20"].colors
    return [palette[number % len(palette)] for number in range(count)]


def draw_errors(histories, path):
    """Plots the error over the epochs, for one run or several (Figure 2 of the paper).

    Args:
        histories: ``{name: records}`` with one record per epoch, as in `metrics.jsonl`.
        path: of the PNG file.
    """
    figure = Figure(figsize=(6.4, 4), dpi=120, layout="constrained")
    axis = figure.subplots()
    colors = line_colors(len(histories))
    for color, (name, records) in zip(colors, histories.items(), strict=True):
        epochs = [record["epoch"] for record in records]
        for split, style in (("test", "-"), ("held_out", ":")):
            key = f"{split}_top1_error"
            measured = [record for record in records if key in record]
            if measured:
                words = split.replace("_", "-")
                axis.plot(
                    [record["epoch"] for record in measured],
                    [100 * record[key] for record in measured],
                    style,
                    color=color,
                    label=f"{name}, {words}" if len(histories) > 1 else f"{words} error",
                    marker="." if len(measured) < 5 else None,
                )
        if len(histories) == 1:
            weighted = [100 * (1 - record["train_weighted_accuracy"]) for record in records]
            axis.plot(epochs, weighted, color="C7", linewidth=1, label="train, lambda-weighted")
    if len(histories) == 1:  # several runs are compared up close
        axis.set_ylim(bottom=0)
    save_curves(figure, axis, "top-1 error (%)", path)


def draw_measure(history, key, words, path, top=1):
    """Plots a measure from 0 over the epochs of one run, the higher the better.

    Args:
        history: one record per epoch, as in `metrics.jsonl`.
        key: the measure, without the split: 'map'.
        words: its name on the axis: 'mAP'.
        path: of the PNG file.
        top: its largest value; None for one without.
    """
    figure = Figure(figsize=(6.4, 4), dpi=120, layout="constrained")
    axis = figure.subplots()
    for split, style in (("test", "-"), ("held_out", ":")):
        measured = [record for record in history if f"{split}_{key}" in record]
        if measured:
            axis.plot(
                [record["epoch"] for record in measured],
                [record[f"{split}_{key}"] for record in measured],
                style,
                color="C0",
                label=split.replace("_", "-"),
                marker="." if len(measured) < 5 else None,
            )
    axis.set_ylim(0, top)
    save_curves(figure, axis, words, path)


def save_curves(figure, axis, words, path):
    """Labels the axes of curves over the epochs, and writes the figure."""
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylabel(words)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    save_figure(figure, path)


def save_figure(figure, file):
    """Writes a figure as PNG to a path, on a disk or in a bucket, or to a stream of bytes."""
    if isinstance(file, io.IOBase):
        figure.savefig(file, format="png")
        return
    with whole_file(file) as unfinished:
        figure.savefig(unfinished, format="png")


def shorten(name, length=14):
    """The beginning of a long name."""
    name = str(name)
    return name if len(name) <= length else name[: length - 1] + "…"
