"""The plan of a mix: its fields, the area it keeps, and selecting between plans."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Plan:
    r"""What will be mixed with what: a small pytree, sampled before any pixel is touched.

    .. math::
        \tilde x_i[p] = \begin{cases}
            x_{partner_i}[p] \text{ or fill} & p \in \text{box}_i \\
            r_i \, x_i[p] + (1 - r_i) \, x_{partner_i}[p] & \text{otherwise} \end{cases}, \qquad
        \tilde y_i = \lambda_i y_i + (1 - \lambda_i) y_{partner_i}

    Attributes:
        partner: int32 `[B]`, the example that is pasted into, or blended with, this one.
        box: int32 `[1 or B, 2, n]`, the half-open (low, high) corners of the pasted region in
            pixels, for n spatial axes; low = high: nothing is pasted.
        ratio: float32 `[1 or B]`, the weight r of the image itself outside the box; `None` in plans
            that only paste.
        lam: float32 `[1 or B]`, the weight of the image's own label.
        fill: `None`, or the value that replaces the partner's pixels in the box.
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
    frame: jax.Array | None = None
    sides: tuple[int, ...] = field(metadata={"static": True})
    layer: str = field(default="image", metadata={"static": True})
    across: str | None = field(default=None, metadata={"static": True})


def outside_fraction(box, sides):
    """Returns the fraction of pixels outside each box: float32 `[1 or B]`, rounded once.

    XLA turns the division by a constant into a multiplication by its reciprocal. For every fourth
    area of a 224 x 224 image this is off by one unit in the last place. So the divisor is computed.
    """
    box = box.astype(jnp.int32)
    pasted = jnp.prod(box[:, 1] - box[:, 0], axis=-1)
    kept = math.prod(sides) - pasted
    pixels = kept + lax.optimization_barrier(pasted)
    return kept.astype(jnp.float32) / pixels.astype(jnp.float32)


def kept_fraction(plan):
    r"""Returns the fraction of each mixed image that comes from the image itself.

    .. math:: \text{kept}_i = r_i \, (1 - |\text{box}_i| / \textstyle\prod_k \text{side}_k)

    Args:
        plan: a `Plan`.

    Returns:
        float32 `[1 or B]`, rounded once. CutMix weights labels by exactly this. The function is
        useful for plans that do not, such as Cutout.

    Example:
        >>> import jax
        >>> from cutmix_jax import mix
        >>> plan = mix.sample_cutout(jax.random.key(0), 2, (32, 32), size=16)
        >>> mix.kept_fraction(plan), plan.lam
        (Array([0.8359375, 0.9121094], dtype=float32), Array([1.], dtype=float32))
    """
    outside = outside_fraction(plan.box, plan.sides)
    return outside if plan.ratio is None else outside * plan.ratio


def switched(plan, on):
    """Returns the plan where `on` (bool `[1 or B]`) is true, and an empty plan elsewhere."""
    return replace(
        plan,
        box=jnp.where(on[:, None, None], plan.box, 0),
        lam=jnp.where(on, plan.lam, 1.0),
        ratio=None if plan.ratio is None else jnp.where(on, plan.ratio, 1.0),
    )


def select(chosen, sampled):
    """Returns one plan: for each image, that of the mix that was chosen for it.

    Args:
        chosen: int32 `[1 or B]`, indices of `sampled`.
        sampled: what each mix has sampled: tuples of plans.
    """
    plans = [plan for plans in sampled for plan in plans]
    kinds = {(plan.layer, plan.across) for plan in plans}
    if (
        len(kinds) > 1
        or any(len(plans) != 1 for plans in sampled)
        or any(plan.fill is not None for plan in plans)
    ):
        raise ValueError(
            "random_choice() per device or image needs mixes that have one plan each, at the same"
            " layer, with partners from the same devices, and without a fill. Use scope='batch'."
        )
    result, *others = plans
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
            frame=frame,
        )
    return result


def on_device(key, axis_name):
    """Returns the key, or a different one on each device if there is an axis of them."""
    return key if axis_name is None else jax.random.fold_in(key, lax.axis_index(axis_name))
