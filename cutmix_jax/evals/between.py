"""In-between images of two classes, made by Mixup and CutMix (Figure 5b)."""

import jax
import numpy as np
from jax import numpy as jnp

from cutmix_jax.data.batches import permutation
from cutmix_jax.evals import figures
from cutmix_jax.evals.evaluation import Evaluation, Report
from cutmix_jax.evals.occlusion import center_box, hole_sides, inside_box
from cutmix_jax.evals.subject import predictions


def run(subject, options):
    """How often the prediction is neither class, over lambda and over the side of the box."""
    height, width, _ = subject.image_shape
    pairs = draw_pairs(subject.examples, options.pairs or subject.examples, options.seed)
    lams = [k / options.lam_steps for k in range(options.lam_steps + 1)]
    sides = hole_sides(height, options.steps, options.step)
    nothing, whole = center_box(0, height, width), np.float32(1)
    settings = [(np.float32(lam), nothing) for lam in lams]
    settings += [(whole, center_box(side, height, width)) for side in sides]

    def load(arrays, xs):
        first, second = (subject.load(arrays, part) for part in xs)
        return {**first, **{f"other_{key}": value for key, value in second.items()}}

    def neither(weights, batch, setting):
        images = blend(batch["image"], batch["other_image"], *setting)
        logits = subject.logits(weights, images)
        labels = jnp.stack([batch["label"], batch["other_label"]], 1)
        probs = jax.nn.softmax(logits)
        # If both images have the same class, its probability counts once.
        both = probs.at[jnp.arange(len(labels))[:, None], labels].set(0)
        return {
            "error": (predictions(logits)[:, None] != labels).all(1),
            "prob": both.sum(-1),
        }

    call = subject.compile(neither, load)
    placed = subject.replicate(settings)
    found = subject.collect(
        lambda xs: [call(xs, setting) for setting in placed],
        subject.pair_batches(pairs),
        len(pairs),
        "between",
    )
    means = [{key: float(value.mean()) for key, value in part.items()} for part in found]
    mixup, cutmix = means[: len(lams)], means[len(lams) :]
    rows = [
        {"form": form, "at": at, "error": mean["error"], "prob_neither": mean["prob"]}
        for form, grid, part in (("mixup", lams, mixup), ("cutmix", sides, cutmix))
        for at, mean in zip(grid, part, strict=True)
    ]
    values = {"pairs": len(pairs)}
    for form, part in (("mixup", mixup), ("cutmix", cutmix)):
        middle = part[len(part) // 2]
        values |= {
            f"{form}_mean_error": float(np.mean([mean["error"] for mean in part])),
            f"{form}_middle_error": middle["error"],
            f"{form}_middle_prob_neither": middle["prob"],
        }
    return Report(values, rows, {"between.png": draw(lams, mixup, sides, cutmix)})


def draw_pairs(examples, count, seed=0):
    """int64 ``[count, 2]``: indices of two images each, determined by the arguments.

    Each round of `examples` pairs is a random ring. Every image is once the first and once the
    second of a pair. No image is paired with itself, unless there is only one.
    """
    rounds = []
    for number in range(-(-count // examples)):
        ring = permutation(seed, number, examples)
        rounds.append(np.stack([ring, np.roll(ring, -1)], 1))
    return np.concatenate(rounds)[:count]


def blend(images, others, lam, box):
    r"""An image between two others, mixed by weight or by area.

    .. math:: \tilde x = M \odot (\lambda x_A + (1 - \lambda) x_B) + (1 - M) \odot x_B

    M is 0 inside the box. An empty box gives Mixup, lambda = 1 gives CutMix.

    Args:
        images: float32 ``[b, H, W, C]``, A.
        others: float32 ``[b, H, W, C]``, B.
        lam: scalar in [0, 1].
        box: int32 ``[2, 2]`` as from `center_box`.

    Returns:
        float32 ``[b, H, W, C]``.
    """
    weighed = lam * images + (1 - lam) * others
    return jnp.where(inside_box(box, *images.shape[1:3]), others, weighed)


def draw(lams, mixup, sides, cutmix):
    """Both curves of one network, side by side."""
    figure, axes = figures.new_figure(8.4, 3.6, columns=2, sharey=True)
    for axis, x, part, xlabel in (
        (axes[0], lams, mixup, "lambda of the Mixup form"),
        (axes[1], sides, cutmix, "side of the CutMix form's central square (pixels)"),
    ):
        lines = {
            "prediction is neither": [mean["error"] for mean in part],
            "probability of neither": [mean["prob"] for mean in part],
        }
        figures.curves(axis, x, lines, xlabel, "%" if x is lams else "")
    top = max(value for mean in mixup + cutmix for value in mean.values())
    axes[0].set_ylim(0, min(102, 105 * top + 1))
    return figure


EVALUATION = Evaluation(run)
