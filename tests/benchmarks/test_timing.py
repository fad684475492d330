"""Turns are interleaved. Rows have medians per repeat and ratios per turn, and make a table."""

import argparse
import json

import pytest

from benchmarks import timing


def test_turns_are_taken_by_all_before_any_has_the_next():
    order = []
    seconds = timing.take_turns({n: lambda n=n: order.append(n) for n in "abc"}, 2, 4)
    rounds = [order[at : at + 3] for at in range(0, 24, 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in rounds)
    assert len({tuple(turn) for turn in rounds}) > 1  # none always follows the same one
    assert {name: [len(turns) for turns in taken] for name, taken in seconds.items()} == {
        name: [4, 4] for name in "abc"
    }


def test_a_row_has_medians_of_each_repeat_and_ratios_turn_by_turn():
    # In each turn the peer takes two or three times as long, while the machine slows down.
    ours, theirs = [[1, 2, 9], [4, 5, 6]], [[2, 4, 18], [12, 15, 12]]
    row = timing.compare("step", "ms", ours, "peer", theirs, scale=1e3, goal=">= 1.0")
    assert (row.ours, row.theirs) == ([2000, 5000], [4000, 12000])
    assert row.ratios == [2, 3]  # not 12 / 5, the ratio of the medians


def test_a_missing_peer_leaves_ours_and_its_note():
    row = timing.compare("step", "s", [[1.0], [3.0]], "peer", (), note="not installed")
    assert (row.ours, row.theirs, row.ratios) == ([1, 3], [], [])
    assert timing.table([row]).splitlines()[-1].split(" | ") == [
        *("| step", "s", "2 (1 to 3)", "peer", "-", "-", "", "not installed |"),
    ]


def test_rates_are_of_the_median_turn():
    assert timing.rates("", "", 10, [[1, 2, 100]]).ours == [5]


@pytest.mark.parametrize(("values", "text"), [([], "-"), ([0.5], "0.5"), ([3, 1, 2], "2 (1 to 3)")])
def test_spread(values, text):
    assert timing.spread(values) == text


def test_rows_are_written_as_they_are(tmp_path, capsys):
    rows = [timing.Row("step", "s", [1.0], "peer", [2.0], [2.0], ">= 1.0", "a note")]
    options = argparse.Namespace(json=tmp_path / "rows.json")
    timing.run(iter(rows), options, "made up")
    found = json.loads(options.json.read_text())
    assert [timing.Row(**row) for row in found["rows"]] == rows
    assert found["benchmark"] == "made up"
    assert "JAX" in found["machine"]
    assert timing.table(rows) in capsys.readouterr().out
