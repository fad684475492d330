"""Settings of this host: XLA flags, memory, compiled steps on disk, and threads that compile.

They must be set before the first computation. The library does not set them; `main.py` and the
other tools do, with `set_up`.
"""

import concurrent.futures
import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import sys
import tempfile
import threading

BACKGROUND = "background"  # name of the threads that compile
# Parameters of glibc's mallopt, from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# On CPUs, XLA calls a library for the weight gradient of a convolution. The call is up to five
# times slower than XLA's own code. This flag turns it off.
WEIGHT_GRADIENT_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
# Versions of jaxlib it was tested with. Others may abort on an unknown flag.
TRIED = (
    *("0.9.1", "0.9.2", "0.10.0", "0.10.1", "0.10.2"),
    *("0.11.0", "0.11.1", "0.11.2", "0.12.0", "0.12.0.1"),
)


def set_up():
    """Prepares this process for training. Call it before JAX computes anything."""
    use_fast_weight_gradients()
    keep_freed_memory()
    keep_compiled_programs()


def cores():
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def use_fast_weight_gradients():
    """Selects XLA's faster weight gradients of convolutions on CPUs, through `XLA_FLAGS`.

    docs/performance.md has the speed. The gradients are equal up to rounding, and rounded less.
    Call it before JAX starts its devices. It does nothing if the flag is already set, if this
    version of jaxlib was not tested, or if the packages of a GPU or TPU are installed, because they
    read the same variable.

    With the flag, convolutions outside `models.convolution` must not have windows that lie entirely
    in the padding of one side. XLA reads outside the map for their gradient.

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
    """Lets malloc keep freed memory for the next batch, instead of returning it to the system.

    Above 32 MB, glibc maps each allocation and unmaps it when it is freed. Every array of a batch
    then costs page faults, 4 KB at a time: copying 64 float32 images of 224 x 224 takes ten times
    as long as necessary. Call it once, before the first large array. The process keeps its peak
    memory until it ends.

    Returns:
        True on Linux with glibc. On other systems it does nothing and returns False.

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
    """Lets JAX keep compiled steps in the user's cache folder, for the next start.

    A folder that is already set (`JAX_COMPILATION_CACHE_DIR`, `jax.config`) is kept, and
    `JAX_ENABLE_COMPILATION_CACHE=false` turns caching off. Call it before the first compilation.

    Returns:
        The folder, a `pathlib.Path`; None if it cannot be written, with one line on stderr. Each
        kind of processor has its own folder, because hosts may share a home and compiled code may
        use instructions that other processors lack.

    Example:
        >>> from cutmix_jax.host import keep_compiled_programs
        >>> folder = keep_compiled_programs()
    """
    import jax

    from cutmix_jax.data.cache import cache_dir
    from cutmix_jax.paths import user_path

    if jax.config.jax_compilation_cache_dir:
        return user_path(jax.config.jax_compilation_cache_dir, "JAX_COMPILATION_CACHE_DIR")
    digest = hashlib.sha256(_processor().encode()).hexdigest()[:8]
    try:
        folder = cache_dir() / f"compiled-{digest}"
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home folder
        text = f"Compiled steps are not kept ({error}). Set CUTMIX_JAX_CACHE to a writable folder."
        print(text, file=sys.stderr, flush=True)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # By default, JAX does not keep what compiles in less than a second, and there is a lot of that.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return folder


def _processor():
    """Identifies processors with different instruction sets."""
    listed = pathlib.Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    features = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    return "\n".join([platform.machine(), platform.processor(), *sorted(features)])


def start_in_background(function):
    """Runs `function()` in a daemon thread, and returns its future."""
    future = concurrent.futures.Future()

    def run():
        try:
            future.set_result(function())
        except BaseException as error:  # raised by `future.result()`
            future.set_exception(error)

    # A daemon, unlike the threads of an executor, so an error can end the process at once (`fail`).
    threading.Thread(target=run, name=BACKGROUND, daemon=True).start()
    return future
