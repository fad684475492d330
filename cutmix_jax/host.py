"""What this host has and keeps: cores, memory of large batches, compiled programs on its disk."""

import ctypes
import hashlib
import os
import pathlib
import platform
import sys
import tempfile

BACKGROUND = "background"  # threads that compile while the process goes on
# Parameters of glibc's mallopt, from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def keep_freed_memory():
    """Lets malloc keep what is freed for the next batch, instead of returning it to the system.

    Above 32 MB, glibc maps each allocation anew and unmaps it when it is freed, so that every
    array of a batch is paid for in page faults, 4 KB at a time: copying 64 float32 images of
    224 x 224 takes ten times as long as it has to. Call it once, before the first large array.
    The process keeps the memory of its largest moment until it ends.

    Returns:
        Whether it was done: on Linux with glibc. Elsewhere nothing happens.

    Example:
        >>> from cutmix_jax.host import keep_freed_memory
        >>> done = keep_freed_memory()
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    largest = 2**31 - 1
    return mallopt(M_MMAP_THRESHOLD, largest) == mallopt(M_TRIM_THRESHOLD, largest) == 1


def keep_compiled_programs():
    """Lets JAX keep what it compiles in the user's cache folder, for the next start.

    A folder that is already chosen (`JAX_COMPILATION_CACHE_DIR`, `jax.config`) stays so, and
    `JAX_ENABLE_COMPILATION_CACHE=false` keeps nothing. Call it before the first compilation.

    Returns:
        The folder, a `pathlib.Path`, or None where it cannot be written, which is said once. Hosts
        with different processors that share a home have one each, since a program compiled for
        one may hold instructions that the other lacks.

    Example:
        >>> from cutmix_jax.host import keep_compiled_programs
        >>> folder = keep_compiled_programs()
    """
    import jax

    from cutmix_jax.data.cache import cache_dir

    if jax.config.jax_compilation_cache_dir:
        return pathlib.Path(jax.config.jax_compilation_cache_dir)
    digest = hashlib.sha256(_processor().encode()).hexdigest()[:8]
    try:
        folder = cache_dir() / f"compiled-{digest}"
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError) as error:  # the latter where a user has no home
        told = f"Compiled programs are not kept ({error}): name a folder with CUTMIX_JAX_CACHE."
        print(told, file=sys.stderr, flush=True)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # By default programs that take less than a second are compiled at every start, and there are
    # many of those.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return folder


def _processor():
    """What tells processors of different instructions apart."""
    listed = pathlib.Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    told = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    return "\n".join([platform.machine(), platform.processor(), *sorted(told)])
