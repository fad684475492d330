"""Boxes of objects in images that a plan mixes."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cutmix_jax.mix import check
from cutmix_jax.mix.pixels import partners, precise
from cutmix_jax.mix.plan import Plan
from cutmix_jax.mix.types import ArrayOrList, PyTree


class MixedBoxes(NamedTuple):
    """The objects of mixed images: first those of the image itself, then those of its partner.

    Attributes:
        boxes: `[B, 2 N, 4]`, in the dtype and unit that they were given in; zeros if not valid.
        valid: bool `[B, 2 N]`, whether anything of the object can be seen.
        visible: float32 `[B, 2 N]`, the visible area over that of the object; 0 if not valid.
        weight: float32 `[B, 2 N]`, how much of the visible pixels' values is the object's, in the
            mean: 1 where it is pasted or left, less where it is blended; 0 if not valid.
        values: a pytree of arrays `[B, 2 N, ...]`, what was given for each object.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from cutmix_jax import mix
        >>> plan = mix.sample_mixup(jax.random.key(1), 2, (8, 8), partner='reverse')
        >>> boxes = jnp.array([[[0.0, 0, 8, 8]], [[0.0, 0, 0, 0]]])
        >>> mixed = mix.mix_boxes(plan, boxes, jnp.array([[True], [False]]))
        >>> mixed.valid.tolist(), mixed.weight.sum(0)
        ([[True, False], [False, True]], Array([0.6116718, 0.3883282], dtype=float32))
    """

    boxes: jax.Array
    valid: jax.Array
    visible: jax.Array
    weight: jax.Array
    values: PyTree = None


def mix_boxes(
    plan: Plan, boxes: ArrayOrList, valid: ArrayOrList, values: PyTree = None
) -> MixedBoxes:
    r"""Says which objects a mixed image has, and where.

    With the area A of an object, and the area P of its part in the pasted box:

    .. math::
        \text{visible} = \begin{cases} (A - P) / A & \text{own} \\ P / A & \text{partner's}
            \end{cases}, \qquad \text{both 1 where images are blended}

    * An object of the image itself is left out if the pasted box covers it. Its box is cut if the
      rest is a rectangle. Otherwise its box stays whole.
    * An object of the partner has its box cut to the pasted one. If the partner is resized, its
      objects are resized with it.
    * Where something else is pasted (Cutout), the partner has no objects.
    * Where images are blended with the ratio r outside the box (Mixup: everywhere), the image's own
      objects have weight r. Objects of the partner can be seen everywhere, so their boxes stay
      whole, with the weight :math:`(P + (1 - r) (A - P)) / A`. Own objects are covered by the
      pasted box as above.
    * An image that is its own partner does not change, and keeps its objects.

    Often the rest of an object is too small to learn. Keep those with `visible >= 0.1`, for
    instance.

    Args:
        plan: a `Plan` for batches of this size.
        boxes: floating `[B, N, 4]`, (top, left, bottom, right) in pixels of the image that the plan
            was sampled for, half-open, inside the image. For n spatial axes `[B, N, 2 n]`, the low
            corner first.
        valid: bool `[B, N]`, false for padding. Objects without area are never valid.
        values: a pytree of arrays `[B, N, ...]`, such as classes, of any dtype.

    Returns:
        `MixedBoxes` with 2 N objects per image.

    Raises:
        ValueError: while tracing, if an array does not fit the plan or has another dtype, or the
            plan has a mask. Outside jit, also if a valid box has NaN or its corners swapped.

    Example:
        >>> import jax.numpy as jnp
        >>> from cutmix_jax import mix
        >>> plan = mix.Plan(partner=jnp.array([1, 0]), box=jnp.array([[[0, 0], [8, 4]]]),
        ...                 lam=jnp.array([0.5]), sides=(8, 8))
        >>> boxes = jnp.array([[[2.0, 2, 6, 8]], [[0.0, 0, 4, 8]]])
        >>> mixed = mix.mix_boxes(plan, boxes, jnp.ones((2, 1), bool), jnp.array([[5], [7]]))
        >>> mixed.boxes[0].tolist(), mixed.values[0].tolist()
        ([[2.0, 4.0, 6.0, 8.0], [0.0, 0.0, 4.0, 4.0]], [5, 7])
        >>> mixed.visible[0]
        Array([0.6666667, 0.5      ], dtype=float32)

    Reference:
        Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
        Features", ICCV 2019, for the plans; the rules for objects are this library's own.
    """
    boxes, valid = _checked(plan, boxes, valid)
    values = jax.tree.map(partial(_checked_value, valid.shape), values)
    return _mixed(plan, boxes, valid, values)


# Outside of jit this compiles once, and not operation by operation.
@partial(jax.jit, inline=True)
def _mixed(plan, boxes, valid, values):
    axes = len(plan.sides)
    corners = boxes.astype(precise(boxes.dtype)).reshape(*valid.shape, 2, axes)
    pasted = plan.box.astype(corners.dtype)[:, None]
    own, other = corners, _resized(plan, partners(plan, corners))
    own_area, other_area = _area(own), _area(other)

    covered, shown = _common(own, pasted), _common(other, pasted)
    left, shown_area = own_area - _area(covered), _area(shown)
    own, other_box = _rest(own, covered), shown
    own_weight = other_weight = jnp.ones((), corners.dtype)
    seen = shown_area
    if plan.ratio is not None:
        ratio = plan.ratio.astype(corners.dtype)[:, None]
        blends = ratio < 1
        left = jnp.where(ratio > 0, left, 0)
        seen = jnp.where(blends, other_area, shown_area)
        other_box = jnp.where(blends[..., None, None], other, shown)
        own_weight = ratio
        mean = _over(shown_area + (1 - ratio) * (other_area - shown_area), other_area)
        other_weight = jnp.where(blends, mean, 1)
    filled = plan.filled if plan.fill is not None else jnp.zeros(1, bool)
    filled = jnp.ones((1, 1), bool) if filled is None else filled[:, None]
    same = _is_itself(plan) & ~filled
    own = jnp.where(same[..., None, None], corners, own)
    left, seen = jnp.where(same, own_area, left), jnp.where(same | filled, 0, seen)
    own_weight = jnp.where(same, 1, own_weight)

    def both(own, other):
        return jnp.concatenate([own, other], axis=1)

    visible = both(_over(left, own_area), _over(seen, other_area)).astype(jnp.float32)
    kept = both(valid, partners(plan, valid)) & (visible > 0)
    weight = both(*(jnp.broadcast_to(w, valid.shape) for w in (own_weight, other_weight)))
    mixed = both(own, other_box).reshape(*kept.shape, 2 * axes).astype(boxes.dtype)
    return MixedBoxes(
        boxes=jnp.where(kept[..., None], mixed, 0),
        valid=kept,
        visible=jnp.where(kept, visible, 0),
        weight=jnp.where(kept, weight, 0).astype(jnp.float32),
        values=jax.tree.map(lambda x: both(x, partners(plan, x)), values),
    )


def _area(box):
    return jnp.prod(jnp.maximum(box[..., 1, :] - box[..., 0, :], 0), axis=-1)


def _over(part, whole):
    return part / jnp.where(whole > 0, whole, 1)


def _common(box, other):
    """Returns the intersection. Its high corner may lie below its low one."""
    low = jnp.maximum(box[..., 0, :], other[..., 0, :])
    return jnp.stack([low, jnp.minimum(box[..., 1, :], other[..., 1, :])], axis=-2)


def _rest(box, covered):
    """Returns the box without its covered part if that is a box, and else the whole box.

    It is one if the covered part reaches from end to end on all axes except for one, and to one end
    on this one.
    """
    some = _area(covered)[..., None] > 0
    (low, high), (first, last) = ((b[..., 0, :], b[..., 1, :]) for b in (box, covered))
    at_low, at_high = first == low, last == high
    across = (at_low & at_high).sum(-1, keepdims=True) == box.shape[-1] - 1
    low, high = (
        jnp.where(some & across & at_low & ~at_high, last, low),
        jnp.where(some & across & at_high & ~at_low, first, high),
    )
    return jnp.stack([low, high], axis=-2)


def _resized(plan, boxes):
    """Returns the partner's boxes in the frame that it is resized to."""
    frame = plan.frame
    if frame is None:
        return boxes
    low, high = (frame.astype(boxes.dtype)[:, None, None, end] for end in (0, 1))
    resized = low + boxes * (high - low) / jnp.asarray([[[plan.sides]]], boxes.dtype)
    # A product and a quotient may round.
    return jnp.where(_keeps_size(plan)[..., None, None], boxes, resized)


def _keeps_size(plan):
    """Whether the partner is not resized: bool `[1 or B, 1]`."""
    frame = plan.frame
    if frame is None:
        return jnp.ones((1, 1), bool)
    whole = jnp.asarray([[[0] * len(plan.sides), plan.sides]], frame.dtype)
    return (frame == whole).all((1, 2))[:, None]


def _is_itself(plan):
    """Whether an image is its own partner, in place: bool `[B, 1]`."""
    own = jnp.arange(plan.partner.shape[0], dtype=jnp.int32)
    if plan.across is not None:
        own += plan.partner.shape[0] * lax.axis_index(plan.across)
    return (plan.partner == own)[:, None] & _keeps_size(plan)


def _checked(plan, boxes, valid):
    """Returns boxes and valid as arrays, or raises."""
    if plan.mask is not None:
        raise ValueError(
            "mix_boxes needs a plan that pastes a box or blends, but this one pastes a mask, which"
            " leaves no boxes. Mix masks of the objects by apply() instead."
        )
    boxes, valid = check.array("boxes", boxes), check.array("valid", valid)
    found, batch_size = f"boxes are {boxes.dtype}{list(boxes.shape)}", plan.partner.shape[0]
    last = 2 * len(plan.sides)
    if boxes.ndim != 3 or boxes.shape[0] != batch_size or boxes.shape[2] != last:
        raise ValueError(f"{found}, expected [{batch_size}, N, {last}] as in the plan.")
    if not jnp.issubdtype(boxes.dtype, jnp.floating):
        raise ValueError(f"{found}, expected floats: a resized box has fractions of pixels.")
    if valid.dtype != bool or valid.shape != boxes.shape[:2]:
        raise ValueError(
            f"valid is {valid.dtype}{list(valid.shape)}, expected bool{list(boxes.shape[:2])} as"
            f" in the boxes."
        )
    known, known_valid = check.known(boxes), check.known(valid)
    if known is not None and known_valid is not None:
        known = known[known_valid].astype(float)
        wrong = ~(known[:, : last // 2] <= known[:, last // 2 :]).all(-1)  # NaN is wrong too
        if wrong.any():
            raise ValueError(
                f"boxes hold {known[wrong][0].tolist()}, expected numbers, the low corner first:"
                f" (top, left, bottom, right)."
            )
    return jnp.asarray(boxes), jnp.asarray(valid)


def _checked_value(shape, value):
    value = jnp.asarray(value)
    if value.shape[:2] != shape:
        raise ValueError(
            f"values have shape {value.shape}, expected [{shape[0]}, {shape[1]}, ...] as in the"
            f" boxes."
        )
    return value
