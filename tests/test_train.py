"""The training step and its loop compute the same however they are run."""

import dataclasses
import re
import threading

import chex
import jax
import numpy as np
import optax
import pytest
from jax import lax
from jax import numpy as jnp

from benchmarks.scale import collectives, reduced_bytes
from cutmix_jax import UserError, metrics, tasks, train
from cutmix_jax.parallel import AXIS, create_mapping
from tests.commands import plain_config

pytestmark = pytest.mark.usefixtures("unoptimized")


def take_steps(task, count, state=None, calls=1):
    """The state after `count` steps, and the last counters."""
    state = task.mapping.replicate(train.create_state(task) if state is None else state)
    arrays = task.mapping.replicate(task.data.arrays["train"])
    step, _ = train.map_steps(task)
    batches = train.group(task.data.train_batches(0), calls)
    for _, xs in zip(range(count // calls), batches, strict=False):
        state, counters = step(state, arrays, task.mapping.shard(xs))
        jax.block_until_ready(state)
    return state, jax.device_get(counters)


@pytest.fixture(scope="module")
def one_device():
    """Parameters and loss after one step on one device, without mixing."""
    task = tasks.create_task(
        plain_config(sync_batch_norm=True), create_mapping("pmap", local_devices=1)
    )
    return take_steps(task, 1)


@pytest.mark.parametrize("kind", ["pmap", "shard_map"])
def test_eight_devices_take_the_step_of_one(kind, one_device):
    task = tasks.create_task(plain_config(sync_batch_norm=True), create_mapping(kind))
    state, counters = take_steps(task, 1)
    expected, expected_counters = one_device
    assert task.mapping.local_devices == 8
    assert int(counters["loss"].count[0]) == 64
    np.testing.assert_allclose(counters["loss"].total, expected_counters["loss"].total, rtol=1e-5)
    # After one step of SGD from the same start, parameters differ by as much as gradients.
    chex.assert_trees_all_close(
        jax.device_get(state.params), jax.device_get(expected.params), atol=2e-5
    )
    chex.assert_trees_all_close(
        jax.device_get(state.batch_stats), jax.device_get(expected.batch_stats), atol=1e-5
    )


def test_shards_of_the_state_stay_equal_with_batch_norm_per_device():
    config = plain_config(**{"mix.name": "cutmix", "ema": 0.9})
    state, _ = take_steps(tasks.create_task(config), 3)
    for leaf in jax.tree.leaves(state):
        first, *others = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(others) == 7
        for other in others:
            np.testing.assert_array_equal(first, other)


DROPS = {
    "shake_drop": 0.5,
    "drop_block.rate": 0.2,
    "drop_block.size": 2,
    "drop_block.stages": (2,),
    "drop_block.schedule": "linear",
    "mix.name": "cutmix",
}


def test_regularizers_leave_the_shards_equal_and_trace_the_step_once(monkeypatch):
    monkeypatch.setattr(train, "train_step", chex.assert_max_traces(train.train_step, n=1))
    task = tasks.create_task(plain_config(**DROPS))
    chex.clear_trace_counter()
    state, _ = take_steps(task, 3)
    for leaf in jax.tree.leaves(state):
        first, *others = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        for other in others:
            np.testing.assert_array_equal(first, other)


def test_what_is_dropped_is_a_function_of_seed_step_device_and_part(monkeypatch):
    """The key that the model gets on each of two devices, for each of two parts."""

    def keys(step, **overrides):
        config = plain_config(accumulate=2, **DROPS, **overrides)
        task, seen = tasks.create_task(config, create_mapping("pmap", 2)), []

        class Model:
            init = task.model.init

            def apply(self, variables, images, *, rngs, progress, **_):
                seen.append((jax.random.key_data(rngs["drop"]), progress))
                scale = variables["params"]["fc"]["bias"].sum()
                return scale * jnp.ones((len(images), 10)), {}

        def gather(state, arrays, xs):
            seen.clear()
            train.train_step(fake, state, arrays, xs)
            return lax.all_gather(tuple(seen), AXIS)

        fake = dataclasses.replace(task, model=Model())
        state = train.create_state(task).replace(step=jnp.int32(step), batch_stats={})
        xs = task.mapping.shard(next(iter(task.data.train_batches(0))))
        arrays = task.mapping.replicate(task.data.arrays["train"])
        monkeypatch.setattr(lax, "scan", unrolled)
        found = jax.device_get(task.mapping.map(gather)(task.mapping.replicate(state), arrays, xs))
        assert {float(p) for _, progress in found for p in progress} == {np.float32(step / 10)}
        return {tuple(key) for parts, _ in found for key in parts}

    first = keys(3)
    assert len(first) == 4
    assert keys(3) == first
    assert not first & keys(4)
    assert not first & keys(3, seed=1)


def unrolled(body, carry, xs, **_):
    """`lax.scan` as a Python loop."""
    results = []
    for i in range(jax.tree.leaves(xs)[0].shape[0]):
        carry, result = body(carry, jax.tree.map(lambda x, i=i: x[i], xs))
        results.append(result)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


def test_batch_statistics_are_those_of_each_device_unless_asked():
    configs = [plain_config(sync_batch_norm=sync) for sync in (False, True)]
    apart, together = (
        take_steps(tasks.create_task(config), 1)[0].batch_stats for config in configs
    )
    differences = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), apart, together)
    assert max(jax.tree.leaves(differences)) > 1e-4


def plans_of_devices(config, step, kind="pmap"):
    """The plan of every device, stacked."""
    task = tasks.create_task(config, create_mapping(kind))

    def gather(step, arrays, xs):
        return lax.all_gather(task.make_batch(arrays, xs, step)["plans"], AXIS)

    xs = next(iter(task.data.train_batches(0)))
    arrays = task.mapping.replicate(task.data.arrays["train"])
    step = task.mapping.replicate(jnp.int32(step))
    return jax.device_get(task.mapping.map(gather)(step, arrays, task.mapping.shard(xs)))[0]


def test_the_plan_is_a_function_of_seed_step_and_device():
    config = plain_config(**{"mix.name": "cutmix"})
    plan = plans_of_devices(config, step=3)
    for box in plan.box[1:]:  # one box for the whole batch, the same on all devices
        np.testing.assert_array_equal(box, plan.box[0])
    assert len({tuple(partner) for partner in plan.partner}) > 1  # but other partners per device
    other_data = plain_config(**{"mix.name": "cutmix", "train_examples": 256, "augment.pad": 1})
    for again in (plans_of_devices(other_data, 3), plans_of_devices(config, 3, "shard_map")):
        chex.assert_trees_all_equal(plan, again)
    for other in (
        plans_of_devices(config, step=4),
        plans_of_devices(plain_config(**{"mix.name": "cutmix", "seed": 1}), step=3),
    ):
        assert not np.array_equal(plan.box, other.box)


def test_the_compiled_step_reduces_and_calls_nothing_else():
    task = tasks.create_task(plain_config(**{"mix.name": "cutmix"}))
    state = task.mapping.replicate(train.create_state(task))
    arrays = task.mapping.replicate(task.data.arrays["train"])
    xs = task.mapping.shard(next(train.group(task.data.train_batches(0), 1)))
    lowered = train.map_steps(task)[0].lower(state, arrays, xs)
    program = lowered.compile().as_text()
    assert not re.findall("infeed|outfeed|callback", program)
    needed = reduced_bytes(state)
    assert collectives(lowered.as_text(dialect="hlo")) == {"all-reduce": needed}
    # XLA sends values that are equal by construction once: the gradients of a shortcut's bias and
    # of its block's last one, and equal counts.
    sent = collectives(program)
    assert sent.keys() == {"all-reduce"}
    assert needed - 400 < sent["all-reduce"] <= needed


def test_one_compiled_step_serves_every_seed():
    """Otherwise each seed of a sweep would compile again."""

    def program(seed):
        dropping = {"mix.name": "cutmix", "stochastic_depth": 0.2, "augment.pad": 1}
        task = tasks.create_task(plain_config(seed=seed, **dropping))
        state = task.mapping.replicate(train.create_state(task))
        xs = task.mapping.shard(next(train.group(task.data.train_batches(0), 1)))
        return train.map_steps(task)[0].lower(state, task.data.arrays["train"], xs).as_text()

    assert program(0) == program(1)


def test_the_state_is_donated_and_the_step_traced_once(monkeypatch):
    monkeypatch.setattr(train, "train_step", chex.assert_max_traces(train.train_step, n=1))
    task = tasks.create_task(plain_config(**{"mix.name": "cutmix"}), create_mapping("pmap", 1))
    chex.clear_trace_counter()
    state = task.mapping.replicate(train.create_state(task))
    first = state
    take_steps(task, 3, state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))


def test_several_steps_per_call_are_the_same_steps():
    config = plain_config(**{"mix.name": "cutmix", "learning_rate": 1e-3})
    task = tasks.create_task(config, create_mapping("pmap", 1))
    one, _ = take_steps(task, 2)
    two, counters = take_steps(task, 2, calls=2)
    assert counters["loss"].total.shape == (2,)
    assert int(two.step) == 2
    chex.assert_trees_all_close(jax.device_get(two), jax.device_get(one), atol=1e-5)


def test_accumulated_gradients_are_those_of_the_whole_batch():
    def step_on_twins(accumulate):
        task = tasks.create_task(plain_config(accumulate=accumulate), create_mapping("pmap", 1))
        index = np.tile(np.arange(32, dtype=np.int32), 2)[None]  # the halves are equal
        seed = np.zeros((1, 1), np.int32)
        xs = {"index": index[:, None], "seed": seed}
        state = task.mapping.replicate(train.create_state(task))
        arrays = task.mapping.replicate(task.data.arrays["train"])
        return train.map_steps(task)[0](state, arrays, task.mapping.shard(xs))

    (one, counted), (two, counted_too) = step_on_twins(1), step_on_twins(2)
    chex.assert_trees_all_close(jax.device_get(one.params), jax.device_get(two.params), atol=1e-5)
    np.testing.assert_allclose(counted["loss"].total, counted_too["loss"].total, rtol=1e-5)


def test_ema_weights_follow_the_formula_and_are_evaluated():
    config = plain_config(ema=0.75)
    task = tasks.create_task(config, create_mapping("pmap", 1))
    start = jax.device_get(train.create_state(task))
    state, _ = take_steps(task, 1)
    expected = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, start.params, state.params)
    chex.assert_trees_all_close(
        jax.device_get(state.ema["params"]), jax.device_get(expected), atol=1e-6
    )
    assert state.evaluated() is state.ema


def test_ema_weights_are_updated_at_every_nth_step():
    task = tasks.create_task(plain_config(ema=0.75, ema_every=2), create_mapping("pmap", 1))
    start = jax.device_get(train.create_state(task))
    first, _ = take_steps(task, 1)
    chex.assert_trees_all_equal(jax.device_get(first.ema["params"]), start.params)
    second, _ = take_steps(task, 2)
    expected = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, start.params, second.params)
    chex.assert_trees_all_close(
        jax.device_get(second.ema["params"]), jax.device_get(expected), atol=1e-6
    )


def test_the_optimizer_is_nesterov_sgd_with_coupled_weight_decay():
    """d = g + wd w; v <- m v + d; w <- w - lr (d + m v), written out in NumPy."""
    config = plain_config(learning_rate=0.5, lr_drops=(0.5,))
    task = tasks.create_task(config, create_mapping("pmap", 1))
    rng = np.random.default_rng(0)
    weight, velocity = rng.normal(size=7).astype(np.float32), np.zeros(7, np.float32)
    ours = jnp.asarray(weight)
    opt_state = task.optimizer.init(ours)
    for step in range(2 * task.data.steps_per_epoch):
        grad = rng.normal(size=7).astype(np.float32)
        rate = 0.5 if step < task.data.steps_per_epoch else 0.05
        decayed = grad + 1e-4 * weight
        velocity = 0.9 * velocity + decayed
        weight = weight - rate * (decayed + 0.9 * velocity)
        updates, opt_state = task.optimizer.update(jnp.asarray(grad), opt_state, ours)
        ours = optax.apply_updates(ours, updates)
    np.testing.assert_allclose(ours, weight, rtol=1e-5, atol=1e-6)


def test_weighted_accuracy_counts_both_labels_of_a_mixed_image():
    logits = jnp.array([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.0, 0.0, 9.0]])
    targets = jnp.array([[0.7, 0.3, 0.0], [0.6, 0.4, 0.0], [0.5, 0.5, 0.0]])
    counters = metrics.train_counters(jnp.zeros(3), logits, targets)
    assert float(counters["weighted_accuracy"].compute()) == pytest.approx((0.7 + 0.4 + 0) / 3)


def test_label_smoothing_is_never_implied():
    config = plain_config(**{"mix.name": "cutmix"})
    assert config.label_smoothing == 0
    plain = tasks.create_task(config, create_mapping("pmap", 1))
    smooth = tasks.create_task(
        plain_config(**{"mix.name": "cutmix", "label_smoothing": 0.1}), create_mapping("pmap", 1)
    )
    assert take_steps(plain, 1)[1]["loss"].total != take_steps(smooth, 1)[1]["loss"].total


@pytest.mark.parametrize("devices", [1, 8])
def test_evaluation_counts_every_example_once(devices):
    config = plain_config(batch_size=32)  # 297 test images: ten batches, the last one padded
    task = tasks.create_task(config, create_mapping("pmap", devices))
    arrays = task.mapping.replicate(task.data.arrays)
    weights = task.mapping.replicate(train.create_state(task).evaluated())
    _, eval_step = train.map_steps(task)
    totals = metrics.Totals()
    for xs in task.mapping.prefetch(task.data.eval_batches("test")):
        counters, _ = eval_step(weights, arrays["test"], xs)
        totals.add(jax.device_get(counters))
    assert totals.values["loss"][1] == 297
    images = task.data.arrays["test"]["image"].astype(np.float32) / 255
    logits = task.model.apply(jax.device_get(weights), (images - 0.5) / 0.5, train=False)
    wrong = np.argmax(logits, -1) != task.data.arrays["test"]["label"]
    assert totals.means()["top1_error"] == pytest.approx(wrong.mean())


def test_a_loss_that_is_not_finite_is_named_by_its_step_and_rate():
    task = tasks.create_task(plain_config(), create_mapping("pmap", 1))
    loss = metrics.Average(total=np.array([1.0, np.nan, np.nan]), count=np.array([64, 64, 64]))
    with pytest.raises(UserError, match=r"not finite at step 4, at learning rate 0\.1"):
        train.check_finite(task, 5, {"loss": loss})


def test_a_batch_that_the_devices_cannot_share_is_refused():
    with pytest.raises(UserError, match=r"batch_size is 60, which 8 devices.*multiple of 8"):
        tasks.create_task(plain_config(batch_size=60))


def test_a_batch_that_the_groups_cannot_share_is_refused():
    with pytest.raises(UserError, match=r"norm\.groups=3 cannot share.*multiple of 24"):
        tasks.create_task(plain_config(**{"norm.groups": 3}))


def test_squares_larger_than_the_map_are_refused_before_training():
    with pytest.raises(UserError, match=r"side of 4.*map of 2 x 2.*config\.drop_block\.size"):
        tasks.create_task(
            plain_config(
                **{"drop_block.rate": 0.1, "drop_block.size": 4, "drop_block.stages": (3,)}
            )
        )


def test_feature_maps_are_mixed_inside_the_model():
    """At a fixed layer, the loss is that of a model that mixes this map by hand."""
    config = plain_config(**{"mix.name": "manifold_mixup", "mix.layers": ("layer1",)})
    task = tasks.create_task(config, create_mapping("pmap", 1))
    assert task.sides == {
        "image": (8, 8),
        "stem": (8, 8),
        "layer1": (8, 8),
        "layer2": (4, 4),
        "layer3": (2, 2),
    }

    def by_hand(state, arrays, xs):
        batch = task.make_batch(arrays, xs, state.step)
        (plan,) = batch["plans"]
        assert plan.layer == "layer1"

        def tap(name, x):
            mixed = plan.ratio * x + (1 - plan.ratio) * x[plan.partner]
            return mixed if name == "layer1" else x

        weights = {"params": state.params, "batch_stats": state.batch_stats}
        logits, _ = task.model.apply(
            weights, batch["image"], train=True, tap=tap, mutable=["batch_stats"]
        )
        return optax.softmax_cross_entropy(logits, batch["target"]).sum()

    state = task.mapping.replicate(train.create_state(task))
    arrays = task.mapping.replicate(task.data.arrays["train"])
    xs = next(iter(task.data.train_batches(0)))
    expected = task.mapping.map(by_hand)(state, arrays, task.mapping.shard(xs))
    _, counters = take_steps(task, 1)
    np.testing.assert_allclose(counters["loss"].total[0], expected, rtol=1e-5)


def test_mixing_where_the_model_has_no_map_is_refused():
    with pytest.raises(UserError, match=r"mixes at 'layer4', which resnet8x0\.25 does not have"):
        tasks.create_task(plain_config(**{"mix.name": "cutmix", "mix.layers": (5,)}))
    with pytest.raises(UserError, match=r"accumulate=1"):
        tasks.create_task(plain_config(**{"mix.name": "feature_cutmix", "accumulate": 2}))


def test_a_box_larger_than_the_images_is_refused():
    with pytest.raises(UserError, match=r"does not suit images of \(8, 8\): size=16.0 does not"):
        tasks.create_task(plain_config(**{"mix.name": "cutout", "mix.size": 16}))


def test_compilation_ahead_does_not_hold_a_process_that_has_failed(monkeypatch):
    """Its own error reaches the caller that asks for the compiled steps."""
    released = threading.Event()

    class Slow:
        def lower(self, *_):
            released.wait()
            raise ValueError("not compiled")

    monkeypatch.setattr(train, "map_steps", lambda _: (Slow(), None))
    before = set(threading.enumerate())
    task = tasks.create_task(plain_config(), create_mapping("pmap", local_devices=1))
    programs = train.compile_ahead(task)
    (compiling,) = set(threading.enumerate()) - before
    released.set()
    assert compiling.daemon
    with pytest.raises(ValueError, match="not compiled"):
        programs.result()
