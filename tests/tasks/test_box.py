"""Another task is one class: the same commands train, resume and evaluate it."""

import json
import signal

import numpy as np
import pytest

from cutmix_jax import UserError, tasks
from cutmix_jax.parallel import create_mapping
from tests.commands import checkpoint_digest, run_main, start_main
from tests.tasks import box

ARGUMENTS = (
    "--config=tests/tasks/box.py:resnet8x0.25",
    "--config.loggers=()",
    "--config.image_size=16",
    "--config.train_examples=320",
    "--config.epochs=4",
    "--config.eval_every=2",
    "--config.checkpoint_every=3",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run, and what it printed."""
    folder = tmp_path_factory.mktemp("boxes")
    done = run_main(f"--workdir={folder}", *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_it_is_trained_and_reported(finished):
    folder, printed = finished
    history = records(folder)
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert ["test_iou" in record for record in history] == [False, True, False, True]
    results = json.loads((folder / "results.json").read_text())
    ious = [record["test_iou"] for record in history if "test_iou" in record]
    assert results["iou_last"] == ious[-1]
    assert results["iou_best"] == max(ious)
    assert f"test iou {ious[-1]:.4g}" in printed


def test_the_best_checkpoint_has_the_highest_measure(finished):
    folder, _ = finished
    done = run_main(f"--workdir={folder}", "--mode=evaluate", "--checkpoint=best")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    best = max(records(folder), key=lambda record: record.get("test_iou", 0))
    assert (result["checkpoint"], result["test_iou"]) == (best["step"], best["test_iou"])


def test_killed_within_an_epoch_it_ends_with_the_same_bits(finished, tmp_path):
    process = start_main(f"--workdir={tmp_path}", *ARGUMENTS)
    while not list((tmp_path / "checkpoints").glob("[0-9]*[0-9]")) and process.poll() is None:
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "results.json").exists()
    again = run_main(f"--workdir={tmp_path}", *ARGUMENTS)
    assert "Going on from step" in again.stdout
    assert checkpoint_digest(tmp_path) == checkpoint_digest(finished[0])


def test_evaluations_of_classifiers_are_refused(finished):
    done = run_main(f"--workdir={finished[0]}", "--mode=evaluate", "--evals=fgsm")
    assert done.returncode == 1
    assert "Fgsm is for tasks of the class Classification, and config.task" in done.stderr


def test_what_it_cannot_use_is_refused_in_its_own_words():
    config = box.get_config("resnet8")
    config.image_size, config.train_examples, config.augment.flip = 16, 320, True
    with pytest.raises(UserError, match="neither moves them"):
        tasks.create_task(config, create_mapping("pmap", 1))


@pytest.mark.parametrize(("key", "value"), [("mix.name", "cutmix"), ("label_smoothing", 0.1)])
def test_what_it_does_not_apply_is_refused(key, value):
    config = box.get_config("resnet8")
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=rf"config\.{key} is {value!r}, but the task .* not use it"):
        tasks.create_task(config, create_mapping("pmap", 1))


def test_the_measure_by_hand():
    a, b = np.array([[0, 0, 2, 2.0]]), np.array([[1, 0, 3, 2.0]])
    np.testing.assert_allclose(box.intersection_over_union(a, b), 2 / 6)
    np.testing.assert_allclose(box.intersection_over_union(a, a + 5), 0)
