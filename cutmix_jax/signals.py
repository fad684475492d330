"""Signals: a run that is asked to stop saves first."""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class Interruption:
    """Catches SIGTERM and Ctrl-C, so a run can save before it ends.

    If two are nested, a signal to the inner one also reaches the outer one.
    """

    def __init__(self):
        self.asked = False
        self.before = {}

    def __enter__(self):
        # With several processes, JAX's service receives the signal, and all agree on a step.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for name in (signal.SIGTERM, signal.SIGINT):
                self.before[name] = signal.signal(name, self._ask)
        return self

    def __exit__(self, *_):
        for name, handler in self.before.items():
            signal.signal(name, handler)
            outer = getattr(handler, "__self__", None)
            if self.asked and isinstance(outer, Interruption):
                outer.asked = True

    def _ask(self, name, _):
        self.asked = True
        signal.signal(name, self.before[name])  # a second signal ends the run at once

    def at(self, step):
        """Whether to end the run after `step`; every process gets the same answer."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.asked
