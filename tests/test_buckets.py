"""Workdirs, weights and data in buckets, against an emulator on loopback."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from unittest import mock

import numpy as np
import pytest

from cutmix_jax import UserError, convert, lock, loggers, paths, run, sweep
from cutmix_jax.checkpoint import Checkpoints, digest, read_weights
from cutmix_jax.command_line import guard
from cutmix_jax.data import boxes, open_data, prepare, prepare_files
from cutmix_jax.report import __main__ as report
from cutmix_jax.tasks import create_task
from cutmix_jax.train import Log, Session, create_state
from tests import emulator
from tests.commands import (
    REPOSITORY,
    SMALL,
    SYNCHRONIZED,
    checkpoint_digest,
    finish,
    plain_config,
    run_main,
    small_config,
    start_main,
    start_two,
    write_photographs,
)
from tests.commands import environment as base_environment

ROOT = f"gs://{emulator.BUCKET}"
VARYING = ("images_per_second", "peak_memory_mib", "model_flops_utilization")


@pytest.fixture(scope="module")
def storage():
    """The environment of this process and of those that it starts uses the emulator."""
    with emulator.start() as settings, pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield settings


@pytest.fixture
def folder(storage, request):
    """A folder in the bucket for one test."""
    return paths.user_path(f"{ROOT}/{request.node.name}", "The folder")


@pytest.fixture
def fast(monkeypatch):
    """A lock beats twice a second."""
    monkeypatch.setattr(lock, "BEAT", 0.5)


@pytest.fixture(scope="module")
def trained(storage, tmp_path_factory):
    """A finished run in the bucket, and the same on a disk."""
    there, here = paths.user_path(f"{ROOT}/trained", "-"), tmp_path_factory.mktemp("trained")
    config = small_config(loggers=("tensorboard",))
    for workdir in (there, here):
        with open(os.devnull, "w") as stream:
            run.train(config, workdir, stream=stream)
    return there, here


def test_a_local_run_imports_nothing_of_buckets():
    code = (
        "import sys, main; from cutmix_jax import lock, report, run, sweep;"
        "theirs = ('gcsfs', 'aiohttp', 'google.auth', 'google.cloud.');"
        "print([name for name in sys.modules if name.startswith(theirs)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=base_environment(), capture_output=True, text=True
    )
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


def test_buckets_are_opened_without_tensorflow_even_where_it_is_installed(storage, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow was imported')")
    code = f"from cutmix_jax import paths; paths.write_text(paths.user_path('{ROOT}/a', '-'), 'b')"
    settings = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=base_environment() | settings,
        capture_output=True,
        text=True,
    )
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize(
    ("bucket", "reason"),
    [
        ("no-such-bucket", "there is no bucket 'no-such-bucket'. Check its name"),
        ("denied-bucket", "this account may not use the bucket 'denied-bucket' (Forbidden: "),
        ("private-bucket", "nobody is logged in to Google Cloud (Anonymous caller does not"),
    ],
)
def test_a_bucket_that_cannot_be_used_is_refused_in_one_sentence(storage, bucket, reason):
    with pytest.raises(UserError) as refusal:
        paths.user_path(f"gs://{bucket}/run", "--workdir")
    assert str(refusal.value).startswith(f"--workdir is 'gs://{bucket}/run', but {reason}")
    assert "\n" not in str(refusal.value)


def test_a_storage_that_does_not_answer_is_given_up(storage, monkeypatch):
    with emulator.free_port() as port:
        for name, value in emulator.settings(port).items():
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(paths, "PATIENCE", 2)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"^RUNS is 'gs://other/x', but Google Cloud Storage does "):
        paths.user_path("gs://other/x", "RUNS")
    assert time.monotonic() - began < 10


def test_without_gcsfs_the_package_is_named(monkeypatch):
    monkeypatch.setattr(paths.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^--workdir is 'gs://b/x', but the package gcsfs is not"):
        paths.user_path("gs://b/x", "--workdir")


def test_an_error_while_writing_is_one_sentence(storage, capsys):
    from etils import epath

    def write():
        epath.Path("gs://denied-bucket/run/results.json").write_bytes(b"{}")

    with pytest.raises(SystemExit):
        guard(write)
    message = capsys.readouterr().err
    assert message.startswith("error: Google Cloud Storage failed: this account may not use")
    assert message.count("\n") == 1


def test_files_are_written_read_and_found(folder):
    paths.write_text(folder / "a/über.txt", "é\n")

    def fail():
        with paths.whole_file(folder / "a/über.txt") as unfinished:
            unfinished.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with paths.local_copy(folder / "a/über.txt") as copy:
        assert copy.read_text(encoding="utf-8") == "é\n"
    files = paths.LocalFolder(folder / "b")
    (files.here / "c").mkdir()
    (files.here / "c/d.bin").write_bytes(b"1")
    files.upload()
    assert {file.relative_to(folder).as_posix() for file in paths.files_below(folder)} == {
        "a/über.txt",
        "b/c/d.bin",
    }
    assert list(paths.files_below(folder, ".bin")) == [folder / "b/c/d.bin"]
    before = paths.describe_version(folder / "b/c/d.bin")
    files.upload()
    assert paths.describe_version(folder / "b/c/d.bin") != before


def test_one_process_holds_the_lock_at_a_time(folder, fast):
    with lock.workdir_lock(folder) as held:
        time.sleep(3 * lock.BEAT)
        held.check()
        with pytest.raises(UserError, match=r"^Another run is writing to the workdir 'gs://"):
            lock.workdir_lock(folder).__enter__()
        held.confirm()
    assert not list(paths.files_below(folder))
    with lock.workdir_lock(folder):
        pass


def test_of_two_processes_at_once_one_gets_the_lock(folder, fast):
    locks = [lock.BucketLock(folder, "lock", "--workdir") for _ in range(4)]
    taken = []
    threads = [
        threading.Thread(target=lambda one=one: taken.append(one.acquire(wait=False)))
        for one in locks
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [False, False, False, True]
    for one in locks:
        if one.thread.is_alive():
            one.release()


def test_the_lock_of_a_dead_process_is_taken_over_after_three_beats(folder, fast, capsys):
    dead = lock.BucketLock(folder, "lock", "--workdir")
    assert dead.acquire(wait=False)
    dead.ended.set()
    began = time.monotonic()
    with lock.workdir_lock(folder):
        assert 3 * lock.BEAT < time.monotonic() - began < 6 * lock.BEAT
    assert "has the lock of another run" in capsys.readouterr().err


def test_a_run_that_lost_its_lock_ends(folder, fast):
    with lock.workdir_lock(folder) as held:
        (folder / "lock").write_text("another run")
        time.sleep(3 * lock.BEAT)
        with pytest.raises(UserError, match=r"^Another run has taken the lock of the workdir"):
            held.check()
    assert (folder / "lock").read_text() == "another run"


def test_a_lock_that_was_not_renewed_is_confirmed_before_something_is_written(folder, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 60)  # the thread sleeps
    with lock.workdir_lock(folder) as held:
        monkeypatch.setattr(lock, "BEAT", 0)
        held.confirm()  # renewed, because nobody else has it
        before = held.generation
        held.confirm()
        assert held.generation != before
        (folder / "lock").write_text("another run")
        with pytest.raises(UserError, match=r"^Another run has taken the lock of the workdir"):
            held.confirm()


def test_training_ends_before_a_save_if_the_lock_is_lost(tmp_path, monkeypatch):
    def lost(self):
        raise UserError("The lock is lost.")

    monkeypatch.setattr(lock.Lock, "check", lost)
    with open(os.devnull, "w") as stream, pytest.raises(UserError, match="The lock is lost"):
        run.train(plain_config(loggers=()), tmp_path, stream=stream)
    assert not list(tmp_path.glob("checkpoints/*"))

    monkeypatch.setattr(lock.Lock, "confirm", lost)
    session = mock.Mock(lock=lock.Lock(tmp_path, "--workdir"))
    with pytest.raises(UserError, match="The lock is lost"):
        Session.save(session, 1, None)
    session.checkpoints.save.assert_not_called()


def test_event_files_are_in_the_bucket_after_each_epoch(folder):
    logger = loggers.start("tensorboard", folder, None, 0)
    sizes = []
    for step in (1, 2):
        logger.log(step, {"loss": 1.0})
        (file,) = paths.files_below(folder / "tensorboard")
        sizes.append(len(file.read_bytes()))
    logger.close(failed=False)
    assert 0 < sizes[0] < sizes[1]


def test_a_sweep_waits_for_the_lock_of_its_table(folder, fast):
    entered = []
    with lock.sweep_lock(folder):
        other = threading.Thread(
            target=lambda: lock.sweep_lock(folder).__enter__() or entered.append(time.monotonic())
        )
        other.start()
        time.sleep(3 * lock.BEAT)
        assert not entered
        left = time.monotonic()
    other.join(timeout=10)
    assert entered[0] > left


def test_a_run_writes_the_same_to_a_bucket_and_to_a_disk(trained):
    there, here = trained
    assert records(there) == records(here)
    assert checkpoint_digest(there) == checkpoint_digest(here)

    def names(workdir):
        files = (file.relative_to(workdir) for file in paths.files_below(workdir))
        return {file.as_posix() for file in files if file.parts[0] not in ("checkpoints", "lock")}

    def plain(found):
        return {name.partition(".tfevents")[0] for name in found}

    assert plain(names(there)) == plain(names(here))
    assert (there / "mixed.png").read_bytes() == (here / "mixed.png").read_bytes()


def test_weights_are_evaluated_reported_and_converted_from_a_bucket(trained, tmp_path):
    there, here = trained
    with open(os.devnull, "w") as stream:
        measured = [run.evaluate(None, workdir, stream=stream) for workdir in (there, here)]
    assert measured[0] == measured[1]
    assert report.main([str(there), f"--output={there.parent}/report"]) == 0
    assert "resnet8x0.25" in (there.parent / "report/index.md").read_text()
    file = there.parent / "weights.safetensors"
    pytest.importorskip("safetensors")
    convert.export_weights(there, file)
    convert.export_weights(here, tmp_path / "weights.safetensors")
    assert file.read_bytes() == (tmp_path / "weights.safetensors").read_bytes()
    convert.import_weights(file, there.parent / "converted")
    convert.import_weights(file, there.parent / "converted", overwrite=True)
    arrays = [
        read_weights(workdir)[0]["weights"]["params"]["fc"]["kernel"]
        for workdir in (there.parent / "converted", here)
    ]
    np.testing.assert_array_equal(*arrays)


def test_a_run_starts_from_weights_in_a_bucket(trained):
    config = small_config(seed=1)
    task = create_task(config)
    new = create_state(task)
    (from_there, notes), (from_here, _) = (
        run.initialize_from(task, new, str(workdir)) for workdir in trained
    )
    assert notes == [f"Starting from the weights of {trained[0]}."]
    assert digest(from_there.params) == digest(from_here.params) != digest(new.params)
    assert digest(from_there.batch_stats) == digest(from_here.batch_stats)


def test_a_sweep_in_a_bucket_writes_its_table_and_skips_what_is_finished(folder, capsys):
    config = f"{REPOSITORY}/configs/digits.py:resnet8,baseline"
    words = ["--configs", config, "--seeds=2", f"--workdir={folder}", *SMALL[1:]]
    words += ["--config.epochs=1"]
    assert sweep.main(words) == 0
    errors = [
        run.read_json(folder / f"digits-resnet8,baseline-seed{seed}/results.json")[
            "top1_error_last"
        ]
        for seed in (0, 1)
    ]
    summary = json.loads((folder / "sweep.json").read_text())
    assert summary["configs"][0]["top1_error_last"]["mean"] == pytest.approx(np.mean(errors))
    assert f"| {config} | 2 |" in (folder / "sweep.md").read_text(encoding="utf-8")
    assert f"Written to {folder}/sweep.md" in capsys.readouterr().out
    versions = {
        file: paths.describe_version(file)
        for file in paths.files_below(folder)
        if file.parent != folder
    }
    assert sweep.main(words) == 0
    assert capsys.readouterr().out.count("finished before") == 2
    for file, version in versions.items():
        assert paths.describe_version(file) == version


def test_a_damaged_checkpoint_is_found_and_passed_over(folder, fast):
    def state(value):
        return {"weights": np.full(3000, value, np.float32)}

    with Checkpoints(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(step), {"progress": vars(Log())})
        checkpoints.wait()
    files = paths.files_below(folder / "checkpoints/2/state")
    data = max(files, key=lambda file: len(file.read_bytes()))
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(bytes(content))
    with Checkpoints(folder) as checkpoints:
        found, _, passed_over = checkpoints.restore(state(0))
        assert float(found["weights"][0]) == 1
        assert passed_over[0].startswith("Checkpoint 2 is damaged")
        checkpoints.set_aside_after(1)
        checkpoints.save(2, state(3), {"progress": vars(Log())})
        checkpoints.wait()
    with Checkpoints(folder) as checkpoints:
        found, _, passed_over = checkpoints.restore(state(0))
        assert float(found["weights"][0]) == 3
        assert not passed_over


class TestPrepared:
    """`python -m cutmix_jax.data.prepare files`, into a bucket."""

    @pytest.fixture
    def source(self, tmp_path):
        write_photographs(tmp_path / "photographs")
        return tmp_path / "photographs"

    @staticmethod
    def prepare(source, out):
        prepare.main(["files", str(source), f"--out={out}", "--shards=3", "--workers=1"])
        return {
            file.name: file.read_bytes()
            for file in paths.files_below(out)
            if file.name != "prepared.lock"
        }

    def test_it_has_the_same_bytes_as_on_a_disk_and_is_read(self, source, folder, tmp_path):
        here, there = tmp_path / "toys", folder / "toys"
        assert self.prepare(source, there) == self.prepare(source, here)

        def first_batch(root):
            values = {"source": "streaming", "image_size": 8, "augment.pad": 0}
            config = small_config(**values, dataset="folder", data_dir=str(root))
            return next(iter(open_data(config).train_batches(0, 0)))

        np.testing.assert_array_equal(first_batch(here)["image"], first_batch(there)["image"])

    def test_stopped_it_goes_on_with_the_files_that_are_missing(
        self, source, folder, fast, monkeypatch
    ):
        whole = self.prepare(source, folder / "whole/toys")
        store, seen = prepare_files.store, []

        def interrupt(*arguments):
            seen.append(arguments)
            if len(seen) == 150:  # in the second of three files with 107 images
                raise KeyboardInterrupt
            return store(*arguments)

        out = folder / "toys"
        monkeypatch.setattr(prepare_files, "store", interrupt)
        with pytest.raises(SystemExit):
            self.prepare(source, out)
        monkeypatch.setattr(prepare_files, "store", store)
        with pytest.raises(UserError, match=r"is not complete\. Start the command"):
            open_data(small_config(dataset="folder", data_dir=str(out)))
        kept = list(paths.files_below(out, "-of-00003"))
        assert len(kept) == 1
        before = paths.describe_version(kept[0])
        assert self.prepare(source, out) == whole
        assert paths.describe_version(kept[0]) == before
        kept[0].unlink()
        assert self.prepare(source, out).keys() == whole.keys()

    def test_without_the_lock_nothing_more_is_written(
        self, source, folder, fast, monkeypatch, capsys
    ):
        store, seen = prepare_files.store, []

        def lose(*arguments):
            seen.append(arguments)
            if len(seen) == 150:  # in the second of three files with 107 images
                (folder / "prepared.lock").write_text("another process")
                time.sleep(3 * lock.BEAT)
            return store(*arguments)

        monkeypatch.setattr(prepare_files, "store", lose)
        with pytest.raises(SystemExit):
            self.prepare(source, folder)
        assert "Another run has taken the lock of the folder" in capsys.readouterr().err
        assert len(list(paths.files_below(folder, "-of-00003"))) == 1
        assert (folder / "prepared.lock").read_text() == "another process"

    def test_an_empty_folder_of_the_console_is_empty(self, source, folder):
        client = paths._file_system()  # gcsfs refuses names that end in a slash elsewhere
        client.pipe_file(f"{folder}/", b"")
        assert paths.sizes_in(folder) == {}
        (folder / "below/a.txt").write_bytes(b"a")
        (folder / "b.txt").write_bytes(b"bb")
        assert paths.sizes_in(folder) == {"below": None, "b.txt": 2}

    def test_two_cannot_write_at_once(self, source, folder, fast, capsys):
        with lock.dataset_lock(folder), pytest.raises(SystemExit):
            self.prepare(source, folder)
        assert "Another run is writing to the folder 'gs://" in capsys.readouterr().err

    def test_other_files_and_what_cannot_be_written_are_refused(self, source, folder, capsys):
        paths.write_text(folder / "letter.txt", "Dear")
        for out, message in (
            (folder, "holds other files. Choose an empty or new folder"),
            ("gs://denied-bucket/toys", "this account may not use the bucket 'denied-bucket'"),
            (f"{ROOT}/{emulator.READ_ONLY}toys", "PERMISSION_DENIED: No access.). Choose another"),
        ):
            with pytest.raises(SystemExit):
                self.prepare(source, out)
            assert message in capsys.readouterr().err


def test_what_is_not_prepared_is_refused(folder):
    paths.write_text(folder / "cifar10/readme.txt", "")
    for dataset, reason in (("cifar10", "^cifar10 is not prepared in gs://"), ("folder", "local")):
        with pytest.raises(UserError, match=reason):
            open_data({"dataset": dataset, "data_dir": str(folder), "batch_size": 8})


def test_boxes_are_read_from_a_bucket(folder):
    size = "<size><height>20</height><width>10</width></size>"
    corners = "<xmin>0</xmin><ymin>0</ymin><xmax>4</xmax><ymax>9</ymax>"
    box = f"<object><name>cat</name><bndbox>{corners}</bndbox></object>"
    paths.write_text(folder / "n1/cat.xml", f"<annotation>{size}{box}</annotation>")
    (file,) = paths.files_below(folder, ".xml")
    found = boxes.read_xml(os.fspath(file))
    assert found.corners.tolist() == [[0, 0, 9, 4]]


def test_compiled_steps_are_kept_in_a_bucket(folder, storage):
    code = (
        "import jax; from cutmix_jax import host; print(host.keep_compiled_programs());"
        "jax.jit(lambda x: x + 1)(1.0)"
    )
    settings = {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=base_environment() | settings,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.returncode) == (f"{folder}\n", 0), done.stderr
    assert any("jit__lambda" in file.name for file in paths.files_below(folder))


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(folder, tmp_path):
    words = [*SMALL, "--config.checkpoint_every=2"]  # five steps an epoch
    whole = run_main(*words, f"--workdir={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    process = start_main(*words, f"--workdir={folder}")
    deadline = time.monotonic() + 240
    while not (folder / "checkpoints/2/commit_success.txt").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    again = run_main(*words, f"--workdir={folder}")
    assert again.returncode == 0, again.stderr
    assert "Going on from step" in again.stdout
    assert "Waiting up to 30 s" in again.stderr
    assert records(folder) == records(tmp_path / "whole")
    assert checkpoint_digest(folder) == checkpoint_digest(tmp_path / "whole")


@pytest.mark.slow
def test_two_killed_processes_go_on_as_one_run_whose_first_process_has_the_lock(folder, tmp_path):
    killed = start_two(folder, *SYNCHRONIZED)
    holders = set()
    while not (folder / "checkpoints/3/commit_success.txt").exists():
        assert killed[0].poll() is None, killed[0].communicate()
        with contextlib.suppress(FileNotFoundError):
            holders.add((folder / "lock").read_text().partition("\n")[0])
        time.sleep(0.2)
    assert holders == {f"{socket.gethostname()}, process {killed[0].pid}"}
    for process in killed:
        process.kill()
        process.communicate()
    printed, silent = finish(start_two(folder, *SYNCHRONIZED))
    assert "in 2 processes" in printed
    assert "Going on from step" in printed
    assert "epoch" not in silent
    assert not (folder / "lock").exists()
    finish(start_two(tmp_path / "two", *SYNCHRONIZED))
    assert records(folder) == records(tmp_path / "two")
    assert checkpoint_digest(folder) == checkpoint_digest(tmp_path / "two")
    # One process reads what two have written, and its values have the digest.
    found, _, notes = read_weights(folder)
    assert (found["step"], notes) == (10, [])


def records(workdir):
    """The records of a run, without what differs between two equal ones."""
    lines = (workdir / "metrics.jsonl").read_bytes().splitlines()
    found = [json.loads(line) for line in lines]
    return [{key: r[key] for key in r if key not in VARYING} for r in found]
