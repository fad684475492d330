"""Saves and restores a run: orbax writes the files, a digest proves them, a lock guards them."""

import contextlib
import fcntl
import hashlib
import json
import logging
import pathlib
import shutil
import signal
import sys
import threading

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import checkpoint_managers

from cutmix_jax import UserError
from cutmix_jax.parallel import all_devices
from cutmix_jax.paths import place


@contextlib.contextmanager
def workdir_lock(workdir, primary=True):
    """Holds `workdir` for this run; the system lets go of it when the process dies.

    Of several processes the one with `primary` set holds it. Yields the absolute path.
    """
    path = place(workdir, "The workdir").absolute()
    if not primary:
        yield path
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = open(path / "lock", "w")  # noqa: SIM115  closed below
    except OSError as error:
        raise UserError(
            f"The workdir {str(path)!r} cannot be written ({error.strerror}): give another one "
            "with --workdir."
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"Another run is writing to the workdir {str(path)!r}: wait for it to end, or "
                "give this one its own with --workdir."
            ) from error
        yield path


class Checkpoints:
    """The checkpoints of one workdir: the latest two and the best, each with a digest.

    A checkpoint is the train state and `meta`, a dictionary of plain values. The digest covers the
    values of both, so that a changed byte is noticed whatever the file format.
    """

    def __init__(self, workdir, read_only=False):
        self.folder = pathlib.Path(workdir).absolute() / "checkpoints"
        _quieten()
        self.errors = {}  # of the checkpoints whose description is whole, by step
        self.unreadable = {}  # what is wrong with the others, by step
        self.manager = ocp.CheckpointManager(
            self.folder,
            # Named here, so that the shapes of what is saved are known before it is read.
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                    [checkpoint_managers.LatestN(2), _KeepBest(self)]
                ),
                read_only=read_only,
                # Not where another process may be writing one of them.
                cleanup_tmp_directories=jax.process_count() == 1 and not read_only,
            ),
        )
        for step in self.manager.all_steps():
            try:
                self.errors[step] = self._read_meta(step)["error"]
            except Exception as failure:
                self.unreadable[step] = _broken(self.folder / str(step), failure)

    @property
    def best_step(self):
        """The step with the lowest error, of equal ones the last; None where none was evaluated."""
        known = [(error, -step) for step, error in self.errors.items() if error is not None]
        return -min(known)[1] if known else None

    @property
    def latest_step(self):
        """The step of the newest checkpoint, whole or not; 0 where there is none."""
        return self.manager.latest_step() or 0

    def save(self, step, state, meta, error=None):
        """Starts to write `state` and `meta`; `error` (of an epoch's evaluation) ranks it.

        Raises:
          UserError: the disk is full, or the state is not finite; what is saved already stays.
        """
        host = jax.device_get(state)
        finite = (np.isfinite(x).all() for x in jax.tree.leaves(host) if x.dtype.kind == "f")
        if not all(finite):
            raise UserError(
                f"The train state is not finite at step {step}: it was not saved, and the last "
                "good checkpoint stays. Lower config.learning_rate, or give it a warm-up."
            )
        needed = 2 * sum(x.nbytes for x in jax.tree.leaves(host))
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise UserError(_disk_full(self.folder, step, needed, free))
        meta = dict(meta, digest=digest(host), error=error)
        meta["meta_digest"] = _meta_digest(meta)
        self.errors[step] = error
        try:
            self.manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    meta=ocp.args.JsonSave(meta),
                ),
            )
        except Exception as failure:  # whatever the file system raises, also for the save before
            raise UserError(_cannot_save(self.folder, step, failure)) from failure

    def wait(self):
        """Waits until every checkpoint is whole on the disk."""
        try:
            self.manager.wait_until_finished()
        except Exception as failure:
            raise UserError(
                _cannot_save(self.folder, self.manager.latest_step(), failure)
            ) from failure

    def restore(self, abstract_state, which="latest", check=lambda meta: None):
        """Restores the newest whole checkpoint (or the best), and says what it passed over.

        Args:
          abstract_state: a pytree of arrays or `jax.ShapeDtypeStruct`, or a function that makes it
            from the checkpoint's own tree of shapes.
          which: 'latest' or 'best'.
          check: called with `meta` before the state is read; may raise `UserError`.

        Returns:
          ``(state, meta, passed_over)``, with ``state`` on all devices and ``passed_over`` a list
          of sentences, or None where there is no checkpoint at all.

        Raises:
          UserError: there are checkpoints, and none of them is whole.
        """
        # Any that cannot be read may have been the best.
        passed_over = list(self.unreadable.values()) if which == "best" else []
        for step in self._candidates(which):
            try:
                meta = self._read_meta(step)
            except Exception as failure:
                passed_over.append(_broken(self.folder / str(step), failure))
                continue
            check(meta)
            try:
                return self._read_state(step, abstract_state, meta), meta, passed_over
            except UserError:
                raise
            except Exception as failure:
                passed_over.append(_broken(self.folder / str(step), failure))
        if passed_over:
            raise UserError(
                f"No checkpoint in {str(self.folder)!r} is whole, so the run neither goes on nor "
                f"starts afresh ({' '.join(passed_over)}): restore the folder from a copy, or "
                "delete it to start anew."
            )
        return None

    def read_meta(self, which="latest"):
        """The `meta` of the newest (or best) checkpoint whose description is whole."""
        for step in self._candidates(which):
            with contextlib.suppress(Exception):
                return self._read_meta(step)
        raise UserError(
            f"No checkpoint in {str(self.folder)!r} can be read: restore the folder from a copy, "
            "or train anew in another workdir."
        )

    def _candidates(self, which):
        """The steps to try, in order."""
        steps = sorted(self.manager.all_steps(), reverse=True)
        if which == "best" and self.best_step is not None:
            return [self.best_step]
        return steps

    def set_aside_after(self, step):
        """Moves the (broken) checkpoints newer than `step` away: they would block saving anew."""
        aside = self.folder.parent / "broken_checkpoints"
        for later in self.manager.all_steps():
            if later > step and jax.process_index() == 0:
                aside.mkdir(exist_ok=True)
                shutil.rmtree(aside / str(later), ignore_errors=True)
                shutil.move(self.folder / str(later), aside / str(later))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("broken checkpoints are set aside")
        self.manager.reload()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # `wait` has told of a save that failed, if that matters to the run; here the point is
        # that a save under way becomes whole, also where the run stops with an error.
        with contextlib.suppress(Exception):
            self.manager.close()

    def _read_meta(self, step):
        restored = self.manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        meta = dict(restored.meta)
        if meta.pop("meta_digest") != _meta_digest(meta):
            raise ValueError("its description has changed since it was written")
        return meta

    def _read_state(self, step, abstract_state, meta):
        if callable(abstract_state):
            saved = self.manager.item_metadata(step).state
            abstract_state = abstract_state(getattr(saved, "tree", saved))
        everywhere = NamedSharding(all_devices(), PartitionSpec())
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), abstract_state
        )
        restored = self.manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
        )
        if digest(jax.device_get(restored.state)) != meta["digest"]:
            raise ValueError("its values have changed since they were written")
        return restored.state


def read_weights(workdir, which="latest", name=None):
    """The weights to evaluate of any workdir, whatever its network.

    Args:
      workdir: folder of a run, or of converted weights.
      which: 'latest' or 'best'.
      name: what to call the workdir where it holds no checkpoint.

    Returns:
      ``(found, meta, notes)``; ``found`` is ``{'weights': {'params', 'batch_stats'}, 'averaged':
      bool, 'step': int}``, and ``notes`` are sentences about checkpoints that were passed over.

    Raises:
      UserError: there is no checkpoint, or none is whole.
    """
    name = name or "The workdir"
    workdir = place(workdir, name)
    missing = UserError(
        f"{name} is {str(workdir)!r}, which holds no checkpoint: give the workdir of a run."
    )
    if not (workdir / "checkpoints").is_dir():
        raise missing
    with Checkpoints(workdir, read_only=True) as checkpoints:
        found = checkpoints.restore(
            lambda shapes: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes),
            which,
        )
    if found is None:
        raise missing
    state, meta, notes = found
    averaged = state.get("ema")
    weights = averaged or {name: state.get(name) or {} for name in ("params", "batch_stats")}
    return (
        {"weights": weights, "averaged": bool(averaged), "step": int(state.get("step", 0))},
        meta,
        notes,
    )


class Interruption:
    """Notices SIGTERM and Ctrl-C while it is entered, so that a run can save before it ends.

    Of two that are entered one within the other, the outer one learns what the inner one did.
    """

    def __init__(self):
        self.asked = False
        self.before = {}

    def __enter__(self):
        # With several processes JAX's own service receives the signal, and all agree on a step.
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
        signal.signal(name, self.before[name])  # asked twice, it ends at once

    def at(self, step):
        """Whether the run is to end after `step`; the same answer in every process."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.asked


def digest(tree):
    """The SHA-256 of all leaves of a host tree: names, dtypes, shapes and bytes."""
    leaves = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), np.asarray(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    result = hashlib.sha256()
    for name, leaf in sorted(leaves, key=lambda item: item[0]):
        result.update(f"{name} {leaf.dtype} {leaf.shape};".encode())
        result.update(np.ascontiguousarray(leaf).data)
    return result.hexdigest()


def _meta_digest(meta):
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _quieten():
    """Keeps pages about each unreadable step off the terminal; ours is the sentence to read.

    When one read fails, orbax closes the loop of all the others, and each of those complains when
    it ends: to the log, or to the hook for what can be raised nowhere.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.unraisablehook = _unless_left_behind


def _unless_left_behind(unraisable, told=sys.unraisablehook):
    code = getattr(unraisable.object, "cr_code", None)
    from_orbax = code is not None and "orbax" in code.co_filename
    if not from_orbax and "Event loop is closed" not in str(unraisable.exc_value):
        told(unraisable)


class _KeepBest(checkpoint_managers.PreservationPolicy):
    """Keeps the best checkpoint by the errors in `meta`, and those that cannot be read."""

    def __init__(self, checkpoints):
        self.checkpoints = checkpoints

    def should_preserve(self, checkpoints, *, context):
        del context
        kept = {self.checkpoints.best_step, *self.checkpoints.unreadable}
        return [info.step in kept for info in checkpoints]


def _broken(folder, failure):
    reason = " ".join(str(failure).split()) or type(failure).__name__
    reason = reason.split(". ")[0][:160].rstrip(".")
    return f"Checkpoint {folder.name} is not whole: {reason}."


def _disk_full(folder, step, needed, free):
    return (
        f"The disk of {str(folder)!r} has {free / 2**20:.0f} MiB free, and saving step {step} "
        f"takes {needed / 2**20:.0f} MiB: earlier checkpoints are whole; free some space, and "
        "start the same command again to go on from them."
    )


def _cannot_save(folder, step, failure):
    reason = " ".join(str(failure).split()) or type(failure).__name__
    return (
        f"Saving step {step} to {str(folder)!r} failed ({reason[:200]}): earlier checkpoints are "
        "whole; see to the disk, and start the same command again to go on from them."
    )
