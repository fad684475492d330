"""Class activation maps and localization against plain implementations."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from cutmix_jax import UserError
from cutmix_jax.evals import EVALS, cam, localization
from tests.evals.searches import plain_contours, plain_iou, plain_largest_box, random_map

SWEEP = np.array([0.0, 0.15, 0.5])
FINE = np.array([0.0, 0.2, 0.45, 0.7])


def true_boxes(seed, side=12):
    """One to three boxes of whole pixels."""
    random = np.random.RandomState(seed)
    low = random.randint(0, side - 5, (random.randint(1, 4), 2))
    return np.concatenate([low, low + random.randint(3, 6, low.shape)], 1).astype(np.float32)


def inclusive_iou(a, b, side):
    """The overlap of boxes with inclusive corners."""
    return plain_iou(*[np.add(box, [0, 0, 1, 1]) for box in (a, b)], side + 1)


def with_boxes(subject, boxes):
    """The subject, on a dataset with these boxes."""
    data = dataclasses.replace(subject.task.data, boxes=lambda split: boxes)
    return dataclasses.replace(subject, task=dataclasses.replace(subject.task, data=data))


def test_200_random_maps_against_a_plain_implementation():
    fits, maps, truth = [], list(map(random_map, range(200))), list(map(true_boxes, range(200)))
    fits = [localization.measure_map(heat, true, SWEEP, FINE) for heat, true in
            zip(maps, truth, strict=True)]  # fmt: skip
    random = np.random.RandomState(0)
    right, among_5 = random.uniform(size=200) < 0.5, random.uniform(size=200) < 0.8
    iou = np.stack([fit["iou"] for fit in fits])
    values, rows = localization.summarize(iou, right, among_5, SWEEP, 0.15)
    values |= localization.max_box_acc(fits, FINE)

    for threshold, row in zip(SWEEP, rows, strict=True):
        hits = []
        for heat, true in zip(maps, truth, strict=True):
            box = plain_largest_box(heat, threshold)
            hits.append(any(plain_iou(box, gt, 12) > 0.5 for gt in true))
        assert row["gt_known_loc_acc"] == pytest.approx(np.mean(hits))
        assert row["top1_loc_acc"] == pytest.approx(np.mean(hits & right))
        assert row["top5_loc_acc"] == pytest.approx(np.mean(hits & among_5))
    assert values["gt_known_loc_acc"] == rows[1]["gt_known_loc_acc"]

    def best_accuracy(iou_threshold, every):
        accuracy = []
        for threshold in FINE:
            hits = []
            for heat, true in zip(maps, truth, strict=True):
                found, areas = plain_contours(heat, threshold)
                if not every:
                    found = [found[int(np.argmax(areas))]]
                closed = true - np.array([0, 0, 1, 1])
                overlaps = [inclusive_iou(box, gt, 12) for box in found for gt in closed]
                hits.append(max(overlaps) >= iou_threshold)
            accuracy.append(np.mean(hits))
        return max(accuracy)

    # Two contours of equal area may come in either order: one image in 200 at most.
    assert values["max_box_acc"] == pytest.approx(best_accuracy(0.5, every=False), abs=0.0051)
    by_iou = [best_accuracy(bound, every=True) for bound in (0.3, 0.5, 0.7)]
    assert values["max_box_acc_v2"] == pytest.approx(np.mean(by_iou))
    assert values["max_box_acc_v2_iou70"] == pytest.approx(by_iou[2])


def test_exactly_half_an_overlap_is_too_little_for_the_paper_and_enough_for_maxboxacc():
    heat = np.zeros((12, 12), np.float32)
    heat[2:6, 2:4] = 1.0  # rows 2 to 5, columns 2 and 3
    half = np.array([[2.0, 2.0, 6.0, 6.0]])
    assert localization.measure_map(heat, half, SWEEP, FINE)["iou"].tolist() == [0.5] * 3
    values, _ = localization.summarize(np.full((1, 3), 0.5), np.ones(1, bool), np.ones(1, bool),
                                       SWEEP, 0.15)  # fmt: skip
    assert values["gt_known_loc_acc"] == 0
    fit = {"single": np.full(4, 0.5), "multiple": np.full(4, 0.5)}
    assert localization.max_box_acc([fit], FINE)["max_box_acc"] == 1


def test_maps_are_the_head_applied_to_the_features(subject, pixels):
    images, labels = pixels
    features, logits = map(np.asarray, jax.jit(subject.features)(subject.weights, images))
    head = subject.weights["params"]["fc"]
    kernel, bias = np.asarray(head["kernel"]), np.asarray(head["bias"])
    plain = np.stack([features[i] @ kernel[:, k] for i, k in enumerate(labels)])
    # The mean of the map is the logit without its bias, so it is a map of the class.
    own = logits[np.arange(len(labels)), labels] - bias[labels]
    np.testing.assert_allclose(plain.mean((1, 2)), own, rtol=1e-3, atol=1e-3)
    found = cam.activation_maps(features, kernel, labels, features.shape[1:3])
    low, high = plain.min((1, 2), keepdims=True), plain.max((1, 2), keepdims=True)
    np.testing.assert_allclose(found, (plain - low) / (high - low), atol=1e-4)


def test_upsampling_agrees_with_pytorch():
    torch = pytest.importorskip("torch", reason="needs PyTorch as the reference")
    features = np.random.RandomState(0).normal(size=(3, 7, 7, 1)).astype(np.float32)
    found = cam.activation_maps(features, np.ones((1, 2), np.float32), np.zeros(3, int), (28, 28))
    maps = torch.from_numpy(features).permute(0, 3, 1, 2)
    # With antialias PyTorch has the kernel of Pillow and JAX, a = -0.5.
    big = torch.nn.functional.interpolate(maps, (28, 28), mode="bicubic", antialias=True)[:, 0]
    low, high = big.amin((1, 2), keepdim=True), big.amax((1, 2), keepdim=True)
    np.testing.assert_allclose(found, (big - low) / (high - low), atol=1e-5)


def test_a_flat_map_is_zero():
    features = np.ones((1, 2, 2, 3), np.float32)
    found = cam.activation_maps(features, np.ones((3, 2), np.float32), np.array([1]), (4, 4))
    np.testing.assert_array_equal(found, np.zeros((1, 4, 4)))


def test_localization_of_a_subject_is_that_of_its_maps(subject, pixels, predict):
    images, labels = pixels
    truth = [true_boxes(i, 8) for i in range(297)]
    truth[3], truth[4] = np.zeros((0, 4)), np.array([[2.0, 2, 2, 5]])  # no box, and an empty one
    asked = with_boxes(subject, truth)
    options = subject.task.config.evals.localization
    report = localization.run(asked, options, truth)
    assert report.values["without_boxes"] == 2

    features, _ = jax.jit(subject.features)(subject.weights, images)
    kernel = subject.weights["params"]["fc"]["kernel"]
    maps = np.asarray(cam.activation_maps(features, kernel, labels, (8, 8)))
    right = predict(images).argmax(1) == labels
    hits = np.array(
        [
            any(plain_iou(plain_largest_box(maps[i], 0.15), box, 8) > 0.5 for box in truth[i])
            for i in range(297)
        ]
    )
    kept = np.delete(np.arange(297), [3, 4])
    # A pixel at the threshold may fall to either side of it by rounding.
    assert report.values["gt_known_loc_acc"] == pytest.approx(hits[kept].mean(), abs=0.008)
    assert report.values["top1_loc_acc"] == pytest.approx((hits & right)[kept].mean(), abs=0.008)
    assert report.values["top1_error"] == pytest.approx(1 - right[kept].mean())


def test_a_constant_network_is_right_by_class_0_alone(subject):
    weights = jax.tree.map(np.asarray, jax.device_get(subject.weights))
    weights["params"]["fc"] = jax.tree.map(np.zeros_like, weights["params"]["fc"])
    blind = dataclasses.replace(
        with_boxes(subject, [np.array([[2.0, 2, 6, 6]])] * 297),
        weights=subject.task.mapping.replicate(weights),
    )
    report = localization.run(
        blind, subject.task.config.evals.localization, blind.task.data.boxes("test")
    )
    labels = subject.task.data.arrays["test"]["label"]
    assert report.values["top1_error"] == pytest.approx((labels != 0).mean())


def test_the_centered_box_knows_nothing_of_the_image():
    found = localization.center_baseline([np.array([[2.0, 2, 6, 6]])] * 3, 8, 8)
    assert found["center_box_gt_known_loc_acc"] == 1
    assert 0.35 < found["center_box_side"] < 0.7
    corner = localization.center_baseline([np.array([[0.0, 0, 2, 2]])], 8, 8)
    assert corner["center_box_gt_known_loc_acc"] == 0


class Flat(nn.Module):
    """A network whose head sees every position separately."""

    feature_names = ("image", "last")

    @nn.compact
    def __call__(self, x, train=False, tap=None):
        x = nn.Conv(4, (3, 3))(x)
        x = tap("last", x) if tap else x
        return nn.Dense(10, name="fc")(x.reshape(len(x), -1))


def test_what_does_not_apply_says_what_would_help(subject):
    sentence = EVALS["localization"].why_not(subject)
    assert "digits has none" in sentence
    assert "shapes" in sentence
    assert EVALS["cam"].why_not(subject) is None
    model = Flat()
    weights = model.init(jax.random.key(0), np.zeros((1, 8, 8, 1)))
    flat = dataclasses.replace(
        with_boxes(subject, []),
        task=dataclasses.replace(with_boxes(subject, []).task, model=model),
        weights=weights,
    )
    for name in ("cam", "localization"):
        assert "global average pooling" in EVALS[name].why_not(flat)


def test_boxes_outside_all_crops_are_refused(subject):
    asked = with_boxes(subject, [np.zeros((0, 4))] * 297)
    with pytest.raises(UserError, match="No image of the test split of digits has a box"):
        localization.run(
            asked, subject.task.config.evals.localization, asked.task.data.boxes("test")
        )


def test_the_picture_takes_any_class(subject):
    options = subject.task.config.evals.cam.copy_and_resolve_references()
    for of in ("true", "3"):
        options.of = of
        report = cam.run(subject, options)
        assert len(report.rows) == 8
    options.of = "11"
    with pytest.raises(UserError, match=r"evals\.cam\.of is '11'.*from 0 to 9"):
        cam.run(subject, options)
