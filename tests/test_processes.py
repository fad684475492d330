"""Two processes of one device each, started by two plain commands on one machine."""

import json
import pathlib
import shutil
import signal
import time

import numpy as np
import pytest

from cutmix_jax.data import Shards, find_set, open_data
from cutmix_jax.lock import workdir_lock
from tests.commands import (
    SYNCHRONIZED,
    checkpoint_digest,
    finish,
    run_main,
    start_two,
    write_photographs,
)


def losses(workdir, measure="test_top1_error"):
    """The training losses and test errors of the epochs."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [(record["train_loss"], record[measure]) for record in map(json.loads, lines)]


def test_two_processes_compute_what_one_with_two_devices_does(tmp_path):
    printed, silent = finish(start_two(tmp_path / "two", *SYNCHRONIZED))
    one = run_main(f"--workdir={tmp_path / 'one'}", *SYNCHRONIZED, devices=2)
    assert one.returncode == 0, one.stderr
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)
    assert "in 2 processes, shard_map" in printed
    assert "in 1 process, pmap" in one.stdout
    assert "epoch" in printed
    assert "epoch" not in silent  # one of them writes logs and results
    assert (tmp_path / "two" / "results.json").exists()
    assert checkpoint_digest(tmp_path / "two")

    # One process resumes the run. Here, it finds it finished.
    again = run_main(f"--workdir={tmp_path / 'two'}", *SYNCHRONIZED)
    assert "is finished" in again.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("task", "measure"), [("ssd", "test_map"), ("captions", "test_loss")])
def test_two_processes_train_another_task_as_one_with_two_devices_does(task, measure, tmp_path):
    if task == "captions":
        pytest.importorskip("pycocoevalcap", reason="needs requirements-captions.txt")
    arguments = [f"--config=tests/tasks/small_run.py:{task}", "--config.sync_batch_norm=True"]
    # With such a small learning rate, differences of rounding do not grow from step to step.
    arguments += ["--config.epochs=1", "--config.eval_every=1", "--config.learning_rate=0.001"]
    finish(start_two(tmp_path / "two", *arguments))
    one = run_main(f"--workdir={tmp_path / 'one'}", *arguments, devices=2)
    assert one.returncode == 0, one.stderr
    found, expected = (losses(tmp_path / name, measure) for name in ("two", "one"))
    assert expected[0][1] > 0
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (tmp_path / "two" / "results.json").exists()


def own_images(values, process):
    """Paths of the images that one of two processes needs in the first epoch."""
    config = {"image_size": 8, "batch_size": 64, "augment": {"min_area": 0.08}, **values}
    data = open_data(config, Shards(1, process, 2))
    splits = find_set("folder", values["data_dir"], None).splits
    for split, steps in (("train", data.train_batches(0)), ("test", data.eval_batches("test"))):
        yield from (splits[split].name(i) for xs in steps for i in xs["index"].ravel())


@pytest.mark.slow
def test_each_process_streams_its_own_images_as_one_would(tmp_path):
    """The images of the other process cannot even be decoded."""
    values = write_photographs(tmp_path / "photographs")
    # With such a small learning rate, differences of rounding do not grow from step to step.
    arguments = [*SYNCHRONIZED, "--config.epochs=1", "--config.learning_rate=0.001"]
    arguments += [f"--config.{key}={value}" for key, value in values.items()]
    own = [set(own_images(values, process)) for process in (0, 1)]
    assert not own[0] & own[1]
    each = []
    for process in (0, 1):
        folder = shutil.copytree(tmp_path / "photographs", tmp_path / f"for process {process}")
        each.append([f"--config.data_dir={folder}"])
        for path in own[1 - process]:
            (folder / pathlib.Path(path).relative_to(tmp_path / "photographs")).write_bytes(b"")
    finish(start_two(tmp_path / "two", *arguments, each=each))
    one = run_main(f"--workdir={tmp_path / 'one'}", *arguments, devices=2)
    assert one.returncode == 0, one.stderr
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)


def test_one_killed_ends_the_other_and_both_go_on(tmp_path):
    longer = [*SYNCHRONIZED, "--config.epochs=5"]
    processes = start_two(tmp_path, *longer)
    limit = time.monotonic() + 200
    while not list((tmp_path / "checkpoints").glob("[0-9]*[0-9]")):
        assert time.monotonic() < limit
        time.sleep(0.01)
    processes[1].kill()
    processes[0].communicate(timeout=60)
    assert processes[0].returncode not in (0, None)
    printed, _ = finish(start_two(tmp_path, *longer))
    assert "Going on from step" in printed
    assert (tmp_path / "results.json").exists()


@pytest.mark.slow
def test_both_end_in_one_sentence_where_another_run_has_the_lock(tmp_path):
    with workdir_lock(tmp_path):
        processes = start_two(tmp_path, *SYNCHRONIZED)
        errors = [process.communicate(timeout=100)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], errors
    assert errors[0].startswith("error: Another run is writing to the workdir"), errors[0]
    assert errors[1].startswith("error: Process 0 cannot use the workdir"), errors[1]
    assert [error.count("\n") for error in errors] == [1, 1], errors


@pytest.mark.slow
def test_sigterm_saves_in_both(tmp_path):
    longer = [*SYNCHRONIZED, "--config.epochs=5"]
    processes = start_two(tmp_path, *longer)
    while not list((tmp_path / "checkpoints").glob("[0-9]*[0-9]")):
        time.sleep(0.01)
        assert processes[0].poll() is None
    for process in processes:
        process.send_signal(signal.SIGTERM)
    printed, _ = finish(processes)
    assert "Interrupted and saved at step" in printed
    one = run_main(f"--workdir={tmp_path}", *longer)
    assert one.returncode == 0, one.stderr
    assert "Going on from step" in one.stdout
