"""Reports of a run: terminal, `metrics.jsonl`, and the loggers of the config."""

import json
import os
import sys
import time

import tqdm

from cutmix_jax import first_line, loggers
from cutmix_jax.paths import write_text


class Reporter:
    """Reports the progress of a run; only the process with `primary` set writes anything.

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
        self.workdir, self.loggers = workdir, {}
        # After a kill the file may hold epochs that the checkpoint does not: it starts from there.
        self.lines = [json.dumps(record) + "\n" for record in history]
        self.write_lines()
        self.first_step = history[-1]["step"] + 1 if history else 0
        self.bar = tqdm.tqdm(
            total=self.total_steps * batch_size,
            initial=step * batch_size,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            disable=None,  # shown on a terminal
            file=self.stream,
        )
        self.spoke = time.monotonic()

    def start_loggers(self, config):
        """Starts the loggers of `config.loggers`.

        Raises:
            UserError: one cannot start.
        """
        for name in config.loggers if self.primary else ():
            self.loggers[name] = loggers.start(name, self.workdir, config, self.first_step)

    def tell_loggers(self, method, *arguments):
        """Calls a method of each logger. One that fails gets no more calls, and the run goes on."""
        for name, logger in list(self.loggers.items()):
            try:
                getattr(logger, method)(*arguments)
            except Exception as error:
                del self.loggers[name]
                self.say(
                    f"config.loggers={name} failed ({first_line(error)}) and gets nothing more in "
                    "this session. All records are in metrics.jsonl."
                )

    def say(self, text=""):
        """Prints `text`, above the progress bar where there is one."""
        if self.primary:
            self.bar.clear()
            try:
                print(text, file=self.stream, flush=True)
            except BrokenPipeError:  # the reader has gone, but the run continues
                sys.stdout = self.stream = open(os.devnull, "w")  # noqa: SIM115
            self.bar.refresh()

    def step(self, step, images_per_second):
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

    def epoch(self, record, words):
        """Writes the record of an epoch to the files, and `words` about it to the terminal."""
        if not self.primary:
            return
        self.lines.append(json.dumps(record) + "\n")
        self.write_lines()
        self.tell_loggers(
            "log",
            record["step"],
            {
                name: value
                for name, value in record.items()
                if name not in ("epoch", "step") and value is not None
            },
        )
        self.say(
            f"epoch {record['epoch']:>3}/{self.epochs}  lr {record['learning_rate']:.4g}  {words}"
            + describe_speed(record)
        )
        self.spoke = time.monotonic()

    def write_lines(self):
        """Writes `metrics.jsonl`, as a whole: nothing can be appended in a bucket."""
        write_text(self.workdir / "metrics.jsonl", "".join(self.lines))

    def close(self, failed=False):
        """Leaves the terminal in order and the files whole; `failed` after an error."""
        if self.primary:
            self.bar.close()
            self.tell_loggers("close", failed)


def describe_speed(record):
    """Images per second, the fraction of the chips' peak, and the peak memory, where known.

    Example:
        >>> describe_speed({'images_per_second': 5740.0, 'peak_memory_mib': None})
        '  5,740 images/s'
    """
    words = {
        "images_per_second": "  {:,.0f} images/s",
        "model_flops_utilization": " ({:.1%} of the peak)",
        "peak_memory_mib": "  {:,.0f} MiB",
    }
    return "".join(text.format(record[key]) for key, text in words.items() if record.get(key))
