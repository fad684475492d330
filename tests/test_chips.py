"""The peak of a chip, and what a run uses of it."""

import doctest
import types

import jax
import numpy as np
import pytest

from cutmix_jax import chips, paper
from cutmix_jax.models import create_model


@pytest.mark.parametrize(
    ("kind", "half", "single"),
    [
        ("NVIDIA H100 80GB HBM3", 989, 495),
        ("NVIDIA H100 PCIe", 756, 378),
        ("NVIDIA H100 NVL", 835, 417),
        ("NVIDIA H200", 989, 495),
        ("NVIDIA A100-SXM4-40GB", 312, 156),
        ("Tesla V100-SXM2-16GB", 125, 15.7),
        ("Tesla V100-PCIE-16GB", 112, 14),
        ("Tesla T4", 65, 8.1),
        ("NVIDIA L40S", None, None),
        ("TPU v3", 61.5, None),  # one of two cores
        ("TPU v4", 275, None),
        ("TPU v5 lite", 197, None),
        ("TPU v5", 459, None),
        ("TPU v6 lite", 918, None),
        ("cpu", None, None),
    ],
)
def test_the_peak_is_that_of_the_kind_of_device(kind, half, single):
    assert chips.peak_tflops(kind, "bfloat16") == half
    assert chips.peak_tflops(kind, "float32") == single


def test_the_operations_of_training_are_three_times_those_of_the_paper_s_list():
    listed = paper.read_networks()["resnet50", 1000, 2]
    counted = chips.train_flops(create_model("resnet50", 1000), (224, 224, 3))
    assert counted == pytest.approx(3 * listed["flops"], rel=0.01)


def device(kind="NVIDIA H100 80GB HBM3", stats=None):
    return types.SimpleNamespace(device_kind=kind, memory_stats=lambda: stats)


def test_the_peak_memory_is_that_of_the_fullest_device():
    devices = [device(stats={"peak_bytes_in_use": n * 2**20}) for n in (3, 5, 4)]
    assert chips.peak_memory_mib(devices) == 5.0
    assert chips.peak_memory_mib([*devices, device()]) is None
    assert chips.peak_memory_mib([device(stats={})]) is None


def test_the_utilization_is_of_all_devices():
    def task(*devices, train_flops=23.84e9):
        mesh = types.SimpleNamespace(devices=np.array(devices))
        mapping = types.SimpleNamespace(mesh=mesh)
        config = types.SimpleNamespace(dtype="bfloat16")
        return types.SimpleNamespace(mapping=mapping, config=config, train_flops=train_flops)

    one = task(device())
    # 5,740 images/s of ResNet-50 on an H100 are 137 TFLOP/s.
    assert chips.utilization(one, 5740) == pytest.approx(137e12 / 989e12, rel=0.005)
    two = task(device(), device())
    assert chips.utilization(two, 5740) == chips.utilization(one, 5740) / 2
    assert chips.utilization(one, None) is None
    assert chips.utilization(task(device(), train_flops=None), 5740) is None
    assert chips.utilization(task(device("cpu")), 5740) is None


def test_the_examples_run():
    result = doctest.testmod(chips, extraglobs={"jax": jax})
    assert result.attempted >= 3
    assert result.failed == 0
