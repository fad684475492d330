"""Errors against scikit-learn, calibration against a plain loop."""

import io

import numpy as np
import pytest
from sklearn import metrics

from cutmix_jax import train
from cutmix_jax.evals import classification
from cutmix_jax.metrics import ranks


def test_errors_and_confusion_agree_with_scikit_learn():
    random = np.random.RandomState(0)
    logits, labels = random.normal(size=(500, 7)) * 3, random.randint(0, 7, 500)
    probs = classification.softmax(logits)
    found = classification.errors(logits, labels)
    classes = range(7)
    assert found["loss"] == pytest.approx(metrics.log_loss(labels, probs, labels=classes))
    for k in (1, 5):
        accuracy = metrics.top_k_accuracy_score(labels, probs, k=k, labels=classes)
        assert found[f"top{k}_error"] == pytest.approx(1 - accuracy)
    np.testing.assert_array_equal(
        classification.confusion_matrix(labels, probs.argmax(1), 7),
        metrics.confusion_matrix(labels, probs.argmax(1), labels=classes),
    )


def test_nan_is_never_a_correct_prediction():
    """A diverged network gives it. scikit-learn has no answer for it."""
    for classes in (3, 10):
        logits = np.full((4, classes), np.nan)
        found = classification.errors(logits, np.array([0, 1, 2, 2]))
        assert (found["top1_error"], found["top5_error"]) == (1, 1)
    assert ranks(np.array([[np.nan, 0.5, 0.7]]), np.array([2])).tolist() == [0]


def test_of_equal_logits_the_lower_class_comes_first():
    assert ranks(np.zeros((3, 3)), np.arange(3)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("bins", [1, 15, 20])
def test_calibration_is_the_mean_gap_of_the_bins(bins):
    random = np.random.RandomState(1)
    confidence = np.concatenate([random.uniform(0, 1, 300), [0.0, 1.0, 1.0, 0.2]])
    right = random.uniform(size=304) < confidence**2
    expected = 0.0
    for i in range(bins):
        inside = [
            k for k, c in enumerate(confidence)
            if i / bins < c <= (i + 1) / bins or (i == 0 and c == 0)
        ]  # fmt: skip
        if inside:
            gap = np.mean([right[k] for k in inside]) - np.mean([confidence[k] for k in inside])
            expected += len(inside) / 304 * abs(gap)
    assert classification.calibration(confidence, right, bins)["ece"] == pytest.approx(expected)


def test_a_confidence_at_an_edge_is_in_the_bin_below():
    confidence = np.array([0.0, 0.25, 0.5, 0.51, 1.0])
    found = classification.calibration(confidence, np.ones(5, bool), 4)
    assert found["examples"].tolist() == [2, 1, 1, 1]


@pytest.mark.parametrize("devices", [1, 8])
def test_the_evaluation_repeats_what_training_measures(make_subject, devices):
    subject = make_subject(devices=devices)
    report = classification.run(subject, subject.task.config.evals.classification)
    _, mapped_eval_step = train.map_steps(subject.task)
    arrays = {"test": subject.arrays}
    known = train.evaluate(subject.task, mapped_eval_step, subject.weights, arrays)
    for name in ("top1_error", "top5_error", "loss"):
        assert report.values[name] == pytest.approx(known[f"test_{name}"], rel=1e-5)
    assert sum(row["examples"] for row in report.rows) == 297
    by_class = sum(row["examples"] * row["top1_error"] for row in report.rows) / 297
    assert by_class == pytest.approx(report.values["top1_error"])


def test_names_of_classes_are_plotted_as_they_are():
    """A folder may have any name, even an invalid formula."""
    names = ["$\\frac$", "$5 & $6", "_"]
    classification.draw_confusion(np.eye(3, dtype=int), names).savefig(io.BytesIO())
