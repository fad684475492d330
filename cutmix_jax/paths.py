"""Paths that a user gives, which all go through `place`, and files that are whole or not there."""

import contextlib
import os
import pathlib
import re
import uuid

from cutmix_jax import UserError

# 'gs://bucket' and 'dbfs:/folder', and 'gs:/bucket', which pathlib makes of the first. A scheme
# has two letters or more, since 'C:/' is a drive.
SCHEME = re.compile(r"://|^\s*[a-z][a-z0-9+.-]+:/", re.IGNORECASE)


def place(path, name) -> pathlib.Path:
    """The local path that a user means.

    Call it before anything is read or written: pathlib makes a folder called `gs:` of a bucket.

    Args:
      path: a string or an `os.PathLike`; a leading `~` stands for the home folder.
      name: what the user set, for the message: '--workdir', 'config.data_dir'.

    Returns:
      A `pathlib.Path`.

    Raises:
      UserError: the path has a scheme, such as 's3://', or names a home folder that is not known.

    Example:
      >>> place('runs/first', '--workdir')
      PosixPath('runs/first')
    """
    text = os.fspath(path)
    if SCHEME.search(text):
        raise UserError(
            f"{name} is {text!r}, and a local path was expected: mount or copy what lies there, "
            "and give its path without a scheme."
        )
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{name} is {text!r}, whose home folder is not known: write the path in full."
        ) from error


@contextlib.contextmanager
def whole_file(path):
    """Yields a path to write to, which becomes `path` if nothing is raised.

    Readers see the file as it was before, or as it is afterwards, also if several write it.
    """
    # In the same folder, for only there a rename is atomic.
    unfinished = path.with_name(f"{path.name}-{uuid.uuid4().hex}.tmp")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
