"""Input: streamed images a second and a core, memory over epochs, augmentation of resident data.

    python -m benchmarks.input --data-dir PATH
    python -m benchmarks.input --data-dir PATH --dataset imagenet2012 --images 2048

Streams as `configs/imagenet.py` does (random-resized crop to 224) beside torchvision's DataLoader
over the same bytes in memory. Each turn is a whole pass, with what it takes to start one.
"""

import contextlib
import dataclasses
import importlib
import io
import os
import pathlib
import time

import jax

from benchmarks import scale, timing, train_step
from configs.imagenet import get_config
from cutmix_jax.data import Shards, find_set
from cutmix_jax.data.records import parse_example
from cutmix_jax.data.settings import read_settings
from cutmix_jax.data.streaming import open_streaming

BATCH = 64
FED = ("A100", "H100", "TPU v4")  # chips that the cores have to feed


def repeated(split, count):
    """The split with its records over and over, `count` in all."""
    labels = None if split.labels is None else split.labels[[i % split.count for i in range(count)]]
    return dataclasses.replace(
        split, count=count, read=lambda i: split.read(i % split.count), labels=labels
    )


def open_photographs(options):
    """(streaming data of `options.images` images, the split that they come from)."""
    config = get_config()
    config.dataset, config.batch_size = options.dataset, BATCH
    config.data_dir = str(options.data_dir)
    found = find_set(options.dataset, config.data_dir, None)
    split = repeated(found.splits["train"], options.images)
    found = dataclasses.replace(found, splits={**found.splits, "train": split})
    return open_streaming(read_settings(config), found, Shards()), split


def passes(data):
    """A call that streams one epoch, the next at each call."""
    epochs = iter(range(10**6))

    def call():
        for _ in data.train_batches(next(epochs)):
            pass

    return call


class Photographs:
    """A data set of torchvision's kind over encoded images; workers get a copy of it."""

    def __init__(self, encoded, prepare):
        self.encoded, self.prepare = encoded, prepare

    def __len__(self):
        return len(self.encoded)

    def __getitem__(self, i):
        from PIL import Image

        return self.prepare(Image.open(io.BytesIO(self.encoded[i])).convert("RGB")), i


def torchvision_pass(split, workers):
    """The same by torchvision's DataLoader; raises ImportError where it is not installed."""
    import torch
    from torchvision import transforms

    torch.set_num_threads(1)
    encoded = [split.read(i) for i in range(split.count)]
    if split.labels is None:
        encoded = [parse_example(data)["image"].bytes_list.value[0] for data in encoded]
    steps = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    prepare = transforms.Compose([*steps, transforms.PILToTensor()])
    # A forked worker could hang, since JAX and TensorFlow have threads by now.
    more = {"multiprocessing_context": "spawn", "persistent_workers": True} if workers else {}
    data = Photographs(encoded, prepare)
    loader = torch.utils.data.DataLoader(
        data, BATCH, shuffle=True, drop_last=True, num_workers=workers, **more
    )

    def call():
        for _ in loader:
            pass

    return call


def counted(call, spent):
    """The call, which also appends to `spent` the processor's seconds of this process."""

    def counting():
        begin = time.process_time()
        call()
        spent.append(time.process_time() - begin)

    return counting


def per_core(seconds, cores, images):
    """Milliseconds of a core for each image, ``[repeats][rounds]``, from seconds of a pass."""
    return [[1e3 * cores * s / images for s in turns] for turns in seconds]


def streaming_rows(data, split, options):
    """Images a second and a core beside torchvision's, and the cores that feed a chip."""
    cores, images = timing.cores(), data.steps_per_epoch * BATCH
    calls, used, missing = {"ours": passes(data)}, {"ours": cores}, ""
    for workers in (0, cores):
        name = f"torchvision, {workers} workers"
        try:
            calls[name], used[name] = torchvision_pass(split, workers), max(workers, 1)
        except ImportError as error:
            missing = f"not installed ({error}): pip install -r requirements-peers.txt"
    for call in calls.values():
        call()
    spent = {name: [] for name in calls}
    counting = {name: counted(call, spent[name]) for name, call in calls.items()}
    seconds = timing.take_turns(counting, options.repeats, options.rounds)
    what, rounds = f"{options.dataset} to 224 px", options.rounds
    told = {"goal": ">= 2", "note": missing}
    passed = {name: per_core(turns, used[name], images) for name, turns in seconds.items()}
    busy = {
        name: per_core([turns[i : i + rounds] for i in range(0, len(turns), rounds)], 1, images)
        for name, turns in spent.items()
        if name in ("ours", "torchvision, 0 workers")  # workers are processes of their own
    }
    for of, cost in ((f"streaming {what}, time of cores", passed), (f"{what}, CPU time", busy)):
        for peer in [name for name in cost if name != "ours"] or ["torchvision"]:
            yield timing.compare(of, "ms an image", cost["ours"], peer, cost.get(peer, ()), **told)
    for name, turns in busy.items():
        yield timing.rates(f"{what}, {name}", "images a CPU second", 1e3, turns)
    rates = timing.rates("", "", 1e3, busy["ours"]).ours
    for name in FED:
        speed = scale.CHIPS[name].images
        told = f"{speed} images/s; docs/scaling.md names the source"
        yield timing.Row(f"ResNet-50 on one {name}", "cores", cores_for(speed, rates), note=told)


def cores_for(speed, rates):
    """Cores that stream `speed` images a second, for each rate of one core."""
    return [speed / rate for rate in rates]


def resident_rows(options):
    """Gather, shift and mirror of a batch, as a share of the step that they are part of."""
    keys = {"augment.pad": 4, "augment.flip": True}
    task = train_step.create_task("resnet20", BATCH, 32, **keys)
    running = train_step.Running(task)
    load, arrays = jax.jit(task.data.load_train), jax.device_put(task.data.arrays["train"])
    xs = {name: value[0] for name, value in next(task.data.train_batches(0)).items()}
    calls = {
        "augment": lambda: jax.block_until_ready(load(arrays, xs, 0)),
        "step": lambda: running.take(1),
    }
    for call in calls.values():
        call()
    seconds = timing.take_turns(calls, options.repeats, 20)
    row = timing.compare("", "", seconds["augment"], "", seconds["step"])
    what = f"gather, shift and mirror of {BATCH} x 32 px, of a step of resnet20"
    yield timing.Row(what, "%", [100 / ratio for ratio in row.ratios], goal="< 2")


def resident_set():
    """Bytes of memory that this process holds; None where the system does not tell."""
    path = pathlib.Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else None


def growth(sizes):
    """Per cent by which each size exceeds the first."""
    return [100 * (size / sizes[0] - 1) for size in sizes[1:]]


def memory_row(data, options):
    """The process after each epoch, against what it was after the first."""
    call, sizes = passes(data), []
    for _ in range(options.epochs):
        call()
        sizes.append(resident_set())
    what = f"memory over {options.epochs - 1} more epochs of {data.examples['train']} images"
    if None in sizes:
        return timing.Row(what, "%", [], goal="< 2", note="this system does not tell it")
    note = f"{sizes[0] / 2**20:.0f} MiB after the first"
    return timing.Row(what, "%", growth(sizes), goal="< 2", note=note)


def measure(options):
    """Yields the rows."""
    # Before TensorFlow: imported after it, PyTorch ends the process in a segmentation fault.
    with contextlib.suppress(ImportError):
        importlib.import_module("torchvision")
    data, split = open_photographs(options)
    yield memory_row(data, options)
    yield from streaming_rows(data, split, options)
    yield from resident_rows(options)


def main():
    parser = timing.parser(__doc__)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--dataset", default="imagenet_photos")
    parser.add_argument("--images", type=int, default=1024, help="in a pass, over and over")
    parser.add_argument("--rounds", type=int, default=1, help="passes of each in a repeat")
    parser.add_argument("--epochs", type=int, default=5, help="passes watched for memory")
    options = parser.parse_args()
    timing.run(measure(options), options, "input")


if __name__ == "__main__":
    main()
