"""Reads MODEL,METHOD and `config.mix.name`.

METHOD is one or more words joined by '+'; mixes are applied in this order. A word is a mix or a
regularizer from the tables below. It may carry parameters, each as `_NAMEvalue`:

    cutmix    cutmix+shake_drop    cutout+manifold_mixup    mixup_alpha0.5+label_smoothing

`A_or_B` chooses one of two or more mixes at random for each batch, and `A_weight3_or_B` chooses A
three times as often as B. Regularizers and a single mix set their keys in the config. Several mixes
have parameters of their own, so `mix.name` keeps their words. This module imports neither jax nor
the mixes, so command lines are parsed at once.
"""

import difflib
import re

from cutmix_jax import UserError, nearest

# The CutMix paper's parameters of each mix where they differ from its defaults, by kind of dataset.
_CUTMIX = {
    "cifar": {"box": "paper", "prob": 0.5},
    "imagenet": {"box": "paper", "prob": 1.0},
}
_CUTOUT = {
    "cifar": {"box": "paper", "size": 16.0},
    "imagenet": {"box": "paper", "size": 112.0},
}
PAPER_VALUES = {
    "cutmix": _CUTMIX,
    "center_gaussian_cutmix": _CUTMIX,
    "fixed_size_cutmix": {**_CUTMIX, "cifar": {**_CUTMIX["cifar"], "size": 16.0}},
    "one_hot_cutmix": _CUTMIX,
    # The schedule ends at 1, even where CutMix itself has a probability of 0.5.
    "scheduled_cutmix": {kind: {**values, "prob": 1.0} for kind, values in _CUTMIX.items()},
    "complete_label_cutmix": _CUTMIX,
    "feature_cutmix": _CUTMIX,
    "mixup": {},
    "manifold_mixup": {},
    "cutout": _CUTOUT,
    "erasing": {},
    "hmix": {},
    "gmix": {},
    "gridmix": {},
    "fmix": {},
    "cowmix": {},
    "resizemix": {},
    "saliencymix": {},
}
# For light networks. The authors named this value for ResNet-110.
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
# A row that the paper copies from another paper, with runs of another length.
ROWS = {("imagenet", "drop_block"): {"epochs": 270}}

# What `_NAMEvalue` sets: a parameter of `mix.create_mix` for mixes, a config key for the others.
_BOX = {"alpha": "alpha", "prob": "prob", "size": "size", "layer": "layers"}
_BETA = {"alpha": "alpha", "prob": "prob"}
PARAMETERS = {
    **dict.fromkeys(PAPER_VALUES, _BOX),
    **dict.fromkeys(("mixup", "hmix", "gmix", "gridmix"), _BETA),
    "manifold_mixup": {"alpha": "alpha", "prob": "prob", "layer": "layers"},
    "cutout": {"prob": "prob", "size": "size"},
    "erasing": {"prob": "prob"},
    "fmix": {"alpha": "alpha", "prob": "prob", "decay": "decay"},
    "cowmix": {"prob": "prob"},
    "resizemix": {"prob": "prob"},
    "saliencymix": {"alpha": "alpha", "prob": "prob"},
    "stochastic_depth": {"prob": "stochastic_depth"},
    "shake_drop": {"prob": "shake_drop"},
    "drop_block": {"rate": "drop_block.rate", "size": "drop_block.size"},
    "label_smoothing": {"epsilon": "label_smoothing"},
}
WORDS = ("baseline", *PAPER_VALUES, *REGULARIZERS)


def parse_arg(arg, default_model, second="METHOD", default="cutmix"):
    """Splits a config's argument, 'MODEL,METHOD', either of which may be left out.

    Args:
        arg: the argument, or None.
        default_model: the model if `arg` names none.
        second: name of the second part in messages.
        default: the second part if `arg` has none.

    Raises:
        UserError: it has more than two parts.

    Example:
        >>> parse_arg('resnet56,baseline', 'resnet20'), parse_arg(None, 'resnet20')
        (('resnet56', 'baseline'), ('resnet20', 'cutmix'))
    """
    parts = [part.strip() for part in (arg or "").split(",")]
    if len(parts) > 2:
        raise UserError(
            f"The config argument {arg!r} has {len(parts)} parts, but MODEL,{second} was expected, "
            f"as in {default_model},{default}."
        )
    model, method = [*parts, ""][:2]
    return model or default_model, method or default


# The values of config.task that a config's argument can name.
DETECTORS = ("ssd", "faster_rcnn")


def apply_detector(config, arg, default_model):
    """Sets the model, the task and what detections are kept in the config of a detector.

    Args:
        config: from `config.base_config`; changed in place.
        arg: 'MODEL,DETECTOR', either of which may be left out. DETECTOR defaults to 'ssd'.
        default_model: the backbone if `arg` names none.

    Raises:
        UserError: there is no such detector.

    Example:
        >>> from cutmix_jax.config import base_config
        >>> config = base_config()
        >>> apply_detector(config, 'resnet101', 'resnet50')
        >>> config.model, config.task
        ('resnet101', 'ssd')
    """
    config.model, config.task = parse_arg(arg, default_model, "DETECTOR", "ssd")
    if config.task not in DETECTORS:
        raise UserError(
            f"There is no detector {config.task!r} ({nearest(config.task, DETECTORS)}). Name one, "
            f"as in {default_model},ssd."
        )
    if config.task == "faster_rcnn":
        config.detection.nms_threshold = 0.3
        config.detection.min_score = 0.0


def apply_captioner(config, arg, default_model):
    """Sets the model, the task and the optimizer in the config of a captioner.

    Args:
        config: from `config.base_config`; changed in place.
        arg: 'MODEL', the encoder; None or '' for the default.
        default_model: the encoder if `arg` names none.

    Raises:
        UserError: `arg` has more than one part.

    Example:
        >>> from cutmix_jax.config import base_config
        >>> config = base_config()
        >>> apply_captioner(config, 'resnet101', 'resnet50')
        >>> config.model, config.task, config.optimizer
        ('resnet101', 'captioning', 'adam')
    """
    if "," in (arg or ""):
        raise UserError(
            f"The config argument is {arg!r}, but one MODEL was expected, as in {default_model}."
        )
    config.model, config.task = arg or default_model, "captioning"
    config.optimizer = "adam"
    config.nesterov = False
    config.weight_decay = 0.0
    config.lr_drops = ()


def apply_method(config, arg, default_model, kind=None, default="cutmix"):
    """Sets the model and the keys of METHOD in a config.

    Args:
        config: from `config.base_config`; changed in place.
        arg: 'MODEL,METHOD', either of which may be left out.
        default_model: the model if `arg` names none.
        kind: 'cifar' or 'imagenet', for the paper's values; None for the mixes' defaults.
        default: METHOD if `arg` names none.

    Raises:
        UserError: a word or parameter is unknown, or the words contradict each other.

    Example:
        >>> from cutmix_jax.config import base_config
        >>> config = base_config()
        >>> apply_method(config, 'pyramidnet200,cutmix+shake_drop', 'resnet110', 'cifar')
        >>> config.model, config.mix.name, config.mix.prob, config.shake_drop
        ('pyramidnet200', 'cutmix', 0.5, 0.5)
        >>> apply_method(config, ',mixup_alpha0.5', 'resnet110', 'cifar')
        >>> config.model, config.mix.alpha
        ('resnet110', 0.5)
    """
    config.model, method = parse_arg(arg, default_model, default=default)
    values = read_method(method, config.model, kind)
    config.update_from_flattened_dict(values)


def read_method(method, model=None, kind=None):
    """The config keys that a METHOD sets, with their values.

    Args:
        method: words joined by '+'.
        model: name of the network; light networks use CutMix with a higher probability.
        kind: as for `apply_method`.

    Returns:
        A dictionary with keys such as 'mix.name' and 'drop_block.size'.

    Raises:
        UserError: as for `apply_method`.

    Example:
        >>> read_method('drop_block_size8+label_smoothing')['drop_block.size']
        8
    """
    groups = [[(word, *_read_word(word)) for word in words] for words in _split(method)]
    parts = [part for group in groups for part in group]
    _check_together(method, groups, [name for _, name, _ in parts])
    mixes = [group for group in groups if group[0][1] in PAPER_VALUES]
    values, names = {}, []
    for group in mixes:
        names.append([])
        for word, name, given in group:
            paper = {**PAPER_VALUES[name].get(kind, {})}
            if "prob" in paper:
                paper["prob"] = LIGHT_CUTMIX_PROB.get(model, paper["prob"])
            if len(group) > 1:  # the random choice replaces its probability
                paper.pop("prob", None)
            if "box" in paper:  # one key for all mixes
                values["mix.box"] = paper.pop("box")
            if len(mixes) == len(group) == 1:
                values |= {f"mix.{key}": value for key, value in (paper | given).items()}
                names[-1].append(name)
            else:
                own = [f"_{key}{value:g}" for key, value in paper.items() if key not in given]
                names[-1].append("".join([word, *own]))
    values["mix.name"] = "+".join(map("_or_".join, names)) or "none"
    for _, name, given in parts:
        if name in REGULARIZERS:
            table = REGULARIZERS[name]
            values |= table["any"] | table.get(kind, {}) | given
    return values | ROWS.get((kind, method), {})


def create_mix(settings, where="config.mix"):
    """The mix of a config's section `mix`.

    Args:
        settings: a mapping with `name`, as described above, and parameters of `mix.create_mix`. A
            parameter goes to every mix that has it, unless the mix's word sets its own. None is the
            mix's default. `switch_prob` is the probability of the second mix in 'FIRST_or_SECOND',
            and `switch_scope` the scope of every choice.
        where: name of the settings in error messages.

    Returns:
        A `mix.Mix`.

    Raises:
        UserError: a mix or parameter does not exist, or a value is out of range.

    Example:
        >>> create_mix({'name': 'cutout_size16+mixup', 'alpha': 0.2}).name
        'cutout+mixup'
    """
    from cutmix_jax import mix  # imports jax
    from cutmix_jax.mix.named import parameters_of

    given = {key: value for key, value in settings.items() if value is not None}
    name, used = given.pop("name"), set()

    def create_one(word, count):
        part, own = _read_word(word)
        _check_weight(word, own, count)
        weight = own.pop("weight", None)
        if part == "baseline":
            return mix.create_mix("none"), weight
        if part not in PAPER_VALUES:
            raise UserError(f"There is no mix {word!r} ({nearest(word, PAPER_VALUES)}).")
        shared = {key: given[key] for key in given.keys() & parameters_of(part)}
        used.update(shared)
        return mix.create_mix(part, **shared | own), weight

    def create_group(words):
        parts, weights = zip(*(create_one(word, len(words)) for word in words), strict=True)
        if len(parts) == 1:
            return parts[0]
        used.update(("switch_prob", "switch_scope"))
        weighted = any(weight is not None for weight in weights)
        weights = [1.0 if weight is None else weight for weight in weights]
        second = given.get("switch_prob")
        if second is not None:
            if weighted or len(parts) > 2 or not 0 <= second <= 1:
                raise UserError(
                    f"switch_prob is {second!r}, but a number from 0 to 1 was expected, for two "
                    "mixes without weights in their names."
                )
            weights = [1 - second, second]
        return mix.random_choice(*parts, weights=weights, scope=given.get("switch_scope", "batch"))

    try:
        parts = [create_group(words) for words in _split(name)]
        for key in given.keys() - used:
            raise UserError(f"{name!r} has no parameter {key!r}.")
        return parts[0] if len(parts) == 1 else mix.chain(*parts)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error


def _split(method):
    """The parts between '+', each as a list of the words between '_or_'."""
    return [[word.strip() for word in words.split("_or_")] for words in method.split("+")]


def _read_word(word):
    """The name in a word, and its parameters."""
    if word == "none":
        word = "baseline"
    known = [name for name in WORDS if word == name or word.startswith(f"{name}_")]
    name = max(known, key=len, default=None)
    rest = word[len(name) :] if name else ""
    if name is None or not re.fullmatch(r"(_[a-z]+-?\d+(\.\d*)?)*", rest):
        near = difflib.get_close_matches(word, WORDS, n=3, cutoff=0.5)
        hint = f"the nearest are {', '.join(near)}" if near else f"there are {', '.join(WORDS)}"
        raise UserError(
            f"There is no method {word!r} ({hint}). METHOD joins words by '+', each with its "
            "parameters, as in cutmix_alpha0.5+shake_drop."
        )
    given = {}
    for key, number in re.findall(r"_([a-z]+)(-?[\d.]+)", rest):
        keys = PARAMETERS.get(name, {}) | ({"weight": "weight"} if name in PAPER_VALUES else {})
        if key not in keys:
            raise UserError(
                f"The method {name!r} has no parameter {key!r}, which {word!r} sets. It has "
                f"{', '.join(keys) or 'none'}; set others with --config.KEY=VALUE."
            )
        given[keys[key]] = _to_value(word, keys[key], number)
    return name, given


def _to_value(word, key, number):
    """The value of a parameter, in the type of its config key."""
    value = float(number)
    if key not in ("layers", "drop_block.size"):
        return value
    if not value.is_integer():
        raise UserError(f"{word!r} has {number}, but a whole number was expected.")
    return (int(value),) if key == "layers" else int(value)


def _check_weight(word, given, count):
    """Rejects the weight of a mix that is not one of several."""
    if "weight" in given and count == 1:
        raise UserError(
            f"{word!r} has a weight, but only mixes that '_or_' joins have one, as in "
            "cutmix_weight3_or_mixup."
        )


def _check_together(method, groups, names):
    """Rejects words that contradict each other."""
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(
            f"The method {method!r} names {twice[0]!r} twice. Name each one once, with its "
            "parameters."
        )
    if "baseline" in names and len(names) > 1:
        raise UserError(
            f"The method {method!r} joins 'baseline' with other methods. Remove 'baseline' or the "
            "others."
        )
    for group in groups:
        _check_weight(group[0][0], group[0][2], len(group))
    if any(len(group) > 1 and name in REGULARIZERS for group in groups for _, name, _ in group):
        raise UserError(
            f"The method {method!r} joins a regularizer by '_or_', which joins only mixes, as in "
            "cutmix_or_mixup."
        )
