"""Counters on the device; on the host, what is told of a run: terminal, jsonl, TensorBoard."""

import contextlib
import functools
import json
import os
import pathlib
import sys
import time

import numpy as np
import optax
import tqdm
from clu.metrics import Average
from jax import numpy as jnp


def train_counters(loss, logits, targets):
    r"""Counts the loss and the lambda-weighted accuracy of one device's mixed examples.

    An example whose label is :math:`\lambda y_a + (1 - \lambda) y_b` counts as :math:`\lambda`
    right where the prediction is `a`, and as :math:`1 - \lambda` right where it is `b`.

    Args:
      loss: float32 ``[B]``, as it is minimised.
      logits: float32 ``[B, K]``.
      targets: float32 ``[B, K]``, rows that sum to 1, before any label smoothing.

    Returns:
      A dictionary of `clu.metrics.Average`, to be summed over the devices.
    """
    right = jnp.take_along_axis(targets, jnp.argmax(logits, -1)[:, None], -1)[:, 0]
    return {
        "loss": Average.from_model_output(loss),
        "weighted_accuracy": Average.from_model_output(right),
    }


def eval_counters(logits, labels, mask):
    """Counts the loss and the top-1 and top-5 errors of one device's examples where `mask` is set.

    Args:
      logits: float32 ``[B, K]``; with fewer than 5 classes, top-5 means top-K.
      labels: int32 ``[B]``.
      mask: bool ``[B]``, False for padding.

    Returns:
      A dictionary of `clu.metrics.Average`, to be summed over the devices.
    """
    rank = ranks(logits, labels)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    values = {
        "loss": loss,
        "top1_error": (rank > 0).astype(jnp.float32),
        "top5_error": (rank >= min(5, logits.shape[-1])).astype(jnp.float32),
    }
    return {name: Average.from_model_output(value, mask) for name, value in values.items()}


def ranks(logits, labels):
    """How many classes come before the true one.

    Of equal logits the lower class comes first; a class whose logit is NaN comes last.

    Args:
      logits: float ``[B, K]``.
      labels: int ``[B]``.

    Returns:
      int32 ``[B]``, 0 where the prediction is right, K where the logit of the true class is NaN.

    Example:
      >>> ranks(jnp.array([[0.1, 0.7, 0.7], [jnp.nan] * 3]), jnp.array([2, 0])).tolist()
      [1, 3]
    """
    own = jnp.take_along_axis(logits, labels[:, None], 1)
    lower = jnp.arange(logits.shape[1]) < labels[:, None]
    before = ((logits > own) | ((logits == own) & lower)).sum(1)
    return jnp.where(jnp.isnan(own[:, 0]), logits.shape[1], before)


class Totals:
    """Sums counters on the host, in float64, in a form that JSON keeps exactly."""

    def __init__(self, values=None):
        self.values = {name: tuple(value) for name, value in (values or {}).items()}

    def add(self, counters):
        """Adds fetched counters, whose leaves may have a leading axis of steps."""
        for name, counter in counters.items():
            total, count = self.values.get(name, (0.0, 0))
            total += float(np.sum(counter.total, dtype=np.float64))
            self.values[name] = (total, count + int(np.sum(counter.count)))

    def means(self):
        """The mean of each counter."""
        return {name: total / count for name, (total, count) in self.values.items()}


def choice_error(record):
    """The top-1 error by which an epoch is chosen: held-out where there is such a split."""
    return record.get("held_out_top1_error", record["test_top1_error"])


def best(history, split):
    """The record of the epoch with the lowest top-1 error on `split`; of equal ones the last."""
    return min(reversed(history), key=lambda record: record[f"{split}_top1_error"])


class Reporter:
    """Tells how a run goes; only the process with `primary` set writes anything.

    On a terminal a progress bar shows images/s and the time left; elsewhere there are plain lines.
    """

    def __init__(
        self, workdir, *, epochs, epoch_steps, batch_size, step, history, primary, stream=None
    ):
        self.primary = primary
        self.stream = stream or sys.stdout
        if not primary:
            return
        self.epochs, self.total_steps = epochs, epochs * epoch_steps
        self.batch_size = batch_size
        self.jsonl = pathlib.Path(workdir) / "metrics.jsonl"
        # After a kill the file may hold epochs that the checkpoint does not: it starts from there.
        self.jsonl.write_text("".join(json.dumps(record) + "\n" for record in history))
        self.events = pathlib.Path(workdir) / "tensorboard"
        self.purge_step = history[-1]["step"] + 1 if history else 0
        self.bar = tqdm.tqdm(
            total=self.total_steps * batch_size,
            initial=step * batch_size,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not self.stream.isatty(),
            file=self.stream,
        )
        self.spoke = time.monotonic()

    @functools.cached_property
    def board(self):
        """The writer of TensorBoard's event files, from the first epoch on."""
        import tensorboardX  # not before the first step: it takes PyTorch along where there is one

        return tensorboardX.SummaryWriter(str(self.events), purge_step=self.purge_step)

    def say(self, text=""):
        """Prints `text`, above the progress bar where there is one."""
        if self.primary:
            self.bar.clear()
            try:
                print(text, file=self.stream, flush=True)
            except BrokenPipeError:  # whoever read along has gone; the run goes on
                sys.stdout = self.stream = open(os.devnull, "w")  # noqa: SIM115
            self.bar.refresh()

    def progress(self, step, images_per_second):
        """Moves the bar to `step`; without a terminal, prints a line once a minute."""
        if not self.primary:
            return
        if not self.bar.disable:
            self.bar.update(step * self.batch_size - self.bar.n)
        elif images_per_second and time.monotonic() - self.spoke > 60:
            left = (self.total_steps - step) * self.batch_size / images_per_second
            self.say(
                f"step {step}/{self.total_steps}  {images_per_second:,.0f} images/s  "
                f"{left / 60:.0f} min left"
            )
            self.spoke = time.monotonic()

    def epoch(self, history):
        """Writes the last of the records everywhere."""
        if not self.primary:
            return
        record = history[-1]
        with self.jsonl.open("a") as file:
            file.write(json.dumps(record) + "\n")
        for name, value in record.items():
            if name not in ("epoch", "step"):
                self.board.add_scalar(name, value, record["step"])
        self.board.flush()
        split = "held_out" if "held_out_top1_error" in record else "test"
        speed = record.get("images_per_second")
        self.say(
            f"epoch {record['epoch']:>3}/{self.epochs}  lr {record['learning_rate']:.4g}  "
            f"train loss {record['train_loss']:.3f}  "
            f"weighted accuracy {record['train_weighted_accuracy']:.1%}  "
            f"{split.replace('_', '-')} error {record[f'{split}_top1_error']:.2%} "
            f"(best {best(history, split)[f'{split}_top1_error']:.2%})"
            + (f"  {speed:,.0f} images/s" if speed else "")
        )
        self.spoke = time.monotonic()

    def close(self):
        """Leaves the terminal in order and the files whole."""
        if self.primary:
            self.bar.close()
            with contextlib.suppress(OSError):  # a full disk has been told of by now
                if "board" in self.__dict__:
                    self.board.close()
