"""Processes that decode images give the same bits as threads, and end with their parent."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from cutmix_jax import UserError
from cutmix_jax.data import find_set, open_data, streaming

from .conftest import photo_config

ROOT = pathlib.Path(__file__).resolve().parents[2]


def batches_of(config):
    """An epoch, another one from its second step on, and the test images."""
    data = open_data(config)
    return [*data.train_batches(2), *data.train_batches(3, 1), *data.eval_batches("test")]


def workers_of(pid):
    """Child processes that decode images."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            parent = path.joinpath("stat").read_text().rsplit(")", 1)[1].split()[1]
            if int(parent) == pid and b"workers.serve" in path.joinpath("cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:  # it just ended
            continue
    return found


def wait_until(condition):
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")


@pytest.mark.parametrize("together", [64, 3])
def test_batches_are_the_same_for_any_number_of_processes(photo_folder, monkeypatch, together):
    monkeypatch.setattr(streaming, "SENT_TOGETHER", together)
    alone, *others = (
        batches_of(photo_config(photo_folder, reader_processes=count)) for count in (0, 1, 2)
    )
    assert len(alone) == 6
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, alone, other)


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_records_are_opened_in_each_process(toy_set, file_format):
    data_dir, *_ = toy_set(file_format=file_format)
    config = {"dataset": "toys", "data_dir": str(data_dir), "batch_size": 8, "source": "streaming"}
    alone, other = (batches_of({**config, "reader_processes": count}) for count in (0, 2))
    jax.tree.map(np.testing.assert_array_equal, alone, other)


def test_two_streams_at_once_do_not_mix(photo_folder):
    data = open_data(photo_config(photo_folder, reader_processes=2))
    both = list(zip(data.train_batches(0), data.eval_batches("test"), strict=False))
    train, test = next(data.train_batches(0)), next(data.eval_batches("test"))
    jax.tree.map(np.testing.assert_array_equal, both[0], (train, test))


def test_the_first_unreadable_file_is_named(photo_folder, tmp_path):
    root = shutil.copytree(photo_folder, tmp_path / "photos")
    data = open_data(photo_config(root, reader_processes=2))
    split = find_set("folder", str(root), None).splits["train"]
    order = np.concatenate([xs["index"].ravel() for xs in data.train_batches(0)])
    for place in (13, 12, 22):
        broken = root / split.name(order[place])
        broken.write_bytes(broken.read_bytes()[:90])
    batches = data.train_batches(0)
    next(batches)
    with pytest.raises(UserError, match="is not a readable image") as caught:
        next(batches)
    assert str(caught.value).startswith(split.name(order[12]))
    assert len(list(data.eval_batches("test"))) == 1, "the processes go on"


@pytest.fixture
def new_workers():
    """Child processes that started in this test: those of earlier tests may end at any time."""
    before = set(workers_of(os.getpid()))
    return lambda: set(workers_of(os.getpid())) - before


@needs_proc
def test_a_process_that_dies_ends_the_run_in_words(photo_folder, new_workers):
    data = open_data(photo_config(photo_folder, reader_processes=1))
    batches = data.train_batches(0)
    next(batches)
    (worker,) = new_workers()
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(UserError, match=r"ended with status -9.*--config\.reader_processes"):
        list(data.train_batches(1))


@needs_proc
def test_processes_last_as_long_as_the_data(photo_folder, new_workers):
    data = open_data(photo_config(photo_folder, reader_processes=2))
    assert not new_workers(), "none before the first batch"
    for epoch in range(2):
        list(data.train_batches(epoch))
        assert len(new_workers()) == 2
    del data
    assert not new_workers()


@needs_proc
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_process_outlives_the_one_that_started_it(photo_folder, sent):
    code = (
        # A job in the background may have been started with Ctrl-C ignored.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from cutmix_jax.data import open_data\n"
        f"data = open_data({photo_config(photo_folder, reader_processes=2)!r})\n"
        "for epoch in range(10**9):\n"
        "    list(data.train_batches(epoch))\n"
        "    print(epoch, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        process_group=0,
    ) as process:
        process.stdout.readline()
        workers = workers_of(process.pid)
        assert len(workers) == 2
        # Like a terminal: to all processes of the group.
        os.killpg(process.pid, sent)
        process.wait(30)
    wait_until(lambda: not any(os.path.exists(f"/proc/{worker}") for worker in workers))


def test_a_process_that_decodes_images_does_not_import_jax():
    code = (
        "import sys; import cutmix_jax.data.workers, cutmix_jax.data.tfds_sets; "
        "from tensorflow_datasets.proto import tf_example_pb2; "
        "assert not {'jax', 'tensorflow'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
