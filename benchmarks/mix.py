"""Times CutMix and Mixup of this and of other libraries, side by side in one run.

    python benchmarks/mix.py                     # ours, and those of requirements-peers.txt
    python benchmarks/mix.py --allocator system  # with page faults for every large batch

Each library mixes the same batch; the turns are interleaved, so that a busy machine slows all of
them alike, and the fastest turn is shown, with its ratio to a plain copy of the images by the same
framework. "pixels alone" leaves out the drawing and the labels, which the copy does not have.
"""

import argparse
import itertools
import operator
import os
import pathlib
import random
import resource
import statistics
import sys
import time
from functools import partial

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import numpy as np

from cutmix_jax import mix
from cutmix_jax.host import keep_freed_memory

CLASSES = {(64, 224, 224, 3): 1000, (256, 32, 32, 3): 100}
DTYPES = ["float32", "uint8"]
TORCH = ("copy, PyTorch", "torchvision v2", "timm + copy", "kornia")


def ours(images, labels, classes):
    """This library; its one calls are jitted."""
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    keys = iter(list(jax.random.split(jax.random.key(0), 10_000)))  # not split while timed
    copy = jax.jit(jnp.copy)

    def call(function, **options):
        return lambda: jax.block_until_ready(
            function(next(keys), images, labels, num_classes=classes, **options)
        )

    yield "copy, JAX", "copy", lambda: copy(images).block_until_ready()
    yield "ours", "CutMix", call(mix.cutmix)
    plans = jax.jit(jax.vmap(lambda key: mix.sample_cutmix(key, len(labels), images.shape[1:3])))(
        jax.random.split(jax.random.key(1), 64)
    )
    plans = itertools.cycle([jax.tree.map(operator.itemgetter(i), plans) for i in range(64)])
    for paste in ("mask", "window"):
        pixels = jax.jit(partial(mix.apply, paste=paste))
        yield (
            f"ours, {paste}",
            "pixels alone",
            lambda f=pixels: f(next(plans), images).block_until_ready(),
        )
    yield "ours, per image", "CutMix each image", call(mix.cutmix, scope="image")
    yield "ours", "Mixup", call(mix.mixup)


def torchvision(images, labels, classes):
    import torch
    from torchvision.transforms import v2

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(labels).long()
    yield "copy, PyTorch", "copy", images.clone
    for name, kind in (("CutMix", v2.CutMix), ("Mixup", v2.MixUp)):
        if name == "CutMix" or images.is_floating_point():  # v2.MixUp refuses uint8
            transform = kind(num_classes=classes)
            yield "torchvision v2", name, lambda t=transform: t(images, labels)


def timm(images, labels, classes):
    import torch
    from timm.data import Mixup

    if images.dtype != np.float32:
        return  # its Mixup for batches of tensors is for floats
    images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(labels).long()
    for name, alphas, mode in (
        ("CutMix", (0.0, 1.0), "batch"),
        ("CutMix each image", (0.0, 1.0), "elem"),
        ("Mixup", (1.0, 0.0), "batch"),
    ):
        transform = Mixup(*alphas, mode=mode, label_smoothing=0.0, num_classes=classes)
        # It changes the batch it is given, so a new one needs a copy first.
        yield "timm + copy", name, lambda t=transform: t(images.clone(), labels)


def keras(images, labels, classes):
    import keras

    images = jnp.asarray(images)
    rows = jax.nn.one_hot(labels, classes)
    for name, kind in (("CutMix each image", "CutMix"), ("Mixup", "MixUp")):
        layer = getattr(keras.layers, kind)(dtype=str(images.dtype), data_format="channels_last")
        batch = {"images": images, "labels": rows}
        yield (
            "Keras (JAX)",
            name,
            lambda la=layer, b=batch: jax.block_until_ready(la(b, training=True)),
        )


def kornia(images, labels, classes):
    import torch
    from kornia.augmentation import RandomCutMixV2, RandomMixUpV2

    if images.dtype != np.float32:
        return  # its augmentations are for floats
    images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(labels).long()
    for name, kind in (("CutMix each image", RandomCutMixV2), ("Mixup", RandomMixUpV2)):
        transform = kind(p=1.0, data_keys=["input", "class"])
        yield "kornia", name, lambda t=transform: t(images, labels)


LIBRARIES = [ours, torchvision, timm, keras, kornia]


def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def measure(rows, rounds):
    """Calls all in turn; returns the least seconds and the median page faults of each."""
    seconds, faults = [[] for _ in rows], [[] for _ in rows]
    order = list(range(len(rows)))
    for turn in range(rounds):
        random.Random(turn).shuffle(order)  # none always comes after the one that empties the cache
        for i in order:
            call = rows[i][2]
            before, start = page_faults(), time.perf_counter()
            result = call()
            seconds[i].append(time.perf_counter() - start)
            faults[i].append(page_faults() - before)
            del result
    return [min(s) for s in seconds], [statistics.median(f) for f in faults]


def prepare(library, images, labels, classes):
    """Returns the rows of a library that run, and why others do not."""
    rows = []
    try:
        for row in library(images, labels, classes):
            try:
                for _ in range(3):
                    row[2]()
                rows.append(row)
            except Exception as error:  # a peer's failure is a finding, not ours to raise
                reason = " ".join(str(error).split())[:90]
                print(f"    {row[0]}, {row[1]}: {type(error).__name__}: {reason}")
    except ImportError as error:
        print(f"    {library.__name__}: not installed ({error}); see requirements-peers.txt")
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--allocator", choices=["kept", "system"], default="kept")
    arguments = parser.parse_args()
    if arguments.allocator == "kept":
        keep_freed_memory()
    cores = len(os.sched_getaffinity(0))
    print(f"JAX {jax.__version__} on {jax.devices()[0].device_kind}, {cores} cores,", end=" ")
    print(f"freed memory {arguments.allocator}, fastest of {arguments.rounds} turns")
    for shape, classes in CLASSES.items():
        for dtype in DTYPES:
            generator = np.random.default_rng(0)
            images = generator.integers(0, 256, shape, dtype=np.uint8).astype(dtype)
            if dtype == "float32":
                images /= 255
            labels = generator.integers(0, classes, shape[0])
            print(f"\n{list(shape)} {dtype}")
            rows = [
                row for library in LIBRARIES for row in prepare(library, images, labels, classes)
            ]
            seconds, faults = measure(rows, arguments.rounds)
            copies = {row[0]: s for row, s in zip(rows, seconds, strict=True) if row[1] == "copy"}
            print(f"    {'':18}{'':18}{'ms':>9}{'us/image':>10}{'x copy':>8}{'faults':>8}")
            for row, second, fault in zip(rows, seconds, faults, strict=True):
                of_torch = row[0] in TORCH and TORCH[0] in copies
                copy = copies[TORCH[0] if of_torch else "copy, JAX"]
                print(
                    f"    {row[0]:18}{row[1]:18}{second * 1e3:9.3f}"
                    f"{second * 1e6 / shape[0]:10.2f}{second / copy:8.2f}{fault:8.0f}"
                )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
