"""Average precision against numbers by hand, a plain Python version of VOC's rule, and COCO's."""

import numpy as np
import pytest

from cutmix_jax.detection.average_precision import (
    Detections,
    Truths,
    average_precision,
    mean_average_precision,
    precision_recall,
)


def by_hand():
    """Two images, two classes, a duplicate, a difficult object, a false detection."""
    first, hard, other, second = (
        (10, 10, 50, 50),
        (60, 60, 90, 90),
        (20, 20, 40, 80),
        (5, 5, 45, 45),
    )
    truths = Truths(
        [[first, hard, other], [second, (0, 0, 0, 0), (0, 0, 0, 0)]],
        [[0, 0, 1], [0, -1, -1]],
        [[False, True, False], [False, False, False]],
    )
    detections = Detections(
        [[first, first, hard, other], [second, (0, 0, 9, 9), (0, 0, 0, 0), (0, 0, 0, 0)]],
        [[0.9, 0.8, 0.7, 0.5], [0.6, 0.4, 0.0, 0.0]],
        [[0, 0, 0, 1], [0, 1, -1, -1]],
    )
    return detections, truths


def test_the_case_by_hand():
    detections, truths = by_hand()
    curve = precision_recall(detections, truths, 0)
    np.testing.assert_allclose(curve.precision, [1, 1 / 2, 1 / 2, 2 / 3])
    np.testing.assert_allclose(curve.recall, [1 / 2, 1 / 2, 1 / 2, 1])
    np.testing.assert_allclose(curve.scores, [0.9, 0.8, 0.7, 0.6])
    assert curve.truths == 2
    mean, each = mean_average_precision(detections, truths, 2)
    np.testing.assert_allclose(each, [28 / 33, 1])
    assert mean == pytest.approx((28 / 33 + 1) / 2)
    _, each = mean_average_precision(detections, truths, 2, rule="area")
    np.testing.assert_allclose(each, [5 / 6, 1])


def plain_voc(detections, truths, label, threshold, area_rule, extra):
    """VOC's rule in plain Python, detection by detection."""
    rows, objects = [], {}
    for image, (boxes, scores, labels) in enumerate(zip(*detections, strict=True)):
        for box, score, own in zip(boxes, scores, labels, strict=True):
            if own == label:
                rows.append((-score, image, tuple(box)))
    rows.sort()
    for image, (boxes, labels, difficult) in enumerate(zip(*truths, strict=True)):
        objects[image] = []
        for box, own, hard in zip(boxes, labels, difficult, strict=True):
            if own == label:
                objects[image].append({"box": box, "difficult": hard, "found": False})
    positives = sum(not o["difficult"] for each in objects.values() for o in each)
    right = wrong = 0
    points = []
    for _, image, (t, le, b, r) in rows:
        best, best_overlap = None, 0.0
        for o in objects[image]:
            t2, l2, b2, r2 = o["box"]
            h = min(b, b2) - max(t, t2) + extra
            w = min(r, r2) - max(le, l2) + extra
            if h > 0 and w > 0:
                union = (b - t + extra) * (r - le + extra) + (b2 - t2 + extra) * (r2 - l2 + extra)
                if (overlap := h * w / (union - h * w)) > best_overlap:
                    best, best_overlap = o, overlap
        if best_overlap >= threshold:
            if not best["difficult"]:
                if best["found"]:
                    wrong += 1
                else:
                    best["found"] = True
                    right += 1
        else:
            wrong += 1
        points.append((right / positives, right / max(right + wrong, 1)))
    if area_rule:
        total, last = 0.0, 0.0
        for i, (recall, _) in enumerate(points):
            total += (recall - last) * max(p for _, p in points[i:])
            last = recall
        return total
    levels = np.arange(0, 1.1, 0.1)
    return sum(max((p for r, p in points if r >= level), default=0) for level in levels) / 11


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("extra", [0, 1])
def test_equal_to_a_plain_version(seed, extra):
    random = np.random.RandomState(seed)
    low = random.randint(0, 20, (8, 6, 2))
    boxes = np.concatenate([low, low + random.randint(1, 20, (8, 6, 2))], -1)
    truths = Truths(boxes, random.randint(-1, 3, (8, 6)), random.uniform(size=(8, 6)) < 0.3)
    near = np.repeat(boxes, 3, 1) + random.randint(-2, 3, (8, 18, 4))
    labels = np.where(random.uniform(size=(8, 18)) < 0.7, np.repeat(truths.labels, 3, 1), 1)
    scores = random.permutation(8 * 18).reshape(8, 18) / 200
    detections = Detections(near, scores, labels)
    for rule in ("11-point", "area"):
        for threshold in (0.3, 0.5, 0.75):
            _, each = mean_average_precision(
                detections, truths, 3, rule=rule, threshold=threshold, inclusive=bool(extra)
            )
            for label in range(3):
                want = plain_voc(detections, truths, label, threshold, rule == "area", extra)
                assert each[label] == pytest.approx(want, abs=1e-12)
                assert 0.01 < want < 0.99 or threshold == 0.75


def apart(seed):
    """Detections that overlap one truth at most, where VOC's rule and COCO's agree.

    COCO divides the overlap with a crowd by the area of the detection. That is the IoU if the
    detection contains the crowd, as it does here.
    """
    random = np.random.RandomState(seed)
    cells = 100 * np.stack(np.meshgrid(range(3), range(3)), -1).reshape(1, 9, 1, 2)
    low = random.uniform(20, 40, (8, 9, 1, 2))
    high = low + random.uniform(31, 44, low.shape)
    labels, difficult = random.randint(-1, 3, (8, 9)), random.uniform(size=(8, 9)) < 0.3
    moved = random.uniform(-9, 9, (2, 8, 9, 3, 2))
    grown = np.array([-1, 1]).reshape(2, 1, 1, 1, 1) * np.abs(moved)
    near = np.stack([low, high]) + np.where(difficult[..., None, None], grown, moved)
    found = np.where(random.uniform(size=(8, 9, 3)) < 0.8, labels[..., None], 1)
    scores = random.permutation(found.size) / found.size
    return (
        Detections(
            np.concatenate(near + cells, -1).reshape(8, 27, 4),
            scores.reshape(8, 27),
            found.reshape(8, 27),
        ),
        Truths(np.concatenate([low + cells, high + cells], -1)[:, :, 0], labels, difficult),
    )


def rows_of(group):
    """Images, classes, boxes as (left, top, width, height), and scores or difficult."""
    boxes, labels = np.array(group.boxes, float), np.array(group.labels)
    image, _ = known = np.nonzero(labels >= 0)
    low, high = boxes[known][:, 1::-1], boxes[known][:, :1:-1]
    last = group.scores if isinstance(group, Detections) else group.difficult
    return zip(
        image,
        labels[known],
        np.concatenate([low, high - low], 1).tolist(),
        np.array(last)[known].tolist(),
        strict=True,
    )


def coco_ap(detections, truths, classes):
    """AP at IoU 0.5 with VOC's eleven recalls, from pycocotools. Ids start at 1."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    real = COCO()
    real.dataset = {
        "images": [{"id": i} for i in range(len(truths.labels))],
        "categories": [{"id": k} for k in range(classes)],
        "annotations": [
            {
                "id": i,
                "image_id": image,
                "category_id": label,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": int(difficult),
            }
            for i, (image, label, box, difficult) in enumerate(rows_of(truths), 1)
        ],
    }
    real.createIndex()
    found = real.loadRes(
        [
            {"image_id": image, "category_id": label, "bbox": box, "score": score}
            for image, label, box, score in rows_of(detections)
        ]
    )
    coco = COCOeval(real, found, "bbox")
    coco.params.iouThrs, coco.params.recThrs = np.array([0.5]), np.arange(0, 1.1, 0.1)
    coco.params.maxDets, coco.params.areaRng = [1000], [[0, 1e9]]
    coco.evaluate()
    coco.accumulate()
    precision = coco.eval["precision"][0, :, :, 0, 0]
    return np.where((precision < 0).any(0), np.nan, precision.mean(0))


@pytest.mark.parametrize("seed", ["by hand", *range(4)])
def test_equal_to_pycocotools_where_no_detection_overlaps_two_truths(seed):
    pytest.importorskip("pycocotools", reason="needs pycocotools as the reference")
    detections, truths = by_hand() if seed == "by hand" else apart(seed)
    _, each = mean_average_precision(detections, truths, 4)
    np.testing.assert_allclose(each, coco_ap(detections, truths, 4), atol=1e-12)
    assert seed == "by hand" or ((each[:3] > 0.05) & (each[:3] < 0.95)).all()


def test_takes_lists_and_padded_arrays():
    detections, truths = by_hand()

    def ragged(group, labels):
        keep = [np.asarray(own) >= 0 for own in labels]
        return [[np.asarray(v)[k] for v, k in zip(field, keep, strict=True)] for field in group]

    want = mean_average_precision(detections, truths, 2)
    got = mean_average_precision(
        Detections(*ragged(detections, detections.labels)),
        Truths(*ragged(truths, truths.labels)),
        2,
    )
    assert got[0] == want[0]


def test_classes_without_truths_are_left_out():
    detections, truths = by_hand()
    mean, each = mean_average_precision(detections, truths, 4)
    assert np.isnan(each[2:]).all()
    assert mean == pytest.approx((28 / 33 + 1) / 2)
    all_difficult = truths._replace(difficult=[[True] * 3] * 2)
    assert np.isnan(mean_average_precision(detections, all_difficult, 2)[0])


def test_classes_without_detections_have_zero():
    _, truths = by_hand()
    nothing = Detections([[], []], [[], []], [[], []])
    for rule in ("11-point", "area"):
        assert mean_average_precision(nothing, truths, 2, rule=rule)[0] == 0


def test_a_detection_takes_its_best_truth_even_if_found():
    # The second detection overlaps both objects above 0.5, and the found one more.
    truths = Truths([[[0, 0, 10, 10], [0, 2, 10, 12]]], [[0, 0]], [[False, False]])
    detections = Detections([[[0, 0, 10, 10], [0, 0.5, 10, 10.5]]], [[0.9, 0.8]], [[0, 0]])
    assert precision_recall(detections, truths, 0).recall.tolist() == [0.5, 0.5]


def test_a_recall_of_exactly_three_tenths_misses_its_point():
    assert average_precision([1.0], [0.3]) == pytest.approx(3 / 11)  # 0, 0.1, 0.2
    assert average_precision([1.0], [0.4]) == pytest.approx(5 / 11)


def test_the_threshold_is_reached_by_an_equal_overlap():
    truths = Truths([[[0, 0, 2, 4]]], [[0]], [[False]])
    detections = Detections([[[0, 0, 2, 2]]], [[0.9]], [[0]])  # IoU 1/2; with +1 it is 9/15
    assert precision_recall(detections, truths, 0, threshold=0.5).recall.tolist() == [1.0]
    assert precision_recall(detections, truths, 0, threshold=0.51).recall.tolist() == [0.0]
    inclusive = precision_recall(detections, truths, 0, threshold=0.6, inclusive=True)
    assert inclusive.recall.tolist() == [1.0]


def test_refuses_wrong_arguments():
    detections, truths = by_hand()
    with pytest.raises(ValueError, match="'11-point' or 'area'"):
        average_precision([1.0], [1.0], "12-point")
    with pytest.raises(ValueError, match="precision has shape"):
        average_precision([1.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="detections are of 2 images and truths of 1"):
        precision_recall(detections, Truths(*(field[:1] for field in truths)), 0)
    with pytest.raises(ValueError, match=r"detections.scores has 3 entries for image 0"):
        precision_recall(detections._replace(scores=[[0.1] * 3] * 2), truths, 0)
    with pytest.raises(ValueError, match="NaN for image 0"):
        precision_recall(detections._replace(scores=[[np.nan] * 4] * 2), truths, 0)
