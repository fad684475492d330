"""Counters and what is reported of them."""

import json

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from sklearn.metrics import log_loss, top_k_accuracy_score

from cutmix_jax import metrics


def test_evaluation_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(100, 7)).astype(np.float32)
    labels = rng.integers(0, 7, 100)
    mask = np.arange(100) < 80  # the rest is padding
    counters = jax.device_get(metrics.eval_counters(logits, jnp.asarray(labels), mask))
    totals = metrics.Totals()
    totals.add(counters)
    means = totals.means()
    probabilities = np.array(jax.nn.softmax(logits[:80].astype(np.float64)))
    assert means["loss"] == pytest.approx(log_loss(labels[:80], probabilities, labels=range(7)))
    for k in (1, 5):
        accuracy = top_k_accuracy_score(labels[:80], logits[:80], k=k, labels=range(7))
        assert means[f"top{k}_error"] == pytest.approx(1 - accuracy)


def test_top5_of_few_classes_is_never_wrong():
    counters = metrics.eval_counters(jnp.zeros((4, 3)), jnp.array([0, 1, 2, 2]), jnp.ones(4, bool))
    assert float(counters["top5_error"].compute()) == 0


def test_totals_survive_json_exactly():
    totals = metrics.Totals()
    totals.add({"loss": metrics.Average(total=np.float32(0.1), count=np.int32(3))})
    again = metrics.Totals(json.loads(json.dumps(totals.values)))
    assert again.values == totals.values
