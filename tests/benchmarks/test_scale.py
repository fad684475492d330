"""Scale: collectives are counted as in the program, and the estimates follow the formulas."""

import pathlib

import jax
import pytest
from jax import lax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P

from benchmarks import scale, timing
from cutmix_jax.parallel import AXIS, all_devices

DOCS = pathlib.Path(__file__).resolve().parent.parent.parent / "docs"
FREE = scale.Chip(images=1000.0, bandwidth=float("inf"), cores=1e9)
SIZE = 102.4e6  # bytes


def lower(function, *arguments):
    """`function` of one device's part, lowered for all devices."""
    mapped = jax.shard_map(
        function, mesh=all_devices(), in_specs=P(AXIS), out_specs=P(), check_vma=False
    )
    return jax.jit(mapped).lower(*arguments)


def test_each_collective_counts_with_the_bytes_of_its_result():
    def function(x, y):
        total = lax.psum((x, x[0, 0].astype(jnp.int32)), AXIS)
        return total, lax.all_gather(y, AXIS)

    devices = jax.device_count()
    x = jnp.zeros((devices * 5, 3), jnp.float32)
    y = jnp.zeros((devices * 2,), jnp.bfloat16)
    traced = lower(function, x, y).as_text(dialect="hlo")
    expected = {"all-reduce": (5 * 3 + 1) * 4, "all-gather": devices * 2 * 2}
    assert scale.collectives(traced) == expected


def test_the_optimized_program_counts_the_same():
    traced = lower(lambda x: lax.psum(x, AXIS), jnp.zeros((jax.device_count() * 5, 3)))
    assert scale.collectives(traced.compile().as_text()) == {"all-reduce": 60}
    silent = lower(lambda x: x.sum() * 2, jnp.zeros(jax.device_count()))
    assert scale.collectives(silent.compile().as_text()) == {}


def test_asynchronous_collectives_count_once():
    program = """
      %s = (f32[4]{0}, /*index=1*/pred[3]{0}, s64[]) all-reduce-start(%a, %b, %c), channel_id=1
      %d = (f32[4]{0}, pred[3]{0}, s64[]) all-reduce-done(%s)
      %e = f32[4]{0} get-tuple-element(%all-reduce), index=0
    """
    assert scale.collectives(program) == {"all-reduce": 16 + 3 + 8}


def test_a_step_asks_for_gradients_statistics_and_counters_alone():
    found = scale.compile_step("resnet8", 1, 2)
    assert found["asked"] == {"all-reduce": found["needed"]}
    assert found["sent"].keys() == {"all-reduce"}
    assert 0.99 * found["needed"] < found["sent"]["all-reduce"] <= found["needed"]
    assert found["operations"] > 0


def test_a_ring_sends_each_byte_nearly_twice():
    seconds = scale.all_reduce_seconds
    assert seconds(1e9, 1, 1e9, hop=1.0) == 0
    assert seconds(1e9, 2, 1e9) == pytest.approx(1)
    assert seconds(1e9, 8, 1e9) == pytest.approx(2 * 7 / 8)
    assert seconds(1e9, 8, 2e9) == pytest.approx(seconds(1e9, 8, 1e9) / 2)
    assert seconds(1e9, 10**6, 1e9) == pytest.approx(2, rel=1e-5)
    assert seconds(0, 8, 1e9, hop=1e-6) == pytest.approx(14e-6)


@pytest.mark.parametrize("name", scale.CHIPS)
def test_one_chip_is_as_fast_as_published(name):
    chip = scale.CHIPS[name]
    compute, reduce = scale.step_seconds(chip, 1, scale.MEASURED_AT, SIZE)
    assert reduce == 0
    assert scale.MEASURED_AT / compute == pytest.approx(chip.images)


def test_the_slower_of_step_and_input_bounds():
    chip = scale.CHIPS["A100"]
    slow = scale.images_per_second(chip, 8, 2048, SIZE, input_rate=10)
    assert slow == (8 * chip.cores * 10, "input")
    fast, bound = scale.images_per_second(chip, 8, 2048, SIZE, input_rate=1e6)
    assert bound == "step"
    assert fast == pytest.approx(2048 / sum(scale.step_seconds(chip, 8, 2048, SIZE)))


def test_hours_are_those_of_epochs_evaluations_and_checkpoints(monkeypatch):
    monkeypatch.setattr(scale, "HOP", 0.0)
    perfect = scale.perfect_hours(FREE, 1)
    assert perfect == pytest.approx(300 * (1_281_167 + 50_000 / 3) / 1000 / 3600)
    assert scale.hours(FREE, 4, 1024, SIZE, 168) == pytest.approx(perfect / 4)
    saved = scale.hours(FREE, 4, 1024, SIZE, 168, checkpoint=12.0)
    assert saved == pytest.approx(perfect / 4 + 1)
    for name, chips in scale.SLICES:
        for batch_of in scale.BATCHES.values():
            chip = scale.CHIPS[name]
            hours = scale.hours(chip, chips, batch_of(chips), SIZE, 168)
            assert hours > scale.perfect_hours(chip, chips)


def test_what_costs_nothing_scales_until_the_batch_is_divided(monkeypatch):
    monkeypatch.setattr(scale, "HOP", 0.0)
    monkeypatch.setattr(scale, "LAUNCH", 0.0)
    assert scale.last_worthwhile(FREE, lambda chips: 256, SIZE, 168) == 256
    assert scale.last_worthwhile(FREE, lambda chips: 8 * chips, SIZE, 168, most=64) == 64
    slow = scale.Chip(images=1000.0, bandwidth=1.0, cores=1e9)
    assert scale.last_worthwhile(slow, lambda chips: 256, SIZE, 168) == 1


def test_the_page_shows_what_the_formulas_give():
    rows = list(scale.worked_out_rows(SIZE, 0.25, 650))
    cells = [line.strip("| ").split(" | ") for line in timing.table(rows).splitlines()[2:]]
    page = (DOCS / "log/scaling.md").read_text()
    shown = [x.strip("| ").split(" | ") for x in page.splitlines() if x.startswith("| worked out")]
    assert len(shown) == len(cells) == len(rows)
    for ours, theirs in zip(shown, cells, strict=True):
        assert ours[0] == theirs[0]
        assert float(ours[2]) == pytest.approx(float(theirs[2]), rel=0.01)
