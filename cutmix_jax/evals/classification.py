"""Errors, calibration and confusion on unchanged images."""

import numpy as np

from cutmix_jax import metrics, pictures
from cutmix_jax.evals import figures
from cutmix_jax.evals.evaluation import Evaluation, Report
from cutmix_jax.evals.subject import predictions


def run(subject, options):
    """Top-1 and top-5 error, loss, calibration; errors per class, and the confusion matrix."""

    def look(weights, batch):
        logits = subject.logits(weights, batch["image"])
        return {"logits": logits, "predicted": predictions(logits), "label": batch["label"]}

    found = subject.map_examples(look, words="classification")
    logits, labels = found["logits"].astype(np.float64), found["label"]
    predicted = found["predicted"]
    names = subject.task.data.class_names
    values = errors(logits, labels)
    probs = softmax(logits)
    bins = calibration(probs.max(1), predicted == labels, options.bins)
    values["ece"] = bins.pop("ece")
    confusion = confusion_matrix(labels, predicted, len(names))
    count = np.bincount(labels, minlength=len(names))
    rows = [
        {
            "class": k,
            "name": names[k],
            "examples": int(count[k]),
            "top1_error": float(1 - confusion[k, k] / count[k]) if count[k] else float("nan"),
        }
        for k in range(len(names))
    ]
    bin_rows = [
        {name: float(column[i]) for name, column in bins.items()} for i in range(options.bins)
    ]
    matrix = [{"class": names[k], **{str(j): int(n) for j, n in enumerate(confusion[k])}}
              for k in range(len(names))]  # fmt: skip
    return Report(
        values,
        rows,
        {
            "classification.png": draw_reliability(bins, values["ece"]),
            "classification_confusion.png": draw_confusion(confusion, names),
        },
        {"classification_calibration.csv": bin_rows, "classification_confusion.csv": matrix},
    )


def errors(logits, labels):
    """Mean loss, top-1 and top-5 error (of K < 5 classes, top-K).

    Args:
        logits: float ``[N, K]``.
        labels: int ``[N]``.

    Returns:
        ``{'top1_error', 'top5_error', 'loss'}``.
    """
    own = np.take_along_axis(logits, labels[:, None], 1)
    rank = np.asarray(metrics.ranks(logits, labels))
    return {
        "top1_error": float((rank > 0).mean()),
        "top5_error": float((rank >= min(5, logits.shape[1])).mean()),
        "loss": float((log_sum_exp(logits) - own[:, 0]).mean()),
    }


def log_sum_exp(logits):
    """Float ``[N]``."""
    top = logits.max(1, keepdims=True)
    return (top + np.log(np.exp(logits - top).sum(1, keepdims=True)))[:, 0]


def softmax(logits):
    """Probabilities ``[N, K]``."""
    return np.exp(logits - log_sum_exp(logits)[:, None])


def calibration(confidence, right, bins=15):
    r"""The expected calibration error, over bins of equal width.

    .. math:: \text{ECE} = \sum_b \frac{n_b}{N} |\text{acc}_b - \text{conf}_b|

    Args:
        confidence: float ``[N]``, the highest probability of each example.
        right: bool ``[N]``, whether the prediction was right.
        bins: how many; bin b holds confidences in (b / bins, (b + 1) / bins].

    Returns:
        ``{'ece': float, 'low', 'high', 'examples', 'accuracy', 'confidence': [bins]}``; accuracy
        and confidence are NaN in an empty bin.

    Example:
        >>> found = calibration(np.array([0.9, 0.9]), np.array([True, False]), bins=10)
        >>> round(float(found['ece']), 3)
        0.4

    Reference:
        Guo, Pleiss, Sun, Weinberger. On Calibration of Modern Neural Networks. ICML 2017.
    """
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(bin_of, minlength=bins)
    with np.errstate(invalid="ignore"):
        accuracy = np.bincount(bin_of, right, bins) / count
        mean = np.bincount(bin_of, confidence, bins) / count
    edges = np.arange(bins + 1) / bins
    gaps = np.where(count > 0, np.abs(accuracy - mean), 0)
    return {
        "ece": float((count * gaps).sum() / count.sum()),
        "low": edges[:-1],
        "high": edges[1:],
        "examples": count,
        "accuracy": accuracy,
        "confidence": mean,
    }


def confusion_matrix(labels, predicted, num_classes):
    """int ``[K, K]``: how many examples of class i (row) were predicted as class j.

    Examples whose prediction is -1 are not counted.
    """
    taken = predicted >= 0
    places = labels[taken] * num_classes + predicted[taken]
    return np.bincount(places, minlength=num_classes**2).reshape(num_classes, num_classes)


def draw_reliability(bins, ece):
    """Accuracy over confidence. The distance to the diagonal is the calibration error."""
    figure, (axis, below) = figures.new_figure(
        4.4, 5.0, rows=2, sharex=True, gridspec_kw={"height_ratios": [3, 1]}
    )
    width = bins["high"] - bins["low"]
    middle = bins["low"] + width / 2
    there = bins["examples"] > 0
    axis.bar(middle[there], bins["accuracy"][there], 0.94 * width[there], color="C0", label="right")
    axis.plot(bins["confidence"][there], bins["accuracy"][there], "k.", label="mean of a bin")
    axis.plot([0, 1], [0, 1], "--", color="C7", label="calibrated")
    axis.set_ylabel("accuracy")
    axis.set_ylim(0, 1)
    axis.set_title(f"expected calibration error {100 * ece:.1f} %", fontsize=10)
    axis.legend(frameon=False, loc="upper left", fontsize=8)
    below.bar(middle, bins["examples"] / bins["examples"].sum(), 0.94 * width, color="C7")
    below.set_ylabel("examples")
    below.set_xlabel("confidence")
    below.set_xlim(0, 1)
    figures.plain(axis)
    figures.plain(below)
    return figure


def draw_confusion(confusion, names):
    """The confusion matrix, as fractions of each true class."""
    fraction = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    side = np.clip(0.28 * len(names), 4.5, 9)
    figure, axis = figures.new_figure(side + 1, side)
    picture = axis.imshow(fraction, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(picture, label="fraction of the true class", shrink=0.8)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    if len(names) <= 30:
        ticks, words = range(len(names)), [pictures.shorten(name) for name in names]
        axis.set_xticks(ticks, words, rotation=90, fontsize=7, parse_math=False)
        axis.set_yticks(ticks, words, fontsize=7, parse_math=False)
    return figure


EVALUATION = Evaluation(run)
