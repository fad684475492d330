"""Mixes by name, with their parameters, and combinations of mixes."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cutmix_jax.mix import check
from cutmix_jax.mix.plan import Plan, on_device, select, switched
from cutmix_jax.mix.saliency import sample_saliencymix
from cutmix_jax.mix.sample import (
    sample_cutmix,
    sample_cutout,
    sample_erasing,
    sample_hmix,
    sample_mixup,
    sample_resizemix,
)
from cutmix_jax.mix.sampled_masks import sample_cowmix, sample_fmix, sample_gmix, sample_gridmix
from cutmix_jax.mix.types import Axes, Sides, UnpairedScope

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
        needs_images: whether `sample` needs the images, because its plans depend on them.

    Example:
        >>> from cutmix_jax import mix
        >>> mix.create_mix('feature_cutmix').layers
        ('image', 'stem', 'layer1', 'layer2', 'layer3')
    """

    name: str
    layers: tuple[str, ...] = ()

    @property
    def needs_images(self) -> bool:
        return False

    def sample(
        self,
        key: jax.Array,
        batch_size: int,
        sides: Sides | Mapping[str, Sides],
        *,
        images: ArrayLike | None = None,
        spatial_axes: Axes = (1, 2),
        progress: ArrayLike = 0.0,
        axis_name: str | None = None,
    ) -> tuple[Plan, ...]:
        """Returns the plans of one step, in the order to apply them: a tuple of `Plan`.

        Args:
            key: a JAX random key, the same on every device.
            batch_size: B, of this device's shard.
            sides: height and width of the image, `(H, W)`; or, for mixes at feature maps, a mapping
                from each of `layers` to the height and width of its map.
            images: the batch before mixing, `[B, H, W, C]`, for mixes with `needs_images`.
            spatial_axes: the spatial axes of `images`.
            progress: the fraction of training that is done, in [0, 1]; may be traced.
            axis_name: inside `pmap` or `shard_map`, the name of the axis over devices.

        Returns:
            A tuple of `Plan`, empty for `'none'`. `plan.layer` names the feature map of each.

        Raises:
            ValueError: while tracing, if `sides` lacks a layer, or images are needed.

        Example:
            >>> import jax
            >>> from cutmix_jax import mix
            >>> both = mix.chain(mix.create_mix('cutout'), mix.create_mix('mixup'))
            >>> plans = both.sample(jax.random.key(0), 8, (32, 32))
            >>> [plan.fill for plan in plans]
            [0.0, None]
        """
        return ()

    def describe(self) -> str:
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

    @property
    def needs_images(self):
        return "images" in inspect.signature(self.sampler).parameters

    def sample(
        self,
        key,
        batch_size,
        sides,
        *,
        images=None,
        spatial_axes=(1, 2),
        progress=0.0,
        axis_name=None,
    ):
        progress = jnp.asarray(progress, jnp.float32)
        factor = jnp.where(progress <= self.until, SCHEDULES[self.schedule](progress), 0.0)
        prob = jnp.asarray(self.options["prob"], jnp.float32) * factor
        options = dict(self.options) | {"prob": prob}
        if self.needs_images:
            if images is None:
                raise ValueError(
                    f"mix '{self.name}' depends on the images, but sample() got none. Give it"
                    f" images=, the batch before mixing."
                )
            options |= {"images": images, "spatial_axes": spatial_axes}
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
        words = WORDS[self.sampler](self.options) if self.sampler in WORDS else self.name
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
class Combined(Mix):
    """Several mixes. Its subclasses hand the options of `sample` on to all of them."""

    parts: tuple[Mix, ...] = ()

    @property
    def needs_images(self):
        return any(part.needs_images for part in self.parts)


@dataclass(frozen=True)
class Chain(Combined):
    """All of its parts, one after the other."""

    def sample(self, key, batch_size, sides, **options):
        keys = [jax.random.fold_in(key, i) for i in range(len(self.parts))]
        return _in_order(
            plan
            for key, part in zip(keys, self.parts, strict=True)
            for plan in part.sample(key, batch_size, sides, **options)
        )

    def describe(self):
        return ", then ".join(part.describe() for part in self.parts)


@dataclass(frozen=True)
class RandomChoice(Combined):
    """One of its parts, drawn anew for each batch, device or image."""

    weights: tuple[Any, ...] = field(default=(), hash=False)
    scope: str = "batch"

    def sample(self, key, batch_size, sides, *, axis_name=None, **options):
        key, *keys = jax.random.split(key, 1 + len(self.parts))
        plans = [
            part.sample(part_key, batch_size, sides, axis_name=axis_name, **options)
            for part_key, part in zip(keys, self.parts, strict=True)
        ]
        if self.scope != "batch":
            key = on_device(key, axis_name)
        draws = (batch_size if self.scope == "image" else 1,)
        number = jax.random.uniform(key, draws, jnp.float32) * sum(self.weights)
        chosen = jnp.zeros(draws, jnp.int32)
        for i in range(1, len(keys)):  # the last part has the lowest numbers
            chosen += (number < sum(self.weights[i:])).astype(jnp.int32)
        if self.scope != "batch":
            return (select(chosen, plans),)
        return _in_order(
            switched(plan, chosen == i) for i, drawn in enumerate(plans) for plan in drawn
        )

    def describe(self):
        first, *others = (part.describe() for part in self.parts)
        total = sum(self.weights)
        words = [
            f"; or, with probability {weight / total:g}, {part}"
            for weight, part in zip(self.weights[1:], others, strict=True)
        ]
        per = "" if self.scope == "batch" else f"; chosen per {self.scope}"
        return first + "".join(words) + per


def _in_order(plans):
    """Returns the plans in the order of the forward pass."""
    return tuple(sorted(plans, key=lambda plan: LAYERS.index(plan.layer)))


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


def _beta_words(options):
    return "lambda ~ Beta({0:g}, {0:g})".format(options["alpha"])


def _box_words(options):
    size, placement = options["size"], options["placement"]
    if size is None and options["lengths"] == "uniform":
        size = "lengths {min_ratio:g} to {max_ratio:g} of the sides, uniform".format(**options)
    elif size is None:
        size = _beta_words(options)
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
    "area": "labels weighted by area",
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
    return f"Mixup: {_beta_words(options)} per {options['scope']}, {_partner_words(options)}"


def _cutout_words(options):
    return f"Cutout: {_box_words(options)}, filled with {options['fill']}"


def _erasing_words(options):
    fill, bounds = options["fill"], (*options["area"], *options["aspect"])
    fill = {"color": "a random color", "noise": "noise"}[fill] if isinstance(fill, str) else fill
    shape = "area {:g} to {:g}, height over width {:g} to {:g}".format(*bounds)
    return f"random erasing: one box per {options['scope']} ({shape}), filled with {fill}"


def _mask_words(name, what, options, *values):
    values = "; ".join(value for value in values if value)
    return f"{name}: one {what} per {options['scope']} ({values}), {_partner_words(options)}"


def _range_words(name, options):
    return f"{name} {options[f'min_{name}']:g} to {options[f'max_{name}']:g}"


def _hmix_words(options):
    fraction = f"the box has {options['box_fraction']:g} of the partner's weight"
    return _mask_words("HMix", "box in a blend", options, _beta_words(options), fraction)


def _gmix_words(options):
    return _mask_words("GMix", "Gaussian bump", options, _beta_words(options))


def _gridmix_words(options):
    ranges = [_range_words(name, options) for name in ("area", "aspect", "cells")]
    return _mask_words("GridMix", "grid", options, _beta_words(options), *ranges)


def _fmix_words(options):
    cells = options["resolution"]
    cells = "" if cells is None else f"{cells} cells along the longest side"
    noise = f"mask from noise of 1 / f^{options['decay']:g}"
    return _mask_words("FMix", noise, options, _beta_words(options), cells)


def _cowmix_words(options):
    sigma = _range_words("sigma", options) + " of the side"
    return _mask_words(
        "CowMix", "mask from blurred noise", options, _range_words("area", options), sigma
    )


def _resizemix_words(options):
    bounds = "{min_ratio:g} to {max_ratio:g}".format(**options)
    return (
        f"ResizeMix: one whole partner per {options['scope']}, resized to {bounds} of the side,"
        f" {_partner_words(options)}; labels weighted by area"
    )


def _saliencymix_words(options):
    alpha = f"{options['alpha']:g}"
    return (
        f"SaliencyMix: a box per image where its partner is most salient (lambda ~ Beta({alpha},"
        f" {alpha}) per {options['scope']}), {_partner_words(options)}; labels weighted by area"
    )


WORDS = {
    sample_cutmix: _cutmix_words,
    sample_mixup: _mixup_words,
    sample_cutout: _cutout_words,
    sample_erasing: _erasing_words,
    sample_hmix: _hmix_words,
    sample_gmix: _gmix_words,
    sample_gridmix: _gridmix_words,
    sample_fmix: _fmix_words,
    sample_cowmix: _cowmix_words,
    sample_resizemix: _resizemix_words,
    sample_saliencymix: _saliencymix_words,
}

# What each mix changes of its sampler's defaults.
MIXES = {
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
    "erasing": (sample_erasing, {}),
    "hmix": (sample_hmix, {}),
    "gmix": (sample_gmix, {}),
    "gridmix": (sample_gridmix, {}),
    "fmix": (sample_fmix, {}),
    "cowmix": (sample_cowmix, {}),
    "resizemix": (sample_resizemix, {}),
    "saliencymix": (sample_saliencymix, {}),
}


# What samplers get from `Mix.sample`.
GIVEN_TO_SAMPLE = ("axis_name", "images", "spatial_axes")


def parameters_of(name):
    """Returns the parameters of a mix with their defaults."""
    sampler, changes = MIXES[name]
    signature = inspect.signature(sampler).parameters.values()
    options = {p.name: p.default for p in signature if p.kind is p.KEYWORD_ONLY}
    options = {name: value for name, value in options.items() if name not in GIVEN_TO_SAMPLE}
    return options | {"schedule": "constant", "until": 1.0, "layers": (0,)} | changes


def create_mix(name: str, **parameters: Any) -> Mix:
    """Returns the mix of that name.

    Args:
        name: `'none'`, `'cutmix'`, `'center_gaussian_cutmix'`, `'fixed_size_cutmix'`,
            `'one_hot_cutmix'`, `'scheduled_cutmix'`, `'complete_label_cutmix'`, `'mixup'`,
            `'cutout'`, `'erasing'`, `'resizemix'`, `'saliencymix'`, `'hmix'`, `'gmix'`,
            `'gridmix'`, `'fmix'`, `'cowmix'`. At feature maps: `'manifold_mixup'`,
            `'feature_cutmix'`. `chain` and `random_choice` combine mixes.
        **parameters: options of the sampler (`sample_cutmix`, `sample_mixup`, ...) that differ from
            the defaults of the mix, and for all of them

            * `schedule`: `'linear'` multiplies prob by the fraction of training that is done,
              `'constant'` does not;
            * `until`: the fraction of training after which nothing is mixed;
            * `layers`: feature maps, as names or numbers in `LAYERS`. If there are several, one is
              sampled per batch.

    Returns:
        A `Mix`.

    Raises:
        ValueError: if the name or a parameter is unknown, or a value is out of its range.

    Example:
        >>> from cutmix_jax import mix
        >>> print(mix.create_mix('cutmix', alpha=0.2, box='paper').describe())
        CutMix: one 'paper' box per batch (lambda ~ Beta(0.2, 0.2); center uniform), partner by
        permutation; labels weighted by area
    """
    if name == "none" and not parameters:
        return Mix("none")
    check.choice("mix", name, ("none", *MIXES))
    defaults = {} if name == "none" else parameters_of(name)
    for parameter in parameters:
        check.choice(f"mix '{name}': parameter", parameter, defaults)
    options = defaults | parameters
    if "size" in options:
        options["size"] = check.size(options["size"])
    mix = OneMix(
        name,
        layers=_layer_names(options.pop("layers")),
        sampler=MIXES[name][0],
        schedule=check.choice("schedule", options.pop("schedule"), tuple(SCHEDULES)),
        until=options.pop("until"),
        options=options,
    )
    if mix.needs_images and mix.layers != ("image",):
        raise ValueError(f"mix '{name}' is for images, but layers={mix.layers}. Leave layers out.")
    check.number("until", mix.until, 0, 1)
    check.number("prob", options["prob"], 0, 1)
    _draw_once(mix)
    return mix


def chain(*mixes: Mix) -> Mix:
    """Returns the mix that applies several mixes, one after the other.

    Args:
        *mixes: mixes from `create_mix`, `chain` and `random_choice`.

    Returns:
        A `Mix`.

    Example:
        >>> from cutmix_jax import mix
        >>> both = mix.chain(mix.create_mix('cutout', size=16), mix.create_mix('mixup'))
        >>> both.name
        'cutout+mixup'

    Reference:
        Table 5 of Yun et al., "CutMix", ICCV 2019, has Cutout + Mixup and Cutout + Manifold Mixup.
    """
    return Chain("+".join(mix.name for mix in mixes), _layers_of(mixes), mixes)


def random_choice(
    *mixes: Mix, weights: Iterable[ArrayLike] | None = None, scope: UnpairedScope = "batch"
) -> Mix:
    r"""Returns the mix that applies one of several mixes, chosen at random.

    .. math:: P(i) = \text{weights}_i / \textstyle\sum_k \text{weights}_k

    Args:
        *mixes: mixes from `create_mix`, `chain` and `random_choice`.
        weights: one number per mix, at least 0; None: all are equally likely. May be traced.
        scope: `'batch'`: one choice per batch, the same on every device. `'device'`: one per
            device. `'image'`: one per image. The last two make one plan, applied in one pass. Each
            mix must then have one plan, at the same layer, and all that fill the same `fill`.

    Returns:
        A `Mix`.

    Raises:
        ValueError: if the weights do not fit; while tracing, if the mixes do not fit the scope.

    Example:
        >>> import jax
        >>> from cutmix_jax import mix
        >>> either = mix.random_choice(
        ...     mix.create_mix('cutmix'), mix.create_mix('mixup', alpha=0.8), scope='image')
        >>> either.name
        'cutmix_or_mixup'
        >>> (plan,) = either.sample(jax.random.key(0), 8, (32, 32))
        >>> plan.box.shape, plan.ratio.shape
        ((8, 2, 2), (8,))
    """
    weights = (1.0,) * len(mixes) if weights is None else tuple(weights)
    for weight in weights:
        check.number("each of the weights", weight, 0, math.inf)
    weights = tuple(float(w) if check.is_concrete(w) else w for w in weights)
    total = sum(weights)
    if len(weights) != len(mixes) or (check.is_concrete(total) and not 0 < total < math.inf):
        raise ValueError(
            f"weights must be one number per mix, not all of them 0, but for {len(mixes)} mixes"
            f" they are {weights}."
        )
    check.choice("scope", scope, ("batch", "device", "image"))
    name = "_or_".join(mix.name for mix in mixes)
    return RandomChoice(name, _layers_of(mixes), mixes, weights, scope)


def _layers_of(mixes):
    return tuple(layer for layer in LAYERS if any(layer in mix.layers for mix in mixes))


def _layer_names(layers):
    """Returns layers, given as one or several names or numbers, as a tuple of names."""
    layers = (layers,) if isinstance(layers, (int, str)) else tuple(layers)
    table = {name: name for name in LAYERS} | dict(enumerate(LAYERS))
    if not layers:
        raise ValueError(f"layers is empty; expected one or more of {LAYERS} or their numbers.")
    return tuple(check.choice("layer", layer, table) for layer in layers)


def _draw_once(mix):
    """Samples abstractly: wrong values raise here and not in the first step."""
    size = mix.options.get("size")
    sides = (1024,) * (len(size) if isinstance(size, tuple) else 2)
    everywhere = dict.fromkeys(mix.layers, sides)
    options = {**mix.options, "across_devices": False}
    options = {k: v for k, v in options.items() if k in mix.options}
    single = replace(mix, options=options)

    def sample(key):
        return single.sample(key, 2, everywhere, images=jnp.zeros((2, *sides, 1)))

    jax.eval_shape(sample, jax.random.key(0))
