"""The train step of `main.py`: the cost of mixes and regularizers, its memory, the loop around it.

    python -m benchmarks.train_step
    python -m benchmarks.train_step --model resnet56 --batch-size 128 --turns 40
    python -m benchmarks.train_step --batch-sizes 16,64,256

Each row is a whole step of the same network, batch and data, compared turn by turn with the same
step without the mix or regularizer. Images are random bytes, resident on the device.
"""

import argparse
import dataclasses
import itertools

import jax
import numpy as np

from benchmarks import timing, tracing
from benchmarks.memory import size as size_of
from cutmix_jax import UserError, models, tasks, train
from cutmix_jax.config import base_config
from cutmix_jax.parallel import create_mapping

MIXES = [
    "cutmix",
    "mixup",
    "cutout",
    "manifold_mixup",
    "feature_cutmix",
    "center_gaussian_cutmix",
    "fixed_size_cutmix",
    "one_hot_cutmix",
    "scheduled_cutmix",
    "complete_label_cutmix",
]
REGULARIZERS = {
    "stochastic depth": {"stochastic_depth": 0.2},
    "label smoothing": {"label_smoothing": 0.1},
    "EMA weights": {"ema": 0.999},
}
STEPS = 3  # per turn


def create_task(model, size, side, classes=100, devices=None, **keys):
    """A task on random images of CIFAR's shape, which need no preparation."""
    config = base_config()
    config.model, config.batch_size, config.epochs = model, size, 300
    config.dataset, config.image_size = "digits", side
    config.augment.pad = 0
    config.update_from_flattened_dict(keys)
    task = tasks.create_task(config, create_mapping(config.mapping, devices))
    rng = np.random.default_rng(0)
    count = max(1000, 4 * size)
    arrays = {
        "image": rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8),
        "label": rng.integers(0, classes, count, dtype=np.int32),
    }
    data = dataclasses.replace(
        task.data,
        image_shape=(side, side, 3),
        arrays={"train": arrays},
        num_classes=classes,
        examples={"train": count},
    )
    network = models.from_config(config, classes)
    return dataclasses.replace(task, data=data, model=network)


class Running:
    """A task in training: `take(n)` takes n steps and waits for the last."""

    def __init__(self, task):
        self.task = task
        self.arrays = task.mapping.replicate(task.data.arrays["train"])
        self.step, _ = train.map_steps(task)
        self.state = task.mapping.replicate(train.create_state(task))
        self.xs = task.mapping.shard(next(train.group(task.data.train_batches(0), 1)))
        self.take(1)

    def take(self, steps):
        for _ in range(steps):
            self.state, counters = self.step(self.state, self.arrays, self.xs)
            if self.task.mapping.must_wait:
                jax.block_until_ready(counters)
        jax.block_until_ready(self.state)

    def loop(self, steps):
        """The loop of `train.fit`: batches from the host, counters fetched two calls later."""
        epochs = (self.task.data.train_batches(epoch) for epoch in itertools.count())
        batches = itertools.islice(itertools.chain.from_iterable(epochs), steps)
        pending = []
        for xs in self.task.mapping.prefetch(train.group(batches, 1)):
            self.state, counters = self.step(self.state, self.arrays, xs)
            pending.append(counters)
            if len(pending) > train.LAG or self.task.mapping.must_wait:
                jax.device_get(pending.pop(0))
        jax.device_get(pending)

    def compiled(self):
        return self.step.lower(self.state, self.arrays, self.xs).compile()


def measure(options):
    """Yields the rows."""
    size, side = options.batch_size, options.image_size
    named = f"{options.model}, {size} x {side} px"
    changes = {name: {"mix.name": name} for name in ("none", *options.mixes.split(","))}
    changes |= REGULARIZERS if options.regularizers else {}
    running = {}
    for name, keys in changes.items():
        try:
            running[name] = Running(create_task(options.model, size, side, **keys))
        except UserError as error:
            yield timing.Row(f"step with {name}, {named}", "ms", [], note=str(error))
    calls = {name: (lambda r=r: r.take(STEPS)) for name, r in running.items()}
    calls["loop"] = lambda: running["none"].loop(4 * STEPS)
    calls["alone"] = lambda: running["none"].take(4 * STEPS)
    seconds = timing.take_turns(calls, options.repeats, options.turns)
    for name in running:
        if name != "none":
            yield timing.compare(
                f"step with {name}, {named}",
                "ms",
                seconds[name],
                "no mix",
                seconds["none"],
                scale=1e3 / STEPS,
                goal=">= 0.99" if name == "cutmix" else ">= 0.97" if name in MIXES else "",
            )
    yield timing.compare(
        f"training loop, {named}",
        "ms per step",
        seconds["loop"],
        "steps alone",
        seconds["alone"],
        scale=1e3 / STEPS / 4,
        goal=">= 0.97",
        note="host's batches and counters included",
    )
    found = tracing.busy(lambda: running["none"].loop(4 * STEPS))
    yield timing.Row(
        f"device busy in the training loop, traced, {named}",
        "share",
        [found.share],
        goal=">= 0.97",
        note=f"longest gap {found.longest_gap * 1e3:.2f} ms in {found.seconds:.2f} s",
    )
    yield from memory_rows(running["none"], options)
    for batch in options.batch_sizes.split(","):
        other = Running(create_task(options.model, int(batch), side))
        turns = timing.take_turns({"it": lambda other=other: other.take(2)}, options.repeats, 3)
        yield timing.rates(
            f"{options.model}, batch {batch}", "images/s", 2 * int(batch), turns["it"]
        )


def memory_rows(plain, options):
    """What the compiled step reports about its memory and the state it gets."""
    found = plain.compiled().memory_analysis()
    yield timing.Row(
        "fraction of the state that is donated",
        "share",
        [found.alias_size_in_bytes / size_of(plain.state)],
        goal="1.0",
    )
    task = create_task(options.model, options.batch_size, options.image_size, remat=True)
    again = Running(task).compiled().memory_analysis()
    what = f"temporary memory of {options.model}, batch {options.batch_size}"
    for name, program in ((what, found), (what + ", remat", again)):
        yield timing.Row(name, "MiB", [program.temp_size_in_bytes / 2**20])


def main():
    parser = timing.parser(__doc__)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--turns", type=int, default=10, help="turns of each per repeat")
    parser.add_argument("--mixes", default=",".join(MIXES))
    parser.add_argument("--regularizers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--batch-sizes", default="16,128")
    options = parser.parse_args()
    timing.run(measure(options), options, "train_step")


if __name__ == "__main__":
    main()
