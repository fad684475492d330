"""Train steps on a GPU or TPU, next to PyTorch's if it is installed.

    python -m benchmarks.accelerator --json accelerator.json
    python -m benchmarks.accelerator --cases resnet20:float32:8:32   # a CPU, to try it

Needs jax, flax, optax and this package, and nothing else from requirements.txt. Images are random
bytes on the device. A step gathers the batch, shifts, mirrors and mixes it, and does forward,
backward and SGD with Nesterov momentum. PyTorch's does not shift, mirror or mix. It uses channels
last, autocast against our bfloat16, TF32 like JAX's default, and cudnn.benchmark. All cases compile
at the same time and are measured one after the other. The turns of a case are interleaved in one
process.
"""

import argparse
import concurrent.futures
import fcntl
import functools
import itertools
import json
import math
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

# Memory that JAX allocates in advance is not there for PyTorch.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks import timing, tracing
from benchmarks.networks import CLASSES, torch_network
from cutmix_jax import mix
from cutmix_jax.chips import peak_tflops, train_flops
from cutmix_jax.data import augment, batches, resident
from cutmix_jax.models import create_model
from cutmix_jax.parallel import create_mapping

# MODEL:DTYPE:BATCH:SIDE of the images, in pixels.
CASES = (
    "resnet50:bfloat16:256:224",
    "resnet50:float32:256:224",
    "resnet20:float32:64:32",
    "resnet110:float32:64:32",
    "pyramidnet110:float32:64:32",
    "pyramidnet200:float32:64:32",
)
EXAMPLES = 2048  # on the device
LAG = 2  # calls in flight before their loss is fetched, as in parallel.py
# Modes of torch.compile; None: without it.
PEERS = {"PyTorch": None, "torch.compile": "default", "CUDA graphs": "reduce-overhead"}


def data(size, side):
    """Random bytes and labels: at least four batches."""
    rng = np.random.default_rng(0)
    count = max(EXAMPLES, 4 * size)
    image = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return {"image": image, "label": rng.integers(0, CLASSES, count, dtype=np.int32)}


class Case:
    """A network and its data on one device, shared by all compiled steps that train it."""

    def __init__(self, name, dtype, size, side):
        self.size = size
        self.mapping = create_mapping("pmap", 1)
        self.arrays = self.mapping.replicate(data(size, side))
        self.count = len(self.arrays["label"])
        self.model = create_model(name, CLASSES, dtype=dtype)
        self.optimizer = optax.sgd(0.01, momentum=0.9, nesterov=True)
        # Jitted separately: traced once, then part of every compiled step.
        self.update = jax.jit(self.update)

        def init(key):
            variables = self.model.init(key, jnp.zeros((1, side, side, 3)))
            params, batch_stats = variables["params"], variables["batch_stats"]
            return jnp.zeros([], jnp.int32), params, batch_stats, self.optimizer.init(params)

        self.init = jax.jit(init).lower(jax.random.key(0))

    def update(self, params, batch_stats, opt_state, images, targets):
        """The gradients of one batch, and its loss."""

        def loss_fn(params):
            logits, updates = self.model.apply(
                {"params": params, "batch_stats": batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            loss = optax.softmax_cross_entropy(logits.astype(jnp.float32), targets).mean()
            return loss, updates["batch_stats"]

        (loss, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = self.optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), batch_stats, opt_state, loss

    def train_step(self, cutmix, state, arrays, xs):
        """The new state, and the loss."""
        step, *weights = state
        batch = augment.load_augmented(arrays, xs, 0, load=resident.gather, pad=4, flip=True)
        images = (batch["image"] - 0.5) / 0.25
        targets = jax.nn.one_hot(batch["label"], CLASSES)
        if cutmix:
            key = jax.random.fold_in(jax.random.key(xs["seed"]), step)
            images, targets, _ = mix.cutmix(key, images, targets)
        *weights, loss = self.update(*weights, images, targets)
        return (step + 1, *weights), loss

    def host_batches(self, steps):
        """Indices for calls of `steps` steps each, epoch after epoch."""
        taken = steps * self.size
        for epoch in itertools.count():
            order = batches.permutation(0, epoch, self.count).astype(np.int32)
            order = np.resize(order, max(1, self.count // taken) * taken)
            for index in order.reshape(-1, 1, steps, self.size):
                seed = np.zeros(index.shape[:2], np.int32)
                yield {"index": index, "seed": seed}

    def lower(self, steps, cutmix):
        """The lowered function that takes `steps` steps per call."""
        step = functools.partial(self.train_step, cutmix)

        def call(state, arrays, xs):
            if steps == 1:
                return step(state, arrays, jax.tree.map(lambda x: x[0], xs))
            return lax.scan(lambda state, xs: step(state, arrays, xs), state, xs)

        mapped = self.mapping.map(call, donate_state=True)
        return mapped.lower(self.init.out_info, self.arrays, next(self.host_batches(steps)))


class Training:
    """A compiled step of a case that trains, with its own weights."""

    def __init__(self, case, steps, program, init):
        self.case, self.steps, self.program = case, steps, program
        self.state = case.mapping.replicate(init(jax.random.key(0)))
        self.xs = case.mapping.shard(next(case.host_batches(steps)))

    def take(self, steps):
        """Trains with indices already on the device, and waits for the last step."""
        for _ in range(steps // self.steps):
            self.state, loss = self.program(self.state, self.case.arrays, self.xs)
        jax.block_until_ready(loss)

    def loop(self, steps):
        """Trains with indices from the host, and fetches losses like the training loop."""
        pending = []
        calls = itertools.islice(self.case.host_batches(self.steps), steps // self.steps)
        for xs in self.case.mapping.prefetch(calls):
            self.state, loss = self.program(self.state, self.case.arrays, xs)
            pending.append(loss)
            if len(pending) > LAG:
                jax.device_get(pending.pop(0))
        jax.device_get(pending)


def split_case(case):
    """('resnet20', 'float32', 64, 32) of 'resnet20:float32:64:32'."""
    name, dtype, size, side = case.split(":")
    return name, dtype, int(size), int(side)


def compile_programs(case, programs):
    """Futures of ``{key: Training}`` for steps ``{key: (steps, cutmix)}``, and of the state."""
    lowered = {key: case.lower(*program) for key, program in programs.items()}
    pool = concurrent.futures.ThreadPoolExecutor()
    init = pool.submit(case.init.compile)
    first = pool.submit(lowered["many"].compile)

    def compile_after_first(key):
        first.result()  # the others reuse the convolution algorithms that it has cached
        return lowered[key].compile()

    done = {
        key: first if key == "many" else pool.submit(compile_after_first, key) for key in lowered
    }
    return init, done


def torch_training(name, dtype, size, side, mode):
    """A call that takes that many steps and waits for the last; `mode` is that of torch.compile.

    Raises:
        ImportError: PyTorch is missing, or does not see the accelerator that JAX sees.
    """
    import torch
    from torch.nn import functional as F

    backend = jax.default_backend()
    if backend == "tpu" or (backend == "gpu" and not torch.cuda.is_available()):
        raise ImportError(f"PyTorch {torch.__version__} cannot use this {backend.upper()}")
    device = "cuda" if backend == "gpu" else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    net = torch_network(name).train().to(device, memory_format=torch.channels_last)
    forward = torch.compile(net, mode=mode) if mode else net
    optimizer = torch.optim.SGD(net.parameters(), 0.01, 0.9, nesterov=True)
    arrays = {key: torch.from_numpy(value).to(device) for key, value in data(size, side).items()}
    labels, index = arrays["label"].long(), torch.arange(size, device=device)
    half = dtype == "bfloat16"

    def take(steps):
        for _ in range(steps):
            images = arrays["image"][index].permute(0, 3, 1, 2)  # channels last in memory already
            images = (images.float() / 255 - 0.5) / 0.25
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16, enabled=half):
                loss = F.cross_entropy(forward(images), labels[index])
            loss.backward()
            optimizer.step()
        loss.item()

    take(2)  # compiles
    if device == "cuda":
        torch.cuda.empty_cache()
        # Only from here on: its search would find slower algorithms while others use the GPU.
        torch.backends.cudnn.benchmark = True
    return take


def describe_speed(flops, dtype, size, seconds):
    """Images and operations per second, and the fraction of the chip's peak, if known."""
    speed = f"{size / seconds:,.0f} images/s"
    if flops:
        speed += f", {flops / seconds / 1e12:.3g} TFLOP/s"
        if peak := peak_tflops(jax.devices()[0].device_kind, dtype):
            speed += f", {flops / seconds / peak / 1e12:.1%} of {peak} TFLOP/s"
    return speed


def describe_error(error):
    """Its type, and the first line of its message if it has one."""
    return f"{type(error).__name__}: {str(error)[:150]}".splitlines()[0].removesuffix(": ")


def measure_case(options):
    """Yields the rows of one case."""
    begin = time.perf_counter()
    name, dtype, size, side = split_case(options.cases)
    many = options.many or (1 if jax.default_backend() == "cpu" else 20)
    programs = {"many": (many, False), "one": (1, False), "cutmix": (many, True)}
    peers = options.peers.split(",") if options.peers else []
    flops = size * (train_flops(create_model(name, CLASSES), (side, side, 3)) or 0)
    case = Case(name, dtype, size, side)
    init, compiled = compile_programs(case, programs)
    theirs, missing, compiling = {}, {}, {}
    for peer in peers:
        since = time.perf_counter()
        try:
            theirs[peer] = torch_training(name, dtype, size, side, PEERS[peer])
        except Exception as error:  # any error goes into the table
            missing[peer] = describe_error(error)
        else:
            compiling[peer] = f"first steps in {time.perf_counter() - since:.0f} s"
    compiled = {key: done.result() for key, done in compiled.items()}
    took = f"all steps compiled {time.perf_counter() - begin:.0f} s after the start"
    print(f"{options.cases}: {took}", file=sys.stderr, flush=True)
    if options.turn is not None:
        signal.alarm(0)  # it has compiled, and now waits for the others
        fcntl.flock(options.turn, fcntl.LOCK_EX)
    ours = {
        key: Training(case, programs[key][0], program, init.result())
        for key, program in compiled.items()
    }
    calls = {key: training.take for key, training in ours.items()}
    calls |= {"loop": ours["many"].loop} | theirs
    for call in calls.values():
        call(2 * many)
    begin = time.perf_counter()
    ours["many"].take(2 * many)
    each = (time.perf_counter() - begin) / (2 * many)
    steps = many * max(1, math.ceil(options.seconds / each / many))
    turns = {key: functools.partial(call, steps) for key, call in calls.items()}
    seconds = timing.take_turns(turns, options.repeats, options.turns)
    typical = statistics.median(map(statistics.median, seconds["many"])) / steps
    speed = describe_speed(flops, dtype, size, typical)
    found = tracing.busy(functools.partial(ours["many"].loop, steps))
    busy = f"traced: device busy {found.share:.1%}, longest gap {found.longest_gap * 1e3:.2f} ms"

    def row(label, key, peer, other, **keys):
        return timing.compare(
            f"{name}, {dtype}, {size} x {side} px{label}",
            "ms per step",
            seconds[key],
            peer,
            seconds.get(other, ()),
            scale=1e3 / steps,
            **keys,
        )

    several = f", {many} steps per call"
    for peer in peers:
        goal = ">= 1.3" if peer == "PyTorch" and name != "resnet50" else ">= 1.0"
        note = missing.get(peer, "")
        yield row(several, "many", peer, peer, goal=goal, note=note)
        note = missing.get(peer) or f"peer's {compiling[peer]}"
        yield row("", "one", peer, peer, goal=goal, note=note)
    yield row(several, "many", "one step per call", "one", note=f"{speed}; {took}")
    yield row(", CutMix", "cutmix", "no mix", "many", goal=">= 0.995")
    yield row(", training loop", "loop", "steps alone", "many", goal=">= 0.97", note=busy)


def measure_apart(options):
    """Yields the rows of all cases, each from its own process.

    All compile at once. While they compile, they share the lock of one file. To measure, each takes
    the lock exclusively. So measuring starts after the last has compiled, one case at a time.
    """
    with tempfile.TemporaryDirectory() as folder:
        folder, running = pathlib.Path(folder), {}
        for i, case in enumerate(options.cases.split(",")):
            with (folder / "lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH)
                given = [*sys.argv[1:], "--cases", case, "--json", folder / f"{i}.json"]
                command = [sys.executable, "-m", "benchmarks.accelerator", *map(str, given)]
                command += ["--turn", str(lock.fileno())]
                running[case] = subprocess.Popen(
                    command, pass_fds=[lock.fileno()], stdout=subprocess.DEVNULL
                )
        for i, (case, process) in enumerate(running.items()):
            status, path = process.wait(), folder / f"{i}.json"
            if path.exists():
                yield from (timing.Row(**row) for row in json.loads(path.read_text())["rows"])
            else:
                late = status == -signal.SIGALRM
                note = f"not compiled in {options.patience} s" if late else f"exit status {status}"
                yield timing.Row(case, "ms per step", [], note=note)


def measure(options):
    """Yields the rows."""
    if "," in options.cases:
        return measure_apart(options)
    if options.turn is not None:
        signal.alarm(options.patience)
    return measure_case(options)


def main():
    default = "resnet20:float32:64:32" if jax.default_backend() == "cpu" else ",".join(CASES)
    parser = timing.parser(__doc__)
    parser.add_argument("--cases", default=default, help="MODEL:DTYPE:BATCH:SIDE,...")
    parser.add_argument("--peers", default="PyTorch,torch.compile", help=", ".join(PEERS))
    parser.add_argument("--many", type=int, help="steps per call; 1 on a CPU, 20 elsewhere")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.4, help="approximate length of a turn")
    parser.add_argument("--patience", type=int, default=600, help="seconds that a case may compile")
    parser.add_argument("--turn", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    timing.run(measure(options), options, "accelerator")


if __name__ == "__main__":
    main()
