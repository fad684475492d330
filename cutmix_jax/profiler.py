"""A trace of some training steps, by JAX's profiler: `--profile=START:COUNT`."""

import re

import jax

from cutmix_jax import UserError
from cutmix_jax.paths import LocalFolder


def read_steps(text):
    """Reads 'START:COUNT'.

    Args:
        text: the value of the flag.

    Returns:
        ``(start, count)``: the number of steps before the trace, and that of the steps in it.

    Raises:
        UserError: it is no such pair.

    Example:
        >>> read_steps('100:20')
        (100, 20)
    """
    found = re.fullmatch(r"(\d+):0*([1-9]\d*)", text)
    if not found:
        raise UserError(
            f"--profile is {text!r}, but START:COUNT was expected: the number of steps before the "
            "trace, and of those in it, as in --profile=100:20."
        )
    return int(found[1]), int(found[2])


class Profiler:
    """Traces `count` steps after the first `start` into `folder`.

    A call that takes several steps is traced whole.
    """

    def __init__(self, folder, start, count):
        self.files, self.start, self.end = LocalFolder(folder), start, start + count
        self.began = None  # the step before the trace, while it is written

    def check(self, step, total_steps):
        """Refuses steps that a run from `step` to `total_steps` does not take.

        Raises:
            UserError: it does not.
        """
        given = f"--profile={self.start}:{self.end - self.start}"
        if self.end > total_steps:
            raise UserError(
                f"{given} ends at step {self.end}, but the run has {total_steps} steps. Trace "
                "earlier or fewer steps."
            )
        if self.start < step:
            raise UserError(
                f"{given} begins at step {self.start}, but the run goes on from step {step}. "
                "Trace later steps, or start another run."
            )

    def before(self, step, taken, wait):
        """Starts the trace if it is due, before a call of `taken` steps from `step` on.

        Args:
            step: the number of steps taken.
            taken: the number of steps of the call.
            wait: called first; it returns when the device has nothing left to do.
        """
        if self.began is None and step <= self.start < step + taken:
            wait()
            options = jax.profiler.ProfileOptions()
            # Each call of Python's would be an event: too many for the trace, and slow.
            options.python_tracer_level = 0
            jax.profiler.start_trace(self.files.here, profiler_options=options)
            self.began = step

    def after(self, step, wait):
        """Ends the trace if it is due, after a call whose last step is `step`.

        Returns:
            Words about the trace if it has ended, else None.
        """
        if self.began is None or step < self.end:
            return None
        wait()
        message = f"Steps {self.began + 1} to {step} are traced in {str(self.files.path)!r}."
        self.close()
        return message

    def close(self):
        """Ends a trace that is being written."""
        if self.began is not None:
            self.began = None
            jax.profiler.stop_trace()
            self.files.upload()
