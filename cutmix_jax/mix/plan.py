"""The plan of a mix, and what it does to images and labels."""

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cutmix_jax.mix import check

# Window sides of `paste='window'`, as quarters of the image's sides. Each is a branch to compile;
# with eight of them the copy that the finer fit saves is smaller than what the branches cost.
WINDOW_QUARTERS = (1, 2, 3, 4)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Plan:
    r"""What will be mixed with what: a small pytree, drawn before any pixel is touched.

    .. math::
        \tilde x_i = \begin{cases} x_{partner(i)} & \text{in the box} \\
                                   x_i & \text{outside} \end{cases}, \qquad
        \tilde y_i = \lambda_i y_i + (1 - \lambda_i) y_{partner(i)}

    Attributes:
        partner: int32 `[B]`, the example that is pasted into, or blended with, this one.
        box: int32 `[1 or B, 2, n]`, the half-open (low, high) corners of the pasted region in
            pixels, for n spatial axes; low = high: nothing is pasted.
        ratio: `None`, or float32 `[1 or B]`, the own share outside the box. `None`: nothing is
            multiplied there.
        lam: float32 `[1 or B]`, the weight of the own label.
        fill: `None`, or the value that takes the place of the partner's pixels in the box.
        sides: the sides of the image that the box is measured in, in pixels (static).
    """

    partner: jax.Array
    box: jax.Array
    lam: jax.Array
    ratio: jax.Array | None = None
    fill: Any = None
    sides: tuple[int, ...] = field(metadata={"static": True})


def pasted_pixels(box):
    """Counts the pixels in each box: int32 `[1 or B]`."""
    return jnp.prod(box[:, 1] - box[:, 0], axis=-1)


def kept_share(box, sides):
    """Returns the share of pixels outside each box: float32 `[1 or B]`, rounded once.

    XLA turns the division by a constant into a multiplication by its reciprocal, off by one unit
    in the last place for every fourth area of a 224 x 224 image; so the divisor is counted too.
    """
    pasted = pasted_pixels(box)
    kept = math.prod(sides) - pasted
    pixels = kept + lax.optimization_barrier(pasted)
    return kept.astype(jnp.float32) / pixels.astype(jnp.float32)


def share(plan):
    r"""Returns the share of each mixed image that is its own.

    .. math:: \text{share}_i = \text{ratio}_i \, (1 - |\text{box}_i| / \textstyle\prod_k \text{side}_k)

    Args:
        plan: a `Plan`.

    Returns:
        float32 `[1 or B]`, rounded once. CutMix weighs the own label by just this share; it is
        there for the plans that weigh labels otherwise, such as Cutout.

    Example:
        >>> import jax
        >>> from cutmix_jax import mix
        >>> plan = mix.sample_cutmix(jax.random.key(0), batch_size=4, sides=(32, 32))
        >>> bool(mix.share(plan) == plan.lam)
        True
    """
    outside = kept_share(plan.box, plan.sides)
    return outside if plan.ratio is None else outside * plan.ratio


def apply(plan, tree, *, spatial_axes=(1, 2), paste="auto"):
    r"""Mixes every array of a pytree as the plan says.

    .. math:: \tilde x_i[p] = x_{partner(i)}[p] \text{ if } p \in \text{box}_i \text{ else } x_i[p]

    Pixels are selected and never multiplied, so dtypes stay as they are, uint8 is exact, and NaN
    outside the pasted region of the partner stays out.

    Args:
        plan: a `Plan` for batches of this size.
        tree: a pytree of arrays, each with the batch first: `[B, ...]`, any dtype. An array whose
            sides are a fraction of `plan.sides` (a segmentation mask at a lower resolution) takes,
            in each of its cells, what the image has at the cell's centre.
        spatial_axes: the axes that the plan's sides lie on, `(1, 2)` for `[B, H, W, C]`. Negative
            axes count from the end: `(-2, -1)` fits `[B, C, H, W]` and `[B, H, W]` alike.
        paste: `'window'` reads and writes no more than a window around the box (one box per batch
            only), `'mask'` selects over the whole image, `'auto'` takes the window where it can.
            All give the same bits.

    Returns:
        A pytree like `tree`.

    Raises:
        ValueError: while tracing, if an array does not fit the plan.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from cutmix_jax import mix
        >>> images = jnp.stack([jnp.zeros((4, 4, 1)), jnp.ones((4, 4, 1))])
        >>> plan = mix.sample_cutmix(jax.random.key(3), 2, (4, 4), partner='reverse')
        >>> mix.apply(plan, images)[0, :, :, 0].astype(int)

    Reference:
        Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
        Features", ICCV 2019.
    """
    paste = check.choice("paste", paste, PASTES)
    windowed = plan.box.shape[0] == 1
    if paste is _window and not windowed:
        raise ValueError(
            f"paste='window' needs one box for the whole batch, but the plan has"
            f" {plan.box.shape[0]}; use paste='mask', or scope='batch' for the plan."
        )
    paste = paste or (_window if windowed else _mask)
    return jax.tree.map(lambda leaf: _apply_to(plan, jnp.asarray(leaf), spatial_axes, paste), tree)


def _apply_to(plan, x, spatial_axes, paste):
    axes = _axes_of(plan, x, spatial_axes)
    return paste(plan, x, axes, _box_on(plan, tuple(x.shape[axis] for axis in axes)))


def _axes_of(plan, x, spatial_axes):
    """Returns the spatial axes counted from the front, checked against the plan."""
    axes = tuple(axis % x.ndim for axis in spatial_axes if -x.ndim <= axis < x.ndim)
    if not len(axes) == len(set(axes)) == len(spatial_axes) or 0 in axes:
        raise ValueError(
            f"spatial_axes={spatial_axes} does not name {len(spatial_axes)} axes after the batch"
            f" axis of an array of shape {x.shape}."
        )
    if len(axes) != len(plan.sides):
        raise ValueError(
            f"spatial_axes={spatial_axes} names {len(axes)} axes, but the plan was drawn for the"
            f" {len(plan.sides)} sides {plan.sides}."
        )
    if x.shape[0] != plan.partner.shape[0]:
        raise ValueError(
            f"an array of shape {x.shape} has a batch of {x.shape[0]}, but the plan was drawn for"
            f" a batch of {plan.partner.shape[0]}."
        )
    sides = tuple(x.shape[axis] for axis in axes)
    # One scale for all axes, up to rounding, tells a smaller mask from a wrong choice of axes.
    scales = [
        ((side - 1) / of, (side + 1) / of) for side, of in zip(sides, plan.sides, strict=True)
    ]
    if max(low for low, _ in scales) >= min(high for _, high in scales):
        raise ValueError(
            f"an array of shape {x.shape} has sides {sides} on spatial_axes={spatial_axes}, but"
            f" the plan was drawn for sides {plan.sides}; give sides of that shape, or name the"
            f" spatial axes."
        )
    return axes


def _box_on(plan, sides):
    """Returns the box in the pixels of an array with other sides, by its cells' centres."""
    if sides == plan.sides:
        return plan.box
    side, of = jnp.asarray(sides, jnp.int32), jnp.asarray(plan.sides, jnp.int32)
    return -((of - 2 * plan.box * side) // (2 * of))


def _inside(box, shape, axes):
    """Returns bool, which pixels of `shape` lie in their box; broadcasts against `shape`."""
    inside = True
    for i, axis in enumerate(axes):
        index = lax.broadcasted_iota(
            jnp.int32, [n if a == axis else 1 for a, n in enumerate(shape)], axis
        )
        low, high = (box[:, k, i].reshape(-1, *[1] * (len(shape) - 1)) for k in (0, 1))
        inside &= (low <= index) & (index < high)
    return inside


def _mask(plan, x, axes, box):
    """Selects over the whole image."""
    return jnp.where(_inside(box, x.shape, axes), x[plan.partner], x)


def _window(plan, x, axes, box):
    """Selects in the smallest window of the list that holds the box; the rest is not read."""
    sides = jnp.asarray([x.shape[axis] for axis in axes], jnp.int32)

    def paste_in(quarters):
        shape = list(x.shape)
        for axis in axes:
            shape[axis] = -(-x.shape[axis] * quarters // 4)

        def branch(x):
            start = [jnp.int32(0)] * x.ndim
            for i, axis in enumerate(axes):
                start[axis] = jnp.minimum(box[0, 0, i], x.shape[axis] - shape[axis])
            own = lax.dynamic_slice(x, start, shape)
            corner = jnp.stack([start[axis] for axis in axes])
            mixed = jnp.where(_inside(box - corner, shape, axes), own[plan.partner], own)
            return lax.dynamic_update_slice(x, mixed, start)

        return branch

    extent = box[0, 1] - box[0, 0]
    quarters = jnp.max(-(-4 * extent // sides))
    branches = [lambda x: x] + [paste_in(quarters) for quarters in WINDOW_QUARTERS]
    return lax.switch(jnp.where(jnp.all(extent > 0), quarters, 0), branches, x)


PASTES = {"auto": None, "window": _window, "mask": _mask}


def mix_labels(plan, labels, num_classes=None):
    r"""Mixes labels by the plan's weights; never smooths them.

    .. math:: \tilde y_i = \lambda_i y_i + (1 - \lambda_i) y_{partner(i)}

    Args:
        plan: a `Plan` for batches of this size.
        labels: class ids, int `[B]`, with `num_classes`; or one row per example, `[B, K]`: soft
            (floating) or multi-hot (floating, int or bool).
        num_classes: K, the number of classes that ids are below.

    Returns:
        float32 `[B, K]`.

    Raises:
        ValueError: while tracing, if the labels are neither, or do not match the plan's batch.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from cutmix_jax import mix
        >>> plan = mix.sample_cutmix(jax.random.key(3), 2, (4, 4), partner='reverse')
        >>> mix.mix_labels(plan, jnp.array([0, 2]), num_classes=3)
    """
    labels = _label_rows(jnp.asarray(labels), num_classes, plan.partner.shape[0])
    lam = plan.lam[:, None]
    # Selected where one side has no weight, as pixels are: its value may be NaN.
    own = jnp.where(lam > 0, lam * labels, 0)
    return own + jnp.where(lam < 1, (1 - lam) * labels[plan.partner], 0)


def _label_rows(labels, num_classes, batch_size):
    """Returns labels as float32 `[B, K]`, or raises naming what was found and expected."""
    found = f"labels are {labels.dtype}{list(labels.shape)}"
    floating = jnp.issubdtype(labels.dtype, jnp.floating)
    if labels.ndim not in (1, 2) or labels.shape[0] != batch_size:
        raise ValueError(f"{found}, expected [{batch_size}] or [{batch_size}, K] as in the plan.")
    if labels.ndim == 2:
        if num_classes not in (None, labels.shape[1]):
            raise ValueError(f"{found}, but num_classes={num_classes}; leave num_classes out.")
        return labels.astype(jnp.float32)
    if floating or labels.dtype == bool:
        raise ValueError(
            f"{found}, which are neither class ids (integers [B]) nor one row per example [B, K]."
        )
    if num_classes is None:
        raise ValueError(f"{found}: class ids need num_classes to become rows of weights.")
    return jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
