"""Reads and writes PyTorch and safetensors files. Nothing in a file is executed."""

import argparse
import collections
import datetime
import importlib
import pathlib
import re
import types
import zipfile

import numpy as np

from cutmix_jax import UserError
from cutmix_jax.convert.names import some
from cutmix_jax.paths import local_copy, user_path

SUFFIXES = (".pth", ".pt", ".tar", ".safetensors")
# What scripts save besides tensors: classes that only hold values.
HOLDERS = (argparse.Namespace, types.SimpleNamespace, datetime.datetime, datetime.timedelta)
# Floating point of 8 bits and fewer, and quantized integers, as PyTorch and safetensors call them.
NARROW = re.compile(r"q|float[468]_|F[468]_")
# The first bytes of files that are not weights, what they are, and what to do.
OTHERS = {
    b"version https://git-lfs": "it is a Git LFS pointer: download the file with `git lfs pull`",
    b"<": "it is a web page: download it again, from the address of the file itself",
    b"\x1f\x8b": "it is a gzip archive: unpack it first",
    b"\x89HDF": "it is an HDF5 file, as Keras saves them: save a PyTorch state_dict",
}


def read_file(path):
    """Reads a PyTorch or safetensors file without executing anything in it.

    The contents decide the format, not the name.

    Args:
        path: of the file.

    Returns:
        The dictionary that was saved: ``{name: tensor}``, or one that contains such dictionaries.

    Raises:
        UserError: the file is damaged or something else, or a package is missing.
    """
    path = user_path(path, "The file of weights")
    if not path.is_file():
        raise UserError(f"There is no file or workdir {str(path)!r}: check the path.")
    with local_copy(path) as file:
        return _read(file)


def _read(path):
    with path.open("rb") as file:
        head = file.read(32)
    # safetensors: a length of eight bytes, then JSON. PyTorch: ZIP archives; before 1.6, pickles.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return _read_safetensors(path)
    for beginning, reason in OTHERS.items():
        if head.startswith(beginning):
            raise UserError(f"{str(path)!r} cannot be read, {reason}.")
    if path.suffix == ".safetensors" and not head.startswith((b"PK", b"\x80")):
        return _read_safetensors(path)
    return _read_torch(path)


def _read_safetensors(path):
    safetensors = _need("safetensors")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
            refuse_narrow(kinds, path.name)
            return {name: file.get_tensor(name) for name in kinds}
    except UserError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error


def _read_torch(path):
    torch = _need("torch")
    if program := _program(path):
        raise UserError(f"{str(path)!r} cannot be read, {program}.")
    try:
        with (
            path.open("rb") as file,  # for a path, the suffix would count
            torch.serialization.safe_globals([*HOLDERS, *_paths(), *_numpy_scalars()]),
        ):
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _unreadable(path, error) from error
    if not isinstance(found, dict) or not found:
        raise UserError(
            f"{path.name} contains {'nothing' if found == {} else f'a {type(found).__name__}'}, "
            "but a state_dict was expected. Save model.state_dict()."
        )
    return found


def refuse_narrow(kinds, source):
    """Refuses numbers with 8 bits or fewer, from ``{name: dtype}`` of either format."""
    narrow = [name for name, kind in kinds.items() if NARROW.match(kind)]
    if narrow:
        raise UserError(
            f"{source} contains {kinds[narrow[0]]} ({some(narrow)}). Such numbers need scales, "
            "which are not read: save weights with 16 or 32 bits."
        )


def _program(path):
    """Says which program a ZIP archive contains and what to do, or returns None."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile):
        return None
    for mark, kind, load in (
        ("constants.pkl", "TorchScript", "torch.jit.load(FILE)"),
        ("archive_format", "torch.export", "torch.export.load(FILE)"),
    ):
        if mark in names:
            return (
                f"it is a {kind} program, not weights: if you trust it, save "
                f"{load}.state_dict() with torch.save"
            )
    return None


def saver(path):
    """The function that writes arrays to this kind of file."""
    if path.suffix == ".safetensors":
        numpy = _need("safetensors.numpy")
        return lambda arrays, file: numpy.save_file(arrays, file, metadata={"format": "pt"})
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"--output {path} is not the name of a PyTorch file: give one that ends in .pth or "
            ".safetensors, or a folder, with / at its end."
        )
    torch = _need("torch")

    def save(arrays, file):
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        torch.save(collections.OrderedDict(tensors), file)

    return save


def _need(module):
    """Imports an optional package, or says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        index = " --index-url https://download.pytorch.org/whl/cpu" * (package == "torch")
        raise UserError(
            f"Reading and writing {'.safetensors' if package == 'safetensors' else '.pth'} needs "
            f"{package}, which is not installed: python -m pip install {package}{index}"
        ) from error


def _numpy_scalars():
    """NumPy numbers, which the authors' files contain, by their old and new names."""
    from numpy._core import multiarray

    scalars = [
        (getattr(multiarray, name), f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ]
    codes = "?bhilqBHILQefdUS"
    return [*scalars, np.ndarray, np.dtype, *(type(np.dtype(code)) for code in codes)]


def _paths():
    """Saved paths, read as pure paths: not every path class exists on every system."""
    return [
        (getattr(pathlib, f"Pure{kind}Path"), f"{module}.{pure}{kind}Path")
        for module in ("pathlib", "pathlib._local")  # the latter for Python 3.13
        for kind in ("Posix", "Windows")
        for pure in ("", "Pure")
    ]


def _unreadable(path, error):
    """An error of one sentence, where PyTorch may print pages."""
    if blocked := re.search(r"GLOBAL ([\w.]*\w)", str(error)):
        reason = (
            f"it would call {blocked[1]}, but only tensors and numbers are read: if you trust it, "
            "load it and save only model.state_dict()"
        )
    else:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = f"{first.rstrip('.')[:120]}: download it again, or give another file"
    return UserError(f"{str(path)!r} cannot be read, {reason}.")
