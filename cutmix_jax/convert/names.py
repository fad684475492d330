"""PyTorch's names for the parts of each network, and the network that fits given names."""

import re

from cutmix_jax import UserError

LEAVES = {  # the last part of a name, here and in PyTorch
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
FAMILIES = {  # patterns that come before MODULES: names in the common code for these networks
    "preact_resnet": [
        (r"\bdownsample_conv\b", "shortcut.0"),
        (r"^bn_final\b", "bn"),
        (r"^fc\b", "linear"),
    ],
    "wide_resnet": [
        (r"^layer(\d+)_(\d+)\b", r"block\1.layer.\2"),
        (r"\bdownsample_conv\b", "convShortcut"),
        (r"^bn_final\b", "bn1"),
    ],
}
LEGACY = [  # names in timm's legacy SE-ResNets, and the usual names
    (r"^layer0\.", ""),
    (r"\bse_module\b", "se"),
    (r"^last_linear\b", "fc"),
]
# Published PyramidNets, whose names have only the depth.
PYRAMIDS = {"pyramidnet110_64": "pyramidnet110", "pyramidnet200_240": "pyramidnet200"}


def torch_names(paths):
    """Translates the names of a network's leaves to PyTorch's.

    Args:
        paths: parts of the names of all leaves; the first part is the collection.

    Returns:
        ``{path: key of PyTorch's state_dict}``.

    Example:
        >>> torch_names([('params', 'layer1_0', 'downsample_bn', 'scale')])
        {('params', 'layer1_0', 'downsample_bn', 'scale'): 'layer1.0.downsample.1.weight'}
        >>> list(torch_names([('params', 'bn_final', 'bias'), ('params', 'fc', 'bias')]).values())
        ['bn1.bias', 'fc.bias']
    """
    top, patterns = {path[1] for path in paths}, MODULES
    if "bn_final" in top and "bn1" not in top:  # pre-activation: no norm in the stem
        family = "preact_resnet" if "layer4_0" in top else "wide_resnet"
        patterns = FAMILIES[family] + MODULES
    names = {}
    for path in paths:
        _, *modules, leaf = path
        name = ".".join(modules)
        for pattern, there in patterns:
            name = re.sub(pattern, there, name)
        names[path] = f"{name}.{LEAVES[leaf]}"
    return names


def torch_shape(shape):
    """PyTorch's shape of a leaf with this shape."""
    return tuple(shape[axis] for axis in TRANSPOSED[len(shape)])


def rename_legacy(arrays):
    """Replaces names of timm's legacy SE-ResNets, and returns whether there were any."""
    legacy = any(name.startswith("layer0.") for name in arrays)
    for pattern, ours in LEGACY if legacy else ():
        arrays = {re.sub(pattern, ours, name): array for name, array in arrays.items()}
    return arrays, legacy


def infer_model(arrays, source="the file"):
    """Finds the network that fits the names and shapes of a `state_dict`.

    Args:
        arrays: ``{name: array}`` with torchvision's names.
        source: the name of the weights in errors.

    Raises:
        UserError: no network of this project has these names.

    Example:
        >>> import numpy as np
        >>> infer_model({'features.0.weight': np.zeros((64, 3, 3, 3))})
        'vgg16_gap'
    """
    if "features.0.weight" in arrays:
        return "vgg16_gap"
    found = (
        re.fullmatch(r"(layer\d+|block\d+\.layer)\.\d+\.conv2\.weight", name) for name in arrays
    )
    blocks = sum(match is not None for match in found)
    # An unknown file may have any shapes.
    shape = {name: (*array.shape, 0, 0, 0, 0)[:4] for name, array in arrays.items()}
    if "conv1.weight" in arrays and "block1.layer.0.conv2.weight" in arrays:
        return f"wide_resnet{2 * blocks + 4}_{shape['block1.layer.0.conv2.weight'][0] // 16}"
    pre_activation = "linear.weight" in arrays and "bn1.weight" not in arrays
    head = "linear.weight" if pre_activation else "fc.weight"
    needed = ("conv1.weight", "layer1.0.conv2.weight", head)
    if not all(name in arrays and all(shape[name][:2]) for name in needed):
        raise UserError(
            f"{source} contains no network that its names would show (it begins with "
            f"{some(sorted(arrays), 3)}). If this project has the network, name it with --model."
        )
    bottleneck = "layer1.0.conv3.weight" in arrays
    depth = blocks * (3 if bottleneck else 2) + 2
    width, _, side, _ = shape["conv1.weight"]
    stages = {name.split(".")[0] for name in arrays if name.startswith("layer")}
    if "bn_final.weight" in arrays:
        alpha = shape["fc.weight"][1] // (4 if bottleneck else 1) - 16
        name = f"pyramidnet{depth}_{alpha}" + "_basic" * (not bottleneck)
        return PYRAMIDS.get(name, name)
    inner, share = shape["layer1.0.conv2.weight"][:2]
    kinds = {name.split(".")[2] for name in arrays if name.startswith("layer1.0.")}
    name = "preact_" * pre_activation + f"resnet{depth}"
    if bottleneck and share < inner:
        name = f"resnext{depth}_{inner // share}x{share}d"
    elif depth == 110 and not bottleneck:
        name += "_basic"
    name = "".join(f"{kind}_" for kind in ("se", "ge") if kind in kinds) + name
    if len(stages) == 4 and side == 3 and not pre_activation:
        name += "_cifar"
    factor = width / (64 if len(stages) == 4 else 16)
    return name + f"x{factor:.10g}" * (factor != 1)


def some(names, limit=6):
    """The first few names, and the number of others."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
