"""Runs of `main.py` in separate processes, small enough for tests."""

import os
import pathlib
import socket
import subprocess
import sys
import tempfile

import numpy as np
from PIL import Image

from cutmix_jax.checkpoint import Checkpoints
from cutmix_jax.config import base_config
from tests.xla_flags import COMPILED_QUICKLY

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
# Processes of later tests reuse the steps that earlier ones compiled. The bits stay the same.
COMPILED = tempfile.TemporaryDirectory(prefix="compiled-")

# Ten steps in two epochs, through a tiny network. Importing TensorBoard's logger takes seconds.
SMALL_VALUES = {
    "model": "resnet8x0.25",
    "loggers": (),
    "image_size": 8,
    "train_examples": 320,
    "epochs": 2,
}
SMALL = [f"--config.{key}={value}" for key, value in SMALL_VALUES.items()]
# The same for several processes or devices, which then compute what one would.
SYNCHRONIZED = [*SMALL, "--config.sync_batch_norm=True", "--config.checkpoint_every=3"]


def plain_config(**overrides):
    """The smallest run, without mix and augmentation: a step compiles in a few seconds."""
    config = base_config()
    config.update_from_flattened_dict({**SMALL_VALUES, **overrides})
    return config


def small_config(**overrides):
    """The config of `SMALL`."""
    config = plain_config(**{"mix.name": "cutmix", "augment.pad": 1})
    config.normalize.mean, config.normalize.std = (0.305,), (0.376,)
    config.update_from_flattened_dict(overrides)
    return config


def write_photographs(root):
    """320 and 64 small JPEG files, and the config values that make a run stream them."""
    random = np.random.RandomState(0)
    for split, count in (("train", 320), ("val", 64)):
        for i in range(count):
            folder = root / split / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = random.randint(0, 256, (*random.randint(9, 40, 2), 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.jpg")
    values = {"dataset": "folder", "data_dir": str(root), "source": "streaming"}
    return values | {"augment.min_area": 0.08, "augment.pad": 0, "augment.flip": True}


def environment(devices=1):
    """The environment of a process with so many fake devices and the shared compilation cache."""
    flags = f"--xla_force_host_platform_device_count={devices} {COMPILED_QUICKLY}"
    settings = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "JAX_COMPILATION_CACHE_DIR": COMPILED.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        "PYTHONUNBUFFERED": "1",
    }
    return os.environ | settings


def start_main(*arguments, devices=1, **options):
    """Starts `python main.py ARGUMENTS`, and returns its process."""
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "main.py"), *arguments],
        env=environment(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run_main(*arguments, devices=1, timeout=300):
    """Runs `python main.py ARGUMENTS` to the end."""
    process = start_main(*arguments, devices=devices)
    out, err = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def start_two(workdir, *arguments, each=((), ())):
    """Starts `main.py` twice, as docs/devices.md says; `each` has the arguments of each one."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        start_main(
            f"--workdir={workdir}",
            *arguments,
            *each[index],
            f"--coordinator=localhost:{port}",
            "--processes=2",
            f"--process={index}",
        )
        for index in (0, 1)
    ]


def finish(processes, timeout=240):
    """Waits for all, and returns what they printed. After a failure none of them is left."""
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, err) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, err
    return [out for out, _ in outputs]


def checkpoint_digest(workdir):
    """The digest of the newest checkpoint's state, equal if and only if every bit is equal."""
    with Checkpoints(workdir) as checkpoints:
        return checkpoints._read_meta(checkpoints.manager.latest_step())["digest"]
