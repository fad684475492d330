"""Each mix in one call: sample the plan, mix the images, mix the labels."""

from functools import partial
from typing import Unpack

import jax
from jax.typing import ArrayLike

from cutmix_jax.mix import check
from cutmix_jax.mix.labels import check_labels, mix_labels
from cutmix_jax.mix.pixels import apply, check_fill
from cutmix_jax.mix.plan import Plan
from cutmix_jax.mix.sample import (
    NUMBERS,
    checked_numbers,
    sample_cutmix,
    sample_cutout,
    sample_mixup,
)
from cutmix_jax.mix.types import (
    ArrayOrList,
    Axes,
    CutmixOptions,
    CutoutOptions,
    MixupOptions,
    Paste,
)


def cutmix(
    key: jax.Array,
    images: ArrayLike,
    labels: ArrayOrList,
    *,
    num_classes: int | None = None,
    spatial_axes: Axes = (1, 2),
    paste: Paste = "mask",
    **options: Unpack[CutmixOptions],
) -> tuple[jax.Array, jax.Array, Plan]:
    r"""Mixes a batch by CutMix: samples the plan, pastes the box, mixes the labels.

    .. math::
        \tilde x = M \odot x + (1 - M) \odot x_{partner}, \qquad
        \tilde y = \lambda y + (1 - \lambda) y_{partner}

    Args:
        key: a JAX random key.
        images: `[B, H, W, C]`, any dtype; other layouts by `spatial_axes`.
        labels: class ids, integers `[B]`, with `num_classes`; or rows of weights, `[B, K]`.
        num_classes: K, for class ids.
        spatial_axes: the axes of `images` that the box lies on.
        paste: `'mask'`, `'window'` or `'auto'`, as for `apply`. The mask writes the new batch in
            one pass. The window is faster if the batch may be overwritten.
        **options: options of `sample_cutmix`: `alpha=1.0`, `prob=1.0`, `scope='batch'`, ...
            Numbers may be traced.

    Returns:
        `(images, labels, plan)`: mixed images of the same dtype, labels float32 `[B, K]`, and the
        `Plan`, which mixes anything else in the batch.

    Raises:
        ValueError: while tracing, if shapes, dtypes or options do not fit.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from cutmix_jax import mix
        >>> images = jax.random.randint(jax.random.key(0), (4, 32, 32, 3), 0, 256, jnp.uint8)
        >>> labels = jnp.array([0, 1, 2, 3])
        >>> images, labels, plan = mix.cutmix(jax.random.key(1), images, labels, num_classes=4)
        >>> labels
        Array([[0.8388672 , 0.        , 0.        , 0.16113281],
               [0.        , 0.8388672 , 0.16113281, 0.        ],
               [0.16113281, 0.        , 0.8388672 , 0.        ],
               [0.        , 0.16113281, 0.        , 0.8388672 ]], dtype=float32)

    Reference:
        Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
        Features", ICCV 2019.
    """
    return _mix(sample_cutmix, key, images, labels, num_classes, spatial_axes, paste, options)


def mixup(
    key: jax.Array,
    images: ArrayLike,
    labels: ArrayOrList,
    *,
    num_classes: int | None = None,
    spatial_axes: Axes = (1, 2),
    **options: Unpack[MixupOptions],
) -> tuple[jax.Array, jax.Array, Plan]:
    r"""Mixes a batch by Mixup: samples the plan, blends the images, mixes the labels.

    .. math::
        \tilde x = \lambda x + (1 - \lambda) x_{partner}, \qquad
        \tilde y = \lambda y + (1 - \lambda) y_{partner}

    Args:
        key: a JAX random key.
        images: `[B, H, W, C]`, floating or uint8; other layouts by `spatial_axes`.
        labels: class ids, integers `[B]`, with `num_classes`; or rows of weights, `[B, K]`.
        num_classes: K, for class ids.
        spatial_axes: the spatial axes of `images`.
        **options: options of `sample_mixup`; numbers may be traced.

    Returns:
        `(images, labels, plan)`, as `cutmix` does.

    Raises:
        ValueError: while tracing, if shapes, dtypes or options do not fit.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from cutmix_jax import mix
        >>> images = jnp.stack([jnp.zeros((4, 4, 1)), jnp.ones((4, 4, 1))])
        >>> images, labels, plan = mix.mixup(
        ...     jax.random.key(1), images, jnp.array([0, 1]), num_classes=2, partner='reverse')
        >>> images[:, 0, 0, 0], labels
        (Array([0.3883282, 0.6116718], dtype=float32), Array([[0.6116718, 0.3883282],
               [0.3883282, 0.6116718]], dtype=float32))

    Reference:
        Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
    """
    return _mix(sample_mixup, key, images, labels, num_classes, spatial_axes, "auto", options)


def cutout(
    key: jax.Array,
    images: ArrayLike,
    *,
    spatial_axes: Axes = (1, 2),
    paste: Paste = "mask",
    **options: Unpack[CutoutOptions],
) -> tuple[jax.Array, Plan]:
    r"""Fills a box in each image, by Cutout. Labels do not change.

    .. math:: \tilde x_i[p] = \text{fill if } p \in \text{box}_i \text{ else } x_i[p]

    Args:
        key: a JAX random key.
        images: `[B, H, W, C]`, any dtype; other layouts by `spatial_axes`.
        spatial_axes: the axes of `images` that the box lies on.
        paste: `'mask'`, `'window'` or `'auto'`, as for `apply`. The mask writes the new batch in
            one pass. The window is faster if the batch may be overwritten.
        **options: options of `sample_cutout`; numbers may be traced.

    Returns:
        `(images, plan)`.

    Raises:
        ValueError: while tracing, if shapes, dtypes or options do not fit.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from cutmix_jax import mix
        >>> images, plan = mix.cutout(jax.random.key(1), jnp.ones((2, 4, 4, 1)), size=2)
        >>> images[1, :, :, 0]
        Array([[1., 1., 1., 1.],
               [1., 1., 1., 1.],
               [1., 0., 0., 1.],
               [1., 0., 0., 1.]], dtype=float32)

    Reference:
        DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout",
        2017.
    """
    images, _, plan = _mix(sample_cutout, key, images, None, None, spatial_axes, paste, options)
    return images, plan


def _mix(sampler, key, images, labels, num_classes, spatial_axes, paste, options):
    """Checks what is only known outside of jit, then calls the jitted function."""
    if not hasattr(images, "shape"):
        raise ValueError(
            f"images must be one array with the batch first, but got a {type(images).__name__}."
            f" Stack them, or sample a plan and apply() it to each array."
        )
    images = check.array("images", images)
    numbers = checked_numbers(**{k: v for k, v in options.items() if k in NUMBERS})
    if "fill" in options:
        numbers["fill"] = check_fill(options["fill"], images)
    if labels is not None:
        labels = check.array("labels", labels)
        num_classes = check_labels(labels, num_classes)
    rest = {name: value for name, value in options.items() if name not in numbers}
    if "size" in rest:
        rest["size"] = check.size(rest["size"])
    return _mix_jitted(
        key,
        images,
        labels,
        numbers,
        sampler=sampler,
        num_classes=num_classes,
        spatial_axes=check.axis_numbers(spatial_axes),
        paste=paste,
        options=tuple(sorted(rest.items())),
    )


@partial(jax.jit, static_argnames=("sampler", "num_classes", "spatial_axes", "paste", "options"))
def _mix_jitted(
    key, images, labels, numbers, *, sampler, num_classes, spatial_axes, paste, options
):
    axes = check.axes(f"images of shape {images.shape}", images.shape, spatial_axes)
    sides = tuple(images.shape[axis] for axis in axes)
    plan = sampler(key, images.shape[0], sides, **numbers, **dict(options))
    mixed = apply(plan, images, spatial_axes=spatial_axes, paste=paste)
    return mixed, None if labels is None else mix_labels(plan, labels, num_classes), plan
