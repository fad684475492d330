"""Weakly supervised localization (Table 9), and MaxBoxAcc, which tunes the threshold."""

import numpy as np

from cutmix_jax import UserError, metrics
from cutmix_jax.evals import cam, figures
from cutmix_jax.evals.evaluation import Evaluation, Report
from cutmix_jax.evals.map_boxes import contour_boxes, inclusive_overlaps, largest_box, overlaps

IOU = 0.5  # exceeded in the paper's protocol, reached in MaxBoxAcc
V2_IOUS = (0.3, 0.5, 0.7)
CENTER_SIDES = np.round(np.arange(0.05, 1.001, 0.05), 2)


def why_not(subject):
    """Localization needs true boxes, and maps."""
    if subject.task.data.boxes is None:
        return (
            f"localization needs the true boxes, and {subject.task.config.dataset} has none: use "
            "a dataset with boxes, such as tiny_imagenet, shapes or caltech_birds2011."
        )
    return cam.why_not(subject)


def run(subject, options, boxes):
    """Localization accuracy by the paper's protocol, over thresholds, MaxBoxAcc and its V2."""
    # The curve includes the threshold of the protocol.
    sweep = np.unique(np.round([*np.arange(0, 1, options.sweep_step), options.threshold], 6))
    fine = np.arange(0, 1, options.max_box_step)
    height, width, _ = subject.image_shape
    true = [keep_boxes(some) for some in boxes]
    there = np.array([len(boxes) > 0 for boxes in true])
    if not there.any():
        raise UserError(
            f"No image of the {subject.split} split of {subject.task.config.dataset} has a box "
            "within its crop: localization needs at least one."
        )

    # Maps of the true classes are enough. If the prediction is right, its map is the same one. If
    # it is wrong, it does not count.
    def look(weights, batch):
        maps, logits = cam.class_maps(subject, weights, batch)
        return {"map": maps, "logits": logits, "label": batch["label"]}

    call, rank, fits = subject.compile(look), [], []
    for index, found in subject.each_batch(
        call, subject.batches(), subject.examples, "localization"
    ):
        rank.append(np.asarray(metrics.ranks(found["logits"], found["label"])))
        fits += [
            measure_map(heat, true[i], sweep, fine)
            for i, heat in zip(index, found["map"], strict=True)
            if there[i]
        ]
    rank = np.concatenate(rank)[there]
    right, among_5 = rank == 0, rank < min(5, subject.task.data.num_classes)
    iou = np.stack([fit["iou"] for fit in fits])  # [N, sweep]
    values, rows = summarize(iou, right, among_5, sweep, options.threshold)
    values |= max_box_acc(fits, fine)
    values |= center_baseline([true[i] for i in np.flatnonzero(there)], height, width)
    values["without_boxes"] = int((~there).sum())
    return Report(values, rows, {"localization.png": draw(rows, values, fits, fine)})


def keep_boxes(boxes):
    """The boxes that are not empty. An object outside the crop cannot be found."""
    boxes = np.asarray(boxes, float).reshape(-1, 4)
    return boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]


def measure_map(heat, true, sweep, fine):
    """How well one map fits the true boxes.

    Args:
        heat: float ``[H, W]`` in [0, 1].
        true: float ``[n, 4]``, half-open.
        sweep: thresholds of the paper's protocol, ``[S]``.
        fine: thresholds of MaxBoxAcc, ``[T]``.

    Returns:
        ``{'iou': [S], 'single': [T], 'multiple': [T]}``: the best overlap with any true box, for
        the box of the largest region, of the largest contour, and of any contour.
    """
    boxes, planes, largest = contour_boxes(heat, fine)
    # From half-open boxes to inclusive corners in whole pixels.
    closed = np.concatenate([np.floor(true[:, :2]), np.ceil(true[:, 2:]) - 1], 1)
    best = inclusive_overlaps(boxes, closed).max(1)
    multiple = np.zeros(len(fine))
    np.maximum.at(multiple, planes, best)
    return {
        "iou": overlaps(largest_box(heat, sweep), true).max(1),
        "single": best[largest],
        "multiple": multiple,
    }


def summarize(iou, right, among_5, sweep, threshold):
    """The paper's accuracies at its threshold, and over the sweep."""
    hits = iou > IOU
    rows = [
        {
            "threshold": float(sigma),
            "top1_loc_acc": float((hits[:, i] & right).mean()),
            "top5_loc_acc": float((hits[:, i] & among_5).mean()),
            "gt_known_loc_acc": float(hits[:, i].mean()),
            "mean_iou": float(iou[:, i].mean()),
        }
        for i, sigma in enumerate(sweep)
    ]
    at = int(np.abs(sweep - threshold).argmin())
    best = max(rows, key=lambda row: row["top1_loc_acc"])
    values = {key: value for key, value in rows[at].items() if key != "threshold"}
    values |= {
        "threshold": float(threshold),
        "top1_error": float(1 - right.mean()),
        "best_threshold": best["threshold"],
        "best_top1_loc_acc": best["top1_loc_acc"],
    }
    return values, rows


def max_box_acc(fits, fine):
    """MaxBoxAcc and MaxBoxAccV2. The threshold is chosen on the same images."""
    single = np.stack([fit["single"] for fit in fits])
    multiple = np.stack([fit["multiple"] for fit in fits])
    accuracy = (single >= IOU).mean(0)
    values = {
        "max_box_acc": float(accuracy.max()),
        "max_box_acc_threshold": float(fine[accuracy.argmax()]),
    }
    by_iou = {iou: float((multiple >= iou).mean(0).max()) for iou in V2_IOUS}
    values |= {f"max_box_acc_v2_iou{int(100 * iou)}": value for iou, value in by_iou.items()}
    return values | {"max_box_acc_v2": float(np.mean(list(by_iou.values())))}


def center_baseline(true, height, width):
    """Accuracy of a centered box that ignores the image, for the best of all sizes."""
    sides = CENTER_SIDES[:, None] * np.array([height, width])
    low = (np.array([height, width]) - sides) / 2
    boxes = np.concatenate([low, low + sides], 1)
    hits = np.stack([(overlaps(boxes, one) > IOU).any(1) for one in true])
    accuracy = hits.mean(0)
    return {
        "center_box_gt_known_loc_acc": float(accuracy.max()),
        "center_box_side": float(CENTER_SIDES[accuracy.argmax()]),
    }


def draw(rows, values, fits, fine):
    """Accuracy over the threshold."""
    figure, axis = figures.new_figure()
    sweep = [row["threshold"] for row in rows]
    lines = {
        "top-1 Loc": [row["top1_loc_acc"] for row in rows],
        "GT-known Loc": [row["gt_known_loc_acc"] for row in rows],
    }
    figures.curves(axis, sweep, lines, "threshold, fraction of the maximum", "accuracy (%)")
    accuracy = (np.stack([fit["single"] for fit in fits]) >= IOU).mean(0)
    axis.plot(fine, 100 * accuracy, color="C2", linewidth=1, label="BoxAcc")
    baseline = 100 * values["center_box_gt_known_loc_acc"]
    axis.axhline(baseline, color="C7", linestyle="--", linewidth=1, label="best centered box")
    axis.axvline(values["threshold"], color="C7", linestyle=":", linewidth=1)
    axis.set_ylim(0, 102)
    axis.legend(frameon=False)
    return figure


EVALUATION = Evaluation(run, why_not, find=cam.find_boxes)
