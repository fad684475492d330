"""Paths from the user: local ones, and `gs://` buckets of Google Cloud Storage.

A path in a bucket is an `etils.epath.Path`, which has the methods of `pathlib.Path` that are used
here. gcsfs is imported when the first such path is opened, and not before.
"""

import contextlib
import functools
import importlib.util
import json
import logging
import os
import pathlib
import re
import shutil
import tempfile
import uuid

from cutmix_jax import UserError

# Orbax and TFDS read it as well: gcsfs opens buckets, even where TensorFlow is installed.
os.environ.setdefault("EPATH_USE_TF", "0")

BUCKET = "gs://"
# 'gs://bucket', 'dbfs:/folder', and 'gs:/bucket', which pathlib makes of the first. A scheme has
# at least two letters, because 'C:/' is a drive.
SCHEME = re.compile(r"://|^\s*[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
# Seconds until a bucket has to answer. gcsfs itself would try for minutes.
PATIENCE = 20
MODULES = ("gcsfs", "google.auth", "google.api_core", "google.cloud", "aiohttp", "fsspec")
LOGIN = (
    "log in with `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to "
    "the key file of a service account"
)


def user_path(path, name):
    """The path that a user gave, local or in a bucket.

    Call it before reading or writing anything: pathlib turns a bucket into a folder called `gs:`.

    Args:
        path: a string or an `os.PathLike`; a leading `~` stands for the home folder.
        name: what the user set, for error messages: '--workdir', 'config.data_dir'.

    Returns:
        A `pathlib.Path`, or an `etils.epath.Path` if it begins with 'gs://'.

    Raises:
        UserError: the path has another scheme, such as 's3://', or an unknown home folder; or the
            bucket cannot be used.

    Example:
        >>> user_path('runs/first', '--workdir')
        PosixPath('runs/first')
    """
    text = os.fspath(path)
    if not text.startswith(BUCKET) or SCHEME.search(text.removeprefix(BUCKET)):
        return _local(text, name, "a local path or gs://BUCKET/FOLDER")
    bucket = text.removeprefix(BUCKET).partition("/")[0]
    if not bucket:
        raise UserError(f"{name} is {text!r}, without a bucket. Write gs://BUCKET/FOLDER.")
    if not importlib.util.find_spec("gcsfs"):
        raise UserError(
            f"{name} is {text!r}, but the package gcsfs is not installed, which reads buckets. Run "
            "`python -m pip install -r requirements-gcs.txt`, or give a local path."
        )
    try:
        _reach(bucket)
    except Exception as error:
        raise UserError(f"{name} is {text!r}, but {_reason(error, bucket)}") from error
    from etils import epath

    return epath.Path(text)


def local_path(path, name) -> pathlib.Path:
    """The path that a user gave, of something that is read or written on this machine only.

    Arguments and errors are those of `user_path`; an address of any kind is refused.

    Example:
        >>> local_path('runs/first', '--workdir')
        PosixPath('runs/first')
    """
    return _local(os.fspath(path), name, "a local path")


def _local(text, name, expected):
    if SCHEME.search(text):
        raise UserError(
            f"{name} is {text!r}, but {expected} was expected. Mount or copy the data, and give "
            "its path without a scheme."
        )
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{name} is {text!r}, whose home folder is unknown. Write the path in full."
        ) from error


def existing_folder(path, key, expected):
    """The folder that a user gave as `config.KEY`; `expected` says which one it should be.

    Raises:
        UserError: the path cannot be used, or is not a folder.
    """
    folder = user_path(path, f"config.{key}")
    if not folder.is_dir():
        raise UserError(
            f"{key}={path} is not a folder, but {expected} was expected. Check --config.{key}."
        )
    return folder


def in_bucket(path):
    """Whether a path is in a bucket."""
    return os.fspath(path).startswith(BUCKET)


def absolute(path):
    """The path from the root; a path in a bucket is one already."""
    return path if in_bucket(path) else path.absolute()


def resolved(path):
    """The path without links, from the root; a path in a bucket has none."""
    return path if in_bucket(path) else path.resolve()


def files_below(folder, suffix=""):
    """Yields every file below a folder whose name ends in `suffix`, in no order."""
    if in_bucket(folder):
        for name in _file_system().find(os.fspath(folder)):
            if name.endswith(suffix):
                yield type(folder)(BUCKET + name)
        return
    for root, _, names in os.walk(folder):
        for name in names:
            if name.endswith(suffix):
                yield pathlib.Path(root, name)


def sizes_in(folder):
    """{name: bytes} of what is in a folder, with None for folders; {} if there is no such folder.

    Example:
        >>> sizes_in(pathlib.Path('no/such/folder'))
        {}
    """
    try:
        if in_bucket(folder):
            own = os.fspath(folder).removeprefix(BUCKET)
            return {
                entry["name"].rpartition("/")[2]: entry["size"] if entry["type"] == "file" else None
                for entry in _file_system().ls(own, detail=True)
                if entry["name"].rstrip("/") != own  # an empty object that stands for the folder
            }
        with os.scandir(folder) as entries:
            return {
                entry.name: entry.stat().st_size if entry.is_file() else None for entry in entries
            }
    except FileNotFoundError:
        return {}


def describe_version(path):
    """Size and time of a file, as text that changes with the file."""
    if in_bucket(path):
        info = _file_system().info(os.fspath(path))
        return f"{info['size']} {info['generation']}"
    stat = os.stat(path)
    return f"{stat.st_size} {stat.st_mtime_ns}"


@contextlib.contextmanager
def whole_file(path):
    """Yields a local path to write to, which becomes `path` if nothing is raised.

    Readers see either the old file or the new one, even with several writers.
    """
    if in_bucket(path):
        with tempfile.TemporaryDirectory() as folder:
            unfinished = pathlib.Path(folder, path.name)
            yield unfinished
            _upload(unfinished, path)  # whole or absent
        return
    # In the same folder, because only there a rename is atomic.
    unfinished = path.with_name(f"{path.name}-{uuid.uuid4().hex}.tmp")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def is_temporary(name):
    """Whether this is how `whole_file` calls a file that is not complete.

    Example:
        >>> is_temporary('weights.pth-0123456789abcdef0123456789abcdef.tmp')
        True
    """
    return re.search(r"-[0-9a-f]{32}\.tmp$", name) is not None


def write_text(path, text):
    """Writes a file in UTF-8 that is either complete or as it was."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path, value):
    """Writes a file of JSON that is either complete or as it was."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def remove_folder(folder):
    """Deletes a folder with all that it holds."""
    folder.rmtree() if in_bucket(folder) else shutil.rmtree(folder)


@contextlib.contextmanager
def local_copy(path):
    """Yields the path of a file on this machine: its own, or that of a copy from the bucket."""
    if not in_bucket(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder, path.name)
        _file_system().get_file(os.fspath(path), os.fspath(copy))
        yield copy


class LocalFolder:
    """A folder on this machine for libraries that write files themselves.

    `here` is `path` itself if that is on a disk. Of a folder in a bucket it is a temporary one,
    whose files `upload` copies to the bucket.
    """

    def __init__(self, path):
        self.path = path
        self._temporary = tempfile.TemporaryDirectory() if in_bucket(path) else None
        self.here = pathlib.Path(self._temporary.name) if self._temporary else path

    def upload(self):
        """Copies the files to the bucket, if there is one."""
        for file in files_below(self.here) if self._temporary else ():
            _upload(file, self.path / file.relative_to(self.here).as_posix())


def _upload(file, path):
    """Copies a local file into a bucket, in pieces, because it may be larger than memory."""
    _file_system().put_file(os.fspath(file), os.fspath(path))


def explain_failure(error):
    """One sentence about an error of Google Cloud Storage's packages; None for another error."""
    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    theirs = any(type(link).__module__.startswith(MODULES) for link in chain)
    if not theirs and not str(error).startswith("Forbidden: "):
        return None
    return f"Google Cloud Storage failed: {_reason(error, 'named in the path')}"


@functools.cache
def _file_system():
    """The file system that epath uses for buckets."""
    import fsspec
    from etils.epath import backend

    # Orbax writes past gcsfs, and other processes write too.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return backend.fsspec_backend.fs(BUCKET)


@functools.cache
def _reach(bucket):
    """Asks for one name in the bucket, so that a mistake shows before anything is computed."""
    import fsspec.asyn

    for name in ("gcsfs", "google.auth"):  # errors become one sentence
        logging.getLogger(name).setLevel(logging.CRITICAL)
    files = _file_system()
    fsspec.asyn.sync(
        files.loop, files._call, "GET", "b/{}/o", bucket, maxResults=1, timeout=PATIENCE
    )


def _reason(error, bucket):
    """What is wrong with a bucket, and what to do, from an error of gcsfs or its packages."""
    message = " ".join(str(error).split()) or type(error).__name__
    code = getattr(error, "code", None)
    if isinstance(error, FileNotFoundError):
        return f"there is no bucket {bucket!r}. Check its name, or make it with gcloud."
    if code in (401, "401") or type(error).__module__.startswith("google.auth"):
        return f"nobody is logged in to Google Cloud ({message[:160]}). To use it, {LOGIN}."
    if message.startswith("Forbidden") or code in (403, "403"):
        return (
            f"this account may not use the bucket {bucket!r} ({message[-160:]}). Ask its owner for "
            "the role Storage Object User, or log in with another account."
        )
    return (
        f"Google Cloud Storage does not answer ({message[:160]}). Check the network, and run the "
        "same command again."
    )
