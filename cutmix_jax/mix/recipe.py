"""Mixes by name, as configs choose them, and combinations of mixes."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from cutmix_jax.mix import check
from cutmix_jax.mix.plan import switched
from cutmix_jax.mix.sample import sample_cutmix, sample_cutout, sample_mixup

# The feature maps that can be mixed, in the order of the forward pass. The paper counts them from
# 0, the image. 'stem' is the map after the first convolution.
LAYERS = ("image", "stem", "layer1", "layer2", "layer3", "layer4")

# schedule=: the factor on prob, from the fraction of training that is done.
SCHEDULES = {"constant": lambda progress: 1.0, "linear": lambda progress: progress}


@dataclass(frozen=True)
class Mix:
    """A mix with its parameters, ready to sample plans. Made by `create_mix`.

    Attributes:
        name: as given to `create_mix`.
        layers: the names of the feature maps it mixes at, a subset of `LAYERS`.

    Example:
        >>> from cutmix_jax import mix
        >>> mix.create_mix('feature_cutmix').layers
        ('image', 'stem', 'layer1', 'layer2', 'layer3')
    """

    name: str
    layers: tuple[str, ...] = ()

    def sample(self, key, batch_size, sides, *, progress=0.0, axis_name=None):
        """Returns the plans of one step, in the order to apply them: a tuple of `Plan`.

        Args:
            key: a JAX random key, the same on every device.
            batch_size: B, of this device's shard.
            sides: height and width of the image, `(H, W)`; or, for mixes at feature maps, a mapping
                from each of `layers` to the height and width of its map.
            progress: the fraction of training that is done, in [0, 1]; may be traced.
            axis_name: inside `pmap` or `shard_map`, the name of the axis over devices.

        Returns:
            A tuple of `Plan`, empty for `'none'`. `plan.layer` names the feature map of each.

        Raises:
            ValueError: while tracing, if `sides` lacks a layer.

        Example:
            >>> import jax
            >>> from cutmix_jax import mix
            >>> plans = mix.create_mix('cutout+mixup').sample(jax.random.key(0), 8, (32, 32))
            >>> [plan.fill for plan in plans]
            [0.0, None]
        """
        return ()

    def describe(self):
        """Returns the mix in words.

        Example:
            >>> from cutmix_jax import mix
            >>> print(mix.create_mix('mixup', alpha=0.2, prob=0.5).describe())
            Mixup: lambda ~ Beta(0.2, 0.2) per batch, partner by permutation; with probability 0.5
        """
        return "no mixing"


@dataclass(frozen=True)
class OneMix(Mix):
    """One sampler with its options, at the image or at a layer sampled for each batch."""

    sampler: Callable | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    schedule: str = "constant"
    until: float = 1.0

    def sample(self, key, batch_size, sides, *, progress=0.0, axis_name=None):
        progress = jnp.asarray(progress, jnp.float32)
        factor = jnp.where(progress <= self.until, SCHEDULES[self.schedule](progress), 0.0)
        prob = jnp.asarray(self.options["prob"], jnp.float32) * factor
        options = dict(self.options) | {"prob": prob}
        if len(self.layers) > 1:
            layer_key, key = jax.random.split(key)
            chosen = jax.random.randint(layer_key, (1,), 0, len(self.layers))
        plans = []
        for i, layer in enumerate(self.layers):
            sides_here = _sides_at(layer, sides, self)
            plan = self.sampler(key, batch_size, sides_here, axis_name=axis_name, **options)
            if len(self.layers) > 1:
                plan = switched(plan, chosen == i)
            plans.append(replace(plan, layer=layer))
        return tuple(plans)

    def describe(self):
        words = WORDS[self.sampler](self.options)
        if self.layers != ("image",):
            words += "; at " + ("one of " if len(self.layers) > 1 else "")
            words += ", ".join(self.layers)
        prob = f"{self.options['prob']:g}"
        if self.schedule == "linear":
            words += f"; with probability 0 to {prob} from start to end"
        elif prob != "1":
            words += f"; with probability {prob}"
        return words + (f", until {self.until:.0%} of training" if self.until < 1 else "")


@dataclass(frozen=True)
class InTurn(Mix):
    """All of its parts, one after the other."""

    parts: tuple[Mix, ...] = ()

    def sample(self, key, batch_size, sides, *, progress=0.0, axis_name=None):
        plans = [
            plan
            for i, part in enumerate(self.parts)
            for plan in part.sample(
                jax.random.fold_in(key, i),
                batch_size,
                sides,
                progress=progress,
                axis_name=axis_name,
            )
        ]
        return tuple(sorted(plans, key=lambda plan: LAYERS.index(plan.layer)))

    def describe(self):
        return ", then ".join(part.describe() for part in self.parts)


@dataclass(frozen=True)
class ByChance(Mix):
    """One of its two parts."""

    parts: tuple[Mix, ...] = ()
    switch_prob: float = 0.5

    def sample(self, key, batch_size, sides, *, progress=0.0, axis_name=None):
        choice_key, *keys = jax.random.split(key, 3)
        second = jax.random.uniform(choice_key, (1,), jnp.float32) < self.switch_prob
        plans = [
            switched(plan, on)
            for part, on, key in zip(self.parts, (~second, second), keys, strict=True)
            for plan in part.sample(key, batch_size, sides, progress=progress, axis_name=axis_name)
        ]
        return tuple(sorted(plans, key=lambda plan: LAYERS.index(plan.layer)))

    def describe(self):
        first, second = (part.describe() for part in self.parts)
        return f"{first}; or, with probability {self.switch_prob:g}, {second}"


def _sides_at(layer, sides, mix):
    """Returns height and width of a layer's map, from the `sides` of `Mix.sample`."""
    if isinstance(sides, Mapping):
        return check.choice(
            f"mix '{mix.name}' needs the sides of {mix.layers}: layer", layer, sides
        )
    if layer != "image":
        raise ValueError(
            f"mix '{mix.name}' mixes at {mix.layers}, so sides must map their names to the height"
            f" and width of their maps, but got {sides}."
        )
    return sides


def _box_words(options):
    size, placement = options["size"], options["placement"]
    if size is None:
        size = f"lambda ~ Beta({options['alpha']:g}, {options['alpha']:g})"
        bounds = (options["min_ratio"], options["max_ratio"])
        if bounds != (0, 1):
            size += ", length {:g} to {:g} of the side".format(*bounds)
    else:
        sizes = size if isinstance(size, tuple) else (size,)
        size = "size " + " x ".join(f"{s:g}" + (" of the side" if s < 1 else "") for s in sizes)
    if placement == "gaussian":
        placement += f", sigma {options['sigma']:g} of the side"
    return f"one '{options['box']}' box per {options['scope']} ({size}; center {placement})"


LABEL_WORDS = {
    "share": "labels weighed by area",
    "one_hot": "only the label of the larger area",
    "complete": "both labels by one half",
}


def _partner_words(options):
    words = f"partner by {options['partner']}"
    return words + (" across devices" if options["across_devices"] else "")


def _cutmix_words(options):
    labels = LABEL_WORDS[options["label"]]
    if not options["correct_lam"]:
        labels += ", as sampled before clipping"
    return f"CutMix: {_box_words(options)}, {_partner_words(options)}; {labels}"


def _mixup_words(options):
    alpha = f"{options['alpha']:g}"
    return (
        f"Mixup: lambda ~ Beta({alpha}, {alpha}) per {options['scope']}, {_partner_words(options)}"
    )


def _cutout_words(options):
    return f"Cutout: {_box_words(options)}, filled with {options['fill']}"


WORDS = {
    sample_cutmix: _cutmix_words,
    sample_mixup: _mixup_words,
    sample_cutout: _cutout_words,
}

# What each mix of the paper changes of its sampler's defaults.
RECIPES = {
    "cutmix": (sample_cutmix, {}),
    "center_gaussian_cutmix": (sample_cutmix, {"placement": "gaussian"}),
    "fixed_size_cutmix": (sample_cutmix, {"size": 0.5}),
    "one_hot_cutmix": (sample_cutmix, {"label": "one_hot"}),
    "scheduled_cutmix": (sample_cutmix, {"schedule": "linear"}),
    "complete_label_cutmix": (sample_cutmix, {"label": "complete"}),
    "feature_cutmix": (sample_cutmix, {"layers": (0, 1, 2, 3, 4)}),
    "mixup": (sample_mixup, {}),
    "manifold_mixup": (sample_mixup, {"layers": (0, 2, 3)}),
    "cutout": (sample_cutout, {}),
}


def parameters_of(name):
    """Returns the parameters of a mix with their defaults."""
    sampler, changes = RECIPES[name]
    signature = inspect.signature(sampler).parameters.values()
    options = {p.name: p.default for p in signature if p.kind is p.KEYWORD_ONLY}
    del options["axis_name"]
    return options | {"schedule": "constant", "until": 1.0, "layers": (0,)} | changes


def create_mix(name, **parameters):
    """Returns the mix of that name.

    Args:
        name: `'none'`, `'cutmix'`, `'center_gaussian_cutmix'`, `'fixed_size_cutmix'`,
            `'one_hot_cutmix'`, `'scheduled_cutmix'`, `'complete_label_cutmix'`, `'mixup'`,
            `'cutout'`. At feature maps: `'manifold_mixup'`, `'feature_cutmix'`. One after the
            other: `'cutout+mixup'`. One of two at random: `'cutmix_or_mixup'`.
        **parameters: options of the sampler (`sample_cutmix`, `sample_mixup`, `sample_cutout`) that
            differ from the defaults of the mix, and for all of them

            * `schedule`: `'linear'` multiplies prob by the fraction of training that is done,
              `'constant'` does not;
            * `until`: the fraction of training after which nothing is mixed;
            * `layers`: feature maps, as names or numbers in `LAYERS`. If there are several, one is
              sampled per batch.

            In a combination a parameter goes to each part that has it. `PART_PARAMETER`, such as
            `mixup_alpha`, goes to that part only. `switch_prob` is the probability of the second
            mix in `'A_or_B'`.

    Returns:
        A `Mix`.

    Raises:
        ValueError: if the name or a parameter is unknown, or a value is out of its range.

    Example:
        >>> from cutmix_jax import mix
        >>> print(mix.create_mix('cutmix', alpha=0.2, box='paper').describe())
        CutMix: one 'paper' box per batch (lambda ~ Beta(0.2, 0.2); center uniform), partner by
        permutation; labels weighed by area
        >>> print(mix.create_mix('cutmix_or_mixup', mixup_alpha=0.8).describe())
        CutMix: one 'exact' box per batch (lambda ~ Beta(1, 1); center uniform), partner by
        permutation; labels weighed by area; or, with probability 0.5, Mixup: lambda ~
        Beta(0.8, 0.8) per batch, partner by permutation
    """
    if name == "none" and not parameters:
        return Mix("none")
    if "_or_" in name:
        return _combine(by_chance, name.split("_or_"), parameters)
    if "+" in name:
        return _combine(in_turn, name.split("+"), parameters)
    check.choice("mix", name, ("none", *RECIPES))
    defaults = {} if name == "none" else parameters_of(name)
    for parameter in parameters:
        check.choice(f"mix '{name}': parameter", parameter, defaults)
    options = defaults | parameters
    if "size" in options:
        options["size"] = check.size(options["size"])
    mix = OneMix(
        name,
        layers=_layer_names(options.pop("layers")),
        sampler=RECIPES[name][0],
        schedule=check.choice("schedule", options.pop("schedule"), tuple(SCHEDULES)),
        until=options.pop("until"),
        options=options,
    )
    check.number("until", mix.until, 0, 1)
    check.number("prob", options["prob"], 0, 1)
    _draw_once(mix)
    return mix


def in_turn(*mixes):
    """Returns the mix that applies several mixes, one after the other.

    Args:
        *mixes: mixes from `create_mix`.

    Returns:
        A `Mix`.

    Example:
        >>> from cutmix_jax import mix
        >>> both = mix.in_turn(mix.create_mix('cutout', size=16), mix.create_mix('mixup'))
        >>> both.name
        'cutout+mixup'

    Reference:
        Table 5 of Yun et al., "CutMix", ICCV 2019, has Cutout + Mixup and Cutout + Manifold Mixup.
    """
    return InTurn("+".join(mix.name for mix in mixes), _layers_of(mixes), mixes)


def by_chance(first, second, *, switch_prob=0.5):
    """Returns the mix that applies one of two mixes, chosen at random for each batch.

    Args:
        first: a mix from `create_mix`.
        second: a mix from `create_mix`.
        switch_prob: the probability of the second, in [0, 1].

    Returns:
        A `Mix`.

    Raises:
        ValueError: if `switch_prob` is out of its range.

    Example:
        >>> from cutmix_jax import mix
        >>> either = mix.by_chance(mix.create_mix('cutmix'), mix.create_mix('mixup', alpha=0.8))
        >>> either.name
        'cutmix_or_mixup'
    """
    check.number("switch_prob", switch_prob, 0, 1)
    mixes = (first, second)
    return ByChance(f"{first.name}_or_{second.name}", _layers_of(mixes), mixes, switch_prob)


def _layers_of(mixes):
    return tuple(layer for layer in LAYERS if any(layer in mix.layers for mix in mixes))


def _layer_names(layers):
    """Returns layers, given as one or several names or numbers, as a tuple of names."""
    layers = (layers,) if isinstance(layers, (int, str)) else tuple(layers)
    table = {name: name for name in LAYERS} | dict(enumerate(LAYERS))
    if not layers:
        raise ValueError(f"layers is empty; expected one or more of {LAYERS} or their numbers.")
    return tuple(check.choice("layer", layer, table) for layer in layers)


def _combine(combination, names, parameters):
    """Makes each part with its parameters, and combines them."""
    if combination is by_chance and "switch_prob" in parameters:
        combination = partial(by_chance, switch_prob=parameters["switch_prob"])
        parameters = {k: v for k, v in parameters.items() if k != "switch_prob"}
    known = {}
    for name in names:
        check.choice("mix", name, RECIPES)
        known |= {key: key for p in parameters_of(name) for key in (p, f"{name}_{p}")}
    for parameter in parameters:
        check.choice(f"mix {' and '.join(names)}: parameter", parameter, known)
    parts = []
    for name in names:
        own = {p: parameters[p] for p in parameters_of(name) if p in parameters}
        own |= {
            p: parameters[f"{name}_{p}"] for p in parameters_of(name) if f"{name}_{p}" in parameters
        }
        parts.append(create_mix(name, **own))
    return combination(*parts)


def _draw_once(mix):
    """Samples abstractly: wrong values raise here and not in the first step."""
    size = mix.options.get("size")
    sides = (1024,) * (len(size) if isinstance(size, tuple) else 2)
    everywhere = dict.fromkeys(mix.layers, sides)
    options = {**mix.options, "across_devices": False}
    options = {k: v for k, v in options.items() if k in mix.options}
    single = replace(mix, options=options)
    jax.eval_shape(lambda key: single.sample(key, 2, everywhere), jax.random.key(0))
