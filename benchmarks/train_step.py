"""Time of one train step, with and without CutMix, interleaved in one run.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --model resnet56 --batch-size 128 --rounds 20

Prints the median and the quartiles over rounds, and the ratio round by round.
"""

import argparse
import dataclasses
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import numpy as np

from cutmix_jax import train
from cutmix_jax.config import base_config, create_mix


def random_images(config, size, classes):
    """A task whose data are random images of CIFAR's shape, so that nothing need be prepared."""
    config.dataset, config.image_size = "digits", size
    task = train.create_task(config)
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.integers(0, 256, (1000, size, size, 3), dtype=np.uint8),
        "label": rng.integers(0, classes, 1000, dtype=np.int32),
    }
    data = dataclasses.replace(
        task.data, image_shape=(size, size, 3), arrays={"train": arrays}, num_classes=classes
    )
    model = train.create_model(config.model, classes)
    return dataclasses.replace(task, data=data, model=model)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=5, help="steps of each kind in a round")
    options = parser.parse_args()

    config = base_config()
    config.model, config.batch_size = options.model, options.batch_size
    task = random_images(config, options.image_size, classes=100)
    arrays = task.mapping.replicate(task.data.arrays["train"])
    xs = task.mapping.shard(next(train.group(task.data.train_batches(0), 1)))
    runs = {}
    for name in ("none", "cutmix"):
        config = config.copy_and_resolve_references()
        config.mix.name = name
        mixed = dataclasses.replace(task, config=config, mix=create_mix(config))
        step, _ = train.map_steps(mixed)
        state = task.mapping.replicate(train.create_state(mixed))
        state, _ = jax.block_until_ready(step(state, arrays, xs))
        runs[name] = [step, state, []]

    for _ in range(options.rounds):
        for run in runs.values():
            step, state, times = run
            start = time.perf_counter()
            for _ in range(options.steps):
                state, counters = step(state, arrays, xs)
                if task.mapping.must_wait:
                    jax.block_until_ready(counters)
            jax.block_until_ready(state)
            times.append((time.perf_counter() - start) / options.steps)
            run[1] = state

    device = jax.devices()[0]
    print(
        f"{options.model}, batch {options.batch_size}, {options.image_size} px, "
        f"{jax.device_count()} x {device.device_kind}, jax {jax.__version__}, "
        f"{options.rounds} rounds of {options.steps} steps"
    )
    for name, (_, _, times) in runs.items():
        low, middle, high = np.percentile(1e3 * np.array(times), [25, 50, 75])
        print(f"{name:<8}{middle:9.2f} ms a step   (quartiles {low:.2f} to {high:.2f})")
    ratio = np.array(runs["cutmix"][2]) / np.array(runs["none"][2])
    low, middle, high = np.percentile(100 * (ratio - 1), [25, 50, 75])
    print(f"CutMix costs {middle:+.2f} %  (quartiles {low:+.2f} to {high:+.2f})")


if __name__ == "__main__":
    main()
