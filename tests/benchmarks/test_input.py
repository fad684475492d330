"""What the input benchmark computes from its timings, and that its parts run."""

import argparse
import time

import pytest

from cutmix_jax.data.records import Split

pytest.importorskip("tensorflow")

from benchmarks import input as bench


def test_cost_counts_every_core():
    assert bench.per_core([[2.0, 4.0]], cores=2, images=1000) == [[4.0, 8.0]]


def test_cores_for_a_chip():
    assert bench.cores_for(2400, [800, 1200]) == [3.0, 2.0]


def test_growth_is_against_the_first_epoch():
    assert bench.growth([200, 202, 198]) == pytest.approx([1.0, -1.0])


def test_resident_set_sees_what_is_held():
    before = bench.resident_set()
    if before is None:
        pytest.skip("this system does not tell the memory of a process")
    held = bytearray(b"1" * 2**26)
    assert bench.resident_set() - before > 0.9 * len(held)


def test_repeated_split_gives_its_records_over_and_over():
    split = bench.repeated(Split(3, lambda i: b"abc"[i : i + 1], None, str), 8)
    assert split.count == 8
    assert b"".join(split.read(i) for i in range(8)) == b"abcabcab"


def test_a_missing_peer_is_named(tfds_dir, monkeypatch):
    def missing(split, workers):
        raise ImportError("No module named 'torchvision'")

    monkeypatch.setattr(bench, "torchvision_pass", missing)
    options = argparse.Namespace(
        data_dir=tfds_dir, dataset="imagenet_photos", images=64, repeats=1, rounds=1, epochs=2
    )
    data, split = bench.open_photographs(options)
    assert data.image_shape == (224, 224, 3)
    assert data.steps_per_epoch == 1
    assert len(bench.memory_row(data, options).ours) == 1
    *beside, rate, a100, h100, tpu = bench.streaming_rows(data, split, options)
    for row in beside:
        assert "requirements-peers.txt" in row.note
        assert row.peer == "torchvision"
        assert row.ours[0] > 0
        assert not row.ratios
    assert rate.unit == "images a CPU second"
    for row, name in zip((a100, h100, tpu), bench.FED, strict=True):
        assert row.ours == pytest.approx([bench.scale.CHIPS[name].images / rate.ours[0]])
        assert name in row.what


def test_counted_calls_tell_the_time_of_the_processor():
    spent = []
    bench.counted(lambda: time.sleep(0.2), spent)()
    bench.counted(lambda: sum(range(10**6)), spent)()
    assert spent[0] < 0.1
    assert spent[1] > 0.002
