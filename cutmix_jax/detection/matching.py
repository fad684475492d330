"""Which prior or anchor learns which object.

Truths are padded to a fixed number per image; entries with label -1 are padding. All functions are
for one image; use `jax.vmap` for a batch.
"""

import jax
import jax.numpy as jnp
from jax import lax

from cutmix_jax.detection.boxes import VARIANCES, as_boxes, encode, iou

# RPN labels.
POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


def match_priors(priors, boxes, labels, threshold=0.5):
    r"""SSD's matching: the truth of each prior, or none.

    Each prior takes the truth that it overlaps most, if their IoU reaches the threshold. Then each
    truth takes the prior that it overlaps most, at any IoU above 0. If several truths take the same
    prior, the last one keeps it. Of equal overlaps, the first truth or prior is taken.

    Padding and truths that overlap no prior, such as empty ones, match nothing.

    Args:
        priors: float `[P, 4]`, (top, left, bottom, right).
        boxes: float `[G, 4]` in the same unit.
        labels: int `[G]`, -1 for padding.
        threshold: smallest IoU of a match that is not a truth's best.

    Returns:
        int32 `[P]`: the index of the truth, or -1 for background.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> priors = jnp.array([[0, 0, 4, 4], [0, 0, 4, 5], [4, 4, 8, 8], [8, 8, 9, 9]])
        >>> boxes = jnp.array([[0, 0, 4, 4], [4, 4, 9, 12], [0, 0, 0, 0]])
        >>> match_priors(priors, boxes, jnp.array([3, 7, -1])).tolist()
        [0, 0, 1, -1]

    Reference:
        Liu et al. SSD: Single Shot MultiBox Detector. ECCV 2016, section 2.2.
    """
    overlaps, labels = _overlaps(priors, boxes, labels, "priors")
    if not len(labels):
        return jnp.full(overlaps.shape[1], -1, jnp.int32)
    index = overlaps.argmax(0).astype(jnp.int32)
    index = jnp.where(overlaps.max(0) >= jnp.maximum(threshold, 1e-9), index, -1)
    # Not a scatter, whose order is undefined if two truths have the same best prior.
    best = jnp.where(overlaps.max(1) > 0, overlaps.argmax(1), -1)
    takes = best[:, None] == jnp.arange(overlaps.shape[1])
    forced = jnp.where(takes, jnp.arange(len(labels), dtype=jnp.int32)[:, None], -1).max(0)
    return jnp.where(forced >= 0, forced, index)


def _overlaps(priors, boxes, labels, name):
    """(float32 `[G, P]` IoU, -1 for padding; labels), without gradients."""
    priors, boxes = as_boxes(name, priors), as_boxes("boxes", boxes)
    labels = jnp.asarray(labels)
    if priors.ndim != 2 or boxes.ndim != 2 or labels.shape != boxes.shape[:1]:
        raise ValueError(
            f"{name} has shape {priors.shape}, boxes {boxes.shape} and labels {labels.shape}, but "
            "[P, 4], [G, 4] and [G] were expected. Use jax.vmap for several images."
        )
    overlaps = lax.stop_gradient(iou(boxes, priors))
    return jnp.where((labels >= 0)[:, None], overlaps, -1), labels


def ssd_targets(priors, boxes, labels, threshold=0.5, variances=VARIANCES):
    """What SSD learns for an image: the class of each prior and the coded box of its truth.

    Args:
        priors: float `[P, 4]`, (top, left, bottom, right).
        boxes: float `[G, 4]` in the same unit.
        labels: int `[G]`, classes from 0, -1 for padding.
        threshold: as for `match_priors`.
        variances: as for `encode`.

    Returns:
        `(classes, offsets)`: int32 `[P]`, 0 for background, otherwise 1 + the label; float32
        `[P, 4]`, from `encode`, zeros for background. Neither has a gradient.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> priors = jnp.array([[0, 0, 4, 8], [8, 8, 9, 9]])
        >>> classes, offsets = ssd_targets(priors, jnp.array([[1, 0, 5, 8]]), jnp.array([6]))
        >>> classes.tolist(), offsets.tolist()
        ([7, 0], [[2.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])

    Reference:
        Liu et al. SSD: Single Shot MultiBox Detector. ECCV 2016, section 2.2.
    """
    index = match_priors(priors, boxes, labels, threshold)
    matched = index >= 0
    if not len(labels):
        return jnp.zeros(len(index), jnp.int32), jnp.zeros((len(index), 4), jnp.float32)
    taken = jnp.where(matched, index, 0)
    classes = jnp.where(matched, jnp.asarray(labels)[taken] + 1, 0).astype(jnp.int32)
    own = lax.stop_gradient(as_boxes("boxes", boxes))[taken]
    offsets = encode(own, lax.stop_gradient(as_boxes("priors", priors)), variances)
    return classes, jnp.where(matched[:, None], offsets, 0)


def rpn_labels(anchors, boxes, labels, shape, *, positive=0.7, negative=0.3):
    """Labels of Faster R-CNN's anchors, before sampling.

    An anchor inside the image is positive if its IoU with a truth reaches `positive`, or if no
    other anchor inside overlaps a truth more, ties included, and the overlap is above 0. It is
    negative if it is not positive and its IoU with every truth is below `negative`. Others are
    ignored, as is every anchor that reaches over the border.

    Args:
        anchors: float `[A, 4]`, (top, left, bottom, right) in pixels, half-open.
        boxes: float `[G, 4]` in pixels.
        labels: int `[G]`, -1 for padding.
        shape: (height, width) of the image in pixels, without padding; may be traced.
        positive: smallest IoU of a positive anchor that is not a truth's best.
        negative: IoU below which an anchor is negative.

    Returns:
        `(kinds, index)`: int32 `[A]`, 1 for positive, 0 for negative, -1 for ignored; int32 `[A]`,
        the truth that an anchor overlaps most, the first of equal ones, 0 without truths.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> anchors = jnp.array([[0, 0, 4, 4], [0, 0, 4, 6], [6, 6, 9, 9], [-1, 0, 4, 4]])
        >>> kinds, index = rpn_labels(anchors, jnp.array([[0, 0, 4, 4]]), jnp.array([2]), (9, 9))
        >>> kinds.tolist(), index.tolist()
        ([1, -1, 0, -1], [0, 0, 0, 0])

    Reference:
        Ren et al. Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks.
        NIPS 2015, section 3.1.2.
    """
    overlaps, labels = _overlaps(anchors, boxes, labels, "anchors")
    anchors = lax.stop_gradient(as_boxes("anchors", anchors))
    height, width = shape
    inside = (anchors[:, :2] >= 0).all(1) & (anchors[:, 2] <= height) & (anchors[:, 3] <= width)
    if not len(labels):
        index = jnp.zeros(len(anchors), jnp.int32)
        return jnp.where(inside, NEGATIVE, IGNORED).astype(jnp.int32), index
    overlaps = jnp.where(inside, overlaps, -1)
    highest = overlaps.max(0)
    best = overlaps.max(1, keepdims=True)
    is_best = ((overlaps == best) & (best > 0)).any(0)
    kinds = jnp.where(highest < negative, NEGATIVE, IGNORED)
    kinds = jnp.where(is_best | (highest >= positive), POSITIVE, kinds)
    kinds = jnp.where(inside, kinds, IGNORED)
    return kinds.astype(jnp.int32), overlaps.argmax(0).astype(jnp.int32)


def sample_anchors(key, kinds, count=256, fraction=0.5):
    """Samples anchors for the loss of the RPN, and ignores the others.

    At most `fraction * count` positive anchors stay, and negative ones fill up to `count`. All
    subsets of a size are equally likely.

    Args:
        key: `jax.random` key; make it from seed, step and example, so that it does not depend on
            the number of devices.
        kinds: int `[A]`, from `rpn_labels`.
        count: number of sampled anchors; static.
        fraction: largest fraction of positive ones.

    Returns:
        int32 `[A]`, as `kinds`, with -1 for all that are not sampled. Fewer than `count` are
        sampled if there are not enough.

    Raises:
        ValueError: `kinds` is not `[A]`, or `count` or `fraction` is out of range.

    Example:
        >>> kinds = jnp.array([1] * 6 + [0] * 20 + [-1] * 4)
        >>> sampled = sample_anchors(jax.random.key(0), kinds, 8)
        >>> int((sampled == 1).sum()), int((sampled == 0).sum())
        (4, 4)

    Reference:
        Ren et al. Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks.
        NIPS 2015, section 3.1.3.
    """
    kinds = jnp.asarray(kinds, jnp.int32)
    if kinds.ndim != 1 or count < 1 or not 0 <= fraction <= 1:
        raise ValueError(
            f"kinds has shape {kinds.shape}, count is {count} and fraction {fraction}, but [A], at "
            "least 1 and 0 to 1 were expected."
        )
    numbers = jax.random.uniform(key, kinds.shape)
    positive = _some(numbers, kinds == POSITIVE, int(fraction * count), int(fraction * count))
    negative = _some(numbers, kinds == NEGATIVE, count, count - positive.sum())
    sampled = jnp.where(negative, NEGATIVE, IGNORED)
    return jnp.where(positive, POSITIVE, sampled).astype(jnp.int32)


def rpn_targets(key, anchors, boxes, labels, shape, *, count=256, fraction=0.5):
    """What Faster R-CNN's RPN learns for an image: sampled anchors and the coded boxes of truths.

    Args:
        key: as for `sample_anchors`.
        anchors: float `[A, 4]`, (top, left, bottom, right) in pixels, half-open.
        boxes: float `[G, 4]` in pixels.
        labels: int `[G]`, -1 for padding.
        shape: (height, width) of the image in pixels, without padding; may be traced.
        count: number of sampled anchors; static.
        fraction: largest fraction of positive ones.

    Returns:
        `(kinds, offsets)`: int32 `[A]`, 1 for positive, 0 for negative, -1 for not sampled; float32
        `[A, 4]`, from `encode` with variances of 1, zeros for anchors that are not positive.
        Neither has a gradient.

    Raises:
        ValueError: the shapes do not fit, or `count` or `fraction` is out of range.

    Example:
        >>> anchors = jnp.array([[0, 0, 4, 8], [4, 0, 8, 8], [-1, 0, 4, 4]])
        >>> truth = jnp.array([[1, 0, 5, 8]]), jnp.array([2])
        >>> kinds, offsets = rpn_targets(jax.random.key(0), anchors, *truth, (8, 8), count=4)
        >>> kinds.tolist(), offsets[0].tolist()
        ([1, 0, -1], [0.25, 0.0, 0.0, 0.0])

    Reference:
        Ren et al. Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks.
        NIPS 2015, sections 3.1.2 and 3.1.3.
    """
    kinds, index = rpn_labels(anchors, boxes, labels, shape)
    kinds = sample_anchors(key, kinds, count, fraction)
    if not len(labels):
        return kinds, jnp.zeros((len(kinds), 4), jnp.float32)
    anchors, boxes = lax.stop_gradient((as_boxes("anchors", anchors), as_boxes("boxes", boxes)))
    offsets = encode(boxes[index], anchors, (1, 1, 1, 1))
    return kinds, jnp.where((kinds == POSITIVE)[:, None], offsets, 0)


def sample_rois(
    key,
    proposals,
    valid,
    boxes,
    labels,
    *,
    count=128,
    fraction=0.25,
    threshold=0.5,
    variances=VARIANCES,
):
    """Samples regions for the loss of Faster R-CNN's second stage, and gives their targets.

    The truths are added to the proposals. A region is foreground if its highest IoU with a truth
    reaches the threshold; it learns the class and box of that truth, the first of equal ones. All
    others are background. At most `fraction * count` foreground regions are sampled, and background
    ones fill up to `count`. All subsets of a size are equally likely.

    If there are not enough regions, some outputs are unused. The original code repeats regions
    then.

    Args:
        key: `jax.random` key; make it from seed, step and example, so that it does not depend on
            the number of devices.
        proposals: float `[n, 4]`, (top, left, bottom, right) in pixels.
        valid: bool `[n]`, False for padding.
        boxes: float `[G, 4]` in pixels.
        labels: int `[G]`, classes from 0, -1 for padding.
        count: R, number of sampled regions; static.
        fraction: largest fraction of foreground.
        threshold: smallest IoU of foreground.
        variances: as for `encode`.

    Returns:
        `(rois, classes, offsets)`: float32 `[R, 4]`; int32 `[R]`, 1 + the label for foreground, 0
        for background, -1 for unused ones, whose boxes are zeros; float32 `[R, 4]`, from `encode`,
        zeros if not foreground. Foreground comes first, unused ones last. None has a gradient.

    Raises:
        ValueError: the shapes do not fit, or `count` or `fraction` is out of range.

    Example:
        >>> proposals = jnp.array([[0, 0, 4, 8], [20, 20, 28, 28], [0, 0, 0, 0]])
        >>> valid, key = jnp.array([True, True, False]), jax.random.key(0)
        >>> truth = jnp.array([[1, 0, 5, 8]]), jnp.array([6])
        >>> rois, classes, offsets = sample_rois(key, proposals, valid, *truth, count=8)
        >>> classes.tolist()
        [7, 7, 0, -1, -1, -1, -1, -1]

    Reference:
        Girshick. Fast R-CNN. ICCV 2015, section 2.3; the truths and the lower bound of 0 for
        background are those of the code that the CutMix paper cites.
    """
    proposals, valid = as_boxes("proposals", proposals), jnp.asarray(valid, bool)
    boxes, labels = as_boxes("boxes", boxes), jnp.asarray(labels, jnp.int32)
    good = proposals.ndim == boxes.ndim == 2 and (
        (*valid.shape, *labels.shape) == (len(proposals), len(boxes))
    )
    if not good or count < 1 or not 0 <= fraction <= 1:
        raise ValueError(
            f"proposals has shape {proposals.shape}, valid {valid.shape}, boxes {boxes.shape}, "
            f"labels {labels.shape}, count is {count} and fraction {fraction}, but [n, 4], [n], "
            "[G, 4], [G], at least 1 and 0 to 1 were expected. Use jax.vmap for several images."
        )
    # One truth and `count` regions of padding, so that there is always something to take.
    regions = jnp.concatenate([proposals, boxes, jnp.zeros((count, 4))])
    valid = jnp.concatenate([valid, labels >= 0, jnp.zeros(count, bool)])
    regions, boxes = lax.stop_gradient((regions, jnp.pad(boxes, ((0, 1), (0, 0)))))
    overlaps, labels = _overlaps(
        regions, boxes, jnp.pad(labels, (0, 1), constant_values=-1), "proposals"
    )
    index, foreground = overlaps.argmax(0), valid & (overlaps.max(0) >= threshold)
    numbers = jax.random.uniform(key, valid.shape)
    positive = _some(numbers, foreground, int(fraction * count), int(fraction * count))
    negative = _some(numbers, valid & ~foreground, count, count - positive.sum())
    kinds = jnp.where(positive, POSITIVE, jnp.where(negative, NEGATIVE, IGNORED))
    kinds, chosen = lax.top_k(kinds, count)
    rois, truth = regions[chosen], index[chosen]
    classes = jnp.where(kinds == POSITIVE, labels[truth] + 1, kinds)
    offsets = encode(boxes[truth], rois, variances)
    return (
        jnp.where((kinds == IGNORED)[:, None], 0, rois),
        classes.astype(jnp.int32),
        jnp.where((kinds == POSITIVE)[:, None], offsets, 0),
    )


def _some(numbers, mask, most, wanted):
    """Up to `wanted` entries of `mask`, those with the highest numbers; `most` is static."""
    values, index = lax.top_k(jnp.where(mask, numbers, -1), min(most, len(mask)))
    chosen = (values >= 0) & (jnp.arange(len(values)) < wanted)
    return jnp.zeros(mask.shape, bool).at[index].set(chosen)
