"""Paths that a user gives: every one of them goes through `place`."""

import os
import pathlib
import re

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
