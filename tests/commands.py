"""Runs of `main.py` in processes of their own, small enough for tests."""

import os
import pathlib
import subprocess
import sys
import tempfile

from cutmix_jax.checkpoint import Checkpoints
from cutmix_jax.config import base_config
from cutmix_jax.parallel import create_mapping

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
# Programs that one test's process compiled serve the next one's; the bits stay the same.
COMPILED = tempfile.TemporaryDirectory(prefix="compiled-")

# Ten steps in two epochs, through the smallest network.
SMALL_VALUES = {
    "model": "resnet8",
    "image_size": 8,
    "train_examples": 320,
    "epochs": 2,
}
SMALL = [f"--config.{key}={value}" for key, value in SMALL_VALUES.items()]


def small_config(**overrides):
    """The config that `SMALL` gives."""
    config = base_config()
    config.mix.name, config.augment.pad = "cutmix", 1
    config.normalize.mean, config.normalize.std = (0.305,), (0.376,)
    config.epochs, config.learning_rate = 20, 0.1
    config.update_from_flattened_dict({**SMALL_VALUES, **overrides})
    return config


def environment(devices=1):
    """Of a process with so many fake devices, which shares the cache of compiled programs."""
    settings = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
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
    """Runs `python main.py ARGUMENTS` to its end."""
    process = start_main(*arguments, devices=devices)
    out, err = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def checkpoint_digest(workdir):
    """The digest of the newest checkpoint's state: equal if and only if every bit is."""
    with Checkpoints(workdir, create_mapping("pmap", 1)) as checkpoints:
        return checkpoints._read_meta(checkpoints.manager.latest_step())["digest"]
