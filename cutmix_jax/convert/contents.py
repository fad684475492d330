"""Finds the network in a PyTorch file: raw or EMA weights, and its name in the file."""

import argparse
import collections
import dataclasses
import re

import numpy as np

from cutmix_jax import UserError
from cutmix_jax.convert.names import PYRAMIDS, some

# Every network that can be converted has one of these. Blocks have none of the last two.
STEMS = ("conv1.weight", "features.0.weight", "layer0.conv1.weight")
INNER = re.compile(r"\.(?:module|_orig_mod)(?=\.)")  # of DataParallel and torch.compile
AVERAGED = re.compile(r"(?:^|[._])(?:ema|swa|avg|averaged?)(?:[._]|$)", re.IGNORECASE)
# timm's options that change a network but not its weights, and values that change nothing.
OPTIONS = {
    "gp": ("None", "", "avg", "fast"),
    "bn_eps": ("None", "1e-05"),
    "model_kwargs": ("None", "{}"),
}


@dataclasses.dataclass(frozen=True)
class Network:
    """One network in a file.

    Attributes:
        where: keys and prefix that lead to it, joined by dots.
        tensors: ``{name: tensor}``, without the prefix.
        strays: ``{name: value}`` of the same `state_dict` that are not part of the network.
        averaged: whether these are EMA weights (or another average over training).
    """

    where: str
    tensors: dict
    strays: dict
    averaged: bool


def choose_network(contents, source="the file", weights=None):
    """Finds the network in the contents of a file.

    Args:
        contents: a `state_dict`, or dictionaries that contain some, at any depth.
        source: the name of the weights in errors.
        weights: 'raw' or 'ema', if the file has both; None: EMA weights if it has any.

    Returns:
        ``(network, notes)``: a `Network`, and sentences about the choice.

    Raises:
        UserError: the file contains no network, none of this kind, or several.

    Example:
        >>> kernel = np.zeros((16, 3, 3, 3))
        >>> network, notes = choose_network({
        ...     'epoch': 3, 'model': {'module.conv1.weight': kernel},
        ...     'model_ema': {'n_averaged': np.array(9), 'module.conv1.weight': kernel}})
        >>> network.where, list(network.tensors), len(notes)
        ('model_ema.module', ['conv1.weight'], 1)
    """
    networks = [
        network
        for where, found in _dictionaries(contents)
        for network in _find_networks(found, where, source, "averaging_state" in contents)
    ]
    kinds = {
        kind: [n for n in networks if n.averaged == (kind == "ema")] for kind in ("raw", "ema")
    }
    if not networks:
        named = named_architecture(contents)
        itself = f"It names itself {named}. " if named else ""
        names = [
            str(name)
            for _, found in _dictionaries(contents)
            for name, value in found.items()
            if _is_tensor(value)
        ] or [str(key) for key in contents]
        raise UserError(
            f"{source} contains no network that this project has: expected names such as "
            f"conv1.weight, but found {some(names, 3)}. {itself}Save the state_dict of one of the "
            "networks of this project."
        )
    if weights and not kinds[weights]:
        wanted, there = ("EMA", "raw") if weights == "ema" else ("raw", "EMA")
        raise UserError(
            f"{source} has no {wanted} weights, only {there} weights ({_places(networks)}). "
            "Leave out --weights."
        )
    wanted = kinds[weights or ("ema" if kinds["ema"] else "raw")]
    if len(wanted) > 1:
        raise UserError(
            f"{source} contains several networks ({_places(wanted)}). Save the state_dict of one."
        )
    (network,) = wanted
    return network, _describe_choice(network, networks, contents, source)


def named_architecture(contents):
    """The name of the network in a file, or None.

    timm's options that change a network but not its weights follow in parentheses.

    Example:
        >>> named_architecture({'args': argparse.Namespace(model='resnet50', gp='max')})
        'resnet50(gp=max)'
    """
    args, hyper = (_mapping(contents.get(key)) for key in ("args", "hyper_parameters"))
    names = [contents.get("arch"), contents.get("architecture")]
    names += [part.get(key) for part in (args, hyper) for key in ("arch", "model", "model_name")]
    name = next((name for name in names if isinstance(name, str) and name), None)
    changes = [f"{key}={args[key]}" for key in OPTIONS if str(args.get(key)) not in OPTIONS[key]]
    return f"{name}({', '.join(changes)})" if name and changes else name


def check_architecture(contents, name, model=None, source="the file"):
    """Compares the name of the network in a file with the network that fits its weights.

    Blur pooling, dilation and strides have no weights that would show them.

    Args:
        contents: the contents of the file.
        name: the network of this project.
        model: the network that the user named, if any.
        source: the name of the weights in messages.

    Returns:
        Sentences about what was assumed.

    Raises:
        UserError: the file names a network that may be a different one, and `model` is None.
    """
    named = named_architecture(contents)
    if named is None:
        if model:
            return []
        return [
            f"{source} does not name its architecture. A plain {name} is assumed. Blur pooling, "
            "dilation and other strides cannot be seen from the weights."
        ]
    if _plain_name(named) in _aliases(name):
        return []
    if model:
        return [f"{source} names its network {named}. It is converted as {name}, as you asked."]
    raise UserError(
        f"{source} names its network {named}. Its weights fit {name}, but parts without weights, "
        "such as blur pooling or dilation, may differ. If they do not, give "
        f"--model {name}."
    )


def _dictionaries(contents):
    """Yields every dictionary once, with the keys that lead to it."""
    pending, seen = collections.deque([("", contents)]), set()
    while pending:
        where, found = pending.popleft()
        if isinstance(found, dict) and id(found) not in seen:
            seen.add(id(found))
            yield where, found
            pending.extend((f"{where}.{key}".lstrip("."), value) for key, value in found.items())


def _find_networks(found, where, source, averaging):
    """Yields the networks among the values of one dictionary."""
    plain, twice = {}, []
    for name, value in found.items():
        short = INNER.sub("", str(name))
        twice += [str(name)] * (short in plain)
        if not short.endswith("num_batches_tracked"):
            plain[short] = value
    tensors = [name for name, value in plain.items() if _is_tensor(value)]
    prefixes = {
        name.removesuffix(stem)
        for name in tensors
        for stem in STEMS
        if f".{name}".endswith(f".{stem}")
    }
    # Blocks have a conv1 too. A prefix inside a network is part of it.
    prefixes = [p for p in prefixes if not any(p != q and p.startswith(q) for q in prefixes)]
    if prefixes and twice:
        raise UserError(
            f"{source} contains some weights twice ({some(twice)}). Save the state_dict of one of "
            "the networks."
        )
    outside = {k: v for k, v in plain.items() if not k.startswith(tuple(prefixes))}
    for prefix in sorted(prefixes):
        inside = {k.removeprefix(prefix): v for k, v in plain.items() if k.startswith(prefix)}
        strange = [name for name, value in inside.items() if not _is_tensor(value)]
        if strange:
            raise UserError(
                f"{source} contains values that are not tensors ({some(strange)}), but a "
                "state_dict was expected. Save model.state_dict()."
            )
        place = f"{where}.{prefix}".strip(".")
        # Lightning replaces the weights by the averages, and keeps the weights elsewhere.
        swapped = averaging and place.split(".")[0] == "state_dict"
        averaged = bool(AVERAGED.search(place)) or "n_averaged" in outside or swapped
        yield Network(place, inside, outside, averaged)


def _describe_choice(network, networks, contents, source):
    """Sentences about which weights were used, and which were not."""
    notes, count = [], network.strays.get("n_averaged")
    others = [n for n in networks if n.averaged != network.averaged]
    used = f"EMA weights ({_places([network])})"
    if others:
        raw, ema = (others, [network]) if network.averaged else ([network], others)
        word, flag = ("EMA", "raw") if network.averaged else ("raw", "ema")
        notes.append(
            f"{source} has raw weights ({_places(raw)}) and EMA weights ({_places(ema)}). "
            f"The {word} weights are used. --weights {flag} uses the others."
        )
    elif network.averaged:
        notes.append(f"{source} has {used} and no raw weights.")
    if count is not None and not np.any(np.asarray(count)):
        notes.append("Its n_averaged is 0: no step has been averaged yet.")
    places = {n.where.split(".")[0] for n in networks}
    for key, value in contents.items():
        nameless = isinstance(value, dict | list | tuple) and value and str(key) not in places
        if nameless and AVERAGED.search(str(key)):
            notes.append(f"The entry {key!r} of {source} has no known network: left out.")
    strays = [name for name in network.strays if name != "n_averaged"]
    if strays:
        notes.append(f"Left out, because they are not part of the network: {some(strays)}.")
    return notes


def _places(networks):
    return ", ".join(network.where or "the file itself" for network in networks)


def _is_tensor(value):
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _mapping(value):
    """Saved arguments as a dictionary."""
    if isinstance(value, argparse.Namespace):
        return vars(value)
    return value if isinstance(value, dict) else {}


def _plain_name(architecture):
    """A name without its source, its training data and separators."""
    name = re.sub(r".*[/:]", "", architecture.lower())  # the hub
    if "(" not in name:
        name = name.partition(".")[0]  # timm's tag of the weights
    name = re.sub(r"^(tv|gluon|ssl|swsl|legacy)_|_v1b$", "", name)
    return re.sub(r"[^a-z0-9(=,]", "", name)


def _aliases(name):
    """Other names of a network, including that of its family."""
    aliases = {name, name.removesuffix("_basic"), name.removesuffix("_gap")}
    aliases.add(name.replace("wide_resnet", "wrn"))
    aliases |= {full for full, short in PYRAMIDS.items() if short == name}
    aliases.add(re.match(r"[a-z_]+", name)[0])
    return {_plain_name(alias) for alias in aliases}
