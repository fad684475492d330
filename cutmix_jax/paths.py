"""Paths from the user, all checked by `local_path`; files written atomically; the workdir lock."""

import contextlib
import fcntl
import os
import pathlib
import re
import uuid

from cutmix_jax import UserError

# 'gs://bucket', 'dbfs:/folder', and 'gs:/bucket', which pathlib makes of the first. A scheme has
# at least two letters, because 'C:/' is a drive.
SCHEME = re.compile(r"://|^\s*[a-z][a-z0-9+.-]+:/", re.IGNORECASE)


def local_path(path, name) -> pathlib.Path:
    """The local path that a user gave.

    Call it before reading or writing anything: pathlib turns a bucket into a folder called `gs:`.

    Args:
        path: a string or an `os.PathLike`; a leading `~` stands for the home folder.
        name: what the user set, for error messages: '--workdir', 'config.data_dir'.

    Returns:
        A `pathlib.Path`.

    Raises:
        UserError: the path has a scheme, such as 's3://', or an unknown home folder.

    Example:
        >>> local_path('runs/first', '--workdir')
        PosixPath('runs/first')
    """
    text = os.fspath(path)
    if SCHEME.search(text):
        raise UserError(
            f"{name} is {text!r}, but a local path was expected. Mount or copy the data, and "
            "give its path without a scheme."
        )
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{name} is {text!r}, whose home folder is unknown. Write the path in full."
        ) from error


def existing_folder(path, key, expected) -> pathlib.Path:
    """The folder that a user gave as `config.KEY`; `expected` says which one it should be.

    Raises:
        UserError: the path has a scheme, or is not a folder.
    """
    folder = local_path(path, f"config.{key}")
    if not folder.is_dir():
        raise UserError(
            f"{key}={path} is not a folder, but {expected} was expected. Check --config.{key}."
        )
    return folder


@contextlib.contextmanager
def whole_file(path):
    """Yields a path to write to, which becomes `path` if nothing is raised.

    Readers see either the old file or the new one, even with several writers.
    """
    # In the same folder, because only there a rename is atomic.
    unfinished = path.with_name(f"{path.name}-{uuid.uuid4().hex}.tmp")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def workdir_lock(workdir, primary=True):
    """Locks `workdir` for this run. The system releases the lock when the process dies.

    With several processes, only the one with `primary` set takes the lock. Yields the absolute
    path.
    """
    path = local_path(workdir, "The workdir").absolute()
    if not primary:
        yield path
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = open(path / "lock", "w")  # noqa: SIM115  closed below
    except OSError as error:
        raise UserError(
            f"The workdir {str(path)!r} cannot be written ({error.strerror}). Choose another "
            "one with --workdir."
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"Another run is writing to the workdir {str(path)!r}. Wait for it to end, or "
                "choose another workdir with --workdir."
            ) from error
        yield path
