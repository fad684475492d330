"""Loggers get the records of the epochs, and a resumed run goes on with its log."""

import importlib.machinery
import importlib.util
import io
import subprocess
import sys
import types

import pytest

from cutmix_jax import UserError, config, loggers
from cutmix_jax.reporter import Reporter
from tests.commands import small_config
from tests.test_reporter import record

LOGGED = {
    "learning_rate": 0.1,
    "train_loss": 1.0,
    "train_weighted_accuracy": 0.5,
    "test_top1_error": 0.25,
}


class Module(types.ModuleType):
    """A module that notes its calls, as ``(name, arguments, options)``."""

    def __init__(self, name):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.calls, self.failing = [], None

    def note(self, name, /, *arguments, **options):
        self.calls.append((name, arguments, options))
        if self.failing == name:
            raise ConnectionError("no route to host\nsecond line")

    def options(self, name):
        return [options for called, _, options in self.calls if called == name]

    def arguments(self, name):
        return [arguments for called, arguments, _ in self.calls if called == name]


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for wandb with what is called of it."""
    module = Module("wandb")
    module.Settings = lambda **options: options

    def init(**options):
        module.note("init", **options)
        run = types.SimpleNamespace(id=options["id"] or "new")
        run.log = lambda *a, **k: module.note("log", *a, **k)
        run.finish = lambda *a, **k: module.note("finish", *a, **k)
        return run

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def mlflow(monkeypatch):
    """A stand-in for mlflow with what is called of it."""
    module = Module("mlflow")

    def start_run(**options):
        module.note("start_run", **options)
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=options["run_id"] or "new"))

    module.start_run = start_run
    for name in ("log_params", "log_metrics", "end_run"):
        setattr(module, name, lambda *a, name=name, **k: module.note(name, *a, **k))
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return module


def report(folder, names, epochs=(1,), history=(), primary=True, failed=False):
    """What is printed by a session that logs these epochs."""
    stream = io.StringIO()
    folder.mkdir(exist_ok=True)
    reporter = Reporter(
        folder,
        epochs=2,
        epoch_steps=10,
        batch_size=64,
        step=0,
        history=list(history),
        primary=primary,
        stream=stream,
    )
    reporter.start_loggers(small_config(loggers=names))
    for epoch in epochs:
        reporter.epoch(record(epoch, 0.25) | {"peak_memory_mib": None}, "")
    reporter.close(failed)
    return stream.getvalue()


def test_the_config_accepts_the_loggers_that_there_are():
    assert set(loggers.LOGGERS) == config.LOGGERS
    for names in ((), ("tensorboard",), tuple(loggers.LOGGERS)):
        config.check_config(small_config(loggers=names))
    with pytest.raises(UserError, match="none of them twice"):
        config.check_config(small_config(loggers=("wandb", "wandb")))


def test_wandb_gets_config_name_and_numbers_and_goes_on_with_its_run(tmp_path, wandb):
    folder = tmp_path / "digits-seed0"
    report(folder, ("wandb",))
    report(folder, ("wandb",), epochs=(2,), history=[record(1, 0.25)], failed=True)
    first, second = wandb.options("init")
    assert (first["id"], second["id"], first["resume"]) == (None, "new", "allow")
    assert (first["name"], first["dir"]) == ("digits-seed0", str(folder))
    assert first["config"]["mix"]["name"] == "cutmix"
    assert wandb.arguments("log") == [(LOGGED,), (LOGGED,)]
    assert wandb.options("log") == [{"step": 10}, {"step": 20}]
    assert wandb.options("finish") == [{"exit_code": 0}, {"exit_code": 1}]


def test_mlflow_gets_config_name_and_numbers_and_goes_on_with_its_run(tmp_path, mlflow):
    folder = tmp_path / "digits-seed0"
    report(folder, ("mlflow",))
    report(folder, ("mlflow",), epochs=(2,), history=[record(1, 0.25)], failed=True)
    first, second = mlflow.options("start_run")
    assert first == {"run_id": None, "run_name": "digits-seed0"}
    assert second["run_id"] == "new"
    ((params,),) = mlflow.arguments("log_params")  # once: they cannot be changed
    assert params["mix.name"] == "cutmix"
    assert mlflow.arguments("log_metrics") == [(LOGGED,), (LOGGED,)]
    assert mlflow.options("log_metrics") == [{"step": 10}, {"step": 20}]
    assert mlflow.arguments("end_run") == [("FINISHED",), ("FAILED",)]


def test_only_the_first_process_logs(tmp_path, wandb, mlflow):
    report(tmp_path, ("wandb", "mlflow"), primary=False)
    assert wandb.calls == mlflow.calls == []


@pytest.mark.parametrize("failing", ["log", "finish"])
def test_a_logger_that_fails_is_told_once_and_the_rest_goes_on(tmp_path, wandb, mlflow, failing):
    wandb.failing = failing
    output = report(tmp_path, ("wandb", "mlflow"), epochs=(1, 2))
    assert output.count("config.loggers=wandb failed (no route to host) and gets nothing more") == 1
    assert "second line" not in output
    assert "epoch   2/2" in output
    assert len(mlflow.options("log_metrics")) == 2
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_logger_that_cannot_start_is_refused(tmp_path, wandb, mlflow):
    mlflow.failing = "start_run"
    folder = tmp_path / "run"
    with pytest.raises(
        UserError, match=r"loggers=mlflow cannot start \(no route to host\)\. Check"
    ):
        report(folder, ("wandb", "mlflow"))


def test_no_logger_is_imported_with_the_reporter():
    script = (
        "import sys, cutmix_jax.loggers, cutmix_jax.reporter\n"
        "assert not {'wandb', 'mlflow', 'tensorboardX'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")
def test_the_real_wandb_writes_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "digits-seed0"
    assert "failed" not in report(folder, ("wandb",))
    name = loggers.read_id(folder, "wandb")
    assert "failed" not in report(folder, ("wandb",), epochs=(2,), history=[record(1, 0.25)])
    assert loggers.read_id(folder, "wandb") == name
    assert 1 <= len(list(folder.glob(f"wandb/offline-run-*-{name}/run-{name}.wandb"))) <= 2
