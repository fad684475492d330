"""All benchmarks in one command: failures and skips are reported, and the others go on."""

import ast
import json
import pathlib
import re

import pytest
from PIL import Image

from benchmarks import __main__ as command
from benchmarks import summary, timing
from cutmix_jax import UserError
from tests.benchmarks.runs import write_runs

FOLDER = pathlib.Path(summary.__file__).parent
ROWS = [
    timing.Row("met", "s", [1.0, 2.0], "peer", [2.0, 3.0], [2.0, 1.5], ">= 1.0"),
    timing.Row("missed", "s", [2.0], "peer", [1.0], [0.5], ">= 1.3"),
    timing.Row("without a goal", "s", [2.0], "peer", [1.0], [0.5]),
    timing.Row("without a peer", "s", [2.0], goal="< 2"),
    timing.Row("without its peer", "s", [2.0], "torch", note="not installed"),
]
OUTCOMES = [
    summary.Outcome("steps", "python -m benchmarks.steps", 65.4, "a machine", ROWS),
    summary.Outcome(
        "input", "python -m benchmarks.input", 1.0, "", [timing.Row("input", "", [], note="no")]
    ),
]


def test_page_has_a_table_of_each_with_its_command_and_time():
    page = summary.page(OUTCOMES)
    assert "In 1:06 min in all." in page
    assert "## steps\n\n`python -m benchmarks.steps`: 1:05 min, on a machine\n\n| what" in page
    assert timing.table(ROWS) in page
    assert "| input |  | - |  | - | - |  | no |" in page


@pytest.mark.parametrize(
    ("goal", "number"), [(">= 1.3", 1.3), ("1.0", 1.0), ("", None), ("< 2", None)]
)
def test_goal_of_a_ratio(goal, number):
    assert summary.goal_of(timing.Row("", "", [1], "peer", [1], [1], goal)) == number


def test_a_goal_without_a_ratio_is_not_that_of_a_ratio():
    assert summary.goal_of(timing.Row("", "share", [1.0], goal="1.0")) is None


def test_plot_has_the_ratios_and_their_goals(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, path: figures.append(self))
    assert summary.draw(OUTCOMES, "not written")
    (axis,) = figures[0].axes
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == ["met | peer", "missed | peer", "without a goal | peer"]
    dots = [line for line in axis.get_lines() if line.get_marker() == "o"]
    assert [dot.get_xdata()[0] for dot in dots] == [1.75, 0.5, 0.5]
    assert [dot.get_color() for dot in dots] == [summary.MET, summary.MISSED, summary.PLAIN]
    goals = [line for line in axis.get_lines() if line.get_marker() == "|"]
    assert [goal.get_xdata()[0] for goal in goals] == [1.0, 1.3]


def test_without_a_ratio_there_is_no_plot(tmp_path):
    assert not summary.draw(OUTCOMES[1:], tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_a_benchmark_that_fails_is_reported_and_the_others_go_on(tmp_path, capfd):
    write_runs(tmp_path / "runs")
    programs = {
        "nothing": command.Program(1),
        "convergence": command.Program(1, ("{runs}",), "runs"),
        "input": command.Program(1, ("{data_dir}",), "data_dir"),
    }
    output = tmp_path / "new" / "output"
    arguments = ["--output", str(output), "--runs", str(tmp_path / "runs"), "--repeats=1"]
    assert command.main(arguments, programs) == 1
    printed = capfd.readouterr().out
    assert "[1/2] nothing" in printed
    assert "[2/2] convergence" in printed
    assert re.search(r"nothing failed, convergence \d:\d\d, input not run; \d:\d\d min in", printed)
    found = {outcome["benchmark"]: outcome for outcome in json.loads(read(output, "json"))}
    assert list(found) == list(programs)
    assert found["nothing"]["failed"]
    assert "No module named benchmarks.nothing" in found["nothing"]["rows"][0]["note"]
    assert "--data-dir PATH" in found["input"]["rows"][0]["note"]
    assert not found["input"]["failed"]
    assert len(found["convergence"]["rows"]) > 3
    assert "JAX" in found["convergence"]["machine"]
    assert (output / "convergence.json").is_file()
    assert f"`{found['convergence']['command']}`: 0:" in read(output, "md")
    assert Image.open(output / "benchmarks.png").size[0] == 1000


def read(output, suffix):
    return (output / f"benchmarks.{suffix}").read_text()


def test_results_of_an_earlier_run_are_not_taken_for_those_of_this_one(tmp_path):
    (tmp_path / "nothing.json").write_text('{"machine": "", "rows": []}')
    outcome = command.run("nothing", [], tmp_path)
    assert outcome.failed
    assert not (tmp_path / "nothing.json").exists()


def test_what_is_not_given_is_not_run(tmp_path):
    given = {"output": tmp_path, "data_dir": None, "runs": None, "accelerator": None}
    commands, left_out = command.plan(command.PROGRAMS, given)
    assert set(left_out) == {"input", "convergence", "accelerator"}
    assert set(commands) | set(left_out) == set(command.PROGRAMS)
    given |= {"data_dir": "photographs", "accelerator": "gpu"}
    commands, left_out = command.plan(command.PROGRAMS, given)
    assert "--data-dir=photographs" in commands["input"]
    assert set(left_out) == {"convergence"}


def test_all_of_it_is_meant_to_stay_under_fifteen_minutes_on_a_cpu():
    programs = command.PROGRAMS.values()
    assert sum(p.seconds for p in programs if p.needs != "accelerator") < 15 * 60


def test_every_benchmark_is_in_the_table():
    programs = {
        path.stem
        for path in FOLDER.glob("*.py")
        if any(
            isinstance(node, ast.Attribute) and ast.unparse(node) == "timing.run"
            for node in ast.walk(ast.parse(path.read_text()))
        )
    }
    assert programs <= set(command.PROGRAMS)


def test_an_unknown_name_ends_in_a_sentence():
    with pytest.raises(UserError, match="There is no benchmark 'nets': --only takes networks, "):
        command.main(["--only", "nets"])
