"""A run as the user sees it: outputs, resuming, and what stops it with which message."""

import dataclasses
import gzip
import io
import json
import re
import shutil
import types

import numpy as np
import pytest
from PIL import Image
from tensorboard.compat.proto import event_pb2
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow

from cutmix_jax import UserError, run, tasks, train
from cutmix_jax import config as config_lib
from cutmix_jax.data import resident
from cutmix_jax.lock import workdir_lock
from cutmix_jax.models import create_model
from cutmix_jax.parallel import create_mapping
from cutmix_jax.tasks.classification import Classification
from tests.commands import SMALL, checkpoint_digest, run_main, small_config, write_photographs

RESULTS = {
    *("config", "params", "epochs", "train_examples", "top1_error_last", "top5_error_last"),
    *("top1_error_best", "top5_error_best", "best_epoch", "loss_last", "images_per_second"),
    *("seconds", "devices"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of two epochs: its folder and its output."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    more = ("--config.held_out=100", "--config.loggers=('tensorboard',)", "--profile=3:3")
    done = run_main(f"--workdir={folder}", *SMALL, *more)
    assert (done.returncode, done.stderr) == (0, "")
    return folder, done.stdout


def test_a_run_leaves_all_its_outputs(finished):
    folder, printed = finished
    results = json.loads((folder / "results.json").read_text())
    assert results.keys() > RESULTS
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2]
    assert results["top1_error_last"] == records[-1]["test_top1_error"]
    best = min(record["test_top1_error"] for record in records)
    assert results["top1_error_best"] == best
    # Of equally good epochs the last one is chosen.
    chosen = min(reversed(records), key=lambda record: record["held_out_top1_error"])
    assert results["top1_error_held_out"] == chosen["test_top1_error"]
    for picture in ("mixed.png", "error.png"):
        with Image.open(folder / picture) as image:
            assert min(image.size) > 300
    assert "layer1_0/conv1/kernel" in (folder / "parameters.txt").read_text()
    # The method in words, the devices, the sizes, and the errors, the last epoch's first.
    for words in ("CutMix", "320 train, 297 test, 100 held-out", "1 x cpu", "learning rate 0.1"):
        assert words in printed
    assert printed.index("last epoch") < printed.index("held-out choice")
    assert printed.index("held-out choice") < printed.index("best on test")


def test_checkpoints_may_be_fewer_than_epochs(tmp_path):
    config = small_config(epochs=3, checkpoint_epochs=2)
    results = run.train(config, tmp_path)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()}
    assert kept == {records[1]["step"], records[2]["step"]}
    errors = [record["test_top1_error"] for record in records]
    assert results["top1_error_median_10"] == np.median(errors)


@pytest.mark.parametrize(
    ("mix", "mixed"),
    [
        # The probability rises from 0: the first batch is never mixed, a later one is.
        ({"mix.schedule": "linear"}, True),
        ({"mix.prob": 0.0}, False),
        ({"mix.name": "feature_cutmix", "mix.layers": (2,)}, False),
    ],
)
def test_the_sheet_shows_a_batch_that_is_mixed(monkeypatch, mix, mixed):
    task = tasks.create_task(small_config(epochs=2, **mix), create_mapping("pmap", 1))
    arrays = task.mapping.replicate(task.data.arrays["train"])
    traced, prepare = [], Classification.make_batch
    mapped = task.mapping.map(lambda step, arrays, xs: prepare(task, arrays, xs, step))
    monkeypatch.setattr(Classification, "make_batch", lambda *a: (traced.append(1), prepare(*a))[1])
    shown = task.first_mixed(0, arrays)
    assert len(traced) == 1
    read = [xs for epoch in (0, 1) for xs in task.data.train_batches(epoch)]
    batches = [
        mapped(task.mapping.replicate(np.int32(at)), arrays, task.mapping.shard(xs))
        for at, xs in enumerate(read)
    ]
    pasted = [bool((batch["plans"][0].box[:, 1] > 0).any()) for batch in batches]
    at = pasted.index(True) if mixed else 0
    assert (at > 0) == mixed
    np.testing.assert_array_equal(shown["image"], batches[at]["image"])
    np.testing.assert_array_equal(shown["target"], batches[at]["target"])


def test_tensorboard_can_read_the_events(finished):
    folder, _ = finished
    (path,) = (folder / "tensorboard").iterdir()
    reader = pywrap_tensorflow.PyRecordReader_New(str(path).encode())
    values = {}
    while True:
        try:
            reader.GetNext()
        except pywrap_tensorflow.errors.OutOfRangeError:
            break
        event = event_pb2.Event.FromString(reader.record())
        values |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    for name in ("train_loss", "test_top1_error", "learning_rate", "images_per_second"):
        assert values[name, last["step"]] == pytest.approx(last[name])


def test_a_profile_has_the_steps_that_were_asked_for(finished):
    folder, printed = finished
    assert f"Steps 4 to 6 are traced in '{folder / 'profile'}'." in printed
    (path,) = (folder / "profile").rglob("*.trace.json.gz")  # what Perfetto reads
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    steps = {int(e["args"]["step_num"]) for e in events if e.get("name") == "train"}
    assert steps == {3, 4, 5}  # as many steps were taken before each


def test_a_finished_run_prints_its_results_again_and_how_to_start_over(finished):
    folder, printed = finished
    again = run_main(f"--workdir={folder}", "--config.held_out=100", *SMALL)
    assert again.returncode == 0
    assert "is finished" in again.stdout
    assert "--workdir" in again.stdout
    assert re.findall(r"top-1 error.*", again.stdout) == re.findall(r"top-1 error.*", printed)


@pytest.mark.parametrize("which", ["latest", "best"])
def test_evaluation_of_a_workdir_repeats_what_training_measured(finished, which):
    folder, _ = finished
    done = run_main(f"--workdir={folder}", "--mode=evaluate", f"--checkpoint={which}")
    result = json.loads(done.stdout)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    record = records[-1]
    if which == "best":  # by the held-out split, the last of equal ones
        record = min(reversed(records), key=lambda record: record["held_out_top1_error"])
    assert result["checkpoint"] == record["step"]
    assert result["test_top1_error"] == record["test_top1_error"]


def test_an_unreadable_checkpoint_is_named_if_the_best_is_asked_for(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    spoil(folder / "checkpoints" / "5" / "meta" / "metadata", "truncated")
    done = run_main(f"--workdir={folder}", "--mode=evaluate", "--checkpoint=best")
    assert "Checkpoint 5 is damaged" in done.stderr


def test_reading_a_workdir_leaves_what_another_process_is_writing(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    unfinished = folder / "checkpoints" / "11.orbax-checkpoint-tmp"
    unfinished.mkdir()
    assert run_main(f"--workdir={folder}", "--mode=evaluate").returncode == 0
    assert unfinished.exists()


def test_a_workdir_of_another_run_is_refused_by_the_key_that_differs(finished):
    folder, _ = finished
    with pytest.raises(UserError, match=r"config\.learning_rate=0\.1.*has 0\.2.*--workdir"):
        run.train(small_config(held_out=100, learning_rate=0.2), folder)


def test_a_run_does_not_go_on_with_other_images(finished, monkeypatch):
    """It does not count as finished either. But its weights can be evaluated on them."""
    arrays, names = resident.digits()
    others = {
        split: {**part, "image": part["image"][::-1].copy()} for split, part in arrays.items()
    }
    monkeypatch.setattr(resident, "digits", lambda size: (others, names))
    folder, _ = finished
    with pytest.raises(UserError, match=r"contains a run on other images.*config\.data_dir"):
        run.train(small_config(held_out=100), folder)
    assert (
        run.evaluate(small_config(held_out=100), folder, stream=io.StringIO())["checkpoint"] == 10
    )


@pytest.mark.parametrize(
    ("names", "heads", "expected"),
    [
        ("acb", ("output",), r"other words \(3, and 3 here; the first .* is 'c', and 'b' here\)"),
        ("abc", (), r"other classes \(3, and 2 here; the first that differs is 'c', and none here"),
        (None, (), r"other classes\. Give this one"),  # a run from before they were kept
    ],
)
def test_a_run_on_other_classes_is_refused_with_the_first_that_differs(names, heads, expected):
    def task(names):
        data = types.SimpleNamespace(class_names=tuple(names), examples={"train": 9})
        return types.SimpleNamespace(config=small_config(), data=data, word_heads=heads)

    meta = {"config": config_lib.to_plain(small_config()), "data": run.describe_data(task("abc"))}
    run.check_same_run(task("abc"), meta, "there")
    meta["data"] = run.describe_data(task(names or "abc"))
    meta |= {"class_names": list(names)} if names else {}
    with pytest.raises(UserError, match=rf"'there' contains a run with {expected}"):
        run.check_same_run(task("abc" if heads else "ab"), meta, "there")


def test_a_run_says_that_other_libraries_read_its_images(tmp_path):
    config = small_config(**write_photographs(tmp_path / "photographs"))
    task = tasks.create_task(config, create_mapping("pmap", 1))
    meta = run.describe_run(task) | {"progress": {}}
    assert re.search(r"pillow \d+\.\d+", meta["reader"])

    class Checkpoints:
        folder = tmp_path / "checkpoints"

        def restore(self, state, check):
            check(meta)
            return types.SimpleNamespace(step=5), meta, []

    def notes():
        return run.open_run(task, Checkpoints(), run.describe_run(task))[2][1:]

    assert notes() == []
    now = f"Images are now read by {task.data.reader}. So far, they were read by "
    meta["reader"] = "pillow 12.0.0"
    assert notes() == [now + "pillow 12.0.0."]
    meta["reader"] = None  # the images were resident
    assert notes() == []
    del meta["reader"]  # a run from before the reader was named
    assert notes() == [now + "TensorFlow, with other random crops."]


def test_a_second_run_in_one_workdir_is_refused(tmp_path):
    with workdir_lock(tmp_path), pytest.raises(UserError, match="Another run is writing"):
        run.train(small_config(), tmp_path)
    with workdir_lock(tmp_path):
        pass  # free again


def test_a_workdir_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written.*--workdir"):
        run.train(small_config(), tmp_path / "file" / "run")


def spoil(path, how):
    """Truncates a file, or changes one of its bytes."""
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("how", "pattern"),
    [
        ("truncated", "state/ocdbt.process_0/d/*"),
        ("changed", "state/ocdbt.process_0/d/*"),
        ("truncated", "state/_METADATA"),
        ("changed", "meta/metadata"),
    ],
)
def test_a_broken_newest_checkpoint_is_skipped_with_a_message(finished, tmp_path, how, pattern):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    for path in (folder / "checkpoints" / "10").glob(pattern):
        spoil(path, how)
    done = run_main(f"--workdir={folder}", "--config.held_out=100", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "Checkpoint 10 is damaged" in done.stdout
    assert "Going on from step 5 of 10" in done.stdout
    assert checkpoint_digest(folder) == checkpoint_digest(finished[0])
    assert "Traceback" not in done.stderr


def test_a_run_without_a_whole_checkpoint_stops_instead_of_starting_afresh(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    for path in (folder / "checkpoints").glob("*/meta/metadata"):
        spoil(path, "truncated")
    done = run_main(f"--workdir={folder}", "--config.held_out=100", *SMALL)
    assert done.returncode == 1
    assert re.fullmatch(r"error: No checkpoint in .* could be restored: .*\n", done.stderr)


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_nothing(tmp_path):
    done = run_main(f"--workdir={tmp_path}", *SMALL, "--config.learning_rate=1e30")
    assert done.returncode == 1
    message = r"error: The .* not finite .*step \d+.*learning rate 1e\+30.*\n"
    assert re.fullmatch(message, done.stderr)
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))
    assert (tmp_path / "mixed.png").is_file()  # what the model saw


def test_arrays_that_do_not_fit_are_named():
    given = {"fc": {"kernel": np.ones((2, 3)), "scale": np.float32(1)}}
    wanted = {"fc": {"kernel": np.ones((2, 4))}, "conv": {"bias": np.float32(1)}}
    assert run.find_unfit(given, wanted) == ["conv/bias", "fc/kernel", "fc/scale"]


def test_a_run_starts_from_the_weights_of_another(finished):
    config = small_config(init_from=str(finished[0]))
    task = tasks.create_task(config, create_mapping("pmap", 1))
    fresh = train.create_state(task)
    state, notes = run.initialize_from(task, fresh, config.init_from)
    assert notes == [f"Starting from the weights of {finished[0]}."]
    assert not np.array_equal(state.params["fc"]["kernel"], fresh.params["fc"]["kernel"])

    other = dataclasses.replace(task, model=create_model("resnet8x0.25", 7))
    fresh = train.create_state(other)
    state, notes = run.initialize_from(other, fresh, config.init_from)
    assert "head does not fit and starts from new weights" in notes[-1]
    np.testing.assert_array_equal(state.params["fc"]["kernel"], fresh.params["fc"]["kernel"])
    assert not np.array_equal(state.params["conv1"]["kernel"], fresh.params["conv1"]["kernel"])

    wider = dataclasses.replace(task, model=create_model("resnet8x0.5", 10))
    with pytest.raises(UserError, match=r"init_from=.* does not fit .*bn1"):
        run.initialize_from(wider, train.create_state(wider), config.init_from)


def test_heads_of_words_are_only_for_the_same_words(monkeypatch):
    names = ("layer", "lstm", "words")

    def weights(value):
        return {name: {"kernel": np.full(3, value)} for name in names}

    def start(there, word_heads):
        data = types.SimpleNamespace(class_names=there, examples={})
        meta = {"data": run.describe_data(types.SimpleNamespace(data=data))}
        found = {"weights": {"params": weights(1), "batch_stats": {}}}
        monkeypatch.setattr(run, "read_weights", lambda path, name: (found, meta, []))
        task = types.SimpleNamespace(
            config=small_config(),
            data=types.SimpleNamespace(class_names="abc", examples={}),
            heads=("lstm", "words"),
            word_heads=word_heads,
            left_out=(),
        )
        state = train.State(0, weights(0), {}, (), None)
        state, notes = run.initialize_from(task, state, "there")
        return [int(state.params[name]["kernel"][0]) for name in names], notes[1:]

    assert start("abc", ("words",)) == ([1, 1, 1], [])
    expected = ["Its head does not fit and starts from new weights: words."]
    assert start("acb", ("words",)) == ([1, 1, 0], expected)
    assert start("acb", ()) == ([1, 1, 1], [])  # of a classifier, other classes fit, too


def test_weights_of_nowhere_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"init_from is .* holds no checkpoint"):
        run.train(small_config(init_from=str(tmp_path / "no")), tmp_path / "run")
