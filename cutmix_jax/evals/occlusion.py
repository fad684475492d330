"""Occlusion of the center, or of everything but the center (Figure 5a)."""

import numpy as np
from jax import numpy as jnp

from cutmix_jax import UserError
from cutmix_jax.evals import figures
from cutmix_jax.evals.evaluation import Evaluation, Report
from cutmix_jax.evals.subject import predictions

FILLS = ("mean", "black")


def run(subject, options):
    """Top-1 error over the side of a centered square that is hidden, or the only part visible."""
    height, width, _ = subject.image_shape
    fill = fill_value(subject.task.config, options.fill)
    sides = hole_sides(height, options.steps, options.step)
    boxes = [center_box(side, height, width) for side in sides]
    settings = [(box, np.bool_(inside)) for inside in (True, False) for box in boxes]

    def wrong(weights, batch, setting):
        images = occlude(batch["image"], *setting, fill)
        return predictions(subject.logits(weights, images)) != batch["label"]

    found = subject.map_examples(wrong, settings, words="occlusion")
    errors = [float(part.mean()) for part in found]
    center, boundary = errors[: len(sides)], errors[len(sides) :]
    rows = [
        {"side": side, "center_top1_error": inner, "boundary_top1_error": outer}
        for side, inner, outer in zip(sides, center, boundary, strict=True)
    ]
    values = {
        "clean_top1_error": center[0],
        "center_mean_top1_error": float(np.mean(center)),
        "boundary_mean_top1_error": float(np.mean(boundary)),
    }
    figure, axis = figures.new_figure()
    lines = {"center occluded": center, "boundary occluded": boundary}
    figures.curves(axis, sides, lines, "side of the centered square (pixels)", "top-1 error (%)")
    axis.set_ylim(0, 102)
    return Report(values, rows, {"occlusion.png": figure})


def hole_sides(height, steps, step=None):
    """Sides in pixels, from 0 to the image's: in `steps` steps, or in steps of `step` pixels."""
    if step is None:
        return sorted({round(height * k / steps) for k in range(steps + 1)})
    return [*range(0, height, step), height]


def center_box(side, height, width):
    """int32 ``[2, 2]``, the half-open ``((top, bottom), (left, right))`` of a centered square.

    If the image is not square, the box has its aspect ratio, and `side` is its height.
    """
    tall, wide = side, round(side * width / height)
    top, left = (height - tall) // 2, (width - wide) // 2
    return np.array([[top, top + tall], [left, left + wide]], np.int32)


def inside_box(box, height, width):
    """bool ``[1, H, W, 1]``, True inside a box from `center_box`, which may be traced."""
    rows, columns = jnp.arange(height), jnp.arange(width)
    tall = (rows >= box[0, 0]) & (rows < box[0, 1])
    wide = (columns >= box[1, 0]) & (columns < box[1, 1])
    return (tall[:, None] & wide)[None, :, :, None]


def occlude(images, box, inside, fill):
    r"""Fills the center, or everything but the center.

    Args:
        images: float32 ``[b, H, W, C]`` in [0, 1].
        box: int32 ``[2, 2]`` as from `center_box`.
        inside: whether the box is filled, or everything around it.
        fill: float ``[C]`` or a scalar, in [0, 1].

    Returns:
        float32 ``[b, H, W, C]``.

    Example:
        >>> occlude(jnp.ones((1, 4, 4, 1)), center_box(2, 4, 4), True, 0.0)[0, :, :, 0]
        Array([[1., 1., 1., 1.],
               [1., 0., 0., 1.],
               [1., 0., 0., 1.],
               [1., 1., 1., 1.]], dtype=float32)
    """
    covered = inside_box(box, *images.shape[1:3]) == inside
    return jnp.where(covered, jnp.asarray(fill, images.dtype), images)


def fill_value(config, name):
    """The mean color, which the network sees as zero, or black."""
    if name not in FILLS:
        raise UserError(
            f"config.evals.occlusion.fill is {name!r}, and one of {', '.join(map(repr, FILLS))} "
            "was expected."
        )
    return np.asarray(config.normalize.mean, np.float32) if name == "mean" else np.float32(0)


EVALUATION = Evaluation(run)
