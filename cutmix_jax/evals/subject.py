"""What an evaluation works on: a trained network over a split, on all devices."""

import dataclasses
import functools
import operator
from typing import Any

import jax
import numpy as np
import tqdm
from jax import lax
from jax import numpy as jnp

from cutmix_jax import UserError
from cutmix_jax.data import Shards, batches
from cutmix_jax.parallel import AXIS


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network with its weights, and the images to evaluate it on.

    Evaluations measure with functions ``f(weights, batch, *extras)`` of one device's shard.
    ``batch`` has ``image`` (float32 ``[b, H, W, C]`` in [0, 1]), ``label`` and ``index`` (int32
    ``[b]``). Results have a leading axis of `b`. Only `logits` normalizes images, so an evaluation
    changes pixels.

    Attributes:
        task: a `tasks.classification.Classification`.
        weights: ``{'params', 'batch_stats'}``, replicated over the devices.
        arrays: the split's arrays, replicated over the devices; empty if the data is streamed.
        split: 'test' or 'held_out'.
        quiet: show no progress.
    """

    task: Any
    weights: Any
    arrays: Any
    split: str = "test"
    quiet: bool = False

    @property
    def examples(self):
        """The number of images in the split."""
        return self.task.data.examples[self.split]

    @property
    def image_shape(self):
        """(H, W, C)."""
        return self.task.data.eval_shape or self.task.data.image_shape

    def logits(self, weights, images, tap=None):
        """float32 ``[b, K]`` of images in [0, 1], with BatchNorm's running statistics."""
        inputs = self.task.normalize(images)
        return self.task.model.apply(weights, inputs, train=False, tap=tap)

    def features(self, weights, images):
        """The feature map ``[b, h, w, d]`` that is pooled for the head, and the logits."""
        caught = {}

        def catch(name, x):
            caught[name] = x
            return x

        logits = self.logits(weights, images, catch)
        return caught[self.task.model.feature_names[-1]].astype(jnp.float32), logits

    def batches(self, order=None):
        """Batches of the split for the devices; `order` gives other indices."""
        return self.task.data.eval_batches(self.split, order)

    def pair_batches(self, pairs):
        """Batches of ``(first, second)`` images, at the indices ``[n, 2]``."""
        return zip(self.batches(pairs[:, 0]), self.batches(pairs[:, 1]), strict=True)

    def foreign_batches(self, count, load=None):
        """Batches of `count` images from elsewhere; `load(index)` reads some of them."""
        shards = Shards(self.task.mapping.local_devices, jax.process_index(), jax.process_count())
        positions, masks = batches.eval_positions(count, self.task.data.batch_size, shards)
        for index, mask in zip(positions.astype(np.int32), masks, strict=True):
            xs = {"index": index, "mask": mask, "label": np.zeros_like(index)}
            if load:
                images = load(index.reshape(-1))
                xs["image"] = images.reshape(*index.shape, *images.shape[1:])
            yield xs

    def load(self, arrays, xs):
        """One device's images of the split, as uint8, with labels and indices."""
        return {**self.task.data.load_eval(arrays, xs), "index": xs["index"]}

    def compile(self, f, load=None):
        """Compiles `f` for all devices: ``call(xs, *extras)`` gives its result for the batch.

        Args:
            f: a function as described in the class. Every device gets all of `extras` (see `own`).
            load: ``(arrays, xs) -> batch``, if the images are not those of the split. uint8 arrays
                are scaled to [0, 1].
        """
        load = load or self.load

        def measure(state, arrays, xs):
            weights, extras = state
            return f(weights, jax.tree.map(scale, load(arrays, xs)), *extras)

        call = self.gathered(measure)
        return lambda xs, *extras: call((self.weights, extras), self.arrays, xs)

    def gathered(self, f):
        """Compiles ``f(state, arrays, xs)`` for all devices; the results of all are joined."""
        mapping = self.task.mapping
        mapped = mapping.map(lambda *inputs: lax.all_gather(f(*inputs), AXIS, tiled=True))

        def call(*inputs):
            result = mapped(*inputs)
            # Several CPU devices abort if a second call is in flight.
            return jax.block_until_ready(result) if mapping.must_wait else result

        return call

    def each_batch(self, measure, host_batches, count, words=""):
        """Yields ``(index [n], result of measure(xs), as NumPy)`` for every batch, in turn.

        Padding is removed from the leading axis of every array. If the data come in buckets
        (`data.buckets`), `index` has the order of the batches, not that of the split.

        Args:
            measure: maps a sharded batch to a pytree of results of compiled functions.
            host_batches: from `batches`, `pair_batches` or `foreign_batches`.
            count: the number of examples in them.
            words: for the progress bar.
        """
        mapping = self.task.mapping
        # Parts of the batch are on devices of other processes and are not known here.
        places = self.compile(
            lambda weights, batch: (batch["index"], batch["mask"]),
            lambda arrays, xs: xs[0] if isinstance(xs, tuple) else xs,
        )
        calls = ((places(xs), measure(xs)) for xs in mapping.prefetch(host_batches))
        hidden = jax.process_index() > 0 or self.quiet or None  # None: shown on a terminal
        with tqdm.tqdm(total=count, desc=words, unit=" images", leave=False, disable=hidden) as bar:
            for (index, mask), result in mapping.fetch(calls):
                bar.update(int(mask.sum()))
                yield index[mask], jax.tree.map(operator.itemgetter(mask), result)

    def collect(self, measure, host_batches, count, words=""):
        """The results of `measure` for all examples: a pytree of NumPy arrays ``[count, ...]``.

        They have the order of the batches; see `each_batch`.
        """
        parts = [part for _, part in self.each_batch(measure, host_batches, count, words)]
        joined = jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
        sizes = {len(leaf) for leaf in jax.tree.leaves(joined)}
        if sizes - {count}:
            raise RuntimeError(f"{sizes} examples came back, but {count} were sent")
        return joined

    def outputs(self, arrays, host_batches, count, words):
        """What the task's `measure` gives for `count` examples of some arrays, on the host.

        Args:
            arrays: as of a split, replicated over the devices.
            host_batches: from `batches` or `foreign_batches`.
            count: the number of examples in them.
            words: for the progress bar.
        """
        call = self.gathered(lambda *inputs: self.task.measure(*inputs)[1])
        return self.collect(lambda xs: call(self.weights, arrays, xs), host_batches, count, words)

    def map_examples(self, f, settings=None, order=None, words=""):
        """``f(weights, batch)`` for every example of the split, exactly once.

        They are in order. Only if the data come in buckets, they have the order of the batches,
        and ``batch["index"]`` says which example each one is.

        Args:
            f: a function as described in the class.
            settings: None, or a list of extra arguments (pytrees of numbers). The result is then a
                list of ``f(weights, batch, setting)``, and every batch is loaded once.
            order: int ``[n]``, indices to use instead of 0, 1, 2, ...
            words: for the progress bar.

        Returns:
            A pytree of NumPy arrays ``[N, ...]``, or a list of them.
        """
        call = self.compile(f)
        count = self.examples if order is None else len(order)
        if settings is None:
            return self.collect(call, self.batches(order), count, words)
        placed = self.replicate(settings)
        return self.collect(
            lambda xs: [call(xs, setting) for setting in placed], self.batches(order), count, words
        )

    def replicate(self, settings):
        """Extra arguments as arrays on all devices: one compiled function serves all of them."""
        return [self.task.mapping.replicate(jax.tree.map(np.asarray, s)) for s in settings]

    def images(self, order):
        """``{'image', 'label'}`` at the indices `order`, in this order, on the host.

        Images are float32 in [0, 1]. Those with captions have no label.
        """
        order, wanted = np.asarray(order), ("image", "label", "index")
        found = self.map_examples(
            lambda weights, batch: {key: batch[key] for key in wanted if key in batch}, order=order
        )
        index = found.pop("index")
        ranks = index.argsort()
        rows = ranks[np.searchsorted(index, order, sorter=ranks)]
        return {key: values[rows] for key, values in found.items()}


def create_subject(task, weights, split="test", quiet=False):
    """A `Subject`, with the arrays of its split on all devices.

    Raises:
        UserError: the split does not exist.
    """
    splits = sorted(task.data.examples.keys() - {"train"})
    if split not in splits:
        raise UserError(
            f"config.evals.split is {split!r}, and one of {', '.join(map(repr, splits))} was "
            "expected; --config.held_out=N gives a run a held-out split."
        )
    arrays = task.mapping.replicate(task.data.arrays[split])
    return Subject(task, weights, arrays, split, quiet)


def predictions(logits):
    """int32 ``[b]``: the class of the highest logit, or -1 if all logits are NaN.

    Example:
        >>> predictions(jnp.array([[0.1, 0.7, jnp.nan], [jnp.nan, jnp.nan, jnp.nan]])).tolist()
        [1, -1]
    """
    return jnp.nanargmax(logits, -1)


def scale(x):
    """Images in [0, 1] from uint8; anything else unchanged."""
    if x is None or x.dtype != jnp.uint8:
        return x
    return x.astype(jnp.float32) / 255


def own(tree, like):
    """This device's part of a result for the whole batch; `like` has as many rows as the part."""
    size = like.shape[0]
    start = lax.axis_index(AXIS) * size
    return jax.tree.map(
        functools.partial(lax.dynamic_slice_in_dim, start_index=start, slice_size=size), tree
    )
