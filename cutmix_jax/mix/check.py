"""Checks that run while tracing, and the errors they raise."""

import difflib
import math

import jax
import jax.numpy as jnp


def is_concrete(value):
    """Whether `value` is known now, and not only when the compiled program runs."""
    return not isinstance(value, jax.core.Tracer)


def number(name, value, low, high, *, above=False):
    """Returns `value` as a float32 scalar, so that all kinds of numbers share one trace."""
    if jnp.shape(value) != ():
        raise ValueError(f"{name} must be one number, but its shape is {jnp.shape(value)}.")
    if is_concrete(value) and not (low < value <= high if above else low <= value <= high):
        bounds = f"above {low}" if above else f"at least {low}"
        bounds += "" if high == math.inf else f" and at most {high}"
        raise ValueError(f"{name} must be {bounds}, but it is {value}.")
    return jnp.asarray(value, jnp.float32)


def choice(what, value, table):
    """Returns `table[value]`, or raises naming what there is to choose from."""
    if value in table:
        return table[value]
    close = difflib.get_close_matches(str(value), table, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else "."
    known = ", ".join(f"'{known}'" for known in table) or "none"
    raise ValueError(f"{what} {value!r} is unknown, expected one of {known}{hint}")
