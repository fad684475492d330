"""Small networks, and runs of a module's fixture `task` that share what is compiled."""

import io

import pytest

from cutmix_jax import models, run, signals
from cutmix_jax.data import shapes
from cutmix_jax.models.resnet import BasicBlock, imagenet


@pytest.fixture(scope="module")
def module_patch():
    """A `MonkeyPatch` for all tests of a file."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def small_network(module_patch, unoptimized):
    """`resnet10`, a network of four blocks, and 20 test images of `shapes`."""
    module_patch.setitem(models.NETS, "resnet10", imagenet((1, 1, 1, 1), BasicBlock))
    module_patch.setattr(shapes, "TEST_EXAMPLES", 20)


@pytest.fixture(scope="module")
def start(task):
    """Runs the task in a workdir; returns the results and what was printed."""

    def start(workdir, stop_at=None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "create_task", lambda config: task)
            patch.setattr(signals.Interruption, "at", lambda self, step: step == stop_at)
            results = run.train(task.config, workdir, stream := io.StringIO())
        return results, stream.getvalue()

    return start


@pytest.fixture(scope="module")
def finished(start, tmp_path_factory):
    """The folder, the results and the printed words of a run that was not interrupted."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, *start(folder)
