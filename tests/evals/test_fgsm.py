"""The perturbation has the stated size, and the attack is the paper's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cutmix_jax.evals import fgsm


def options_of(subject, **values):
    options = subject.task.config.evals.fgsm.copy_and_resolve_references()
    options.update(values)
    return options


@pytest.fixture(scope="module")
def gradient(subject, pixels):
    """The gradient of the loss by pixels, written independently, in the network's input space."""
    mean, std = (np.float32(subject.task.config.normalize[key]) for key in ("mean", "std"))
    images, labels = pixels

    def loss(x):
        logits = subject.task.model.apply(subject.weights, x, train=False)
        return -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels].sum()

    return np.asarray(jax.jit(jax.grad(loss))((images - mean) / std)) / std


@pytest.mark.parametrize("eps", [1, 2, 4, 8, 16])
def test_the_perturbation_has_exactly_the_asked_size(pixels, gradient, eps):
    images, sign, size = pixels[0], np.sign(gradient), np.float32(eps / 255)
    assert (sign != 0).mean() > 0.9
    moved = np.asarray(fgsm.perturb(images, sign.astype(np.int8), size, clip=False)) - images
    np.testing.assert_allclose(np.abs(moved)[sign != 0], size, atol=1e-7)
    assert (moved[sign == 0] == 0).all()
    clipped = np.asarray(fgsm.perturb(images, sign, size))
    assert clipped.min() >= 0
    assert clipped.max() <= 1
    assert np.abs(clipped - images).max() <= size + 1e-7
    inside = (images + moved >= 0) & (images + moved <= 1)
    np.testing.assert_array_equal(clipped[inside], (images + moved)[inside])


def test_the_gradient_is_that_of_each_image_in_pixel_scale(subject, pixels, gradient):
    found = jax.jit(partial(fgsm.loss_gradient, subject))(subject.weights, *pixels)
    scale = np.abs(gradient).max()
    np.testing.assert_allclose(found / scale, gradient / scale, atol=1e-5)


def test_errors_are_those_of_images_attacked_in_normalized_space(
    subject, pixels, predict, gradient
):
    """There the step is eps / std of each channel."""
    images, labels = pixels
    options = options_of(subject, eps=(4.0,), clip=False)
    found = fgsm.fgsm_errors(subject, options)
    assert list(found) == [0, 4]
    assert found[0] == pytest.approx((predict(images).argmax(1) != labels).mean(), abs=0.004)
    moved = images + 4 / 255 * np.sign(gradient)
    assert found[4] == pytest.approx((predict(moved).argmax(1) != labels).mean(), abs=0.011)
    assert found[4] > found[0]


def test_one_step_of_pgd_from_the_image_is_fgsm(subject):
    options = options_of(
        subject, eps=(8.0,), pgd_steps=1, pgd_step_size=8.0, pgd_random_start=False
    )
    assert fgsm.pgd_errors(subject, options)[8] == pytest.approx(
        fgsm.fgsm_errors(subject, options)[8], abs=0.004
    )


def test_pgd_stays_around_the_image_and_is_the_stronger_attack(subject, pixels):
    images, labels = (x[:64] for x in pixels)
    eps, step = np.float32(8 / 255), np.float32(2 / 255)

    @jax.jit
    def attack(weights):
        x = images
        for _ in range(5):
            x = fgsm.pgd_step(images, x, fgsm.loss_gradient(subject, weights, x, labels), eps, step)
        once = fgsm.loss_gradient(subject, weights, images, labels)
        losses = [
            optax.softmax_cross_entropy_with_integer_labels(subject.logits(weights, y), labels)
            for y in (fgsm.perturb(images, jnp.sign(once), eps), x)
        ]
        return x, *losses

    x, single, several = map(np.asarray, attack(subject.weights))
    assert np.abs(x - images).max() <= eps + 1e-7
    assert x.min() >= 0
    assert x.max() <= 1
    assert several.mean() > single.mean()
