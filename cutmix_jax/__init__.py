"""CutMix in JAX: the mixing library, training, and the evaluations of the paper."""

import difflib
import re
from collections.abc import Sequence

__version__ = "0.1.0.dev0"


class UserError(ValueError):
    """Something the user can put right: shown as one sentence, without a traceback."""


def nearest(name, names):
    """A hint at the likeliest of `names`, for error messages."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"the nearest is {near[0]!r}" if near else f"there are {', '.join(names)}"


def first_names(names: Sequence, limit: int = 3) -> str:
    """The first few of `names`, for error messages."""
    return ", ".join(map(str, names[:limit])) + ", ..." * (len(names) > limit)


def first_line(error: Exception) -> str:
    """The first line of an error's message, without the addresses of Python objects."""
    lines = re.sub(r" <[^>]*>", "", str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__
