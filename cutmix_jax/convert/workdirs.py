"""Converts PyTorch files to workdirs, and workdirs to files or to folders for the Hub."""

import json

from cutmix_jax import UserError, command_line
from cutmix_jax import config as config_lib
from cutmix_jax.checkpoint import Checkpoints, read_weights
from cutmix_jax.convert.files import read_file, saver
from cutmix_jax.convert.hub import model_card, timm_config, why_not_timm
from cutmix_jax.convert.weights import from_torch, to_torch
from cutmix_jax.lock import workdir_lock
from cutmix_jax.parallel import create_mapping
from cutmix_jax.paths import absolute, remove_folder, user_path, whole_file, write_text

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
    state, meta, notes = _read(workdir, which)
    arrays = to_torch(state["weights"], state["step"])
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as unfinished:
        save(arrays, unfinished)
    return arrays, meta, notes


def export_folder(workdir, folder, which="latest", overwrite=False):
    """Writes a run as a folder that timm loads, and that can be uploaded to the Hugging Face Hub.

    It holds the weights (`model.safetensors`), timm's `config.json`, and a model card
    (`README.md`). Without a network of timm, there is no `config.json`.

    Args:
        workdir: folder of a classifier's run, or of converted weights.
        folder: folder to write.
        which: the 'latest' or the 'best' checkpoint.
        overwrite: replace these three files.

    Returns:
        ``(arrays, meta, notes)``, as from `export_weights`.

    Raises:
        UserError: no checkpoint is whole, safetensors is missing, the run is not that of a
            classifier, or one of the files exists.
    """
    folder = user_path(folder, "The folder of weights")
    weights, timm, card = (
        folder / name for name in ("model.safetensors", "config.json", "README.md")
    )
    there = [path for path in (weights, timm, card) if path.exists()]
    if there and not overwrite:
        raise UserError(f"{there[0]} exists: give another folder with --output, or --overwrite.")
    save = saver(weights)
    state, meta, notes = _read(workdir, which)
    config = config_lib.from_plain(meta["config"])
    if config.task != "classification":
        raise UserError(
            f"The task of {str(workdir)!r} is {config.task!r}, but model cards are written for "
            "classification. Give a file with --output, such as model.safetensors."
        )
    arrays = to_torch(state["weights"], state["step"])
    history = meta.get("progress", {}).get("history", ())
    measured = [r for r in history if r["step"] == state["step"] and "test_top1_error" in r]
    results = user_path(workdir, "The workdir") / "results.json"
    texts = {
        card: model_card(
            config,
            arrays,
            meta,
            name=absolute(folder).name,
            record=measured[0] if measured else None,
            results=json.loads(results.read_text()) if results.is_file() else None,
            best=which == "best",
        )
    }
    if reason := why_not_timm(config):
        notes = [*notes, f"{reason}. The folder has no config.json, and timm cannot load it."]
    else:
        values = timm_config(config, arrays, meta.get("class_names"))
        texts[timm] = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    for path in there:
        path.unlink()
    with whole_file(weights) as unfinished:
        save(arrays, unfinished)
    for path, text in texts.items():
        write_text(path, text)
    return arrays, meta, notes


def _read(workdir, which):
    """What `read_weights` returns, with a note about EMA weights."""
    state, meta, notes = read_weights(workdir, which)
    if state["averaged"]:
        notes = [*notes, "These are the run's EMA weights (config.ema)."]
    return state, meta, notes


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
    remove_folder(checkpoints)
