"""NMS and ROIAlign next to torchvision's: the rows, and that both compute the same."""

import argparse

import numpy as np
import pytest

from benchmarks import detection

OPTIONS = argparse.Namespace(repeats=2, rounds=1)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    values = {"CANDIDATES": 40, "PROPOSALS": 20, "MAP": (5, 6, 3), "REGIONS": 4, "CELLS": (2, 2)}
    for name, value in values.items():
        monkeypatch.setattr(detection, name, value)


def test_each_is_measured_next_to_the_peer():
    def peer(*given):
        return dict.fromkeys((detection.NMS, detection.FORWARD, detection.GRADIENT), lambda: None)

    alone, *rows = detection.measure(OPTIONS, peer)
    assert (alone.what, alone.goal, len(alone.ours)) == (detection.NMS, "<= 30", 2)
    assert [row.goal for row in rows] == ["", ">= 0.5", ">= 0.5"]
    assert all(len(row.ours) == len(row.ratios) == 2 for row in rows)


def test_without_torchvision_it_is_named(monkeypatch):
    monkeypatch.setitem(detection.mix.sys.modules, "torchvision", None)
    _, *rows = detection.measure(OPTIONS)
    assert len(rows) == 3
    for row in rows:
        assert "requirements-peers.txt" in row.note
        assert len(row.ours) == 2
        assert row.ratios == []


def test_both_compute_the_same():
    pytest.importorskip("torchvision")
    given = detection.inputs()
    ours, theirs = detection.ours(*given), detection.torchvision(*given)
    indices, valid = map(np.asarray, ours[detection.NMS]())
    np.testing.assert_array_equal(indices[valid], theirs[detection.NMS]())
    cells, gradient = ours[detection.GRADIENT]()
    their_gradient, their_cells = theirs[detection.GRADIENT]()
    for found in (cells, ours[detection.FORWARD]()):
        expected = their_cells.detach().permute(0, 2, 3, 1)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(gradient, their_gradient[0].permute(1, 2, 0), atol=1e-5)
