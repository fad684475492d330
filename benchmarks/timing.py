"""Turns, rows and tables: what the benchmarks share."""

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
from cutmix_jax.paths import place


@dataclasses.dataclass(frozen=True)
class Row:
    """One thing measured, several times over, with a peer's where there is one.

    Attributes:
      what: what was measured.
      unit: of `ours` and `theirs`.
      ours: one value a repeat.
      peer: what it is compared with.
      theirs: one value a repeat; empty where the peer is missing.
      ratios: one a repeat, above 1 where ours is the better.
      goal: what the ratio (or, without a peer, the value) was to be.
      note: what else there is to say, for instance why a peer is missing.
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
    """Seconds of each call, ``{name: [repeats][rounds]}``: in turns, each in another order.

    So a machine that is busy for a while slows all of them alike, and none always comes after the
    one that empties the caches.
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


def compare(what, unit, ours, peer="", theirs=(), scale=1.0, **told):
    """A row of times from `take_turns`: medians of each repeat, and of the ratios turn by turn."""
    ratios = [
        statistics.median(t / o for o, t in zip(*pair, strict=True))
        for pair in zip(ours, theirs, strict=False)
    ]
    return Row(what, unit, _medians(ours, scale), peer, _medians(theirs, scale), ratios, **told)


def rates(what, unit, amount, ours):
    """A row of how much was done in a second: `amount` in each turn."""
    return Row(what, unit, [amount / seconds for seconds in _medians(ours, 1)])


def _medians(repeats, scale):
    return [scale * statistics.median(turns) for turns in repeats]


def machine():
    """What it was measured on, in a line."""
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
    """'median (least to most)', or the value where there is but one."""
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
    """Prints `rows` as they come, then their table; writes them where `--json` says."""
    written = options.json and place(options.json, "--json")
    use_fast_weight_gradients()  # the rows are not measured before they are asked for
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
