"""Saves and restores runs. Orbax writes the files, and digests protect them."""

import contextlib
import hashlib
import json
import logging
import shutil
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import checkpoint_managers

from cutmix_jax import UserError
from cutmix_jax.parallel import all_devices
from cutmix_jax.paths import absolute, in_bucket, user_path


class Checkpoints:
    """The checkpoints of one workdir: the latest two and the best, each with a digest.

    A checkpoint is the train state and `meta`, a dictionary of plain values. The digest covers
    both, so a changed byte is noticed in any file format.
    """

    def __init__(self, workdir, read_only=False):
        self.folder = absolute(user_path(workdir, "The workdir")) / "checkpoints"
        _quieten()
        self.errors = {}  # of the checkpoints with a valid `meta`, by step
        self.unreadable = {}  # what is wrong with the others, by step
        self.manager = ocp.CheckpointManager(
            self.folder,
            # Declared here to know the saved shapes before reading.
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                    [checkpoint_managers.LatestN(2), _KeepBest(self)]
                ),
                read_only=read_only,
                # Not if another process may be writing one of them.
                cleanup_tmp_directories=jax.process_count() == 1 and not read_only,
            ),
        )
        for step in self.manager.all_steps():
            try:
                self.errors[step] = self._read_meta(step)["error"]
            except Exception as failure:
                self.unreadable[step] = _broken(step, failure)

    @property
    def best_step(self):
        """The last step with the lowest error; None if none was evaluated."""
        known = [(error, -step) for step, error in self.errors.items() if error is not None]
        return -min(known)[1] if known else None

    @property
    def latest_step(self):
        """The step of the newest checkpoint, valid or damaged; 0 if there is none."""
        return self.manager.latest_step() or 0

    def save(self, step, state, meta, error=None):
        """Starts to write `state` and `meta`, ranked by `error` (from the evaluation of an epoch).

        Raises:
            UserError: the disk is full, or the state is not finite. Earlier checkpoints stay.
        """
        host = jax.device_get(state)
        finite = (np.isfinite(x).all() for x in jax.tree.leaves(host) if x.dtype.kind == "f")
        if not all(finite):
            raise UserError(
                f"The train state is not finite at step {step}, and was not saved. The last "
                "checkpoint is kept. Lower config.learning_rate, or add a warm-up."
            )
        if not in_bucket(self.folder):
            needed = 2 * sum(x.nbytes for x in jax.tree.leaves(host))
            free = shutil.disk_usage(self.folder).free
            if free < needed:
                raise UserError(_disk_full(self.folder, step, needed, free))
        meta = dict(meta, digest=digest(host), error=error)
        meta["meta_digest"] = _meta_digest(meta)
        self.errors[step] = error
        # Of several processes, each has the shardings. Of one, orbax 0.12 prints a warning for
        # every array that pmap of JAX 0.7 returns.
        saved = state if jax.process_count() > 1 else host
        try:
            self.manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(saved),
                    meta=ocp.args.JsonSave(meta),
                ),
            )
        except Exception as failure:  # any file system error, also from the previous save
            raise UserError(_cannot_save(self.folder, step, failure)) from failure

    def wait(self):
        """Waits until every checkpoint is completely written."""
        try:
            self.manager.wait_until_finished()
        except Exception as failure:
            raise UserError(
                _cannot_save(self.folder, self.manager.latest_step(), failure)
            ) from failure

    def restore(self, abstract_state, which="latest", check=lambda meta: None):
        """Restores the newest valid checkpoint (or the best), and reports what it skipped.

        Args:
            abstract_state: a pytree of arrays or `jax.ShapeDtypeStruct`, or a function that makes
                it from the checkpoint's own tree of shapes.
            which: 'latest' or 'best'.
            check: called with `meta` before the state is read; may raise `UserError`.

        Returns:
            ``(state, meta, passed_over)``, with ``state`` on all devices and ``passed_over`` a list
            of sentences. None if there is no checkpoint at all.

        Raises:
            UserError: there are checkpoints, but none of them is valid.
        """
        # An unreadable one may have been the best.
        passed_over = list(self.unreadable.values()) if which == "best" else []
        for step in self._candidates(which):
            try:
                meta = self._read_meta(step)
            except Exception as failure:
                passed_over.append(_broken(step, failure))
                continue
            check(meta)
            try:
                return self._read_state(step, abstract_state, meta), meta, passed_over
            except UserError:
                raise
            except Exception as failure:
                passed_over.append(_broken(step, failure))
        if passed_over:
            raise UserError(
                f"No checkpoint in {str(self.folder)!r} could be restored: {' '.join(passed_over)} "
                "Restore the folder from a copy, or delete it to start over."
            )
        return None

    def read_meta(self, which="latest"):
        """The `meta` of the newest (or best) checkpoint in which it is readable."""
        for step in self._candidates(which):
            with contextlib.suppress(Exception):
                return self._read_meta(step)
        raise UserError(
            f"No checkpoint in {str(self.folder)!r} can be read. Restore the folder from a copy, "
            "or train again in another workdir."
        )

    def _candidates(self, which):
        """The steps to try, in order."""
        steps = sorted(self.manager.all_steps(), reverse=True)
        if which == "best" and self.best_step is not None:
            return [self.best_step]
        return steps

    def set_aside_after(self, step):
        """Moves the damaged checkpoints after `step` away: they would block new ones.

        In a bucket, where nothing can be moved at once, it takes away the mark that they are whole.
        """
        for later in self.manager.all_steps():
            if later > step and jax.process_index() == 0:
                self._set_aside(self.folder / str(later))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("broken checkpoints are set aside")
        self.manager.reload()

    def _set_aside(self, checkpoint):
        if in_bucket(checkpoint):
            (checkpoint / "commit_success.txt").unlink()
            return
        aside = self.folder.parent / "broken_checkpoints"
        aside.mkdir(exist_ok=True)
        shutil.rmtree(aside / checkpoint.name, ignore_errors=True)
        shutil.move(checkpoint, aside / checkpoint.name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # `wait` reports failed saves. This only completes a save in progress, also after an error.
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
    """The weights to evaluate in a workdir, for any network.

    Args:
        workdir: folder of a run, or of converted weights.
        which: 'latest' or 'best'.
        name: name of the workdir in error messages.

    Returns:
        ``(found, meta, notes)``; ``found`` is ``{'weights': {'params', 'batch_stats'}, 'averaged':
        bool, 'step': int}``, and ``notes`` are sentences about skipped checkpoints.

    Raises:
        UserError: there is no checkpoint, or all are damaged.
    """
    name = name or "The workdir"
    workdir = user_path(workdir, name)
    missing = UserError(
        f"{name} is {str(workdir)!r}, which holds no checkpoint. Give the workdir of a run."
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
    """Silences the long logs about unreadable steps. This project reports them in one sentence.

    When one read fails, orbax closes the event loop of all others. Each of them then complains, in
    the log or through `sys.unraisablehook`.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.unraisablehook = _unless_left_behind


def _unless_left_behind(unraisable, report=sys.unraisablehook):
    code = getattr(unraisable.object, "cr_code", None)
    from_orbax = code is not None and "orbax" in code.co_filename
    if not from_orbax and "Event loop is closed" not in str(unraisable.exc_value):
        report(unraisable)


class _KeepBest(checkpoint_managers.PreservationPolicy):
    """Keeps the checkpoint with the lowest error in `meta`, and those that cannot be read."""

    def __init__(self, checkpoints):
        self.checkpoints = checkpoints

    def should_preserve(self, checkpoints, *, context):
        del context
        kept = {self.checkpoints.best_step, *self.checkpoints.unreadable}
        return [info.step in kept for info in checkpoints]


def _broken(step, failure):
    reason = " ".join(str(failure).split()) or type(failure).__name__
    reason = reason.split(". ")[0][:160].rstrip(".")
    return f"Checkpoint {step} is damaged: {reason}."


def _disk_full(folder, step, needed, free):
    return (
        f"The disk of {str(folder)!r} has {free / 2**20:.0f} MiB free, but saving step {step} "
        f"takes {needed / 2**20:.0f} MiB. Earlier checkpoints are intact; free some space, and "
        "run the same command again to resume."
    )


def _cannot_save(folder, step, failure):
    reason = " ".join(str(failure).split()) or type(failure).__name__
    return (
        f"Saving step {step} to {str(folder)!r} failed ({reason[:200]}). Earlier checkpoints are "
        "intact; check the disk, and run the same command again to resume."
    )
