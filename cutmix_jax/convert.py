"""PyTorch weights in and out.

    python -m cutmix_jax.convert model.pth.tar --output WORKDIR
    python -m cutmix_jax.convert model.safetensors --model resnet50 --output WORKDIR
    python -m cutmix_jax.convert WORKDIR --output model.pth

Reads what torchvision, timm, and the authors of CutMix save (.pth, .pth.tar, .safetensors), and
writes a workdir that `--mode evaluate` measures and `--config.init_from` starts from. Given a
workdir it goes the other way: to names and shapes that PyTorch's own networks load strictly,
averaged weights where the run has them. .safetensors needs no PyTorch.
"""

import argparse
import collections
import dataclasses
import importlib
import re
import shutil
import sys

import jax
import numpy as np
from flax import traverse_util

from cutmix_jax import UserError, command_line
from cutmix_jax import config as config_lib
from cutmix_jax.checkpoint import Checkpoints, read_weights, workdir_lock
from cutmix_jax.models import create_model
from cutmix_jax.parallel import create_mapping
from cutmix_jax.paths import place

LEAVES = {  # the last part of a name, here and there
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
TRANSPOSED = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,), 0: ()}  # HWIO to OIHW, IO to OI
MODULES = [  # patterns over the rest of a name, in order
    (r"\bdownsample_conv\b", "downsample.0"),
    (r"\bdownsample_bn\b", "downsample.1"),
    (r"_(\d+)\b", r".\1"),
]
FOREIGN = [  # names that timm's legacy SE-ResNets have, and what the others call them
    (r"^layer0\.", ""),
    (r"\bse_module\b", "se"),
    (r"^last_linear\b", "fc"),
]
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DataParallel, compile, and Lightning
WRAPPERS = ("state_dict", "model_state_dict", "model")
SUFFIXES = (".pth", ".pt", ".tar", ".safetensors")
# Published widenings, which go by the depth alone.
PYRAMIDS = {"pyramidnet110_64": "pyramidnet110", "pyramidnet200_240": "pyramidnet200"}
# What weights for so many classes and channels were trained on, most likely.
DATA = {
    (1000, 3): ("imagenet", "imagenet2012"),
    (100, 3): ("cifar", "cifar100"),
    (10, 3): ("cifar", "cifar10"),
    (10, 1): ("digits", "digits"),
}


@dataclasses.dataclass(frozen=True)
class Converted:
    """Weights of a network of ours, made from a file."""

    model: str
    num_classes: int
    channels: int  # of the images
    variables: dict  # {'params', 'batch_stats'}: nested dictionaries of float32 arrays
    new: tuple[str, ...] = ()  # modules that the file does not hold, initialised anew
    notes: tuple[str, ...] = ()


def torch_name(path):
    """Translates the name of a leaf into PyTorch's.

    Args:
      path: parts of the name, the collection first.

    Returns:
      The key of PyTorch's `state_dict`.

    Example:
      >>> torch_name(('params', 'layer1_0', 'downsample_bn', 'scale'))
      'layer1.0.downsample.1.weight'
      >>> torch_name(('batch_stats', 'bn_final', 'var'))
      'bn_final.running_var'
    """
    _, *modules, leaf = path
    name = ".".join(modules)
    for pattern, there in MODULES:
        name = re.sub(pattern, there, name)
    return f"{name}.{LEAVES[leaf]}"


def to_torch(variables, steps=0, dtype=np.float32):
    """Turns variables into PyTorch's `state_dict`, of NumPy arrays.

    Args:
      variables: ``{'params', 'batch_stats'}``, as of `model.init`.
      steps: training steps taken, which PyTorch's BatchNorm counts in `num_batches_tracked`.
      dtype: of the weights.

    Returns:
      ``{name: array}``: contiguous, float32 but for the counters, which are int64. Convolutions are
      OIHW, linear layers OI.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = create_model('resnet20', num_classes=10)
      >>> variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
      >>> arrays = to_torch(variables)
      >>> arrays['layer1.0.conv1.weight'].shape, arrays['bn1.num_batches_tracked'].dtype
      ((16, 16, 3, 3), dtype('int64'))
    """
    arrays = {}
    for path, leaf in traverse_util.flatten_dict(variables).items():
        name, leaf = torch_name(path), np.asarray(leaf, dtype)
        arrays[name] = np.array(leaf.transpose(TRANSPOSED[leaf.ndim]), order="C")
        if path[-1] == "var":
            arrays[name.replace("running_var", "num_batches_tracked")] = np.array(steps, np.int64)
    return arrays


def from_torch(arrays, model=None, source="the file"):
    """Turns PyTorch's `state_dict` into variables of a network here.

    Args:
      arrays: ``{name: array}`` with names of torchvision, timm or the authors; what DataParallel
        and others put before every name is dropped, `num_batches_tracked` is ignored.
      model: name of the network, as for `create_model`; None: inferred from names and shapes.
      source: what to call the weights in errors.

    Returns:
      A `Converted`.

    Raises:
      UserError: tensors are missing, too many, of another shape or not finite; or no network of
        ours has such names.
    """
    arrays, legacy = _rename(arrays)
    name = model or infer_model(arrays, source)
    head = next((arrays[k] for k in ("fc.weight", "classifier.6.weight") if k in arrays), None)
    num_classes = 1000 if head is None or not head.ndim else head.shape[0]
    stem = arrays.get("conv1.weight", arrays.get("features.0.weight"))
    channels = stem.shape[1] if stem is not None and stem.ndim == 4 else 3
    try:
        net = create_model(name, num_classes)
    except UserError as error:
        if model:
            raise
        raise UserError(f"{source} looks like {name}, and cannot be converted: {error}") from None
    images = jax.ShapeDtypeStruct((1, 224, 224, channels), np.float32)
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda key, x: net.init(key, x, train=False), key, images)
    wanted = {torch_name(path): (path, leaf) for path, leaf in _flat(shapes).items()}

    new = ()
    if _starts_from_vgg(arrays, wanted):
        arrays = {k: v for k, v in arrays.items() if not k.startswith("classifier.")}
        new = ("conv6", "fc")
    _check_names(source, name, arrays, wanted, new)
    flat = {
        path: np.array(
            arrays[there].transpose(np.argsort(TRANSPOSED[leaf.ndim])), np.float32, order="C"
        )
        for there, (path, leaf) in wanted.items()
        if path[1] not in new
    }
    bad = [torch_name(path) for path, leaf in flat.items() if not np.isfinite(leaf).all()]
    if bad:
        raise UserError(
            f"{source} holds values that are not finite in {_some(bad)}: take another checkpoint "
            "of that training."
        )
    notes = []
    if new:
        flat |= _initialise(net, channels, new)
        notes.append(
            f"The {', '.join(new)} of {name} are not in {source} and are initialised anew, and "
            "classifier.* is left out: weights to start training from (--config.init_from)."
        )
    if legacy:
        notes.append(
            f"{source} has the names of timm's legacy SE-ResNets, whose blocks have their stride "
            "in conv1 and whose max-pooling pads at the end alone: a start for training; evaluated "
            f"as they are, the weights do worse in {name}."
        )
    variables = {"params": {}, "batch_stats": {}} | traverse_util.unflatten_dict(flat)
    return Converted(name, num_classes, channels, variables, new, tuple(notes))


def infer_model(arrays, source="the file"):
    """Names the network of a `state_dict` by its names and shapes.

    Args:
      arrays: ``{name: array}`` with torchvision's names.
      source: what to call the weights in errors.

    Raises:
      UserError: these are no names of a network of ours.

    Example:
      >>> infer_model({'features.0.weight': np.zeros((64, 3, 3, 3))})
      'vgg16_gap'
    """
    if "features.0.weight" in arrays:
        return "vgg16_gap"
    found = (re.fullmatch(r"layer\d+\.\d+\.conv2\.weight", name) for name in arrays)
    blocks = sum(match is not None for match in found)
    # Shapes of a stranger's file may be anything.
    shape = {name: (*array.shape, 0, 0, 0, 0)[:4] for name, array in arrays.items()}
    needed = ("conv1.weight", "layer1.0.conv2.weight", "fc.weight")
    if not all(name in arrays and all(shape[name][:2]) for name in needed):
        raise UserError(
            f"{source} holds no network that can be told by its names (it begins with "
            f"{_some(sorted(arrays), 3)}): name the network with --model, if it is one of ours."
        )
    bottleneck = "layer1.0.conv3.weight" in arrays
    depth = blocks * (3 if bottleneck else 2) + 2
    width, _, side, _ = shape["conv1.weight"]
    if "bn_final.weight" in arrays:
        alpha = shape["fc.weight"][1] // (4 if bottleneck else 1) - 16
        name = f"pyramidnet{depth}_{alpha}" + "_basic" * (not bottleneck)
        return PYRAMIDS.get(name, name)
    inner, share = shape["layer1.0.conv2.weight"][:2]
    large = side == 7
    kinds = {name.split(".")[2] for name in arrays if name.startswith("layer1.0.")}
    name = f"resnet{depth}"
    if bottleneck and share < inner:
        name = f"resnext{depth}_{inner // share}x{share}d"
    elif depth == 110 and not bottleneck:
        name += "_basic"
    name = "".join(f"{kind}_" for kind in ("se", "ge") if kind in kinds) + name
    factor = width // (64 if large else 16)
    return name + f"x{factor}" * (factor > 1)


def import_weights(path, workdir, model=None, config=None, overrides=(), overwrite=False):
    """Writes a checkpoint of the weights in `path`, for `--mode evaluate` and `init_from`.

    Args:
      path: file of PyTorch or safetensors.
      workdir: folder to write; it must not hold a run.
      model: as for `from_torch`.
      config: 'FILE' or 'FILE:ARG' that describes how to evaluate; None: by the number of classes.
      overrides: words ``--config.KEY=VALUE`` for it.
      overwrite: replace weights that were converted into `workdir` before.

    Returns:
      A `Converted`.

    Raises:
      UserError: the file, its weights, the config or the workdir cannot be used.
    """
    path, workdir = place(path, "The file of weights"), place(workdir, "The workdir")
    arrays, notes = read_arrays(path)
    converted = from_torch(arrays, model, path.name)
    config = _create_config(converted, config, overrides, path)
    with workdir_lock(workdir) as folder:
        mapping = create_mapping("pmap", 1)
        _make_room(folder, mapping, overwrite)
        with Checkpoints(folder, mapping) as checkpoints:
            meta = {
                "config": config_lib.to_plain(config),
                "weights": {"file": path.name, "new": list(converted.new)},
            }
            checkpoints.save(0, mapping.replicate(converted.variables), meta)
            checkpoints.wait()
    return dataclasses.replace(converted, notes=(*converted.notes, *notes))


def export_weights(workdir, path, which="latest", overwrite=False):
    """Writes the weights of a run as PyTorch's `state_dict`.

    Args:
      workdir: folder of a run, or of weights that were converted; the averaged weights are taken
        where there are any.
      path: file to write: '.safetensors', or '.pth', which needs PyTorch.
      which: the 'latest' or the 'best' checkpoint.
      overwrite: replace `path`.

    Returns:
      ``(arrays, meta, notes)``: what was written, what the checkpoint tells of itself, and
      sentences for the user.

    Raises:
      UserError: there is no whole checkpoint, PyTorch is missing, or the file exists.
    """
    path = place(path, "The file of weights")
    if path.exists() and not overwrite:
        raise UserError(f"--output {path} exists: give another name, or --overwrite.")
    save = _saver(path)
    state, meta, notes = read_weights(workdir, create_mapping("pmap", 1), which)
    arrays = to_torch(state["weights"], state["step"])
    if state["averaged"]:
        notes = [*notes, "These are the run's averaged weights (config.ema)."]
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(arrays, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return arrays, meta, notes


def read_arrays(path):
    """Reads the tensors of a file of PyTorch or safetensors; executes nothing that is in it.

    Args:
      path: a `pathlib.Path`.

    Returns:
      ``({name: array}, notes)``.

    Raises:
      UserError: the file is broken, holds something else, or a package is missing.
    """
    if not path.is_file():
        raise UserError(f"There is no file or workdir {str(path)!r}: give one that exists.")
    if path.suffix == ".safetensors":
        numpy = _need("safetensors.numpy")
        try:
            return numpy.load_file(path), []
        except Exception as error:
            raise _unreadable(path, error) from error
    torch = _need("torch")
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _unreadable(path, error) from error
    notes = []
    if isinstance(found, dict):
        if "architecture" in found and "resnet" in str(found["architecture"]):
            notes.append(
                f"{path.name} may come from the authors' localisation code, whose ResNets have "
                "14x14 maps: evaluate it with --config.last_stride=1 then."
            )
        found = next((found[key] for key in WRAPPERS if isinstance(found.get(key), dict)), found)
    if not isinstance(found, dict) or not found:
        raise UserError(
            f"{path.name} holds a {type(found).__name__}, and a state_dict was expected: save "
            "model.state_dict()."
        )
    strange = [str(name) for name, value in found.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise UserError(
            f"{path.name} holds values beside tensors ({_some(strange)}), and a state_dict, or a "
            "dictionary with one as 'state_dict', was expected: save model.state_dict()."
        )
    floating = {
        name: value.float() if value.is_floating_point() else value for name, value in found.items()
    }
    return {name: value.numpy() for name, value in floating.items()}, notes


def _rename(arrays):
    """Torchvision's names for the networks of others, and whether the file was a legacy one."""
    arrays = {k: v for k, v in arrays.items() if not k.endswith("num_batches_tracked")}
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in arrays)), None):
        if not arrays:
            break
        arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    legacy = any(name.startswith("layer0.") for name in arrays)
    for pattern, ours in FOREIGN if legacy else ():
        arrays = {re.sub(pattern, ours, name): array for name, array in arrays.items()}
    return arrays, legacy


def _starts_from_vgg(arrays, wanted):
    """Whether these are a VGG-16's features, where VGG16-GAP's are wanted (Table 9's start)."""
    missing = wanted.keys() - arrays.keys()
    extra = arrays.keys() - wanted.keys()
    theirs = {name for name in wanted if name.startswith(("conv6.", "fc."))}
    return (
        "features.0.weight" in wanted
        and missing == theirs
        and all(name.startswith("classifier.") for name in extra)
    )


def _check_names(source, model, arrays, wanted, new):
    """Refuses names and shapes that do not fit, all in one sentence."""
    expected = {
        name: _torch_shape(leaf.shape)
        for name, (path, leaf) in wanted.items()
        if path[1] not in new
    }
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    wrong = [
        f"{name} is {shapes[name]} where {shape} was expected"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    wrong += [
        f"{name} holds {array.dtype} where floating point was expected"
        for name, array in arrays.items()
        if name in expected and array.dtype.kind in "biuc"
    ]
    told = [
        f"{word} {_some(names)}"
        for word, names in (
            ("missing:", sorted(expected.keys() - shapes.keys())),
            ("not of this network:", sorted(shapes.keys() - expected.keys())),
            ("misshapen:", wrong),
        )
        if names
    ]
    if told:
        raise UserError(
            f"{source} does not fit {model} ({'; '.join(told)}): name the network that was saved "
            "with --model."
        )


def _initialise(net, channels, modules):
    """The leaves of some modules, as training would start them."""
    images = np.zeros((1, 64, 64, channels), np.float32)

    def init(key):
        flat = _flat(net.init(key, images, train=False))
        return {"/".join(path): leaf for path, leaf in flat.items() if path[1] in modules}

    leaves = jax.device_get(jax.jit(init)(jax.random.key(0)))
    return {tuple(name.split("/")): leaf for name, leaf in leaves.items()}


def _create_config(converted, name, overrides, path):
    """The config that describes how to evaluate the weights."""
    chosen = [f"--config.model={converted.model}"]
    if name is None:
        kind = converted.num_classes, converted.channels
        if kind not in DATA:
            raise UserError(
                f"{path.name} tells {kind[0]} classes in images of {kind[1]} channels, which no "
                "data set of ours has: say how to evaluate it, as in --config "
                f"configs/imagenet.py:{converted.model},baseline --config.dataset=NAME."
            )
        stem, dataset = DATA[kind]
        name = f"{command_line.ROOT / 'configs' / stem}.py:{converted.model},baseline"
        chosen.append(f"--config.dataset={dataset}")
    config = command_line.read_config(name, [*chosen, *overrides])
    if config.model != converted.model:
        raise UserError(
            f"config.model is {config.model!r}, and the weights are those of {converted.model}: "
            "name the network with --model alone."
        )
    config_lib.check_config(config)
    return config


def _make_room(folder, mapping, overwrite):
    """Sees to it that the workdir holds no checkpoints; those of a run are never deleted."""
    checkpoints = folder / "checkpoints"
    if not checkpoints.is_dir() or not any(checkpoints.iterdir()):
        return
    with Checkpoints(folder, mapping, read_only=True) as there:
        converted = "weights" in there.read_meta()
    if not converted:
        raise UserError(
            f"The workdir {str(folder)!r} holds a run, which is never overwritten: give another "
            "folder with --output."
        )
    if not overwrite:
        raise UserError(
            f"The workdir {str(folder)!r} holds converted weights: give another folder with "
            "--output, or --overwrite."
        )
    shutil.rmtree(checkpoints)


def _flat(tree):
    return traverse_util.flatten_dict(tree)


def _torch_shape(shape):
    """The shape that PyTorch has for a leaf of this shape."""
    return tuple(shape[axis] for axis in TRANSPOSED[len(shape)])


def _saver(path):
    """The function that writes arrays into such a file."""
    if path.suffix == ".safetensors":
        numpy = _need("safetensors.numpy")
        return lambda arrays, file: numpy.save_file(arrays, file, metadata={"format": "pt"})
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"--output {path} is no name of a file for PyTorch: give one that ends in .pth or "
            ".safetensors."
        )
    torch = _need("torch")

    def save(arrays, file):
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        torch.save(collections.OrderedDict(tensors), file)

    return save


def _need(module):
    """Imports an optional package, or says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        index = " --index-url https://download.pytorch.org/whl/cpu" * (package == "torch")
        raise UserError(
            f"Reading and writing {'.safetensors' if package == 'safetensors' else '.pth'} needs "
            f"{package}, which is not installed: python -m pip install {package}{index}"
        ) from error


def _numpy_scalars():
    """What the authors' files hold beside tensors: numbers of NumPy, by names old and new."""
    from numpy._core import multiarray

    scalars = [
        (getattr(multiarray, name), f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ]
    return [*scalars, np.ndarray, np.dtype, *(type(np.dtype(code)) for code in "?bhilqBHILQefd")]


def _unreadable(path, error):
    """One sentence of what may be pages."""
    if blocked := re.search(r"GLOBAL ([\w.]*\w)", str(error)):
        reason = (
            f"it would call {blocked[1]}, and only tensors and numbers are read: load it where "
            "you trust it, and save model.state_dict() alone"
        )
    else:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = f"{first.rstrip('.')[:120]}: fetch it again, or give another"
    return UserError(f"{str(path)!r} cannot be read, {reason}.")


def _some(names, limit=6):
    """The first few names, and how many there are beside."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def main(arguments=None):
    """Reads flags, converts, and says what was made and how to use it."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", help="file of PyTorch or safetensors, or a workdir")
    parser.add_argument("--output", required=True, help="workdir, or file (.pth, .safetensors)")
    parser.add_argument("--model", help="network; by default told by names and shapes")
    parser.add_argument(
        "--config",
        metavar="FILE:ARG",
        help="how to evaluate; by default by the number of classes; --config.KEY=VALUE overrides",
    )
    parser.add_argument("--checkpoint", choices=["latest", "best"], default="latest")
    parser.add_argument("--overwrite", action="store_true", help="replace what was converted")
    flags, rest = parser.parse_known_args(arguments)
    try:
        flags.source = place(flags.source, "The source")
        flags.output = place(flags.output, "--output")
        if flags.source.is_dir():
            if rest:
                raise UserError(f"{rest[0]!r} is for weights that come in: leave it out.")
            _tell_export(flags)
        else:
            _tell_import(flags, rest)
    except (UserError, OSError) as error:
        print(f"cutmix_jax.convert: {error}", file=sys.stderr)
        return 1
    return 0


def _tell_import(flags, overrides):
    if flags.output.suffix in SUFFIXES:
        raise UserError(
            f"--output {flags.output} names a file, and weights of PyTorch are converted into a "
            "workdir: give a folder."
        )
    converted = import_weights(
        flags.source, flags.output, flags.model, flags.config, overrides, flags.overwrite
    )
    for note in converted.notes:
        print(note)
    print(
        f"{converted.model}, {converted.num_classes} classes, "
        f"{_count(converted.variables['params']):,} parameters: {flags.output}\n"
        f"To measure:  python main.py --workdir={flags.output} --mode=evaluate "
        "--config.data_dir=PATH\n"
        f"To start from:  --config.init_from={flags.output}"
    )


def _tell_export(flags):
    arrays, meta, notes = export_weights(
        flags.source, flags.output, flags.checkpoint, flags.overwrite
    )
    for note in notes:
        print(note)
    config = config_lib.from_plain(meta["config"])
    print(
        f"{config.model}, {len(arrays)} tensors: {flags.output}\n"
        f"It takes RGB images in [0, 1], less the mean {_numbers(config.normalize.mean)}, over "
        f"{_numbers(config.normalize.std)}."
    )


def _numbers(values):
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"


def _count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


if __name__ == "__main__":
    sys.exit(main())
