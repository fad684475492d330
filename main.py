"""Trains, evaluates, lists: `python main.py --config configs/cifar.py:resnet20,cutmix`."""

import json
import os
import pathlib
import re
import sys

from absl import app, flags, logging

ROOT = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # `configs/` and the package are found from any folder

from ml_collections import config_flags  # noqa: E402

from cutmix_jax import UserError  # noqa: E402
from cutmix_jax.command_line import explain, fail, guard, run_name  # noqa: E402
from cutmix_jax.config import is_free  # noqa: E402
from cutmix_jax.paths import local_path, user_path  # noqa: E402

GIVEN = []  # the command line as it was typed
DEFAULT_CONFIG = ROOT / "configs/digits.py"
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "FILE or FILE:MODEL,METHOD; by default configs/digits.py."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run, local or gs://BUCKET/FOLDER; by default in runs/."
)
MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate", "list"], "What to do.")
JSON = flags.DEFINE_bool("json", False, "Whether --mode list prints JSON.")
CHECKPOINT = flags.DEFINE_enum(
    "checkpoint", "latest", ["latest", "best"], "Which checkpoint to evaluate."
)
EVALS = flags.DEFINE_string(
    "evals", None, "What to evaluate instead of the errors: NAME,NAME,... or all (--mode evaluate)."
)
PROFILE = flags.DEFINE_string(
    "profile", None, "START:COUNT: trace COUNT steps after the first START into WORKDIR/profile."
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the other processes of a TPU pod slice or cluster, found by JAX."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, where JAX cannot find the processes itself."
)
PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are.")
PROCESS = flags.DEFINE_integer("process", None, "Which one this is, from 0.")


def main(argv):
    del argv
    if MODE.value == "list":
        list_rows()
        return
    if JSON.value:
        raise UserError("--json needs --mode list, which prints the rows of the paper.")
    workdir = user_path(WORKDIR.value or default_workdir(), "--workdir")
    import jax  # not before the flags are right

    from cutmix_jax import host, profiler, run

    profile = PROFILE.value and profiler.read_steps(PROFILE.value)
    if profile and MODE.value != "train":
        raise UserError("--profile needs --mode train, whose steps it traces.")
    host.set_up()
    if DISTRIBUTED.value or COORDINATOR.value:
        join_processes(jax)
    elif PROCESSES.value is not None or PROCESS.value is not None:
        raise UserError("--processes and --process need --coordinator HOST:PORT, of process 0.")
    if EVALS.value is not None and MODE.value != "evaluate":
        raise UserError("--evals needs --mode evaluate, which measures what has been trained.")
    if MODE.value == "train":
        run.train(CONFIG.value, workdir, profile=profile)
    else:
        # A workdir alone is enough: its checkpoints carry their config, which may be overridden.
        config = CONFIG.value if given("config(?!\\.)") or not WORKDIR.value else None
        overrides = config_flags.get_override_values(flags.FLAGS["config"])
        run.evaluate(config, workdir, CHECKPOINT.value, overrides=overrides, evals=EVALS.value)


def join_processes(jax):
    """Starts JAX's distributed runtime; a process that dies takes the others down in 30 s."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator_address=COORDINATOR.value,
            num_processes=PROCESSES.value,
            process_id=PROCESS.value,
            heartbeat_timeout_seconds=30,
            initialization_timeout=120,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"The processes did not find each other ({str(error).splitlines()[0]}): start all of "
            "them with the same --coordinator and --processes, and --process from 0 up."
        ) from error


def list_rows():
    """Prints every row of the paper that can be trained, with the config that trains it."""
    from cutmix_jax import paper

    listed = paper.list_rows()
    print(json.dumps(listed, indent=1) if JSON.value else paper.format_rows(listed), flush=True)


def default_workdir():
    """runs/NAME, after the config, its argument, the overrides that matter, and the seed."""
    overrides = config_flags.get_override_values(flags.FLAGS["config"])
    named = {
        key: value for key, value in sorted(overrides.items()) if not is_free(key) and key != "seed"
    }
    if CONFIG.value.dataset == "folder":
        named["data_dir"] = CONFIG.value.data_dir
    name = config_flags.get_config_filename(flags.FLAGS["config"])
    return pathlib.Path("runs") / run_name(name, CONFIG.value.seed, named)


def given(name):
    """Whether the command line had the flag, or an override of it."""
    return any(re.match(rf"--?{name}\b", word) for word in GIVEN)


def parse(argv):
    """Reads the flags. A mistake is reported in one line, with exit status 2."""
    # `--config` has to come before `--config.KEY`; a default in its definition would be read
    # while this file is imported, where no error could be caught.
    GIVEN[:] = argv[1:]
    found = [i for i, word in enumerate(argv) if re.fullmatch(r"--?config(=.*)?", word)]
    word = f"--config={DEFAULT_CONFIG}"
    if found:
        start, end = found[0], found[0] + (1 if "=" in argv[found[0]] else 2)
        word, argv = "=".join(argv[start:end]), argv[:start] + argv[end:]
    logging.set_verbosity(logging.WARNING)
    try:
        if name := word.partition("=")[2]:
            word = f"--config={local_path(name, '--config')}"
        argv = [argv[0], word, *argv[1:]]
        sys.argv = argv  # config_flags looks for overrides here
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise UserError(
                f"{rest[1]!r} is not a flag. Write --config FILE, or --config.KEY=VALUE."
            )
        CONFIG.value.seed  # noqa: B018  a missing file is noticed only when it is read
    except Exception as error:
        fail(explain(error, argv), 2)
    return rest


def run_main(argv):
    """Runs `main`; a mistake of the user's is one line."""
    guard(main, argv)


if __name__ == "__main__":
    app.run(run_main, flags_parser=parse)
