"""Scale: what a step sends on 1 to 64 devices, what processes cost, and ImageNet worked out.

    python -m benchmarks.scale
    python -m benchmarks.scale --model resnet20 --processes 1,2,4 --repeats 3
    python -m benchmarks.scale --devices '' --processes '' --input-rate 300   # worked out alone

Devices are fake devices of one CPU. Their steps are compiled, not run. Processes run `main.py` on
the digits, on this machine. docs/log/scaling.md has the formulas of what is worked out, and
docs/scaling.md the sources of its numbers.
"""

import collections
import dataclasses
import json
import math
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp

from benchmarks import timing
from benchmarks.memory import size as size_of
from benchmarks.startup import ROOT
from benchmarks.train_step import create_task
from cutmix_jax import metrics, train
from cutmix_jax.checkpoint import Checkpoints
from cutmix_jax.parallel import create_mapping

KINDS = (
    "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast|"
    "ragged-all-to-all"
)
# Process 0 prints when its first step is finished and how long the first checkpoint takes.
DRIVER = """
import os, runpy, sys, time
import jax
from cutmix_jax import checkpoint, metrics
add, save = metrics.Totals.add, checkpoint.Checkpoints.save

def first(totals, counters):
    metrics.Totals.add = add
    print("first step", time.time(), flush=True)
    add(totals, counters)

def timed(checkpoints, *arguments):
    begin = time.perf_counter()
    save(checkpoints, *arguments)
    checkpoints.wait()
    print("checkpoint", time.perf_counter() - begin, flush=True)
    if jax.process_index():
        time.sleep(600)  # until process 0 has printed
    os._exit(42)

metrics.Totals.add, checkpoint.Checkpoints.save = first, timed
sys.argv = ["main.py", *sys.argv[1:]]
runpy.run_path("main.py", run_name="__main__")
"""


def collectives(program):
    """Bytes that the collectives of an HLO program give to each device, by kind.

    Args:
        program: HLO text, before or after optimization. An asynchronous collective counts once, at
            its start.

    Returns:
        ``{'all-reduce': bytes, ...}``, only with kinds that occur.
    """
    found = collections.Counter()
    for shapes, kind in re.findall(rf"= (.*?) ({KINDS})(?:-start)?\(", program):
        for dtype, dims in re.findall(r"([a-z]+\d*\w*)\[([\d,]*)\]", shapes):
            bits = re.search(r"\d+", dtype)
            width = math.ceil(int(bits[0]) / 8) if bits else 1  # pred has no number
            found[kind] += width * math.prod(int(n) for n in dims.split(",") if n)
    return dict(found)


def reduced_bytes(state):
    """Bytes that a step has to reduce: gradients, running statistics, counters.

    Args:
        state: a `train.State`, of arrays or of shapes.
    """
    row, rows = jax.ShapeDtypeStruct((1,), "float32"), jax.ShapeDtypeStruct((1, 2), "float32")
    counters = jax.eval_shape(metrics.train_counters, row, rows, rows)
    return size_of((state.params, state.batch_stats, counters))


def compile_step(model, size, devices):
    """Compiles the step on `devices` of this process's devices, with `size` images each.

    Returns:
        ``{'devices', 'operations', 'needed', 'asked', 'sent'}``: operations of one device; bytes
        that have to be reduced; bytes per kind of collective in the traced and in the compiled
        step.
    """
    task = create_task(model, size * devices, 32, devices=devices, **{"mix.name": "cutmix"})
    state = train.abstract_state(task)
    xs = next(train.group(task.data.train_batches(0), 1))
    lowered = train.map_steps(task)[0].lower(state, task.data.arrays["train"], xs)
    compiled = lowered.compile()
    return {
        "devices": devices,
        "operations": compiled.cost_analysis()["flops"],
        "needed": reduced_bytes(state),
        "asked": collectives(lowered.as_text(dialect="hlo")),
        "sent": collectives(compiled.as_text()),
    }


def compile_steps(model, size, counts):
    """Yields `compile_step` for each number of devices, from a process that has as many."""
    code = "import json\nfrom benchmarks import scale\nfor n in {}:\n    {}".format(
        counts, f"print(json.dumps(scale.compile_step({model!r}, {size}, n)), flush=True)"
    )
    # The flags save LLVM's work on steps that are not run. The HLO program is the same.
    flags = (
        f"--xla_force_host_platform_device_count={max(counts)} "
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        yield from map(json.loads, process.stdout)
    if process.returncode:
        sys.exit(f"No step was compiled for {counts} devices: its message is above.")


def device_rows(options):
    """Operations per device and bytes in collectives, against the number of devices."""
    counts = [int(n) for n in options.devices.split(",") if n]
    one = None
    for found in compile_steps(options.model, options.batch_size, counts) if counts else ():
        what = f"{options.model}, {options.batch_size} images each, devices: {found['devices']}"
        one = one or found["operations"]
        yield timing.Row(
            f"operations per device, {what}",
            "GFLOP",
            [found["operations"] / 1e9],
            f"devices: {counts[0]}",
            [one / 1e9],
            [one / found["operations"]],
            goal="1.0",
        )
        sent, asked = (sum(found[key].values()) for key in ("sent", "asked"))
        yield timing.Row(
            f"bytes in collectives, {what}",
            "MB",
            [sent / 1e6],
            "gradients, statistics, counters",
            [found["needed"] / 1e6],
            [found["needed"] / sent],
            goal="1.0",
            note=f"{', '.join(found['sent'])}; needed {found['needed']:,} bytes, traced "
            f"{asked:,}, compiled {sent:,}",
        )


def time_processes(count):
    """Starts `count` processes of `main.py` on the digits.

    Returns:
        ``(seconds to the first finished step, seconds of writing the first checkpoint)``.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        env |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "CUTMIX_JAX_CACHE": folder}
        command = [sys.executable, "-c", DRIVER, f"--workdir={folder}/run"]
        command += ["--config.model=resnet8", "--config.checkpoint_every=1"]
        command += [f"--coordinator=localhost:{port}", f"--processes={count}"]
        began = time.time()
        processes = [
            subprocess.Popen(
                [*command, f"--process={index}"],
                cwd=ROOT,
                env=env,
                stdout=subprocess.PIPE if index == 0 else subprocess.DEVNULL,
                stderr=subprocess.PIPE if index == 0 else subprocess.DEVNULL,
                text=True,
            )
            for index in range(count)
        ]
        try:
            out, err = processes[0].communicate(timeout=600)
        finally:
            for process in processes:
                process.kill()
                process.wait()
    times = dict(re.findall(r"^(first step|checkpoint) ([\d.e-]+)$", out, re.MULTILINE))
    if len(times) < 2:
        sys.exit(f"main.py in {count} processes saved nothing: {err.strip()[-300:]}")
    return float(times["first step"]) - began, float(times["checkpoint"])


def process_rows(options):
    """Start-up and checkpoint against the number of processes."""
    note = f"the processes share {timing.cores()} core" + "s" * (timing.cores() > 1)
    for count in (int(n) for n in options.processes.split(",") if n):
        taken = [time_processes(count) for _ in range(options.repeats)]
        what = f"digits, resnet8, processes: {count}"
        yield timing.Row(f"start to first step, {what}", "s", [t for t, _ in taken], note=note)
        yield timing.Row(f"writing a checkpoint, {what}", "s", [t for _, t in taken], note=note)


def time_checkpoint(state):
    """Seconds that saving `state` stops training, and seconds until it is complete on disk."""
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)
    mapping = create_mapping("pmap", 1)
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
        zeros = jax.block_until_ready(mapping.replicate(zeros))
        begin = time.perf_counter()
        checkpoints.save(1, zeros, {})
        saved = time.perf_counter()
        checkpoints.wait()
        return saved - begin, time.perf_counter() - begin


@dataclasses.dataclass(frozen=True)
class Chip:
    """What others publish about a chip and its host; docs/scaling.md names the sources.

    Attributes:
        images: images/s of one chip that trains ResNet-50 on 224 px in 16 bits, with `MEASURED_AT`
            images per step.
        bandwidth: bytes/s that each chip sends in a ring of all chips.
        cores: cores of the host per chip.
    """

    images: float
    bandwidth: float
    cores: float


CHIPS = {
    "A100": Chip(images=2470, bandwidth=225e9, cores=16),
    "H100": Chip(images=5740, bandwidth=337e9, cores=14),
    "TPU v3": Chip(images=2022, bandwidth=164e9, cores=12),
    "TPU v4": Chip(images=4246, bandwidth=90e9, cores=30),
    "TPU v5e": Chip(images=3042, bandwidth=100e9, cores=14),
}
SLICES = [("A100", 8), ("H100", 8)]
SLICES += [(name, chips) for name in ("TPU v4", "TPU v5e") for chips in (8, 32, 128)]
MEASURED_AT = 256
TRAIN_IMAGES, EVAL_IMAGES, EPOCHS = 1_281_167, 50_000, 300
# Assumed, published by nobody: see docs/log/scaling.md.
LAUNCH = 3e-3  # seconds of a step that do not depend on its images
HOP = 2e-6  # seconds until a message reaches the next chip
EVAL_SPEED = 3  # speed of the forward pass alone, as a multiple of training


def all_reduce_seconds(size, chips, bandwidth, hop=0.0):
    r"""Time of a ring all-reduce, :math:`2 (n - 1) (s / (n b) + h)`.

    Args:
        size: bytes on each chip, `s`.
        chips: number of chips, `n`.
        bandwidth: bytes/s that each sends, `b`.
        hop: latency of a message in seconds, `h`.

    Returns:
        Seconds; 0 for one chip.

    Example:
        >>> all_reduce_seconds(100e6, 8, 100e9)
        0.00175
    """
    return 2 * (chips - 1) * (size / chips / bandwidth + hop)


def step_seconds(chip, chips, batch, size):
    """Time of a step in which nothing overlaps: part of the batch, then the all-reduce.

    Args:
        chip: a `Chip`.
        chips: number of chips.
        batch: images per step over all chips.
        size: bytes that are reduced.

    Returns:
        ``(seconds of computing, seconds of the all-reduce)``.
    """
    image = 1 / chip.images - LAUNCH / MEASURED_AT
    reduce = all_reduce_seconds(size, chips, chip.bandwidth, HOP)
    return LAUNCH + batch / chips * image, reduce


def images_per_second(chip, chips, batch, size, input_rate):
    """Images/s of training: of the step or of the hosts' input, whichever is slower.

    Args:
        chip: a `Chip`.
        chips: number of chips.
        batch: images per step over all chips.
        size: bytes that are reduced.
        input_rate: images/s that one core of the host decodes.

    Returns:
        ``(images/s, 'step' or 'input')``.
    """
    rates = {
        "step": batch / sum(step_seconds(chip, chips, batch, size)),
        "input": chips * chip.cores * input_rate,
    }
    bound = min(rates, key=rates.get)
    return rates[bound], bound


def hours(chip, chips, batch, size, input_rate, checkpoint=0.0):
    """Hours of ImageNet in 300 epochs, each with an evaluation and a checkpoint.

    Args:
        chip: a `Chip`.
        chips: number of chips.
        batch: images per step over all chips.
        size: bytes that are reduced.
        input_rate: images/s that one core of the host decodes.
        checkpoint: seconds that saving stops training.
    """
    rate, _ = images_per_second(chip, chips, batch, size, input_rate)
    evaluated = min(EVAL_SPEED * chips * chip.images, chips * chip.cores * input_rate)
    return EPOCHS * (TRAIN_IMAGES / rate + EVAL_IMAGES / evaluated + checkpoint) / 3600


def perfect_hours(chip, chips):
    """The same, if each chip were as fast as one chip alone that never waits."""
    return EPOCHS * (TRAIN_IMAGES + EVAL_IMAGES / EVAL_SPEED) / chips / chip.images / 3600


def last_worthwhile(chip, batch_of, size, input_rate, gain=1.5, most=4096):
    """The first number of chips, a power of two, whose doubling is less than `gain` times as fast.

    Args:
        chip: a `Chip`.
        batch_of: images per step, given the number of chips; a smaller number ends the search.
        size: bytes that are reduced.
        input_rate: images/s that one core of the host decodes.
        gain: the speedup that a doubling has to reach.
        most: where to stop looking.
    """

    def rate(chips):
        return images_per_second(chip, chips, batch_of(chips), size, input_rate)[0]

    chips = 1
    while chips < most and 2 * chips <= batch_of(2 * chips):
        if rate(2 * chips) < gain * rate(chips):
            break
        chips *= 2
    return chips


BATCHES = {
    "batch 256": lambda chips: 256,
    "128 images per chip": lambda chips: 128 * chips,
}


def worked_out_rows(size, checkpoint, input_rate):
    """ImageNet from published numbers of chips, what others measured, and where it stops scaling.

    Args:
        size: bytes that ResNet-50's step reduces.
        checkpoint: seconds that saving stops training.
        input_rate: images/s that one core of the host decodes.
    """
    for name, chips in SLICES:
        for batches, batch_of in BATCHES.items():
            chip, batch = CHIPS[name], batch_of(chips)
            compute, reduce = step_seconds(chip, chips, batch, size)
            rate, bound = images_per_second(chip, chips, batch, size, input_rate)
            taken = hours(chip, chips, batch, size, input_rate, checkpoint)
            perfect = perfect_hours(chip, chips)
            yield timing.Row(
                f"worked out: ImageNet, 300 epochs, {chips} {name}, {batches}",
                "h",
                [taken],
                "perfect scaling",
                [perfect],
                [perfect / taken],
                note=f"{batch // chips} images per chip, {1e3 * compute:.3g} + {1e3 * reduce:.2g}"
                f" ms, {rate / chips / chip.cores:.0f} images/s per core; bound by the {bound}",
            )
    for what, name, chips, batch, published in (
        ("8 A100, 256 images each (NVIDIA)", "A100", 8, 2048, 16_621),
        ("16 TPU v3, 64 images each (Flax)", "TPU v3", 16, 1024, 16_950),
    ):
        rate, bound = images_per_second(CHIPS[name], chips, batch, size, input_rate)
        yield timing.Row(
            f"worked out, and measured by others: {what}",
            "images/s",
            [rate],
            "published",
            [published],
            [published / rate],
            note=f"bound by the {bound}",
        )
    for name in ("A100", "H100", "TPU v4", "TPU v5e"):
        batch_of = BATCHES["batch 256"]
        chips = last_worthwhile(CHIPS[name], batch_of, size, input_rate)
        yield timing.Row(
            f"worked out: chips until twice as many are < 1.5 times as fast, {name}, batch 256",
            "chips",
            [chips],
            note=f"{256 // chips} images per chip",
        )


def measure(options):
    """Yields the rows."""
    yield from device_rows(options)
    yield from process_rows(options)
    task = create_task("resnet50", 8, 64, classes=1000, devices=1)
    state = train.abstract_state(task)
    taken = [time_checkpoint(state) for _ in range(3)]
    megabytes = f"{size_of(state) / 1e6:.0f} MB"
    standing = [seconds for seconds, _ in taken]
    yield timing.Row(f"training stops to save ResNet-50, {megabytes}", "s", standing)
    yield timing.Row(f"checkpoint of ResNet-50 complete, {megabytes}", "s", [t for _, t in taken])
    size, checkpoint = reduced_bytes(state), statistics.median(standing)
    yield timing.Row("bytes that a step of ResNet-50 reduces", "MB", [size / 1e6])
    yield from worked_out_rows(size, checkpoint, options.input_rate)


def main():
    parser = timing.parser(__doc__)
    parser.set_defaults(repeats=1)
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--batch-size", type=int, default=8, help="images per device")
    parser.add_argument("--devices", default="1,2,4,8,16,32,64")
    parser.add_argument("--processes", default="1,2", help="a process takes about 15 s of a core")
    parser.add_argument("--input-rate", type=float, default=650, help="images/s per core")
    options = parser.parse_args()
    timing.run(measure(options), options, "scale")


if __name__ == "__main__":
    main()
