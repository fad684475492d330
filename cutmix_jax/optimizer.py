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
    start = config.warmup_start * config.learning_rate
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            start if warmup else config.learning_rate,
            config.learning_rate,
            warmup,
            total,
            config.min_learning_rate,
        )
    drops = {epoch * steps_per_epoch: config.lr_factor for epoch in drop_epochs(config)}
    steps = optax.piecewise_constant_schedule(config.learning_rate, drops)
    if not warmup:
        return steps
    rise = optax.linear_schedule(start, config.learning_rate, warmup)
    return lambda count: jnp.minimum(rise(count), steps(count))


def describe(config):
    """The optimizer and its schedule in words."""
    drops = ", ".join(map(str, drop_epochs(config)))
    schedule = {
        "step": f"x {config.lr_factor:g} after epoch {drops}" if drops else "throughout",
        "cosine": f"falling to {config.min_learning_rate:g} along a cosine",
    }[config.schedule]
    name, momentum = {
        "sgd": ("SGD", f"momentum {config.momentum:g}{' (Nesterov)' * config.nesterov}"),
        "adam": ("Adam", f"beta1 {config.momentum:g}"),
        "adamw": ("AdamW", f"beta1 {config.momentum:g}"),
        "lamb": ("LAMB", f"beta1 {config.momentum:g}"),
    }[config.optimizer]
    decayed = {
        "all": "",
        "all_but_norms": " except on norms",
        "kernels": " on kernels",
    }[config.weight_decay_on]
    return (
        f"{name}, learning rate {config.learning_rate:g} {schedule}, {momentum}, "
        f"weight decay {config.weight_decay:g}{decayed}"
        + (f", gradients clipped at norm {config.clip_gradient:g}" if config.clip_gradient else "")
    )


def create_optimizer(config, schedule, heads=("fc",), frozen=(), undecayed=()):
    r"""SGD with momentum, Adam, AdamW or LAMB, as in PyTorch and timm.

    SGD and Adam add the weight decay to the gradient (coupled). AdamW and LAMB add it to Adam's
    direction :math:`m` (decoupled). Then LAMB scales the update of each decayed array to the
    array's norm: :math:`w \leftarrow w - \eta \, r (m + \lambda w)` with
    :math:`r = |w| / |m + \lambda w|`, and `r = 1` for arrays without decay and where a norm is 0.

    This is timm's LAMB. `optax.lamb` differs in one thing: it also scales arrays without decay.
    timm clips gradients at norm 1, which is `clip_gradient=1` here.

    Args:
        config: for `optimizer`, `momentum` (beta1 of all but SGD), `nesterov` (of SGD),
            `weight_decay`, `weight_decay_on`, `clip_gradient` and `head_lr_factor`.
        schedule: step -> learning rate.
        heads: modules whose updates are multiplied by `head_lr_factor`.
        frozen: beginnings of the paths of parameters that stay, such as 'stem' or 'layer1/0'; `*`
            stands for any characters, as in '*/bn'.
        undecayed: ends of the paths of parameters without weight decay, such as 'bias'.

    Reference:
        Loshchilov, Hutter. Decoupled weight decay regularization. 2019. You et al. Large batch
        optimization for deep learning: training BERT in 76 minutes. 2020.
    """

    def scale_heads(updates, params):
        del params
        scaled = {
            head: jax.tree.map(lambda x: config.head_lr_factor * x, updates[head])
            for head in heads
            if head in updates
        }
        return updates | scaled

    everywhere = config.weight_decay_on == "all" and not undecayed
    mask = functools.partial(_is_decayed, config.weight_decay_on, undecayed)
    decay = optax.add_decayed_weights(config.weight_decay, None if everywhere else mask)
    adam = functools.partial(optax.scale_by_adam, b1=config.momentum)
    rate = optax.scale_by_learning_rate(schedule)
    rules = {
        "sgd": lambda: [
            decay,
            optax.sgd(schedule, momentum=config.momentum, nesterov=config.nesterov),
        ],
        "adam": lambda: [decay, optax.adam(schedule, b1=config.momentum)],
        "adamw": lambda: [adam(), decay, rate],
        "lamb": lambda: [
            adam(eps=1e-6),
            decay,
            *([optax.masked(optax.scale_by_trust_ratio(), mask)] if config.weight_decay else []),
            rate,
        ],
    }
    steps = rules[config.optimizer]()
    if config.clip_gradient:
        steps.insert(0, optax.clip_by_global_norm(config.clip_gradient))
    if config.head_lr_factor != 1:
        # An update is proportional to the rate, so this gives the heads their own rate.
        steps.append(optax.stateless(scale_heads))
    learned = optax.chain(*steps)
    return freeze(learned, lambda path: _begins(path, frozen)) if frozen else learned


def _is_decayed(kind, undecayed, params):
    """Whether each parameter is decayed, by `weight_decay_on` and the ends of its path."""
    names = flax.traverse_util.flatten_dict(params)
    norms = {"/".join(modules) for *modules, leaf in names if leaf == "scale"}
    rules = {
        "all": lambda path: True,
        "all_but_norms": lambda path: path.rpartition("/")[0] not in norms,
        "kernels": lambda path: path.endswith("kernel"),
    }
    return _label(lambda path: rules[kind](path) and not path.endswith(undecayed), params)


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
