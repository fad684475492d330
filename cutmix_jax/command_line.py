"""Shared by the commands: flags, configs by name, names of runs, and errors in one line.

Nothing here imports jax, so mistakes are reported at once.
"""

import argparse
import os
import pathlib
import re
import sys
import threading

from absl import flags
from ml_collections import config_flags

from cutmix_jax import UserError
from cutmix_jax.config import SCHEMA, nearest
from cutmix_jax.host import BACKGROUND
from cutmix_jax.paths import explain_failure, local_path

# In a clone, `configs/` is next to the package. Its files may import each other.
ROOT = pathlib.Path(__file__).resolve().parent.parent


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one sentence."""

    def error(self, message):
        fail(f"{message} (see --help).", 2)


def read_config(name, overrides=()):
    """The config of 'FILE' or 'FILE:MODEL,METHOD', with overrides.

    Args:
        name: the value of `--config`.
        overrides: `--config.KEY=VALUE`, as on the command line.

    Raises:
        UserError: the file, its argument or an override cannot be used.
    """
    name = str(local_path(name, "--config"))
    path, colon, argument = name.partition(":")
    if not pathlib.Path(path).exists() and (ROOT / path).is_file():
        name = f"{ROOT / path}{colon}{argument}"  # the project's configs, from another folder
    own = flags.FlagValues()
    argv = ["", f"--config={name}", *overrides]
    holder = config_flags.DEFINE_config_file("config", flag_values=own, sys_argv=argv)
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    try:
        rest = own(argv)
        if len(rest) > 1:
            raise UserError(f"{rest[1]!r} is not an override. Write --config.KEY=VALUE.")
        holder.value.seed  # noqa: B018  a missing file shows only on reading
    except Exception as error:
        raise UserError(explain(error, argv)) from error
    return holder.value


def run_name(name, seed, named=()):
    """Name of a run's folder: its config, its argument, the values `named`, its seed.

    Example:
        >>> run_name('configs/cifar.py:resnet110,cutmix', 0, {'epochs': 3})
        'cifar-resnet110,cutmix-epochs=3-seed0'
    """
    path, _, arg = name.partition(":")
    values = [f"{key}={value}" for key, value in dict(named).items()]
    parts = [pathlib.Path(path).stem, arg, *values, f"seed{seed}"]
    return "-".join(re.sub(r"[^\w.,=+]+", "_", part) for part in parts if part)


def explain(error, argv):
    """Why a command line was rejected, in one line."""
    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    if isinstance(chain[-1], UserError):
        return str(chain[-1])
    for word in argv[1:]:
        key = re.match(r"--config\.([\w.]+)", word)
        if key and key[1] not in SCHEMA:
            return f"There is no config key {key[1]!r} ({nearest(key[1], SCHEMA)})."
    message = next((str(e) for e in chain if "\n" not in str(e)), str(chain[-1]))
    return " ".join(message.split())


def fail(sentence, status):
    """Ends the program with one sentence."""
    print(f"error: {sentence}", file=sys.stderr)
    if any(thread.name == BACKGROUND for thread in threading.enumerate()):
        # A thread that still compiles would abort the process when the interpreter ends.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def guard(function, *arguments):
    """Calls `function`. Errors that a user can fix become one line and exit status 1."""
    try:
        return function(*arguments)
    except UserError as error:
        return fail(error, 1)
    except BrokenPipeError:  # the reader of the pipe is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return sys.exit(1)
    except Exception as error:
        sentence = explain_failure(error)
        if sentence is None and isinstance(error, OSError):
            where = f" ({error.filename})" if error.filename else ""
            sentence = (
                f"{error.strerror or error}{where}. Check the disk, the path and its permissions, "
                "and run the same command again."
            )
        if sentence is None:
            raise
        return fail(sentence, 1)
    except KeyboardInterrupt:
        return fail(
            "interrupted. Run the same command again to resume from the last checkpoint.", 130
        )
