"""Mixing images, masks and feature maps by a plan."""

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from cutmix_jax.mix import check, resize
from cutmix_jax.mix.plan import Noise, Plan
from cutmix_jax.mix.regions import (
    WINDOW_QUARTERS,
    box_on,
    checked_mask,
    explicit_sharding,
    inside,
    mask_on,
    mask_per_channel,
    mask_with_box,
    per_example,
    quarters_of,
)
from cutmix_jax.mix.types import ApplyOptions, Axes, Paste, PyTree


def apply(
    plan: Plan, tree: PyTree, *, spatial_axes: Axes = (1, 2), paste: Paste = "auto"
) -> PyTree:
    r"""Mixes every array of a pytree as the plan says.

    .. math::
        \tilde x_i[p] = s_i[p] \, x_i[p] + (1 - s_i[p]) \, x_{partner_i}[p], \qquad
        s_i[p] = \begin{cases} 0 & p \in \text{box}_i \\
            r_i \, (1 - M_i[p]) & \text{otherwise} \end{cases}

    A `fill` replaces the partner's pixels in the box, and where a bool mask is true.

    Pixels are selected and never multiplied. So dtypes stay, uint8 is exact, and NaN outside the
    pasted region of the partner does not spread. Only plans that blend (a `ratio`, as in Mixup, or
    a floating mask) or resize (ResizeMix) multiply: in float32, then rounded once to the array's
    dtype. Resizing is bilinear with antialiasing for floats and uint8. All others are class ids: a
    cell takes the id at its center.

    Args:
        plan: a `Plan` for batches of this size.
        tree: a pytree of arrays, each with the batch first: `[B, ...]`, any dtype. Arrays may have
            a lower resolution than the image, such as segmentation masks. Each of their cells then
            takes what the image has at the cell's center.
        spatial_axes: the spatial axes, `(1, 2)` for `[B, H, W, C]`. Negative axes count from the
            end: `(-2, -1)` fits both `[B, C, H, W]` and `[B, H, W]`.
        paste: `'window'` touches only a window around the box. It needs a plan that only pastes
            and does not resize, with one box per batch and no mask. `'mask'` selects over the whole
            image. `'auto'` takes the window if it can. Both give the same bits.

    Returns:
        A pytree like `tree`.

    Raises:
        ValueError: while tracing, if an array does not fit the plan, holds class ids (integers
            other than uint8) and the plan blends, or cannot hold the plan's fill.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from cutmix_jax import mix
        >>> batch = {'image': jnp.zeros((2, 4, 4, 3), jnp.uint8), 'mask': jnp.array(
        ...     [[[0] * 4] * 4, [[7] * 4] * 4])}
        >>> plan = mix.sample_cutmix(jax.random.key(91), 2, (4, 4), partner='reverse')
        >>> mix.apply(plan, batch)['mask'][0]
        Array([[0, 0, 0, 0],
               [0, 7, 7, 0],
               [0, 7, 7, 0],
               [0, 0, 0, 0]], dtype=int32)

    Reference:
        Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
        Features", ICCV 2019.
    """
    check.choice("paste", paste, {"auto", "window", "mask"})
    plan = replace(plan, mask=checked_mask(plan))
    obstacle = _obstacle_to_window(plan)
    if paste == "window" and obstacle:
        raise ValueError(f"paste='window' needs {obstacle}. Use paste='mask' or 'auto'.")
    paste = _mask if paste == "mask" or obstacle else _window
    spatial_axes = check.axis_numbers(spatial_axes)

    def mixed(leaf):
        leaf = jnp.asarray(leaf)
        axes = _checked_axes(plan, leaf, spatial_axes)
        if isinstance(plan.fill, Noise):
            fill = _noise(plan.fill, leaf, axes)
        else:
            fill = None if plan.fill is None else check_fill(plan.fill, leaf)
        return _apply_to(replace(plan, fill=fill), leaf, axes, paste)

    return jax.tree.map(mixed, tree)


def apply_at(
    plans: Iterable[Plan], layer: str, tree: PyTree, **options: Unpack[ApplyOptions]
) -> PyTree:
    """Applies those of the plans that are for this layer, one after the other.

    A model whose forward pass calls `tap(name, x) -> x` at its feature maps mixes them by
    `tap=partial(mix.apply_at, plans)`.

    Args:
        plans: a tuple of `Plan`, as `Mix.sample` returns it.
        layer: the name of the feature map, one of `LAYERS`. Others have no plans.
        tree: a pytree of arrays, each with the batch first.
        **options: `spatial_axes` and `paste` of `apply`.

    Returns:
        A pytree like `tree`.

    Raises:
        ValueError: while tracing, if an array does not fit its plan.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from cutmix_jax import mix
        >>> sides = {'image': (8, 8), 'layer1': (4, 4)}
        >>> mixup = mix.create_mix('manifold_mixup', layers='layer1', partner='reverse')
        >>> plans = mixup.sample(jax.random.key(0), 2, sides)
        >>> features = jnp.stack([jnp.zeros((4, 4, 16)), jnp.ones((4, 4, 16))])
        >>> bool((mix.apply_at(plans, 'image', features) == features).all())
        True
        >>> mix.apply_at(plans, 'layer1', features)[0, 0, 0, 0]
        Array(0.46633053, dtype=float32)
    """
    for plan in plans:
        if plan.layer == layer:
            tree = _apply_if_any(plan, tree, **options)
    return tree


def _apply_if_any(plan, tree, **options):
    """`apply`, but on a CPU a plan that changes nothing at a feature map computes nothing.

    Scattering the partners' gradients is slow there, and happens at every map that may be chosen.
    An accelerator would have to wait for the condition.
    """
    if plan.layer == "image" or plan.across is not None or jax.default_backend() != "cpu":
        return apply(plan, tree, **options)
    changes = (plan.box[:, 1] > plan.box[:, 0]).any()
    if plan.ratio is not None:
        changes |= (plan.ratio != 1).any()
    if plan.mask is not None:
        changes |= plan.mask.astype(bool).any()
    return lax.cond(changes, partial(apply, plan, **options), lambda tree: tree, tree)


def partners(plan, x):
    """Returns each example's partner, from the other devices too if the plan is across them."""
    if plan.across is not None:
        x = lax.all_gather(x, plan.across, tiled=True)
    return x.at[plan.partner].get(mode="promise_in_bounds", out_sharding=explicit_sharding(x))


def _obstacle_to_window(plan):
    """Says why a plan cannot use `paste='window'`, or returns None."""
    if plan.box.shape[0] != 1:
        return f"one box for the whole batch, but the plan has {plan.box.shape[0]}"
    if plan.ratio is not None:
        return "a plan that only pastes, but this one blends too"
    if plan.mask is not None:
        return "a plan that pastes a box, but this one has a mask"
    if plan.across is not None:
        return "partners on this device, but the plan has them on all"
    if plan.filled is not None:
        return "one fill for the whole batch, but the plan fills some boxes only"
    if isinstance(plan.fill, Noise):
        return "one number to fill with, but the plan fills with noise"
    if _fill_shape(plan):
        return f"one number to fill with, but the plan's have shape {_fill_shape(plan)}"
    if plan.frame is not None:
        return "pixels at the same place of the partner, but the plan resizes it"
    return None


# Outside of jit this compiles to one pass over the images instead of several.
@partial(jax.jit, inline=True, static_argnames=("axes", "paste"))
def _apply_to(plan, x, axes, paste):
    box = box_on(plan, tuple(x.shape[axis] for axis in axes))
    shape = x.shape
    if plan.frame is not None:
        rest = replace(plan, frame=None, box=jnp.zeros_like(plan.box))
        rest = _apply_to(rest, x, axes, paste)
        return jnp.where(inside(box, shape, axes), _pasted(plan, x, axes), rest)
    if plan.mask is not None:
        plan, box = _placed_mask(plan, box, shape, axes)
    if _fill_shape(plan):
        ones = (1,) * (x.ndim - plan.fill.ndim)
        plan = replace(plan, fill=plan.fill.reshape(ones + plan.fill.shape))
    last, sharding = max(axes), explicit_sharding(x)
    if jax.default_backend() == "cpu" and not (sharding and any(sharding.spec[last + 1 :])):
        # XLA's CPU backend selects along the last axis. With three channels most of the time goes
        # into indices: for uint8, two to five times as much. So the last spatial axis is merged
        # with the axes after it. A TPU would have to move the data for that.
        channels = math.prod(shape[last + 1 :])
        box *= np.array([[[channels if axis == last else 1 for axis in axes]]], np.int32)
        x = x.reshape(*shape[:last], shape[last] * channels)
        if _fill_shape(plan):
            before, behind = plan.fill.shape[:last], shape[last:]
            fill = jnp.broadcast_to(plan.fill, before + behind)
            plan = replace(plan, fill=fill.reshape(*before, math.prod(behind)))
        if plan.mask is not None:
            mask = plan.mask.reshape(plan.mask.shape[: last + 1])
            plan = replace(plan, mask=mask_per_channel(mask, channels))
    return paste(plan, x, axes, box).reshape(shape)


def _placed_mask(plan, box, shape, axes):
    """Returns the plan with a mask that broadcasts against `shape`, and the box."""
    order = np.argsort(axes).tolist()
    mask = jnp.transpose(plan.mask, (0, *(1 + i for i in order)))
    mask = mask_on(mask, [shape[axes[i]] for i in order])
    if jax.default_backend() == "cpu" and mask.dtype == bool:
        # XLA's CPU backend takes twice as long to select by both of them.
        mask, box = mask_with_box(mask, box[:, :, np.array(order)]), jnp.zeros_like(box)
    others = [axis for axis in range(1, len(shape)) if axis not in axes]
    return replace(plan, mask=jnp.expand_dims(mask, others)), box


def check_fill(fill, x):
    """Returns the fill as an array, or raises if it is known that `x` cannot hold it."""
    fill = check.array("fill", fill)
    ends = zip(fill.shape[::-1], x.shape[::-1], strict=False)
    if fill.ndim > len(x.shape) or not all(side in (1, of) for side, of in ends):
        raise ValueError(
            f"fill of shape {fill.shape} does not broadcast to an array of shape {x.shape}."
            f" Expected one number, or one per channel: [C] for [B, H, W, C], [C, 1, 1] for"
            f" [B, C, H, W]."
        )
    values = check.known(fill)
    if values is not None and jnp.issubdtype(x.dtype, jnp.integer):
        low, high = jnp.iinfo(x.dtype).min, jnp.iinfo(x.dtype).max
        values = np.round(values)
        if not ((low <= values) & (values <= high)).all():
            raise ValueError(
                f"fill={fill} does not fit into an array of {x.dtype}. Expected {low} to {high}."
            )
    return jnp.asarray(fill)


def _noise(noise, x, axes):
    """Returns noise like `x`, or of one value per image and channel."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"noise from N(0, 1) cannot fill an array of {x.dtype}. Normalize images before mixing,"
            f" or fill with a number."
        )
    shape = [1 if noise.per == "image" and a in axes else side for a, side in enumerate(x.shape)]
    fine = precise(x.dtype)
    mean, std = (jnp.asarray(value, fine) for value in (noise.mean, noise.std))
    mean, std = (v.reshape((1,) * (x.ndim - v.ndim) + v.shape) for v in (mean, std))
    noise = (mean + std * jax.random.normal(noise.key, shape, fine)).astype(x.dtype)
    sharding = explicit_sharding(x)
    if sharding is None:
        return noise
    names = [name if side > 1 else None for name, side in zip(sharding.spec, shape, strict=False)]
    return jax.sharding.reshard(noise, NamedSharding(sharding.mesh, PartitionSpec(*names)))


def _fill_shape(plan):
    return () if plan.fill is None else jnp.shape(plan.fill)


def _checked_axes(plan, x, spatial_axes):
    """Returns the spatial axes counted from the front, if the array fits the plan."""
    found = f"an array of shape {x.shape}"
    axes = check.axes(found, x.shape, spatial_axes)
    if len(axes) != len(plan.sides):
        raise ValueError(
            f"spatial_axes={spatial_axes} names {len(axes)} axes, but the plan was sampled for the"
            f" {len(plan.sides)} sides {plan.sides}."
        )
    if x.shape[0] != plan.partner.shape[0]:
        raise ValueError(
            f"{found} has a batch of {x.shape[0]}, but the plan was sampled for a batch of"
            f" {plan.partner.shape[0]}."
        )
    sides = tuple(x.shape[axis] for axis in axes)
    # A smaller mask has one scale for all axes, up to rounding. A wrong choice of axes does not.
    scales = [
        ((side - 1) / of, (side + 1) / of) for side, of in zip(sides, plan.sides, strict=True)
    ]
    if max(low for low, _ in scales) >= min(high for _, high in scales):
        raise ValueError(
            f"{found} has sides {sides} on spatial_axes={spatial_axes}, but the plan was sampled"
            f" for sides {plan.sides}. Sample it for this shape, or set spatial_axes."
        )
    return axes


def _pasted(plan, x, axes):
    """Returns what is pasted into the box: the partner's pixels, or the fill."""

    def others():
        return partners(plan, x) if plan.frame is None else _resized(plan, x, axes)

    if plan.fill is None:
        return others()
    fill = jnp.asarray(plan.fill)
    if not jnp.issubdtype(x.dtype, jnp.inexact) and jnp.issubdtype(fill.dtype, jnp.floating):
        fill = jnp.round(fill)
    fill = fill.astype(x.dtype)
    if plan.filled is None:
        return fill
    return jnp.where(per_example(plan.filled, x.ndim), fill, others())


def _resized(plan, x, axes):
    """Returns the partners, each as a whole resized into the plan's frame."""
    other, frame = partners(plan, x), plan.frame.astype(jnp.int32)
    if len(frame) > 1 and (sharding := explicit_sharding(x)):
        rows = sharding.update(spec=PartitionSpec(sharding.spec[0], None, None))
        frame = frame.at[jnp.arange(len(frame))].get(mode="promise_in_bounds", out_sharding=rows)
    if jnp.issubdtype(x.dtype, jnp.inexact) or x.dtype == jnp.uint8:
        # Small matrices of one image at a time are fast on a CPU. A loop over a batch on several
        # devices would gather it.
        in_turn = jax.default_backend() == "cpu" and jax.device_count() == 1
        fine = other.astype(precise(x.dtype))
        resized = resize.bilinear(fine, frame, plan.sides, axes, in_turn=in_turn)
        resized = jnp.round(resized) if x.dtype == jnp.uint8 else resized
        resized = resized.astype(x.dtype)
    else:
        resized = resize.nearest(other, frame, plan.sides, axes)
    # A product with zero would spread NaN.
    whole = (frame == np.array([[[0] * len(axes), plan.sides]], np.int32)).all((1, 2))
    return jnp.where(per_example(whole, x.ndim), other, resized)


def _blended(plan, x):
    """Returns what is outside of what is pasted: the image, or its blend with the partner."""
    soft = plan.mask is not None and plan.mask.dtype != bool
    if plan.ratio is None and not soft:
        return x
    if not jnp.issubdtype(x.dtype, jnp.inexact) and x.dtype != jnp.uint8:
        raise ValueError(
            f"an array of dtype {x.dtype} and shape {x.shape} cannot be blended: class ids have no"
            f" mean. Give it as one-hot floats, or use a mix that only pastes (a mask of bool)."
        )
    ratio = 1 if plan.ratio is None else per_example(plan.ratio, x.ndim)
    if soft:
        ratio *= 1 - plan.mask.astype(jnp.float32)
    dtype = precise(x.dtype)
    partner = partners(plan, x)
    own, other = (a.astype(dtype) for a in (x, partner))
    blend = ratio.astype(dtype) * own + (1 - ratio).astype(dtype) * other
    blend = jnp.round(blend) if x.dtype == jnp.uint8 else blend
    mixed = jnp.where(ratio == 1, x, blend.astype(x.dtype))
    return jnp.where(ratio == 0, partner, mixed) if soft else mixed


def precise(dtype):
    """Returns the dtype to compute in: float32, or a finer one."""
    inexact = jnp.issubdtype(dtype, jnp.inexact)
    return dtype if inexact and jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def _mask(plan, x, axes, box):
    """Selects over the whole image."""
    pasted = inside(box, x.shape, axes)
    if plan.mask is not None and plan.mask.dtype == bool:
        pasted |= plan.mask
    return jnp.where(pasted, _pasted(plan, x, axes), _blended(plan, x))


def _window(plan, x, axes, box):
    """Selects in the smallest window that holds the box. The rest of the image is not read."""

    def paste_in(quarters):
        shape = list(x.shape)
        for axis in axes:
            shape[axis] = -(-x.shape[axis] * quarters // 4)

        def branch(x):
            start = [jnp.int32(0)] * x.ndim
            for i, axis in enumerate(axes):
                start[axis] = jnp.minimum(box[0, 0, i], x.shape[axis] - shape[axis])
            corner = jnp.stack([start[axis] for axis in axes])[None, None]
            own = lax.dynamic_slice(x, start, shape)
            mixed = jnp.where(inside(box - corner, shape, axes), _pasted(plan, own, axes), own)
            return lax.dynamic_update_slice(x, mixed, start)

        return branch

    extent = box[0, 1] - box[0, 0]
    sides = jnp.asarray([x.shape[axis] for axis in axes], jnp.int32)
    branches = [lambda x: x] + [paste_in(quarters) for quarters in WINDOW_QUARTERS]
    return lax.switch(quarters_of(extent, sides), branches, x)
