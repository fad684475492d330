"""A detector whose images are streamed: the bits of resident images, on resuming too."""

import dataclasses
import io

import flax.linen as nn
import jax
import pytest

from cutmix_jax import run, signals, tasks
from cutmix_jax.command_line import read_config
from cutmix_jax.detection import augment
from tests.commands import checkpoint_digest
from tests.data.conftest import tree_examples, write_tree


class Linear(nn.Module):
    """A network that is compiled at once: the mean color decides all."""

    @nn.compact
    def __call__(self, images, train=False, progress=1.0):
        found = nn.Dense(84 * 25)(images.mean((1, 2))).reshape(len(images), 84, 25)
        return found[..., :21], found[..., 21:]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    tree = write_tree(
        tmp_path_factory.mktemp("voc") / "tree",
        {"train": tree_examples(0, 17), "val": tree_examples(17, 3)},
    )
    config = read_config("configs/voc.py:resnet18x0.0625,ssd")
    config.update_from_flattened_dict(
        {
            "data_dir": str(tree),
            "voc.train": "train",
            "voc.test": "val",
            "image_size": 32,
            "batch_size": 8,
            "epochs": 2,
            "learning_rate": 0.1,
        }
    )
    return config


def train(config, workdir, monkeypatch, stop_at=None):
    """Trains until a step; returns the kind of the data."""
    task = tasks.create_task(config)
    with monkeypatch.context() as patch:
        # The augmentation of SSD takes long to compile.
        patch.setattr(
            augment, "augment_ssd", lambda _, *given, **__: augment.resize_batch(*given[:2])
        )
        patch.setattr(run, "create_task", lambda config: dataclasses.replace(task, model=Linear()))
        patch.setattr(signals.Interruption, "at", lambda self, step: step == stop_at)
        results = run.train(task.config, workdir, io.StringIO())
    assert (results is None) == (stop_at is not None)
    return task.data.kind


def test_stopped_within_an_epoch_it_ends_with_the_bits_of_resident_images(
    config, tmp_path, monkeypatch
):
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        assert train(config, tmp_path / "resident", monkeypatch) == "resident"
        config.resident_limit_mib = 0
        for stop_at in (3, None):
            assert train(config, tmp_path / "streamed", monkeypatch, stop_at) == "streaming"
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    assert checkpoint_digest(tmp_path / "streamed") == checkpoint_digest(tmp_path / "resident")
