"""PyTorch weights in and out.

    python -m cutmix_jax.convert model.pth.tar --output WORKDIR
    python -m cutmix_jax.convert model.safetensors --model resnet50 --output WORKDIR
    python -m cutmix_jax.convert WORKDIR --output model.pth
    python -m cutmix_jax.convert WORKDIR --output FOLDER

Reads checkpoints of torchvision, timm and the authors of CutMix (.pth, .pth.tar, .safetensors).
Writes a workdir for `--mode evaluate` and `--config.init_from`. Given a workdir, it writes names
and shapes that PyTorch's networks load strictly, from the EMA weights if the run has them.
.safetensors needs no PyTorch. A folder has what timm and the Hugging Face Hub read: weights,
config.json and a model card.
"""

from cutmix_jax.convert.files import read_file
from cutmix_jax.convert.names import infer_model, torch_names
from cutmix_jax.convert.weights import Converted, from_torch, to_torch
from cutmix_jax.convert.workdirs import export_folder, export_weights, import_weights

__all__ = [
    "Converted",
    "export_folder",
    "export_weights",
    "from_torch",
    "import_weights",
    "infer_model",
    "read_file",
    "to_torch",
    "torch_names",
]
