"""CutMix and Mixup of this and other libraries, in one run.

    python -m benchmarks.mix            # next to those of requirements-peers.txt
    python -m benchmarks.mix --rounds 7 --openmixup FOLDER    # and those of a checkout of OpenMixup

Each library mixes the same batch, and their turns are interleaved. The rows with a plain copy of
the images by JAX show what mixing adds to writing a new batch. "pixels alone" leaves out sampling
and labels, which a copy does not have. The first row shows the page faults that
`cutmix_jax.host.keep_freed_memory` avoids at every large batch.
"""

import importlib.util
import itertools
import json
import operator
import os
import re
import subprocess
import sys
import time
import types
from functools import partial

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from benchmarks.startup import ROOT
from cutmix_jax import mix
from cutmix_jax.paths import local_path

CLASSES = {(64, 224, 224, 3): 1000, (256, 32, 32, 3): 100}
DTYPES = ["float32", "uint8"]
COPY = "copy"  # a kind that writes the images without mixing
# Other mixes, on float images: the kind, its name in `create_mix`, and its options.
NAMED = {
    "ResizeMix": ("resizemix", {}),
    "ResizeMix per image": ("resizemix", {"scope": "image"}),
    "HMix": ("hmix", {}),
    "GMix": ("gmix", {}),
    "GridMix": ("gridmix", {}),
    "GridMix per image": ("gridmix", {"scope": "image"}),
    "FMix": ("fmix", {}),
    "FMix per image": ("fmix", {"scope": "image"}),
    "CowMix per image": ("cowmix", {}),
    "SaliencyMix per image": ("saliencymix", {}),
    "random erasing per image": ("erasing", {"prob": 1.0}),
}
# Seconds and page faults of CutMix in a process that keeps freed memory, or that does not.
ALLOCATION = """
import json, resource, statistics, sys, time
import jax, jax.numpy as jnp
from cutmix_jax import host, mix

if sys.argv[1] == "kept":
    host.keep_freed_memory()
images, labels = jnp.zeros((64, 224, 224, 3)), jnp.arange(64)
seconds, faults = [], []
for key in list(jax.random.split(jax.random.key(0), 14)):
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
    jax.block_until_ready(mix.cutmix(key, images, labels, num_classes=1000))
    seconds.append(time.perf_counter() - begin)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(json.dumps([seconds[3:], statistics.median(faults[3:])]))
"""


def ours(images, labels, classes):
    """This library, with jitted calls."""
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    keys = itertools.cycle(list(jax.random.split(jax.random.key(0), 64)))  # not timed
    copy = jax.jit(jnp.copy)

    def call(function, **options):
        return lambda: jax.block_until_ready(
            function(next(keys), images, labels, num_classes=classes, **options)
        )

    yield COPY, lambda: copy(images).block_until_ready()
    yield "CutMix", call(mix.cutmix)
    plans = jax.jit(jax.vmap(lambda key: mix.sample_cutmix(key, len(labels), images.shape[1:3])))(
        jax.random.split(jax.random.key(1), 64)
    )
    plans = itertools.cycle([jax.tree.map(operator.itemgetter(i), plans) for i in range(64)])
    for paste in ("mask", "window"):
        pixels = jax.jit(partial(mix.apply, paste=paste))
        yield (
            f"pixels alone, {paste}",
            lambda f=pixels: f(next(plans), images).block_until_ready(),
        )
    yield "CutMix per image", call(mix.cutmix, scope="image")
    yield "Mixup", call(mix.mixup)
    if images.dtype == jnp.float32:
        for kind in NAMED:
            mixed = named(kind, classes)
            yield kind, lambda f=mixed: jax.block_until_ready(f(next(keys), images, labels))


def named(kind, classes):
    """A jitted function `(key, images, labels) -> (images, label rows)`, from `create_mix`."""
    name, options = NAMED[kind]
    chosen = mix.create_mix(name, **options)

    @jax.jit
    def call(key, images, labels):
        plans = chosen.sample(key, len(labels), images.shape[1:3], images=images)
        images, rows = mix.apply_at(plans, "image", images), jax.nn.one_hot(labels, classes)
        for plan in plans:
            rows = mix.mix_labels(plan, rows)
        return images, rows

    return call


def torch_batch(images, labels):
    """The batch in PyTorch, channels first, as its libraries expect it."""
    import torch

    torch.set_num_threads(timing.cores())
    images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return images, torch.from_numpy(labels).long()


def torchvision(images, labels, classes):
    from torchvision.transforms import v2

    images, labels = torch_batch(images, labels)
    yield COPY, images.clone
    for kind, transform in (("CutMix", v2.CutMix), ("Mixup", v2.MixUp)):
        yield kind, partial(transform(num_classes=classes), images, labels)


def timm(images, labels, classes):
    from timm.data import Mixup

    if images.dtype != np.float32:
        raise TypeError("its Mixup for batches of tensors is for floats")
    images, labels = torch_batch(images, labels)
    for kind, alphas, mode in (
        ("CutMix", (0.0, 1.0), "batch"),
        ("CutMix per image", (0.0, 1.0), "elem"),
        ("Mixup", (1.0, 0.0), "batch"),
    ):
        transform = Mixup(*alphas, mode=mode, label_smoothing=0.0, num_classes=classes)
        # It works in place, so keeping the batch needs a copy first.
        yield kind, lambda t=transform: t(images.clone(), labels)


def keras(images, labels, classes):
    import keras

    images = jnp.asarray(images)
    rows = jax.nn.one_hot(labels, classes)
    for kind, name in (("CutMix per image", "CutMix"), ("Mixup", "MixUp")):
        layer = getattr(keras.layers, name)(dtype=str(images.dtype), data_format="channels_last")
        batch = {"images": images, "labels": rows}
        yield kind, lambda la=layer, b=batch: jax.block_until_ready(la(b, training=True))


def kornia(images, labels, classes):
    from kornia.augmentation import RandomCutMixV2, RandomMixUpV2

    if images.dtype != np.float32:
        raise TypeError("its augmentations are for floats")
    images, labels = torch_batch(images, labels)
    for kind, name in (("CutMix per image", RandomCutMixV2), ("Mixup", RandomMixUpV2)):
        yield kind, partial(name(p=1.0, data_keys=["input", "class"]), images, labels)


def openmixup(folder, images, labels, classes):
    """OpenMixup's functions, each from its own file: the package itself needs mmcv."""
    import torch

    if images.dtype != np.float32:
        raise TypeError("its mixes are for floats")
    helpers = types.ModuleType("openmixup.models.utils")
    helpers.batch_shuffle_ddp = None  # for several processes
    helpers.to_2tuple = lambda x: x if isinstance(x, tuple) else (x, x)
    for name in ("openmixup", "openmixup.models"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules.setdefault(helpers.__name__, helpers)
    if not torch.cuda.is_available():  # it moves indices to a GPU, and has no option not to
        torch.Tensor.cuda = lambda self: self
    images, labels = torch_batch(images, labels)
    for kind, name, options in (
        ("CutMix", "cutmix", {}),
        ("Mixup", "mixup", {}),
        ("ResizeMix", "resizemix", {}),
        ("GridMix", "gridmix", {}),
        ("FMix", "fmix", {"size": tuple(images.shape[2:])}),
    ):
        path = folder / "openmixup" / "models" / "augments" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"openmixup_{name}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        # Most work in place, so keeping the batch needs a copy first.
        function = partial(getattr(module, name), **options)
        yield kind, lambda f=function: f(images.clone(), labels)


LIBRARIES = {
    "torchvision v2": torchvision,
    "timm + copy": timm,
    "Keras (JAX)": keras,
    "kornia": kornia,
}


def explain(error):
    """One line on why a peer has no time."""
    plain = re.sub(r"\x1b\[\d*m", "", str(error))  # Keras colors its messages
    reason = " ".join(plain.split())[:110]
    if isinstance(error, ImportError):
        return f"not installed ({reason}): pip install -r requirements-peers.txt"
    return f"{type(error).__name__}: {reason}"


def warm(calls):
    """Calls each function a few times.

    Returns:
        ``({kind: call} of those that run, {kind: why} of the others)``.
    """
    running, refused = {}, {}
    for kind, call in calls:
        try:
            for _ in range(3):
                call()
        except Exception as error:  # report the failure of a peer instead of raising it
            refused[kind] = explain(error)
        else:
            running[kind] = call
    return running, refused


def batch_rows(case, batch, libraries, options):
    """Yields the rows of one batch, without those `libraries` that are not installed."""
    calls = {("ours", kind): call for kind, call in warm(ours(*batch))[0].items()}
    kinds, refused = [kind for _, kind in calls if kind != COPY], {}
    for name, library in list(libraries.items()):
        try:
            running, reasons = warm(library(*batch))
        except Exception as error:
            if isinstance(error, ImportError):
                del libraries[name]
                yield timing.Row("CutMix and Mixup", "ms", [], name, note=explain(error))
            else:
                yield timing.Row(f"CutMix and Mixup, {case}", "ms", [], name, note=explain(error))
            continue
        calls |= {(name, kind): call for kind, call in running.items()}
        refused |= {(name, kind): reason for kind, reason in reasons.items()}
    seconds = timing.take_turns(calls, options.repeats, options.rounds)
    for kind in (COPY, *kinds):
        mine = seconds["ours", kind]
        if kind != COPY:
            yield timing.compare(
                f"{kind}, {case}", "ms", mine, "copy, JAX", seconds["ours", COPY], scale=1e3
            )
        for name in libraries:
            note = refused.get((name, kind), "")
            if note or (name, kind) in seconds:
                yield timing.compare(
                    f"{kind}, {case}",
                    "ms",
                    mine,
                    "copy, PyTorch" if kind == COPY else name,
                    seconds.get((name, kind), ()),
                    scale=1e3,
                    goal="" if kind == COPY else ">= 1.0",
                    note=note,
                )


def allocator_row(repeats):
    """CutMix of a large batch in processes that keep freed memory, and in some that do not."""
    seconds, faults = {"kept": [], "returned": []}, {"kept": [], "returned": []}
    for _ in range(repeats):
        for name in seconds:
            command = [sys.executable, "-c", ALLOCATION, name]
            done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
            taken, faulted = json.loads(done.stdout)
            seconds[name].append(taken)
            faults[name].append(faulted)
    return timing.compare(
        "CutMix, 64 x 224 px, float32, freed memory kept",
        "ms",
        seconds["kept"],
        "returned to the system",
        seconds["returned"],
        scale=1e3,
        note="page faults per call: "
        + ", ".join(f"{name} {timing.spread(found)}" for name, found in faults.items()),
    )


def compile_row(repeats):
    """CPU seconds to trace and compile CutMix, each time for another image size."""
    seconds = []
    for side in range(32, 32 + repeats):
        images = jax.ShapeDtypeStruct((8, side, side, 3), jnp.float32)
        labels = jax.ShapeDtypeStruct((8,), jnp.int32)
        step = jax.jit(partial(mix.cutmix, num_classes=10, paste="window"))
        begin = time.process_time()
        step.lower(jax.random.key(0), images, labels).compile()
        seconds.append(time.process_time() - begin)
    return timing.Row("compiling CutMix, window", "s", seconds, goal="<= 2")


def method_row(kind):
    """CPU seconds to trace and compile a mix of `NAMED`, and the memory that it needs."""
    images = jax.ShapeDtypeStruct((64, 224, 224, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((64,), jnp.int32)
    begin = time.process_time()
    compiled = named(kind, 1000).lower(jax.random.key(0), images, labels).compile()
    seconds, size = time.process_time() - begin, compiled.memory_analysis().temp_size_in_bytes
    note = f"{size / 2**20:.0f} MiB besides images in and out, for 64 x 224 px, float32"
    return timing.Row(f"compiling {kind}", "s", [seconds], note=note)


def measure(options):
    """Yields the rows."""
    yield compile_row(options.repeats)
    yield from map(method_row, NAMED)
    yield allocator_row(options.repeats)
    libraries = dict(LIBRARIES)
    if options.openmixup:
        libraries["OpenMixup"] = partial(openmixup, local_path(options.openmixup, "--openmixup"))
    for shape, classes in CLASSES.items():
        for dtype in DTYPES:
            generator = np.random.default_rng(0)
            images = generator.integers(0, 256, shape, dtype=np.uint8).astype(dtype)
            if dtype == "float32":
                images /= 255
            batch = images, generator.integers(0, classes, shape[0]), classes
            case = f"{shape[0]} x {shape[1]} px, {dtype}"
            yield from batch_rows(case, batch, libraries, options)


def main():
    parser = timing.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=21, help="turns of each per repeat")
    parser.add_argument("--openmixup", metavar="FOLDER", help="a checkout of OpenMixup")
    options = parser.parse_args()
    timing.run(measure(options), options, "mix")


if __name__ == "__main__":
    main()
