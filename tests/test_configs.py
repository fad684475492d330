"""Configs that are in no table of the paper: their values, and one small step of each."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from cutmix_jax import UserError, convert, run, tasks, train
from cutmix_jax.command_line import read_config
from cutmix_jax.config import check_config
from cutmix_jax.models import create_model
from cutmix_jax.parallel import create_mapping
from tests.commands import write_photographs
from tests.tasks.runs import one_step

# Twelve images are whole numbers of 3 and of 4 repetitions.
TINY = {"dataset": "folder", "model": "resnet8", "image_size": 16, "batch_size": 12}
LARGER = {"eval_size": 24, "eval_resize": 28}


pytestmark = pytest.mark.usefixtures("unoptimized")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    root = tmp_path_factory.mktemp("photographs")
    write_photographs(root)
    return str(root)


def create_tiny(name, photographs, **changes):
    config = read_config(f"configs/{name}")
    config.update_from_flattened_dict({**TINY, "data_dir": photographs, **changes})
    return tasks.create_task(config, create_mapping("pmap", 1))


@pytest.mark.parametrize("name", ["imagenet_v2.py", "imagenet_rsb.py:a1"])
def test_a_step_is_taken_and_measured_at_another_size(name, photographs):
    task = create_tiny(name, photographs, **LARGER)
    start = jax.device_get(train.create_state(task))
    state, counters = one_step(task)
    assert np.isfinite(counters["loss"].total).all()
    for module in ("conv1", "fc"):
        assert (start.params[module]["kernel"] != state.params[module]["kernel"]).any()
    if name == "imagenet_v2.py":
        assert task.data.eval_shape == (24, 24, 3)
        _, measure = train.map_steps(task)
        weights = task.mapping.replicate(state.evaluated())
        measured = train.evaluate(task, measure, weights, task.data.arrays)
        assert 0 <= measured["test_top1_error"] <= 1


def test_ema_weights_of_imagenet_v2_have_the_decay_that_torchvision_computes():
    config = read_config("configs/imagenet_v2.py")
    adjust = 8 * 128 * 32 / 600  # GPUs, batch per GPU, steps, epochs
    assert config.ema == pytest.approx(1 - 2e-5 * adjust, abs=1e-9)
    assert config.ema_every == 32


@pytest.mark.parametrize(
    ("name", "decayed"),
    [
        ("imagenet_v2.py", ("kernel", "fc/bias")),
        ("imagenet_rsb.py:a2", ("kernel",)),
        ("imagenet.py", ("",)),
    ],
)
def test_what_is_decayed(name, decayed):
    config = read_config(f"configs/{name}")
    config.momentum = config.clip_gradient = 0.0
    model = create_model("resnet8", 10)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    params = jax.tree.map(lambda x: jnp.ones(x.shape), shapes["params"])
    optimizer = tasks.find_task("classification").create_optimizer(config, lambda step: 1.0)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(params), params)
    for path, update in run.flatten(updates).items():
        assert bool(update.any()) == path.endswith(decayed), path


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("a1", (600, 224, 5e-3, 0.01, 0.1, 0.05, 3)),
        ("a2", (300, 224, 5e-3, 0.02, 0.0, 0.05, 3)),
        ("a3", (100, 160, 8e-3, 0.02, 0.0, 0.0, 1)),
    ],
)
def test_procedures_are_those_of_the_table(name, values):
    config = read_config(f"configs/imagenet_rsb.py:{name}")
    check_config(config)
    keys = "epochs image_size learning_rate weight_decay label_smoothing stochastic_depth repeats"
    assert tuple(config[key] for key in keys.split()) == values
    assert (config.eval_size, config.batch_size, config.mix.partner) == (224, 2048, "reverse")


def test_a_procedure_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match=r"procedure 'a4', but one of a1, a2, a3"):
        read_config("configs/imagenet_rsb.py:a4")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_folder_is_learned_from_a_file_of_weights(suffix, photographs, tmp_path):
    pytest.importorskip("torch" if suffix == ".pth" else "safetensors")
    model = create_model("resnet8", 7)
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 8, 8, 3)), train=False))
    weights = jax.device_get(init(jax.random.key(3)))
    file = tmp_path / f"weights{suffix}"
    convert.files.saver(file)(convert.to_torch(weights), file)
    task = create_tiny("folder.py", photographs, init_from=str(file))
    fresh = train.create_state(task)
    state, notes = run.initialize_from(task, fresh, task.config.init_from)
    assert notes[-2:] == [
        f"Starting from the weights of {file}.",
        "Its head is not used and starts from new weights: fc.",
    ]
    start, given = run.flatten(state.params), run.flatten(weights["params"])
    for path, array in start.items():
        theirs = run.flatten(fresh.params)[path] if path.startswith("fc") else given[path]
        np.testing.assert_array_equal(array, theirs)
    if suffix == ".safetensors":
        after, _ = one_step(task, state)
        assert int(after.step) == 1
        wrong = create_tiny("folder.py", photographs, model="resnet8x2", init_from=str(file))
        with pytest.raises(UserError, match=r"does not fit resnet8x2 .* or --config\.model"):
            run.initialize_from(wrong, fresh, str(file))
