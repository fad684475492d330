"""The evaluation of captions, without a network: its scores, its digest, photographs."""

import dataclasses
import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from cutmix_jax import UserError, tasks
from cutmix_jax.captioning import scores
from cutmix_jax.command_line import read_config
from cutmix_jax.data import shapes
from cutmix_jax.data.captions import fit
from cutmix_jax.evals import Subject, captions
from cutmix_jax.parallel import create_mapping

pytest.importorskip("nltk", reason="needs requirements-captions.txt")
pytest.importorskip("pycocoevalcap", reason="needs requirements-captions.txt")


@pytest.fixture(scope="module")
def subject():
    """20 images with their references, and nothing to run."""
    config = read_config("configs/shapes_captions.py")
    config.update_from_flattened_dict(
        {"model": "resnet8", "image_size": 16, "train_examples": 64, "init_from": "there"}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "TEST_EXAMPLES", 20)
        task = tasks.create_task(config, create_mapping("pmap", 1))
    return Subject(task, None, task.data.arrays["test"])


def options_of(subject, **changed):
    options = subject.task.config.evals.captions.copy_and_resolve_references()
    options.update(changed)
    return options


@pytest.fixture
def evaluate(subject, monkeypatch):
    """Runs the evaluation on a network that writes each image's first reference."""
    written = [texts[0] for texts in subject.task.data.captions["test"]]
    monkeypatch.setattr(captions, "write", lambda *inputs: written)
    return lambda: captions.run(subject, options_of(subject))


def test_meteor_that_fails_is_left_out(evaluate, monkeypatch):
    def fail(references, candidates):
        raise UserError("METEOR failed.")

    monkeypatch.setattr(scores, "java_available", lambda: True)
    monkeypatch.setattr(scores, "_meteor", fail)
    report = evaluate()
    assert report.values["bleu4"] == pytest.approx(100)
    assert "meteor" not in report.values
    assert (report.left_out, report.again) == (("METEOR: METEOR failed.",), True)


def test_the_rows_have_the_scores_of_their_images(evaluate, monkeypatch):
    """Captions are scored once."""
    calls, original = [], scores._each
    monkeypatch.setattr(scores, "java_available", lambda: False)
    monkeypatch.setattr(scores, "_each", lambda *texts: calls.append(1) or original(*texts))
    report = evaluate()
    assert len(calls) == 1
    assert np.mean([row["cider"] for row in report.rows]) == pytest.approx(report.values["cider"])
    assert len(json.loads(report.texts["captions_test_results.json"])) == len(report.rows) == 20


def test_a_terminal_says_what_is_scored(evaluate, monkeypatch):
    monkeypatch.setattr(scores, "java_available", lambda: False)
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    evaluate()
    assert stream.getvalue() == ""
    stream.isatty = lambda: True
    evaluate()
    assert stream.getvalue().startswith("scoring 20 captions ...\n")


def test_the_digest_has_references_and_names(subject):
    """Tokens do not change with a rare word, nor with the name of an image."""

    def digest(**changed):
        data = dataclasses.replace(subject.task.data, **changed)
        task = dataclasses.replace(subject.task, data=data)
        changed = dataclasses.replace(subject, task=task)
        return captions.find_photographs(changed, options_of(subject))[1]

    texts = subject.task.data.captions
    corrected = {**texts, "test": (("A zyzzyva.",), *texts["test"][1:])}
    names = [{"test": [str(i) for i in range(first, first + 20)]} for first in (0, 1)]
    found = [digest(), digest(captions=corrected), digest(names=names[1])]
    assert len(set(found)) == 3
    assert found[0] == digest(names=names[0])  # the numbers that images without names get


def test_the_network_sees_photographs_like_test_images(subject, tmp_path):
    """Only the page shows them shrunk."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 1200, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    options = options_of(subject, images=str(tmp_path))
    ((_, ((fitted, shown),)), _) = captions.find_photographs(subject, options)
    task = subject.task
    np.testing.assert_array_equal(fitted, fit(noise, task.config, task.data.image_shape))
    assert shown.shape == (17, captions.LONGEST, 3)
