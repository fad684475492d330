"""What a task says of itself: how its epochs rank, and how it is found."""

import types

import pytest

from cutmix_jax import UserError, mix, tasks
from cutmix_jax.tasks.classification import Classification
from tests.tasks.box import BoxRegression


def task_of(kind):
    """A task of which only the rank is asked."""
    return kind(*[None] * 6)


@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [(Classification, "top1_error", (0.3, 0.2, 0.2, 0.4)), (BoxRegression, "iou", (1, 2, 2, 0))],
)
def test_of_equally_good_epochs_the_last_is_the_best(kind, name, values):
    history = [{"epoch": i, f"test_{name}": value} for i, value in enumerate(values, 1)]
    task = task_of(kind)
    assert task.best(history, "test")["epoch"] == 3
    assert task.best([{"epoch": 0}, *history], "test")["epoch"] == 3
    assert min(history, key=task.rank)["epoch"] == 2


def test_held_out_images_rank_an_epoch_if_there_are_any():
    task = task_of(Classification)
    assert task.rank({"train_loss": 1.0}) is None
    assert task.rank({"test_top1_error": 0.3}) == 0.3
    assert task.rank({"test_top1_error": 0.3, "held_out_top1_error": 0.1}) == 0.1


def test_a_network_for_large_images_is_noted_on_small_ones():
    task = types.SimpleNamespace(
        config=types.SimpleNamespace(model="resnet18", dataset="cifar100", repeats=1),
        data=types.SimpleNamespace(
            image_shape=(32, 32, 3), eval_shape=None, num_classes=100, examples={}, kind=""
        ),
        mix=mix.create_mix("none"),
    )
    words = Classification.describe(task)["model"]
    assert words == (
        "resnet18, 100 classes; it is for large images, and resnet18_cifar for small ones"
    )
    task.config.model = "resnet18_cifar"
    assert Classification.describe(task)["model"] == "resnet18_cifar, 100 classes"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clasification", "There is no task 'clasification' .*nearest is 'classification'"),
        ("tests.nowhere:Box", "cannot be imported .*No module named 'tests.nowhere'"),
        (":Box", "cannot be imported"),
        (".box:Box", "cannot be imported"),
        ("tests.tasks.box:Nothing", "cannot be imported .*no attribute 'Nothing'"),
        ("tests.tasks.box:get_config", "is not a subclass of cutmix_jax.tasks.Task"),
    ],
)
def test_a_name_that_gives_no_task_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        tasks.find_task(name)
