"""SSD's loss, with the hardest negatives of each image."""

import jax.numpy as jnp
import optax
from jax import lax

from cutmix_jax.detection.boxes import as_boxes


def hard_negatives(losses, positive, ratio=3):
    """The negatives with the highest losses of each image, `ratio` for each positive.

    Exactly `min(ratio * positives, negatives)` are chosen. Of equal losses, the first are. This
    takes one sort of the losses and a threshold, which is faster than ranks from two sorts.

    Args:
        losses: float `[..., P]`; no gradient flows through the choice.
        positive: bool `[..., P]`.
        ratio: negatives per positive; an int.

    Returns:
        bool `[..., P]`, False where `positive` is set.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> losses = jnp.array([0.1, 9.0, 0.4, 0.4, 0.4, 0.3])
        >>> hard_negatives(losses, jnp.arange(6) == 1, ratio=2).tolist()
        [False, False, True, True, False, False]

    Reference:
        Liu et al. SSD: Single Shot MultiBox Detector. ECCV 2016, section 2.2.
    """
    losses, positive = jnp.asarray(losses), jnp.asarray(positive, bool)
    if losses.shape != positive.shape or not losses.ndim:
        raise ValueError(
            f"losses has shape {losses.shape} and positive {positive.shape}, but the same [..., P] "
            "was expected."
        )
    values = jnp.where(positive, -jnp.inf, lax.stop_gradient(losses))
    positives = positive.sum(-1, keepdims=True)
    count = jnp.minimum(ratio * positives, losses.shape[-1] - positives)
    descending = -jnp.sort(-values, axis=-1)
    limit = jnp.take_along_axis(descending, jnp.maximum(count - 1, 0), -1)
    above = values > limit
    equal = (values == limit) & ~positive
    left = count - above.sum(-1, keepdims=True)
    return above | (equal & (jnp.cumsum(equal, -1) <= left))


def ssd_loss(logits, deltas, classes, offsets, ratio=3, count=None):
    r"""The loss of SSD: where the boxes are, and what is in them.

    With the N positive priors of the batch, and the chosen negatives of each image:

    .. math::

        L_\mathrm{loc} = \frac{1}{N} \sum_{\mathrm{pos}} \sum_{k=1}^4 s(d_k - t_k), \quad
        L_\mathrm{cls} = \frac{1}{N} \sum_{\mathrm{pos, neg}}
            \left(\log \sum_c e^{z_c} - z_y\right)

    Here s is smooth L1, :math:`s(x) = x^2 / 2` for :math:`|x| < 1` and :math:`|x| - 1/2` otherwise.
    Without positives both losses and their gradients are 0.

    Args:
        logits: z, float `[B, P, C + 1]`; class 0 is the background.
        deltas: d, float `[B, P, 4]`, coded boxes of the network.
        classes: y, int `[B, P]`, from `ssd_targets`.
        offsets: t, float `[B, P, 4]`, from `ssd_targets`.
        ratio: negatives per positive, as for `hard_negatives`.
        count: N; may be traced. The default is that of this batch. If it is a part of a batch, give
            the N of the whole, divided by the number of parts: the mean over the parts is then the
            loss of the whole.

    Returns:
        `(localization, classification)`, float32 scalars. The loss of SSD is their sum.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> classes = jnp.array([[1, 0, 0]])
        >>> zeros = jnp.zeros((1, 3, 4))
        >>> losses = ssd_loss(jnp.zeros((1, 3, 2)), zeros + 2, classes, zeros, ratio=1)
        >>> [round(float(loss), 4) for loss in losses]  # 4 * 1.5, 2 log 2
        [6.0, 1.3863]

    Reference:
        Liu et al. SSD: Single Shot MultiBox Detector. ECCV 2016, equations 1 to 3.
    """
    logits, classes = jnp.asarray(logits, jnp.float32), jnp.asarray(classes)
    deltas, offsets = as_boxes("deltas", deltas), as_boxes("offsets", offsets)
    shape = classes.shape
    if len(shape) != 2 or any(x.shape[:-1] != shape for x in (logits, deltas, offsets)):
        raise ValueError(
            f"logits has shape {logits.shape}, deltas {deltas.shape}, classes {shape} and offsets "
            f"{offsets.shape}, but [B, P, C + 1], [B, P, 4], [B, P] and [B, P, 4] were expected."
        )
    positive = classes > 0
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
    chosen = positive | hard_negatives(entropy, positive, ratio)
    error = jnp.where(positive[..., None], deltas - offsets, 0)
    size = jnp.abs(error)
    smooth = jnp.where(size < 1, error**2 / 2, size - 0.5)
    if count is None:
        count = jnp.maximum(positive.sum(), 1)
    return smooth.sum() / count, jnp.where(chosen, entropy, 0).sum() / count
