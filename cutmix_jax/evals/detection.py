"""What a detector finds: mAP by both rules of VOC, its result files, and pictures."""

import numpy as np

from cutmix_jax import pictures
from cutmix_jax.detection.average_precision import (
    RULES,
    Truths,
    average_precision,
    precision_recall,
)
from cutmix_jax.evals import figures, photographs
from cutmix_jax.evals.evaluation import Evaluation, Report
from cutmix_jax.tasks import in_order
from cutmix_jax.tasks.detector import Detector

COLUMNS = 4  # of the pictures


def find_photographs(subject, options):
    """The images of `evals.detection.images`, as `(names, images)`."""
    most = subject.task.config.voc.max_side
    return photographs.find("detection", options, lambda image: photographs.shrink(image, most))


def run(subject, options, paths=(), photos=()):
    """mAP and the curve of each class; what is found in the split, and in other photographs."""
    task = subject.task
    sizes = task.data.arrays[subject.split]["size"]
    outputs = measure(subject, subject.arrays, subject.batches(), subject.examples)
    found = task.detections(outputs)
    truths = Truths(outputs["boxes"], outputs["label"], outputs["difficult"])
    names = task.data.class_names
    curves = [precision_recall(found, truths, label) for label in range(len(names))]
    rows = [
        {
            "class": name,
            "objects": curve.truths,
            "detections": len(curve.scores),
            **{f"ap_{rule}": ap(curve, rule) for rule in RULES},
        }
        for name, curve in zip(names, curves, strict=True)
    ]
    values = {
        f"map_{rule.replace('-', '_')}": float(np.nanmean([row[f"ap_{rule}"] for row in rows]))
        for rule in RULES
    }
    ids = task.data.names[subject.split] if task.data.names else None
    ids = ids or [f"{i:06}" for i in range(subject.examples)]
    pixels = in_pixels(found, sizes)
    texts = {
        f"comp4_det_{subject.split}_{name}.txt": result_file(pixels, ids, label)
        for label, name in enumerate(names)
    }
    shown = subject.images(range(min(options.shown, subject.examples)))["image"]
    drawn = {
        "detection.png": draw(
            [cut(image, size) for image, size in zip(shown, sizes, strict=False)],
            pixels,
            names,
            options.min_score,
            in_pixels(truths, sizes),
        ),
        "detection_curves.png": draw_curves(curves, names),
    }
    if photos:
        drawn["detection_photographs.png"] = draw(
            [image / 255 for image in photos],
            find_objects(subject, photos),
            names,
            options.min_score,
        )
    return Report(values, rows, drawn, curve_tables(curves, names), texts=texts)


def measure(subject, arrays, host_batches, count):
    """The outputs of the task's `measure` for `count` images of some arrays; on the host."""
    return in_order(subject.outputs(arrays, host_batches, count, "detection"))


def find_objects(subject, photos):
    """The `Detections` in images uint8 `[h, w, 3]` of any size, in their pixels."""
    count = len(photos)
    size = np.array([image.shape[:2] for image in photos], np.int32)
    images = np.zeros((count, *size.max(0), 3), np.uint8)
    for row, image in zip(images, photos, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    arrays = {
        "image": images,
        "size": size,
        "boxes": np.zeros((count, 1, 4), np.float32),
        "label": np.full((count, 1), -1, np.int32),
        "difficult": np.zeros((count, 1), bool),
    }
    task = subject.task
    batches = subject.foreign_batches(count)
    outputs = measure(subject, task.mapping.replicate(arrays), batches, count)
    return in_pixels(task.detections(outputs), size)


def ap(curve, rule):
    """The average precision of a class, NaN if it has no objects."""
    if not curve.truths:
        return float("nan")
    return float(average_precision(curve.precision, curve.recall, rule))


def in_pixels(group, sizes):
    """`Detections` or `Truths` with boxes in pixels, from fractions of images `[n, 2]`."""
    boxes = [
        np.asarray(fractions).reshape(-1, 4) * np.tile(size, 2)
        for fractions, size in zip(group.boxes, np.asarray(sizes, np.float64), strict=True)
    ]
    return group._replace(boxes=boxes)


def result_file(found, ids, label):
    """A class's detections as VOC's development kit reads them.

    Each line has an image, a score and inclusive corners, counted from 1: left, top, right, bottom.
    """
    lines = []
    for name, boxes, scores, labels in zip(
        ids, found.boxes, found.scores, found.labels, strict=True
    ):
        of_class = np.asarray(labels) == label
        chosen = zip(boxes[of_class].tolist(), np.asarray(scores)[of_class].tolist(), strict=True)
        for (top, left, bottom, right), score in chosen:
            corners = f"{left + 1:.6f} {top + 1:.6f} {right:.6f} {bottom:.6f}"
            lines.append(f"{name} {score:.6f} {corners}\n")
    return "".join(lines)


def curve_tables(curves, names):
    """The table of the curves, `{}` if nothing was found."""
    rows = [
        {"class": name, "score": score, "precision": precision, "recall": recall}
        for name, curve in zip(names, curves, strict=True)
        for score, precision, recall in zip(
            curve.scores, curve.precision, curve.recall, strict=True
        )
    ]
    return {"detection_curves.csv": rows} if rows else {}


def cut(image, size):
    """The image in the top left corner of its canvas."""
    return image[: size[0], : size[1]]


def draw(images, found, class_names, min_score, truths=None):
    """Images in [0, 1] with the objects that are found, and white boxes around the true ones."""
    rows = -(-len(images) // COLUMNS)
    figure, axes = figures.new_figure(2.8 * COLUMNS, 2.8 * rows, rows, COLUMNS, squeeze=False)
    colors = pictures.line_colors(len(class_names))
    for axis in axes.ravel():
        axis.set_axis_off()
    for i, (axis, image) in enumerate(zip(axes.ravel(), images, strict=False)):
        figures.show(axis, image)
        if truths is not None:
            for box, label in zip(truths.boxes[i], truths.labels[i], strict=True):
                if label >= 0:
                    figures.outline(axis, box, "white")
        for box, score, label in zip(found.boxes[i], found.scores[i], found.labels[i], strict=True):
            if label >= 0 and score >= min_score:
                words = f"{pictures.shorten(class_names[label])} {score:.2f}"
                pictures.outline_box(axis, np.asarray(box) - 0.5, colors[label], words)
    return figure


def draw_curves(curves, names):
    """Precision over recall, one curve per class."""
    figure, axis = figures.new_figure(6.4, 4.8)
    colors = pictures.line_colors(len(names))
    for color, name, curve in zip(colors, names, curves, strict=True):
        if curve.truths:
            axis.plot(curve.recall, curve.precision, color=color, label=pictures.shorten(name))
    axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axis.legend(frameon=False, fontsize=7, ncols=2)
    return figures.plain(axis) and figure


EVALUATION = Evaluation(run, find=find_photographs, task=Detector)
