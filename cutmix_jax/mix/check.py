"""Checks that run while tracing, and the errors they raise."""

import difflib
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np


def is_concrete(value):
    """Whether `value` is known now, and not only when the compiled step runs."""
    return not isinstance(value, jax.core.Tracer)


def array(what, value):
    """Returns an array unchanged, and a list as a NumPy array, which is known inside of jit too."""
    if isinstance(value, jax.Array):
        return value
    try:
        value = np.asarray(value)
    except TypeError:  # a list of tracers
        return jnp.asarray(value)
    except ValueError:
        raise ValueError(f"{what} must be an array, but its rows differ in length.") from None
    if not (value.dtype == bool or jax.dtypes.issubdtype(value.dtype, np.number)):
        raise ValueError(f"{what} must be an array of numbers, but found {value!r:.60}.")
    return value


def known(value):
    """Returns a NumPy array, or None if it is traced or partly on devices of other processes."""
    if not is_concrete(value):
        return None
    if isinstance(value, jax.Array) and not (
        value.is_fully_addressable or value.is_fully_replicated
    ):
        return None
    return np.asarray(value)


def whole(name, value, low):
    """Returns a whole number as an int, or raises."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):  # a tracer's is a TypeError
        number = None
    if number is None or number != value or number < low:
        raise ValueError(
            f"{name} must be a whole number of at least {low}, known while tracing, but got"
            f" {value}."
        )
    return number


def number(name, value, low, high, *, above=False):
    """Returns `value` as a float32 scalar: all types of numbers share one trace."""
    if jnp.shape(value) != ():
        raise ValueError(f"{name} must be one number, but its shape is {jnp.shape(value)}.")
    known = float(value) if is_concrete(value) else None
    if known is not None and not (low < known <= high if above else low <= known <= high):
        bounds = f"above {low}" if above else f"at least {low}"
        bounds += "" if high == math.inf else f" and at most {high}"
        raise ValueError(f"{name} must be {bounds}, but got {value}.")
    return jnp.asarray(value, jnp.float32)


def bounds(name, value, most):
    """Returns (low, high) as float32 `[2]`, or raises if it is known to be no interval above 0."""
    try:
        low, high = value
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be (low, high), but got {value}.") from None
    if is_concrete(low) and is_concrete(high) and not 0 < low <= high <= most:
        limit = "" if most == math.inf else f" <= {most}"
        raise ValueError(
            f"{name} must be (low, high) with 0 < low <= high{limit}, but got {value}."
        )
    return jnp.stack([jnp.asarray(end, jnp.float32) for end in (low, high)])


def choice(what, value, table):
    """Returns `table[value]`, or raises an error that lists the choices."""
    if value in table:
        return table[value] if isinstance(table, dict) else value
    close = difflib.get_close_matches(str(value), [str(known) for known in table], n=1)
    hint = f"; did you mean '{close[0]}'?" if close else "."
    known = ", ".join(f"'{known}'" for known in table) or "none"
    raise ValueError(f"{what} {value!r} is unknown, expected one of {known}{hint}")


def sides(sides):
    """Returns the sides as a tuple of ints, or raises."""
    if not np.iterable(sides) or not (sides := tuple(sides)):
        raise ValueError(
            f"sides must be one number per spatial axis, as in (32, 32), but got {sides}."
        )
    sides = tuple(whole("each of the sides", side, 1) for side in sides)
    if math.prod(sides) >= 2**31:
        raise ValueError(f"sides {sides} have more pixels than fit into 32 bits.")
    return sides


def size(size):
    """Returns the size of a box as None, a number or a tuple of numbers, or raises."""
    if size is None:
        return None
    values = known(array("size", size)) if is_concrete(size) else None
    if values is None or values.ndim > 1:
        raise ValueError(
            f"size must be one number or one per side, known while tracing, but got {size}."
        )
    return tuple(values.tolist()) if values.ndim else values.tolist()


def axis_numbers(spatial_axes):
    """Returns the spatial axes as a tuple of ints, or raises."""
    axes = spatial_axes if np.iterable(spatial_axes) else (spatial_axes,)
    try:
        return tuple(operator.index(axis) for axis in axes)
    except TypeError:
        raise ValueError(
            f"spatial_axes must be whole numbers, as in (1, 2), but got {spatial_axes}."
        ) from None


def axes(found, shape, spatial_axes):
    """Returns the spatial axes of `shape` counted from the front, or raises."""
    axes = tuple(a % len(shape) for a in spatial_axes if -len(shape) <= a < len(shape))
    if not 0 < len(axes) == len(set(axes)) == len(spatial_axes) or 0 in axes:
        raise ValueError(
            f"{found} has no axes {tuple(spatial_axes)} after the batch axis. Expected"
            f" [B, H, W, C]; for other layouts, set spatial_axes."
        )
    return axes
