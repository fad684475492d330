"""Turns, rows and tables that the benchmarks share."""

import argparse
import dataclasses
import json
import pathlib
import platform
import random
import statistics
import sys
import time

from cutmix_jax.host import cores, keep_freed_memory, use_fast_weight_gradients
from cutmix_jax.paths import local_path


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement, with several repeats, and the peer's if there is one.

    Attributes:
        what: what was measured.
        unit: of `ours` and `theirs`.
        ours: one value per repeat.
        peer: what it is compared with.
        theirs: one value per repeat; empty if the peer is missing.
        ratios: one per repeat, above 1 if ours is better.
        goal: for the ratio, or for the value if there is no peer.
        note: anything else, such as why a peer is missing.
    """

    what: str
    unit: str
    ours: list
    peer: str = ""
    theirs: list = dataclasses.field(default_factory=list)
    ratios: list = dataclasses.field(default_factory=list)
    goal: str = ""
    note: str = ""


def take_turns(calls, repeats=3, rounds=5):
    """Seconds of each call, ``{name: [repeats][rounds]}``, in turns with a new order each time.

    A machine that is busy for a while then slows all of them alike. None always follows the one
    that empties the caches.
    """
    seconds = {name: [[] for _ in range(repeats)] for name in calls}
    order = list(calls)
    for repeat in range(repeats):
        for turn in range(rounds):
            random.Random(f"{repeat} {turn}").shuffle(order)
            for name in order:
                begin = time.perf_counter()
                calls[name]()
                seconds[name][repeat].append(time.perf_counter() - begin)
    return seconds


def compare(what, unit, ours, peer="", theirs=(), scale=1.0, **more):
    """A row of times from `take_turns`: medians per repeat, of times and of ratios per turn."""
    ratios = [
        statistics.median(t / o for o, t in zip(*pair, strict=True))
        for pair in zip(ours, theirs, strict=False)
    ]
    return Row(what, unit, _medians(ours, scale), peer, _medians(theirs, scale), ratios, **more)


def rates(what, unit, amount, ours):
    """A row of what was done per second, with `amount` in each turn."""
    return Row(what, unit, [amount / seconds for seconds in _medians(ours, 1)])


def _medians(repeats, scale):
    return [scale * statistics.median(turns) for turns in repeats]


def machine():
    """One line on what it was measured on."""
    import jax

    name = platform.processor() or platform.machine()
    path = pathlib.Path("/proc/cpuinfo")
    if path.exists():
        models = [x for x in path.read_text().splitlines() if x.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    found = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {cores()} cores of {name}"
    return f"{found}, Python {platform.python_version()}, JAX {jax.__version__}"


HEADER = ["what", "unit", "ours", "peer", "theirs", "ratio", "goal", "note"]


def table(rows):
    """The rows in Markdown: medians of the repeats, their spread in brackets."""
    lines = [HEADER, ["---"] * len(HEADER)]
    for row in rows:
        theirs = spread(row.theirs) if row.theirs else "-"
        ratio = spread(row.ratios) if row.ratios else "-"
        lines.append(
            [row.what, row.unit, spread(row.ours), row.peer, theirs, ratio, row.goal, row.note]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values):
    """'median (least to most)', or the value if there is only one."""
    if not values:
        return "-"
    middle = f"{statistics.median(values):.4g}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.3g} to {max(values):.3g})"


def parser(doc):
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    made.add_argument("--json", help="also write the rows there")
    made.add_argument("--repeats", type=int, default=3)
    return made


def run(rows, options, name):
    """Prints `rows` as they come, then their table, and writes them to the file of `--json`."""
    written = options.json and local_path(options.json, "--json")
    use_fast_weight_gradients()  # the rows are a generator: nothing is measured yet
    keep_freed_memory()
    print(f"{name}: {machine()}", flush=True)
    done = []
    for row in rows:
        done.append(row)
        print(f"  {row.what}: {spread(row.ours)} {row.unit}", end="")
        if row.ratios:
            print(f"; {row.peer} {spread(row.theirs)}; ratio {spread(row.ratios)}", end="")
        print(f"  [{row.note}]" if row.note else "", flush=True)
    print("\n" + table(done))
    if written:
        plain = {"benchmark": name, "machine": machine(), "command": " ".join(sys.argv[1:])}
        plain["rows"] = [dataclasses.asdict(row) for row in done]
        written.write_text(json.dumps(plain, indent=1) + "\n")
