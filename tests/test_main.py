"""The command line: an error is one line with the remedy, before any training."""

import collections
import json
import pathlib
import re
import subprocess
import sys

import pytest
from absl import flags

import main
from cutmix_jax import UserError, loggers, profiler, run
from tests.commands import REPOSITORY, SMALL, environment, run_main, small_config


@pytest.fixture
def command_line(monkeypatch):
    """Parses a command line like `main.py`, and resets the flags afterwards."""
    monkeypatch.setattr(sys, "argv", sys.argv)

    def parse(*arguments):
        return main.parse(["main.py", *arguments])

    yield parse
    for name in list(flags.FLAGS):
        if name.startswith("config."):
            delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    for flag in flags.FLAGS:
        flags.FLAGS[flag].unparse()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--config.lerning_rate=1"], r"no config key 'lerning_rate' .*'learning_rate'"),
        (["--config.augment.pda=1"], r"no config key 'augment.pda' .*'augment.pad'"),
        (["--config.batch_size=many"], r"config\.batch_size=many.*invalid literal"),
        (["--config", "nowhere.py"], r"No such file or directory: 'nowhere.py'"),
        (
            ["--config", f"{REPOSITORY}/configs/cifar.py:a,b,c"],
            r"has 3 parts.*MODEL,METHOD",
        ),
        (["--config", f"{REPOSITORY}/configs/cifar10.py:,cutmx"], r"'cutmx' \(the nearest are"),
        (["--config", f"{REPOSITORY}/configs/cifar.py:,baseline+cutmix"], r"joins 'baseline' with"),
        (["--mode=tain"], r"should be one of <train\|evaluate\|list>"),
        (["--wrkdir=x"], r"Unknown command line flag 'wrkdir'"),
        (["configs/cifar.py"], r"'configs/cifar.py' is not a flag\. Write --config FILE"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_and_status_2(command_line, capsys, arguments, reason):
    with pytest.raises(SystemExit) as stop:
        command_line(*arguments)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert re.fullmatch(rf"error: .*{reason}.*\n", message)


def test_overrides_may_stand_before_the_config(command_line):
    command_line("--config.seed=3", "--config", f"{REPOSITORY}/configs/cifar.py:resnet20,baseline")
    assert main.CONFIG.value.seed == 3
    assert main.CONFIG.value.model == "resnet20"
    assert main.CONFIG.value.mix.name == "none"


def test_the_workdir_is_named_after_what_changes_the_result(command_line):
    config = f"--config={REPOSITORY}/configs/cifar.py:resnet20,cutmix"
    command_line(config, "--config.epochs=3", "--config.data_dir=/data", "--config.seed=7")
    name = "cifar-resnet20,cutmix-epochs=3-seed7"
    assert main.default_workdir() == pathlib.Path("runs") / name


def test_the_default_is_digits_with_cutmix(command_line):
    command_line()
    assert (main.CONFIG.value.dataset, main.CONFIG.value.mix.name) == ("digits", "cutmix")
    assert main.default_workdir() == pathlib.Path("runs/digits-seed0")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"learning_rate": -0.1}, r"config\.learning_rate is -0\.1.*finite number of at least 0"),
        ({"learning_rate": float("nan")}, r"config\.learning_rate is nan.*finite number"),
        ({"weight_decay": float("inf")}, r"config\.weight_decay is inf.*finite number"),
        ({"epochs": 0}, r"config\.epochs is 0.*at least 1"),
        ({"batch_size": -64}, r"batch_size.*-64.*at least 1"),
        ({"batch_size": 1000}, r"320.*batch_size"),
        ({"label_smoothing": 2.0}, r"config\.label_smoothing is 2\.0.*at most 1"),
        ({"lr_drops": (0.9, 0.5)}, r"config\.lr_drops .*rising"),
        ({"lr_drops": ("a",)}, r"config\.lr_drops .*rising"),
        ({"ema": 1.0}, r"config\.ema is 1\.0.*below 1"),
        ({"warmup_epochs": 3.0}, r"config\.warmup_epochs is 3.*at most 2"),
        ({"warmup_epochs": 2.0, "schedule": "cosine"}, r"config\.warmup_epochs is 2.*at most 1"),
        ({"schedule": "stairs"}, r"config\.schedule is 'stairs'.*'step', 'cosine'"),
        ({"mapping": "xmap"}, r"config\.mapping is 'xmap'.*'auto', 'pmap', 'shard_map'"),
        ({"dtype": "float16"}, r"config\.dtype is 'float16'.*'bfloat16'"),
        ({"normalize.std": (0.0,)}, r"config\.normalize\.std is .*above 0"),
        ({"normalize.mean": (0.5, 0.5)}, r"config\.normalize has 2 means and 1"),
        (
            {"normalize.mean": (0.5, 0.5), "normalize.std": (0.5, 0.5)},
            r"normalize has 2 values.*1 channels",
        ),
        ({"model": "resnet21"}, r"no model 'resnet21'.*nearest"),
        ({"model": "resnet50"}, r"Images of 8 x 8 pixels are too small for resnet50"),
        ({"mix.name": "cutmx"}, r"config\.mix.*'cutmx'.*cutmix"),
        ({"mix.alpha": -1.0}, r"config\.mix.*alpha.*-1"),
        ({"mix.prob": 1.5}, r"config\.mix.*prob.*1\.5"),
        ({"accumulate": 3}, r"batch_size is 64.*accumulate=3.*multiple of"),
        ({"dataset": "cifr10", "normalize.mean": (0.5,)}, r"cifr10.*cifar10"),
        ({"dataset": "cifar10", "data_dir": "/nowhere"}, r"/nowhere"),
        ({"held_out": 1500}, r"held_out"),
    ],
)
def test_values_that_no_run_can_use_are_refused_before_training(tmp_path, overrides, expected):
    with pytest.raises(UserError) as refused:
        run.train(small_config(**overrides), tmp_path)
    message = str(refused.value)
    assert re.search(expected, message), message
    assert "\n" not in message
    assert not list(tmp_path.iterdir())


def test_the_process_ends_with_status_1_and_without_traceback(tmp_path):
    done = run_main(f"--workdir={tmp_path}", *SMALL, "--config.batch_size=60", devices=8)
    assert done.returncode == 1
    assert re.fullmatch(r"error: .*batch_size.*60.*\n", done.stderr)


def test_evaluating_nothing_says_what_to_do(tmp_path):
    done = run_main(f"--workdir={tmp_path}", "--mode=evaluate")
    assert done.returncode == 1
    assert re.fullmatch(r"error: .*has no checkpoint\. Train first.*\n", done.stderr)


def test_a_run_on_digits_never_imports_tensorflow(tmp_path):
    script = tmp_path / "traced.py"
    arguments = [*SMALL, "--config.loggers=('tensorboard',)"]
    script.write_text(
        "import runpy, sys\n"
        f"sys.argv = ['main.py', '--workdir={tmp_path / 'run'}', *{arguments!r}]\n"
        "try:\n"
        f"    runpy.run_path({str(REPOSITORY / 'main.py')!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "assert 'tensorflow' not in sys.modules\n"
        "print('checked')\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment()
    )
    assert "checked" in done.stdout, done.stderr


def run_list(*arguments):
    """Runs `main.py --mode list` in a process that would notice an import of jax."""
    script = (
        "import runpy, sys\n"
        f"sys.argv = ['main.py', '--mode=list', *{list(arguments)!r}]\n"
        "try:\n"
        f"    runpy.run_path({str(REPOSITORY / 'main.py')!r}, run_name='__main__')\n"
        "finally:\n"
        "    assert not {'jax', 'flax'} & set(sys.modules), 'imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_list_as_json_has_every_row_of_the_paper():
    listed = json.loads(run_list("--json"))
    rows = collections.Counter(row["table"] for row in listed)
    expected = {"3": 13, "4": 6, "5": 15, "6": 4, "7": 5, "8": 7}
    expected |= {"figure-3-left": 6, "figure-3-right": 5, "9": 16}
    # Table 10 has both detectors and the captioner, and Tables 1 and A1 repeat one each.
    expected |= {"10": 4 * 3, "1": 4, "A1": 4}
    assert rows == expected
    known = {(row["table"], row["row"]): row for row in listed}
    cutmix = known["3", "ResNet-50 + CutMix"]
    assert cutmix["config"] == "configs/imagenet.py:resnet50,cutmix"
    assert (cutmix["params"], cutmix["top1_error"], cutmix["top5_error"]) == (25557032, 21.40, 5.92)
    assert (cutmix["a100_chips"], cutmix["tpu_v4_chips"]) == (8, 4)
    # By hand: three passes, 300 epochs, at 16,600 images per second, within a tenth.
    assert cutmix["a100_hours"] == pytest.approx(300 * 1281167 / 16600 / 3600, rel=0.1)
    assert known["7", "Baseline"]["top5_error"] is None
    assert known["figure-3-right", "layer 4 (layer3)"]["top1_error"] is None
    assert known["3", "ResNet-50 + DropBlock"]["epochs"] == 270
    found = known["9", "VGG-GAP + CutMix, CUB-200-2011"]
    assert found["config"] == "configs/wsol.py:vgg16_gap,cutmix,cub"
    assert (found["loc_acc"], found["top1_error"], found["epochs"]) == (52.53, None, 600)
    # Maps of 14x14 in the last stage take half as much more; the head has 200 classes.
    birds, plain = known["9", "ResNet-50 + CAM, CUB-200-2011"], cutmix
    assert 1.4 < birds["flops"] / plain["flops"] < 1.6
    assert plain["params"] - birds["params"] == 800 * 2049


def test_a_detector_of_the_list_names_the_classifier_that_it_starts_from():
    known = {(row["table"], row["row"]): row for row in json.loads(run_list("--json"))}
    row = known["10", "CutMix-trained, SSD"]
    assert (row["task"], row["config"]) == ("ssd", "configs/voc.py:resnet50,ssd")
    assert row["backbone"] == "configs/imagenet.py:resnet50,cutmix"
    assert (row["ssd_map"], row["faster_rcnn_map"], row["top1_error"]) == (77.6, None, None)
    # By hand: three passes of 17.8 GFLOP for 120k steps of 32 images, at 16 % of the peak.
    assert row["a100_hours"] == pytest.approx(3 * 17.8 * 3.84e6 / 312e3 / 0.16 / 3600, abs=0.06)
    plain = known["3", "ResNet-50 + CutMix"]
    assert (plain["task"], plain["backbone"], plain["scores"]) == ("classification", None, None)
    text = run_list()
    assert re.search(r"\nTable 10 +params +mAP +8 A100", text)
    assert re.search(r"  CutMix-trained, SSD +31,662,894 +77\.60 ", text)
    assert "configs/voc.py:resnet50,ssd\n      from configs/imagenet.py:resnet50,cutmix\n" in text


def test_the_captioner_of_the_list_has_the_scores_of_each_table():
    known = {(row["table"], row["row"]): row for row in json.loads(run_list("--json"))}
    row = known["10", "CutMix-trained, NIC"]
    assert (row["task"], row["config"]) == ("captioning", "configs/captions.py:resnet50")
    assert row["backbone"] == "configs/imagenet.py:resnet50,cutmix"
    assert row["scores"] == {"bleu1": 64.2, "bleu4": 24.9}
    assert (row["ssd_map"], row["top1_error"], row["epochs"]) == (None, None, 100)
    assert known["A1", "ResNet-50 + CutMix, NIC"]["scores"] == {
        "bleu1": 64.2, "bleu2": 46.3, "bleu3": 33.6, "bleu4": 24.9, "meteor": 23.1,
        "rouge_l": 49.0, "cider": 77.6,
    }  # fmt: skip
    # By hand: one pass of 7.94 GFLOP through the encoder, three of 0.148 through the rest, for 100
    # epochs of 414,113 captions, at 16 % of the peak. Three passes of all would be 5.6 hours.
    hours = (7.94 + 3 * 0.148) * 41.4113e6 / 312e3 / 0.16 / 3600
    assert row["a100_hours"] == pytest.approx(hours, abs=0.06)
    text = run_list()
    assert re.search(r"\nTable 10 +params +BLEU-1 +BLEU-4 +8 A100", text)
    assert re.search(r"  CutMix-trained, NIC +28,204,232 +64\.20 +24\.90 ", text)
    assert re.search(r"\nTable A1 +params +CIDEr +8 A100", text)
    assert re.search(r"  ResNet-50 \+ CutMix, NIC +28,204,232 +77\.60 +1 x", text)
    assert "configs/captions.py:resnet50\n      from configs/imagenet.py:resnet50,cutmix\n" in text


def test_the_list_for_reading_fits_100_columns_and_names_every_config():
    text = run_list()
    assert max(map(len, text.splitlines())) <= 100
    for row in json.loads(run_list("--json")):
        assert f"      {row['config']}\n" in text
    assert re.search(r"PyramidNet-110 \(alpha=64\) +1,725,300 +19\.85 +4\.66", text)
    assert "estimate" in text


def test_json_needs_the_list(tmp_path):
    done = run_main(f"--workdir={tmp_path}", "--json")
    assert done.returncode == 1
    assert re.fullmatch(r"error: --json needs --mode list.*\n", done.stderr)


@pytest.mark.parametrize("text", ["100", "100:0", "-1:5", "1:2:3", "a:b", ""])
def test_a_profile_is_two_numbers(text):
    with pytest.raises(UserError, match=rf"--profile is '{text}', but START:COUNT was expected"):
        profiler.read_steps(text)


def test_a_profile_is_of_steps_that_the_run_takes(tmp_path):
    assert profiler.read_steps("0:010") == (0, 10)
    with pytest.raises(UserError, match=r"--profile=8:3 ends at step 11, but the run has 10"):
        run.train(small_config(), tmp_path, profile=(8, 3))
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"--profile=3:3 begins at step 3, .* goes on from step 5"):
        profiler.Profiler(tmp_path, 3, 3).check(5, 10)


def test_a_logger_that_does_not_exist_or_is_not_installed_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"loggers is \('wandbb',\), but names among 'tensorboard'"):
        run.train(small_config(loggers=("wandbb",)), tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    expected = (
        "config.loggers=mlflow needs mlflow, which is not installed: python -m pip install mlflow"
    )
    with pytest.raises(UserError, match=expected):
        loggers.check_installed(("mlflow",))
