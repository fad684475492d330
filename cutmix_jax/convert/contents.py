"""What a file of PyTorch holds: which network, raw or averaged, and what the file calls it."""

import argparse
import collections
import dataclasses
import re

import numpy as np

from cutmix_jax import UserError
from cutmix_jax.convert.names import PYRAMIDS, some

# Every network that may be converted has one of these, and its blocks have none of the last two.
STEMS = ("conv1.weight", "features.0.weight", "layer0.conv1.weight")
INNER = re.compile(r"\.(?:module|_orig_mod)(?=\.)")  # of DataParallel and torch.compile
AVERAGED = re.compile(r"(?:^|[._])(?:ema|swa|avg|averaged?)(?:[._]|$)", re.IGNORECASE)
# timm's options that change a network and none of its weights, and what leaves it as it is.
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
      tensors: ``{name: tensor}``, without what stands before every name.
      strays: ``{name: value}`` of the same `state_dict` that lie outside of the network.
      averaged: whether these are averages of the weights over training.
    """

    where: str
    tensors: dict
    strays: dict
    averaged: bool


def choose_network(contents, source="the file", weights=None):
    """Finds the network in what a file holds.

    Args:
      contents: a `state_dict`, or dictionaries that hold some, at any depth.
      source: what to call the weights in errors.
      weights: 'raw' or 'ema', where the file has both; None: averaged ones where it has them.

    Returns:
      ``(network, notes)``: a `Network`, and sentences about the choice.

    Raises:
      UserError: there is no network, none of this kind, or more than one.

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
        itself = f"It calls itself {named}. " if named else ""
        names = [
            str(name)
            for _, found in _dictionaries(contents)
            for name, value in found.items()
            if _is_tensor(value)
        ] or [str(key) for key in contents]
        raise UserError(
            f"{source} holds no network that can be told by its names: conv1.weight or the like "
            f"was expected, and it has {some(names, 3)}. {itself}Save the "
            "state_dict of one of our networks."
        )
    if weights and not kinds[weights]:
        wanted, there = ("averaged", "raw") if weights == "ema" else ("raw", "averaged")
        raise UserError(
            f"{source} holds no {wanted} weights, only {there} ones ({_places(networks)}). "
            "Leave out --weights."
        )
    wanted = kinds[weights or ("ema" if kinds["ema"] else "raw")]
    if len(wanted) > 1:
        raise UserError(
            f"{source} holds several networks ({_places(wanted)}). Save the state_dict of one."
        )
    (network,) = wanted
    return network, _describe_choice(network, networks, contents, source)


def named_architecture(contents):
    """What a file calls its network, or None.

    The options of timm's that change a network without its weights follow in parentheses.

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
    """Compares what a file calls its network with the one that its names and shapes fit.

    Blur pooling, dilation and strides have no weights to tell them by.

    Args:
      contents: what the file holds.
      name: the network here.
      model: the network that the user named, if any.
      source: what to call the weights.

    Returns:
      Sentences that say what was assumed.

    Raises:
      UserError: the file names a network that is not known to be ours, and `model` is None.
    """
    named = named_architecture(contents)
    if named is None:
        if model:
            return []
        return [
            f"{source} does not name its architecture, and is taken for a plain {name}. Blur "
            "pooling, dilation and strides have no weights to tell them by."
        ]
    if _plain_name(named) in _aliases(name):
        return []
    if model:
        return [f"{source} calls its network {named}. It is converted as {name}, as you named it."]
    raise UserError(
        f"{source} calls its network {named}. Its weights fit our {name}, but parts without "
        "weights, such as blur pooling or dilation, may differ. If they do not, give "
        f"--model {name}."
    )


def _dictionaries(contents):
    """Every dictionary, once, with the keys that lead to it."""
    pending, seen = collections.deque([("", contents)]), set()
    while pending:
        where, found = pending.popleft()
        if isinstance(found, dict) and id(found) not in seen:
            seen.add(id(found))
            yield where, found
            pending.extend((f"{where}.{key}".lstrip("."), value) for key, value in found.items())


def _find_networks(found, where, source, averaging):
    """The networks among the values of one dictionary."""
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
    # Blocks have a conv1 too: what lies within a network is part of it.
    prefixes = [p for p in prefixes if not any(p != q and p.startswith(q) for q in prefixes)]
    if prefixes and twice:
        raise UserError(
            f"{source} holds some weights twice ({some(twice)}). Save the state_dict of one of "
            "the networks."
        )
    outside = {k: v for k, v in plain.items() if not k.startswith(tuple(prefixes))}
    for prefix in sorted(prefixes):
        inside = {k.removeprefix(prefix): v for k, v in plain.items() if k.startswith(prefix)}
        strange = [name for name, value in inside.items() if not _is_tensor(value)]
        if strange:
            raise UserError(
                f"{source} holds values besides tensors ({some(strange)}) where a state_dict was "
                "expected. Save model.state_dict()."
            )
        place = f"{where}.{prefix}".strip(".")
        # Lightning puts averages in the place of the weights, and these elsewhere.
        swapped = averaging and place.split(".")[0] == "state_dict"
        averaged = bool(AVERAGED.search(place)) or "n_averaged" in outside or swapped
        yield Network(place, inside, outside, averaged)


def _describe_choice(network, networks, contents, source):
    """Sentences about what was taken, and what was not."""
    notes, count = [], network.strays.get("n_averaged")
    others = [n for n in networks if n.averaged != network.averaged]
    taken = f"averaged weights ({_places([network])})"
    if others:
        raw, ema = (others, [network]) if network.averaged else ([network], others)
        word, flag = ("averaged", "raw") if network.averaged else ("raw", "ema")
        notes.append(
            f"{source} holds raw weights ({_places(raw)}) and averaged weights ({_places(ema)}). "
            f"The {word} ones are taken; --weights {flag} takes the others."
        )
    elif network.averaged:
        notes.append(f"{source} holds {taken} and no raw ones.")
    if count is not None and not np.any(np.asarray(count)):
        notes.append("Its n_averaged is 0: no step has been averaged yet.")
    places = {n.where.split(".")[0] for n in networks}
    for key, value in contents.items():
        nameless = isinstance(value, dict | list | tuple) and value and str(key) not in places
        if nameless and AVERAGED.search(str(key)):
            notes.append(f"The {key!r} of {source} holds no network by name, and is left out.")
    strays = [name for name in network.strays if name != "n_averaged"]
    if strays:
        notes.append(f"Left out, because not of the network: {some(strays)}.")
    return notes


def _places(networks):
    return ", ".join(network.where or "the file itself" for network in networks)


def _is_tensor(value):
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _mapping(value):
    """Arguments, as scripts save them, as a dictionary."""
    if isinstance(value, argparse.Namespace):
        return vars(value)
    return value if isinstance(value, dict) else {}


def _plain_name(architecture):
    """A name without what tells sources and training sets apart, and without separators."""
    name = re.sub(r".*[/:]", "", architecture.lower())  # of a hub
    if "(" not in name:
        name = name.partition(".")[0]  # timm's name of the weights
    name = re.sub(r"^(tv|gluon|ssl|swsl|legacy)_|_v1b$", "", name)
    return re.sub(r"[^a-z0-9(=,]", "", name)


def _aliases(name):
    """What others call a network of ours, the name of its family included."""
    aliases = {name, name.removesuffix("_basic"), name.removesuffix("_gap")}
    aliases |= {full for full, short in PYRAMIDS.items() if short == name}
    aliases.add(re.match(r"[a-z_]+", name)[0])
    return {_plain_name(alias) for alias in aliases}
