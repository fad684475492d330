"""How busy the device is during a call, from a trace of JAX's profiler."""

import dataclasses
import pathlib
import tempfile

import jax


@dataclasses.dataclass(frozen=True)
class Busy:
    """What a trace shows about the device.

    Attributes:
        share: fraction of the time between its first and last operation in which it was at work.
        longest_gap: seconds of the longest pause between two operations.
        seconds: between the first and the last operation.
    """

    share: float
    longest_gap: float
    seconds: float


def busy(call):
    """Traces `call`, which waits for what it starts, and returns the device's `Busy`."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            call()
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        found = jax.profiler.ProfileData.from_file(str(path))
    return _busy_of(_operations(found))


def _operations(found):
    """(begin, end) in ns of everything on the device, or on the CPU's threads."""
    planes = [plane for plane in found.planes if plane.name.startswith("/device:")]
    planes = [plane for plane in planes if any(line.events for line in plane.lines)]
    lines = [
        line
        for plane in planes or found.planes
        for line in plane.lines
        # The device's operations. Its other lines repeat them by step or module.
        if (line.name.startswith("Stream") or line.name == "XLA Ops") == bool(planes)
        and (planes or line.name.startswith("tf_XLA"))
    ]
    return [(e.start_ns, e.start_ns + e.duration_ns) for line in lines for e in line.events]


def _busy_of(operations):
    """The `Busy` of intervals in ns that may overlap."""
    operations = sorted(operations)
    first = last = operations[0][0]
    worked = gap = 0
    for begin, end in operations:
        gap = max(gap, begin - last)
        worked += max(0, end - max(begin, last))
        last = max(last, end)
    return Busy(worked / (last - first), gap / 1e9, (last - first) / 1e9)
