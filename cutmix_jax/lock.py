"""The lock of a folder: one run at a time writes to a workdir, one command to a dataset.

On a disk it is the system's lock of a file, which ends with its process. In a bucket it is an
object that its holder writes again every `BEAT` seconds, each time on the condition that nobody
else did. An object that stays the same for `BEATS` beats was left behind by a process that died.
"""

import contextlib
import fcntl
import os
import socket
import sys
import threading
import time
import uuid

from cutmix_jax import UserError, first_line
from cutmix_jax.paths import BUCKET, absolute, in_bucket, user_path

BEAT = 10.0  # seconds
BEATS = 3
# What the folder is called in messages, by the flag that sets it.
NOUNS = {"--workdir": "workdir", "--out": "folder"}
# The file or object in the folder of a dataset.
DATASET_LOCK = "prepared.lock"


class Lock:
    """A lock that is held.

    Attributes:
        folder: the absolute path of its folder.
        flag: the flag that sets the folder, for messages.
    """

    def __init__(self, folder, flag):
        self.folder, self.flag = folder, flag

    def __str__(self):
        return f"{NOUNS[self.flag]} {str(self.folder)!r}"

    def check(self):
        """Raises a `UserError` if another run is known to have the lock. Costs nothing."""

    def confirm(self):
        """Makes sure of the lock. Call it before writing what another run must not overwrite."""


@contextlib.contextmanager
def workdir_lock(workdir, primary=True):
    """Locks `workdir` for this run, and makes it.

    With several processes, only the one with `primary` set takes the lock. Yields a `Lock`.

    Raises:
        UserError: another run has the lock, or the workdir cannot be written.
    """
    path = absolute(user_path(workdir, "The workdir"))
    if not primary:
        yield Lock(path, "--workdir")
        return
    with _hold_alone(path, "lock", "--workdir") as lock:
        yield lock


def dataset_lock(folder):
    """Locks the folder that a dataset is written to, and makes it. Yields a `Lock`.

    Raises:
        UserError: another process has the lock, or the folder cannot be written.
    """
    return _hold_alone(folder, DATASET_LOCK, "--out")


@contextlib.contextmanager
def sweep_lock(workdir):
    """Lets one worker of a sweep at a time read the results and write the table.

    Raises:
        UserError: the workdir cannot be written.
    """
    with _hold(workdir, "sweep.lock", "--workdir", wait=True):
        yield


@contextlib.contextmanager
def _hold_alone(folder, name, flag):
    with _hold(folder, name, flag, wait=False) as lock:
        if lock is None:
            noun = NOUNS[flag]
            raise UserError(
                f"Another run is writing to the {noun} {str(folder)!r}. Wait for it to end, or "
                f"choose another {noun} with {flag}."
            )
        yield lock


def _hold(folder, name, flag, wait):
    hold = _hold_object if in_bucket(folder) else _hold_file
    return hold(folder, name, flag, wait)


@contextlib.contextmanager
def _hold_file(folder, name, flag, wait):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / name, "w")  # noqa: SIM115  closed below
    except OSError as error:
        raise _cannot_write(folder, flag, error.strerror) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            yield None
            return
        yield Lock(folder, flag)


@contextlib.contextmanager
def _hold_object(folder, name, flag, wait):
    try:
        lock = BucketLock(folder, name, flag)
        taken = lock.acquire(wait)
    except ValueError as error:  # what tensorstore raises
        reason = first_line(error).partition(" [http_response")[0]
        raise _cannot_write(folder, flag, reason) from error
    if not taken:
        yield None
        return
    try:
        yield lock
    finally:
        lock.release()


def _cannot_write(folder, flag, reason):
    return UserError(
        f"The {NOUNS[flag]} {str(folder)!r} cannot be written ({reason}). Choose another one with "
        f"{flag}."
    )


class BucketLock(Lock):
    """A lock in a bucket; a thread renews it until `release`."""

    def __init__(self, folder, name, flag):
        import tensorstore  # as orbax uses it, with its conditional writes

        super().__init__(folder, flag)
        bucket, _, prefix = os.fspath(folder).removeprefix(BUCKET).partition("/")
        store = {"driver": "gcs", "bucket": bucket, "path": f"{prefix}/" if prefix else ""}
        # By default it tries a dead connection again for minutes.
        context = tensorstore.Context({"gcs_request_retries": {"max_retries": 3}})
        self.store = tensorstore.KvStore.open(store, context=context).result()
        self.name, self.owner = name, f"{socket.gethostname()}, process {os.getpid()}"
        self.token, self.count = uuid.uuid4().hex, 0
        self.generation = self.renewed = None
        self.lost, self.writing, self.ended = False, threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self._keep_renewing, name="lock", daemon=True)

    def acquire(self, wait):
        """Takes the lock; returns False if another process has it and `wait` is not set."""
        seen = since = None
        while True:
            found = self.store.read(self.name).result()
            now = time.monotonic()
            if found.stamp.generation != seen:
                if seen is not None and found.state == "value" and not wait:
                    return False  # somebody renews it
                if seen is None and found.state == "value" and not wait:
                    self._tell(found.value)
                seen, since = found.stamp.generation, now
            if found.state == "missing" or now - since > BEATS * BEAT:
                if self._write(seen):
                    self.thread.start()
                    return True
            else:
                time.sleep(BEAT / 10)

    def _tell(self, value):
        holder = bytes(value).decode(errors="replace").partition("\n")[0]
        print(
            f"The {self} has the lock of another run ({holder}). Waiting up "
            f"to {BEATS * BEAT:.0f} s to see whether it is still there.",
            file=sys.stderr,
            flush=True,
        )

    def _write(self, generation):
        """Writes the object if its generation is this one, and returns whether it was."""
        self.count += 1
        value = f"{self.owner}\n{self.token} {self.count}".encode()
        began = time.monotonic()
        self.store.write(self.name, value, if_equal=generation).result()
        # What was read is what counts: an answer may be lost, and the write repeated.
        found = self.store.read(self.name).result()
        if found.state != "value" or bytes(found.value) != value:
            return False
        self.generation, self.renewed = found.stamp.generation, began
        return True

    def _renew(self):
        with self.writing:
            if not self.lost and not self.ended.is_set():
                self.lost = not self._write(self.generation)

    def _keep_renewing(self):
        while not self.ended.wait(BEAT) and not self.lost:
            with contextlib.suppress(ValueError):  # the network may come back
                self._renew()

    def check(self):
        if self.lost:
            raise UserError(
                f"Another run has taken the lock of the {self}, so this one ends without writing. "
                f"Start each run in its own {self.flag}."
            )

    def confirm(self):
        if time.monotonic() - self.renewed > 2 * BEAT:  # the thread could not renew it
            try:
                self._renew()
            except ValueError as error:
                raise UserError(
                    f"The lock of the {self} could not be renewed "
                    f"({first_line(error)}). Check the network, and run the same command again to "
                    "resume."
                ) from error
        self.check()

    def release(self):
        """Deletes the object, unless another process has taken it."""
        with self.writing:
            self.ended.set()
        self.thread.join()
        if not self.lost:
            with contextlib.suppress(ValueError):  # it is stale after some beats
                self.store.write(self.name, None, if_equal=self.generation).result()
