"""How busy a device is: the union of its operations, and the longest pause."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.tracing import _busy_of, busy

CASES = {
    "one after the other": ([(0, 10), (10, 20)], 1.0, 0),
    "a pause": ([(0, 10), (30, 40)], 0.5, 20),
    "overlapping ones count once": ([(0, 10), (5, 15), (15, 20)], 1.0, 0),
    "one within another ends nothing": ([(0, 30), (5, 10), (40, 50)], 0.8, 10),
    "in any order": ([(30, 40), (0, 10)], 0.5, 20),
    "not from zero": ([(100, 110), (130, 140)], 0.5, 20),
    "the longest of two pauses": ([(0, 10), (20, 30), (50, 100)], 0.7, 20),
}


@pytest.mark.parametrize(("operations", "share", "gap"), CASES.values(), ids=CASES)
def test_busy_share_of_intervals(operations, share, gap):
    found = _busy_of(operations)
    first, last = min(b for b, _ in operations), max(e for _, e in operations)
    assert found.share == pytest.approx(share)
    assert found.longest_gap == pytest.approx(gap / 1e9)
    assert found.seconds == pytest.approx((last - first) / 1e9)


def test_a_trace_of_something_that_runs():
    x = jnp.ones((300, 300))
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()
    found = busy(lambda: [product(x).block_until_ready() for _ in range(20)])
    assert 0 < found.share <= 1
    assert 0 <= found.longest_gap < found.seconds
