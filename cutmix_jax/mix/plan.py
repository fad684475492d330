"""The plan of a mix: its fields, the area it keeps, and selecting between plans."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cutmix_jax.mix.regions import checked_mask, inside, mask_on, per_example


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Plan:
    r"""What will be mixed with what: a small pytree, sampled before any pixel is touched.

    .. math::
        \tilde x_i[p] = s_i[p] \, x_i[p] + (1 - s_i[p]) \, x_{partner_i}[p], \qquad
        s_i[p] = \begin{cases} 0 & p \in \text{box}_i \\
            r_i \, (1 - M_i[p]) & \text{otherwise} \end{cases}, \qquad
        \tilde y_i = \lambda_i y_i + (1 - \lambda_i) y_{partner_i}

    Attributes:
        partner: int32 `[B]`, the example that is pasted into, or blended with, this one.
        box: int32 `[1 or B, 2, n]`, the half-open (low, high) corners of the pasted region in
            pixels, for n spatial axes; low = high: nothing is pasted.
        ratio: float32 `[1 or B]`, the weight r of the image itself outside the box; `None` in plans
            that only paste.
        mask: `[1 or B, m_1, ..., m_n]`, the partner's share M of each pixel, or `None`. bool pastes
            the partner where it is true. Floating values in [0, 1] blend. Any resolution: pixel i
            of a side S reads cell floor((i + 1/2) m / S), the one at its center.
        lam: float32 `[1 or B]`, the weight of the image's own label.
        fill: `None`, or the value that replaces the partner's pixels in the box, and where a bool
            mask is true; or `Noise`.
        filled: bool `[1 or B]`, which images have the fill; `None`: all, if there is a fill.
        frame: `None`, or int32 `[1 or B, 2, n]`, the half-open (low, high) corners of the box that
            the whole partner is resized to, as in ResizeMix. It may reach outside the image, and
            `box` is its part inside. `None` is the frame of the image itself: nothing is resized.
        sides: height and width of the image that the box is measured in (static).
        layer: the feature map that the plan is for, `'image'` by default (static).
        across: `None`, or the name of the mapped axis, if partners come from all devices (static).

    Example:
        >>> import jax.numpy as jnp
        >>> from cutmix_jax import mix
        >>> plan = mix.Plan(partner=jnp.array([1, 0]), box=jnp.array([[[0, 0], [2, 2]]]),
        ...                 lam=jnp.array([0.75]), sides=(4, 4))
        >>> mix.apply(plan, jnp.stack([jnp.zeros((4, 4)), jnp.ones((4, 4))]))[0]
        Array([[1., 1., 0., 0.],
               [1., 1., 0., 0.],
               [0., 0., 0., 0.],
               [0., 0., 0., 0.]], dtype=float32)
    """

    partner: jax.Array
    box: jax.Array
    lam: jax.Array
    ratio: jax.Array | None = None
    fill: Any = None
    filled: jax.Array | None = None
    mask: jax.Array | None = None
    frame: jax.Array | None = None
    sides: tuple[int, ...] = field(metadata={"static": True})
    layer: str = field(default="image", metadata={"static": True})
    across: str | None = field(default=None, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Noise:
    """A fill that is random: mean + std z, with z ~ N(0, 1) per image and channel, or per pixel.

    Attributes:
        key: a JAX random key.
        mean: float, or one per channel, as for `fill`.
        std: the same.
        per: `'image'` or `'pixel'` (static).
    """

    key: jax.Array
    mean: Any = 0.0
    std: Any = 1.0
    per: str = field(default="pixel", metadata={"static": True})


def rescaled_fill(plan, mean, std):
    """Returns a plan for normalized images as one for images before `(images - mean) / std`.

    Args:
        plan: a `Plan`, with or without a fill.
        mean: float, or `[C]` for images `[B, H, W, C]`.
        std: the same.
    """
    mean, std = jnp.asarray(mean), jnp.asarray(std)
    fill = plan.fill
    if isinstance(fill, Noise):
        fill = replace(fill, mean=mean + std * fill.mean, std=std * fill.std)
    elif fill is not None:
        fill = mean + std * fill
    return replace(plan, fill=fill)


def outside_fraction(box, sides):
    """Returns the fraction of pixels outside each box: float32 `[1 or B]`, rounded once."""
    box = box.astype(jnp.int32)
    return _unpasted_fraction(jnp.prod(box[:, 1] - box[:, 0], axis=-1), sides)


def _unpasted_fraction(pasted, sides):
    """Returns the fraction of pixels that are not pasted, from the number of those that are.

    XLA turns the division by a constant into a multiplication by its reciprocal. For every fourth
    area of a 224 x 224 image this is off by one unit in the last place. So the divisor is computed.
    """
    kept = math.prod(sides) - pasted
    pixels = kept + lax.optimization_barrier(pasted)
    return kept.astype(jnp.float32) / pixels.astype(jnp.float32)


def kept_fraction(plan: Plan) -> jax.Array:
    r"""Returns the fraction of each mixed image that comes from the image itself.

    .. math::
        \text{kept}_i = \frac{1}{|P|} \sum_{p \in P} s_i[p]
        = r_i \, (1 - |\text{box}_i| / |P|) \text{ without a mask}

    P are the pixels of `plan.sides`, and s is the image's own share of each, as in `Plan`.

    Args:
        plan: a `Plan`.

    Returns:
        float32 `[1 or B]`, rounded once. CutMix weights labels by exactly this. The function is
        useful for plans that do not, such as Cutout. A floating mask is averaged in float32.

    Raises:
        ValueError: while tracing, if the mask does not fit the plan.

    Example:
        >>> import jax
        >>> from cutmix_jax import mix
        >>> plan = mix.sample_cutout(jax.random.key(0), 2, (32, 32), size=16)
        >>> mix.kept_fraction(plan), plan.lam
        (Array([0.8359375, 0.9121094], dtype=float32), Array([1.], dtype=float32))
    """
    mask = checked_mask(plan)
    outside = outside_fraction(plan.box, plan.sides) if mask is None else _unmasked(plan, mask)
    return outside if plan.ratio is None else outside * plan.ratio


def _unmasked(plan, mask):
    """Returns the mean of 1 - M over all pixels, where those in the box count 0."""
    mask, axes = mask_on(mask, plan.sides), tuple(range(1, 1 + len(plan.sides)))
    in_box = inside(plan.box.astype(jnp.int32), (1, *plan.sides), axes)
    if mask.dtype == bool:
        return _unpasted_fraction(jnp.sum(in_box | mask, axes, jnp.int32), plan.sides)
    return jnp.mean(jnp.where(in_box, 0, 1 - mask.astype(jnp.float32)), axes)


def switched(plan, on):
    """Returns the plan where `on` (bool `[1 or B]`) is true, and an empty plan elsewhere."""
    return replace(
        plan,
        box=jnp.where(on[:, None, None], plan.box, 0),
        lam=jnp.where(on, plan.lam, 1.0),
        ratio=None if plan.ratio is None else jnp.where(on, plan.ratio, 1.0),
        mask=None
        if plan.mask is None
        else jnp.where(per_example(on, plan.mask.ndim), plan.mask, jnp.zeros((), plan.mask.dtype)),
    )


def select(chosen, sampled):
    """Returns one plan: for each image, that of the mix that was chosen for it.

    Args:
        chosen: int32 `[1 or B]`, indices of `sampled`.
        sampled: what each mix has sampled: tuples of plans.
    """
    plans = [plan for plans in sampled for plan in plans]
    kinds = {(plan.layer, plan.across) for plan in plans}
    fills = [plan.fill for plan in plans if plan.fill is not None]
    if (
        len(kinds) > 1
        or any(len(plans) != 1 for plans in sampled)
        or any(not _same_fill(fill, fills[0]) for fill in fills)
    ):
        raise ValueError(
            "random_choice() per device or image needs mixes that have one plan each, at the same"
            " layer, with partners from the same devices, and one fill at most. Use scope='batch'."
        )
    result, *others = [replace(plan, filled=_filled(plan)) for plan in plans]
    for i, plan in enumerate(others, 1):
        take, ratio, frame = chosen == i, None, None
        if (result.ratio, plan.ratio) != (None, None):
            ratios = (jnp.float32(1) if r is None else r for r in (plan.ratio, result.ratio))
            ratio = jnp.where(take, *ratios)
        if (result.frame, plan.frame) != (None, None):
            whole = jnp.asarray([[[0] * len(plan.sides), plan.sides]], jnp.int32)
            frames = (whole if f is None else f for f in (plan.frame, result.frame))
            frame = jnp.where(take[:, None, None], *frames)
        result = replace(
            result,
            partner=jnp.where(take, plan.partner, result.partner),
            box=jnp.where(take[:, None, None], plan.box, result.box),
            lam=jnp.where(take, plan.lam, result.lam),
            ratio=ratio,
            filled=jnp.where(take, plan.filled, result.filled),
            mask=_selected_mask(take, plan, result),
            frame=frame,
        )
    return replace(result, fill=fills[0]) if fills else replace(result, filled=None)


def _filled(plan):
    return jnp.full(1, plan.fill is not None) if plan.filled is None else plan.filled


def _same_fill(fill, other):
    return fill is other or (np.isscalar(fill) and np.isscalar(other) and fill == other)


def _selected_mask(take, plan, other):
    """Returns the mask of `plan` where `take` is true, and that of `other` elsewhere."""
    if plan.mask is None and other.mask is None:
        return None
    ndim = 1 + len(plan.sides)
    empty = jnp.zeros((1,) * ndim, bool)
    masks = [empty if p.mask is None else p.mask for p in (plan, other)]
    if any(1 < min(pair) < max(pair) for pair in zip(*(m.shape[1:] for m in masks), strict=True)):
        masks = [mask_on(mask, plan.sides) for mask in masks]
    dtype = jnp.promote_types(*(mask.dtype for mask in masks))
    return jnp.where(per_example(take, ndim), *(mask.astype(dtype) for mask in masks))


def on_device(key, axis_name):
    """Returns the key, or a different one on each device if there is an axis of them."""
    return key if axis_name is None else jax.random.fold_in(key, lax.axis_index(axis_name))
