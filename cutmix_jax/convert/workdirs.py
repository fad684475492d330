"""Converts PyTorch files to workdirs, and workdirs to files."""

import shutil

from cutmix_jax import UserError, command_line
from cutmix_jax import config as config_lib
from cutmix_jax.checkpoint import Checkpoints, read_weights
from cutmix_jax.convert.files import read_file, saver
from cutmix_jax.convert.weights import from_torch, to_torch
from cutmix_jax.lock import workdir_lock
from cutmix_jax.parallel import create_mapping
from cutmix_jax.paths import in_bucket, user_path, whole_file

# The most likely training data for a number of classes and channels.
DATA = {
    (1000, 3): ("imagenet", "imagenet2012"),
    (100, 3): ("cifar", "cifar100"),
    (10, 3): ("cifar", "cifar10"),
    (10, 1): ("digits", "digits"),
}


def import_weights(
    path, workdir, model=None, config=None, overrides=(), overwrite=False, weights=None
):
    """Writes a checkpoint of the weights in `path`, for `--mode evaluate` and `init_from`.

    Args:
        path: a PyTorch or safetensors file.
        workdir: folder to write; it must not contain a run.
        model: as for `from_torch`.
        config: 'FILE' or 'FILE:ARG', how to evaluate; None: from the number of classes.
        overrides: ``--config.KEY=VALUE`` flags for it.
        overwrite: replace earlier converted weights in `workdir`.
        weights: as for `from_torch`.

    Returns:
        A `Converted`.

    Raises:
        UserError: the file, its weights, the config or the workdir cannot be used.
    """
    path, workdir = user_path(path, "The file of weights"), user_path(workdir, "The workdir")
    converted = from_torch(read_file(path), model, path.name, weights)
    config = _create_config(converted, config, overrides, path)
    with workdir_lock(workdir) as lock:
        _make_room(lock.folder, overwrite)
        with Checkpoints(lock.folder) as checkpoints:
            meta = {
                "config": config_lib.to_plain(config),
                "weights": {"file": path.name, "new": list(converted.new)},
            }
            checkpoints.save(0, create_mapping("pmap", 1).replicate(converted.variables), meta)
            checkpoints.wait()
    return converted


def export_weights(workdir, path, which="latest", overwrite=False):
    """Writes the weights of a run as a PyTorch `state_dict`.

    Args:
        workdir: folder of a run or of converted weights. EMA weights are written if there are any.
        path: file to write: '.safetensors', or '.pth', which needs PyTorch.
        which: the 'latest' or the 'best' checkpoint.
        overwrite: replace `path`.

    Returns:
        ``(arrays, meta, notes)``: what was written, the checkpoint's description, and sentences for
        the user.

    Raises:
        UserError: no checkpoint is whole, PyTorch is missing, or the file exists.
    """
    path = user_path(path, "The file of weights")
    if path.exists() and not overwrite:
        raise UserError(f"--output {path} exists: give another name, or --overwrite.")
    save = saver(path)
    state, meta, notes = read_weights(workdir, which)
    arrays = to_torch(state["weights"], state["step"])
    if state["averaged"]:
        notes = [*notes, "These are the run's EMA weights (config.ema)."]
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as unfinished:
        save(arrays, unfinished)
    return arrays, meta, notes


def _create_config(converted, name, overrides, path):
    """The config for evaluating the weights."""
    chosen = [f"--config.model={converted.model}"]
    if name is None:
        kind = converted.num_classes, converted.channels
        if kind not in DATA:
            raise UserError(
                f"{path.name} has {kind[0]} classes and images with {kind[1]} channels. No known "
                "dataset has both. Say how to evaluate it: --config "
                f"configs/imagenet.py:{converted.model},baseline --config.dataset=NAME."
            )
        stem, dataset = DATA[kind]
        name = f"{command_line.ROOT / 'configs' / stem}.py:{converted.model},baseline"
        chosen.append(f"--config.dataset={dataset}")
    config = command_line.read_config(name, [*chosen, *overrides])
    if config.model != converted.model:
        raise UserError(
            f"config.model is {config.model!r}, but the weights are those of {converted.model}: "
            "name the network only with --model."
        )
    config_lib.check_config(config)
    return config


def _make_room(folder, overwrite):
    """Removes converted checkpoints from the workdir. Those of a run are never deleted."""
    checkpoints = folder / "checkpoints"
    if not checkpoints.is_dir() or not any(checkpoints.iterdir()):
        return
    with Checkpoints(folder, read_only=True) as there:
        converted = "weights" in there.read_meta()
    if not converted:
        raise UserError(
            f"The workdir {str(folder)!r} contains a run, which is never overwritten: give another "
            "folder with --output."
        )
    if not overwrite:
        raise UserError(
            f"The workdir {str(folder)!r} contains converted weights: give another folder with "
            "--output, or --overwrite."
        )
    checkpoints.rmtree() if in_bucket(checkpoints) else shutil.rmtree(checkpoints)
