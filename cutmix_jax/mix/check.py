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
    known = float(value) if is_concrete(value) else None
    if known is not None and not (low < known <= high if above else low <= known <= high):
        bounds = f"above {low}" if above else f"at least {low}"
        bounds += "" if high == math.inf else f" and at most {high}"
        raise ValueError(f"{name} must be {bounds}, but it is {value}.")
    return jnp.asarray(value, jnp.float32)


def choice(what, value, table):
    """Returns `table[value]`, or raises naming what there is to choose from."""
    if value in table:
        return table[value] if isinstance(table, dict) else value
    close = difflib.get_close_matches(str(value), [str(known) for known in table], n=1)
    hint = f"; did you mean '{close[0]}'?" if close else "."
    known = ", ".join(f"'{known}'" for known in table) or "none"
    raise ValueError(f"{what} {value!r} is unknown, expected one of {known}{hint}")


def sides(sides):
    """Returns the sides as a tuple of ints, or raises."""
    sides = tuple(sides)
    if not sides or not all(int(side) == side > 0 for side in sides):
        raise ValueError(f"sides must be whole numbers of pixels above 0, but they are {sides}.")
    if math.prod(sides) >= 2**31:
        raise ValueError(f"sides {sides} make more pixels than fit into 32 bits.")
    return tuple(int(side) for side in sides)


def axes(found, shape, spatial_axes):
    """Returns the spatial axes of `shape` counted from the front, or raises."""
    axes = tuple(a % len(shape) for a in spatial_axes if -len(shape) <= a < len(shape))
    if not 0 < len(axes) == len(set(axes)) == len(spatial_axes) or 0 in axes:
        raise ValueError(
            f"{found} has no axes {tuple(spatial_axes)} after the batch axis; expected"
            f" [B, H, W, C], or spatial_axes that name where its sides are."
        )
    return axes
