"""Matching against loops in NumPy, cases by hand, and torchvision's stored results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutmix_jax.detection import boxes as boxes_module
from cutmix_jax.detection import matching
from tests.detection import references

targets = jax.jit(matching.ssd_targets)


def match(priors, boxes, labels, threshold=0.5):
    return MATCH(*map(np.asarray, (priors, boxes, labels, threshold)))


def rpn(anchors, boxes, labels, shape):
    return RPN(*map(np.asarray, (anchors, boxes, labels, shape)))


MATCH, RPN = jax.jit(matching.match_priors), jax.jit(matching.rpn_labels)


def overlap(a, b):
    height = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    width = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - height * width
    return height * width / union if height * width else 0.0


def loop_match(priors, boxes, labels, threshold=0.5):
    result = []
    real = [g for g in range(len(boxes)) if labels[g] >= 0]
    for prior in priors:
        best = max(real, key=lambda g: overlap(boxes[g], prior), default=None)
        good = best is not None and overlap(boxes[best], prior) >= threshold
        result.append(best if good else -1)
    for g in real:
        each = [overlap(boxes[g], prior) for prior in priors]
        if max(each) > 0:
            result[int(np.argmax(each))] = g
    return result


def random_case(seed, count=60, truths=7):
    random = np.random.RandomState(seed)
    low = random.uniform(0, 60, (count + truths, 2))
    both = np.concatenate([low, low + random.uniform(4, 40, (count + truths, 2))], 1)
    both = both.astype(np.float32)
    labels = random.randint(0, 20, truths)
    labels[random.uniform(size=truths) < 0.3] = -1
    boxes = both[:truths]
    boxes[labels < 0] = both[-1] if seed % 2 else 0  # padding need not be zeros
    return both[truths:], boxes, labels


@pytest.mark.parametrize("seed", range(6))
def test_equal_to_a_loop(seed):
    priors, boxes, labels = random_case(seed)
    want = np.array(loop_match(priors.astype(float), boxes.astype(float), labels))
    got = np.asarray(match(priors, boxes, labels))
    np.testing.assert_array_equal(got, want)
    classes, offsets = targets(priors, boxes, labels)
    np.testing.assert_array_equal(classes, np.where(want >= 0, labels[want] + 1, 0))
    wanted = np.where(want[:, None] >= 0, boxes_module.encode(boxes[want], priors), 0)
    np.testing.assert_allclose(offsets, wanted, rtol=1e-5, atol=1e-5)
    assert 3 <= (want >= 0).sum() < 60


def test_equal_to_torchvision():
    stored = references.read()["matching"]
    priors, boxes = (boxes_module.swap_xy(stored["inputs"][k]) for k in ("priors", "boxes"))
    labels = np.zeros(len(boxes), int)
    np.testing.assert_array_equal(match(priors, boxes, labels), stored["ssd"])
    kinds, index = rpn(priors, boxes, labels, (999, 999))
    want = np.array(stored["rpn"])  # -1: below 0.3, -2: between
    np.testing.assert_array_equal(kinds, np.select([want >= 0, want == -1], [1, 0], -1))
    np.testing.assert_array_equal(np.asarray(index)[want >= 0], want[want >= 0])
    assert len(set(np.asarray(kinds).tolist())) == 3


def test_the_last_of_two_truths_keeps_a_prior():
    priors = [[0, 0, 10, 10], [50, 50, 60, 60]]
    boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 8]]
    assert match(priors, boxes, [1, 1, -1]).tolist() == [1, -1]
    assert match(priors, boxes, [1, 1, 1]).tolist() == [2, -1]


def test_a_truth_is_matched_at_any_overlap():
    priors = [[0, 0, 10, 10], [0, 0, 100, 100]]
    assert match(priors, [[0, 0, 1, 1]], [0]).tolist() == [0, -1]
    assert match(priors, [[200, 0, 201, 1]], [0]).tolist() == [-1, -1]


def test_the_threshold_is_reached_by_an_equal_overlap():
    priors = [[0, 0, 4, 4], [0, 0, 2, 4]]
    assert match(priors, [[0, 0, 4, 4]], [0]).tolist() == [0, 0]
    assert match(priors, [[0, 0, 4, 4]], [0], 0.51).tolist() == [0, -1]


@pytest.mark.parametrize("truths", [0, 3])
def test_padding_alone_is_background(truths):
    priors, _, _ = random_case(0)
    boxes, labels = np.zeros((truths, 4)), np.full(truths, -1)
    classes, offsets = targets(priors, boxes, labels)
    assert not np.any(classes)
    assert not np.any(offsets)
    kinds, index = rpn(priors, boxes, labels, (1000, 1000))
    assert not np.any(kinds)
    assert not np.any(index)


def test_empty_truths_match_nothing():
    priors = [[0, 0, 10, 10]]
    boxes, labels = jnp.array([[2.0, 2, 2, 8], [5, 5, 5, 5]]), jnp.array([4, 4])
    classes, offsets = targets(priors, boxes, labels)
    assert not np.any(classes)
    assert not np.any(offsets)
    gradient = jax.grad(lambda b: matching.ssd_targets(priors, b, labels)[1].sum())(boxes)
    assert not np.any(gradient)


def loop_rpn(anchors, boxes, labels, shape):
    inside = [a[0] >= 0 and a[1] >= 0 and a[2] <= shape[0] and a[3] <= shape[1] for a in anchors]
    real = [b for b, k in zip(boxes, labels, strict=True) if k >= 0]
    table = [[overlap(a, b) for b in real] for a in anchors]
    kinds = []
    for row, ok in zip(table, inside, strict=True):
        highest = max(row, default=0)
        kinds.append(-1 if not ok else 1 if highest >= 0.7 else 0 if highest < 0.3 else -1)
    for g in range(len(real)):
        column = [row[g] if ok else 0 for row, ok in zip(table, inside, strict=True)]
        for a, value in enumerate(column):
            if value == max(column) > 0:
                kinds[a] = 1
    return kinds


@pytest.mark.parametrize("seed", range(6))
def test_rpn_labels_equal_a_loop(seed):
    anchors, boxes, labels = random_case(seed)
    anchors = np.concatenate([anchors, anchors[:30]])  # ties
    anchors[-5:] = boxes[labels >= 0][0]
    shape = (70, 80)
    kinds, _ = rpn(anchors, boxes, labels, np.array(shape))
    want = loop_rpn(anchors.astype(float), boxes.astype(float), labels, shape)
    np.testing.assert_array_equal(kinds, want)
    assert len(set(want)) == 3


def test_ties_with_the_best_are_all_positive():
    anchors = [[0, 0, 4, 4], [4, 4, 8, 8], [20, 20, 24, 24]]
    kinds, _ = rpn(anchors, [[2, 2, 6, 6], [0, 0, 0, 0]], [0, -1], (30, 30))
    assert kinds.tolist() == [1, 1, 0]
    # An anchor that reaches over the border is no truth's best.
    kinds, _ = rpn(anchors, [[2, 2, 6, 6], [20, 20, 24, 24]], [0, 0], (23, 30))
    assert kinds.tolist() == [1, 1, -1]


@pytest.mark.parametrize(
    ("positive", "negative", "want"),
    [(300, 500, (128, 128)), (10, 500, (10, 246)), (300, 20, (128, 20)), (0, 999, (0, 256)),
     (3, 5, (3, 5))],
)  # fmt: skip
def test_sampled_numbers(positive, negative, want):
    kinds = np.full(1000, -1)
    kinds[:positive], kinds[positive : positive + negative] = 1, 0
    kinds = np.random.RandomState(0).permutation(kinds)
    sampled = np.asarray(sample(jax.random.key(0), kinds))
    assert ((sampled == 1).sum(), (sampled == 0).sum()) == want
    np.testing.assert_array_equal(sampled[sampled >= 0], kinds[sampled >= 0])


sample = jax.jit(matching.sample_anchors, static_argnums=(2, 3))


def test_samples_are_uniform_and_follow_the_key():
    kinds = np.repeat([1, 0, -1], [8, 16, 2])
    keys = jax.random.split(jax.random.key(1), 2000)
    each = np.asarray(jax.jit(jax.vmap(lambda k: matching.sample_anchors(k, kinds, 8)))(keys))
    picked = (each >= 0).mean(0)
    # Expected 4 of 8 and 4 of 16; five standard deviations of a mean of 2,000 are 0.056.
    np.testing.assert_allclose(picked, np.repeat([0.5, 0.25, 0], [8, 16, 2]), atol=0.056)
    assert len(np.unique(each, axis=0)) > 1500
    np.testing.assert_array_equal(each[0], matching.sample_anchors(keys[0], kinds, 8))


def test_rpn_targets_are_samples_with_coded_truths():
    anchors, boxes, labels = random_case(0, count=200)
    key, shape = jax.random.key(0), np.array([90, 90])
    kinds, offsets = jax.jit(
        lambda b: matching.rpn_targets(key, anchors, b, labels, shape, count=32)
    )(boxes)
    all_kinds, index = rpn(anchors, boxes, labels, shape)
    np.testing.assert_array_equal(kinds, sample(key, all_kinds, 32))
    want = boxes_module.encode(boxes[index], anchors, (1, 1, 1, 1))
    np.testing.assert_allclose(offsets, np.where(kinds[:, None] == 1, want, 0), atol=1e-6)
    assert set(np.asarray(kinds).tolist()) == {-1, 0, 1}


rois_of = jax.jit(matching.sample_rois, static_argnames=("count", "fraction"))


def test_sampled_regions_equal_a_loop():
    """With room for all, the samples are known."""
    proposals, boxes, labels = random_case(1)
    valid = np.arange(60) % 5 > 0
    rois, classes, offsets = map(
        np.asarray,
        rois_of(jax.random.key(0), proposals, valid, boxes, labels, count=80, fraction=1.0),
    )
    real = [g for g in range(7) if labels[g] >= 0]
    want = {}
    for region in [*proposals[valid], *boxes[real]]:
        best = max(real, key=lambda g: overlap(boxes[g].astype(float), region.astype(float)))
        good = overlap(boxes[best].astype(float), region.astype(float)) >= 0.5
        coded = boxes_module.encode(boxes[best], region) if good else np.zeros(4)
        want[tuple(region)] = (labels[best] + 1 if good else 0, coded)
    used = classes >= 0
    assert used.sum() == len(want)
    for roi, found, offset in zip(rois[used], classes[used], offsets[used], strict=True):
        label, coded = want.pop(tuple(roi))
        assert found == label
        np.testing.assert_allclose(offset, coded, rtol=1e-4, atol=1e-5)
    assert not want
    assert (np.diff(np.sign(classes)) <= 0).all()  # foreground, background, unused
    assert not rois[~used].any()
    assert not offsets[classes < 1].any()
    assert len(real) < (classes > 0).sum() < used.sum() - 10


def test_a_quarter_of_the_regions_is_foreground_at_most():
    proposals = np.float32([[0, 0, 10, 10]] * 40 + [[50, 50, 60, 60]] * 80 + [[0, 0, 10, 4]] * 80)
    valid, truth = np.ones(200, bool), (np.float32([[0, 0, 10, 10]]), np.array([2]))
    keys = jax.random.split(jax.random.key(0), 300)
    rois, classes, _ = jax.jit(
        jax.vmap(lambda key: matching.sample_rois(key, proposals, valid, *truth, count=32))
    )(keys)
    assert ((classes == 3).sum(1) == 8).all()
    assert ((classes == 0).sum(1) == 24).all()
    # An overlap below the threshold counts as none: both kinds are half of the background.
    half = (np.asarray(rois)[:, 8:, 3] == 4).mean()
    assert abs(half - 0.5) < 0.03


@pytest.mark.parametrize("truths", [0, 2])
def test_images_without_objects_have_background_alone(truths):
    proposals, _, _ = random_case(0)
    empty = np.zeros((truths, 4), np.float32), np.full(truths, -1)
    _, classes, offsets = rois_of(
        jax.random.key(0), proposals, np.arange(60) < 10, *empty, count=16
    )
    assert np.asarray(classes).tolist() == [0] * 10 + [-1] * 6
    assert not np.any(offsets)
    kinds, offsets = matching.rpn_targets(jax.random.key(0), proposals, *empty, (99, 99), count=8)
    assert sorted(np.asarray(kinds).tolist())[-8:] == [0] * 8
    assert not np.any(offsets)
    _, classes, _ = rois_of(jax.random.key(0), proposals, np.zeros(60, bool), *empty, count=16)
    assert (np.asarray(classes) == -1).all()


def test_refuses_wrong_arguments():
    with pytest.raises(ValueError, match="priors has shape"):
        matching.match_priors(np.zeros((3, 4)), np.zeros((2, 4)), np.zeros(3))
    with pytest.raises(ValueError, match="fraction 2"):
        matching.sample_anchors(jax.random.key(0), np.zeros(3), 8, 2)
    with pytest.raises(ValueError, match=r"valid \(2,\)"):
        matching.sample_rois(jax.random.key(0), np.zeros((3, 4)), np.ones(2), np.zeros((0, 4)), [])
    with pytest.raises(ValueError, match="anchors has shape"):
        matching.rpn_labels(np.zeros((3, 4)), np.zeros((1, 2, 4)), np.zeros(1), (9, 9))
