"""What an error costs, from metrics written by hand: images, seconds, paired seeds."""

import json

import pytest
from PIL import Image

from benchmarks.convergence import Curve, cost, draw, main, rows_of, thresholds
from cutmix_jax import UserError
from cutmix_jax.report.runs import group, read_runs
from tests.benchmarks.runs import write_run, write_runs


def rows(folder):
    return {row.what: row for row in rows_of(group(read_runs([folder])))}


def test_images_and_seconds_until_an_error(tmp_path):
    write_runs(tmp_path)
    found = rows(tmp_path)
    images = found["cutmix: images until the error is below 30%"]
    assert (images.ours, images.theirs) == ([0.96, 0.96], [0.64, 0.64])
    seconds = found["cutmix: training until the error is below 30%"]
    assert (seconds.ours, seconds.theirs) == ([19.2, 19.2], [6.4, 6.4])
    assert seconds.ratios == pytest.approx([1 / 3] * 2)  # below 1: the baseline was cheaper
    last = found["cutmix: error of the last epoch"]
    assert last.ours == pytest.approx([13, 12])
    assert last.ratios == pytest.approx([2, 2])
    assert "seeds 0, 1" in last.note
    assert "1 x cpu" in last.note


def test_only_seeds_that_both_have_are_compared(tmp_path):
    write_runs(tmp_path)
    write_run(tmp_path / "more", "cutmix", 2, [0.5, 0.01], 50)
    assert rows(tmp_path)["cutmix: error of the last epoch"].ours == pytest.approx([13, 12])


def test_other_settings_are_not_compared(tmp_path):
    write_runs(tmp_path)
    write_run(tmp_path / "other", "cutmix", 0, [0.5, 0.01], 50, model="resnet56")
    row = list(rows_of(group(read_runs([tmp_path]))))[-1]
    assert row.ratios == []
    assert "no baseline" in row.note


def test_a_baseline_alone_is_reported(tmp_path):
    write_run(tmp_path / "run", "baseline", 0, [0.5, 0.4], 50)
    (row,) = rows(tmp_path).values()
    assert "no other method" in row.note


def test_without_a_recorded_speed_there_are_images_alone(tmp_path):
    write_runs(tmp_path, speeds={})
    found = rows(tmp_path)
    assert any("images" in what for what in found)
    assert not any("training" in what for what in found)


def test_thresholds_are_those_that_all_cross():
    curves = [Curve([], [], errors) for errors in ([0.71, 0.48], [0.64, 0.52], [0.9, 0.3])]
    assert thresholds(curves) == [0.6, 0.55]
    assert thresholds([Curve([], [], [0.9, 0.02])]) == [0.15, 0.1, 0.05]  # the lowest three
    assert thresholds([Curve([], [], [0.31, 0.42])]) == []


def test_cost_is_of_the_first_time_below():
    assert cost(Curve([1, 2, 3], [], [0.5, 0.3, 0.4]), [10, 20, 30], 0.45) == 20
    assert cost(Curve([1, 2, 3], [], [0.5, 0.3, 0.4]), [10, 20, 30], 0.5) == 20


def test_command_writes_rows_and_a_plot(tmp_path, capsys):
    write_runs(tmp_path / "runs")
    main([str(tmp_path / "runs"), f"--json={tmp_path}/a.json", f"--plot={tmp_path}/a.png"])
    assert "| cutmix: error of the last epoch | % |" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text())["benchmark"] == "convergence"
    assert Image.open(tmp_path / "a.png").size[0] == 720


def test_plot_has_the_mean_over_seeds_in_both_panels(tmp_path, monkeypatch):
    write_runs(tmp_path)
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, path: figures.append(self))
    draw(group(read_runs([tmp_path])), "not written")
    left, right = figures[0].axes
    lines = {line.get_label(): line for line in left.get_lines()}
    assert set(lines) == {"baseline, 2 seeds", "cutmix, 2 seeds"}
    assert lines["cutmix, 2 seeds"].get_xdata() == pytest.approx([320, 640, 960, 1280])
    assert lines["cutmix, 2 seeds"].get_ydata() == pytest.approx([71, 40, 25, 12.5])
    assert right.get_lines()[1].get_xdata() == pytest.approx([6.4, 12.8, 19.2, 25.6])


def test_mistakes_end_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"No run is given: train with .* and name that folder\."):
        main([])
    write_run(tmp_path / "run", "baseline", 0, [0.5], 50, finished=False)
    with pytest.raises(UserError, match="is finished"):
        main([str(tmp_path)])
