"""Mapping over devices: both ways do the same, and arrays are where they should be."""

import jax
import numpy as np
import pytest
from jax import lax

from cutmix_jax import UserError
from cutmix_jax.parallel import AXIS, LAG, create_mapping

KINDS = ["pmap", "shard_map"]


def mean_of_shares(state, arrays, xs):
    """A stand-in for the step: gathers from a replicated array and reduces over the axis."""
    return state + lax.pmean(arrays[xs].sum(), AXIS), lax.psum(xs.sum(), AXIS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("devices", [1, 8])
def test_a_function_sees_its_share_and_reduces_over_the_axis(kind, devices):
    mapping = create_mapping(kind, devices)
    assert mapping.local_devices == devices
    xs = np.arange(16, dtype=np.int32).reshape(devices, -1)
    mapped = mapping.map(mean_of_shares, donate_state=True)
    state, arrays = mapping.replicate(np.float32(1)), mapping.replicate(np.arange(16.0))
    result, total = mapped(state, arrays, mapping.shard(xs))
    assert float(result) == 1 + np.arange(16).sum() / devices
    assert int(total) == np.arange(16).sum()
    assert state.is_deleted()
    # Before JAX 0.8 pmap had its own kind of sharding, which is equivalent to no other.
    assert result.is_fully_replicated
    assert result.sharding.device_set == state.sharding.device_set


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_averaged_once(kind):
    """shard_map alone would sum them before `pmean` averages them."""
    mapping = create_mapping(kind)

    def gradient(weight, arrays, xs):
        return lax.pmean(jax.grad(lambda w: (w * xs).sum())(weight), AXIS)

    weight = mapping.replicate(np.float32(2))
    xs = np.arange(8, dtype=np.float32).reshape(8, 1)
    assert float(mapping.map(gradient)(weight, (), mapping.shard(xs))) == 3.5


def test_batches_are_on_their_way_before_they_are_asked_for():
    mapping = create_mapping("pmap", 1)
    made = []

    def batches():
        for i in range(5):
            made.append(i)
            yield np.full((1, 2), i)

    seen = []
    for batch in mapping.prefetch(batches(), depth=2):
        assert len(made) == min(5, len(seen) + 3)
        seen.append(int(batch[0, 0]))
    assert seen == [0, 1, 2, 3, 4]


def test_results_are_fetched_when_later_ones_are_under_way():
    called = []

    def call(i):
        called.append(i)
        return {"count": jax.numpy.int32(i)}

    for i, result in enumerate(create_mapping("pmap", 1).fetch(map(call, range(5)))):
        assert isinstance(result["count"], np.ndarray)
        assert result["count"] == i
        assert len(called) == min(5, i + 1 + LAG)
    waiting = create_mapping("pmap").fetch(map(call, range(5)))  # eight CPU devices: one by one
    called.clear()
    assert (next(waiting)["count"], called) == (0, [0])


@pytest.mark.parametrize(("processes", "kind"), [(1, "pmap"), (2, "shard_map")])
def test_the_mapping_follows_the_number_of_processes(monkeypatch, processes, kind):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    assert create_mapping().kind == kind


def test_pmap_with_several_processes_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"'pmap' is for one process, but there are 2.*=auto"):
        create_mapping("pmap")


def test_several_cpu_devices_have_to_be_waited_for():
    assert create_mapping("pmap").must_wait
    assert not create_mapping("pmap", 1).must_wait
