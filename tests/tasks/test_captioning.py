"""Captioning as a task: it trains, resumes and evaluates like a classifier, on any devices."""

import dataclasses
import io
import json

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cutmix_jax import UserError, models, run, tasks, train
from cutmix_jax.captioning import nic, scores
from cutmix_jax.command_line import read_config
from cutmix_jax.data import shapes
from cutmix_jax.parallel import create_mapping
from cutmix_jax.tasks.captioning import SCORES, Captioning, check_parts
from tests.commands import checkpoint_digest
from tests.tasks.runs import compile_once, one_step, records, start_from, weights_of

pytest.importorskip("nltk", reason="needs requirements-captions.txt")
pytest.importorskip("pycocoevalcap", reason="needs requirements-captions.txt")

SMALL = {
    "model": "resnet8",
    "image_size": 16,
    "train_examples": 64,
    "batch_size": 16,
    "epochs": 2,
    "eval_every": 1,
    "checkpoint_every": 3,
    "init_from": "there",
    "captions.embed": 6,
    "captions.hidden": 8,
    "captions.beam": 2,
    "captions.min_count": 2,
}


def config_of(**overrides):
    config = read_config("configs/shapes_captions.py")
    config.update_from_flattened_dict(SMALL | overrides)
    return config


@pytest.fixture(scope="module", autouse=True)
def small(module_patch):
    """20 test images, and an encoder that is new."""
    module_patch.setattr(shapes, "TEST_EXAMPLES", 20)
    module_patch.setattr(run, "initialize_from", lambda task, state, path: (state, []))
    module_patch.setattr(scores, "java_available", lambda: False)


@pytest.fixture(scope="module")
def task(module_patch, small):
    return compile_once(module_patch, tasks.create_task(config_of()))


def test_it_is_trained_and_reported(finished):
    folder, results, printed = finished
    first, last = records(folder)
    assert last["train_loss"] < first["train_loss"]
    assert last["test_loss"] < first["test_loss"]
    assert results == json.loads((folder / "results.json").read_text())
    assert results["cider_last"] == last["test_cider"]
    assert results["scores_last"] == {
        name: last[f"test_{name}"] for name in SCORES if name != "meteor"
    }
    assert "model     NIC on resnet8 (frozen), LSTM of 8" in printed
    assert "data      shapes: images 64 train, 20 test; 64 captions to train on" in printed
    assert "Adam, learning rate 0.001" in printed
    assert "METEOR - (not measured)" in printed
    for picture in Captioning.pictures:
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


def test_a_run_keeps_its_words(finished, task):
    words = list(task.data.vocabulary.words)
    assert json.loads((finished[0] / "vocabulary.json").read_text()) == words
    _, meta, _ = run.read_weights(finished[0], name="workdir")
    assert meta["class_names"] == words


def test_the_encoder_stays_as_it_was(finished, task):
    """Its parameters and the statistics of its BatchNorm; those of the decoder move."""
    weights, _, _ = run.read_weights(finished[0], name="workdir")
    before = train.create_state(task)
    for kind, name in (("params", "params"), ("batch_stats", "batch_stats")):
        for module, tree in getattr(before, kind).items():
            after = weights["weights"][name][module]
            if module in Captioning.heads:
                with pytest.raises(AssertionError):
                    chex.assert_trees_all_equal(after, tree)
            else:
                chex.assert_trees_all_equal(after, tree)


def test_what_it_writes_is_evaluated(finished, tmp_path):
    folder, results, _ = finished
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    found = run.evaluate(
        None,
        folder,
        overrides={"evals.captions.images": str(tmp_path)},
        evals="captions",
        stream=io.StringIO(),
    )
    assert found["captions"]["cider"] == pytest.approx(results["cider_last"])
    assert found["captions"]["left_out"] == "METEOR: there is no Java here."
    page = (folder / "evals" / "captions.html").read_text()
    assert page.count("<figure>") == 2 * 20 + 1
    assert "red.png" in page
    written = json.loads((folder / "evals" / "captions_test_results.json").read_text())
    assert [entry["image_id"] for entry in written] == list(range(20))


def test_evaluation_sees_images_as_training_does(finished, task):
    """The loss on the test split, from pixels that are scaled and normalized by hand."""
    weights, _, _ = run.read_weights(finished[0], name="workdir")
    part = task.data.arrays["test"]
    mean, std = (np.float32(task.config.normalize[name]) for name in ("mean", "std"))
    images, tokens = (part["image"] / np.float32(255) - mean) / std, part["tokens"][:, 0]
    logits = task.model.apply(weights["weights"], images, tokens)
    total, count = nic.caption_loss(logits, tokens)
    assert records(finished[0])[-1]["test_loss"] == pytest.approx(float(total / count))


def test_stopped_within_an_epoch_it_ends_with_the_same_bits(finished, start, tmp_path):
    assert start(tmp_path, stop_at=2)[0] is None
    assert start(tmp_path, stop_at=5)[0] is None
    _, printed = start(tmp_path)
    assert "Going on from step 5 of 8" in printed
    assert checkpoint_digest(tmp_path) == checkpoint_digest(finished[0])


class Decoder(nn.Module):
    """A network that is compiled at once: words from the mean color."""

    words: int

    @nn.compact
    def __call__(self, images, tokens, train=False, progress=1.0):
        x = nn.Embed(self.words, 4)(tokens[:, :-1]) + images.mean((1, 2))[:, None, :1]
        return nn.Dense(self.words)(x)


def test_eight_devices_take_the_step_of_one():
    """The loss is divided by the words of the whole batch, not by those of a device."""
    many, one = (
        tasks.create_task(config_of(learning_rate=0.1), create_mapping("pmap", devices))
        for devices in (8, 1)
    )
    (state, counters), (expected, expected_counters) = (
        one_step(dataclasses.replace(task, model=Decoder(task.data.num_classes)))
        for task in (many, one)
    )
    losses = [float(c["loss"].total[0]) / c["loss"].count[0] for c in (counters, expected_counters)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    # Adam's first step is the sign of the gradient: gradients near 0 may differ.
    momenta = [jax.tree.leaves(s.opt_state) for s in (state, expected)]
    for a, b in zip(*momenta, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_scores_are_those_of_the_captions(task):
    """The references themselves score as well as possible."""
    rows = task.data.arrays["test"]["tokens"][:, 0]
    found = task.score("test", {"tokens": rows[:, 1:]})
    assert found["bleu4"] == pytest.approx(100, abs=8)  # unknown words are lost
    nothing = task.score("test", {"tokens": np.zeros_like(rows)})
    assert nothing["cider"] == nothing["bleu1"] == 0


@pytest.fixture
def broken_meteor(monkeypatch):
    """Java that is there, and METEOR that fails."""

    def fail(references, candidates):
        raise UserError("METEOR failed.")

    monkeypatch.setattr(scores, "java_available", lambda: True)
    monkeypatch.setattr(scores, "_meteor", fail)


@pytest.fixture
def asked(task):
    """The task, with METEOR asked for."""
    config = task.config.copy_and_resolve_references()
    config.captions.meteor = True
    return dataclasses.replace(task, config=config)


def test_meteor_that_fails_is_missing(asked, broken_meteor, capsys):
    rows = asked.data.arrays["test"]["tokens"][:, 0]
    found = asked.score("test", {"tokens": rows[:, 1:]})
    assert found.keys() == SCORES.keys() - {"meteor"}
    assert capsys.readouterr().err == (
        "METEOR is not measured: METEOR failed. --config.captions.meteor=False leaves it out.\n"
    )


@pytest.mark.parametrize("process", [0, 1])
def test_only_the_first_process_starts_meteor(process, asked, monkeypatch):
    """It takes 2 GB of memory, and the first process writes the results."""
    monkeypatch.setattr(scores, "java_available", lambda: True)
    monkeypatch.setattr(scores, "_meteor", lambda references, candidates: 20.0)
    monkeypatch.setattr(jax, "process_index", lambda: process)
    rows = asked.data.arrays["test"]["tokens"][:, 0]
    found = asked.score("test", {"tokens": rows[:, 1:]})
    assert found.get("meteor") == (20.0 if process == 0 else None)


def test_it_starts_from_the_encoder_of_a_classifier(task, monkeypatch):
    weights = weights_of(models.create_model("resnet8", 7), side=16)
    assert {*Captioning.word_heads} < {*Captioning.heads}
    state, notes = start_from(task, weights, monkeypatch)
    assert notes[1] == (
        "Its head does not fit and starts from new weights: lstm, output, project, project_norm, "
        "words."
    )
    for name, tree in weights["params"].items():
        if name != "fc":
            chex.assert_trees_all_equal(state.params[name], tree)


def test_the_rate_of_the_encoder_is_one_of_its_own():
    config = config_of(**{"captions.finetune": True, "head_lr_factor": 10.0})
    optimizer = Captioning.create_optimizer(config, lambda step: 0.01)
    params = {name: {"kernel": jnp.ones(2)} for name in ("conv1", "lstm")}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(updates["conv1"]["kernel"], -0.01, rtol=1e-4)
    np.testing.assert_allclose(updates["lstm"]["kernel"], -0.1, rtol=1e-4)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("init_from", None, "would stay random"),
        ("stochastic_depth", 0.5, "runs as in evaluation"),
        ("norm.groups", 2, "runs as in evaluation. Leave it at 1"),
        ("batch_size", 1, "fewer than two captions at a time.*batch_size=2 "),
        ("accumulate", 16, "fewer than two captions at a time.*batch_size=32 "),
        ("mix.name", "cutmix", "does not use it"),
        ("dataset", "digits", "has no captions"),
        ("model", "resnet50", "too small for resnet50"),
        ("normalize.mean", (0.5, 0.5), "2 values"),
        ("captions.beam", 0, "captions.beam"),
        ("captions.length_power", -1.0, "captions.length_power"),
    ],
)
def test_what_it_cannot_use_is_refused(key, value, message):
    config = config_of(**{key: value})
    if key == "normalize.mean":
        config.normalize.std = value
    with pytest.raises(UserError, match=message):
        tasks.create_task(config, create_mapping("pmap", 1))


def test_batch_norm_sees_two_captions_at_a_time():
    """One alone is normalized to zero: the LSTM would not see the image."""
    check_parts(config_of(batch_size=40), devices=20)
    check_parts(config_of(batch_size=20, sync_batch_norm=True), devices=20)
    with pytest.raises(UserError, match=r"batch_size=40 .*or set --config.sync_batch_norm=True"):
        check_parts(config_of(batch_size=20), devices=20)
    with pytest.raises(UserError, match="fewer than two"):
        check_parts(config_of(batch_size=20, accumulate=20, sync_batch_norm=True), devices=1)


def test_bfloat16_gives_logits_and_losses_in_float32(task):
    config = config_of(dtype="bfloat16")
    model = Captioning.create_model(config, task.data)
    init = dataclasses.replace(task, model=model).init
    weights = jax.eval_shape(init, jax.random.key(0))
    images, tokens = jnp.zeros((2, 16, 16, 3)), jnp.ones((2, 5), jnp.int32)
    logits = jax.eval_shape(model.apply, weights, images, tokens)
    assert logits.dtype == jnp.float32
    assert jax.eval_shape(nic.caption_loss, logits, tokens)[0].dtype == jnp.float32


def test_the_config_of_coco_is_the_papers_protocol():
    config = read_config("configs/captions.py:resnet101")
    assert (config.model, config.task, config.dataset) == (
        "resnet101",
        "captioning",
        "coco_captions",
    )
    assert (config.batch_size, config.learning_rate, config.epochs) == (20, 1e-3, 100)
    assert (config.captions.beam, config.captions.embed, config.captions.hidden) == (20, 100, 300)
    with pytest.raises(UserError, match="one MODEL was expected"):
        read_config("configs/captions.py:resnet50,nic")
