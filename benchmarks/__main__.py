"""All benchmarks, one after the other, on one page: under 15 minutes on two cores.

    python -m benchmarks
    python -m benchmarks --only networks,mix --output runs/benchmarks
    python -m benchmarks --data-dir PATH --runs runs/convergence

Each one runs in its own process, with settings smaller than its defaults. The folder gets NAME.json
and NAME.log of each, benchmarks.json, benchmarks.md and benchmarks.png. If one fails, the others
still run, and the exit status is 1.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import time

from benchmarks import summary, timing
from cutmix_jax import UserError
from cutmix_jax.command_line import guard
from cutmix_jax.paths import local_path


@dataclasses.dataclass(frozen=True)
class Program:
    """A benchmark and how it is run here.

    Attributes:
        seconds: about how long it takes on two cores with three repeats.
        arguments: its command line; names in braces are those of `NEEDS`, or `output`.
        needs: a key of `NEEDS`. Without it, the benchmark is skipped.
    """

    seconds: int
    arguments: tuple = ()
    needs: str = ""


PROGRAMS = {
    "networks": Program(140, ("--models=resnet20,resnet50", "--flax=")),
    "train_step": Program(
        220,
        (
            "--mixes=cutmix,mixup,manifold_mixup",
            "--no-regularizers",
            "--turns=3",
            "--batch-sizes=16",
        ),
    ),
    "startup": Program(100),
    "mix": Program(60, ("--rounds=7",)),
    "detection": Program(40, ("--rounds=3",)),
    "augmentation": Program(40, ("--rounds=3",)),
    "input": Program(70, ("--data-dir={data_dir}", "--images=256", "--rounds=1"), "data_dir"),
    "scale": Program(180, ("--devices=1,16",)),
    "convergence": Program(10, ("{runs}", "--plot={output}/convergence.png"), "runs"),
    "accelerator": Program(600, (), "accelerator"),
}
# Why a benchmark is skipped without it.
NEEDS = {
    "data_dir": "no prepared photographs are named: --data-dir PATH",
    "runs": "no runs are named: --runs FOLDER; python -m benchmarks.convergence says how to train",
    "accelerator": "JAX finds no GPU or TPU here",
}


def default_backend():
    """The kind of device that JAX uses, found by another process, which then frees the device."""
    found = "import jax; print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True)
    return done.stdout.strip() or "cpu"


def plan(programs, given):
    """Splits the benchmarks into those to run and those that lack what they need.

    Args:
        programs: ``{name: Program}``.
        given: a value, or None, for each key of `NEEDS`, and for `output`.

    Returns:
        ``({name: arguments}, {name: why it is not run})``.
    """
    commands, left_out = {}, {}
    for name, program in programs.items():
        if program.needs and given[program.needs] is None:
            left_out[name] = f"not run: {NEEDS[program.needs]}"
        else:
            commands[name] = [word.format(**given) for word in program.arguments]
    return commands, left_out


def run(name, arguments, output):
    """Runs ``python -m benchmarks.NAME`` and returns its `summary.Outcome`.

    Its output is printed here as well. Warnings and errors go to ``NAME.log``.
    """
    written, log = output / f"{name}.json", output / f"{name}.log"
    written.unlink(missing_ok=True)  # from an earlier run
    words = [f"benchmarks.{name}", *arguments]
    command = [sys.executable, "-m", *words, "--json", str(written)]
    begin = time.monotonic()
    with log.open("w") as messages:
        status = subprocess.run(command, stderr=messages).returncode
    seconds, shown = time.monotonic() - begin, "python -m " + " ".join(words)
    if status == 0 and written.exists():
        found = json.loads(written.read_text())
        rows = [timing.Row(**row) for row in found["rows"]]
        return summary.Outcome(name, shown, seconds, found["machine"], rows)
    last = ([line for line in log.read_text().splitlines() if line.strip()] or [""])[-1].strip()
    note = f"failed with exit status {status}: {last[:200]}"
    row = timing.Row(name, "", [], note=note.replace("|", "\\|"))
    return summary.Outcome(name, shown, seconds, "", [row], failed=True)


def run_all(programs, commands, output):
    """Yields the outcome of each benchmark, and prints the progress before it."""
    begin, expected = time.monotonic(), sum(programs[name].seconds for name in commands)
    for number, (name, arguments) in enumerate(commands.items(), 1):
        gone = summary.clock(time.monotonic() - begin)
        about = f"about {programs[name].seconds} s; {gone} of about {summary.clock(expected)} min"
        print(f"\n[{number}/{len(commands)}] {name}, {about}", flush=True)
        outcome = run(name, arguments, output)
        if outcome.failed:
            print(f"{name}: {outcome.rows[0].note}; see {output / name}.log", flush=True)
        yield outcome


def write(outcomes, output):
    """Writes benchmarks.json, benchmarks.md and benchmarks.png."""
    plain = [dataclasses.asdict(outcome) for outcome in outcomes]
    (output / "benchmarks.json").write_text(json.dumps(plain, indent=1) + "\n")
    (output / "benchmarks.md").write_text(summary.page(outcomes))
    picture = output / "benchmarks.png"
    if not summary.draw(outcomes, picture):
        picture.unlink(missing_ok=True)


def main(arguments, programs=PROGRAMS):
    """Runs the benchmarks that the command line names, and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", default="runs/benchmarks")
    parser.add_argument("--only", help=f"some of {','.join(programs)}")
    parser.add_argument("--data-dir", help="prepared datasets, for input")
    parser.add_argument("--runs", help="finished runs, for convergence")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    names = options.only.split(",") if options.only else list(programs)
    if unknown := [name for name in names if name not in programs]:
        raise UserError(
            f"There is no benchmark {unknown[0]!r}: --only takes {', '.join(programs)}."
        )
    output, data_dir, runs = (
        path and local_path(path, name)
        for name, path in (
            ("--output", options.output),
            ("--data-dir", options.data_dir),
            ("--runs", options.runs),
        )
    )
    output.mkdir(parents=True, exist_ok=True)
    chosen = {name: programs[name] for name in names}
    asks = any(program.needs == "accelerator" for program in chosen.values())
    backend = default_backend() if asks else "cpu"
    commands, left_out = plan(
        chosen,
        {
            "output": output,
            "data_dir": data_dir,
            "runs": runs,
            "accelerator": None if backend == "cpu" else backend,
        },
    )
    repeats = f"--repeats={options.repeats}"
    commands = {name: [*words, repeats] for name, words in commands.items()}
    outcomes = {}
    for name, why in left_out.items():
        row = timing.Row(name, "", [], note=why)
        outcomes[name] = summary.Outcome(name, f"python -m benchmarks.{name}", 0, "", [row])
        print(f"{name}: {why}", flush=True)
    write(list(outcomes.values()), output)
    for outcome in run_all(chosen, commands, output):
        outcomes[outcome.benchmark] = outcome
        write([outcomes[name] for name in names if name in outcomes], output)
    found = [outcomes[name] for name in names]
    taken = ", ".join(f"{outcome.benchmark} {time_of(outcome)}" for outcome in found)
    print(f"\n{taken}; {summary.clock(sum(o.seconds for o in found))} min in all")
    print(f"Written to {output / 'benchmarks.md'}, .json and .png.")
    return int(any(outcome.failed for outcome in found))


def time_of(outcome):
    """How long it took, or that it did not finish."""
    if outcome.failed:
        return "failed"
    return summary.clock(outcome.seconds) if outcome.machine else "not run"


if __name__ == "__main__":
    sys.exit(guard(main, sys.argv[1:]))
