"""Mixing labels, other values per example, and losses by a plan."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cutmix_jax.mix import check
from cutmix_jax.mix.pixels import partners, precise
from cutmix_jax.mix.plan import Plan
from cutmix_jax.mix.types import ArrayOrList, PyTree


def mix_labels(plan: Plan, labels: ArrayOrList, num_classes: int | None = None) -> jax.Array:
    r"""Mixes labels by the plan's weights. Never smooths them.

    .. math:: \tilde y_i = \lambda_i y_i + (1 - \lambda_i) y_{partner_i}

    Args:
        plan: a `Plan` for batches of this size.
        labels: class ids, any integers `[B]`, with `num_classes`; or one row per example,
            `[B, K]`: soft (floating) or multi-hot (floating, bool, or integers 0 and 1).
        num_classes: K, the number of classes, for ids.

    Returns:
        float32 `[B, K]`.

    Raises:
        ValueError: while tracing, if the labels have another form or another batch size than the
            plan. Outside jit, also if ids are out of range or integer rows are not 0 or 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from cutmix_jax import mix
        >>> plan = mix.sample_cutmix(jax.random.key(91), 2, (4, 4), partner='reverse')
        >>> mix.mix_labels(plan, jnp.array([0, 2]), num_classes=3)
        Array([[0.75, 0.  , 0.25],
               [0.25, 0.  , 0.75]], dtype=float32)
    """
    labels = _label_rows(labels, num_classes, plan.partner.shape[0])
    return mix_values(plan, labels)


def mix_values(plan: Plan, values: PyTree) -> PyTree:
    r"""Mixes anything that has one value, or one array of them, per example.

    .. math:: \tilde v_i = \lambda_i v_i + (1 - \lambda_i) v_{partner_i}

    Args:
        plan: a `Plan` for batches of this size.
        values: a pytree of arrays `[B, ...]`: example weights, regression targets, embeddings.

    Returns:
        A pytree like `values`. Floating and complex dtypes stay, others become float32.

    Raises:
        ValueError: while tracing, if the batch is not the plan's.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from cutmix_jax import mix
        >>> plan = mix.sample_cutmix(jax.random.key(91), 2, (4, 4), partner='reverse')
        >>> mix.mix_values(plan, jnp.array([1.0, 0.0]))
        Array([0.75, 0.25], dtype=float32)
    """

    def mixed(values):
        values = jnp.asarray(values)
        if values.ndim == 0 or values.shape[0] != plan.partner.shape[0]:
            raise ValueError(
                f"values have shape {values.shape}, expected [{plan.partner.shape[0]}, ...] as in"
                f" the plan."
            )
        if not jnp.issubdtype(values.dtype, jnp.inexact):
            values = values.astype(jnp.float32)
        lam = plan.lam.reshape(-1, *[1] * (values.ndim - 1))
        return weighted(lam, values, partners(plan, values)).astype(values.dtype)

    return jax.tree.map(mixed, values)


def mix_losses(plan: Plan, loss_fn: Callable[[PyTree], ArrayLike], labels: PyTree) -> jax.Array:
    r"""Weighs the losses for an example's own label and for its partner's.

    .. math::
        \tilde\ell_i = \lambda_i \, \ell(y_i)_i + (1 - \lambda_i) \, \ell(y_{partner_i})_i

    For losses that are linear in the label, such as cross-entropy, this equals the loss for
    `mix_labels`. Use it for other losses, and for losses that take class ids only.

    Args:
        plan: a `Plan` for batches of this size.
        loss_fn: takes labels like `labels` and returns one loss per example, `[B]`.
        labels: a pytree of arrays `[B, ...]`, of any kind that `loss_fn` takes.

    Returns:
        floating `[B]`.

    Raises:
        ValueError: while tracing, if `loss_fn` does not return one loss per example.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from cutmix_jax import mix
        >>> plan = mix.sample_cutmix(jax.random.key(91), 2, (4, 4), partner='reverse')
        >>> log_probs = jax.nn.log_softmax(jnp.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]))
        >>> def loss_fn(labels):
        ...     return -jnp.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0]
        >>> mix.mix_losses(plan, loss_fn, jnp.array([0, 2]))
        Array([1.9076059, 1.0986123], dtype=float32)
    """
    labels = jax.tree.map(jnp.asarray, labels)
    others = jax.tree.map(lambda labels: partners(plan, labels), labels)
    own, other = (jnp.asarray(loss_fn(y)) for y in (labels, others))
    if own.shape != plan.partner.shape:
        raise ValueError(
            f"loss_fn returned shape {own.shape}, expected one loss per example,"
            f" {plan.partner.shape}."
        )
    return weighted(plan.lam, own, other)


def weighted(lam, own, other):
    """Returns lam own + (1 - lam) other. A value with weight 0 may be NaN."""
    own, other = (x.astype(precise(x.dtype)) for x in (own, other))
    first, second = lam.astype(own.dtype), (1 - lam).astype(other.dtype)
    return jnp.where(lam > 0, first * own, 0) + jnp.where(lam < 1, second * other, 0)


def _label_rows(labels, num_classes, batch_size):
    """Returns labels as float32 `[B, K]`, or raises naming what was found and expected."""
    labels = check.array("labels", labels)
    num_classes = check_labels(labels, num_classes)
    found = f"labels are {labels.dtype}{list(labels.shape)}"
    if labels.ndim not in (1, 2) or labels.shape[0] != batch_size:
        raise ValueError(f"{found}, expected [{batch_size}] or [{batch_size}, K] as in the plan.")
    if labels.ndim == 2:
        if num_classes not in (None, labels.shape[1]):
            raise ValueError(
                f"{found}, rows of {labels.shape[1]} weights, but num_classes={num_classes}."
            )
        return jnp.asarray(labels, jnp.float32)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"{found}: neither class ids (integers [B]) nor one row per example [B, K]; for other"
            f" values of an example, such as its weight, use mix_values."
        )
    if num_classes is None:
        raise ValueError(f"{found}: class ids need num_classes, the number of classes.")
    if labels.dtype.itemsize < 4:  # one_hot counts the classes in the dtype of the ids
        labels = labels.astype(jnp.int32)
    return jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)


def check_labels(labels, num_classes):
    """Returns `num_classes` as an int; raises if integer labels, where known, are no such labels.

    Ids outside the classes would become rows of zeros, and ids `[B, 1]` would be averaged.
    """
    if num_classes is not None:
        num_classes = check.whole("num_classes", num_classes, 1)
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.ndim not in (1, 2):
        return num_classes
    found = f"labels are {labels.dtype}{list(labels.shape)}"
    if labels.ndim == 2 and labels.shape[1] == 1 and num_classes != 1:
        raise ValueError(
            f"{found}: class ids must be [B], with num_classes; labels[:, 0] gives them so."
        )
    values = check.known(labels)
    if values is None or values.size == 0:
        return num_classes
    low, high = values.min(), values.max()
    if values.ndim == 2 and (low < 0 or high > 1):
        raise ValueError(
            f"{found}, rows of integers from {low} to {high}; expected 0 and 1 (multi-hot), or"
            f" weights as floats."
        )
    if values.ndim == 1 and num_classes is not None and (low < 0 or high >= num_classes):
        raise ValueError(
            f"labels hold class ids from {low} to {high}, but num_classes={num_classes} allows 0"
            f" to {num_classes - 1}."
        )
    return num_classes
