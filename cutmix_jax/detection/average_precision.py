"""Average precision by the rule of PASCAL VOC: NumPy, on the host.

Detections of a class, over all images, are visited from the highest score to the lowest. Each takes
the truth of its image and class with the highest IoU. It is right if that IoU reaches the threshold
and the truth was not found before. It does not count if that truth is difficult. Otherwise it is
wrong. Difficult truths do not count as missed either.

Inputs may be padded arrays, or lists with an array per image; entries with label -1 are padding.
"""

from typing import NamedTuple

import numpy as np

RULES = ("11-point", "area")  # of VOC2007, and of VOC2010 and later


class Detections(NamedTuple):
    """What a detector found, for each image.

    Args:
        boxes: float `[b, n, 4]`, (top, left, bottom, right), half-open; or a list of `[n_i, 4]`.
        scores: float `[b, n]`, or a list of `[n_i]`.
        labels: int `[b, n]`, or a list of `[n_i]`; -1 for padding.
    """

    boxes: object
    scores: object
    labels: object


class Truths(NamedTuple):
    """The objects of each image.

    Args:
        boxes: float `[b, g, 4]`, (top, left, bottom, right), half-open, in the unit of the
            detections; or a list of `[g_i, 4]`.
        labels: int `[b, g]`, or a list of `[g_i]`; -1 for padding.
        difficult: bool `[b, g]`, or a list of `[g_i]`.
    """

    boxes: object
    labels: object
    difficult: object


class Curve(NamedTuple):
    """Precision and recall of a class after each detection, from the highest score on.

    Args:
        precision: float64 `[n]`, right detections per counted detection.
        recall: float64 `[n]`, right detections per truth; NaN if the class has no truths.
        scores: float64 `[n]`, descending.
        truths: number of truths that are not difficult.
    """

    precision: np.ndarray
    recall: np.ndarray
    scores: np.ndarray
    truths: int


def precision_recall(detections, truths, label, *, threshold=0.5, inclusive=False):
    r"""The curve of precision over recall of one class.

    With the numbers of right and of wrong detections so far, and N truths that are not difficult:

    .. math::

        \mathrm{precision} = \frac{\mathrm{right}}{\mathrm{right} + \mathrm{wrong}}, \quad
        \mathrm{recall} = \frac{\mathrm{right}}{N}

    Args:
        detections: `Detections`.
        truths: `Truths` of the same images.
        label: the class.
        threshold: smallest IoU of a right detection.
        inclusive: whether corners are inclusive, as in VOC's own files. Height is then
            `bottom - top + 1`.

    Returns:
        `Curve` with all detections of the class, also those that do not count. Equal scores keep
        the order of the images, and the order within an image. Precision is 0 until the first
        detection counts.

    Raises:
        ValueError: the numbers of images or of boxes differ, or a score is NaN.

    Example:
        >>> found = Detections([[[0, 0, 4, 4], [9, 9, 10, 10]]], [[0.9, 0.8]], [[0, 0]])
        >>> real = Truths([[[0, 0, 4, 5], [6, 6, 8, 8]]], [[0, 0]], [[False, False]])
        >>> curve = precision_recall(found, real, 0)
        >>> curve.precision.tolist(), curve.recall.tolist(), curve.truths
        ([1.0, 0.5], [0.5, 0.5], 2)

    Reference:
        Everingham et al. The PASCAL Visual Object Classes (VOC) Challenge. IJCV 2010, section 4.2.
    """
    _check(detections, truths)
    outcomes, scores, count = [], [], 0
    for found, real in zip(_of_class(detections, label), _of_class(truths, label), strict=True):
        boxes, own = found
        true_boxes, difficult = real[0], real[1].astype(bool)
        order = np.argsort(-own, kind="stable")
        outcomes.append(_outcomes(boxes[order], true_boxes, difficult, threshold, inclusive))
        scores.append(own[order])
        count += int((~difficult).sum())
    scores, outcomes = np.concatenate([*scores, []]), np.concatenate([*outcomes, []])
    order = np.argsort(-scores, kind="stable")
    right = np.cumsum(outcomes[order] == 1)
    counted = np.cumsum(outcomes[order] != 0)
    precision = right / np.maximum(counted, 1)
    recall = right / count if count else np.full(len(right), np.nan)
    return Curve(precision, recall, scores[order], count)


def _check(detections, truths):
    names = ("detections", detections), ("truths", truths)
    if len(detections.boxes) != len(truths.boxes):
        raise ValueError(
            f"detections are of {len(detections.boxes)} images and truths of {len(truths.boxes)}, "
            "but both have to be of the same images."
        )
    for name, group in names:
        for field, values in zip(group._fields, group, strict=True):
            for i, (value, boxes) in enumerate(zip(values, group.boxes, strict=True)):
                if len(value) != len(boxes):
                    raise ValueError(
                        f"{name}.{field} has {len(value)} entries for image {i}, but "
                        f"{name}.boxes has {len(boxes)}. Give one for each box."
                    )
    for i, scores in enumerate(detections.scores):
        if np.isnan(np.asarray(scores, float)[np.asarray(detections.labels[i]) >= 0]).any():
            raise ValueError(f"detections.scores has NaN for image {i}. Leave such boxes out.")


def _of_class(group, label):
    """(boxes, other values) of a class, for each image."""
    others = group.scores if isinstance(group, Detections) else group.difficult
    for boxes, values, own in zip(group.boxes, others, group.labels, strict=True):
        chosen = np.asarray(own, int) == label
        yield np.asarray(boxes, float).reshape(-1, 4)[chosen], np.asarray(values, float)[chosen]


def _outcomes(boxes, truths, difficult, threshold, inclusive):
    """1 for each right detection of an image, -1 for each wrong one, 0 where it does not count."""
    outcomes = np.full(len(boxes), -1)
    if not len(truths):
        return outcomes
    overlaps = _overlaps(boxes, truths, inclusive)
    taken = np.zeros(len(truths), bool)
    for i, best in enumerate(overlaps.argmax(1)):
        if overlaps[i, best] >= threshold:
            if difficult[best]:
                outcomes[i] = 0
            elif not taken[best]:
                outcomes[i], taken[best] = 1, True
    return outcomes


def _overlaps(boxes, others, inclusive):
    """float64 `[n, m]`: the IoU; 0 if either box is empty."""

    def area(low, high):
        return np.clip(high - low + inclusive, 0, None).prod(-1)

    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    common = area(low, high)
    union = area(boxes[:, :2], boxes[:, 2:])[:, None] + area(others[:, :2], others[:, 2:]) - common
    return np.divide(common, union, out=np.zeros_like(common), where=common > 0)


# Not k / 10: 0.3, 0.6 and 0.7 are slightly larger here, as in the original code, so that a recall
# of exactly 3/10 does not reach its point.
POINTS = np.arange(0, 1.1, 0.1)


def average_precision(precision, recall, rule="11-point"):
    r"""Average precision of a curve, by the rule of VOC2007 or that of the later years.

    With p(r) the highest precision at any recall of r or more:

    .. math::

        \mathrm{AP}_{11} = \frac{1}{11} \sum_{k=0}^{10} p(k / 10), \quad
        \mathrm{AP}_\mathrm{area} = \int_0^1 p(r) \, dr

    Args:
        precision: float `[n]`, from `precision_recall`.
        recall: float `[n]`, ascending.
        rule: `'11-point'` (VOC2007) or `'area'` (VOC2010 and later).

    Returns:
        A float in [0, 1]; 0 without detections, NaN if the recall is NaN.

    Raises:
        ValueError: the rule is unknown, or the lengths differ.

    Example:
        >>> round(average_precision([1.0, 0.5], [0.5, 0.5]), 4)
        0.5455
        >>> average_precision([1.0, 0.5], [0.5, 0.5], 'area')
        0.5

    Reference:
        Everingham et al. The PASCAL Visual Object Classes (VOC) Challenge. IJCV 2010, section 4.2;
        the VOC2010 development kit for the area.
    """
    precision, recall = np.asarray(precision, float), np.asarray(recall, float)
    if rule not in RULES:
        raise ValueError(f"rule is {rule!r}, but '11-point' or 'area' was expected.")
    if precision.shape != recall.shape or precision.ndim != 1:
        raise ValueError(
            f"precision has shape {precision.shape} and recall {recall.shape}, but the same [n] "
            "was expected."
        )
    if np.isnan(recall).any():
        return float("nan")
    if rule == "11-point":
        return float(np.mean([precision[recall >= r].max(initial=0.0) for r in POINTS]))
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * highest))


def mean_average_precision(
    detections, truths, num_classes, *, rule="11-point", threshold=0.5, inclusive=False
):
    """The mean over classes of the average precision, and that of each class.

    Args:
        detections: `Detections`.
        truths: `Truths` of the same images.
        num_classes: K; the classes are 0 to K - 1.
        rule: `'11-point'` or `'area'`.
        threshold: smallest IoU of a right detection.
        inclusive: whether corners are inclusive, as for `precision_recall`.

    Returns:
        `(mean, each)`: a float, and float64 `[K]`. A class without truths that are not difficult is
        NaN and left out of the mean. The mean is NaN if all are.

    Raises:
        ValueError: as for `precision_recall` and `average_precision`.

    Example:
        >>> found = Detections([[[0, 0, 4, 4], [9, 9, 10, 10]]], [[0.9, 0.8]], [[0, 1]])
        >>> real = Truths([[[0, 0, 4, 5], [6, 6, 8, 8]]], [[0, 1]], [[False, False]])
        >>> mean, each = mean_average_precision(found, real, 3)
        >>> mean, each.tolist()
        (0.5, [1.0, 0.0, nan])

    Reference:
        As for `average_precision`.
    """
    each = np.full(num_classes, np.nan)
    for label in range(num_classes):
        curve = precision_recall(
            detections, truths, label, threshold=threshold, inclusive=inclusive
        )
        if curve.truths:
            each[label] = average_precision(curve.precision, curve.recall, rule)
    known = each[~np.isnan(each)]
    return (float(known.mean()) if len(known) else float("nan")), each
