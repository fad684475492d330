"""A detector whose images are streamed: the bits of resident images, on resuming too."""

import dataclasses
import io
import json

import pytest
from PIL import Image

from cutmix_jax import run, signals, tasks
from cutmix_jax.command_line import read_config
from cutmix_jax.detection import augment
from tests.commands import checkpoint_digest
from tests.data.conftest import tree_examples, write_tree
from tests.tasks.runs import Linear


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


@pytest.fixture
def cheap(config, unoptimized, monkeypatch):
    """Everything that takes long to compile is replaced."""
    create = tasks.create_task
    monkeypatch.setattr(
        run, "create_task", lambda config: dataclasses.replace(create(config), model=Linear(20))
    )
    monkeypatch.setattr(
        augment, "augment_ssd", lambda _, *given, **__: augment.resize_batch(*given[:2])
    )
    return config


def train(config, workdir, monkeypatch, stop_at=None):
    """Trains until a step; returns what was printed."""
    with monkeypatch.context() as patch:
        patch.setattr(signals.Interruption, "at", lambda self, step: step == stop_at)
        results = run.train(config, workdir, stream := io.StringIO())
    assert (results is None) == (stop_at is not None)
    return stream.getvalue()


def test_stopped_within_an_epoch_it_ends_with_the_bits_of_resident_images(
    cheap, tmp_path, monkeypatch
):
    assert "32x32, resident" in train(cheap, tmp_path / "resident", monkeypatch)
    cheap.resident_limit_mib = 0
    streamed = tmp_path / "streamed"
    for stop_at in (3, None):
        assert "32x32, streaming" in train(cheap, streamed, monkeypatch, stop_at)
    assert checkpoint_digest(streamed) == checkpoint_digest(tmp_path / "resident")
    (tmp_path / "photographs").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "photographs/other.png")
    found = run.evaluate(
        None,
        streamed,
        overrides={"evals.detection.images": str(tmp_path / "photographs")},
        evals="detection",
        stream=io.StringIO(),
    )
    last = (streamed / "metrics.jsonl").read_text().splitlines()[-1]
    assert found["detection"]["map_11_point"] == json.loads(last)["test_map"]
    written = {path.name for path in (streamed / "evals").iterdir()}
    assert {"detection.png", "detection_photographs.png"} <= written
