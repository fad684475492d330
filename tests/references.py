"""Numbers of torchvision and timm, which continuous integration does not install.

    python -m tests.references           computes them where both are installed, and compares
    python -m tests.references --write   writes tests/references.json anew

`test_references.py` compares our networks with the file.
"""

import hashlib
import json
import pathlib
import sys
import zlib

import numpy as np

FILE = pathlib.Path(__file__).with_suffix(".json")
NETWORKS = {
    "resnet50": ("torchvision", "resnet50"),
    "resnext50_32x4d": ("torchvision", "resnext50_32x4d"),
    "resnet18": ("torchvision", "resnet18"),
    "se_resnet50": ("timm", "seresnet50"),
}
SHOWN = 8  # logits per image in the file


def fill(name, shape):
    """Made-up values of an entry of a `state_dict`, from its name and shape alone."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("running_var"):
        values = random.uniform(0.5, 1.5, shape)
    elif len(shape) == 1:
        values = random.uniform(0.2, 0.6, shape)
    else:
        values = random.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
    return values.astype(np.float32)


def images():
    """float32 [2, 64, 64, 3]."""
    return np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)


def digest_of_names(shapes):
    """Of the names and shapes of a `state_dict`."""
    text = "\n".join(f"{name} {tuple(shape)}" for name, shape in sorted(shapes.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def compute(library, name):
    """The numbers of a network of torchvision or timm, with made-up weights."""
    import torch

    if library == "timm":
        import timm

        net, version = timm.create_model(name), timm.__version__
    else:
        import torchvision

        net, version = torchvision.models.get_model(name), torchvision.__version__
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    weights = {key: torch.tensor(fill(key, shape)) for key, shape in shapes.items()}
    net.load_state_dict(weights, strict=True)
    with torch.no_grad():
        logits = net.eval()(torch.tensor(images().transpose(0, 3, 1, 2))).numpy()
    return {
        "from": f"{library} {version.partition('+')[0]}, {name}",
        "params": sum(parameter.numel() for parameter in net.parameters()),
        "names": digest_of_names(shapes),
        "largest": float(np.abs(logits).max()),
        "logits": logits[:, :SHOWN].tolist(),
    }


def main(arguments):
    found = {name: compute(*where) for name, where in NETWORKS.items()}
    if "--write" in arguments:
        FILE.write_text(json.dumps(found, indent=1) + "\n")
        return 0
    for name, stored in json.loads(FILE.read_text()).items():
        for key in ("params", "names"):
            assert found[name][key] == stored[key], (name, key)
        error = np.abs(np.subtract(found[name]["logits"], stored["logits"])).max()
        assert error <= 1e-4 * stored["largest"], (name, error)
        print(f"{name}: as {found[name]['from']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
