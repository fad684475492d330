"""The optimizer and its learning rate schedule."""

import fnmatch
import functools

import flax
import jax
import optax
from jax import numpy as jnp


def drop_epochs(config):
    """The milestones of the 'step' schedule, in epochs."""
    epochs = {max(1, round(fraction * config.epochs)) for fraction in config.lr_drops}
    return sorted(epochs - {config.epochs})


def create_schedule(config, steps_per_epoch):
    """The learning rate as a function of the number of steps taken."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    total = config.epochs * steps_per_epoch
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            0.0 if warmup else config.learning_rate, config.learning_rate, warmup, total
        )
    drops = {epoch * steps_per_epoch: config.lr_factor for epoch in drop_epochs(config)}
    steps = optax.piecewise_constant_schedule(config.learning_rate, drops)
    if not warmup:
        return steps
    rise = optax.linear_schedule(0.0, config.learning_rate, warmup)
    return lambda count: jnp.minimum(rise(count), steps(count))


def describe(config):
    """The optimizer and its schedule in words."""
    drops = ", ".join(map(str, drop_epochs(config)))
    schedule = {
        "step": f"x {config.lr_factor:g} after epoch {drops}" if drops else "throughout",
        "cosine": "falling to 0 along a cosine",
    }[config.schedule]
    name, momentum = {
        "sgd": ("SGD", f"momentum {config.momentum:g}{' (Nesterov)' * config.nesterov}"),
        "adam": ("Adam", f"beta1 {config.momentum:g}"),
    }[config.optimizer]
    return (
        f"{name}, learning rate {config.learning_rate:g} {schedule}, {momentum}, "
        f"weight decay {config.weight_decay:g}"
        + (f", gradients clipped at norm {config.clip_gradient:g}" if config.clip_gradient else "")
    )


def create_optimizer(config, schedule, heads=("fc",), frozen=(), undecayed=()):
    """SGD with momentum, or Adam. Weight decay is added to the gradient (coupled), as in PyTorch.

    Args:
        config: for `optimizer`, `momentum` (Adam's beta1), `nesterov` (of SGD), `weight_decay`,
            `clip_gradient` and `head_lr_factor`.
        schedule: step -> learning rate.
        heads: modules whose updates are multiplied by `head_lr_factor`.
        frozen: beginnings of the paths of parameters that stay, such as 'stem' or 'layer1/0'; `*`
            stands for any characters, as in '*/bn'.
        undecayed: ends of the paths of parameters without weight decay, such as 'bias'.
    """

    def scale_heads(updates, params):
        del params
        scaled = {
            head: jax.tree.map(lambda x: config.head_lr_factor * x, updates[head])
            for head in heads
            if head in updates
        }
        return updates | scaled

    rules = {
        "sgd": functools.partial(optax.sgd, momentum=config.momentum, nesterov=config.nesterov),
        "adam": functools.partial(optax.adam, b1=config.momentum),
    }
    mask = functools.partial(_label, lambda path: not path.endswith(undecayed))
    steps = [
        optax.add_decayed_weights(config.weight_decay, mask if undecayed else None),
        rules[config.optimizer](schedule),
    ]
    if config.clip_gradient:
        steps.insert(0, optax.clip_by_global_norm(config.clip_gradient))
    if config.head_lr_factor != 1:
        # An update is proportional to the rate, so this gives the heads their own rate.
        steps.append(optax.stateless(scale_heads))
    learned = optax.chain(*steps)
    return freeze(learned, lambda path: _begins(path, frozen)) if frozen else learned


def freeze(optimizer, is_frozen):
    """An optimizer that leaves some parameters as they are, and keeps no momentum of them.

    Args:
        optimizer: an `optax.GradientTransformation` for the others.
        is_frozen: path of a parameter, such as 'layer1/0/conv1/kernel' -> bool.
    """
    return optax.multi_transform(
        {True: optimizer, False: optax.set_to_zero()},
        functools.partial(_label, lambda path: not is_frozen(path)),
    )


def _begins(path, frozen):
    return any(fnmatch.fnmatchcase(path, f"{beginning}*") for beginning in frozen)


def _label(rule, params):
    """`rule` of the path of every parameter, such as 'layer1/0/conv1/kernel'."""
    return flax.traverse_util.path_aware_map(lambda path, _: rule("/".join(path)), params)
