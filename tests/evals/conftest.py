"""A small network for the handwritten digits, with predictions in all classes."""

import jax
import numpy as np
import pytest

from cutmix_jax import evals, tasks, train
from cutmix_jax.parallel import create_mapping
from tests.commands import small_config


def _make(kind="pmap", devices=1, **overrides):
    config = small_config(**overrides)
    task = tasks.create_task(config, create_mapping(kind, devices))
    weights = jax.tree.map(np.array, jax.device_get(train.create_state(task).evaluated()))
    images = np.asarray(task.data.arrays["test"]["image"], np.float32) / 255
    plain = evals.create_subject(task, weights, quiet=True)
    # Untrained logits hardly differ between images, so they are centered and scaled.
    features, _ = jax.jit(plain.features)(weights, images)
    pooled = np.asarray(features).mean((1, 2))
    head = weights["params"]["fc"]
    head["kernel"] = 30 * head["kernel"]
    head["bias"] = -pooled.mean(0) @ head["kernel"]
    return evals.create_subject(task, task.mapping.replicate(weights), quiet=True)


@pytest.fixture(scope="session")
def make_subject():
    return _make


@pytest.fixture(scope="session")
def subject():
    """One device, with 297 images of 8x8."""
    return _make()


@pytest.fixture(scope="session")
def pixels(subject):
    """The images of the subject in [0, 1], and their labels."""
    part = subject.task.data.arrays["test"]
    return np.asarray(part["image"], np.float32) / 255, np.asarray(part["label"])


@pytest.fixture(scope="session")
def predict(subject):
    """The logits of images, without the code of the evaluations."""
    mean, std = (np.float32(subject.task.config.normalize[key]) for key in ("mean", "std"))
    apply = jax.jit(lambda weights, x: subject.task.model.apply(weights, x, train=False))

    def run(images):
        return np.asarray(apply(subject.weights, (images - mean) / std))

    return run
