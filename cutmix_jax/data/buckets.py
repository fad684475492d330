"""Batches of images of similar shapes, so that their canvas needs less padding."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from cutmix_jax import UserError
from cutmix_jax.data import batches
from cutmix_jax.data.batches import Data


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Canvas:
    """Height and width in pixels that all images of a batch get.

    It is an entry of `xs` without arrays. JAX compiles a step for each canvas, as for each shape.
    """

    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.height, self.width


def by_orientation(sizes) -> np.ndarray:
    """int64 `[n]`, 1 for portraits and 0 for others, from (height, width) `[n, 2]`.

    Example:
        >>> by_orientation([[30, 40], [40, 30], [40, 40]]).tolist()
        [0, 1, 0]
    """
    height, width = np.asarray(sizes).reshape(-1, 2).T
    return (height > width).astype(np.int64)


def split_order(order: np.ndarray, buckets: np.ndarray, batch_size: int) -> np.ndarray:
    """The examples of `order`, in batches of one bucket each; remainders are dropped.

    Batches come in the order in which they are filled. So with one bucket, `order` stays.

    Args:
        order: int `[n]`, positions of examples.
        buckets: int `[N]`, the bucket of each position.
        batch_size: examples per batch.

    Returns:
        int `[steps * batch_size]`.

    Example:
        >>> order, buckets = np.array([2, 0, 1, 3, 5, 4]), np.array([0, 0, 1, 1, 0, 0])
        >>> split_order(order, buckets, 2).tolist()  # 0, 1, 4 and 5 are in bucket 0
        [0, 1, 2, 3, 5, 4]
    """
    bucket_of = np.asarray(buckets)[order]
    positions = [np.flatnonzero(bucket_of == bucket) for bucket in np.unique(bucket_of)]
    whole = [part[: len(part) // batch_size * batch_size] for part in positions]
    rows = np.concatenate([part.reshape(-1, batch_size) for part in whole])
    return np.asarray(order)[rows[rows[:, -1].argsort()].ravel()]


def in_buckets(
    data: Data, seed: int, canvases: Sequence[Canvas], buckets: Mapping[str, np.ndarray]
) -> Data:
    """`data` in batches whose examples share a canvas, which is `xs['canvas']`.

    The order of an epoch is a function of seed and epoch. It is the usual permutation, from which
    `split_order` makes batches. Each bucket drops what does not fill a batch. In evaluation, the
    buckets come one after the other, and each keeps the order of the split.

    Args:
        data: the dataset, in batches of any examples.
        seed: of the order.
        canvases: one for each bucket.
        buckets: for each split, int `[n]`, the bucket of each example.

    Raises:
        UserError: no bucket fills a batch for training.
    """
    size, bucket_of = data.batch_size, buckets["train"]
    counts = np.bincount(bucket_of, minlength=len(canvases))
    steps = counts // size
    if not steps.any():
        raise UserError(
            f"config.batch_size is {size}, but neither {' nor '.join(map(str, counts))} "
            "training images of similar shape fill a batch. Use a smaller --config.batch_size."
        )
    (shapes,) = data.train_shapes

    def train_batches(
        epoch: int, start_step: int = 0, order: np.ndarray | None = None
    ) -> Iterator[dict]:
        if order is None:
            order = batches.permutation(seed, epoch, len(bucket_of))
        order = split_order(order, bucket_of, size)
        first = order[start_step * size :: size]
        for xs, position in zip(data.train_batches(epoch, start_step, order), first, strict=True):
            yield xs | {"canvas": canvases[bucket_of[position]]}

    def eval_batches(split: str, order: np.ndarray | None = None) -> Iterator[dict]:
        order = np.arange(data.examples[split]) if order is None else np.asarray(order)
        bucket_of = buckets[split][order]
        for bucket in np.unique(bucket_of):  # a split may have none of the others
            for xs in data.eval_batches(split, order[bucket_of == bucket]):
                yield xs | {"canvas": canvases[bucket]}

    return dataclasses.replace(
        data,
        train_batches=train_batches,
        train_shapes=tuple(
            shapes | {"canvas": canvas}
            for canvas, count in zip(canvases, steps, strict=True)
            if count
        ),
        eval_batches=eval_batches,
        epoch_steps=int(steps.sum()),
    )
