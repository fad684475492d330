"""What a run learns: its data, network, loss and measures. Everything else about a run is shared.

`train` takes steps, accumulates, averages, saves and resumes for any task. A task of your own is a
subclass of `Task` and its path in ``config.task``; docs/extending.md has one.
"""

import dataclasses
import functools
import importlib
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import numpy as np
from jax import numpy as jnp

from cutmix_jax import UserError, first_line, nearest, optimizer
from cutmix_jax import config as config_lib
from cutmix_jax.data import Shards
from cutmix_jax.parallel import AXIS, create_mapping

# The value of config.task: the module and the class.
TASKS = {
    "classification": "cutmix_jax.tasks.classification:Classification",
    "ssd": "cutmix_jax.tasks.ssd:SSD",
    "faster_rcnn": "cutmix_jax.tasks.faster_rcnn:FasterRCNN",
    "captioning": "cutmix_jax.tasks.captioning:Captioning",
}
# Keeps the keys of mixing apart from those of augmentation, which are folded by epoch.
MIXING = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Task:
    """What a config builds, and what is learned with it.

    Attributes:
        config: the config of the run.
        data: a `data.Data`.
        model: a Flax module.
        mapping: a `parallel.Mapping` over the devices.
        schedule: step -> learning rate.
        optimizer: an `optax.GradientTransformation`.
    """

    config: Any
    data: Any
    model: Any
    mapping: Any
    schedule: Any
    optimizer: Any

    ranked_by: ClassVar[str] = "loss"  # the measure that ranks checkpoints
    higher_is_better: ClassVar[bool] = False
    measure_name: ClassVar[str] = ""  # `ranked_by` in words, for tables; by default the same
    in_percent: ClassVar[bool] = False  # whether it is a fraction that tables show in percent
    heads: ClassVar[tuple[str, ...]] = ()  # modules that need not fit the weights of another run
    word_heads: ClassVar[tuple[str, ...]] = ()  # heads for certain words, the class names
    left_out: ClassVar[tuple[str, ...]] = ()  # modules of another run that this one has not
    frozen: ClassVar[tuple[str, ...]] = ()  # parameters that stay: beginnings of paths, * is any
    undecayed: ClassVar[tuple[str, ...]] = ()  # without weight decay: ends of paths
    uses_mix: ClassVar[bool] = False  # whether it applies all of `mix_keys`
    mix_keys: ClassVar[tuple[str, ...]] = ("mix.name", "label_smoothing", "loss")  # refused if not
    pictures: ClassVar[tuple[str, ...]] = ()  # files that the plots below write

    @classmethod
    def create(cls, config, mapping):
        """Opens the data and builds the rest."""
        cls.check_config(config)
        shards = Shards(mapping.local_devices, jax.process_index(), jax.process_count())
        data = cls.open_data(config, shards)
        schedule = optimizer.create_schedule(config, data.steps_per_epoch)
        task = cls(
            config=config,
            data=data,
            model=cls.create_model(config, data),
            mapping=mapping,
            schedule=schedule,
            optimizer=cls.create_optimizer(config, schedule),
        )
        task.check()
        return task

    @property
    def total_steps(self):
        """Steps of the whole run."""
        return self.config.epochs * self.data.steps_per_epoch

    def normalize(self, images):
        """Centers and scales images in [0, 1] per channel."""
        values = (self.config.normalize[name] for name in ("mean", "std"))
        mean, std = (jnp.asarray(value, jnp.float32) for value in values)
        return (images - mean) / std

    # What a task has to define.

    @classmethod
    def open_data(cls, config, shards):
        """A `data.Data` for this process's part of every batch."""
        raise NotImplementedError

    @classmethod
    def create_model(cls, config, data):
        """The network, a Flax module."""
        raise NotImplementedError

    def init(self, key):
        """The network's first variables, ``{'params': ..., 'batch_stats': ...}``; traced."""
        raise NotImplementedError

    def load(self, arrays, xs, step):
        """One device's training batch of `xs`: a pytree of arrays ``[b, ...]``; traced.

        Args:
            arrays: the training split's entry of `Data.arrays`.
            xs: one device's part of a batch of `Data.train_batches`.
            step: int32, the number of steps taken.
        """
        raise NotImplementedError

    def loss(self, weights, batch, step, key):
        """The loss of a training batch; traced.

        Args:
            weights: ``{'params', 'batch_stats'}``.
            batch: what `load` returns, or a part of it (`config.accumulate`).
            step: int32, the number of steps taken.
            key: for what the network drops; one for each device, step and part.

        Returns:
            ``(loss, (batch_stats, counters))``: a float32 mean, the new batch statistics, and a
            dictionary of `clu.metrics.Average`, 'loss' among them.
        """
        raise NotImplementedError

    def measure(self, weights, arrays, xs):
        """What one device counts on a batch of a split; traced.

        Returns:
            ``(counters, outputs)``: a dictionary of `clu.metrics.Average`; and what `score` needs
            of every example, a dictionary of arrays ``[b, ...]`` with a 'mask', or ``{}``. It has
            an 'index' as well, the position in the split, if batches come in another order.
        """
        raise NotImplementedError

    # What a task may define.

    @classmethod
    def check_config(cls, config):
        """Refuses a config before the data are opened."""

    @classmethod
    def create_optimizer(cls, config, schedule):
        """The optimizer of `config.optimizer`; `schedule` is the learning rate by steps."""
        return optimizer.create_optimizer(config, schedule, cls.heads, cls.frozen, cls.undecayed)

    def describe_optimizer(self):
        """The optimizer and its schedule in words."""
        return optimizer.describe(self.config)

    def check(self):
        """Refuses a config that does not suit the data."""

    @property
    def train_flops(self):
        """FLOPs of training on one example, for the records; None if they are unknown."""
        return None

    def score(self, split, outputs):
        """``{name: number}`` of a whole split, on the host, from the `outputs` of `measure`.

        Args:
            split: its name.
            outputs: arrays ``[n, ...]`` of its n examples, in order, without padding.
        """
        del split, outputs
        return {}

    def describe(self):
        """``{word: description}``, printed when training starts."""
        return {"model": self.config.model, "data": self.config.dataset}

    def describe_epoch(self, history):
        """The last record in words, for the terminal."""
        record = history[-1]
        words = f"train loss {record['train_loss']:.3f}"
        split, key = self.ranking_split(record), self.ranked_by
        if split is None:
            return words
        best = self.best(history, split)[f"{split}_{key}"]
        split_words = split.replace("_", "-")
        return f"{words}  {split_words} {key} {record[f'{split}_{key}']:.4g} (best {best:.4g})"

    def summarize(self, history):
        """The numbers of `results.json` that come from the records of the epochs."""
        last, best, key = history[-1], self.best(history, "test"), f"test_{self.ranked_by}"
        return {
            f"{self.ranked_by}_last": last[key],
            f"{self.ranked_by}_best": best[key],
            "best_epoch": best["epoch"],
        }

    def describe_results(self, results):
        """Lines about `results.json`, for the terminal."""
        key = self.ranked_by
        return [
            f"test {key}, last epoch  {results[f'{key}_last']:.4g}   best "
            f"{results[f'{key}_best']:.4g} (epoch {results['best_epoch']})"
        ]

    def plot_start(self, arrays, folder):
        """Writes pictures of the first batches into `folder`; every process calls it."""

    def plot_history(self, history, folder):
        """Writes pictures of the records of the epochs into `folder`."""

    # Ranks.

    def ranking_split(self, record):
        """The split that ranks an epoch: 'held_out' or 'test'; None if it was not evaluated."""
        splits = [s for s in ("held_out", "test") if f"{s}_{self.ranked_by}" in record]
        return splits[0] if splits else None

    def rank(self, record):
        """The number that ranks a checkpoint, the lowest first; None if it was not evaluated."""
        split = self.ranking_split(record)
        return None if split is None else self._signed(record, split)

    def best(self, history, split):
        """The best record by `ranked_by` on `split`; of equal ones the last."""
        measured = [record for record in history if f"{split}_{self.ranked_by}" in record]
        return min(reversed(measured), key=functools.partial(self._signed, split=split))

    def held_out_choice(self, history, *names):
        """Test measures of the epoch that the held-out images choose, `{}` if there are none.

        Args:
            history: one record per epoch.
            names: of the measures, without the split.

        Returns:
            ``{'NAME_held_out': number, ..., 'held_out_epoch': epoch}``.
        """
        if "held_out" not in self.data.examples:
            return {}
        chosen = self.best(history, "held_out")
        measures = {f"{name}_held_out": chosen[f"test_{name}"] for name in names}
        return measures | {"held_out_epoch": chosen["epoch"]}

    def _signed(self, record, split):
        value = record[f"{split}_{self.ranked_by}"]
        return -value if self.higher_is_better else value


def in_order(outputs):
    """The outputs of `Task.measure` for a whole split, in its order, which 'index' restores.

    Example:
        >>> in_order({"scores": np.array([0.5, 0.7, 0.6]), "index": np.array([0, 2, 1])})
        {'scores': array([0.5, 0.6, 0.7])}
    """
    if "index" not in outputs:
        return outputs
    order = np.argsort(outputs["index"])
    return {name: values[order] for name, values in outputs.items() if name != "index"}


def mixing_key(seed, step):
    """The key of a step's mix, the same on every device."""
    stream = jax.random.fold_in(jax.random.key(seed), MIXING)
    # The split only keeps the numbers of runs from before colors had keys of their own.
    return jax.random.split(jax.random.fold_in(stream, step))[0]


def trace_mix(mixing, batch_size, sides, image_shape=None):
    """The plans of a mix, traced on two devices.

    Args:
        mixing: a `mix.Mix`.
        batch_size: examples per device.
        sides: those of `mixing.sample`.
        image_shape: (H, W, C) of the images before mixing, or None if the task has none to give.

    Raises:
        UserError: the mix does not suit images of these sides.
    """

    def sample(key):
        images = None if image_shape is None else jnp.zeros((batch_size, *image_shape))
        return mixing.sample(key, batch_size, sides, images=images, axis_name=AXIS)

    try:
        return jax.eval_shape(
            jax.vmap(sample, axis_name=AXIS), jax.random.split(jax.random.key(0), 2)
        )
    except ValueError as error:
        shown = sides["image"] if isinstance(sides, Mapping) else sides
        raise UserError(f"config.mix does not suit images of {shown}: {error}") from None


def check_channels(config, image_shape):
    """Refuses a config whose `normalize` does not have a value per channel of (H, W, C).

    Raises:
        UserError: it has another number of values, and not one either.
    """
    if len(config.normalize.mean) not in (1, image_shape[-1]):
        raise UserError(
            f"config.normalize has {len(config.normalize.mean)} values, and the images of "
            f"{config.dataset!r} have {image_shape[-1]} channels: give one value per channel."
        )


def find_task(name):
    """The class of a name of `TASKS`, or of 'module:Class'.

    Raises:
        UserError: there is none.
    """
    module, _, attribute = TASKS.get(name, name).partition(":")
    if not attribute:
        raise UserError(
            f"There is no task {name!r} ({nearest(name, TASKS)}). A task of your own is given as "
            "--config.task=MODULE:CLASS."
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(
            f"The task of config.task={name!r} cannot be imported ({first_line(error)}). Put its "
            "module into the repository, or its folder into PYTHONPATH."
        ) from error
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise UserError(f"config.task={name!r} is not a subclass of cutmix_jax.tasks.Task.")
    return found


def create_task(config, mapping=None):
    """Builds the task that `config` describes, or says what is wrong with it.

    Args:
        config: from a file in `configs/`.
        mapping: a `parallel.Mapping`; by default over all devices, as `config.mapping` says.

    Raises:
        UserError: a value, the data, or their combination cannot be used.
    """
    config_lib.check_config(config)
    found = find_task(config.task)
    unused = [
        *(() if found.uses_mix else found.mix_keys),
        *(() if found.heads else ("head_lr_factor", "new_head")),
    ]
    config_lib.check_unused(config, unused, f"the task {config.task!r} does not use it")
    task = found.create(config, mapping or create_mapping(config.mapping))
    if config.ema_every > task.total_steps:
        raise UserError(
            f"config.ema_every is {config.ema_every}, but the run has {task.total_steps} steps, so "
            "the EMA weights would never change. Set a smaller one."
        )
    return task
