"""Keeps arrays that are slow to create on disk, for the next start."""

import hashlib
import os
import pathlib
import sys
import zipfile
from collections.abc import Callable, Iterable

import numpy as np

from cutmix_jax.data import image_files
from cutmix_jax.paths import describe_version, local_path, whole_file

# Part of every key. Increase it when the meaning of stored arrays changes.
FORMAT = 1


def cache_dir() -> pathlib.Path:
    """$CUTMIX_JAX_CACHE, or the user's cache folder."""
    if named := os.environ.get("CUTMIX_JAX_CACHE"):
        return local_path(named, "CUTMIX_JAX_CACHE")
    if base := os.environ.get("XDG_CACHE_HOME"):
        return local_path(base, "XDG_CACHE_HOME") / "cutmix_jax"
    return pathlib.Path("~/.cache").expanduser() / "cutmix_jax"


def cache_path(name: str, fingerprint: str) -> pathlib.Path:
    """The file for (name, fingerprint)."""
    # Paths may contain bytes that are not UTF-8.
    described = f"{FORMAT}\n{fingerprint}".encode(errors="surrogateescape")
    digest = hashlib.sha256(described).hexdigest()[:16]
    return cache_dir() / f"{name.replace('/', '-').replace(':', '-')}-{digest}.npz"


def is_stored(name: str, fingerprint: str) -> bool:
    """Whether a file exists for (name, fingerprint), valid or damaged."""
    return cache_path(name, fingerprint).exists()


def stats(paths: Iterable) -> list[str]:
    """One line per file, which changes with the file."""
    lines = []
    for path in paths:
        try:
            version = describe_version(path)
        except OSError as error:
            raise image_files.unreadable(path, error) from error
        lines.append(f"{os.fspath(path)} {version}")
    return lines


def load_or_make(
    name: str,
    fingerprint: str,
    make: Callable[[], dict[str, np.ndarray]],
    needed: Iterable[str] = (),
) -> dict[str, np.ndarray]:
    """The arrays stored under (name, fingerprint); makes and stores them if missing or damaged.

    They are also made again if an array of `needed` is not stored, as in files of earlier versions.
    """
    path = cache_path(name, fingerprint)
    try:
        # Reading a zip member checks its CRC, so changed bytes are found.
        with np.load(path, allow_pickle=False) as stored:
            if set(needed) <= set(stored.files):
                return {key: stored[key] for key in stored.files}
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        _say(f"{path} is not readable ({error}); reading the dataset again.")
    arrays = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as unfinished, open(unfinished, "wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        _say(f"{path} could not be written ({error}); the next start reads the dataset again.")
    return arrays


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
