"""What a host keeps for the next start, and the flags that XLA gets."""

import importlib.metadata
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from cutmix_jax import host
from tests.commands import REPOSITORY

COMPILE = """
import jax
from cutmix_jax.host import keep_compiled_programs
print(keep_compiled_programs())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: x + 1)(1.0)
"""


def compile_apart(**settings):
    """The output and the standard error of a process that compiles."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION")}
    env |= {"PYTHONPATH": str(REPOSITORY), **settings}
    return subprocess.run(
        [sys.executable, "-c", COMPILE], env=env, capture_output=True, text=True, check=True
    )


def folder_and_entries(**settings):
    """The folder in which a process keeps its compiled functions, and how many there are."""
    done = compile_apart(**settings)
    folder = pathlib.Path(done.stdout.strip())
    return folder, len(list(folder.glob("*-cache"))) if folder.exists() else 0


def test_programs_are_kept_in_the_cache_folder(tmp_path):
    folder, entries = folder_and_entries(CUTMIX_JAX_CACHE=str(tmp_path))
    assert folder.parent == tmp_path
    assert entries


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_that_is_chosen_stays(tmp_path, there):
    chosen = tmp_path / "chosen"
    if there:
        chosen.mkdir()
    folder, entries = folder_and_entries(
        CUTMIX_JAX_CACHE=str(tmp_path), JAX_COMPILATION_CACHE_DIR=str(chosen)
    )
    assert folder == chosen
    assert entries
    assert list(tmp_path.iterdir()) == [chosen]


def test_nothing_is_kept_if_that_is_turned_off(tmp_path):
    _, entries = folder_and_entries(
        CUTMIX_JAX_CACHE=str(tmp_path), JAX_ENABLE_COMPILATION_CACHE="false"
    )
    assert not entries


def test_a_folder_that_cannot_be_written_is_named_once(tmp_path):
    (tmp_path / "file").touch()
    done = compile_apart(CUTMIX_JAX_CACHE=str(tmp_path / "file/cache"))
    assert done.stdout == "None\n"
    assert len(done.stderr.splitlines()) == 1
    assert "CUTMIX_JAX_CACHE" in done.stderr


def test_without_a_home_nothing_is_kept(tmp_path, monkeypatch, capsys):
    def no_home(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("CUTMIX_JAX_CACHE", raising=False)
    monkeypatch.setattr(pathlib.Path, "expanduser", no_home)
    monkeypatch.setattr(type(jax.config), "jax_compilation_cache_dir", None)
    assert host.keep_compiled_programs() is None
    assert "home directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "version", "expected"),
    [
        ("", host.TRIED[0], f"{host.WEIGHT_GRADIENT_FLAG}=-individual_convolution"),
        ("--one=1", host.TRIED[-1], f"--one=1 {host.WEIGHT_GRADIENT_FLAG}=-individual_convolution"),
        ("", "0.7.2", ""),
        ("", "9.9.9", ""),
        (f"{host.WEIGHT_GRADIENT_FLAG}=", host.TRIED[0], f"{host.WEIGHT_GRADIENT_FLAG}="),
    ],
)
def test_the_fast_weight_gradient_is_for_versions_on_which_it_was_tried(
    monkeypatch, flags, version, expected
):
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(importlib.metadata, "version", {"jaxlib": version}.get)
    assert host.use_fast_weight_gradients() == (flags != expected)
    assert os.environ["XLA_FLAGS"] == expected


@pytest.mark.parametrize("package", ["libtpu", "jax_plugins"])
def test_with_a_gpu_or_tpu_the_flags_of_xla_stay(monkeypatch, package):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: host.TRIED[0])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == package)
    assert not host.use_fast_weight_gradients()
    assert not os.environ["XLA_FLAGS"]


@pytest.mark.skipif(
    importlib.metadata.version("jaxlib") not in host.TRIED, reason="untested jaxlib"
)
def test_xla_knows_the_flag_and_takes_another_way():
    """Other bits in a weight gradient show that XLA obeys the flag."""
    script = """
import os, sys
os.environ["XLA_FLAGS"] = ""
from cutmix_jax import host
if sys.argv[1] == "fast":
    assert host.use_fast_weight_gradients()
import jax, jax.numpy as jnp
from jax import lax
def conv(kernel, x):
    sizes = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=sizes)
x = jax.random.normal(jax.random.key(0), (4, 56, 56, 64))
kernel = jax.random.normal(jax.random.key(1), (3, 3, 64, 64))
gradient = jax.jit(lambda g: jax.vjp(conv, kernel, x)[1](g)[0])(conv(kernel, x))
print(hash(gradient.tobytes()))
"""
    settings = {"PYTHONPATH": str(REPOSITORY), "PYTHONHASHSEED": "0", "JAX_PLATFORMS": "cpu"}
    slow, fast = (
        subprocess.run(
            [sys.executable, "-c", script, way],
            env=os.environ | settings,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for way in ("slow", "fast")
    )
    assert slow != fast
