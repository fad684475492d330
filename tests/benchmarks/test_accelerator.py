"""What the accelerator benchmark reports besides times."""

import concurrent.futures
import statistics
import types

import jax
import pytest

from benchmarks import accelerator


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "989"),
        ("NVIDIA H100 PCIe", "756"),
        ("NVIDIA A100-SXM4-40GB", "312"),
        ("NVIDIA L4", "121"),
        ("NVIDIA L40S", None),
        ("TPU v4", "275"),
    ],
)
def test_the_peak_is_that_of_the_chip(kind, peak, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(device_kind=kind)])
    speed = accelerator.describe_speed(1e12, "bfloat16", 64, 0.1)
    assert speed.startswith("640 images/s, 10 TFLOP/s")
    assert ("%" in speed) == bool(peak)
    assert f"of {peak} TFLOP/s" in speed or not peak


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (AssertionError(), "AssertionError"),
        (ImportError("no torch\nat all"), "ImportError: no torch"),
    ],
)
def test_why_a_peer_is_missing_is_one_line(error, expected):
    assert accelerator.describe_error(error) == expected


class Still:
    """Steps that take no time to compile, and almost none to run."""

    def __init__(self, *_):
        pass

    def take(self, steps):
        pass

    loop = take


def test_images_per_second_are_reported_without_a_peer_and_by_the_median(monkeypatch):
    done = concurrent.futures.Future()
    done.set_result(None)
    monkeypatch.setattr(accelerator, "train_flops", lambda *_: None)
    monkeypatch.setattr(
        accelerator, "compile_programs", lambda _, p: (done, dict.fromkeys(p, done))
    )
    monkeypatch.setattr(accelerator, "Case", Still)
    monkeypatch.setattr(accelerator, "Training", Still)
    monkeypatch.setattr(accelerator.tracing, "busy", lambda _: accelerator.tracing.Busy(1, 0, 1))
    given = {"cases": "resnet8:float32:4:8", "peers": "nobody", "many": 2, "turn": None}
    options = types.SimpleNamespace(**given, seconds=1e-6, repeats=3, turns=3)
    rows = list(accelerator.measure_case(options))
    assert [row.note for row in rows if row.peer == "nobody"] == ["KeyError: 'nobody'"] * 2
    (speed,) = [row for row in rows if row.peer == "one step per call"]
    assert speed.note.startswith(f"{4000 / statistics.median(speed.ours):,.0f} images/s")
