"""Settings that must precede the import of JAX, and fixtures for all tests."""

import gc
import json
import os
import pathlib

import pytest

from cutmix_jax import host
from tests.xla_flags import COMPILED_QUICKLY

# Eight devices on one CPU: what holds on one device must hold on several.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + f" --xla_force_host_platform_device_count=8 {COMPILED_QUICKLY}"
).strip()
host.use_fast_weight_gradients()  # as main.py does
# Tracing makes many objects, but few cycles. Searching for them took a tenth of the time.
gc.set_threshold(100_000, 50, 10)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# Files that take minutes.
LONGEST = {
    "test_box.py",
    "test_buckets.py",
    "test_convert.py",
    "test_evidence.py",
    "test_methods.py",
    "test_mix_mutants.py",
    "test_pooling.py",
    "test_processes.py",
    "test_resume.py",
    "test_run.py",
    "test_sweep.py",
    "test_train.py",
}

# Two processes that both use all cores slow each other down many times, so each gets its own.
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    count = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) % len(cores) :: count])


def pytest_collection_modifyitems(items):
    """Puts the longest files first, so that no process is left alone with one at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def tfds_dir() -> pathlib.Path:
    """Folder of real images that TFDS prepared; tests that need it are skipped without it."""
    folder = os.environ.get("CUTMIX_JAX_TEST_DATA")
    if not folder:
        pytest.skip("needs real images: set CUTMIX_JAX_TEST_DATA to a folder of TFDS datasets")
    return pathlib.Path(folder)


@pytest.fixture(scope="session")
def voc_sample(tfds_dir) -> pathlib.Path:
    """A tree of PASCAL VOC's form with 58 real photographs, next to the TFDS datasets."""
    tree = tfds_dir.parent / "voc" / "COCO2017sample"
    if not tree.is_dir():
        pytest.skip(f"needs {tree}")
    return tree


@pytest.fixture(scope="session")
def caption_sample(tfds_dir) -> dict[int, list[str]]:
    """The five captions of each of 40 images of COCO, by their ids; next to the TFDS datasets."""
    folder = tfds_dir.parent / "captions" / "annotations"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    found = {}
    for path in sorted(folder.glob("captions_*.json")):
        for entry in json.loads(path.read_text())["annotations"]:
            found.setdefault(entry["image_id"], []).append(entry["caption"])
    return found


@pytest.fixture(scope="module")
def unoptimized():
    """For files in which compiling takes longer than running."""
    import jax  # after the settings above

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Keeps the tests away from the user's cache. One folder per session, so that it is used."""
    before = os.environ.get("CUTMIX_JAX_CACHE")
    os.environ["CUTMIX_JAX_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["CUTMIX_JAX_CACHE"]
    else:
        os.environ["CUTMIX_JAX_CACHE"] = before
