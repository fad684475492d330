"""A run that is killed, at any time and any number of times, ends with the same bits."""

import json
import random
import re
import signal
import time

import pytest

from tests.commands import SMALL, checkpoint_digest, run_main, start_main, write_photographs

# Twenty-five steps, with a checkpoint at every third step and at the end of each epoch.
LONGER = [*SMALL, "--config.epochs=5", "--config.checkpoint_every=3"]
LONGER += ["--config.ema=0.9", "--config.ema_every=2", "--config.repeats=2"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = run_main(f"--workdir={folder}", *LONGER)
    assert done.returncode == 0, done.stderr
    return checkpoint_digest(folder), (folder / "metrics.jsonl").read_text()


def is_written(folder):
    """A checkpoint is being written."""
    return any((folder / "checkpoints").glob("*tmp*"))


def holds(step):
    """A checkpoint of at least this step exists, usually in the middle of an epoch."""

    def condition(folder):
        names = [path.name for path in (folder / "checkpoints").glob("*")]
        return any(name.isdigit() and int(name) >= step for name in names)

    return condition


def kill_when(folder, condition, sent, arguments=LONGER):
    """Starts the run, sends the signal once `condition(folder)` holds; returns its process."""
    process = start_main(f"--workdir={folder}", *arguments)
    limit = time.monotonic() + 120
    while not condition(folder) and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.001)
    process.send_signal(sent)
    process.wait()
    return process


def test_kill_at_several_moments(uninterrupted, tmp_path):
    moments = [is_written, holds(6), is_written, holds(18)]
    pause = random.Random(0)
    killed = 0
    for moment in moments:
        process = kill_when(tmp_path, moment, signal.SIGKILL)
        killed += process.returncode == -signal.SIGKILL
        time.sleep(pause.random() / 10)
    assert killed >= 2  # otherwise this tests nothing
    done = run_main(f"--workdir={tmp_path}", *LONGER)
    assert done.returncode == 0, done.stderr
    state, records = uninterrupted
    assert checkpoint_digest(tmp_path) == state
    assert without_speed((tmp_path / "metrics.jsonl").read_text()) == without_speed(records)


def streaming(root):
    """The arguments of a run that streams photographs, which are written to `root`."""
    values = write_photographs(root)
    return [*LONGER, *(f"--config.{key}={value}" for key, value in values.items())]


def test_a_stream_that_is_killed_within_epochs(tmp_path):
    arguments = streaming(tmp_path / "photographs")
    whole = run_main(f"--workdir={tmp_path / 'whole'}", *arguments)
    assert whole.returncode == 0, whole.stderr
    process = kill_when(tmp_path / "killed", holds(12), signal.SIGKILL, arguments)
    assert process.returncode == -signal.SIGKILL
    # Threads and processes give the same bits.
    arguments.append("--config.reader_processes=2")
    done = run_main(f"--workdir={tmp_path / 'killed'}", *arguments)
    assert done.returncode == 0, done.stderr
    begun = int(done.stdout.split("Going on from step ")[1].split()[0])
    assert begun >= 12
    assert "now read by" not in done.stdout
    assert checkpoint_digest(tmp_path / "killed") == checkpoint_digest(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["ssd", "captions"])
def test_another_task_that_is_killed_within_an_epoch(task, tmp_path):
    if task == "captions":
        pytest.importorskip("pycocoevalcap", reason="needs requirements-captions.txt")
    arguments = [f"--config=tests/tasks/small_run.py:{task}"]
    whole = run_main(f"--workdir={tmp_path / 'whole'}", *arguments)
    assert whole.returncode == 0, whole.stderr
    process = kill_when(tmp_path / "killed", holds(6), signal.SIGKILL, arguments)
    assert process.returncode == -signal.SIGKILL
    done = run_main(f"--workdir={tmp_path / 'killed'}", *arguments)
    assert done.returncode == 0, done.stderr
    assert re.search(r"Going on from step ([6-9]|1\d) of 16", done.stdout)
    assert checkpoint_digest(tmp_path / "killed") == checkpoint_digest(tmp_path / "whole")
    records = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("killed", "whole")]
    assert without_speed(records[0]) == without_speed(records[1])


def test_a_damaged_image_ends_a_stream_in_one_sentence(tmp_path):
    arguments = streaming(tmp_path / "photographs")
    damaged = tmp_path / "photographs/train/b/17.jpg"
    damaged.write_bytes(damaged.read_bytes()[:300])
    done = run_main(f"--workdir={tmp_path / 'run'}", *arguments)
    assert done.returncode == 1
    assert re.fullmatch(rf"error: {damaged} is not a readable image .*\n", done.stderr)


def test_sigterm_saves_and_says_how_to_go_on(uninterrupted, tmp_path):
    process = kill_when(tmp_path, holds(6), signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "Interrupted and saved at step" in out
    assert "Run the same command again" in out
    step = int(out.split("saved at step ")[1].split()[0])
    done = run_main(f"--workdir={tmp_path}", *LONGER)
    assert f"Going on from step {step} of 25" in done.stdout
    assert checkpoint_digest(tmp_path) == uninterrupted[0]


def test_a_run_of_eight_devices_goes_on_with_one(tmp_path):
    arguments = (f"--workdir={tmp_path}", *LONGER)
    process = start_main(*arguments, devices=8)
    while not holds(6)(tmp_path) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0, process.stderr.read()
    done = run_main(*arguments)
    assert done.returncode == 0, done.stderr
    assert "Going on from step" in done.stdout
    assert "1 x cpu" in done.stdout


def without_speed(jsonl):
    """Records of the epochs, without values that depend on the clock."""
    records = [json.loads(line) for line in jsonl.splitlines()]
    return [{k: v for k, v in record.items() if k != "images_per_second"} for record in records]
