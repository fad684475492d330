"""NMS against torchvision's stored results and a loop in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutmix_jax.detection import boxes as boxes_module
from cutmix_jax.detection import nms
from tests.detection import references

run = jax.jit(nms.nms, static_argnums=3, static_argnames="candidates")
run_per_class = jax.jit(nms.nms_per_class, static_argnums=3, static_argnames="candidates")


def greedy(boxes, scores, threshold, count):
    """Positions of the selected boxes: the best one removes what it overlaps."""
    boxes, area = boxes.astype(np.float32), np.prod(boxes[:, 2:] - boxes[:, :2], -1)
    order, selected = np.argsort(-scores, kind="stable"), []
    while len(order) and len(selected) < count:
        best, order = order[0], order[1:]
        selected.append(int(best))
        low = np.maximum(boxes[best, :2], boxes[order, :2])
        common = np.clip(np.minimum(boxes[best, 2:], boxes[order, 2:]) - low, 0, None).prod(-1)
        overlap = common / (area[best] + area[order] - common)
        order = order[~(overlap > np.float32(threshold))]
    return selected


def some_boxes(count, side=1000, seed=0, size=4.0):
    random = np.random.RandomState(seed)
    center = random.uniform(0, side, (count, 2))
    extent = np.exp(random.normal(size, 0.7, (count, 2))) / 2
    boxes = np.concatenate([center - extent, center + extent], 1).astype(np.float32)
    return boxes, random.permutation(count).astype(np.float32)


def selected(result):
    indices, valid = map(np.asarray, result)
    assert (np.diff(valid.astype(int)) <= 0).all()  # what is valid comes first
    assert not indices[~valid].any()
    return indices[valid].tolist()


def test_equal_to_torchvision():
    stored = references.read()["nms"]
    boxes = boxes_module.swap_xy(stored["inputs"]["boxes"])
    scores, classes = (np.array(stored["inputs"][name]) for name in ("scores", "classes"))
    for threshold, want in stored["kept"].items():
        assert selected(run(boxes, scores, float(threshold), 80)) == want
        assert 10 < len(want) < 60
    each = np.where(classes[:, None] == np.arange(3), scores[:, None], -np.inf)
    found = run_per_class(boxes, each, 0.45, 80)
    together = [i for pair in zip(*found, strict=True) for i in selected(pair)]
    assert sorted(together, key=lambda i: -scores[i]) == stored["per_class"]


@pytest.mark.parametrize(
    ("count", "outputs"), [(1, 2), (255, 300), (257, 5), (700, 300), (700, 800)]
)
def test_equal_to_a_loop(count, outputs):
    boxes, scores = some_boxes(count, side=150, seed=count)
    for threshold in (0.0, 0.3, 0.7):
        got = run(boxes, scores, threshold, outputs)
        assert got[0].shape == got[1].shape == (outputs,)
        assert selected(got) == greedy(boxes, scores, threshold, outputs)


def test_12000_boxes():
    boxes, scores = some_boxes(12000)
    got = run(boxes, scores, 0.7, 2000)
    assert selected(got) == greedy(boxes, scores, 0.7, 2000)


def test_a_chain_is_resolved_from_its_best_box():
    # Each box overlaps only its neighbors, so every second one stays.
    left = np.arange(200) * 4.0
    boxes = np.stack([0 * left, left, 0 * left + 10, left + 10], 1)
    scores = np.arange(200, 0, -1.0)
    assert selected(run(boxes, scores, 0.4, 200)) == list(range(0, 200, 2))


def test_suppresses_above_the_threshold_only():
    boxes, scores = np.array([[0, 0, 2, 2], [0, 0, 2, 4]]), np.array([0.9, 0.8])  # IoU 1/2
    assert selected(run(boxes, scores, 0.5, 2)) == [0, 1]
    assert selected(run(boxes, scores, 0.499, 2)) == [0]


def test_suppresses_above_the_threshold_only_in_another_tile():
    boxes = np.zeros((600, 4))  # empty ones suppress nothing
    boxes[0], boxes[599] = [0, 0, 2, 2], [0, 0, 2, 4]
    for threshold, want in ((0.5, 600), (0.499, 599)):
        got = selected(run(boxes, np.arange(600, 0, -1.0), threshold, 600))
        assert got == list(range(want))


def test_equal_scores_go_by_index_and_real_zero_boxes_are_kept():
    boxes = np.array([[5, 5, 9, 9], [5, 5, 9, 9], [0, 0, 0, 0], [20, 20, 30, 30]])
    assert selected(run(boxes, np.ones(4), 0.5, 4)) == [0, 2, 3]


def test_masked_scores_are_never_selected():
    boxes, scores = some_boxes(50, side=2000)
    scores = scores / 50
    scores[:10], scores[10] = -np.inf, np.nan
    want = [
        i for i in greedy(boxes, np.where(scores > 0.5, scores, -1), 0.5, 50) if scores[i] > 0.5
    ]
    assert selected(run(boxes, scores, 0.5, 50, min_score=0.5)) == want
    exact = float(scores[want[-1]])
    assert selected(run(boxes, scores, 0.5, 50, min_score=exact)) == want[:-1]
    assert selected(run(boxes, np.full(50, np.nan), 0.5, 50)) == []
    assert selected(run(np.zeros((0, 4)), np.zeros(0), 0.5, 3)) == []


def test_only_candidates_are_visited():
    boxes, scores = some_boxes(300, side=100)
    best = np.argsort(-scores)[:40]
    want = best[greedy(boxes[best], scores[best], 0.3, 300)].tolist()
    assert selected(run(boxes, scores, 0.3, 300, candidates=40)) == want
    assert want != greedy(boxes, scores, 0.3, 300)
    assert selected(run(boxes, scores, 0.3, 300, candidates=9999)) == greedy(
        boxes, scores, 0.3, 300
    )


def test_vmap_equals_one_image_at_a_time():
    # The lanes need different numbers of tiles.
    images = [some_boxes(600, side, seed) for seed, side in enumerate((40, 200, 3000))]
    boxes, scores = map(np.stack, zip(*images, strict=True))
    got = jax.jit(jax.vmap(lambda b, s: nms.nms(b, s, 0.5, 120)))(boxes, scores)
    for i in range(3):
        assert selected((got[0][i], got[1][i])) == greedy(boxes[i], scores[i], 0.5, 120)


def test_classes_are_separate():
    boxes, _ = some_boxes(90, side=60)
    each = np.random.RandomState(1).permutation(270).reshape(90, 3).astype(np.float32)
    found = run_per_class(boxes, each, 0.45, 20, candidates=60, min_score=30)
    moved = boxes[:, None] + np.array([0, 7, 900])[:, None]
    with_boxes = run_per_class(moved, each, 0.45, 20, candidates=60, min_score=30)
    for c in range(3):
        best = np.argsort(-each[:, c])[:60]
        best = best[each[best, c] > 30]
        want = best[greedy(boxes[best], each[best, c], 0.45, 20)].tolist()
        assert selected((found[0][c], found[1][c])) == want
        want = best[greedy(moved[best, c], each[best, c], 0.45, 20)].tolist()
        assert selected((with_boxes[0][c], with_boxes[1][c])) == want


def test_gradients_flow_through_what_is_gathered():
    boxes, scores = some_boxes(30, side=50)

    def total(scores):
        indices, valid = nms.nms(boxes, scores, 0.5, 10)
        return jnp.where(valid, scores[indices], 0).sum()

    want = np.isin(np.arange(30), greedy(boxes, scores, 0.5, 10))
    np.testing.assert_array_equal(jax.jit(jax.grad(total))(scores), want)


def test_refuses_wrong_arguments():
    boxes, scores = some_boxes(4)
    with pytest.raises(ValueError, match="boxes has shape"):
        nms.nms(boxes, scores[:3], 0.5, 3)
    with pytest.raises(ValueError, match="max_outputs is 0"):
        nms.nms(boxes, scores, 0.5, 0)
    with pytest.raises(ValueError, match="candidates is 0"):
        nms.nms(boxes, scores, 0.5, 1, candidates=0)
    with pytest.raises(ValueError, match=r"\[n, C\]"):
        nms.nms_per_class(boxes, scores, 0.5, 1)
