"""Counters and what is reported of them."""

import io
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


def record(epoch, error):
    return {
        "epoch": epoch,
        "step": 10 * epoch,
        "learning_rate": 0.1,
        "train_loss": 1.0,
        "train_weighted_accuracy": 0.5,
        "test_top1_error": error,
    }


def test_of_equally_good_epochs_the_last_is_the_best():
    history = [record(1, 0.3), record(2, 0.2), record(3, 0.2), record(4, 0.4)]
    assert metrics.best(history, "test")["epoch"] == 3


def test_the_held_out_split_chooses_where_there_is_one():
    assert metrics.choice_error(record(1, 0.3)) == 0.3
    assert metrics.choice_error(record(1, 0.3) | {"held_out_top1_error": 0.1}) == 0.1


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_a_terminal_gets_a_bar_and_a_file_gets_lines(tmp_path, stream):
    reporter = metrics.Reporter(
        tmp_path,
        epochs=2,
        epoch_steps=10,
        batch_size=64,
        step=0,
        history=[],
        primary=True,
        stream=stream,
    )
    reporter.progress(10, 100.0)
    reporter.epoch([record(1, 0.25)])
    reporter.close()
    told = stream.getvalue()
    assert "epoch   1/2" in told
    assert "test error 25.00%" in told
    assert ("images/s" in told) == stream.isatty()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == record(1, 0.25)
