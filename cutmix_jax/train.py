"""Training, for any task: state, step, evaluation, loop.

Read it from top to bottom: `train_step` takes one step, `evaluate` measures, and `fit` runs them.
What is written for "one device" is mapped over the devices by `parallel`, and reduces over the axis
`AXIS` itself. The task defines what is learned, and from which data.
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

from cutmix_jax import UserError, chips, metrics
from cutmix_jax.host import start_in_background
from cutmix_jax.parallel import AXIS, LAG
from cutmix_jax.tasks import in_order

# Keeps the keys of dropping apart from those of augmentation, which are folded by epoch.
DROPPING = 2**31 - 2


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


def first_state(task, key):
    """The state before the first step; traced."""
    variables = task.init(key)
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


def abstract_state(task):
    """Shapes and dtypes of the train state."""
    return jax.eval_shape(functools.partial(first_state, task), jax.random.key(0))


def create_state(task):
    """The state before the first step: a function of the config alone."""
    key = jax.random.key(task.config.seed)
    program = jax.jit(functools.partial(first_state, task)).lower(key)
    # It runs once, and optimizing it for a CPU takes three times as long as compiling it.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return program.compile(options)(key)


def train_step(task, state, arrays, xs):
    """Takes one step on one device's shard, and returns the new state and the counters."""
    config = task.config
    batch = task.load(arrays, xs, state.step)
    # What the network drops is drawn from seed, step, device and part of its batch.
    numbers = (DROPPING, state.step, lax.axis_index(AXIS))
    drop_key = functools.reduce(jax.random.fold_in, numbers, jax.random.key(xs["seed"]))

    def loss_fn(params, batch_stats, batch, drop_keys):
        weights = {"params": params, "batch_stats": batch_stats}
        return task.loss(weights, batch, state.step, drop_keys[0])

    def accumulate(batch_stats, part):
        gradient = jax.grad(loss_fn, has_aux=True)
        grads, (batch_stats, counters) = gradient(state.params, batch_stats, *part)
        return batch_stats, (grads, counters)

    whole = (batch, jax.random.split(drop_key, config.accumulate))
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
        ema = update_ema(config, state.step, ema, {"params": params, "batch_stats": batch_stats})
    state = State(state.step + 1, params, batch_stats, opt_state, ema)
    return state, counters


def update_ema(config, step, ema, weights):
    """The EMA weights after step number `step`, which is counted from 0; traced."""

    def average():
        return optax.incremental_update(weights, ema, 1 - config.ema)

    if config.ema_every == 1:
        return average()
    return lax.cond((step + 1) % config.ema_every == 0, average, lambda: ema)


def train_steps(task, state, arrays, xs):
    """Takes as many steps as `xs` has leading entries, in one call."""
    if jax.tree.leaves(xs)[0].shape[0] == 1:
        state, counters = train_step(task, state, arrays, jax.tree.map(lambda x: x[0], xs))
        return state, jax.tree.map(lambda x: x[None], counters)
    return lax.scan(lambda state, xs: train_step(task, state, arrays, xs), state, xs)


def eval_step(task, weights, arrays, xs):
    """Counters summed over the devices, and the outputs of every example."""
    counters, outputs = task.measure(weights, arrays, xs)
    return lax.psum(counters, AXIS), lax.all_gather(outputs, AXIS, tiled=True)


def map_steps(task):
    """The compiled ``(train_steps, eval_step)`` over all devices."""
    return (
        task.mapping.map(functools.partial(train_steps, task), donate_state=True),
        task.mapping.map(functools.partial(eval_step, task)),
    )


def compile_ahead(task):
    """A future of ``{signature of xs: program}``, compiled in the background."""
    leading = (task.mapping.local_devices, steps_per_call(task.config, task.data))
    batches = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((*leading, *x.shape), x.dtype), task.data.train_shapes
    )
    state, arrays, (mapped, _) = abstract_state(task), task.data.arrays["train"], map_steps(task)

    def compile_each():
        return {signature(xs): mapped.lower(state, arrays, xs).compile() for xs in batches}

    # Of several processes, only the mapped function takes what is local to each.
    return start_in_background(dict if jax.process_count() > 1 else compile_each)


def signature(xs):
    """What decides which program takes `xs`: its structure and shapes."""
    leaves, structure = jax.tree.flatten(xs)
    return structure, *(x.shape for x in leaves)


def evaluate(task, mapped_eval_step, weights, arrays):
    """The measures of every split but the training one, as ``{'SPLIT_NAME': number}``."""
    result = {}
    for split in sorted(task.data.examples.keys() - {"train"}):
        totals, outputs = metrics.Totals(), []
        batches = task.mapping.prefetch(task.data.eval_batches(split))
        for counters, output in task.mapping.fetch(
            mapped_eval_step(weights, arrays[split], xs) for xs in batches
        ):
            totals.add(counters)
            mask = output.pop("mask", None)
            outputs.append(jax.tree.map(lambda x, mask=mask: x[mask], output))
        joined = in_order(jax.tree.map(lambda *parts: np.concatenate(parts), *outputs))
        measures = totals.means() | task.score(split, joined)
        result |= {f"{split}_{name}": float(value) for name, value in measures.items()}
    return result


def steps_per_call(config, data):
    """How many steps one call takes: a divisor of the epoch, so that one program serves."""
    if config.steps_per_call:
        return config.steps_per_call
    several = len(data.train_shapes) > 1  # signatures, which cannot be in one call
    if jax.default_backend() == "cpu" or data.kind != "resident" or several:
        return 1
    return max(n for n in range(1, 101) if data.steps_per_epoch % n == 0)


def group(batches, size):
    """Stacks up to `size` host batches of one signature behind the device axis."""
    for _, alike in itertools.groupby(batches, signature):
        while waiting := list(itertools.islice(alike, size)):
            yield jax.tree.map(lambda *xs: np.stack(xs, 1), *waiting)


@dataclasses.dataclass
class Log:
    """What is known of a run besides its state; kept in each checkpoint's `meta`."""

    history: list = dataclasses.field(default_factory=list)  # one record an epoch
    partial: dict = dataclasses.field(default_factory=dict)  # counters of the epoch under way
    seconds: float = 0.0  # of all sessions of this run, start-up and evaluation included
    timed_images: int = 0  # trained on in timed steps: not those of a call that was compiled
    timed_seconds: float = 0.0  # that those took


@dataclasses.dataclass
class Session:
    """What `fit` needs besides the state.

    Attributes:
        task: a `tasks.Task`.
        arrays: the data's arrays, replicated over the devices.
        programs: from `compile_ahead`, if steps are left to take.
        log: what was known when the state was saved; updated in place.
        checkpoints: a `checkpoint.Checkpoints`.
        reporter: a `reporter.Reporter`.
        interruption: a `signals.Interruption`, inside its `with` block.
        lock: the `lock.Lock` of the workdir.
        meta: plain values to keep in every checkpoint, next to the log.
        profiler: a `profiler.Profiler`, or None.
    """

    task: Any
    arrays: Any
    programs: Any
    log: Log
    checkpoints: Any
    reporter: Any
    interruption: Any
    lock: Any
    meta: dict
    profiler: Any = None
    clock: float = dataclasses.field(default_factory=time.monotonic)

    def save(self, step, state, partial=None, rank=None):
        """Saves `state`, with the counters of an epoch that is not done, or the rank of one."""
        self.lock.confirm()
        self.count_seconds()
        self.log.partial = partial or {}
        meta = self.meta | {"progress": dataclasses.asdict(self.log)}
        self.checkpoints.save(step, state, meta, rank)

    def count_seconds(self):
        """Adds the time since the last call to the run's."""
        now = time.monotonic()
        self.log.seconds += now - self.clock
        self.clock = now


def fit(session, state):
    """Trains from `state` on until the last epoch is done or the run is interrupted.

    Args:
        session: a `Session`.
        state: replicated over the devices; it is donated.

    Returns:
        The last state, which is saved.

    Raises:
        UserError: the loss is not finite, or a checkpoint cannot be saved.
    """
    task, log = session.task, session.log
    config, epoch_steps = task.config, task.data.steps_per_epoch
    steps, measure = map_steps(task)
    step, compiled = int(state.step), set()
    ending = step == task.total_steps
    while not ending:
        epoch = step // epoch_steps + 1
        state, step, totals = train_epoch(session, state, steps, compiled)
        if step % epoch_steps:  # interrupted
            session.save(step, state, partial=totals.values)
            break
        record = {
            "epoch": epoch,
            "step": step,
            "learning_rate": float(task.schedule(step - 1)),
            **{f"train_{name}": value for name, value in totals.means().items()},
        }
        if log.timed_images:
            record["images_per_second"] = log.timed_images / log.timed_seconds
        last = epoch == config.epochs
        if last or epoch % config.eval_every == 0:
            record |= evaluate(task, measure, state.evaluated(), session.arrays)
            check_losses(task, record)
        record["peak_memory_mib"] = chips.peak_memory_mib(jax.local_devices())
        record["model_flops_utilization"] = chips.utilization(task, record.get("images_per_second"))
        log.history.append(record)
        ending = session.interruption.at(step) or last
        if ending or epoch % config.checkpoint_epochs == 0:
            session.save(step, state, rank=task.rank(record))
        session.reporter.epoch(record, task.describe_epoch(log.history))
    session.checkpoints.wait()
    session.count_seconds()
    return state


def train_epoch(session, state, mapped_train_steps, compiled):
    """Trains to the end of the epoch, or up to an interruption.

    Args:
        session: a `Session`.
        state: replicated over the devices; it is donated.
        mapped_train_steps: from `map_steps`.
        compiled: signatures of `xs` that have run; updated in place.

    Returns:
        ``(state, step, totals)``.
    """
    task, log, mapping = session.task, session.log, session.task.mapping
    config, data, step = task.config, task.data, int(state.step)
    totals, rate, profiler = metrics.Totals(log.partial), Rate(), session.profiler
    pending = Pending(task, totals)
    wait = functools.partial(pending.absorb, 0)
    batches = data.train_batches(*divmod(step, data.steps_per_epoch))
    for xs in mapping.prefetch(group(batches, steps_per_call(config, data))):
        taken, own = jax.tree.leaves(xs)[0].shape[1], signature(xs)
        take_steps = session.programs.result().get(own, mapped_train_steps)
        if profiler:
            profiler.before(step, taken, wait)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            state, counters = take_steps(state, session.arrays["train"], xs)
        step += taken
        pending.add(step, counters)
        if own in compiled:
            pending.absorb(0 if mapping.must_wait else LAG)
            rate.count(taken * config.batch_size)
        else:  # it was compiled just now, and so is not timed
            wait()
            compiled.add(own)
            rate = Rate()
        if profiler and (message := profiler.after(step, wait)):
            session.reporter.say(message)
            rate = Rate()  # writing a trace takes seconds
        session.reporter.step(step, rate.per_second())
        session.lock.check()
        if session.interruption.at(step):
            break
        due = config.checkpoint_every and step % config.checkpoint_every < taken
        if due and step % data.steps_per_epoch:
            wait()
            session.save(step, state, partial=totals.values)
    wait()
    log.partial = {}
    log.timed_images += rate.images
    log.timed_seconds += rate.seconds()
    return state, step, totals


class Pending:
    """Counters of steps that may still be under way; `absorb` adds them to `totals`."""

    def __init__(self, task, totals):
        self.task, self.totals, self.waiting = task, totals, collections.deque()

    def add(self, step, counters):
        """Takes the counters of a call whose last step is `step`."""
        self.waiting.append((step, counters))

    def absorb(self, limit):
        """Waits until no more than `limit` calls are under way."""
        while len(self.waiting) > limit:
            step, counters = self.waiting.popleft()
            counters = jax.device_get(counters)
            check_finite(self.task, step, counters)
            self.totals.add(counters)


class Rate:
    """Images per second since it was made."""

    def __init__(self):
        self.images, self.began = 0, time.monotonic()

    def count(self, images):
        """Counts images that were trained on."""
        self.images += images

    def seconds(self):
        """The time since it was made."""
        return time.monotonic() - self.began

    def per_second(self):
        """Images per second."""
        return self.images / self.seconds()


def check_losses(task, record):
    """Refuses an evaluated loss that is not finite."""
    for name, value in record.items():
        if name.endswith("_loss") and not np.isfinite(value):
            raise not_finite(task, name.removesuffix("_loss"), record["step"])


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
        f"{float(task.schedule(step - 1)):.4g}. The last checkpoint is unchanged. Train again in "
        "another workdir with a lower config.learning_rate, or with a warm-up "
        "(config.warmup_epochs)."
    )
