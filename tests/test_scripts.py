"""The scripts for clusters do what docs/devices.md says, with fakes of their clusters' commands."""

import contextlib
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from tests.commands import REPOSITORY, SMALL, environment

SCRIPTS = REPOSITORY / "scripts"

# Starts each task of a step as SLURM does, and passes SIGTERM on to all of them.
SRUN = f"""#!{sys.executable}
import os, pathlib, signal, subprocess, sys
tasks = []
signal.signal(signal.SIGTERM, lambda *_: [task.send_signal(signal.SIGTERM) for task in tasks])
step = os.environ | {{"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1"}}
for i in range(int(os.environ["SLURM_NTASKS"])):
    own = {{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}}
    tasks.append(subprocess.Popen(sys.argv[1:], env=step | own))
pathlib.Path(os.environ["FAKES"], "srun.pid").write_text(str(os.getpid()))
sys.exit(max(task.wait() for task in tasks))
"""
# Notes its arguments, and does what the test says.
NOTES = """#!/bin/bash
echo "$(basename "$0") $*" >> "$FAKES/log"
"""


@pytest.fixture
def fakes(tmp_path):
    """A folder of fake commands, which come first in PATH, and the environment that has them."""
    folder = tmp_path / "fakes"
    folder.mkdir()

    def write(name, text):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)

    path = f"{folder}:{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    return folder, write, environment() | {"PATH": path, "FAKES": str(folder)}


def log_of(folder):
    path = folder / "log"
    return path.read_text().splitlines() if path.exists() else []


class TestSlurm:
    def options(self):
        text = (SCRIPTS / "slurm.sbatch").read_text()
        return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.M))

    def test_the_job_is_asked_to_stop_in_time_and_may_come_back(self):
        options = self.options()
        assert options["signal"] == "TERM@120"
        assert "requeue" in options
        assert options["ntasks-per-node"] == options["gpus-per-node"]  # one process per GPU

    def run(self, env, workdir, *arguments):
        """Starts the script as SLURM does: in the folder where it was submitted."""
        words = ["bash", str(SCRIPTS / "slurm.sbatch"), *arguments]
        return subprocess.Popen(
            words,
            env=env | {"WORKDIR": str(workdir), "SLURM_JOB_ID": str(os.getpid())},
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # to end its tasks with it
        )

    @pytest.mark.parametrize(("result", "requeued"), [("saved", 1), ("finished", 0), ("failed", 0)])
    def test_only_an_interrupted_run_is_started_again(self, fakes, tmp_path, result, requeued):
        folder, write, env = fakes
        actions = {
            "saved": "exit 0",
            "finished": 'touch "$WORKDIR/results.json"',
            "failed": "exit 1",
        }
        write(
            "srun", NOTES + f'echo "$JAX_COMPILATION_CACHE_DIR" > "$FAKES/cache"\n{actions[result]}'
        )
        write("scontrol", NOTES)
        (tmp_path / "run").mkdir()
        env = {k: v for k, v in env.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        process = self.run(env, tmp_path / "run", "--config.epochs=2")
        process.communicate(timeout=30)
        assert (process.returncode != 0) == (result == "failed")
        srun, *rest = log_of(folder)
        workdir = f"--workdir={tmp_path}/run"
        assert srun == f"srun python main.py {workdir} --distributed --config.epochs=2"
        assert rest == [f"scontrol requeue {os.getpid()}"] * requeued
        assert (folder / "cache").read_text() == f"{tmp_path}/compiled\n"

    def test_a_bucket_is_refused_before_anything_starts(self, fakes):
        folder, write, env = fakes
        write("srun", NOTES)
        job = self.run(env, "gs://bucket/run")
        assert "Use a folder that all nodes mount" in job.communicate(timeout=20)[0]
        assert job.returncode == 2
        assert not log_of(folder)

    @pytest.mark.slow
    def test_a_task_saves_at_sigterm_and_goes_on_when_requeued(self, fakes, tmp_path):
        folder, write, env = fakes
        write("srun", SRUN)
        write("scontrol", NOTES)
        env, workdir = env | {"SLURM_NTASKS": "1"}, tmp_path / "run"
        # The default config with a small network and few images.
        arguments = [*SMALL[:-1], "--config.epochs=60"]
        process = self.run(env, workdir, *arguments)
        try:
            wait_for(workdir / "metrics.jsonl", process)
            os.kill(int((folder / "srun.pid").read_text()), signal.SIGTERM)
            out, _ = process.communicate(timeout=120)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == 0, out
        step = re.search(r"Interrupted and saved at step (\d+) of", out)[1]
        assert log_of(folder) == [f"scontrol requeue {os.getpid()}"]
        assert not (workdir / "results.json").exists()

        process = self.run(env, workdir, *arguments)
        out, _ = process.communicate(timeout=240)
        assert process.returncode == 0, out
        assert f"Going on from step {step} of" in out
        assert (workdir / "results.json").exists()
        assert len(log_of(folder)) == 1  # it is not requeued again


def wait_for(path, process, timeout=120):
    end = time.monotonic() + timeout
    while not (path.exists() and path.read_text()):
        assert process.poll() is None, process.communicate()[0]
        if time.monotonic() > end:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(process.communicate()[0])
        time.sleep(0.2)


SPOT_VARIABLES = {
    "NAME": "cutmix",
    "ZONE": "z",
    "TYPE": "v4-16",
    "VERSION": "base",
    "SETUP": "mount it",
    "WORKDIR": "/mnt/my runs",
    "WAIT": "0",
}


class TestSpotTpu:
    # The first slice is preempted while it trains; the second one finishes.
    GCLOUD = (
        NOTES
        + """
case "$*" in
  *describe*) echo "${STATE:-ACTIVE}" ;;
  *"main.py"*) [ "$(grep -c 'main\\.py' "$FAKES/log")" -ge "${FINISHES:-2}" ] ;;
  *delete*) [ "$(wc -l < "$FAKES/log")" -gt 1 ] ;;
esac
"""
    )

    def run(self, fakes, **variables):
        folder, write, env = fakes
        write("gcloud", self.GCLOUD)
        words = ["bash", str(SCRIPTS / "spot_tpu.sh"), "--config", "configs/imagenet.py:,cutmix"]
        env = env | SPOT_VARIABLES | variables
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)
        pattern = r"(delete|create|describe|mount it|main\.py)"
        return done, [re.search(pattern, line)[1] for line in log_of(folder)], log_of(folder)

    def test_a_preempted_slice_is_replaced_until_the_run_is_finished(self, fakes):
        done, steps, log = self.run(fakes)
        assert done.returncode == 0, done.stderr
        once = ["delete", "create", "describe", "mount it", "main.py"]
        assert steps == [*once, *once, "delete"]
        assert "--spot" in log[1]
        command = log[4].partition("--command=")[2]
        assert shlex.split(command) == [
            *("cd", "cutmix_jax", "&&", "python3", "main.py", "--workdir=/mnt/my runs"),
            *("--distributed", "--config", "configs/imagenet.py:,cutmix", "&&"),
            *("test", "-f", "/mnt/my runs/results.json"),
        ]

    def test_the_results_of_a_run_in_a_bucket_are_looked_for_there(self, fakes):
        done, _, log = self.run(fakes, FINISHES="1", WORKDIR="gs://bucket/run")
        assert done.returncode == 0, done.stderr
        assert log[4].endswith("&& gcloud storage ls gs://bucket/run/results.json")

    @pytest.mark.parametrize("state", ["ACTIVE", "FAILED", "SUSPENDED"])
    def test_it_gives_up_at_last(self, fakes, state):
        done, steps, _ = self.run(fakes, FINISHES="9", ATTEMPTS="3", STATE=state)
        assert done.returncode == 1
        assert "Not finished after 3 attempts" in done.stderr
        assert steps.count("create") == 3


def test_the_image_is_built_from_files_that_exist():
    """pip's lines were also resolved in a fresh environment; the image itself was not built."""
    text = (REPOSITORY / "Dockerfile").read_text()
    named = re.findall(r"-[rc] (\S+)", text)
    copied = re.search(r"^COPY (.+) \./$", text, re.M)[1].split()
    assert named
    assert sorted(named) == sorted(copied)
    assert all((REPOSITORY / name).is_file() for name in named)
    entry = re.search(r'^ENTRYPOINT \["python", "(.*)"\]$', text, re.M)[1]
    assert (REPOSITORY / entry).is_file()
