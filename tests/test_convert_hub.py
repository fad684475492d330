"""A run becomes a folder that timm loads, with a model card that the Hugging Face Hub reads."""

import json
import math
import re

import jax
import numpy as np
import pytest
import yaml
from PIL import Image

from cutmix_jax import UserError, command_line, convert
from cutmix_jax.checkpoint import Checkpoints
from cutmix_jax.config import to_plain
from cutmix_jax.convert import __main__ as command
from cutmix_jax.convert import hub
from cutmix_jax.data import loading
from cutmix_jax.models import create_model
from tests import references
from tests.commands import REPOSITORY, small_config

pytest.importorskip("safetensors", reason="safetensors is missing")

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")
RECORD = {"epoch": 2, "step": 8, "test_top1_error": 0.25, "test_top5_error": 0.1, "test_loss": 0.9}
LOADED_BY_TIMM = {  # channels and class names
    "resnet18": (3, NAMES),
    "se_resnet50": (1, tuple("0123456789")),
}


def imagenet_config(model="resnet18", file="imagenet", **overrides):
    config = command_line.read_config(f"{REPOSITORY}/configs/{file}.py:{model},cutmix", [])
    config.update_from_flattened_dict({"data_dir": "/home/me/images", "epochs": 4, **overrides})
    return config


def write_run(folder, config, channels=3, class_names=NAMES, step=8, results=None):
    """A workdir as training leaves it after two of four epochs, with made-up weights."""
    model = create_model(config.model, len(class_names))
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 64, 64, channels)))
    empty = convert.to_torch(jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes))
    arrays = {key: references.fill(key, array.shape) for key, array in empty.items()}
    variables = convert.from_torch(arrays, config.model).variables
    meta = {
        "config": to_plain(config),
        "data": {"examples": {"train": 1200, "test": 300}},
        "class_names": list(class_names),
        "progress": {"history": [{"epoch": 1, "step": 4}, RECORD]},
    }
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(step, variables | {"step": np.int32(step)}, meta, error=0.25)
    if results:
        (folder / "results.json").write_text(json.dumps(results))
    return model, variables


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir of an ImageNet network, its folder for the Hub, and the notes."""
    folder = tmp_path_factory.mktemp("run")
    results = {"seconds": 7200.0, "devices": 8, "device_kind": "H100", "versions": {"jax": "0.10"}}
    write_run(folder, imagenet_config(), results=results)
    output = folder / "resnet18.cutmix"
    return folder, output, convert.export_folder(folder, output)[2]


def read_card(folder):
    """The metadata and the text of a model card."""
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


class TestFolder:
    def test_it_has_what_timm_and_the_hub_read(self, run):
        folder, output, notes = run
        assert sorted(path.name for path in output.iterdir()) == [
            "README.md",
            "config.json",
            "model.safetensors",
        ]
        assert notes == []
        convert.export_weights(folder, folder / "alone.safetensors")
        alone = (folder / "alone.safetensors").read_bytes()
        assert (output / "model.safetensors").read_bytes() == alone

    def test_the_config_of_timm(self, run):
        """timm 1.0.31 loads this one; see `TestWithTimm`."""
        assert json.loads((run[1] / "config.json").read_text()) == {
            "architecture": "resnet18",
            "num_classes": 7,
            "num_features": 512,
            "global_pool": "avg",
            "label_names": ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"],
            "pretrained_cfg": {
                "custom_load": False,
                "input_size": [3, 224, 224],
                "interpolation": "bilinear",
                "crop_pct": 0.875,
                "crop_mode": "center",
                "mean": [0.485, 0.456, 0.406],
                "std": [0.229, 0.224, 0.225],
                "fixed_input_size": False,
                "num_classes": 7,
                "first_conv": "conv1",
                "classifier": "fc",
            },
        }

    def test_the_model_card(self, run):
        metadata, text = read_card(run[1])
        assert metadata == {
            "pipeline_tag": "image-classification",
            "tags": ["cutmix_jax", "image-classification", "cutmix"],
            "library_name": "timm",
            "datasets": ["ILSVRC/imagenet-1k"],
            "metrics": ["accuracy"],
            "model-index": [
                {
                    "name": "resnet18.cutmix",
                    "results": [
                        {
                            "task": {
                                "type": "image-classification",
                                "name": "Image classification",
                            },
                            "dataset": {"type": "ILSVRC/imagenet-1k", "name": "ImageNet"},
                            "metrics": [
                                {"type": "accuracy", "name": "Top-1 accuracy", "value": 0.75},
                                {"type": "accuracy", "name": "Top-5 accuracy", "value": 0.9},
                            ],
                        }
                    ],
                }
            ],
        }
        for part in (
            "resnet18 with 7 classes, trained on ImageNet with cutmix",
            "After epoch 2 of 4, on the split `test` of ImageNet.",
            "| Top-1 accuracy | 75.00 % |",
            "the shorter side resized to 256 pixels (bilinear), cropped to 224x224",
            "1,200 images, 4 epochs, batches of 256. It took 2 hours on 8 x H100, with jax 0.10.",
            "| learning_rate | 0.1 |",
            "| mix.name | cutmix |",
        ):
            assert part in text
        assert "/home/me" not in text

    def test_the_best_epoch_was_chosen_on_the_test_split(self, run, tmp_path):
        convert.export_folder(run[0], tmp_path / "best", "best")
        assert (
            "chosen on this split, so its accuracy is optimistic" in read_card(tmp_path / "best")[1]
        )

    def test_weights_that_were_not_measured_have_no_numbers(self, tmp_path):
        """A run that was stopped inside an epoch."""
        values = {"init_from": "/home/me/weights", "seed": 3}
        config = small_config(**values)
        write_run(tmp_path / "run", config, 1, tuple("0123456789"), step=9)
        convert.export_folder(tmp_path / "run", tmp_path / "out")
        metadata, text = read_card(tmp_path / "out")
        assert "model-index" not in metadata
        assert "## Results" not in text
        assert "Training started from other weights." in text
        assert "/home/me" not in text
        assert "| seed | 3 |" in text

    def test_converted_weights_claim_no_training(self, run, tmp_path):
        source, back, output = (tmp_path / name for name in ("m.safetensors", "back", "out"))
        convert.export_weights(run[0], source)
        config = f"{REPOSITORY}/configs/imagenet.py:resnet18,baseline"
        convert.import_weights(source, back, config=config)
        convert.export_folder(back, output)
        metadata, text = read_card(output)
        assert metadata.keys() == {"pipeline_tag", "tags", "library_name"}
        assert "converted from m.safetensors" in text
        assert "## Training" not in text
        assert "label_names" not in json.loads((output / "config.json").read_text())

    def test_files_are_replaced_only_if_asked(self, run, tmp_path):
        card = tmp_path / "README.md"
        card.write_text("mine")
        with pytest.raises(UserError, match=r"README\.md exists: .*--overwrite"):
            convert.export_folder(run[0], tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
        (tmp_path / "config.json").write_text("of another network")
        write_run(tmp_path / "run", small_config(), 1, tuple("0123456789"))
        convert.export_folder(tmp_path / "run", tmp_path, overwrite=True)
        assert "resnet8x0.25" in card.read_text()
        assert not (tmp_path / "config.json").exists()


class TestWithoutTimm:
    @pytest.mark.parametrize(
        ("overrides", "reason"),
        [
            ({"model": "resnet110"}, "timm has no resnet110"),
            ({"model": "pyramidnet200"}, "timm has no pyramidnet200"),
            ({"model": "resnet50x0.5"}, "timm has no resnet50x0.5"),
            ({"last_stride": 1}, "timm has no resnet18 with config.last_stride=1"),
            ({"norm.epsilon": 1e-3}, "has epsilon 1e-05, and this network has .*=0.001"),
            (
                {"image_size": None, "dataset": "flowers", "augment.min_area": None},
                "config.image_size is not set, and flowers has no known size",
            ),
        ],
    )
    def test_the_reason_is_said(self, overrides, reason):
        found = hub.why_not_timm(imagenet_config(**overrides))
        assert re.fullmatch(f".*{reason}", found)

    def test_networks_of_the_paper_are_known(self):
        for model in ("resnet50", "resnet101", "resnext101_32x4d"):
            assert hub.why_not_timm(imagenet_config(model)) is None

    def test_the_folder_has_a_card_and_no_config(self, tmp_path):
        write_run(tmp_path / "run", small_config(), 1, tuple("0123456789"))
        _, _, notes = convert.export_folder(tmp_path / "run", tmp_path / "out")
        assert notes == [
            "timm has no resnet8x0.25. The folder has no config.json, and timm cannot load it."
        ]
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
            "README.md",
            "model.safetensors",
        ]
        metadata, text = read_card(tmp_path / "out")
        assert "library_name" not in metadata
        assert "datasets" not in metadata  # the digits are not on the Hub
        assert "--model resnet8x0.25 --output WORKDIR" in text
        assert "of 1 channels, the shorter side resized to 8 pixels" in text

    def test_only_classifiers(self, tmp_path):
        write_run(tmp_path / "run", small_config(task="ssd"), 1, tuple("0123456789"))
        with pytest.raises(UserError, match=r"is 'ssd', but model cards are .*\.safetensors"):
            convert.export_folder(tmp_path / "run", tmp_path / "out")


class TestPreprocessing:
    @pytest.mark.parametrize(
        ("file", "overrides", "side", "resize", "mode"),
        [
            ("imagenet", {}, 224, 256, "center"),
            ("imagenet_v2", {}, 224, 232, "center"),
            ("imagenet", {"image_size": 128, "eval_resize": None}, 128, 146, "center"),
            ("wsol", {}, 224, 256, "squash"),
            ("digits", {}, 16, 16, "center"),
            ("cifar", {}, 32, 32, "center"),
        ],
    )
    def test_it_is_that_of_the_config(self, file, overrides, side, resize, mode):
        config = command_line.read_config(f"{REPOSITORY}/configs/{file}.py", [])
        config.update_from_flattened_dict(overrides)
        found = hub.preprocessing(config, 3)
        assert found["input_size"] == [3, side, side]
        assert math.floor(side / found["crop_pct"]) == resize
        assert found["crop_mode"] == mode
        assert len(found["mean"]) == len(found["std"]) == 3

    def test_every_size_before_the_crop_is_met(self):
        """timm rounds down: 224 / (224 / 235) may be below 235."""
        for side in range(16, 400, 8):
            for resize in range(side, 2 * side):
                fraction = hub.crop_fraction(side, resize)
                assert math.floor(side / fraction) == resize
                assert fraction == pytest.approx(side / resize, rel=1e-12)


class TestCommandLine:
    def test_a_folder_or_a_file(self, run, tmp_path, capsys):
        folder = str(run[0])
        for output in (f"{tmp_path}/plain", f"{tmp_path}/resnet18.cutmix/", str(tmp_path)):
            assert command.main([folder, "--output", output]) == 0
            out = capsys.readouterr().out
            assert "resnet18, 122 tensors, with a model card" in out
            assert f'"local-dir:{output.rstrip("/")}", pretrained=True' in out
            assert "license" in out
        assert command.main([folder, "--output", f"{tmp_path}/model.onnx"]) == 1
        assert "or a folder, with / at its end" in capsys.readouterr().err

    def test_a_network_that_timm_does_not_have(self, tmp_path, capsys):
        write_run(tmp_path / "run", small_config(), 1, tuple("0123456789"))
        assert command.main([f"{tmp_path}/run", "--output", f"{tmp_path}/out"]) == 0
        out = capsys.readouterr().out
        assert "timm has no resnet8x0.25. The folder has no config.json" in out
        assert "create_model" not in out


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm", reason="timm is missing", exc_type=ImportError)


class TestWithTimm:
    @pytest.mark.parametrize("name", hub.TIMM)
    def test_names_and_shapes_of_weights(self, timm, name):
        torch = pytest.importorskip("torch")
        with torch.device("meta"):
            theirs = timm.create_model(hub.TIMM[name]).state_dict()
        model = create_model(name, 1000)
        shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 64, 64, 3)))
        zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
        ours = convert.to_torch(zeros)
        assert {key: array.shape for key, array in ours.items()} == {
            key: tuple(tensor.shape) for key, tensor in theirs.items()
        }

    @pytest.mark.parametrize("name", LOADED_BY_TIMM)
    def test_timm_loads_it_and_computes_the_same(self, timm, tmp_path, name):
        torch = pytest.importorskip("torch")
        channels, class_names = LOADED_BY_TIMM[name]
        config = imagenet_config(name)
        model, variables = write_run(tmp_path / "run", config, channels, class_names)
        output = tmp_path / "out"
        convert.export_folder(tmp_path / "run", output)
        images = np.random.default_rng(0).normal(size=(2, 64, 64, channels)).astype(np.float32)
        ours = np.asarray(jax.jit(model.apply)(variables, images))
        options = {"num_classes": len(class_names), "in_chans": channels}
        for net in (
            timm.create_model(f"local-dir:{output}", pretrained=True),
            timm.create_model(
                hub.TIMM[name], checkpoint_path=str(output / "model.safetensors"), **options
            ),
        ):
            with torch.no_grad():
                theirs = net.eval()(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()
            assert np.abs(theirs - theirs.mean(0)).max() > 1e-3 * np.abs(theirs).max()
            assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()
        net = timm.create_model(f"local-dir:{output}", pretrained=True)
        assert list(net.pretrained_cfg["label_names"]) == list(class_names)
        expected = hub.preprocessing(config, channels)
        found = timm.data.resolve_model_data_config(net)
        assert json.loads(json.dumps(found)) == expected

    @pytest.mark.parametrize("file", ["imagenet", "imagenet_v2", "imagenet_rsb", "wsol"])
    def test_timm_prepares_the_same_pixels(self, timm, file):
        name = f"{REPOSITORY}/configs/{file}.py"
        config = command_line.read_config(name, [])
        data = hub.preprocessing(config, 3)
        side, squash = data["input_size"][1], data["crop_mode"] == "squash"
        transform = timm.data.create_transform(**data, is_training=False, normalize=False)
        for height, width in ((300, 451), (403, 301), (240, 240)):
            pixels = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), "u1")
            image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
            theirs = transform(image).numpy().transpose(1, 2, 0)
            resize = config.square_resize or config.eval_resize
            ours = loading._central_crop(np.asarray(image), (side, side, 3), resize, squash)
            assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1

    def test_the_hub_reads_the_card(self, run):
        library = pytest.importorskip("huggingface_hub", reason="huggingface_hub is missing")
        card = library.ModelCard.load(run[1] / "README.md")
        found = [(r.metric_name, r.metric_value, r.dataset_name) for r in card.data.eval_results]
        assert found == [("Top-1 accuracy", 0.75, "ImageNet"), ("Top-5 accuracy", 0.9, "ImageNet")]
        assert card.data.library_name == "timm"
