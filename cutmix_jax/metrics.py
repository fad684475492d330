"""Counters of classification on the device, and their sums on the host."""

import numpy as np
import optax
from clu.metrics import Average
from jax import numpy as jnp


def train_counters(loss, logits, targets):
    r"""Counts the loss and the lambda-weighted accuracy of one device's mixed examples.

    An example whose label is :math:`\lambda y_a + (1 - \lambda) y_b` counts as :math:`\lambda`
    right where the prediction is `a`, and as :math:`1 - \lambda` right where it is `b`.

    Args:
        loss: float32 ``[B]``, as it is minimized.
        logits: float32 ``[B, K]``.
        targets: float32 ``[B, K]``, rows that sum to 1, before any label smoothing.

    Returns:
        A dictionary of `clu.metrics.Average`, to be summed over the devices.
    """
    right = jnp.take_along_axis(targets, jnp.argmax(logits, -1)[:, None], -1)[:, 0]
    return {
        "loss": Average.from_model_output(loss),
        "weighted_accuracy": Average.from_model_output(right),
    }


def eval_counters(logits, labels, mask):
    """Counts the loss and the top-1 and top-5 errors of one device's examples where `mask` is set.

    Args:
        logits: float32 ``[B, K]``; with fewer than 5 classes, top-5 means top-K.
        labels: int32 ``[B]``.
        mask: bool ``[B]``, False for padding.

    Returns:
        A dictionary of `clu.metrics.Average`, to be summed over the devices.
    """
    rank = ranks(logits, labels)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    values = {
        "loss": loss,
        "top1_error": (rank > 0).astype(jnp.float32),
        "top5_error": (rank >= min(5, logits.shape[-1])).astype(jnp.float32),
    }
    return {name: Average.from_model_output(value, mask) for name, value in values.items()}


def ranks(logits, labels):
    """How many classes come before the true one.

    Of equal logits the lower class comes first; a class whose logit is NaN comes last.

    Args:
        logits: float ``[B, K]``.
        labels: int ``[B]``.

    Returns:
        int32 ``[B]``, 0 where the prediction is right, K where the logit of the true class is NaN.

    Example:
        >>> ranks(jnp.array([[0.1, 0.7, 0.7], [jnp.nan] * 3]), jnp.array([2, 0])).tolist()
        [1, 3]
    """
    own = jnp.take_along_axis(logits, labels[:, None], 1)
    lower = jnp.arange(logits.shape[1]) < labels[:, None]
    before = ((logits > own) | ((logits == own) & lower)).sum(1)
    return jnp.where(jnp.isnan(own[:, 0]), logits.shape[1], before)


class Totals:
    """Sums counters on the host, in float64, in a form that JSON keeps exactly."""

    def __init__(self, values=None):
        self.values = {name: tuple(value) for name, value in (values or {}).items()}

    def add(self, counters):
        """Adds fetched counters, whose leaves may have a leading axis of steps."""
        for name, counter in counters.items():
            total, count = self.values.get(name, (0.0, 0))
            total += float(np.sum(counter.total, dtype=np.float64))
            self.values[name] = (total, count + int(np.sum(counter.count)))

    def means(self):
        """The mean of each counter; 0 if it counted nothing."""
        return {name: total / max(count, 1) for name, (total, count) in self.values.items()}
