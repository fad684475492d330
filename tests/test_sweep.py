"""Sweeps: every run happens once, whatever interrupts it, and the table matches NumPy."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from cutmix_jax import UserError, run, sweep
from cutmix_jax.config import to_plain
from cutmix_jax.signals import Interruption
from cutmix_jax.tasks import Task
from tests.commands import REPOSITORY, SMALL, environment

DIGITS = f"{REPOSITORY}/configs/digits.py"
BASELINE, CUTMIX = f"{DIGITS}:resnet8,baseline", f"{DIGITS}:resnet8,cutmix"
# By config and seed: errors of the last and of the best epoch.
ERRORS = {
    (BASELINE, 0): (0.25, 0.22),
    (BASELINE, 1): (0.21, 0.21),
    (BASELINE, 2): (0.30, 0.24),
    (CUTMIX, 0): (0.20, 0.19),
    (CUTMIX, 1): (0.22, 0.18),
    (CUTMIX, 2): (0.19, 0.17),
}


@pytest.fixture
def trained(monkeypatch):
    """Replaces `run.train`; returns the list of folders for which it was called."""
    calls = []

    def train(config, folder):
        calls.append(folder.name)
        source = BASELINE if config.mix.name == "none" else CUTMIX
        last, best = ERRORS[source, config.seed]
        results = {"config": to_plain(config), "params": 7}
        results |= {"top1_error_last": last, "top1_error_best": best}
        folder.mkdir(parents=True)
        run.write_json(folder / "results.json", results)
        return results

    monkeypatch.setattr(run, "train", train)
    monkeypatch.setattr(sweep, "check_runs", lambda runs: None)
    return calls


def arguments(workdir, *more, configs=(BASELINE, CUTMIX)):
    return ["--configs", *configs, f"--workdir={workdir}", *SMALL[1:], *more]


def test_the_table_is_what_numpy_says(tmp_path, trained, capsys):
    assert sweep.main(arguments(tmp_path)) == 0
    assert len(trained) == 6
    baseline, cutmix = json.loads((tmp_path / "sweep.json").read_text())["configs"]
    for i, key in enumerate(("top1_error_last", "top1_error_best")):
        plain, mixed = (
            np.array([ERRORS[name, seed][i] for seed in range(3)]) for name in (BASELINE, CUTMIX)
        )
        np.testing.assert_allclose(baseline[key]["mean"], plain.mean())
        np.testing.assert_allclose(cutmix[key]["deviation"], mixed.std(ddof=1))
        np.testing.assert_allclose(cutmix[key]["gain"]["mean"], (plain - mixed).mean())
        np.testing.assert_allclose(cutmix[key]["gain"]["deviation"], (plain - mixed).std(ddof=1))
    assert baseline["top1_error_last"]["gain"] is None
    assert cutmix["baseline"] == BASELINE
    table = (tmp_path / "sweep.md").read_text(encoding="utf-8")
    assert f"| {CUTMIX} | 3 | 20.33 ± 1.53 | 5.00 ± 6.00 (3) | 18.00 ± 1.00 |" in table
    assert "held-out" not in table
    assert table in capsys.readouterr().out


def test_gains_are_of_the_seeds_that_both_have(tmp_path, trained):
    sweep.main(arguments(tmp_path, configs=[CUTMIX]))
    sweep.main(arguments(tmp_path, "--seeds=1", "--seed_from=2", configs=[BASELINE]))
    flags, overrides = sweep.parse(arguments(tmp_path))
    runs = sweep.plan_runs(flags.configs, range(3), overrides, tmp_path)
    summary = sweep.summarize(runs, sweep.choose_baselines(flags.configs))
    gain = summary["configs"][1]["top1_error_last"]["gain"]
    assert gain["values"] == {"2": pytest.approx(0.30 - 0.19)}
    assert gain["deviation"] is None
    assert summary["unfinished"] == [f"digits-resnet8,baseline-seed{seed}" for seed in (0, 1)]
    text = sweep.format_table(summary, sweep.task_of(runs))
    assert "11.00 (1)" in text
    assert "Not finished: digits-resnet8,baseline-seed0, digits-resnet8,baseline-seed1." in text


def test_workers_share_the_runs_and_the_last_writes_the_whole_table(tmp_path, trained, capsys):
    for worker in range(4):
        before = len(trained)
        assert sweep.main(arguments(tmp_path, f"--worker={worker}/4")) == 0
        assert len(trained) - before == (2 if worker < 2 else 1)
    assert sorted(trained) == sorted({*trained})
    assert json.loads((tmp_path / "sweep.json").read_text())["unfinished"] == []
    sweep.main(arguments(tmp_path))
    assert len(trained) == 6
    assert capsys.readouterr().out.count("finished before") == 6


def test_results_of_another_config_are_not_taken_for_these(tmp_path, trained):
    sweep.main(arguments(tmp_path, "--seeds=1"))
    flags, overrides = sweep.parse(arguments(tmp_path, "--config.learning_rate=0.2"))
    for planned in sweep.plan_runs(flags.configs, range(1), overrides, tmp_path):
        assert sweep.finished_results(planned) is None


def test_one_run_that_fails_does_not_stop_the_others(tmp_path, trained, monkeypatch, capsys):
    train = run.train

    def fails_once(config, folder):
        if "baseline-seed0" in folder.name:
            raise UserError("The training loss is not finite.")
        return train(config, folder)

    monkeypatch.setattr(run, "train", fails_once)
    with pytest.raises(UserError, match=r"1 of 6 runs failed"):
        sweep.main(arguments(tmp_path))
    assert len(trained) == 5
    assert "baseline-seed0: The training loss is not finite." in capsys.readouterr().err
    assert "Not finished: digits-resnet8,baseline-seed0." in (tmp_path / "sweep.md").read_text()


def test_a_signal_at_the_end_of_a_run_ends_the_sweep_too(tmp_path, trained, monkeypatch, capsys):
    train = run.train

    def told_at_the_end(config, folder):
        with Interruption():
            os.kill(os.getpid(), signal.SIGTERM)
        return train(config, folder)

    monkeypatch.setattr(run, "train", told_at_the_end)
    assert sweep.main(arguments(tmp_path)) == 1
    assert len(trained) == 1
    assert re.search(r"5 of 6 runs are left. Run the same command", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--config.lerning_rate=1"], r"no config key 'lerning_rate' .*'learning_rate'"),
        (["--config.epochs=many"], r"epochs=many"),
        (["--config.seed=3"], r"set the seeds with --seeds"),
        (["--seeds=0"], r"--seeds must be at least 1"),
        (["--seeds=two"], r"--seeds: invalid int value"),
        (["--worker=4/4"], r"--worker is '4/4', but I/N"),
        (["--worker=first"], r"--worker is 'first', but I/N"),
        (["--wrker=0/1"], r"'--wrker=0/1' is not a flag"),
        (["--baseline=x"], r"--baseline is 'x', which is not one of the configs"),
        (["--configs", CUTMIX, CUTMIX], r"are the same run"),
        (["--configs", DIGITS, f"{DIGITS}:resnet20,cutmix"], r"are the same run"),
        (["--configs", f"{DIGITS}:,cutmx"], r"no method 'cutmx' \(the nearest are"),
        (["--config.task=x:Box"], r"The task of config.task='x:Box' cannot be imported"),
        (
            ["--configs", BASELINE, f"{BASELINE} --config.task=ssd"],
            r"compares one measure.*ranked by 'top1_error'.*by 'map'",
        ),
        (["--configs", f"{BASELINE} --config.tsk=1"], r"no config key 'tsk'"),
        (["--configs", "nowhere.py"], r"No such file or directory: 'nowhere.py'"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_and_status_2(tmp_path, capsys, more, expected):
    with pytest.raises(SystemExit) as stop:
        sweep.main(arguments(tmp_path / "new", *more))
    assert stop.value.code == 2
    assert re.fullmatch(rf"error: .*{expected}.*\n", capsys.readouterr().err)
    assert not (tmp_path / "new").exists()


def test_a_workdir_that_cannot_be_written_and_a_config_that_cannot_run_are_refused_first(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"workdir .* cannot be written"):
        sweep.main(arguments(tmp_path / "file" / "sweep"))
    configs = [BASELINE.replace("resnet8", "resnet20"), f"{DIGITS}:resnet21,cutmix"]
    with pytest.raises(UserError, match=r"resnet21,cutmix: There is no model 'resnet21'"):
        sweep.main(arguments(tmp_path / "sweep", configs=configs))
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["sweep.lock"]


# In %, the measure of the last and of the best epoch, by the classifier and the seed.
FROM_CLASSIFIERS = {
    ("baseline-seed0", 0): (60, 70),
    ("baseline-seed1", 1): (62, 62),
    ("cutmix-seed0", 0): (66, 68),
    ("cutmix-seed1", 1): (64, 65),
}


@pytest.mark.parametrize(
    ("name", "measure", "words", "unit", "baseline", "cutmix"),
    [
        (
            "shapes_detection", "map", "mAP in %", 100, ["61.00 ± 1.41", "66.00 ± 5.66"],
            ["65.00 ± 1.41", "4.00 ± 2.83 (2)", "66.50 ± 2.12", "0.50 ± 3.54 (2)"],
        ),
        (
            "shapes_captions", "cider", "CIDEr", 1, ["61 ± 1.41", "66 ± 5.66"],
            ["65 ± 1.41", "4 ± 2.83 (2)", "66.5 ± 2.12", "0.5 ± 3.54 (2)"],
        ),
    ],
)  # fmt: skip
def test_detectors_and_captioners_are_compared_and_a_higher_measure_is_a_gain(
    name, measure, words, unit, baseline, cutmix, tmp_path, monkeypatch
):
    def train(config, folder):
        last, best = (x / unit for x in FROM_CLASSIFIERS[config.init_from, config.seed])
        results = {f"{measure}_last": last, f"{measure}_best": best, "params": 7}
        results["config"] = to_plain(config)
        folder.mkdir()
        run.write_json(folder / "results.json", results)
        return results

    monkeypatch.setattr(run, "train", train)
    monkeypatch.setattr(sweep, "check_runs", lambda runs: None)
    source = f"{REPOSITORY}/configs/{name}.py --config.init_from="
    plain, mixed = (f"{source}{method}-seed{{seed}}" for method in ("baseline", "cutmix"))
    flags = ["--configs", plain, mixed, f"--workdir={tmp_path}", "--seeds=2", f"--baseline={plain}"]
    assert sweep.main(flags) == 0
    assert sorted(path.name for path in tmp_path.glob("shapes*")) == [
        f"{name}-init_from={method}_seed{seed}-seed{seed}"
        for method in ("baseline", "cutmix")
        for seed in (0, 1)
    ]
    table = (tmp_path / "sweep.md").read_text(encoding="utf-8")
    assert f"Compared: {words}." in table
    last, best = baseline
    assert f"| {plain} | 2 | {last} | – | {best} | – |" in table
    # By hand: gains of 6 and 2, and of -2 and 3.
    assert f"| {mixed} | 2 | {' | '.join(cutmix)} |" in table


def test_a_measure_that_is_no_fraction_is_shown_as_it_is():
    found = {("a", 0): {"params": 1, "loss_last": 12.5}, ("b", 0): {"params": 1, "loss_last": 2}}
    entries = sweep.compare(found, {"b": "a"}, Task)
    assert sweep.table_cells(entries, Task)[1] == [
        ["a", "1", "12.5", "–"],
        ["b", "1", "2", "10.5 (1)"],
    ]


def start(workdir):
    command = [sys.executable, "-m", "cutmix_jax.sweep", *arguments(workdir, "--seeds=1")]
    command += ["--config.epochs=6", "--config.mix.prob=0.5", "--configs"]
    command += [f"{DIGITS}:resnet8x0.25,{method}" for method in ("cutmix", "mixup")]
    return subprocess.Popen(
        command,
        env=environment(),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def signal_when_saved(process, folder, number):
    """Sends the signal once the run has a checkpoint, and returns the output of the process."""
    while not any(path.name.isdecimal() for path in folder.glob("checkpoints/*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    return process.communicate(timeout=120)[0]


def test_a_sweep_goes_on_after_sigterm_and_after_kill(tmp_path):
    first, second = (tmp_path / f"digits-resnet8x0.25,{name}-seed0" for name in ("cutmix", "mixup"))
    process = start(tmp_path)
    out = signal_when_saved(process, first, signal.SIGTERM)
    assert process.returncode == 1
    assert "2 of 2 runs are left. Run the same command again to resume." in out
    assert json.loads((tmp_path / "sweep.json").read_text())["unfinished"] == [
        first.name,
        second.name,
    ]
    process = start(tmp_path)
    signal_when_saved(process, second, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert (first / "results.json").exists()
    assert not (second / "results.json").exists()

    process = start(tmp_path)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert f"[1/2] {first.name}: finished before" in out
    assert "Going on from step" in out
    for folder in (first, second):
        epochs = [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").open()]
        assert epochs == list(range(1, 7))
    summary = json.loads((tmp_path / "sweep.json").read_text())
    errors = [entry["top1_error_last"]["mean"] for entry in summary["configs"]]
    found = [
        run.read_json(folder / "results.json")["top1_error_last"] for folder in (first, second)
    ]
    assert errors == found
    assert summary["unfinished"] == []
