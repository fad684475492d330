"""What a run reports on its way."""

import io
import json

import pytest

from cutmix_jax.reporter import Reporter, describe_speed


def record(epoch, error):
    return {
        "epoch": epoch,
        "step": 10 * epoch,
        "learning_rate": 0.1,
        "train_loss": 1.0,
        "train_weighted_accuracy": 0.5,
        "test_top1_error": error,
    }


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_a_terminal_gets_a_bar_and_a_file_gets_lines(tmp_path, stream):
    reporter = Reporter(
        tmp_path,
        epochs=2,
        epoch_steps=10,
        batch_size=64,
        step=0,
        history=[],
        primary=True,
        stream=stream,
    )
    reporter.step(10, 100.0)
    reporter.epoch(record(1, 0.25), "test error 25.00%")
    reporter.close()
    printed = stream.getvalue()
    assert "epoch   1/2" in printed
    assert "test error 25.00%" in printed
    assert ("images/s" in printed) == stream.isatty()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == record(1, 0.25)


def test_the_speed_is_told_with_what_is_known_of_the_chip():
    found = {"images_per_second": 5740.0, "model_flops_utilization": 0.1384}
    assert describe_speed(found | {"peak_memory_mib": 23456.7}) == (
        "  5,740 images/s (13.8% of the peak)  23,457 MiB"
    )
    assert describe_speed(dict.fromkeys(found)) == describe_speed({}) == ""
