"""Faster R-CNN around its network: proposals, losses and detections.

What the two stages learn is in `matching`: `rpn_targets` and `sample_rois`.
"""

import jax
import jax.numpy as jnp
import optax
from jax import lax

from cutmix_jax.detection.boxes import VARIANCES, as_boxes, clip, decode
from cutmix_jax.detection.matching import POSITIVE
from cutmix_jax.detection.nms import nms, nms_per_class


def rpn_proposals(
    scores, deltas, anchors, shape, *, candidates=12000, max_outputs=2000, threshold=0.7
):
    """The regions that the RPN proposes for an image: decoded, clipped, and without overlaps.

    Args:
        scores: float `[A]`, higher for objects; logits will do.
        deltas: float `[A, 4]`, coded boxes of the network, with variances of 1.
        anchors: float `[A, 4]`, (top, left, bottom, right) in pixels.
        shape: (height, width) of the image in pixels, without padding; may be traced.
        candidates: number of best anchors to visit; static. The default is that of training; for
            evaluation it is 6000.
        max_outputs: n, the number of outputs; static. For evaluation it is 300.
        threshold: largest IoU of two proposals.

    Returns:
        `(boxes, valid)`: float32 `[n, 4]` in pixels, best first, zeros where not valid; bool `[n]`.
        Boxes that are empty after clipping are left out. Neither has a gradient.

    Raises:
        ValueError: the shapes do not fit, or `max_outputs` or `candidates` is below 1.

    Example:
        >>> anchors = jnp.array([[0, 0, 8, 8], [0, 0, 8, 9], [4, 4, 40, 40], [-9, 0, 0, 9]])
        >>> scores, deltas = jnp.array([0.5, 0.4, 0.6, 0.9]), jnp.zeros((4, 4))
        >>> boxes, valid = rpn_proposals(scores, deltas, anchors, (20, 30), max_outputs=3)
        >>> boxes.tolist()
        [[4.0, 4.0, 20.0, 30.0], [0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 0.0, 0.0]]

    Reference:
        Ren et al. Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks.
        NIPS 2015, section 3.3.
    """
    scores, deltas, anchors = lax.stop_gradient(
        (jnp.asarray(scores), as_boxes("deltas", deltas), as_boxes("anchors", anchors))
    )
    if scores.ndim != 1 or not deltas.shape == anchors.shape == (len(scores), 4):
        raise ValueError(
            f"scores has shape {scores.shape}, deltas {deltas.shape} and anchors {anchors.shape}, "
            "but [A], [A, 4] and [A, 4] were expected. Use jax.vmap for several images."
        )
    boxes = clip(decode(deltas, anchors, (1, 1, 1, 1)), shape)
    scores = jnp.where(_some_area(boxes), scores, -jnp.inf)
    indices, valid = nms(boxes, scores, threshold, max_outputs, candidates=candidates)
    return jnp.where(valid[:, None], boxes[indices], 0), valid


def _some_area(boxes):
    return (boxes[..., 2:] > boxes[..., :2]).all(-1)


def rpn_loss(logits, deltas, kinds, offsets, sigma=3, count=None):
    r"""The loss of the RPN: where objects are, and whether there are any.

    With the N sampled anchors of the batch, and smooth L1
    :math:`s(x) = \sigma^2 x^2 / 2` for :math:`|x| < 1 / \sigma^2` and
    :math:`|x| - 1 / (2 \sigma^2)` otherwise:

    .. math::

        L_\mathrm{loc} = \frac{1}{N} \sum_{\mathrm{pos}} \sum_{k=1}^4 s(d_k - t_k), \quad
        L_\mathrm{cls} = \frac{1}{N} \sum_{\mathrm{pos, neg}}
            \left(\log \sum_c e^{z_c} - z_y\right)

    Without samples both losses and their gradients are 0.

    Args:
        logits: z, float `[B, A, 2]`, (background, object).
        deltas: d, float `[B, A, 4]`, coded boxes of the network.
        kinds: y, int `[B, A]`, from `rpn_targets`; -1 for anchors that are not sampled.
        offsets: t, float `[B, A, 4]`, from `rpn_targets`.
        sigma: where smooth L1 becomes linear, as above.
        count: N; may be traced. The default is that of this batch. If it is a part of a batch, give
            the N of the whole, divided by the number of parts, as for `ssd_loss`.

    Returns:
        `(localization, classification)`, float32 scalars. The loss is their sum.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> zeros = jnp.zeros((1, 3, 4))
        >>> losses = rpn_loss(zeros[..., :2], zeros + 1, jnp.array([[1, 0, -1]]), zeros)
        >>> [round(float(loss), 4) for loss in losses]  # 4 * (1 - 1/18) / 2, log 2
        [1.8889, 0.6931]

    Reference:
        Ren et al. Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks.
        NIPS 2015, equation 1; N and sigma are those of the code that the CutMix paper cites.
    """
    logits, deltas, kinds, offsets = _checked(logits, deltas, kinds, offsets, classes=2)
    return _losses(logits, deltas, kinds, offsets, kinds == POSITIVE, sigma, count)


def head_loss(logits, deltas, classes, offsets, sigma=1, count=None):
    """The loss of the second stage: where the boxes are, and what is in them.

    It is that of `rpn_loss`, with all sampled regions of the batch for the anchors, and the deltas
    of each region's own class.

    Args:
        logits: float `[B, R, C + 1]`; class 0 is the background.
        deltas: float `[B, R, C + 1, 4]`, coded boxes for each class; those of class 0 are not used.
        classes: int `[B, R]`, from `sample_rois`; -1 for unused regions.
        offsets: float `[B, R, 4]`, from `sample_rois`.
        sigma: where smooth L1 becomes linear.
        count: as for `rpn_loss`.

    Returns:
        `(localization, classification)`, float32 scalars. The loss is their sum.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> offsets, deltas = jnp.zeros((1, 3, 4)), jnp.ones((1, 3, 5, 4))
        >>> losses = head_loss(jnp.zeros((1, 3, 5)), deltas, jnp.array([[3, 0, -1]]), offsets)
        >>> [round(float(loss), 4) for loss in losses]  # 4 * 0.5 / 2, log 5
        [1.0, 1.6094]

    Reference:
        Girshick. Fast R-CNN. ICCV 2015, equations 1 to 3.
    """
    outputs = jnp.shape(logits)[-1] if jnp.ndim(logits) else 0
    logits, deltas, classes, offsets = _checked(
        logits, deltas, classes, offsets, classes=outputs, inner=(outputs,)
    )
    own = jnp.maximum(classes, 0)[..., None, None]
    deltas = jnp.take_along_axis(deltas, own, 2)[:, :, 0]
    return _losses(logits, deltas, classes, offsets, classes > 0, sigma, count)


def _checked(logits, deltas, targets, offsets, classes, inner=()):
    logits, targets = jnp.asarray(logits, jnp.float32), jnp.asarray(targets, jnp.int32)
    deltas, offsets = as_boxes("deltas", deltas), as_boxes("offsets", offsets)
    shape = targets.shape
    if (
        len(shape) != 2
        or logits.shape != (*shape, classes)
        or deltas.shape != (*shape, *inner, 4)
        or offsets.shape != (*shape, 4)
    ):
        middle = "C + 1, " if inner else ""
        raise ValueError(
            f"logits has shape {logits.shape}, deltas {deltas.shape}, targets {shape} and offsets "
            f"{offsets.shape}, but [B, n, {middle.rstrip(', ') or 2}], [B, n, {middle}4], [B, n] "
            "and [B, n, 4] were expected."
        )
    return logits, deltas, targets, offsets


def _losses(logits, deltas, targets, offsets, positive, sigma, count):
    """(localization, classification), both over `count`, or the number of targets but -1."""
    sampled = targets >= 0
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets, 0))
    error = jnp.where(positive[..., None], deltas - offsets, 0)
    size, square = jnp.abs(error), sigma * sigma
    smooth = jnp.where(size < 1 / square, square * error**2 / 2, size - 0.5 / square)
    if count is None:
        count = jnp.maximum(sampled.sum(), 1)
    return smooth.sum() / count, jnp.where(sampled, entropy, 0).sum() / count


def rcnn_detections(
    logits, deltas, rois, valid, shape, *, threshold=0.3, max_outputs=100, min_score=0.0,
    variances=VARIANCES,
):  # fmt: skip
    """What Faster R-CNN finds in an image: NMS for each class, then the best of all classes.

    Args:
        logits: float `[R, C + 1]`; class 0 is the background.
        deltas: float `[R, C + 1, 4]`, coded boxes for each class.
        rois: float `[R, 4]`, (top, left, bottom, right) in pixels, from `rpn_proposals`.
        valid: bool `[R]`, False for padding.
        shape: (height, width) of the image in pixels, without padding; may be traced.
        threshold: largest IoU of two detections of a class.
        max_outputs: K, the number of detections; static.
        min_score: probabilities have to be above it.
        variances: as for `decode`.

    Returns:
        `(boxes, scores, labels)`: float32 `[K, 4]` in pixels, float32 `[K]`, int32 `[K]`, from the
        highest probability on. Labels are classes from 0, and -1 for padding, whose boxes and
        scores are 0. After `jax.vmap` they are the fields of `average_precision.Detections`.

    Raises:
        ValueError: the shapes do not fit, or `max_outputs` is below 1.

    Example:
        >>> rois, valid = jnp.array([[0, 0, 8, 8], [0, 0, 8, 9]]), jnp.array([True, True])
        >>> logits = jnp.log(jnp.array([[0.2, 0.8, 0.0], [0.4, 0.5, 0.1]]))
        >>> deltas = jnp.zeros((2, 3, 4))
        >>> found = rcnn_detections(logits, deltas, rois, valid, (20, 30), max_outputs=3)
        >>> found[0].tolist(), found[2].tolist()
        ([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 9.0], [0.0, 0.0, 0.0, 0.0]], [0, 1, -1])

    Reference:
        Ren et al. Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks.
        NIPS 2015; threshold and number are those of its code.
    """
    logits, deltas = jnp.asarray(logits, jnp.float32), as_boxes("deltas", deltas)
    rois, valid = as_boxes("rois", rois), jnp.asarray(valid, bool)
    regions = valid.shape
    if (
        len(regions) != 1
        or logits.ndim != 2
        or rois.shape != (*regions, 4)
        or (deltas.shape != (*regions, logits.shape[1], 4))
    ):
        raise ValueError(
            f"logits has shape {logits.shape}, deltas {deltas.shape}, rois {rois.shape} and valid "
            f"{regions}, but [R, C + 1], [R, C + 1, 4], [R, 4] and [R] were expected. Use jax.vmap "
            "for several images."
        )
    boxes = clip(decode(deltas[:, 1:], rois[:, None], variances), shape)
    scores = jax.nn.softmax(logits)[:, 1:]
    scores = jnp.where(valid[:, None] & _some_area(boxes), scores, -jnp.inf)
    indices, kept = nms_per_class(boxes, scores, threshold, max_outputs, min_score=min_score)
    label = jnp.broadcast_to(jnp.arange(len(indices))[:, None], indices.shape)
    boxes = boxes[indices, label].reshape(-1, 4)
    scores = jnp.where(kept, scores[indices, label], -jnp.inf)
    scores, order = lax.top_k(scores.ravel(), max_outputs)
    found = scores > -jnp.inf
    return (
        jnp.where(found[:, None], boxes[order], 0),
        jnp.where(found, scores, 0),
        jnp.where(found, label.ravel()[order], -1).astype(jnp.int32),
    )
