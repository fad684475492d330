"""What the input benchmark computes from its timings. Its parts run."""

import argparse
import importlib.util
import io
import mmap
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from benchmarks import input as bench
from cutmix_jax.data import records
from cutmix_jax.data.records import Split
from tests.commands import REPOSITORY


def test_cost_counts_every_core():
    assert bench.per_core([[2.0, 4.0]], cores=2, images=1000) == [[4.0, 8.0]]


def test_cores_for_a_chip():
    assert bench.cores_for(2400, [800, 1200]) == [3.0, 2.0]


def test_growth_is_against_the_first_epoch():
    assert bench.growth([200, 202, 198]) == pytest.approx([1.0, -1.0])


def test_resident_set_sees_what_is_held():
    before = bench.resident_set()
    if before is None:
        pytest.skip("this system does not report the memory of a process")
    with mmap.mmap(-1, 2**26) as held:  # new pages; an array might take what others gave back
        held.write(b"1" * len(held))
        assert bench.resident_set() - before > 0.9 * len(held)


def test_a_repeated_split_repeats_its_records():
    split = bench.repeated(Split(3, lambda i: b"abc"[i : i + 1], None, str), 8)
    assert split.count == 8
    assert b"".join(split.read(i) for i in range(8)) == b"abcabcab"


def test_copies_are_smaller_and_keep_their_aspect(tfds_dir):
    data, split = bench.open_photographs(options(tfds_dir, images=64), bench.smaller)
    assert data.steps_per_epoch == 1
    whole = bench.find_set("imagenet_photos", str(tfds_dir), None).splits["train"]
    for i in range(8):
        image = Image.open(io.BytesIO(records.encoded(split, i)[0]))
        stored = records.stored_size(whole, i)
        assert min(image.size) == min(256, *stored)
        assert image.height / image.width == pytest.approx(stored[0] / stored[1], rel=0.01)
        assert records.encoded(split, i)[1] == records.encoded(whole, i)[1]


def options(tfds_dir, images):
    return argparse.Namespace(
        data_dir=tfds_dir, dataset="imagenet_photos", images=images, repeats=2, rounds=1, epochs=2
    )


def test_rows_of_a_pass_and_what_is_missing(tfds_dir, monkeypatch):
    def missing(*arguments):
        raise ImportError("No module named 'torch'")

    def tensorflow_pass(encoded):
        assert Image.open(io.BytesIO(encoded[0])).format == "JPEG"
        return lambda: time.sleep(0.01)

    for name in ("torchvision_pass", "timm_pass", "dali_pass"):
        monkeypatch.setattr(bench, name, missing)
    monkeypatch.setattr(bench, "tensorflow_pass", tensorflow_pass)
    data, split = bench.open_photographs(options(tfds_dir, 64))
    assert data.image_shape == (224, 224, 3)
    rows = list(bench.memory_rows(data, bench.resident_set(), options(tfds_dir, 64)))
    assert [row.unit for row in rows] == ["MiB", "%"]
    rows = list(bench.streaming_rows(data, split, options(tfds_dir, 64)))
    beside, rest = rows[:2], rows[2:]
    assert [row.peer for row in beside] == ["tf.data"] * 2
    assert all(len(row.ratios) == 2 for row in beside)
    lacking, rest = rest[:7], rest[7:]
    assert all("requirements-peers.txt" in row.note for row in lacking)
    names = [row.peer.replace(",", "").split()[0] for row in lacking]
    assert names == ["torchvision"] * 4 + ["timm"] * 2 + ["DALI"]
    rates, fed = rest[:3], rest[3:]
    assert {row.unit for row in rates} == {"images per CPU second"}
    assert np.median(rates[1].ours) > np.median(rates[0].ours)  # copies are smaller
    for row, name in zip(fed, bench.FED * 2, strict=True):
        rate = rates[fed.index(row) // 3]
        assert row.ours == pytest.approx([bench.scale.CHIPS[name].images / x for x in rate.ours])
        assert name in row.what


@pytest.mark.slow
@pytest.mark.parametrize("package", ["torchvision", "timm", "nvidia.dali", "tensorflow"])
def test_the_peers_read_the_photographs(tfds_dir, package):
    """In separate processes: PyTorch and TensorFlow only work together in one order."""
    names = package.partition(".")[0], package
    if not all(map(importlib.util.find_spec, names)):  # the parent first
        pytest.skip(f"{package} is not installed")
    calls = {
        "torchvision": "[torchvision_pass(encoded, 0, tensors)() for tensors in (False, True)]",
        "timm": "timm_pass(encoded, 0)()",
        "nvidia.dali": "dali_pass(encoded)()",
        "tensorflow": "tensorflow_pass(encoded)()",
    }[package]
    code = (
        "from benchmarks.input import *; import argparse; "
        f"options = argparse.Namespace(dataset='imagenet_photos', data_dir={str(tfds_dir)!r}, "
        "images=64); split = open_photographs(options)[1]; "
        f"encoded = [records.encoded(split, i)[0] for i in range(64)]; {calls}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200, cwd=REPOSITORY)


def test_counted_calls_report_cpu_time(monkeypatch):
    clock, calls, spent = iter([1.0, 1.5, 7.0, 7.25]), [], []
    monkeypatch.setattr(bench.time, "process_time", lambda: next(clock))
    for name in "ab":
        bench.counted(lambda name=name: calls.append(name), spent)()
    assert (calls, spent) == (["a", "b"], [0.5, 0.25])


def test_records_are_repeated_with_their_names(tfds_dir):
    """There are 256 of them."""
    data, split = bench.open_photographs(options(tfds_dir, 320))
    assert split.name(256) == split.name(0)
    assert sum(1 for _ in data.train_batches(0)) == 5


def test_what_is_left_to_one_process(tfds_dir, monkeypatch):
    monkeypatch.setattr(bench.timing, "cores", lambda: 1)
    data, _ = bench.open_photographs(options(tfds_dir, 64))
    alone, ends, helped, higher = bench.lock_rows(data, options(tfds_dir, 64))
    assert alone.what == "all but decoding and resizing, in this process, CPU time"
    assert helped.what == "this process, while 1 others decode, CPU time"
    for cost, rate in ((alone, ends), (helped, higher)):
        assert np.allclose(np.array(cost.ours) * rate.ours, 1000)
