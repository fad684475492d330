"""Paths from the user. An address that is not read is refused before anything is written."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from benchmarks import __main__ as all_benchmarks
from benchmarks import convergence, timing
from cutmix_jax import UserError, convert, gallery, run, sweep
from cutmix_jax.checkpoint import read_weights
from cutmix_jax.command_line import read_config
from cutmix_jax.config import check_config
from cutmix_jax.convert import __main__ as convert_command
from cutmix_jax.data import boxes, cache, open_data, prepare
from cutmix_jax.evals import ood
from cutmix_jax.lock import workdir_lock
from cutmix_jax.paths import local_path, user_path, whole_file
from cutmix_jax.report import __main__ as report
from cutmix_jax.report.runs import read_runs
from tests.commands import REPOSITORY, environment, small_config

ADDRESS = "s3://bucket/run"


@pytest.mark.parametrize(
    "path",
    [
        "s3://bucket/run",
        "gs://bucket",
        "gs:/bucket",  # what pathlib turns it into
        pathlib.Path("gs://bucket/run"),
        "GS://bucket",
        " gs://bucket",
        "hdfs:///data",
        "hdfs://host:9000/data",
        "http://host/data",
        "https://host/data",
        "file:///data",
        "dbfs:/data",
        "wasbs://box@account/data",
        "git+ssh://host/data",
        "runs/s3://bucket",  # joined to a folder
        "~/gs://bucket",
        "//s3://bucket",
    ],
)
def test_an_address_is_refused_in_one_sentence(path):
    with pytest.raises(UserError) as refusal:
        local_path(path, "--workdir")
    expected = (
        f"--workdir is {os.fspath(path)!r}, but a local path was expected. Mount or copy the "
        "data, and give its path without a scheme."
    )
    assert str(refusal.value) == expected


@pytest.mark.parametrize(
    "path", ["s3://bucket/run", "gs:/bucket/run", "GS://bucket", " gs://bucket", "gs://b/s3://c"]
)
def test_where_a_bucket_may_be_given_other_addresses_are_refused(path):
    with pytest.raises(UserError) as refusal:
        user_path(path, "--workdir")
    expected = f"--workdir is {path!r}, but a local path or gs://BUCKET/FOLDER was expected. "
    assert str(refusal.value).startswith(expected)


def test_an_address_without_a_bucket_is_refused():
    with pytest.raises(UserError, match=r"^--workdir is 'gs://', without a bucket\."):
        user_path("gs://", "--workdir")


@pytest.mark.parametrize(
    "path",
    [
        "runs/first",
        "/data/cutmix",
        "C:/data",
        "runs/resnet20,cutmix-epochs=3",
        "photo:1.png",
        "12:30/run",
        "a b",
        ".",
        "",
    ],
)
def test_a_local_path_stays_as_it_is(path):
    assert local_path(path, "--workdir") == pathlib.Path(path)
    assert local_path(pathlib.Path(path), "--workdir") == pathlib.Path(path)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~", "--workdir") == tmp_path
    assert local_path("~/runs/~x", "--workdir") == tmp_path / "runs/~x"
    with workdir_lock("~/runs/first") as lock:
        assert lock.folder == tmp_path / "runs/first"
    assert gallery.main(["--output=~/sheet.png", "--mixes", "cutmix", "--count=2"]) == 0
    assert (tmp_path / "sheet.png").is_file()


def test_a_home_folder_that_is_not_known_is_named():
    with pytest.raises(UserError, match=r"^--workdir is '~nobody-here/x', whose home folder is"):
        local_path("~nobody-here/x", "--workdir")


def configured(**values):
    return lambda: check_config(small_config(**values))


def converted(*words):
    return lambda: convert_command.main(list(words))


def benchmarked(*words):
    return lambda: all_benchmarks.main(["--only=mix", *words])


def with_json(json):
    return lambda: timing.run(iter(()), timing.parser("-").parse_args(["--json", json]), "none")


CONFIG = f"{REPOSITORY}/configs/digits.py:resnet8,cutmix"
ENTRIES = {
    "train": ("The workdir", lambda: run.train(small_config(), ADDRESS)),
    "evaluate": ("The workdir", lambda: run.evaluate(None, ADDRESS)),
    "lock": ("The workdir", lambda: workdir_lock(ADDRESS).__enter__()),
    "weights": ("The workdir", lambda: read_weights(ADDRESS)),
    "init_from": ("config.init_from", configured(init_from=ADDRESS)),
    "data_dir": ("config.data_dir", configured(data_dir=ADDRESS)),
    "boxes_dir": ("config.boxes_dir", configured(boxes_dir=ADDRESS)),
    "ood.sets": (
        "A folder of config.evals.ood.sets",
        configured(**{"evals.ood.sets": ("digits", f"folder:{ADDRESS}:crop")}),
    ),
    "data of a folder": (
        "config.data_dir",
        lambda: open_data({"dataset": "folder", "data_dir": ADDRESS, "batch_size": 8}),
    ),
    "data of TFDS": (
        "config.data_dir",
        lambda: open_data({"dataset": "cifar10", "data_dir": ADDRESS, "batch_size": 8}),
    ),
    "boxes": ("config.boxes_dir", lambda: boxes.of_xml_files(ADDRESS, None)),
    "ood": ("A folder of config.evals.ood.sets", lambda: ood.open_files(ADDRESS)),
    "prepare": ("--data_dir", lambda: prepare.main(["shapes", f"--data_dir={ADDRESS}"])),
    "prepare from": (
        "--source",
        lambda: prepare.main(["tiny_imagenet", "--data_dir=here", f"--source={ADDRESS}"]),
    ),
    "convert in": ("The source", converted(ADDRESS, "--output=here")),
    "convert out": ("--output", converted("net.pth", f"--output={ADDRESS}")),
    "import_weights": ("The file of weights", lambda: convert.import_weights(ADDRESS, "here")),
    "import_weights to": ("The workdir", lambda: convert.import_weights("net.pth", ADDRESS)),
    "export_weights": ("The file of weights", lambda: convert.export_weights("here", ADDRESS)),
    "a config": ("--config", lambda: read_config(f"{ADDRESS}.py:resnet8,cutmix")),
    "sweep": ("--workdir", lambda: sweep.main(["--configs", CONFIG, f"--workdir={ADDRESS}"])),
    "read_runs": ("RUNS", lambda: read_runs([ADDRESS])),
    "report": ("RUNS", lambda: report.main([ADDRESS, "--output=here"])),
    "report to": ("--output", lambda: report.main([".", f"--output={ADDRESS}"])),
    "gallery": (
        "--images",
        lambda: gallery.main(["--output=here.png", "--images", ADDRESS]),
    ),
    "gallery to": ("--output", lambda: gallery.main([f"--output={ADDRESS}"])),
    "benchmarks": ("--output", benchmarked(f"--output={ADDRESS}")),
    "benchmarks of data": ("--data-dir", benchmarked(f"--data-dir={ADDRESS}")),
    "benchmarks of runs": ("--runs", benchmarked(f"--runs={ADDRESS}")),
    "rows of a benchmark": ("--json", with_json(ADDRESS)),
    "plot of convergence": ("--plot", lambda: convergence.main([f"--plot={ADDRESS}"])),
}


@pytest.mark.parametrize(("name", "call"), ENTRIES.values(), ids=ENTRIES)
def test_every_entry_refuses_an_address_and_writes_nothing(
    tmp_path, monkeypatch, capsys, name, call
):
    monkeypatch.chdir(tmp_path)
    assert f"{name} is 's3://bucket/run" in refusal(call, capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("TFDS_DATA_DIR", lambda: open_data({"dataset": "cifar10", "batch_size": 8})),
        ("CUTMIX_JAX_CACHE", lambda: cache.load_or_make("x", "y", dict)),
        ("XDG_CACHE_HOME", lambda: cache.load_or_make("x", "y", dict)),
    ],
)
def test_the_environment_is_asked_alike(tmp_path, monkeypatch, capsys, name, call):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CUTMIX_JAX_CACHE")
    monkeypatch.setenv(name, ADDRESS)
    assert f"{name} is 's3://bucket/run'" in refusal(call, capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "name", "status"),
    [
        (["--workdir=s3://bucket/run"], "--workdir", 1),
        (["--mode=evaluate", "--workdir", "s3://bucket/run"], "--workdir", 1),
        (["--config.seed=1", "--config=s3://bucket/run"], "--config", 2),
        (["--config", "s3://bucket/run"], "--config", 2),
    ],
)
def test_main_refuses_before_it_imports_jax(tmp_path, words, name, status):
    (tmp_path / "jax.py").write_text("raise SystemExit('jax was imported')")
    done = subprocess.run(
        [sys.executable, REPOSITORY / "main.py", *words],
        env=environment() | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == status
    assert re.fullmatch(rf"error: {name} is 's3://bucket/run', but .*\n", done.stderr)
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["jax.py"]


def refusal(call, capsys):
    """The message with which a command or a function refuses."""
    try:
        status = call()
    except UserError as error:
        return str(error)
    except SystemExit as stop:
        status = stop.code
    assert status
    return capsys.readouterr().err


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "numbers.json"
    with whole_file(path) as unfinished:
        unfinished.write_text("1")
        assert not path.exists()

    def fail():
        with whole_file(path) as unfinished:
            unfinished.write_text("2")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [file.read_text() for file in tmp_path.iterdir()] == ["1"]
