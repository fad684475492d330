"""What a host keeps for the next start."""

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
    """What a process that compiles prints, and its standard error."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION")}
    env |= {"PYTHONPATH": str(REPOSITORY), **settings}
    return subprocess.run(
        [sys.executable, "-c", COMPILE], env=env, capture_output=True, text=True, check=True
    )


def folder_and_entries(**settings):
    """Where a process that compiles keeps its programs, and how many."""
    told = compile_apart(**settings)
    folder = pathlib.Path(told.stdout.strip())
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


def test_nothing_is_kept_where_that_is_turned_off(tmp_path):
    _, entries = folder_and_entries(
        CUTMIX_JAX_CACHE=str(tmp_path), JAX_ENABLE_COMPILATION_CACHE="false"
    )
    assert not entries


def test_a_folder_that_cannot_be_written_is_named_once(tmp_path):
    (tmp_path / "file").touch()
    told = compile_apart(CUTMIX_JAX_CACHE=str(tmp_path / "file/cache"))
    assert told.stdout == "None\n"
    assert len(told.stderr.splitlines()) == 1
    assert "CUTMIX_JAX_CACHE" in told.stderr


def test_without_a_home_nothing_is_kept(tmp_path, monkeypatch, capsys):
    def no_home(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("CUTMIX_JAX_CACHE", raising=False)
    monkeypatch.setattr(pathlib.Path, "expanduser", no_home)
    monkeypatch.setattr(type(jax.config), "jax_compilation_cache_dir", None)
    assert host.keep_compiled_programs() is None
    assert "home directory" in capsys.readouterr().err
