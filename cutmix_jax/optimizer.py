"""The optimizer and its learning rate schedule."""

import jax
import optax
from jax import numpy as jnp


def drop_epochs(config):
    """The milestones of the 'step' schedule, in epochs."""
    epochs = {max(1, round(share * config.epochs)) for share in config.lr_drops}
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


def create_optimizer(config, schedule):
    """SGD with momentum and coupled weight decay; `head_lr_factor` scales the head's updates."""

    def scale_head(updates, params):
        del params
        return updates | {"fc": jax.tree.map(lambda x: config.head_lr_factor * x, updates["fc"])}

    steps = [
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(schedule, momentum=config.momentum, nesterov=config.nesterov),
    ]
    if config.head_lr_factor != 1:
        # SGD's update is proportional to the rate, so this gives the head its own rate.
        steps.append(optax.stateless(scale_head))
    return optax.chain(*steps)
