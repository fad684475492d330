"""PyTorch weights in and out.

    python -m cutmix_jax.convert model.pth.tar --output WORKDIR
    python -m cutmix_jax.convert model.safetensors --model resnet50 --output WORKDIR
    python -m cutmix_jax.convert WORKDIR --output model.pth

Reads what torchvision, timm, and the authors of CutMix save (.pth, .pth.tar, .safetensors), and
writes a workdir that `--mode evaluate` measures and `--config.init_from` starts from. Given a
workdir it goes the other way: to names and shapes that PyTorch's own networks load strictly, EMA
weights where the run has them. .safetensors needs no PyTorch.
"""

from cutmix_jax.convert.files import read_file
from cutmix_jax.convert.names import infer_model, torch_name
from cutmix_jax.convert.weights import Converted, from_torch, to_torch
from cutmix_jax.convert.workdirs import export_weights, import_weights

__all__ = [
    "Converted",
    "export_weights",
    "from_torch",
    "import_weights",
    "infer_model",
    "read_file",
    "to_torch",
    "torch_name",
]
