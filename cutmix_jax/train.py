"""Training, from the uint8 batch to the results: state, step, evaluation, loop.

Read it from top to bottom: `prepare` turns a batch into what the model sees, `train_step` takes one
step, `evaluate` measures, and `fit` runs them. What is written for "one device" is mapped over the
devices by `parallel`, and reduces over the axis `AXIS` itself.
"""

import collections
import dataclasses
import functools
import itertools
import time
from typing import Any

import flax
import jax
import numpy as np
import optax
from jax import lax
from jax import numpy as jnp

from cutmix_jax import UserError, metrics, mix, models, optimizer, recipes
from cutmix_jax import config as config_lib
from cutmix_jax.data import Shards, open_data
from cutmix_jax.parallel import AXIS, LAG, create_mapping, start_in_background

MIXING, DROPPING = 2**31 - 1, 2**31 - 2  # numbers that no epoch has


@flax.struct.dataclass
class State:
    """All that training changes; a pytree, replicated over the devices."""

    step: jax.Array  # int32, the number of steps taken
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any  # {'params', 'batch_stats'} averaged over steps, or None

    def evaluated(self):
        """The weights to evaluate: the averaged ones where there are any."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


@dataclasses.dataclass(frozen=True)
class Task:
    """All that training does not change: what a config builds."""

    config: Any
    data: Any
    model: Any
    mix: Any
    mapping: Any
    schedule: Any  # step -> learning rate
    optimizer: Any

    @property
    def total_steps(self):
        """Steps of the whole run."""
        return self.config.epochs * self.data.steps_per_epoch

    @functools.cached_property
    def start(self):
        """The program that makes the first state from a key, traced, and the sides of its maps."""
        return trace_start(self)

    @property
    def sides(self):
        """The height and width of every feature map that the model names, the image's first."""
        return self.start[1]


def create_task(config, mapping=None):
    """Builds what `config` describes, or says what is wrong with it.

    Args:
      config: from a file in `configs/`.
      mapping: a `parallel.Mapping`; by default over all devices, as `config.mapping` says.

    Raises:
      UserError: a value, the data, or their combination cannot be used.
    """
    config_lib.check_config(config)
    mixing = recipes.create_mix(config.mix)
    mapping = mapping or create_mapping(config.mapping)
    devices = mapping.local_devices * jax.process_count()
    if config.batch_size % (shares := devices * config.accumulate * config.norm.groups):
        raise UserError(
            f"config.batch_size is {config.batch_size}, which {devices} devices with "
            f"config.accumulate={config.accumulate} and config.norm.groups={config.norm.groups} "
            f"cannot share: make it a multiple of {shares}."
        )
    shards = Shards(mapping.local_devices, jax.process_index(), jax.process_count())
    data = open_data(config, shards)
    channels = data.image_shape[-1]
    if len(config.normalize.mean) not in (1, channels):
        raise UserError(
            f"config.normalize has {len(config.normalize.mean)} values, and the images of "
            f"{config.dataset!r} have {channels} channels: give one value per channel."
        )
    models.check_image_size(config.model, data.image_shape, config.last_stride)
    schedule = optimizer.create_schedule(config, data.steps_per_epoch)
    task = Task(
        config=config,
        data=data,
        model=models.from_config(config, data.num_classes, norm_axis=AXIS),
        mix=mixing,
        mapping=mapping,
        schedule=schedule,
        optimizer=optimizer.create_optimizer(config, schedule),
    )
    check_mix(task)
    return task


def check_mix(task):
    """Refuses to mix where there is no such feature map, across parts of a batch, or too large."""
    config, mixing, sides = task.config, task.mix, task.sides
    missing = [layer for layer in mixing.layers if layer not in sides]
    if missing:
        raise UserError(
            f"config.mix mixes at {missing[0]!r}, which {config.model} does not have: set "
            f"config.mix.layers to some of {', '.join(sides)}."
        )
    if config.accumulate > 1 and set(mixing.layers) - {"image"}:
        raise UserError(
            "config.accumulate divides the batch, and partners at feature maps may be in another "
            "part of it: set config.accumulate=1, or mix at the image (config.mix.layers)."
        )

    def sample(key):
        return mixing.sample(key, config.batch_size, sides, progress=0.0, axis_name=AXIS)

    try:
        jax.eval_shape(jax.vmap(sample, axis_name=AXIS), jax.random.split(jax.random.key(0), 2))
    except ValueError as error:
        raise UserError(f"config.mix does not suit images of {sides['image']}: {error}") from None


def trace_start(task):
    """Traces the network once, for the first state and for the sides of its feature maps.

    Returns:
      ``(program, sides)``: a `jax.stages.Traced` of a key, and ``{name: (height, width)}``.
    """
    sides = {}

    def tap(name, x):
        sides[name] = x.shape[1:3]
        return x

    def init(key):
        images = jnp.zeros((1, *task.data.image_shape), jnp.float32)
        variables = task.model.init(key, images, train=False, tap=tap)
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        weights = {"params": params, "batch_stats": batch_stats}
        return State(
            step=jnp.zeros([], jnp.int32),
            params=params,
            batch_stats=batch_stats,
            opt_state=task.optimizer.init(params),
            # A copy: the step donates its state, and no buffer may be given twice.
            ema=jax.tree.map(jnp.copy, weights) if task.config.ema else None,
        )

    return jax.jit(init).trace(jax.random.key(0)), sides


def abstract_state(task):
    """Shapes and dtypes of the train state."""
    program, _ = task.start
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), program.out_info)


def create_state(task):
    """The state before the first step: a function of the config alone."""
    program, _ = task.start
    # It runs once, and optimizing it for a CPU takes three times as long as compiling it.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return program.lower().compile(options)(jax.random.key(task.config.seed))


def normalize(config, images):
    """Centers and scales images in [0, 1] per channel."""
    mean, std = (jnp.asarray(config.normalize[name], jnp.float32) for name in ("mean", "std"))
    return (images - mean) / std


def prepare(task, step, arrays, xs):
    """Turns one device's `xs` into a batch that is ready for the model.

    Returns:
      ``{'image', 'target', 'label', 'plans'}``: normalized float images and rows of label weights,
      both mixed; the class ids before mixing; and the plans, of which those for feature maps are
      yet to be applied in the model.
    """
    config, data = task.config, task.data
    batch = data.load_train(arrays, xs, step // data.steps_per_epoch)
    size = batch["label"].shape[0]
    # Apart from the keys of augmentation, which are folded from the same seed by epoch.
    stream = jax.random.fold_in(jax.random.key(xs["seed"]), MIXING)
    mix_key, color_key = jax.random.split(jax.random.fold_in(stream, step))
    images = batch["image"].astype(jnp.float32) / 255
    if data.color:
        # Keys go by the place in the whole batch, so that no number of devices changes them.
        places = lax.axis_index(AXIS) * size + jnp.arange(size)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(color_key, places)
        images = jax.vmap(lambda key, image: data.color(key, image[None])[0])(keys, images)
    progress = step / task.total_steps
    plans = task.mix.sample(mix_key, size, task.sides, progress=progress, axis_name=AXIS)
    images = mix.apply_at(plans, "image", normalize(config, images))
    targets = jax.nn.one_hot(batch["label"], data.num_classes)
    for plan in plans:
        targets = mix.mix_labels(plan, targets)
    return {"image": images, "target": targets, "label": batch["label"], "plans": plans}


def train_step(task, state, arrays, xs):
    """Takes one step on one device's shard, and returns the new state and the counters."""
    config = task.config
    batch = prepare(task, state.step, arrays, xs)

    def mix_features(name, x):
        return x if name == "image" else mix.apply_at(batch["plans"], name, x)

    # What the network drops is drawn from seed, step, device and part of its batch.
    place = (DROPPING, state.step, lax.axis_index(AXIS))
    drop_key = functools.reduce(jax.random.fold_in, place, jax.random.key(xs["seed"]))

    def loss_fn(params, batch_stats, images, targets, drop_keys):
        logits, updates = task.model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            tap=mix_features,
            progress=state.step / task.total_steps,
            rngs={"drop": drop_keys[0]},
            mutable=["batch_stats"],
        )
        smooth = optax.smooth_labels(targets, config.label_smoothing)
        loss = optax.softmax_cross_entropy(logits, smooth)
        return loss.mean(), (updates.get("batch_stats", {}), loss, logits)

    def accumulate(batch_stats, part):
        grads, (batch_stats, loss, logits) = jax.grad(loss_fn, has_aux=True)(
            state.params, batch_stats, *part
        )
        return batch_stats, (grads, metrics.train_counters(loss, logits, part[1]))

    whole = (batch["image"], batch["target"], jax.random.split(drop_key, config.accumulate))
    if config.accumulate == 1:
        batch_stats, (grads, counters) = accumulate(state.batch_stats, whole)
    else:
        parts = jax.tree.map(lambda x: x.reshape(config.accumulate, -1, *x.shape[1:]), whole)
        # Convolutions inside a loop are many times slower on CPU, so the loop is unrolled there.
        batch_stats, (grads, counters) = lax.scan(
            accumulate, state.batch_stats, parts, unroll=jax.default_backend() == "cpu"
        )
        grads = jax.tree.map(lambda x: x.mean(0), grads)
        counters = jax.tree.map(lambda x: x.sum(0), counters)

    grads, batch_stats = lax.pmean((grads, batch_stats), AXIS)
    counters = lax.psum(counters, AXIS)
    updates, opt_state = task.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if config.ema:
        now = {"params": params, "batch_stats": batch_stats}
        ema = optax.incremental_update(now, ema, 1 - config.ema)
    state = State(state.step + 1, params, batch_stats, opt_state, ema)
    return state, counters


def train_steps(task, state, arrays, xs):
    """Takes as many steps as `xs` has leading entries, in one call."""
    if jax.tree.leaves(xs)[0].shape[0] == 1:
        state, counters = train_step(task, state, arrays, jax.tree.map(lambda x: x[0], xs))
        return state, jax.tree.map(lambda x: x[None], counters)
    return lax.scan(lambda state, xs: train_step(task, state, arrays, xs), state, xs)


def eval_step(task, weights, arrays, xs):
    """Counts loss and errors on one device's shard."""
    batch = task.data.load_eval(arrays, xs)
    images = normalize(task.config, batch["image"].astype(jnp.float32) / 255)
    logits = task.model.apply(weights, images, train=False)
    return lax.psum(metrics.eval_counters(logits, batch["label"], batch["mask"]), AXIS)


def map_steps(task):
    """The compiled ``(train_steps, eval_step)`` over all devices."""
    return (
        task.mapping.map(functools.partial(train_steps, task), donate_state=True),
        task.mapping.map(functools.partial(eval_step, task)),
    )


def compile_ahead(task):
    """A future of ``{steps: program}``: what a call runs, compiled while the caller goes on."""
    per_call, (mapped, _) = steps_per_call(task.config, task.data), map_steps(task)
    xs = {
        name: jax.ShapeDtypeStruct((task.mapping.local_devices, per_call, *x.shape), x.dtype)
        for name, x in task.data.train_shapes.items()
    }
    state, arrays = abstract_state(task), task.data.arrays["train"]
    lower = functools.partial(mapped.lower, state, arrays, xs)
    # Of several processes, only the mapped function takes what is local to each.
    programs = dict if jax.process_count() > 1 else lambda: {per_call: lower().compile()}
    return start_in_background(programs)


def evaluate(task, mapped_eval_step, weights, arrays):
    """The mean loss and errors of every split but the training one.

    Returns:
      ``{'SPLIT_loss': ..., 'SPLIT_top1_error': ..., 'SPLIT_top5_error': ...}``.
    """
    result = {}
    for split in sorted(task.data.examples.keys() - {"train"}):
        totals, batches = metrics.Totals(), task.mapping.prefetch(task.data.eval_batches(split))
        for counters in task.mapping.fetch(
            mapped_eval_step(weights, arrays[split], xs) for xs in batches
        ):
            totals.add(counters)
        result |= {f"{split}_{name}": value for name, value in totals.means().items()}
    return result


def steps_per_call(config, data):
    """How many steps one call takes: a divisor of the epoch, so that one program serves."""
    if config.steps_per_call:
        return config.steps_per_call
    if jax.default_backend() == "cpu" or data.kind != "resident":
        return 1
    return max(n for n in range(1, 101) if data.steps_per_epoch % n == 0)


def group(batches, size):
    """Stacks `size` host batches behind the device axis; the last group may be smaller."""
    batches = iter(batches)
    while waiting := list(itertools.islice(batches, size)):
        yield jax.tree.map(lambda *xs: np.stack(xs, 1), *waiting)


@dataclasses.dataclass
class Progress:
    """What is known of a run beside its state; kept in each checkpoint's `meta`."""

    history: list = dataclasses.field(default_factory=list)  # one record an epoch
    partial: dict = dataclasses.field(default_factory=dict)  # counters of the epoch under way
    seconds: float = 0.0  # of all sessions of this run, start-up and evaluation included
    timed_images: int = 0  # trained on in timed steps: not those of a call that was compiled
    timed_seconds: float = 0.0  # that those took


def fit(task, state, arrays, programs, progress, checkpoints, reporter, interruption, meta):
    """Trains from `state` on until the last epoch is done or the run is interrupted.

    Args:
      task: from `create_task`.
      state: replicated over the devices; it is donated.
      arrays: the data's arrays, replicated over the devices.
      programs: from `compile_ahead`, where steps are left to take.
      progress: what was known when `state` was saved; updated in place.
      checkpoints: a `checkpoint.Checkpoints`.
      reporter: a `metrics.Reporter`.
      interruption: a `checkpoint.Interruption` that is entered.
      meta: plain values to keep in every checkpoint beside `progress`.

    Returns:
      The last state, which is saved.

    Raises:
      UserError: the loss is not finite, or a checkpoint cannot be saved.
    """
    config, data, mapping = task.config, task.data, task.mapping
    began, earlier, step = time.monotonic(), progress.seconds, int(state.step)
    mapped_train_steps, mapped_eval_step = map_steps(task)
    per_call = steps_per_call(config, data)
    pending, compiled = collections.deque(), set()  # compiled: numbers of steps a call

    def absorb(limit):
        while len(pending) > limit:
            last, counters = pending.popleft()
            counters = jax.device_get(counters)
            check_finite(task, last, counters)
            totals.add(counters)

    def save(error=None):
        absorb(0)
        progress.partial = totals.values if step % data.steps_per_epoch else {}
        progress.seconds = earlier + time.monotonic() - began
        told = meta | {"progress": dataclasses.asdict(progress)}
        checkpoints.save(step, state, told, error)

    for epoch in range(step // data.steps_per_epoch, config.epochs):
        totals = metrics.Totals(progress.partial)
        images, clock = 0, time.monotonic()
        batches = data.train_batches(epoch, step % data.steps_per_epoch)
        for xs in mapping.prefetch(group(batches, per_call)):
            taken = jax.tree.leaves(xs)[0].shape[1]
            take_steps = programs.result().get(taken, mapped_train_steps)
            state, counters = take_steps(state, arrays["train"], xs)
            step += taken
            pending.append((step, counters))
            absorb(LAG if taken in compiled and not mapping.must_wait else 0)
            if taken not in compiled:  # it was compiled just now, and so is not timed
                compiled.add(taken)
                images, clock = 0, time.monotonic()
            else:
                images += taken * config.batch_size
            reporter.progress(step, images / (time.monotonic() - clock))
            if interruption.at(step):
                break
            due = config.checkpoint_every and step % config.checkpoint_every < taken
            if due and step % data.steps_per_epoch:
                save()
        absorb(0)
        progress.timed_images += images
        progress.timed_seconds += time.monotonic() - clock
        if step % data.steps_per_epoch:
            save()
            break
        record = {
            "epoch": epoch + 1,
            "step": step,
            "learning_rate": float(task.schedule(step - 1)),
            **{f"train_{name}": value for name, value in totals.means().items()},
        }
        if progress.timed_images:
            record["images_per_second"] = progress.timed_images / progress.timed_seconds
        result = evaluate(task, mapped_eval_step, state.evaluated(), arrays)
        for name, value in result.items():
            if name.endswith("_loss") and not np.isfinite(value):
                raise not_finite(task, name.removesuffix("_loss"), step)
        record |= result
        progress.history.append(record)
        ending = interruption.at(step) or epoch + 1 == config.epochs
        if ending or (epoch + 1) % config.checkpoint_epochs == 0:
            save(metrics.choice_error(record))
        reporter.epoch(progress.history)
        if ending:
            break
    checkpoints.wait()
    progress.seconds = earlier + time.monotonic() - began
    return state


def check_finite(task, last_step, counters):
    """Refuses a training loss that is not finite, by the step it came from."""
    losses = counters["loss"].total
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
        raise not_finite(task, "training", last_step - losses.size + 1 + int(bad[0]))


def not_finite(task, name, step):
    """The error that names step and learning rate."""
    return UserError(
        f"The {name} loss is not finite at step {step}, at learning rate "
        f"{float(task.schedule(step - 1)):.4g}: the last checkpoint stays as it was; start anew "
        "in another workdir with a lower config.learning_rate, or with a warm-up "
        "(config.warmup_epochs)."
    )
