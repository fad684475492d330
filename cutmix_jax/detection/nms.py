"""Non-maximum suppression with a static number of outputs, inside jit and vmap."""

import jax
import jax.numpy as jnp
from jax import lax

from cutmix_jax.detection.boxes import as_boxes, iou

TILE = 256  # boxes that are compared with each other at a time


def nms(boxes, scores, threshold, max_outputs, *, candidates=None, min_score=-jnp.inf):
    """Greedy non-maximum suppression: the best boxes that do not overlap a better one.

    Boxes are visited from the highest score to the lowest; of equal scores the lower index comes
    first. A box is selected if its IoU with every selected box is at most the threshold. Empty
    boxes overlap nothing, so padding needs a score of minus infinity or NaN.

    Args:
        boxes: float `[n, 4]`, (top, left, bottom, right), in any unit.
        scores: float `[n]`; those that are NaN, or not above `min_score`, are never selected.
        threshold: largest IoU of two selected boxes; may be traced.
        max_outputs: K, the number of outputs; static.
        candidates: number of best boxes to visit; static. The default is all.
        min_score: scores have to be above it; may be traced.

    Returns:
        `(indices, valid)`: int32 `[K]`, indices of the selected boxes, best first; bool `[K]`,
        False where fewer than K boxes were selected. The index is 0 there. No gradient flows
        through the selection; gather boxes and scores by the indices.

    Raises:
        ValueError: the shapes do not fit, or `max_outputs` or `candidates` is below 1.

    Example:
        >>> boxes = jnp.array([[0, 0, 10, 10], [0, 1, 10, 11], [20, 20, 30, 30]])
        >>> indices, valid = nms(boxes, jnp.array([0.8, 0.9, 0.7]), 0.5, 3)
        >>> indices.tolist(), valid.tolist()
        ([1, 2, 0], [True, True, False])

    Reference:
        Girshick et al. Rich Feature Hierarchies for Accurate Object Detection and Semantic
        Segmentation. CVPR 2014, section 2.2.
    """
    boxes, scores = as_boxes("boxes", boxes), jnp.asarray(scores)
    if boxes.ndim != 2 or scores.shape != boxes.shape[:1]:
        raise ValueError(
            f"boxes has shape {boxes.shape} and scores {scores.shape}, but [n, 4] and [n] were "
            "expected. Use jax.vmap for several images."
        )
    for name, value in {"max_outputs": max_outputs, "candidates": candidates}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, but at least 1 was expected.")
    if not len(scores):
        return jnp.zeros(max_outputs, jnp.int32), jnp.zeros(max_outputs, bool)
    boxes, scores = lax.stop_gradient((boxes, scores))
    # False for NaN, too, which `top_k` would put first.
    scores = jnp.where(scores > min_score, scores, -jnp.inf)
    scores, order = lax.top_k(scores, min(candidates or len(scores), len(scores)))
    tile = min(TILE, len(scores))
    tail = -len(scores) % tile
    order = jnp.pad(order, (0, tail))
    alive = jnp.pad(scores > -jnp.inf, (0, tail))
    kept = _greedy(boxes[order], alive, threshold, max_outputs, tile)
    valid = kept < len(order)
    return jnp.where(valid, order[jnp.where(valid, kept, 0)], 0), valid


def _greedy(boxes, alive, threshold, max_outputs, tile):
    """int32 `[max_outputs]`: positions of the selected boxes in sorted order, then `len(boxes)`.

    Each tile is compared with the boxes selected so far, and then with itself. The loop ends when
    there are enough boxes, or when the next tile has none that is alive.
    """
    count = len(boxes)
    slots = max_outputs + -max_outputs % tile
    before = jnp.tri(tile, k=-1, dtype=bool).T  # [a, b]: a has a higher score than b
    starts_alive = alive[::tile]  # sorted: the first of a tile is the best

    def unfinished(state):
        i, _, _, found = state
        more = starts_alive[jnp.minimum(i, count // tile - 1)]
        return (i < count // tile) & (found < max_outputs) & more

    def visit(state):
        i, selected, kept, found = state
        own = lax.dynamic_slice_in_dim(boxes, i * tile, tile)
        free = lax.dynamic_slice_in_dim(alive, i * tile, tile)

        def compare(j, free):
            better = lax.dynamic_slice_in_dim(selected, j * tile, tile)
            return free & ~(iou(better, own) > threshold).any(0)

        free = lax.fori_loop(0, (found + tile - 1) // tile, compare, free)
        free = _within(free, (iou(own, own) > threshold) & before)
        slot = jnp.where(free, found + jnp.cumsum(free) - 1, slots)  # `slots` is dropped
        kept = kept.at[slot].set(i * tile + jnp.arange(tile), mode="drop")
        return i + 1, selected.at[slot].set(own, mode="drop"), kept, found + free.sum()

    # Slots that are not filled yet are empty boxes, which overlap nothing.
    start = (0, jnp.zeros((slots, 4)), jnp.full(slots, count, jnp.int32), 0)
    return lax.while_loop(unfinished, visit, start)[2][:max_outputs]


def _within(free, suppresses):
    """Which boxes of a tile stay: the only mask where each box stays unless a better one that stays
    suppresses it. After n rounds the first n boxes are final.
    """

    def step(state):
        old, _ = state
        new = free & ~(suppresses & old[:, None]).any(0)
        return new, (new != old).any()

    return lax.while_loop(lambda state: state[1], step, (free, jnp.array(True)))[0]


def nms_per_class(boxes, scores, threshold, max_outputs, *, candidates=None, min_score=-jnp.inf):
    """`nms` for each class alone: boxes of different classes do not suppress each other.

    Args:
        boxes: float `[n, 4]`, (top, left, bottom, right), or `[n, C, 4]` with a box per class.
        scores: float `[n, C]`, without the background.
        threshold: largest IoU of two selected boxes of a class; may be traced.
        max_outputs: K, the number of outputs per class; static.
        candidates: number of best boxes to visit per class; static. The default is all.
        min_score: scores have to be above it; may be traced.

    Returns:
        `(indices, valid)`: int32 `[C, K]`, indices along n, best first; bool `[C, K]`.

    Raises:
        ValueError: the shapes do not fit, or `max_outputs` or `candidates` is below 1.

    Example:
        >>> boxes = jnp.array([[0, 0, 10, 10], [0, 1, 10, 11]])
        >>> scores = jnp.array([[0.9, 0.001], [0.8, 0.7]])
        >>> indices, valid = nms_per_class(boxes, scores, 0.45, 2, min_score=0.01)
        >>> indices.tolist(), valid.tolist()
        ([[0, 0], [1, 0]], [[True, False], [True, False]])

    Reference:
        Liu et al. SSD: Single Shot MultiBox Detector. ECCV 2016, section 2.2: score 0.01,
        threshold 0.45, 200 outputs.
    """
    boxes, scores = as_boxes("boxes", boxes), jnp.asarray(scores)
    shapes = ((*scores.shape[:1], 4), (*scores.shape, 4))
    if scores.ndim != 2 or boxes.shape not in shapes:
        raise ValueError(
            f"boxes has shape {boxes.shape} and scores {scores.shape}, but [n, 4] or [n, C, 4] and "
            "[n, C] were expected. Use jax.vmap for several images."
        )

    def select(boxes, scores):
        return nms(
            boxes, scores, threshold, max_outputs, candidates=candidates, min_score=min_score
        )

    return jax.vmap(select, (None if boxes.ndim == 2 else 1, 1))(boxes, scores)
