"""What this host has, keeps and is asked for, before the first computation.

The library calls none of it: `main.py` and the other tools do, by `prepare`.
"""

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import sys
import tempfile

BACKGROUND = "background"  # threads that compile while the process goes on
# Parameters of glibc's mallopt, from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# XLA computes the weight gradient of a convolution on CPUs by a library call that is up to five
# times slower than its own code. This turns off that one call.
WEIGHT_GRADIENT_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
# Versions of jaxlib on which it was tried. Others may end the process at a flag they do not know.
TRIED = (
    *("0.9.1", "0.9.2", "0.10.0", "0.10.1", "0.10.2"),
    *("0.11.0", "0.11.1", "0.11.2", "0.12.0", "0.12.0.1"),
)


def prepare():
    """Readies this process for training; call it before JAX computes anything."""
    use_fast_weight_gradients()
    keep_freed_memory()
    keep_compiled_programs()


def cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def use_fast_weight_gradients():
    """Asks XLA for the faster of its weight gradients of convolutions on CPUs, by `XLA_FLAGS`.

    A train step of ResNet-50 takes two thirds of the time (see docs/performance.md). The gradients
    are the same to rounding, and rounded less. Call it before JAX starts its devices. It does
    nothing where the flag is set already, on a version of jaxlib on which it was not tried, and
    where the packages of a GPU or TPU are installed: those read the same variable.

    With it, convolutions by other functions than `models.convolution` must not have windows that
    lie in the padding of one side alone: XLA reads outside of the map for their gradient.

    Returns:
        Whether the flag was added.

    Example:
        >>> from cutmix_jax.host import use_fast_weight_gradients
        >>> added = use_fast_weight_gradients()
    """
    flags = os.environ.get("XLA_FLAGS", "")
    accelerated = importlib.metadata.entry_points(group="jax_plugins") or any(
        importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu")
    )
    tried = importlib.metadata.version("jaxlib") in TRIED
    if accelerated or not tried or WEIGHT_GRADIENT_FLAG in flags:
        return False
    os.environ["XLA_FLAGS"] = f"{flags} {WEIGHT_GRADIENT_FLAG}=-individual_convolution".strip()
    return True


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
