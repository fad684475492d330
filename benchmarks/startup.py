"""From `python main.py` to the first finished step: the first start, and one with a warm cache.

    python -m benchmarks.startup
    python -m benchmarks.startup --config configs/cifar.py:resnet20,cutmix --config.data_dir=PATH

Unknown options go to `main.py`. Each start is a separate process. The first one of a repeat has an
empty cache of compiled steps.
"""

import functools
import os
import pathlib
import subprocess
import sys
import tempfile

from benchmarks import timing

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Ends the process when the counters of the first step arrive.
DRIVER = """
import os, runpy, sys
from cutmix_jax import metrics
metrics.Totals.add = lambda self, counters: os._exit(42)
sys.argv = ["main.py", *sys.argv[1:]]
runpy.run_path("main.py", run_name="__main__")
"""
LIGHT = """
import sys
import cutmix_jax.mix
assert not [m for m in sys.modules if m.split(".")[0] in ("tensorflow", "flax", "optax", "clu")]
"""


def start(arguments, cache, workdir):
    """Trains up to the end of the first step."""
    command = [sys.executable, "-c", DRIVER, *arguments, "--workdir", str(workdir)]
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    env |= {"CUTMIX_JAX_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode != 42:
        sys.exit(f"main.py ended before its first step: {done.stderr.strip()[-300:]}")


def measure(options, rest):
    """Yields the rows."""
    arguments = " ".join(rest) or "configs/digits.py"
    seconds = {name: [] for name in ("first", "second", "import")}
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            calls = {
                name: functools.partial(start, rest, folder / "cache", folder / name)
                for name in ("first", "second")
            }
            calls["import"] = functools.partial(
                subprocess.run, [sys.executable, "-c", LIGHT], check=True
            )
            for name, call in calls.items():
                seconds[name] += timing.take_turns({name: call}, 1, 1)[name]
    yield timing.compare(
        f"second start, {arguments}",
        "s",
        seconds["second"],
        "first start",
        seconds["first"],
        goal=">= 2",
    )
    yield timing.compare(
        "python -c 'import cutmix_jax.mix'",
        "s",
        seconds["import"],
        note="imports no TensorFlow, Flax, optax, clu",
    )


def main():
    options, rest = timing.parser(__doc__).parse_known_args()
    timing.run(measure(options, rest), options, "startup")


if __name__ == "__main__":
    main()
