"""Reports of a run: terminal, `metrics.jsonl`, TensorBoard."""

import contextlib
import functools
import json
import os
import pathlib
import sys
import time

import tqdm


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
        with self.jsonl.open("a") as file:
            file.write(json.dumps(record) + "\n")
        for name, value in record.items():
            if name not in ("epoch", "step"):
                self.board.add_scalar(name, value, record["step"])
        self.board.flush()
        speed = record.get("images_per_second")
        self.say(
            f"epoch {record['epoch']:>3}/{self.epochs}  lr {record['learning_rate']:.4g}  {words}"
            + (f"  {speed:,.0f} images/s" if speed else "")
        )
        self.spoke = time.monotonic()

    def close(self):
        """Leaves the terminal in order and the files whole."""
        if self.primary:
            self.bar.close()
            with contextlib.suppress(OSError):  # a full disk was reported before
                if "board" in self.__dict__:
                    self.board.close()
