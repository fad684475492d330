"""Training for localization: its configs, the head's own rate, and a head that starts over."""

import jax
import numpy as np
import pytest

from configs import wsol
from cutmix_jax import UserError, run, tasks, train
from cutmix_jax.config import check_config
from cutmix_jax.optimizer import drop_epochs
from cutmix_jax.parallel import create_mapping
from tests.commands import plain_config


@pytest.mark.parametrize(
    ("arg", "data", "drops", "rate"),
    [
        ("resnet50,cutmix", "caltech_birds2011", [150, 300, 450], 1e-3),
        ("vgg16_gap,mixup,cub", "caltech_birds2011", [150, 300, 450], 1e-4),
        ("resnet50,cutout,imagenet", "imagenet2012", [6, 12, 18], 1e-2),
        ("vgg16_gap,baseline,imagenet", "imagenet2012", [6, 12, 18], 1e-2),
    ],
)
def test_methods_are_those_of_the_appendix(arg, data, drops, rate):
    config = wsol.get_config(arg)
    check_config(config)
    assert config.dataset == data
    assert drop_epochs(config) == drops
    assert config.learning_rate == rate
    assert (config.square_resize, config.image_size) == (256, 224)
    assert (config.new_head, config.head_lr_factor) == (True, 10.0)
    assert (config.last_stride == 1) == (config.model == "resnet50")
    assert config.batch_size == (32 if data == "caltech_birds2011" else 256)


@pytest.mark.parametrize(
    ("arg", "match"),
    [
        ("resnet50,cutmix,cars", "'cars'.*one of cub, imagenet"),
        ("resnet20", "'resnet20' was given"),
    ],
)
def test_other_networks_and_sets_are_refused(arg, match):
    with pytest.raises(UserError, match=match):
        wsol.get_config(arg)


@pytest.fixture(scope="module")
def by_factor():
    """{head_lr_factor: task}."""
    mapping = create_mapping("pmap", local_devices=1)
    return {
        factor: tasks.create_task(plain_config(head_lr_factor=factor), mapping)
        for factor in (1.0, 10.0)
    }


def test_the_head_moves_ten_times_as_far(by_factor):
    """Two steps, which include momentum and decay. Gradients of the first are the same."""
    state = train.create_state(by_factor[1.0])
    grads = jax.tree.map(lambda x: np.cos(np.arange(x.size)).reshape(x.shape), state.params)
    moved = {}
    for factor, task in by_factor.items():
        opt_state, moves = task.optimizer.init(state.params), []
        for _ in range(2):
            updates, opt_state = task.optimizer.update(grads, opt_state, state.params)
            moves.append(jax.tree.map(np.asarray, updates))
        moved[factor] = moves
    for one, ten in zip(moved[1.0], moved[10.0], strict=True):
        for name in one:
            scale = 10 if name == "fc" else 1
            jax.tree.map(
                lambda x, y, scale=scale: np.testing.assert_allclose(scale * x, y, rtol=1e-6),
                one[name],
                ten[name],
            )
    assert np.abs(moved[1.0][0]["fc"]["kernel"]).max() > 0


def test_a_head_that_fits_starts_anew_where_asked(by_factor, monkeypatch):
    task = by_factor[1.0]
    theirs = train.create_state(task)
    given = jax.tree.map(lambda x: x + 1, {"params": theirs.params})
    weights = {**given, "batch_stats": theirs.batch_stats}
    monkeypatch.setattr(run, "read_weights", lambda *_, **__: ({"weights": weights}, {}, []))
    kept, _ = run.initialize_from(task, theirs, "elsewhere")
    np.testing.assert_array_equal(kept.params["fc"]["kernel"], given["params"]["fc"]["kernel"])
    anew = tasks.create_task(plain_config(new_head=True), task.mapping)
    state, notes = run.initialize_from(anew, theirs, "elsewhere")
    np.testing.assert_array_equal(state.params["fc"]["kernel"], theirs.params["fc"]["kernel"])
    np.testing.assert_array_equal(
        state.params["conv1"]["kernel"], given["params"]["conv1"]["kernel"]
    )
    assert "head is not used" in notes[-1]
