"""Adversarial robustness: the fast gradient sign method (Table 11), and PGD, a stronger attack."""

import jax
import numpy as np
import optax
from jax import numpy as jnp

from cutmix_jax.evals import figures
from cutmix_jax.evals.evaluation import Evaluation, Report
from cutmix_jax.evals.subject import own, predictions


def run(subject, options):
    """Top-1 error and accuracy over the size of the perturbation, in units of 1/255."""
    errors = {"fgsm": fgsm_errors(subject, options), "pgd": pgd_errors(subject, options)}
    values, rows = {}, []
    for attack, found in errors.items():
        for eps, error in found.items():
            rows.append(
                {
                    "attack": attack,
                    "eps_255": eps,
                    "top1_error": error,
                    "top1_accuracy": 1 - error,
                }
            )
            if eps == 0:
                values["clean_top1_error"] = error
            else:
                values[f"{attack}_{eps:g}_top1_error"] = error
                values[f"{attack}_{eps:g}_top1_accuracy"] = 1 - error
    return Report(values, rows, {"fgsm.png": draw(errors, options)})


def loss_gradient(subject, weights, images, labels):
    """The gradient of each image's cross-entropy with respect to its own pixels."""

    def loss(x):
        logits = subject.logits(weights, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()

    return jax.grad(loss)(images)


def perturb(images, sign, eps, clip=True):
    r"""Moves every pixel by `eps` in the direction that raises the loss.

    .. math:: \hat x = \text{clip}_{[0, 1]}(x + \epsilon \, \text{sign} \nabla_x \ell(x, y))

    Args:
        images: float32 ``[b, H, W, C]`` in [0, 1].
        sign: -1, 0 or 1, of the same shape, any dtype.
        eps: in the scale of the images: 8/255, not 8.
        clip: clip the result to [0, 1].

    Returns:
        float32 ``[b, H, W, C]``.

    Example:
        >>> perturb(jnp.array([0.5, 1.0]), jnp.array([-1, 1]), 0.25).tolist()
        [0.25, 1.0]

    Reference:
        Goodfellow, Shlens, Szegedy. Explaining and Harnessing Adversarial Examples. ICLR 2015.
    """
    moved = images + eps * sign.astype(images.dtype)
    return jnp.clip(moved, 0, 1) if clip else moved


def pgd_step(images, adversarial, gradient, eps, step_size, clip=True):
    r"""One projected step along the sign, projected to the box of `eps` around the image.

    .. math:: \hat x \leftarrow \Pi_{[x - \epsilon, x + \epsilon]}
        (\hat x + \eta \, \text{sign} \nabla_x \ell(\hat x, y))

    Reference:
        Madry, Makelov, Schmidt, Tsipras, Vladu. Towards Deep Learning Models Resistant to
        Adversarial Attacks. ICLR 2018.
    """
    moved = jnp.clip(adversarial + step_size * jnp.sign(gradient), images - eps, images + eps)
    return jnp.clip(moved, 0, 1) if clip else moved


def fgsm_errors(subject, options):
    """``{eps in 1/255: top-1 error}``; one gradient per image serves all sizes."""

    def sign(weights, batch):
        gradient = loss_gradient(subject, weights, batch["image"], batch["label"])
        return jnp.sign(gradient).astype(jnp.int8)

    def wrong(weights, batch, signs, eps):
        images = perturb(batch["image"], own(signs, batch["label"]), eps, options.clip)
        return predictions(subject.logits(weights, images)) != batch["label"]

    signs, measure = subject.compile(sign), subject.compile(wrong)
    sizes = sorted({0.0, *map(float, options.eps)})
    placed = subject.replicate([np.float32(eps / 255) for eps in sizes])

    def attack(xs):
        found = signs(xs)
        return [measure(xs, found, eps) for eps in placed]

    found = subject.collect(attack, subject.batches(), subject.examples, "fgsm")
    return {eps: float(part.mean()) for eps, part in zip(sizes, found, strict=True)}


def pgd_errors(subject, options):
    """``{eps in 1/255: top-1 error}``, after `pgd_steps` steps."""
    if not options.pgd_eps:
        return {}
    # Each step is a call of one compiled function. A loop around convolutions is slow on CPU, and
    # an unrolled one takes long to compile.

    def start(weights, batch, eps):
        def noise(index):
            key = jax.random.fold_in(jax.random.key(options.seed), index)
            return jax.random.uniform(key, subject.image_shape, minval=-1, maxval=1)

        images = batch["image"]
        if options.pgd_random_start:
            images = images + eps * jax.vmap(noise)(batch["index"])
        return jnp.clip(images, 0, 1) if options.clip else images

    def step(weights, batch, adversarial, eps, step_size):
        adversarial = own(adversarial, batch["label"])
        gradient = loss_gradient(subject, weights, adversarial, batch["label"])
        return pgd_step(batch["image"], adversarial, gradient, eps, step_size, options.clip)

    def wrong(weights, batch, adversarial):
        logits = subject.logits(weights, own(adversarial, batch["label"]))
        return predictions(logits) != batch["label"]

    start, step, wrong = map(subject.compile, (start, step, wrong))
    sizes = sorted(set(map(float, options.pgd_eps)))
    placed = subject.replicate([np.float32(eps / 255) for eps in sizes])
    (step_size,) = subject.replicate([np.float32(options.pgd_step_size / 255)])

    def attack(xs):
        found = []
        for eps in placed:
            adversarial = start(xs, eps)
            for _ in range(options.pgd_steps):
                adversarial = step(xs, adversarial, eps, step_size)
            found.append(wrong(xs, adversarial))
        return found

    found = subject.collect(attack, subject.batches(), subject.examples, "fgsm: PGD")
    return {eps: float(part.mean()) for eps, part in zip(sizes, found, strict=True)}


def draw(errors, options):
    """Top-1 error over the size of the perturbation."""
    figure, axis = figures.new_figure()
    axis.axvline(8, color="C7", linestyle=":", linewidth=1, label="8/255, as in Table 11")
    sizes = list(errors["fgsm"])
    axis.plot(sizes, [100 * e for e in errors["fgsm"].values()], "o-", ms=3, label="FGSM")
    if errors["pgd"]:
        words = f"PGD, {options.pgd_steps} steps of {options.pgd_step_size:g}/255"
        sizes, found = list(errors["pgd"]), [100 * e for e in errors["pgd"].values()]
        axis.plot(sizes, found, "s", linestyle="-" if len(found) > 1 else "none", label=words)
    axis.set_xlabel("size of the perturbation, in 1/255")
    axis.set_ylabel("top-1 error (%)")
    axis.set_ylim(0, 102)
    axis.legend(frameon=False, loc="lower right")
    figures.plain(axis)
    return figure


EVALUATION = Evaluation(run)
