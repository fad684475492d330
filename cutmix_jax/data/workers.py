"""Processes that decode images, for cases where threads would wait for Python's GIL.

Each does one task at a time. Pixels are returned in anonymous shared memory, so nothing is left
behind, however a process ends. A worker ends when its connection closes, even if its parent process
is killed.
"""

import math
import mmap
import multiprocessing
import multiprocessing.connection
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import traceback
import weakref

import numpy as np

from cutmix_jax import UserError, host
from cutmix_jax.data.loading import Loader

# Not with `multiprocessing`, which would run the user's script again in every process.
START = "import sys; from cutmix_jax.data import workers; workers.serve(*map(int, sys.argv[1:]))"


class Workers:
    """Processes that run `Loader.fill`, one task per calling thread.

    Args:
        count: number of processes.
        loader: the loader to run.
        most: maximum number of images per task.
    """

    def __init__(self, count: int, loader: Loader, most: int):
        if os.name != "posix":
            raise UserError(
                f"reader_processes={count} needs Linux or macOS. Set --config.reader_processes=0."
            )
        self._free = queue.SimpleQueue()
        largest = max(math.prod(loader.shape_in(training)) for training in (True, False))
        started = [_start(most * largest) for _ in range(count)]
        weakref.finalize(self, _end, started)
        payload = pickle.dumps(loader)
        for process, connection, memory in started:
            _ask(process, lambda connection=connection: connection.send_bytes(payload))
            self._free.put((process, connection, np.frombuffer(memory, np.uint8)))

    def fill(self, name: str, images: np.ndarray, labels: np.ndarray, *task) -> None:
        """Runs `Loader.fill` in the next free process."""
        worker = process, connection, memory = self._free.get()
        try:
            _ask(process, lambda: connection.send((name, images.shape, *task)))
            answer = _ask(process, connection.recv)
            if isinstance(answer, Exception):
                raise answer
            images[:], labels[:] = memory[: images.size].reshape(images.shape), answer
        finally:
            self._free.put(worker)


def _start(size: int):
    """(process, connection to it, shared memory of `size` bytes)."""
    ours, theirs = multiprocessing.Pipe()
    with theirs, _nameless_file() as file:
        file.truncate(size)
        shared = theirs.fileno(), file.fileno()
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", START, *map(str, shared)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
            pass_fds=shared,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # keeps Ctrl-C from the worker
        )
        return process, ours, mmap.mmap(file.fileno(), size)


def _nameless_file():
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("images"), "w+b")
    return tempfile.TemporaryFile()


def _ask(process: subprocess.Popen, call):
    try:
        return call()
    except (EOFError, OSError) as error:
        raise UserError(
            f"A process that decodes images ended with status {process.wait()}. The lines above "
            "may say why; if memory ran out, lower --config.reader_processes."
        ) from error


def _end(started) -> None:
    for process, connection, _ in started:
        connection.close()
        process.kill()
        process.wait()


def serve(connection: int, memory: int) -> None:
    """Runs tasks until the connection closes. The arguments are file descriptors."""
    host.keep_freed_memory()
    with multiprocessing.connection.Connection(connection) as tasks:
        try:
            loader = pickle.loads(tasks.recv_bytes())
            pixels = np.frombuffer(mmap.mmap(memory, 0), np.uint8)
            while True:
                name, shape, positions, numbers = tasks.recv()
                images, labels = (
                    pixels[: math.prod(shape)].reshape(shape),
                    np.empty(shape[0], np.int64),
                )
                try:
                    loader.fill(name, images, labels, positions, numbers)
                    tasks.send(labels)
                except UserError as error:
                    tasks.send(error)
                except Exception:
                    tasks.send(RuntimeError(traceback.format_exc()))
        except (EOFError, ConnectionError):
            return
