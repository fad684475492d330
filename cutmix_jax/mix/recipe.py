"""Mixes by name, as configs select them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from cutmix_jax.mix import check
from cutmix_jax.mix.sample import sample_cutmix


@dataclass(frozen=True)
class Recipe:
    """One row of the table: what a name draws, its parameters, and the words for it."""

    samplers: tuple[Callable, ...]
    defaults: dict[str, Any]
    words: str


RECIPES = {
    "none": Recipe((), {}, "no mixing"),
    "cutmix": Recipe(
        (sample_cutmix,),
        {
            "alpha": 1.0,
            "prob": 1.0,
            "box": "exact",
            "scope": "batch",
            "partner": "permutation",
        },
        "CutMix: one box per {scope} with sides sqrt(1 - lambda) ({box}),"
        " lambda ~ Beta({alpha:g}, {alpha:g}), applied with probability {prob:g}; partner:"
        " {partner}; labels weighed by the pixels kept",
    ),
}


@dataclass(frozen=True)
class Mix:
    """A mix with its parameters, ready to draw plans; made by `create_mix`."""

    name: str
    parameters: tuple[tuple[str, Any], ...]

    def sample(self, key, batch_size, sides, *, progress=0.0, axis_name=None):
        """Returns the plans of one step, to apply in turn: a tuple of `Plan`.

        Args:
            key: a JAX random key, the same on every device.
            batch_size: B, of this device's shard.
            sides: the image's sides in pixels, `(H, W)`.
            progress: the share of training that is done, in [0, 1]; may be traced.
            axis_name: inside `pmap` or `shard_map`, the name of the axis over devices.

        Returns:
            A tuple of `Plan`; empty for `'none'`.

        Example:
            >>> import jax
            >>> from cutmix_jax import mix
            >>> plans = mix.create_mix('cutmix', prob=0.5).sample(jax.random.key(0), 8, (32, 32))
            >>> [plan.sides for plan in plans]
            [(32, 32)]
        """
        return tuple(
            sampler(key, batch_size, sides, axis_name=axis_name, **dict(self.parameters))
            for sampler in RECIPES[self.name].samplers
        )

    def describe(self):
        """Returns the recipe in words.

        Example:
            >>> from cutmix_jax import mix
            >>> mix.create_mix('none').describe()
            'no mixing'
        """
        return RECIPES[self.name].words.format(**dict(self.parameters))


def create_mix(name, **parameters):
    """Returns the mix of that name.

    Args:
        name: `'none'` or `'cutmix'`.
        **parameters: what differs from the recipe's defaults.

    Returns:
        A `Mix`.

    Raises:
        ValueError: if the name or a parameter is unknown, or a value is out of its range.

    Example:
        >>> from cutmix_jax import mix
        >>> mix.create_mix('cutmix', alpha=0.2).parameters[0]
        ('alpha', 0.2)
    """
    defaults = check.choice("mix", name, RECIPES).defaults
    for parameter in parameters:
        check.choice(f"mix '{name}': parameter", parameter, defaults)
    mix = Mix(name, tuple((defaults | parameters).items()))
    jax.eval_shape(lambda key: mix.sample(key, 2, (8, 8)), jax.random.key(0))  # checks the values
    return mix
