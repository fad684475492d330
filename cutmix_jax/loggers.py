"""Loggers of a run: TensorBoard, Weights & Biases and MLflow. Each is imported when it is used.

A session starts each of them once. It then gets the numbers of every epoch, and is closed.
"""

import functools
import json

from cutmix_jax import UserError, first_line
from cutmix_jax import config as config_lib
from cutmix_jax.data.records import require
from cutmix_jax.paths import LocalFolder, in_bucket, write_text


class TensorBoard:
    """Writes event files into `WORKDIR/tensorboard`."""

    package = "tensorboardX"

    def __init__(self, workdir, config, first_step):
        del config
        self.files, self.first_step = LocalFolder(workdir / "tensorboard"), first_step

    @functools.cached_property
    def writer(self):
        """The writer of the event files, from the first epoch on."""
        import tensorboardX  # not before the first step: it takes PyTorch along where there is one

        return tensorboardX.SummaryWriter(str(self.files.here), purge_step=self.first_step)

    def log(self, step, values):
        """Logs ``{name: number}`` at `step`."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()
        self.files.upload()

    def close(self, failed):
        """Ends the log; `failed` says whether an error ended the run."""
        del failed
        if "writer" in self.__dict__:
            self.writer.close()
            self.files.upload()


class WeightsAndBiases:
    """Logs to Weights & Biases. Its own files are in `WORKDIR/wandb`, or in `wandb` here for a
    workdir in a bucket."""

    package = "wandb"

    def __init__(self, workdir, config, first_step):
        import wandb

        del first_step
        self.run = wandb.init(
            id=read_id(workdir, "wandb"),
            resume="allow",
            name=workdir.name,
            config=config_lib.to_plain(config),
            dir=None if in_bucket(workdir) else str(workdir),
            settings=wandb.Settings(console="off"),  # a progress bar is no log
        )
        write_id(workdir, "wandb", self.run.id)

    def log(self, step, values):
        """Logs ``{name: number}`` at `step`."""
        self.run.log(values, step=step)

    def close(self, failed):
        """Ends the log; `failed` says whether an error ended the run."""
        self.run.finish(exit_code=int(failed))


class MLflow:
    """Logs to MLflow."""

    package = "mlflow"

    def __init__(self, workdir, config, first_step):
        import mlflow

        del first_step
        self.mlflow, known = mlflow, read_id(workdir, "mlflow")
        run = mlflow.start_run(run_id=known, run_name=workdir.name)
        write_id(workdir, "mlflow", run.info.run_id)
        if known is None:  # parameters cannot be changed later
            mlflow.log_params(config_lib.flatten(config_lib.to_plain(config)))

    def log(self, step, values):
        """Logs ``{name: number}`` at `step`."""
        self.mlflow.log_metrics(values, step=step)

    def close(self, failed):
        """Ends the log; `failed` says whether an error ended the run."""
        self.mlflow.end_run("FAILED" if failed else "FINISHED")


LOGGERS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}


def check_installed(names):
    """Refuses loggers whose package is not installed, without importing any.

    Raises:
        UserError: one is not.
    """
    for name in names:
        package = LOGGERS[name].package
        require(package, f"config.loggers={name}", f"python -m pip install {package}")


def start(name, workdir, config, first_step):
    """Starts a logger.

    Args:
        name: of `LOGGERS`.
        workdir: the folder of the run, a `pathlib.Path`.
        config: the config of the run.
        first_step: an earlier session may have logged steps from this one on, which come again.

    Raises:
        UserError: it cannot start, for example because nobody is logged in.
    """
    try:
        return LOGGERS[name](workdir, config, first_step)
    except Exception as error:
        raise UserError(
            f"config.loggers={name} cannot start ({first_line(error).removesuffix('.')}). Check "
            "its login and its server, choose its offline mode, or leave it out of config.loggers."
        ) from error


def read_id(workdir, name):
    """The id under which a logger knows this run, or None before its first session."""
    path = workdir / "loggers.json"
    return json.loads(path.read_text()).get(name) if path.is_file() else None


def write_id(workdir, name, value):
    """Keeps the id of a run in `WORKDIR/loggers.json`, so that a resumed run goes on with it."""
    path = workdir / "loggers.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    write_text(path, json.dumps(known | {name: value}) + "\n")
