"""Sampling plans: size and position of the box, and the partner of each example."""

import math
from dataclasses import replace
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from cutmix_jax.mix import check
from cutmix_jax.mix.plan import Noise, Plan, on_device, outside_fraction, switched
from cutmix_jax.mix.types import (
    ArrayOrList,
    BoxRule,
    LabelRule,
    Lengths,
    Partner,
    Placement,
    Scope,
    Sides,
    Size,
    UnpairedScope,
)


def symmetric_beta(size, side, alpha):
    r"""Returns Beta(alpha, alpha) from two uniform numbers in closed form.

    With E = -log(1 - size) and t = (exp(E / alpha) - 1) cos^2(2 pi side), the deviation from one
    half is sqrt(t / (1 + t)) / 2. The sign of the cosine gives its direction. Rejection sampling,
    as in `jax.random.beta`, is a loop that takes five times as long to compile.

    Reference: Devroye, "Random variate generation in one line of code", 1996.
    """
    cosine = jnp.cos(2 * jnp.pi * side)
    odds = jnp.expm1(-jnp.log1p(-size) / alpha)
    t = jnp.where(jnp.isinf(odds), 1.0, odds) * cosine**2  # infinity would give NaN
    smaller = jnp.where(jnp.isinf(odds), 0.0, 0.5 / ((1 + t) * (1 + jnp.sqrt(t / (1 + t)))))
    return jnp.where(cosine < 0, smaller, 1 - smaller)


# box=: how a real length becomes whole pixels, and how the center is rounded.
BOXES = {
    "exact": (lambda length: jnp.floor(length + 0.5), lambda center: center),
    "paper": (lambda length: 2 * jnp.floor(length / 2), jnp.floor),
}


def _uniform(where, length, side, sigma):
    return side * where


def normals(uniform):
    """Returns normal numbers from uniform ones."""
    return math.sqrt(2) * lax.erf_inv(2 * jnp.maximum(uniform, 2**-24) - 1)


def _gaussian(where, length, side, sigma):
    return jnp.clip(side * (0.5 + sigma * normals(where)), 0, side - 1)


def _inside(where, length, side, sigma):
    # Half a pixel below the corner: every rounding rule then rounds it down to the corner.
    return jnp.floor((side - length + 1) * where) + length / 2


# placement=: the center of the box, from a uniform number per side.
PLACEMENTS = {"uniform": _uniform, "gaussian": _gaussian, "inside": _inside}


def frames_at(where, lengths, sides, *, rule, placement, sigma):
    """Returns int32 `[N, 2, n]` boxes of about `lengths` `[N, n]`, not clipped at the border."""
    whole, on_grid = check.choice("box", rule, BOXES)
    place = check.choice("placement", placement, PLACEMENTS)
    side = jnp.asarray([sides], jnp.float32)
    length = whole(lengths)
    return frames_around(on_grid(place(where, length, side, sigma)), length)


def frames_around(center, length):
    """Returns int32 `[N, 2, n]` boxes of whole `length` `[N, n]` around `center` `[N, n]`."""
    low = jnp.floor(center - length / 2 + 0.5)
    return jnp.stack([low, low + length], axis=1).astype(jnp.int32)


def clipped(frames, sides):
    """Returns the part of each box that is inside the image."""
    return jnp.clip(frames, 0, np.asarray(sides, np.int32)[None, None])


def boxes_at(where, lengths, sides, **options):
    """Returns int32 `[N, 2, n]` boxes inside the image: `clipped` ones of `frames_at`."""
    return clipped(frames_at(where, lengths, sides, **options), sides)


def box_lengths(size, sides):
    """Returns height and width of the box in pixels. Sizes below 1 are fractions of the image's."""
    sizes = size if isinstance(size, tuple) else (size,) * len(sides)
    lengths = [s * side if s < 1 else s for s, side in zip(sizes, sides, strict=False)]
    if len(sizes) != len(sides) or any(
        not 0 < length <= side for length, side in zip(lengths, sides, strict=True)
    ):
        raise ValueError(
            f"size={size!r} does not fit into an image of sides {sides}. Expected pixels, or a"
            f" fraction between 0 and 1 of the image's side, for all sides or for each of them."
        )
    return jnp.asarray(lengths, jnp.float32)


def _beta_ratios(uniform, numbers, axes):
    lam = symmetric_beta(uniform[:, :1], uniform[:, 1:], numbers["alpha"])
    return jnp.clip((1 - lam) ** (1 / axes), numbers["min_ratio"], numbers["max_ratio"])


def between(uniform, low, high):
    """Returns numbers between two bounds from numbers in [0, 1)."""
    return low + (high - low) * uniform


def _uniform_ratios(uniform, numbers, axes):
    return between(uniform, numbers["min_ratio"], numbers["max_ratio"])


# lengths=: how many uniform numbers a box needs (None: one per side), and the lengths over their
# sides from them.
LENGTHS = {"beta": (2, _beta_ratios), "uniform": (None, _uniform_ratios)}


# label=: the weight of the image's own label, from the fraction that is kept.
LABELS = {
    "area": lambda kept: kept,
    "one_hot": lambda kept: jnp.where(kept >= 0.5, 1.0, 0.0),
    "complete": lambda kept: jnp.full_like(kept, 0.5),
}


def _permutation(key, size):
    """Sorts random words whose lowest bits are the index: sorting one operand is fast on CPU.

    Words may be equal except for the index. One random word flips all indices, so both orders are
    equally likely. Larger batches have too many equal words.
    """
    if size > 1024 or size == 0:
        return jax.random.permutation(key, size)
    words = jax.random.bits(key, (size,), jnp.uint32)
    low = jnp.uint32((1 << (size - 1).bit_length()) - 1)
    flip = words[0]  # its lowest bits are unused
    words = (words & ~low) | ((lax.iota(jnp.uint32, size) ^ flip) & low)
    return (lax.sort(words, is_stable=False) ^ flip) & low


def _reverse(key, size):
    return jnp.arange(size)[::-1]


def _rotate(key, size):
    return (jnp.arange(size) + jax.random.randint(key, (), 1, max(size, 2))) % size


def _matching(key, size):
    order = _permutation(key, size)
    neighbor = jnp.minimum(jnp.arange(size) ^ 1, size - 1)  # the odd one out is its own partner
    return jnp.zeros(size, order.dtype).at[order].set(order[neighbor])


PARTNERS = {"permutation": _permutation, "reverse": _reverse, "rotate": _rotate}
# With scope 'pair' two examples share a box, so they are each other's partners.
MUTUAL_PARTNERS = {"permutation": _matching, "reverse": _reverse}

# scope=: the index of each example's random numbers, from its own and its partner's index.
SCOPES = {
    "batch": None,
    "device": None,
    "pair": lambda own, partner: jnp.minimum(own, partner),
    "image": lambda own, partner: own,
}


def assign(key, count, batch_size, *, scope, partner, axis_name, across_devices):
    """Returns each example's partner, and uniform numbers `[1 or B, count]`."""
    draw_of = check.choice("scope", scope, SCOPES)
    table = MUTUAL_PARTNERS if scope == "pair" else PARTNERS
    draw_partners = check.choice(f"scope='{scope}': partner", partner, table)
    if across_devices and axis_name is None:
        raise ValueError("across_devices=True needs axis_name, the name of the axis over devices.")
    draw_key, partner_key = jax.random.split(key)
    size, own = batch_size, jnp.arange(batch_size, dtype=jnp.int32)
    if across_devices:  # sampled once for all; each device takes its part
        size *= lax.axis_size(axis_name)
        own += batch_size * lax.axis_index(axis_name)
    else:
        partner_key = on_device(partner_key, axis_name)
    if scope == "device" or (scope != "batch" and not across_devices):
        draw_key = on_device(draw_key, axis_name)
    partners = draw_partners(partner_key, size).astype(jnp.int32)
    partners = partners[own] if across_devices else partners
    # One call for all numbers, because each call is a loop on CPU. The partners have their own
    # call: under vmap, keys of kind rbg ignore all but the first, and all devices would sample the
    # same.
    numbers = jax.random.uniform(draw_key, (1 if draw_of is None else size, count), jnp.float32)
    return partners, numbers if draw_of is None else numbers[draw_of(own, partners)]


def partners_axis(*, axis_name, across_devices, **_):
    """Returns `Plan.across` from the options of `assign`."""
    return axis_name if across_devices else None


# The numbers that may be traced, with their bounds.
NUMBERS = {
    "alpha": {"low": 0, "high": math.inf, "above": True},
    "prob": {"low": 0, "high": 1},
    "sigma": {"low": 0, "high": math.inf, "above": True},
    "min_ratio": {"low": 0, "high": 1},
    "max_ratio": {"low": 0, "high": 1},
    "box_fraction": {"low": 0, "high": 1},
    "decay": {"low": 0, "high": math.inf},
    "min_area": {"low": 0, "high": 1},
    "max_area": {"low": 0, "high": 1},
    "min_aspect": {"low": 0, "high": math.inf, "above": True},
    "max_aspect": {"low": 0, "high": math.inf, "above": True},
    "min_cells": {"low": 1, "high": math.inf},
    "max_cells": {"low": 1, "high": math.inf},
    "min_sigma": {"low": 1 / 64, "high": 1},
    "max_sigma": {"low": 1 / 64, "high": 1},
}

# The static options of sampling a plan.
BATCH_OPTIONS = ("batch_size", "sides", "scope", "partner", "axis_name", "across_devices")
BOX_OPTIONS = (*BATCH_OPTIONS, "size", "lengths", "box", "placement", "label", "correct_lam")


def checked_numbers(**values):
    """Returns the numbers as float32 scalars, or raises if one is out of its bounds."""
    checked = {name: check.number(name, value, **NUMBERS[name]) for name, value in values.items()}
    for lower in values:
        upper = lower.replace("min_", "max_")
        if lower == upper or upper not in values:
            continue
        low, high = values[lower], values[upper]
        if check.is_concrete(low) and check.is_concrete(high) and float(low) > float(high):
            raise ValueError(f"{lower}={low} is above {upper}={high}.")
    return checked


def sample_cutmix(
    key: jax.Array,
    batch_size: int,
    sides: Sides,
    *,
    alpha: ArrayLike = 1.0,
    prob: ArrayLike = 1.0,
    size: Size | None = None,
    lengths: Lengths = "beta",
    min_ratio: ArrayLike = 0.0,
    max_ratio: ArrayLike = 1.0,
    box: BoxRule = "exact",
    placement: Placement = "uniform",
    sigma: ArrayLike = 0.25,
    label: LabelRule = "area",
    correct_lam: bool = True,
    scope: Scope = "batch",
    partner: Partner = "permutation",
    axis_name: str | None = None,
    across_devices: bool = False,
) -> Plan:
    r"""Samples a CutMix plan: a box of the partner is pasted, labels are weighted by its area.

    .. math::
        \lambda_0 \sim \text{Beta}(\alpha, \alpha), \quad
        \text{length}_k = \text{side}_k \, (1 - \lambda_0)^{1/n}, \quad
        \lambda = 1 - |\text{box}| / \textstyle\prod_k \text{side}_k

    The center is uniform in the image, and the box is clipped at the border. So the mean of
    :math:`\lambda` is 163/240 = 0.68 for alpha = 1, and not 0.5.

    Args:
        key: a JAX random key.
        batch_size: B, of this device.
        sides: the spatial shape of the image, such as `(H, W)`; 1 side for series, 3 for volumes.
        alpha: parameter of the Beta distribution, above 0; may be traced.
        prob: the probability to mix at all, in [0, 1], decided once per `scope`; may be traced.
        size: a fixed size of the box instead of a sampled one: pixels, or below 1 a fraction of
            the image's side; one number, or one per side.
        lengths: how the box is sampled: `'beta'`, its area as above, with the image's aspect ratio;
            `'uniform'`, each length over its side uniform in [min_ratio, max_ratio], independently.
        min_ratio: lower bound of a box's length over the image's side, in [0, 1]; may be traced.
        max_ratio: upper bound of the same; may be traced.
        box: `'exact'` rounds lengths to whole pixels; `'paper'` repeats the authors' code, where
            lengths are even and the center is a whole pixel.
        placement: `'uniform'`: the center is uniform in the image; `'gaussian'`: normal around the
            image's center; both are clipped at the border. `'inside'`: the whole box is inside.
        sigma: standard deviation of the Gaussian placement over the image's side; may be traced.
        label: the weight of the image's own label: `'area'`, the fraction of pixels kept;
            `'one_hot'`, 1 if that is the larger part, else 0; `'complete'`, one half for both.
        correct_lam: `False` weights labels by the area before rounding and clipping.
        scope: `'batch'`: one box for the whole batch, the same on every device, as in the paper;
            `'device'`: one per device; `'pair'`: one for two images, which are each other's
            partners; `'image'`: one per image.
        partner: `'permutation'`, random as in the paper, with one fixed point on average;
            `'reverse'`, the batch reversed; `'rotate'`, the batch rotated by a random number,
            without fixed points.
        axis_name: inside `pmap` or `shard_map`, the name of the axis over devices.
        across_devices: whether partners come from the batches of all devices. `apply` then gathers
            the whole batch on every device.

    Returns:
        A `Plan`. Its `lam` is exactly the fraction of pixels that an example keeps, unless `label`
        or `correct_lam` change it.

    Raises:
        ValueError: while tracing, if an argument is out of its range.

    Example:
        >>> import jax
        >>> from cutmix_jax import mix
        >>> plan = mix.sample_cutmix(jax.random.key(1), batch_size=4, sides=(32, 32))
        >>> plan.box[0].tolist(), plan.lam
        ([[0, 0], [15, 11]], Array([0.8388672], dtype=float32))
        >>> plan = mix.sample_cutmix(jax.random.key(1), 4, (32, 32), scope='image', size=16)
        >>> plan.lam
        Array([0.8857422, 0.75     , 0.859375 , 0.796875 ], dtype=float32)

    Reference:
        Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
        Features", ICCV 2019.
    """
    numbers = checked_numbers(
        alpha=alpha, prob=prob, sigma=sigma, min_ratio=min_ratio, max_ratio=max_ratio
    )
    return _draw_cutmix(
        key,
        numbers,
        batch_size=check.whole("batch_size", batch_size, 0),
        sides=check.sides(sides),
        size=check.size(size),
        lengths=lengths,
        box=box,
        placement=placement,
        label=label,
        correct_lam=correct_lam,
        scope=scope,
        partner=partner,
        axis_name=axis_name,
        across_devices=across_devices,
    )


# Outside of jit, each of the forty small operations would be compiled by itself. Inside of jit this
# makes no difference.
@partial(jax.jit, inline=True, static_argnames=BOX_OPTIONS)
def _draw_cutmix(
    key, numbers, *, batch_size, sides, size, lengths, box, placement, label, correct_lam, **whom
):
    weigh = check.choice("label", label, LABELS)
    count, ratios_of = check.choice("lengths", lengths, LENGTHS)
    count = count or len(sides)
    partners, uniform = assign(key, 1 + count + len(sides), batch_size, **whom)
    where = uniform[:, 1 + count :]
    side = jnp.asarray([sides], jnp.float32)
    if size is None:
        lengths = side * ratios_of(uniform[:, 1 : 1 + count], numbers, len(sides))
    elif lengths != "beta":
        raise ValueError(f"lengths='{lengths}' samples the box, but size={size} fixes it.")
    else:
        lengths = jnp.broadcast_to(box_lengths(size, sides), where.shape)
    boxes = boxes_at(where, lengths, sides, rule=box, placement=placement, sigma=numbers["sigma"])
    kept = outside_fraction(boxes, sides) if correct_lam else 1 - jnp.prod(lengths / side, axis=-1)
    plan = Plan(
        partner=partners,
        box=boxes,
        lam=weigh(kept),
        sides=sides,
        across=partners_axis(**whom),
    )
    return switched(plan, uniform[:, 0] < numbers["prob"])


def sample_hmix(
    key: jax.Array,
    batch_size: int,
    sides: Sides,
    *,
    alpha: ArrayLike = 1.0,
    prob: ArrayLike = 1.0,
    box_fraction: ArrayLike = 0.5,
    scope: Scope = "batch",
    partner: Partner = "permutation",
    axis_name: str | None = None,
    across_devices: bool = False,
) -> Plan:
    r"""Samples an HMix plan: a box of the partner is pasted, and images are averaged outside of it.

    .. math::
        \lambda \sim \text{Beta}(\alpha, \alpha), \quad
        \text{length}_k = \text{side}_k \, (r (1 - \lambda))^{1/n}, \quad
        \text{ratio} = \lambda / (1 - |\text{box}| / \textstyle\prod_k \text{side}_k)

    The center of the box is uniform in the image, and the box is clipped at the border. The blend
    outside makes up for that: the image's weight over all pixels is :math:`\lambda`. r = 1 is
    CutMix, if the box is not clipped, and r = 0 is Mixup.

    Args:
        key: a JAX random key.
        batch_size: B, of this device.
        sides: the spatial shape of the image, such as `(H, W)`.
        alpha: parameter of the Beta distribution, above 0; may be traced.
        prob: the probability to mix at all, in [0, 1], decided once per `scope`; may be traced.
        box_fraction: r, the fraction of the partner's weight that the box has before it is clipped,
            in [0, 1]; may be traced.
        scope: `'batch'`, `'device'`, `'pair'` or `'image'`, as for `sample_cutmix`.
        partner: `'permutation'`, `'reverse'` or `'rotate'`, as for `sample_cutmix`.
        axis_name: inside `pmap` or `shard_map`, the name of the axis over devices.
        across_devices: whether partners come from all devices' batches.

    Returns:
        A `Plan` with a box and a `ratio`. Its `lam` is the mean weight of the image's pixels.

    Raises:
        ValueError: while tracing, if an argument is out of its range.

    Example:
        >>> import jax
        >>> from cutmix_jax import mix
        >>> plan = mix.sample_hmix(jax.random.key(1), batch_size=4, sides=(32, 32))
        >>> plan.box[0].tolist(), plan.ratio
        ([[0, 0], [12, 8]], Array([0.6749482], dtype=float32))
        >>> mix.kept_fraction(plan), plan.lam
        (Array([0.6116718], dtype=float32), Array([0.6116718], dtype=float32))

    Reference:
        Park et al., "A Unified Analysis of Mixed Sample Data Augmentation: A Loss Function
        Perspective", NeurIPS 2022.
    """
    return _draw_hmix(
        key,
        checked_numbers(alpha=alpha, prob=prob, box_fraction=box_fraction),
        batch_size=check.whole("batch_size", batch_size, 0),
        sides=check.sides(sides),
        scope=scope,
        partner=partner,
        axis_name=axis_name,
        across_devices=across_devices,
    )


@partial(jax.jit, inline=True, static_argnames=BATCH_OPTIONS)
def _draw_hmix(key, numbers, *, batch_size, sides, **whom):
    partners, uniform = assign(key, 3 + len(sides), batch_size, **whom)
    side = jnp.asarray([sides], jnp.float32)
    lam = symmetric_beta(uniform[:, 1], uniform[:, 2], numbers["alpha"])
    area = numbers["box_fraction"] * (1 - lam[:, None])
    boxes = boxes_at(
        uniform[:, 3:],
        side * area ** (1 / len(sides)),
        sides,
        rule="exact",
        placement="uniform",
        sigma=None,
    )
    outside = outside_fraction(boxes, sides)
    # A box that is rounded up may leave less than lam.
    ratio = jnp.minimum(lam / jnp.maximum(outside, 1e-30), 1.0)
    plan = Plan(
        partner=partners,
        box=boxes,
        ratio=ratio,
        lam=outside * ratio,
        sides=sides,
        across=partners_axis(**whom),
    )
    return switched(plan, uniform[:, 0] < numbers["prob"])


def sample_mixup(
    key: jax.Array,
    batch_size: int,
    sides: Sides,
    *,
    alpha: ArrayLike = 1.0,
    prob: ArrayLike = 1.0,
    scope: Scope = "batch",
    partner: Partner = "permutation",
    axis_name: str | None = None,
    across_devices: bool = False,
) -> Plan:
    r"""Samples a Mixup plan: images and labels are averages of two.

    .. math::
        \lambda \sim \text{Beta}(\alpha, \alpha), \quad
        \tilde x_i = \lambda x_i + (1 - \lambda) x_{partner_i}, \quad
        \tilde y_i = \lambda y_i + (1 - \lambda) y_{partner_i}

    Args:
        key: a JAX random key.
        batch_size: B, of this device.
        sides: the spatial shape of the image, such as `(H, W)`.
        alpha: parameter of the Beta distribution, above 0; may be traced.
        prob: the probability to mix at all, in [0, 1], decided once per `scope`; may be traced.
        scope: `'batch'`, `'device'`, `'pair'` or `'image'`, as for `sample_cutmix`.
        partner: `'permutation'`, `'reverse'` or `'rotate'`, as for `sample_cutmix`.
        axis_name: inside `pmap` or `shard_map`, the name of the axis over devices.
        across_devices: whether partners come from all devices' batches.

    Returns:
        A `Plan` with empty boxes, whose `ratio` and `lam` are equal.

    Raises:
        ValueError: while tracing, if an argument is out of its range.

    Example:
        >>> import jax
        >>> from cutmix_jax import mix
        >>> plan = mix.sample_mixup(jax.random.key(1), batch_size=4, sides=(32, 32), alpha=0.2)
        >>> plan.ratio, plan.lam
        (Array([0.7849761], dtype=float32), Array([0.7849761], dtype=float32))

    Reference:
        Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
    """
    return _draw_mixup(
        key,
        checked_numbers(alpha=alpha, prob=prob),
        batch_size=check.whole("batch_size", batch_size, 0),
        sides=check.sides(sides),
        scope=scope,
        partner=partner,
        axis_name=axis_name,
        across_devices=across_devices,
    )


@partial(jax.jit, inline=True, static_argnames=BATCH_OPTIONS)
def _draw_mixup(key, numbers, *, batch_size, sides, **whom):
    partners, uniform = assign(key, 3, batch_size, **whom)
    lam = symmetric_beta(uniform[:, 1], uniform[:, 2], numbers["alpha"])
    lam = jnp.where(uniform[:, 0] < numbers["prob"], lam, 1.0)
    return Plan(
        partner=partners,
        box=jnp.zeros((1, 2, len(sides)), jnp.int32),
        ratio=lam,
        lam=lam,
        sides=sides,
        across=partners_axis(**whom),
    )


def sample_cutout(
    key: jax.Array,
    batch_size: int,
    sides: Sides,
    *,
    size: Size = 0.5,
    fill: ArrayOrList = 0.0,
    prob: ArrayLike = 1.0,
    box: BoxRule = "exact",
    placement: Placement = "uniform",
    sigma: ArrayLike = 0.25,
    scope: UnpairedScope = "image",
    axis_name: str | None = None,
) -> Plan:
    r"""Samples a Cutout plan: a box of each image is filled with a value, labels do not change.

    .. math::
        \tilde x_i[p] = \text{fill if } p \in \text{box}_i \text{ else } x_i[p], \qquad
        \tilde y_i = y_i

    The center is uniform in the image, and the box is clipped at the border. A box of half the
    image's side removes 19 % of the image on average, and not 25 %.

    Args:
        key: a JAX random key.
        batch_size: B, of this device.
        sides: the spatial shape of the image, such as `(H, W)`.
        size: the box's side in pixels, or below 1 as a fraction of the image's side; one number,
            or one per side.
        fill: the value in the box: a number, or an array or list that broadcasts against the
            images, such as one number per channel for `[B, H, W, C]`. 0 is the mean color of
            normalized images.
        prob: the probability to cut at all, in [0, 1], decided once per `scope`; may be traced.
        box: `'exact'` or `'paper'`, as for `sample_cutmix`.
        placement: `'uniform'`, `'gaussian'` or `'inside'`, as for `sample_cutmix`.
        sigma: standard deviation of the Gaussian placement over the image's side; may be traced.
        scope: `'image'`: one box per image; or `'batch'`, `'device'`.
        axis_name: inside `pmap` or `shard_map`, the name of the axis over devices.

    Returns:
        A `Plan` whose `lam` is 1.

    Raises:
        ValueError: while tracing, if an argument is out of its range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from cutmix_jax import mix
        >>> plan = mix.sample_cutout(jax.random.key(1), 2, (6, 6), size=2)
        >>> mix.apply(plan, jnp.ones((2, 6, 6), jnp.uint8))[0]
        Array([[0, 1, 1, 1, 1, 1],
               [0, 1, 1, 1, 1, 1],
               [1, 1, 1, 1, 1, 1],
               [1, 1, 1, 1, 1, 1],
               [1, 1, 1, 1, 1, 1],
               [1, 1, 1, 1, 1, 1]], dtype=uint8)

    Reference:
        DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout",
        2017.
    """
    plan = sample_cutmix(
        key,
        batch_size,
        sides,
        prob=prob,
        size=size,
        box=box,
        placement=placement,
        sigma=sigma,
        scope=check.choice("scope", scope, ("image", "batch", "device")),
        partner="reverse",  # not used, and needs no random numbers
        axis_name=axis_name,
    )
    own = jnp.arange(len(plan.partner), dtype=jnp.int32)
    fill = fill if np.isscalar(fill) else check.array("fill", fill)
    return replace(plan, partner=own, lam=jnp.ones(1, jnp.float32), fill=fill)


# Boxes that random erasing samples, until one fits into the image.
ATTEMPTS = 10
# fill=: what is sampled once, if the fill is a word.
NOISES = {"color": "image", "noise": "pixel"}


def sample_erasing(
    key: jax.Array,
    batch_size: int,
    sides: Sides,
    *,
    area: tuple[ArrayLike, ArrayLike] = (0.02, 0.33),
    aspect: tuple[ArrayLike, ArrayLike] = (0.3, 3.3),
    fill: ArrayOrList | Literal["color", "noise"] = 0.0,
    prob: ArrayLike = 1.0,
    scope: UnpairedScope = "image",
    axis_name: str | None = None,
) -> Plan:
    r"""Samples a plan of random erasing: a box of random shape is filled, labels do not change.

    .. math::
        s \sim U(\text{area}), \quad \log r \sim U(\log \text{aspect}), \quad
        \text{height} = \sqrt{s H W r}, \quad \text{width} = \sqrt{s H W / r}

    Lengths are rounded to whole pixels. A box that is not smaller than the image on both sides is
    sampled again, at most 9 times; then nothing is erased. The position inside the image is
    uniform.

    Args:
        key: a JAX random key.
        batch_size: B, of this device.
        sides: height and width of the image, `(H, W)`.
        area: (low, high), bounds of the box's area over the image's, in (0, 1]; may be traced.
        aspect: (low, high), bounds of height over width, above 0; may be traced.
        fill: as for `sample_cutout`; or `'color'`, a value from N(0, 1) per image and channel; or
            `'noise'`, one per pixel and channel. The last two are for normalized, floating images.
        prob: the probability to erase at all, in [0, 1]; may be traced. Modern recipes have 0.1
            to 0.25.
        scope: `'image'`: one box per image; or `'batch'`, `'device'`. Noise is always sampled per
            image.
        axis_name: inside `pmap` or `shard_map`, the name of the axis over devices.

    Returns:
        A `Plan` whose `lam` is 1. With noise it has a key, and `apply` samples the values.

    Raises:
        ValueError: while tracing, if an argument is out of its range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from cutmix_jax import mix
        >>> plan = mix.sample_erasing(jax.random.key(1), 2, (6, 6))
        >>> mix.apply(plan, jnp.ones((2, 6, 6), jnp.uint8))[0]
        Array([[1, 1, 1, 1, 1, 1],
               [1, 1, 1, 1, 1, 1],
               [1, 1, 1, 1, 1, 1],
               [1, 1, 1, 1, 1, 1],
               [1, 1, 1, 0, 0, 1],
               [1, 1, 1, 0, 0, 1]], dtype=uint8)

    Reference:
        Zhong et al., "Random Erasing Data Augmentation", AAAI 2020; the logarithm is that of timm
        and torchvision.
    """
    sides = check.sides(sides)
    if len(sides) != 2:
        raise ValueError(f"sides must be height and width, which an aspect has, but got {sides}.")
    if isinstance(fill, str):
        check.choice("fill", fill, NOISES)
    elif not np.isscalar(fill):
        fill = check.array("fill", fill)
    numbers = checked_numbers(prob=prob) | {
        "area": check.bounds("area", area, 1),
        "aspect": check.bounds("aspect", aspect, math.inf),
    }
    plan = _draw_erasing(
        key,
        numbers,
        batch_size=check.whole("batch_size", batch_size, 0),
        sides=sides,
        scope=check.choice("scope", scope, ("image", "batch", "device")),
        axis_name=axis_name,
    )
    if isinstance(fill, str):
        noise_key = on_device(jax.random.fold_in(key, 1), axis_name)
        fill = Noise(key=noise_key, per=NOISES[fill])
    return replace(plan, fill=fill)


@partial(jax.jit, inline=True, static_argnames=("batch_size", "sides", "scope", "axis_name"))
def _draw_erasing(key, numbers, *, batch_size, sides, scope, axis_name):
    whom = {"partner": "reverse", "across_devices": False}  # not used, needs no random numbers
    count = 1 + 2 * ATTEMPTS + len(sides)
    key = jax.random.fold_in(key, 0)  # 1 is that of noise
    _, uniform = assign(key, count, batch_size, scope=scope, axis_name=axis_name, **whom)
    use, uniform, where = jnp.split(uniform, [1, 1 + 2 * ATTEMPTS], axis=1)
    areas, aspects = (
        between(numbers, *bounds)
        for bounds, numbers in zip(
            (numbers["area"], jnp.log(numbers["aspect"])),
            jnp.split(uniform, 2, axis=1),
            strict=True,
        )
    )
    root = jnp.exp(aspects / 2)
    lengths = jnp.stack([root, 1 / root], axis=-1) * jnp.sqrt(areas * math.prod(sides))[..., None]
    lengths = jnp.floor(lengths + 0.5)
    fits = (lengths < jnp.asarray([[sides]], jnp.float32)).all(-1)
    first = jnp.argmax(fits, axis=1)[:, None, None]
    lengths = jnp.take_along_axis(lengths, first, axis=1)[:, 0]
    plan = Plan(
        partner=jnp.arange(batch_size, dtype=jnp.int32),
        box=boxes_at(where, lengths, sides, rule="exact", placement="inside", sigma=1.0),
        lam=jnp.ones(1, jnp.float32),
        sides=sides,
    )
    return switched(plan, (use[:, 0] < numbers["prob"]) & fits.any(1))


def sample_resizemix(
    key: jax.Array,
    batch_size: int,
    sides: Sides,
    *,
    min_ratio: ArrayLike = 0.1,
    max_ratio: ArrayLike = 0.8,
    prob: ArrayLike = 1.0,
    scope: Scope = "batch",
    partner: Partner = "permutation",
    axis_name: str | None = None,
    across_devices: bool = False,
) -> Plan:
    r"""Samples a ResizeMix plan: the whole partner is resized into a box of the image.

    .. math::
        \tau \sim U(\text{min\_ratio}, \text{max\_ratio}), \quad
        \text{length}_k = \tau \, \text{side}_k, \quad
        \lambda = 1 - |\text{box}| / \textstyle\prod_k \text{side}_k

    So the box always shows the partner's object, however small it is. The center is uniform in the
    image. At the border the resized partner is cut off, and only the part that shows counts.

    Args:
        key: a JAX random key.
        batch_size: B, of this device.
        sides: the spatial shape of the image, such as `(H, W)`.
        min_ratio: lower bound of the box's length over the image's side, in [0, 1]; may be traced.
        max_ratio: upper bound of the same; may be traced.
        prob: the probability to mix at all, in [0, 1], decided once per `scope`; may be traced.
        scope: `'batch'`, `'device'`, `'pair'` or `'image'`, as for `sample_cutmix`.
        partner: `'permutation'`, `'reverse'` or `'rotate'`, as for `sample_cutmix`.
        axis_name: inside `pmap` or `shard_map`, the name of the axis over devices.
        across_devices: whether partners come from all devices' batches.

    Returns:
        A `Plan` with a `frame`. Its `box` is the frame's part in the image, and its `lam` is
        exactly the fraction of pixels that an example keeps.

    Raises:
        ValueError: while tracing, if an argument is out of its range.

    Example:
        >>> import jax
        >>> from cutmix_jax import mix
        >>> plan = mix.sample_resizemix(jax.random.key(2), batch_size=4, sides=(32, 32))
        >>> plan.frame[0].tolist(), plan.box[0].tolist(), plan.lam
        ([[-6, 15], [12, 33]], [[0, 15], [12, 32]], Array([0.80078125], dtype=float32))

    Reference:
        Qin et al., "ResizeMix: Mixing Data with Preserved Object Information and True Labels",
        2020.
    """
    return _draw_resizemix(
        key,
        checked_numbers(min_ratio=min_ratio, max_ratio=max_ratio, prob=prob),
        batch_size=check.whole("batch_size", batch_size, 0),
        sides=check.sides(sides),
        scope=scope,
        partner=partner,
        axis_name=axis_name,
        across_devices=across_devices,
    )


@partial(jax.jit, inline=True, static_argnames=BATCH_OPTIONS)
def _draw_resizemix(key, numbers, *, batch_size, sides, **whom):
    partners, uniform = assign(key, 2 + len(sides), batch_size, **whom)
    ratios = _uniform_ratios(uniform[:, 1:2], numbers, len(sides))
    lengths = ratios * jnp.asarray([sides], jnp.float32)
    frames = frames_at(
        uniform[:, 2:], lengths, sides, rule="exact", placement="uniform", sigma=None
    )
    boxes = clipped(frames, sides)
    plan = Plan(
        partner=partners,
        box=boxes,
        lam=outside_fraction(boxes, sides),
        frame=frames,
        sides=sides,
        across=partners_axis(**whom),
    )
    return switched(plan, uniform[:, 0] < numbers["prob"])
