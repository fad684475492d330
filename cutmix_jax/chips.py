"""What the chips of a run can do, and how much of it the run uses."""

import re

import jax
from flax import linen as nn
from jax import numpy as jnp

# Dense TFLOP/s of one device in 16 bits, and in the format that multiplies float32: TF32, or FP32
# on a chip without TF32. None: a TPU multiplies float32 in one or more passes of bfloat16. The
# first name that is in a device's kind counts. V100 and T4 have tensor cores for float16 alone. Of
# TPU v2 and v3, a device is one of the two cores of a chip. Sources: NVIDIA's data sheets, whose
# numbers with sparsity are halved, and cloud.google.com/tpu/docs.
PEAKS = {
    "H200 NVL": (835, 417),
    "H200": (989, 495),
    "H100 NVL": (835, 417),
    "H100 PCIe": (756, 378),
    "H100": (989, 495),
    "A100": (312, 156),
    "L4": (121, 60),
    "V100-PCIE": (112, 14),
    "V100": (125, 15.7),
    "T4": (65, 8.1),
    "TPU v2": (22.5, None),
    "TPU v3": (61.5, None),
    "TPU v4": (275, None),
    "TPU v5 lite": (197, None),
    "TPU v5e": (197, None),
    "TPU v5p": (459, None),
    "TPU v5": (459, None),
    "TPU v6 lite": (918, None),
    "TPU v6e": (918, None),
}


def peak_tflops(kind, dtype):
    """The dense TFLOP/s of a device, from `PEAKS`.

    Args:
        kind: `device_kind` of a JAX device.
        dtype: of the activations, 'float32' or 'bfloat16'.

    Returns:
        A number, or None for a chip that is not in the table, such as a CPU.

    Example:
        >>> peak_tflops('NVIDIA A100-SXM4-40GB', 'bfloat16'), peak_tflops('cpu', 'bfloat16')
        (312, None)
    """
    found = (PEAKS[chip] for chip in PEAKS if re.search(rf"{chip}\b", kind))
    return next(found, (None, None))[dtype == "float32"]


def train_flops(model, image_shape):
    """FLOPs of training a classifier on one image: three times those of the forward pass.

    Two FLOPs are a multiplication and an addition. The backward pass takes twice as many as the
    forward pass. What `config.remat` computes again does not count.

    Args:
        model: a network of `models`.
        image_shape: (height, width, channels), in pixels.

    Returns:
        A float, as XLA counts it in the traced forward pass; nothing is compiled. None without a
        CPU backend (`JAX_PLATFORMS=cuda`), because the compiler for GPUs does not count.

    Example:
        >>> from cutmix_jax.models import create_model
        >>> train_flops(create_model('resnet20', 10), (32, 32, 3))
        225964536.0
    """
    try:
        host = jax.devices("cpu")[0]
    except RuntimeError:
        return None
    # XLA also counts the zeros with which convolution.py fills the blocks of a grouped kernel.
    model = model.clone(conv_layer=nn.Conv)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    key = jax.random.key(0)
    variables = jax.eval_shape(lambda x: model.init(key, x, train=False), images)
    with jax.default_device(host):
        forward = jax.jit(lambda v, x: model.apply(v, x, train=False)).lower(variables, images)
    found = forward.cost_analysis()
    return found and 3 * found["flops"]


def peak_memory_mib(devices):
    """The most memory that one of `devices` has used since this process started, in MiB.

    Args:
        devices: JAX devices of this process.

    Returns:
        A float, or None where a device does not report it, such as a CPU.

    Example:
        >>> peak_memory_mib(jax.local_devices(backend='cpu'))
    """
    stats = [device.memory_stats() or {} for device in devices]
    peaks = [found.get("peak_bytes_in_use") for found in stats]
    return None if None in peaks else max(peaks) / 2**20


def utilization(task, images_per_second):
    """The FLOP/s of training as a fraction of the peak of all devices ("MFU").

    Args:
        task: a `tasks.Task`.
        images_per_second: on all devices together; None if it was not measured.

    Returns:
        A float, or None if the chip's peak or the task's FLOPs are unknown.
    """
    devices = task.mapping.mesh.devices.ravel()
    peak = peak_tflops(devices[0].device_kind, task.config.dtype)
    if not (peak and images_per_second and task.train_flops):
        return None
    return task.train_flops * images_per_second / (peak * 1e12 * devices.size)
