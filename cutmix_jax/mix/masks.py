"""Plans from masks, and the mask of ClassMix."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cutmix_jax.mix import check
from cutmix_jax.mix.plan import Plan, kept_fraction
from cutmix_jax.mix.sample import PARTNERS
from cutmix_jax.mix.types import ArrayOrList, Partner, Sides


def plan_from_mask(
    mask: ArrayOrList,
    partner: ArrayOrList | Partner,
    sides: Sides | None = None,
    *,
    key: jax.Array | None = None,
    batch_size: int | None = None,
    across: str | None = None,
) -> Plan:
    r"""Returns the plan that gives each pixel to its partner as far as the mask says.

    .. math::
        \tilde x_i[p] = (1 - M_i[p]) \, x_i[p] + M_i[p] \, x_{partner_i}[p], \qquad
        \lambda_i = 1 - \text{mean}_p \, M_i[p]

    A mask of bool pastes, so arrays keep their dtype, and class ids and their `ignore_index` are
    pasted like pixels. A floating mask blends.

    Args:
        mask: the partner's share M of each pixel: bool, or floating in [0, 1],
            `[1 or B, m_1, ..., m_n]`, at any resolution. Pixel i of a side S reads cell
            floor((i + 1/2) m / S).
        partner: int `[B]`, the example that each one is mixed with; or `'permutation'`,
            `'reverse'` or `'rotate'`, as for `sample_cutmix`.
        sides: the spatial shape of the image, such as `(H, W)`; `None`: that of the mask.
        key: a JAX random key, for `'permutation'` and `'rotate'`.
        batch_size: B, if `partner` is a word and the mask is `[1, ...]`.
        across: the name of the mapped axis, if `partner` counts the examples of all devices.

    Returns:
        A `Plan` whose `lam` is the fraction of pixels that each image keeps. For another rule, such
        as that of TransMix, replace it: `dataclasses.replace(plan, lam=...)`.

    Raises:
        ValueError: while tracing, if the mask is neither bool nor floating, does not fit batch and
            sides, or is known to leave [0, 1]; or if `partner` is unknown, lacks its key,
            or is known to leave the batch.

    Example:
        >>> import jax.numpy as jnp
        >>> from cutmix_jax import mix
        >>> mask = jnp.array([[[True, False], [False, True]]])
        >>> plan = mix.plan_from_mask(mask, jnp.array([1, 0]), sides=(4, 4))
        >>> mix.apply(plan, jnp.array([[[1] * 4] * 4, [[7] * 4] * 4]))[0], plan.lam
        (Array([[7, 7, 1, 1],
               [7, 7, 1, 1],
               [1, 1, 7, 7],
               [1, 1, 7, 7]], dtype=int32), Array([0.5], dtype=float32))
    """
    mask = jnp.asarray(check.array("mask", mask))
    sides = check.sides(mask.shape[1:] if sides is None else sides)
    if isinstance(partner, str):
        draw = check.choice("partner", partner, PARTNERS)
        if across is not None:
            raise ValueError(f"partner='{partner}' stays on its device, so across must be None.")
        if key is None and partner != "reverse":
            raise ValueError(f"partner='{partner}' is random and needs a key.")
        size = len(mask) if batch_size is None else batch_size
        partner = draw(key, check.whole("batch_size", size, 0))
    partner = jnp.asarray(check.array("partner", partner))
    if partner.ndim != 1 or not jnp.issubdtype(partner.dtype, jnp.integer):
        raise ValueError(
            f"partner is {partner.dtype}{list(partner.shape)}. Expected integers [B], or one of"
            f" {', '.join(map(repr, PARTNERS))}."
        )
    values = check.known(partner) if across is None else None
    if values is not None and not ((values >= 0) & (values < len(values))).all():
        raise ValueError(
            f"partner has values from {values.min()} to {values.max()}, but"
            f" {len(values)} examples have the numbers 0 to {len(values) - 1}."
        )
    plan = Plan(
        partner=partner.astype(jnp.int32),
        box=jnp.zeros((1, 2, len(sides)), jnp.int32),
        mask=mask,
        lam=jnp.ones(1, jnp.float32),
        sides=sides,
        across=across,
    )
    return replace(plan, lam=kept_fraction(plan))


def classmix_mask(
    key: jax.Array, class_ids: ArrayOrList, num_classes: int, ignore: ArrayLike | None = None
) -> jax.Array:
    r"""Returns the pixels of half of the classes in each map, chosen at random, as in ClassMix.

    .. math::
        M_i[p] = \text{id}_i[p] \in C_i, \qquad |C_i| = \lceil |\text{classes in map } i| / 2 \rceil

    Half is rounded up, as in the authors' code. In a plan, the mask says what comes from the
    partner. So give the maps of the partners, `class_ids[partner]`: their objects are pasted.

    Args:
        key: a JAX random key.
        class_ids: integers `[B, H, W]` (or `[B, ...]`), the labels or predictions of the images
            whose pixels are pasted.
        num_classes: K; ids outside of 0 to K - 1 are never chosen.
        ignore: an id that is never chosen either, such as 255 or that of the background. It does
            not count as a class.

    Returns:
        bool, of the shape of `class_ids`.

    Raises:
        ValueError: while tracing, if `class_ids` are no integers `[B, ...]`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from cutmix_jax import mix
        >>> images = jnp.stack([jnp.zeros((2, 4)), jnp.ones((2, 4))])
        >>> class_ids = jnp.array([[[0, 0, 0, 0], [1, 1, 1, 1]], [[2, 2, 3, 255], [2, 2, 3, 3]]])
        >>> partner = jnp.array([1, 0])
        >>> mask = mix.classmix_mask(jax.random.key(1), class_ids[partner], 4, ignore=255)
        >>> plan = mix.plan_from_mask(mask, partner)
        >>> mix.apply(plan, {'image': images, 'class_ids': class_ids})['class_ids'][0]
        Array([[0, 0, 3, 0],
               [1, 1, 3, 3]], dtype=int32)

    Reference:
        Olsson et al., "ClassMix: Segmentation-Based Data Augmentation for Semi-Supervised
        Learning", WACV 2021.
    """
    class_ids = jnp.asarray(check.array("class_ids", class_ids))
    num_classes = check.whole("num_classes", num_classes, 1)
    if class_ids.ndim < 2 or not jnp.issubdtype(class_ids.dtype, jnp.integer):
        raise ValueError(
            f"class_ids are {class_ids.dtype}{list(class_ids.shape)}. Expected integers [B, H, W]."
        )
    classes = jnp.arange(num_classes, dtype=jnp.int32).reshape(*[1] * class_ids.ndim, -1)
    is_class = class_ids.astype(jnp.int32)[..., None] == classes
    if ignore is not None:
        is_class &= classes != ignore
    present = is_class.any(range(1, class_ids.ndim))
    numbers = jnp.where(present, jax.random.uniform(key, present.shape, jnp.float32), 2.0)
    rank = jnp.argsort(jnp.argsort(numbers, axis=1), axis=1).astype(jnp.int32)
    count = present.sum(1, jnp.int32, keepdims=True)
    chosen = rank < (count + 1) // 2
    return (is_class & jnp.expand_dims(chosen, range(1, class_ids.ndim))).any(-1)
