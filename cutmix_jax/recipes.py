"""What stands behind the colon of `--config FILE:MODEL,METHOD`: the methods of the paper as words.

METHOD joins words by '+', in the order in which mixes are applied. A word is a mix or a regularizer
of the tables below, and may carry parameters, each as `_NAMEvalue`:

    cutmix    cutmix+shake_drop    cutout+manifold_mixup    mixup_alpha0.5+label_smoothing

`A_or_B` is one of two mixes by chance, drawn for each batch. This file imports neither jax nor the
mixes, so that a command line is read at once.
"""

import difflib
import re

from cutmix_jax import UserError
from cutmix_jax.config import PARTS, parse_arg

# The parameters of each mix, by its word here, with those the paper's experiments set where they
# are not the mix's own defaults: by the kind of data set, as a config file names it.
_CUTMIX = {
    "cifar": {"box": "paper", "prob": 0.5},
    "imagenet": {"box": "paper", "prob": 1.0},
}
_CUTOUT = {
    "cifar": {"box": "paper", "size": 16.0},
    "imagenet": {"box": "paper", "size": 112.0},
}
MIXES = {
    "cutmix": _CUTMIX,
    "center_gaussian_cutmix": _CUTMIX,
    "fixed_size_cutmix": {**_CUTMIX, "cifar": {**_CUTMIX["cifar"], "size": 16.0}},
    "one_hot_cutmix": _CUTMIX,
    # It ends at 1, also where CutMix itself is used half of the time.
    "scheduled_cutmix": {kind: {**values, "prob": 1.0} for kind, values in _CUTMIX.items()},
    "complete_label_cutmix": _CUTMIX,
    "feature_cutmix": _CUTMIX,
    "mixup": {},
    "manifold_mixup": {},
    "cutout": _CUTOUT,
}
# For light networks: the authors' answer for ResNet-110.
LIGHT_CUTMIX_PROB = {"resnet110": 1.0}

REGULARIZERS = {
    "stochastic_depth": {"any": {"stochastic_depth": 0.25}},
    "shake_drop": {"any": {"shake_drop": 0.5}},
    "drop_block": {
        "any": {"drop_block.rate": 0.1, "drop_block.size": 4, "drop_block.stages": (2, 3)},
        "imagenet": {
            "drop_block.size": 7,
            "drop_block.stages": (3, 4),
            "drop_block.schedule": "linear",
        },
    },
    "label_smoothing": {"any": {"label_smoothing": 0.1}},
}
# Where the paper copies a row from another one, whose runs had another length.
ROWS = {("imagenet", "drop_block"): {"epochs": 270}}

# What `_NAMEvalue` sets: for mixes a parameter of `mix.create_mix`, for the others a config key.
PARAMETERS = {
    **{
        name: {"layer" if key == "layers" else key: key for key in keys}
        for name, keys in PARTS.items()
    },
    "stochastic_depth": {"prob": "stochastic_depth"},
    "shake_drop": {"prob": "shake_drop"},
    "drop_block": {"rate": "drop_block.rate", "size": "drop_block.size"},
    "label_smoothing": {"epsilon": "label_smoothing"},
}
WORDS = ("baseline", *MIXES, *REGULARIZERS)


def apply_recipe(config, arg, default_model, kind=None):
    """Sets the model and all that METHOD says in a config.

    Args:
      config: from `config.base_config`; changed in place.
      arg: 'MODEL,METHOD', either of which may be left out; METHOD is 'cutmix' then.
      default_model: the model where `arg` names none.
      kind: 'cifar' or 'imagenet', for the paper's values on those; None for the mixes' own.

    Raises:
      UserError: a word or parameter is unknown, or the words do not go together.

    Example:
      >>> from cutmix_jax.config import base_config
      >>> config = base_config()
      >>> apply_recipe(config, 'pyramidnet200,cutmix+shake_drop', 'resnet110', 'cifar')
      >>> config.model, config.mix.name, config.mix.prob, config.shake_drop
      ('pyramidnet200', 'cutmix', 0.5, 0.5)
      >>> apply_recipe(config, ',mixup_alpha0.5', 'resnet110', 'cifar')
      >>> config.model, config.mix.alpha
      ('resnet110', 0.5)
    """
    config.model, method = parse_arg(arg, default_model)
    values = read_method(method, config.model, kind)
    config.update_from_flattened_dict(values)


def read_method(method, model=None, kind=None):
    """The config keys that a METHOD sets, with their values.

    Args:
      method: words joined by '+'.
      model: the network's name, since a light network takes CutMix more often.
      kind: as for `apply_recipe`.

    Returns:
      A dictionary with keys such as 'mix.name' and 'drop_block.size'.

    Raises:
      UserError: as `apply_recipe`.

    Example:
      >>> read_method('drop_block_size8+label_smoothing')['drop_block.size']
      8
    """
    words = [word.strip() for word in method.split("+")]
    if words in (["baseline"], ["none"]):
        return {"mix.name": "none"}
    either = [word for word in words if "_or_" in word]
    joined = "_or_" if either else "+"
    parts = [_read_word(part) for word in words for part in word.split("_or_")]
    names = [name for name, _ in parts]
    mixes = [(name, given) for name, given in parts if name in MIXES]
    _check_together(method, names, either, len(mixes))

    values = {"mix.name": joined.join(name for name, _ in mixes) or "none"}
    for name, given in mixes:
        parameters = {**MIXES[name].get(kind, {})}
        if "prob" in parameters:
            parameters["prob"] = LIGHT_CUTMIX_PROB.get(model, parameters["prob"])
        if either:  # the choice between the two takes the place of its own probability
            parameters.pop("prob", None)
        for key, value in (parameters | given).items():
            # Of several mixes each has its own; the rule of boxes is one for all.
            alone = len(mixes) == 1 or key == "box"
            values[f"mix.{key}" if alone else f"mix.{name}_{key}"] = value
    for name, given in parts:
        if name in REGULARIZERS:
            table = REGULARIZERS[name]
            values |= table["any"] | table.get(kind, {}) | given
    return values | ROWS.get((kind, method), {})


def _read_word(word):
    """The name in a word, and the parameters that it carries."""
    if word == "none":
        word = "baseline"
    known = [name for name in WORDS if word == name or word.startswith(f"{name}_")]
    name = max(known, key=len, default=None)
    rest = word[len(name) :] if name else ""
    if name is None or not re.fullmatch(r"(_[a-z]+-?\d+(\.\d*)?)*", rest):
        near = difflib.get_close_matches(word, WORDS, n=3, cutoff=0.5)
        hint = f"the nearest are {', '.join(near)}" if near else f"there are {', '.join(WORDS)}"
        raise UserError(
            f"There is no method {word!r} ({hint}): METHOD is such words joined by '+', each with "
            "its parameters, as in cutmix_alpha0.5+shake_drop."
        )
    given = {}
    for key, number in re.findall(r"_([a-z]+)(-?[\d.]+)", rest):
        keys = PARAMETERS.get(name, {})
        if key not in keys:
            raise UserError(
                f"The method {name!r} has no parameter {key!r} that {word!r} could set: it has "
                f"{', '.join(keys) or 'none'}; set others by --config.KEY=VALUE."
            )
        given[keys[key]] = _to_value(word, keys[key], number)
    return name, given


def _to_value(word, key, number):
    """The number behind a parameter's name, of the type that the config key has."""
    value = float(number)
    if key not in ("layers", "drop_block.size"):
        return value
    if not value.is_integer():
        raise UserError(f"{word!r} gives {number} where a whole number is expected.")
    return (int(value),) if key == "layers" else int(value)


def _check_together(method, names, either, mixes):
    """Refuses words that contradict each other."""
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(
            f"The method {method!r} names {twice[0]!r} twice: name each method once, with the "
            "parameters it is to have."
        )
    if "baseline" in names:
        raise UserError(
            f"The method {method!r} joins 'baseline', which is no method at all, with others: "
            "leave one or the other out."
        )
    others = [name for name in names if name in REGULARIZERS]
    if either and (mixes != 2 or any(name in word for word in either for name in others)):
        raise UserError(
            f"The method {method!r} has '_or_' beside other mixes: it joins two mixes, such as "
            "cutmix_or_mixup, and no third one may stand beside them."
        )
