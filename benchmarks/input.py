"""Input: streamed images per second and core, memory over epochs, augmentation of resident data.

    python -m benchmarks.input --data-dir PATH
    python -m benchmarks.input --data-dir PATH --dataset imagenet2012 --images 2048

Streams like `configs/imagenet.py` (random-resized crop to 224), next to torchvision, timm, DALI and
tf.data on the same bytes in memory. Each turn is a whole pass, including its start.
"""

import contextlib
import dataclasses
import functools
import importlib
import io
import os
import pathlib
import time
import unittest.mock as mock
from collections.abc import Callable

import jax
import numpy as np
from PIL import Image

from benchmarks import scale, timing, train_step
from configs.imagenet import get_config
from cutmix_jax.data import Shards, find_set, image_files, records, streaming

BATCH, SIDE = 64, 224
COPIES, QUALITY = 256, 90  # shorter side and JPEG quality of the smaller copies
FED = ("A100", "H100", "TPU v4")  # chips that the cores feed


def repeated(split, count):
    """The split with its records repeated up to `count`."""
    labels = None if split.labels is None else split.labels[[i % split.count for i in range(count)]]
    read, name = (functools.partial(again, call, split.count) for call in (split.read, split.name))
    return dataclasses.replace(split, count=count, read=read, name=name, labels=labels)


def again(call, count, i):
    """Calls `call` with the original of this repeated record."""
    return call(i % count)


def smaller(split):
    """The split as files in memory whose shorter side has `COPIES` pixels."""
    encoded, labels = [], []
    for i in range(split.count):
        pixels, label = records.decode_record(split, i, 3)
        image, file = Image.fromarray(pixels), io.BytesIO()
        if (factor := COPIES / min(image.size)) < 1:
            image = image.resize([round(factor * side) for side in image.size], Image.BICUBIC)
        image.save(file, "jpeg", quality=QUALITY)
        encoded.append(file.getvalue())
        labels.append(label)
    return dataclasses.replace(split, read=encoded.__getitem__, labels=np.array(labels, np.int32))


def open_photographs(options, change=lambda split: split, processes=0):
    """(streaming data of `options.images` images, the split that they come from)."""
    config = get_config()
    config.reader_processes = processes
    config.dataset, config.batch_size = options.dataset, BATCH
    config.data_dir = str(options.data_dir)
    found = find_set(options.dataset, config.data_dir, None)
    split = repeated(change(found.splits["train"]), options.images)
    found = dataclasses.replace(found, splits={**found.splits, "train": split})
    return streaming.open_streaming(config, found, Shards()), split


def passes(data):
    """A function that streams the next epoch at each call."""
    epochs = iter(range(10**6))

    def call():
        for _ in data.train_batches(next(epochs)):
            pass

    return call


class Photographs:
    """A dataset for PyTorch's DataLoader over encoded images; workers get a copy of it."""

    def __init__(self, encoded, prepare):
        self.encoded, self.prepare = encoded, prepare

    def __len__(self):
        return len(self.encoded)

    def __getitem__(self, i):
        return self.prepare(self.encoded[i]), i


def open_by_pillow(data):
    return Image.open(io.BytesIO(data)).convert("RGB")


def open_as_tensor(data):
    import torch
    from torchvision import io as images

    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return images.decode_image(encoded, images.ImageReadMode.RGB)


def torchvision_pass(encoded, workers, tensors):
    """The same with torchvision; raises ImportError if it is not installed."""
    from torchvision.transforms import v2

    steps = [v2.RandomResizedCrop(SIDE, antialias=True), v2.RandomHorizontalFlip()]
    steps = [open_as_tensor, *steps] if tensors else [open_by_pillow, *steps, v2.PILToTensor()]
    return loader_pass(encoded, workers, v2.Compose(steps))


def timm_pass(encoded, workers):
    """The same with timm's transforms and collation; raises ImportError if it is not installed."""
    from timm import data

    steps = data.create_transform(
        SIDE, is_training=True, use_prefetcher=True, color_jitter=None, interpolation="bilinear"
    )
    steps.transforms.insert(0, open_by_pillow)
    return loader_pass(encoded, workers, steps, collate_fn=data.loader.fast_collate)


def loader_pass(encoded, workers, prepare, **options):
    """A pass of PyTorch's DataLoader."""
    import torch

    torch.set_num_threads(1)
    # A forked worker could hang, because JAX has threads now.
    more = {"multiprocessing_context": "spawn", "persistent_workers": True} if workers else {}
    loader = torch.utils.data.DataLoader(
        Photographs(encoded, prepare),
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        **more,
        **options,
    )

    def call():
        for _ in loader:
            pass

    return call


def dali_pass(encoded):
    """The same with DALI's operators for CPUs; raises ImportError if it is not installed."""
    from nvidia import dali

    files = [np.frombuffer(data, np.uint8) for data in encoded]
    fn, steps = dali.fn, len(files) // BATCH

    @dali.pipeline_def(batch_size=BATCH, num_threads=timing.cores(), device_id=None)
    def pipeline():
        source = fn.external_source(lambda info: files[info.idx_in_epoch % len(files)], batch=False)
        images = fn.decoders.image_random_crop(
            source, random_area=(0.08, 1.0), random_aspect_ratio=(3 / 4, 4 / 3)
        )
        images = fn.resize(images, size=(SIDE, SIDE), antialias=True)
        return fn.flip(images, horizontal=fn.random.coin_flip())

    made = pipeline()
    made.build()

    def call():
        for _ in range(steps):
            made.run()

    return call


def tensorflow_pass(encoded):
    """The same with tf.data; raises ImportError if TensorFlow is not installed."""
    import tensorflow as tf

    draw = functools.partial(
        tf.image.sample_distorted_bounding_box,
        bounding_boxes=tf.zeros((1, 0, 4)),
        use_image_if_no_bounding_boxes=True,
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
        max_attempts=10,
    )

    def prepare(data):
        begin, size, _ = draw(tf.image.extract_jpeg_shape(data))
        window = tf.concat([begin[:2], size[:2]], 0)
        image = tf.image.decode_and_crop_jpeg(data, window, 3, dct_method="INTEGER_ACCURATE")
        image = tf.image.resize(image, (SIDE, SIDE), antialias=True)
        return tf.cast(tf.round(tf.image.random_flip_left_right(image)), tf.uint8)

    stream = tf.data.Dataset.from_tensor_slices(encoded).shuffle(len(encoded))
    stream = stream.map(prepare, tf.data.AUTOTUNE).batch(BATCH, True).prefetch(2)

    def call():
        for _ in stream.as_numpy_iterator():
            pass

    return call


@dataclasses.dataclass(frozen=True)
class Reader:
    """A reader that reads all images in one call.

    Attributes:
        call: reads all images.
        cores: how many it may use.
        goals: for our ratio, from the same files and from smaller copies.
        alone: whether this process does all the work.
    """

    call: Callable
    cores: int
    goals: tuple[str, str] = ("", "")
    alone: bool = True


def peers(encoded):
    """Yields (name, a function that returns the reader or raises ImportError)."""
    for path, tensors, goals in (
        ("Pillow", False, (">= 2", ">= 4")),
        ("tensors", True, (">= 1.5", "")),
    ):
        for workers in (0, timing.cores()):
            yield (
                f"torchvision by {path}, {workers} workers",
                lambda tensors=tensors, workers=workers, goals=goals: Reader(
                    torchvision_pass(encoded, workers, tensors), max(workers, 1), goals, not workers
                ),
            )
    for workers in (0, timing.cores()):
        yield (
            f"timm, {workers} workers",
            lambda workers=workers: Reader(
                timm_pass(encoded, workers), max(workers, 1), alone=not workers
            ),
        )
    yield "DALI on the CPU", lambda: Reader(dali_pass(encoded), timing.cores())
    yield "tf.data", lambda: Reader(tensorflow_pass(encoded), timing.cores())


def counted(call, spent):
    """The same call, which also appends this process's CPU seconds to `spent`."""

    def counting():
        begin = time.process_time()
        call()
        spent.append(time.process_time() - begin)

    return counting


def per_core(seconds, cores, images):
    """Milliseconds of one core per image, ``[repeats][rounds]``, from seconds per pass."""
    return [[1e3 * cores * s / images for s in turns] for turns in seconds]


OURS = ("ours", f"ours from {COPIES} px")


def streaming_rows(data, split, options):
    """Images per second and core, next to other readers, and the cores that feed a chip."""
    copies, _ = open_photographs(options, smaller)
    readers = {
        name: Reader(passes(of), timing.cores())
        for name, of in zip(OURS, (data, copies), strict=True)
    }
    missing = {}
    for name, make in peers([records.encoded(split, i)[0] for i in range(split.count)]):
        try:
            readers[name] = make()
        except ImportError as error:
            missing[name] = f"not installed ({error}): pip install -r requirements-peers.txt"
    spent = {name: [] for name in readers}
    calls = {name: counted(reader.call, spent[name]) for name, reader in readers.items()}
    for reader in readers.values():
        reader.call()
    seconds = timing.take_turns(calls, options.repeats, options.rounds)
    images = data.steps_per_epoch * BATCH
    passed = {name: per_core(seconds[name], readers[name].cores, images) for name in readers}
    busy = {
        name: per_core(np.reshape(spent[name], (options.repeats, -1)).tolist(), 1, images)
        for name in readers
        if readers[name].alone
    }
    what = f"{options.dataset} to {SIDE} px"
    for of, cost in ((f"streaming {what}, time of cores", passed), (f"{what}, CPU time", busy)):
        for i, ours in enumerate(OURS):
            for name in [name for name in cost if name not in OURS]:
                label, goal = f"{of}{ours.removeprefix('ours')}", readers[name].goals[i]
                if goal or ours == OURS[0]:
                    yield timing.compare(
                        label, "ms per image", cost[ours], name, cost[name], goal=goal
                    )
    for name, why in missing.items():
        yield timing.Row(what, "ms per image", [], name, note=why)
    for name, turns in busy.items():
        yield timing.rates(f"{what}, {name}", "images per CPU second", 1e3, turns)
    for ours in OURS:
        rates = timing.rates("", "", 1e3, busy[ours]).ours
        for name in FED:
            speed = scale.CHIPS[name].images
            note = f"{speed} images/s; docs/scaling.md names the source"
            of = f"ResNet-50 on one {name}{ours.removeprefix('ours')}"
            yield timing.Row(of, "cores", cores_for(speed, rates), note=note)


def constant(value):
    """A function that always returns this value."""
    return lambda *args: value


def lock_rows(data, options):
    """The limit of one process: the work that threads or processes cannot do in parallel."""
    pixels = np.zeros((375, 500, 3), np.uint8)
    crop = pixels[:SIDE, :SIDE].copy()
    processes = timing.cores()
    helped = passes(open_photographs(options, processes=processes)[0])
    alone, images = passes(data), data.steps_per_epoch * BATCH
    helped()

    def without_pixels():
        with (
            mock.patch.object(image_files, "_decode_jpeg", constant(pixels)),
            mock.patch.object(image_files, "crop_and_resize", constant(crop)),
        ):
            alone()

    for what, call in (
        ("all but decoding and resizing, in this process", without_pixels),
        (f"this process, while {processes} others decode", helped),
    ):
        spent = []
        for _ in range(options.repeats):
            counted(call, spent)()
        turns = per_core([[seconds] for seconds in spent], 1, images)
        yield timing.Row(f"{what}, CPU time", "ms per image", [turn for (turn,) in turns])
        yield timing.rates(f"{what}: the rate ends at", "images/s", 1e3, turns)


def cores_for(speed, rates):
    """Cores that stream `speed` images per second, for each rate of one core."""
    return [speed / rate for rate in rates]


def resident_rows(options):
    """Gather, shift and mirror of a batch, as a fraction of their step."""
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
    """Bytes of memory that this process holds; None if the system does not report it."""
    path = pathlib.Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else None


def growth(sizes):
    """Percent by which each size exceeds the first."""
    return [100 * (size / sizes[0] - 1) for size in sizes[1:]]


def memory_rows(data, before, options):
    """How much more this process holds after an epoch than before, and how that grows."""
    call, sizes = passes(data), []
    for _ in range(options.epochs):
        call()
        sizes.append(resident_set())
    epoch = f"{data.examples['train']} images"
    more = f"memory over {options.epochs - 1} more epochs of {epoch}"
    if None in sizes:
        yield timing.Row(more, "%", [], goal="< 2", note="this system does not report it")
        return
    held = (sizes[0] - before) / 2**20
    batches = (streaming.PREFETCH + 1) * BATCH * SIDE * SIDE * 3 / 2**20
    note = f"batches of {BATCH}, of which {batches:.0f} MiB are there at a time"
    yield timing.Row(f"memory of the reader after an epoch of {epoch}", "MiB", [held], note=note)
    note = f"{sizes[0] / 2**20:.0f} MiB after the first"
    yield timing.Row(more, "%", growth(sizes), goal="< 2", note=note)


def measure(options):
    """Yields the rows."""
    # Before TensorFlow: imported after it, PyTorch ends the process in a segmentation fault.
    with contextlib.suppress(ImportError):
        importlib.import_module("torchvision")
    data, split = open_photographs(options)
    yield from memory_rows(data, resident_set(), options)
    yield from lock_rows(data, options)
    yield from streaming_rows(data, split, options)
    yield from resident_rows(options)


def main():
    parser = timing.parser(__doc__)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--dataset", default="imagenet_photos")
    parser.add_argument("--images", type=int, default=1024, help="per pass, repeated if too few")
    parser.add_argument("--rounds", type=int, default=1, help="passes per reader and repeat")
    parser.add_argument("--epochs", type=int, default=5, help="passes that measure memory")
    options = parser.parse_args()
    timing.run(measure(options), options, "input")


if __name__ == "__main__":
    # Under its own name, because processes that decode import functions of this file by it.
    from benchmarks import input

    input.main()
