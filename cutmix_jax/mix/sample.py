"""Drawing plans: how large the box is, where it lies, and whom an example is mixed with."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from cutmix_jax.mix import check
from cutmix_jax.mix.plan import Plan, kept_share


def symmetric_beta(key, alpha, shape):
    r"""Draws from Beta(alpha, alpha) in closed form.

    With E exponential and V uniform, t = (exp(E / alpha) - 1) cos^2(2 pi V) gives the deviation
    from one half, sqrt(t / (1 + t)) / 2, to the side that the cosine's sign says. Rejection, as in
    `jax.random.beta`, is a loop that takes five times as long to compile.

    Reference: Devroye, "Random variate generation in one line of code", 1996.
    """
    size_key, side_key = jax.random.split(key)
    cosine = jnp.cos(2 * jnp.pi * jax.random.uniform(side_key, shape, jnp.float32))
    t = jnp.expm1(jax.random.exponential(size_key, shape, jnp.float32) / alpha) * cosine**2
    smaller = jnp.where(jnp.isinf(t), 0.0, 0.5 / ((1 + t) * (1 + jnp.sqrt(t / (1 + t)))))
    return jnp.where(cosine < 0, smaller, 1 - smaller)


# box=: the side in whole pixels from its real length, and the centre from a real point.
BOXES = {
    "exact": (lambda length: jnp.floor(length + 0.5), lambda centre: centre),
    "paper": (lambda length: 2 * jnp.floor(length / 2), jnp.floor),
}


def draw_boxes(key, lengths, sides, rule):
    """Returns int32 `[N, 2, n]` boxes of about `lengths` `[N, n]`, clipped at the border."""
    whole, on_grid = check.choice("box", rule, BOXES)
    length, side = whole(lengths), jnp.asarray(sides, jnp.float32)
    centre = on_grid(side * jax.random.uniform(key, lengths.shape, jnp.float32))
    low = jnp.floor(centre - length / 2 + 0.5)
    return jnp.clip(jnp.stack([low, low + length], axis=1), 0, side).astype(jnp.int32)


def _permutation(key, size):
    return jax.random.permutation(key, size)


def _reverse(key, size):
    return jnp.arange(size)[::-1]


PARTNERS = {"permutation": _permutation, "reverse": _reverse}

# scope=: whether each device draws its own.
SCOPES = {"batch": False, "device": True}


def _on_device(key, axis_name):
    return key if axis_name is None else jax.random.fold_in(key, lax.axis_index(axis_name))


def sample_cutmix(
    key,
    batch_size,
    sides,
    *,
    alpha=1.0,
    prob=1.0,
    box="exact",
    scope="batch",
    partner="permutation",
    axis_name=None,
):
    r"""Draws a CutMix plan: a box of the partner is pasted, labels are weighed by its area.

    .. math::
        \lambda_0 \sim \text{Beta}(\alpha, \alpha), \quad
        \text{side}_k = \text{sides}_k \, (1 - \lambda_0)^{1/n}, \quad
        \lambda = 1 - |\text{box}| / \textstyle\prod_k \text{sides}_k

    The centre is uniform in the image, and what sticks out is clipped, so the mean of
    :math:`\lambda` is 0.68 for alpha = 1 rather than 0.5.

    Args:
        key: a JAX random key.
        batch_size: B.
        sides: the image's sides in pixels, `(H, W)`; any number of them.
        alpha: parameter of the Beta distribution, above 0; may be traced.
        prob: the probability to mix at all, in [0, 1]; may be traced.
        box: `'exact'` rounds sides to whole pixels; `'paper'` repeats the authors' code, whose
            sides are even.
        scope: `'batch'`: one draw for the whole batch, the same on every device, as in the paper;
            `'device'`: one draw per device.
        partner: `'permutation'`, a random one as in the paper, or `'reverse'`.
        axis_name: inside `pmap` or `shard_map`, the name of the axis over devices; partners are
            then drawn anew on each.

    Returns:
        A `Plan`, whose `lam` is exactly the share of pixels that an example keeps.

    Raises:
        ValueError: while tracing, if a parameter is out of its range.

    Example:
        >>> import jax
        >>> from cutmix_jax import mix
        >>> plan = mix.sample_cutmix(jax.random.key(1), batch_size=4, sides=(32, 32))
        >>> plan.box[0]
        >>> plan.lam

    Reference:
        Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
        Features", ICCV 2019.
    """
    alpha = check.number("alpha", alpha, 0, math.inf, above=True)
    prob = check.number("prob", prob, 0, 1)
    draw_partner = check.choice("partner", partner, PARTNERS)
    draw_key, partner_key = jax.random.split(key)
    if check.choice("scope", scope, SCOPES):
        draw_key = _on_device(draw_key, axis_name)
    lam_key, box_key, prob_key = jax.random.split(draw_key, 3)

    side = jnp.asarray(sides, jnp.float32)
    lam = symmetric_beta(lam_key, alpha, (1, 1))
    boxes = draw_boxes(box_key, side * (1 - lam) ** (1 / len(sides)), sides, box)
    mixed = jax.random.uniform(prob_key, (1, 1, 1), jnp.float32) < prob
    boxes = jnp.where(mixed, boxes, 0)
    return Plan(
        partner=draw_partner(_on_device(partner_key, axis_name), batch_size).astype(jnp.int32),
        box=boxes,
        lam=kept_share(boxes, sides),
        sides=tuple(sides),
    )
