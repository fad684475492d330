"""Converts PyTorch arrays to variables of a network, and back."""

import dataclasses

import jax
import numpy as np
from flax import traverse_util

from cutmix_jax import UserError
from cutmix_jax.convert.contents import check_architecture, choose_network
from cutmix_jax.convert.files import refuse_narrow
from cutmix_jax.convert.names import (
    TRANSPOSED,
    infer_model,
    rename_legacy,
    some,
    torch_names,
    torch_shape,
)
from cutmix_jax.models import create_model

HEADS = ("fc.weight", "linear.weight", "classifier.6.weight")


@dataclasses.dataclass(frozen=True)
class Converted:
    """Weights of a network of this project, converted from a file."""

    model: str
    num_classes: int
    channels: int  # of the images
    variables: dict  # {'params', 'batch_stats'}: nested dictionaries of float32 arrays
    new: tuple[str, ...] = ()  # modules that are not in the file and were initialized
    notes: tuple[str, ...] = ()


def to_torch(variables, steps=0, dtype=np.float32):
    """Converts variables to a PyTorch `state_dict` of NumPy arrays.

    Args:
        variables: ``{'params', 'batch_stats'}``, as from `model.init`.
        steps: the number of training steps, for BatchNorm's `num_batches_tracked`.
        dtype: of the weights.

    Returns:
        ``{name: array}``: contiguous, float32 except for the counters, which are int64.
        Convolutions are OIHW, linear layers OI.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = create_model('resnet20', num_classes=10)
        >>> variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
        >>> arrays = to_torch(variables)
        >>> arrays['layer1.0.conv1.weight'].shape, arrays['bn1.num_batches_tracked'].dtype
        ((16, 16, 3, 3), dtype('int64'))
    """
    arrays, flat = {}, _flat(variables)
    for path, name in torch_names(flat).items():
        leaf = np.asarray(flat[path], dtype)
        arrays[name] = np.array(leaf.transpose(TRANSPOSED[leaf.ndim]), order="C")
        if path[-1] == "var":
            arrays[name.replace("running_var", "num_batches_tracked")] = np.array(steps, np.int64)
    return arrays


def from_torch(contents, model=None, source="the file", weights=None):
    """Converts a PyTorch `state_dict` to variables of a network.

    Args:
        contents: ``{name: tensor or array}`` with names of torchvision, timm or the authors, or
            dictionaries that contain one, as scripts save them. Prefixes of DataParallel and others
            are dropped. `num_batches_tracked` is ignored.
        model: name of the network, as for `create_model`; None: inferred from names and shapes.
        source: the name of the weights in errors.
        weights: 'raw' or 'ema', if there are both; None: EMA weights if there are any.

    Returns:
        A `Converted`.

    Raises:
        UserError: tensors are missing, extra, of another shape or not finite; no network of this
            project has such names; or the contents name another architecture.

    Example:
        >>> kernel = np.zeros((16, 3, 3, 3))
        >>> from_torch({'model_ema': {'module.conv1.weight': kernel}}, 'resnet20')
        Traceback (most recent call last):
          ...
        cutmix_jax.UserError: the file does not fit resnet20 (missing: bn1.bias, ...
    """
    network, notes = choose_network(contents, source, weights)
    arrays, legacy = rename_legacy(_to_arrays(network.tensors, source))
    name = model or infer_model(arrays, source)
    head = next((arrays[k] for k in HEADS if k in arrays), None)
    num_classes = 1000 if head is None or not head.ndim else head.shape[0]
    stem = arrays.get("conv1.weight", arrays.get("features.0.weight"))
    channels = stem.shape[1] if stem is not None and stem.ndim == 4 else 3
    try:
        net = create_model(name, num_classes)
    except UserError as error:
        if model:
            raise
        raise UserError(f"{source} looks like {name}, but cannot be converted: {error}") from None
    images = jax.ShapeDtypeStruct((1, 224, 224, channels), np.float32)
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda key, x: net.init(key, x, train=False), key, images)
    leaves = _flat(shapes)
    names = torch_names(leaves)
    wanted = {names[path]: (path, leaf) for path, leaf in leaves.items()}

    new = ()
    if _starts_from_vgg(arrays, wanted):
        arrays = {k: v for k, v in arrays.items() if not k.startswith("classifier.")}
        new = ("conv6", "fc")
    _check_names(source, name, arrays, wanted, new, network.strays)
    assumed = check_architecture(contents, name, model, source)
    flat = {
        path: np.array(
            arrays[there].transpose(np.argsort(TRANSPOSED[leaf.ndim])), np.float32, order="C"
        )
        for there, (path, leaf) in wanted.items()
        if path[1] not in new
    }
    bad = [names[path] for path, leaf in flat.items() if not np.isfinite(leaf).all()]
    if bad:
        raise UserError(
            f"{source} has values that are not finite in {some(bad)}: use another checkpoint of "
            "that training."
        )
    if new:
        flat |= _initialize(net, channels, new)
        notes.append(
            f"The {', '.join(new)} of {name} are not in {source} and are initialized as for "
            "training. classifier.* is left out. Use these weights to start training "
            "(--config.init_from)."
        )
    if "resnet" in str(contents.get("architecture")):
        notes.append(
            f"{source} may come from the authors' localization code, whose ResNets have 14x14 "
            "maps. If so, evaluate it with --config.last_stride=1."
        )
    if legacy:
        notes.append(
            f"{source} has the names of timm's legacy SE-ResNets. Their blocks have the stride in "
            "conv1, and their max-pooling pads only at the end. Use the weights to start training: "
            f"without training, they do worse in {name}."
        )
    variables = {"params": {}, "batch_stats": {}} | traverse_util.unflatten_dict(flat)
    return Converted(name, num_classes, channels, variables, new, (*notes, *assumed))


def _to_arrays(tensors, source):
    """Converts tensors to NumPy: floating point as float32, sparse tensors as dense ones."""
    refuse_narrow({k: str(x.dtype).removeprefix("torch.") for k, x in tensors.items()}, source)
    empty = [name for name, x in tensors.items() if getattr(x, "is_meta", False)]
    if empty:
        raise UserError(
            f"{source} has shapes without values ({some(empty)}). Load the weights before you save "
            "model.state_dict()."
        )
    return {name: _to_array(tensor) for name, tensor in tensors.items()}


def _to_array(tensor):
    if isinstance(tensor, np.ndarray | np.generic):
        return np.asarray(tensor)
    tensor = tensor.detach()
    if "strided" not in str(tensor.layout):
        tensor = tensor.to_dense()
    return (tensor.float() if tensor.is_floating_point() else tensor.resolve_conj()).numpy()


def _starts_from_vgg(arrays, wanted):
    """Whether these are a plain VGG-16's features, to start VGG16-GAP from (Table 9)."""
    missing = wanted.keys() - arrays.keys()
    extra = arrays.keys() - wanted.keys()
    theirs = {name for name in wanted if name.startswith(("conv6.", "fc."))}
    return (
        "features.0.weight" in wanted
        and missing == theirs
        and all(name.startswith("classifier.") for name in extra)
    )


def _check_names(source, model, arrays, wanted, new, strays):
    """Refuses names and shapes that do not fit, in one message."""
    expected = {
        name: torch_shape(leaf.shape) for name, (path, leaf) in wanted.items() if path[1] not in new
    }
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    wrong = [
        f"{name} is {shapes[name]}, but {shape} was expected"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    wrong += [
        f"{name} is {array.dtype}, but floating point was expected"
        for name, array in arrays.items()
        if name in expected and array.dtype.kind in "biuc"
    ]
    missing, extra = (
        sorted(a.keys() - b.keys()) for a, b in ((expected, shapes), (shapes, expected))
    )
    if missing:  # they may be elsewhere in the file
        extra += sorted(strays.keys() - {"n_averaged"})
    problems = [
        f"{word} {some(names)}"
        for word, names in (
            ("missing:", missing),
            ("extra:", extra),
            ("wrong:", wrong),
        )
        if names
    ]
    if problems:
        raise UserError(
            f"{source} does not fit {model} ({'; '.join(problems)}). Name the network that was "
            "saved, with --model or --config.model."
        )


def _initialize(net, channels, modules):
    """The leaves of some modules, initialized as for training."""
    images = np.zeros((1, 64, 64, channels), np.float32)

    def init(key):
        flat = _flat(net.init(key, images, train=False))
        return {"/".join(path): leaf for path, leaf in flat.items() if path[1] in modules}

    leaves = jax.device_get(jax.jit(init)(jax.random.key(0)))
    return {tuple(name.split("/")): leaf for name, leaf in leaves.items()}


def _flat(tree):
    return traverse_util.flatten_dict(tree)
