"""Each mix in one call: draw the plan, mix the images, mix the labels."""

from functools import partial

import jax
import jax.numpy as jnp

from cutmix_jax.mix import check
from cutmix_jax.mix.plan import apply, mix_labels
from cutmix_jax.mix.sample import sample_cutmix


def cutmix(
    key, images, labels, *, num_classes=None, alpha=1.0, prob=1.0, spatial_axes=(1, 2), **options
):
    r"""Mixes a batch by CutMix: draws the plan, pastes the box, mixes the labels.

    .. math::
        \tilde x = M \odot x + (1 - M) \odot x_{partner}, \qquad
        \tilde y = \lambda y + (1 - \lambda) y_{partner}

    Args:
        key: a JAX random key.
        images: `[B, H, W, C]`, any dtype; other layouts by `spatial_axes`.
        labels: class ids, int `[B]`, with `num_classes`; or rows `[B, K]`.
        num_classes: K, for class ids.
        alpha: parameter of the Beta distribution; may be traced.
        prob: the probability to mix at all; may be traced.
        spatial_axes: the axes of `images` that the box lies on.
        **options: what else `sample_cutmix` takes, and `paste` of `apply`.

    Returns:
        `(images, labels, plan)`: mixed images of the given dtype, float32 `[B, K]` labels, and the
        `Plan`, with which anything else of the batch can be mixed too.

    Raises:
        ValueError: while tracing, if shapes, dtypes or parameters do not fit.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from cutmix_jax import mix
        >>> images = jax.random.randint(jax.random.key(0), (4, 32, 32, 3), 0, 256, jnp.uint8)
        >>> labels = jnp.array([0, 1, 2, 3])
        >>> images, labels, plan = mix.cutmix(jax.random.key(1), images, labels, num_classes=4)
        >>> labels

    Reference:
        Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
        Features", ICCV 2019.
    """
    alpha = check.number("alpha", alpha, 0, float("inf"), above=True)
    prob = check.number("prob", prob, 0, 1)
    images = jnp.asarray(images)
    if images.ndim <= max(spatial_axes, default=0):
        raise ValueError(
            f"images of shape {images.shape} have no axes {spatial_axes}; expected [B, H, W, C],"
            f" or name their spatial_axes."
        )
    return _cutmix(key, images, labels, alpha, prob, num_classes, tuple(spatial_axes), **options)


@partial(
    jax.jit,
    static_argnums=(5, 6),
    static_argnames=("box", "scope", "partner", "axis_name", "paste"),
)
def _cutmix(key, images, labels, alpha, prob, num_classes, spatial_axes, paste="auto", **options):
    sides = tuple(images.shape[axis] for axis in spatial_axes)
    plan = sample_cutmix(key, images.shape[0], sides, alpha=alpha, prob=prob, **options)
    mixed = apply(plan, images, spatial_axes=spatial_axes, paste=paste)
    return mixed, mix_labels(plan, labels, num_classes), plan
