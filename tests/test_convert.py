"""PyTorch weights are converted in both directions unchanged, and misfits are refused."""

import io
import os
import re
import sys

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cutmix_jax import UserError, convert, run, tasks, train
from cutmix_jax.checkpoint import Checkpoints
from cutmix_jax.config import from_plain
from cutmix_jax.convert import __main__ as command
from cutmix_jax.convert import files, names
from cutmix_jax.models import create_model
from cutmix_jax.parallel import create_mapping
from tests.commands import small_config

torch = pytest.importorskip("torch", reason="needs PyTorch")
safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is missing")
torch_models = pytest.importorskip("tests.torch_models")

# The network here, the same in PyTorch, the side of an image, and the entries of its state_dict.
NETS = {
    "resnext50_32x4d": (lambda: torch_models.ResNet((3, 4, 6, 3), groups=32, share=4), 32, 320),
    "se_resnet50": (lambda: torch_models.ResNet((3, 4, 6, 3), se=True), 64, 320 + 4 * 16),
    "resnet110": (lambda: torch_models.ResNet((12, 12, 12), 100), 16, None),
    "resnet20": (lambda: torch_models.ResNet((3, 3, 3), bottleneck=False), 16, None),
    "pyramidnet110": (lambda: torch_models.PyramidNet(110, 64, 100), 16, 23 * 36 + 13),
    "pyramidnet20_48_basic": (
        lambda: torch_models.PyramidNet(20, 48, bottleneck=False),
        15,
        None,
    ),
    "preact_resnet18x0.25": (lambda: torch_models.PreActResNet(width=16), 17, 8 * 12 + 3 + 8),
    "wide_resnet16_2": (lambda: torch_models.WideResNet(16, 2), 14, None),
    "vgg16_gap": (torch_models.VGG16GAP, 32, 2 * 15),
}


def images_of(side, batch=2):
    return np.random.default_rng(0).normal(size=(batch, side, side, 3)).astype(np.float32)


def arrays_of(net):
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


def torch_logits(net, images):
    with torch.no_grad():
        return net(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()


def assert_close(ours, theirs):
    assert np.abs(theirs).max() > 0.1  # the network does not answer the same for every image
    assert np.abs(theirs - theirs.mean(0)).max() > 1e-3 * np.abs(theirs).max()
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("name", NETS)
def test_logits_are_pytorchs_in_both_directions(name):
    build, side, entries = NETS[name]
    net, images = torch_models.randomise(build()), images_of(side)
    arrays = arrays_of(net)
    converted = convert.from_torch(arrays)
    assert converted.model == name  # recognized by names and shapes
    head = net.linear if hasattr(net, "linear") else net.fc
    assert converted.num_classes == head.out_features
    assert entries in (None, len(arrays))
    apply = jax.jit(create_model(name, converted.num_classes).apply)
    assert_close(apply(converted.variables, images), torch_logits(net, images))

    # The other direction: other weights of ours, into a PyTorch network that loads strictly.
    variables = jax.tree.map(lambda leaf: np.flip(leaf, 0), converted.variables)
    there = convert.to_torch(variables, steps=7)
    assert there.keys() == arrays.keys()
    for key, array in there.items():
        assert (array.dtype, array.shape) == (arrays[key].dtype, arrays[key].shape)
        assert array.flags["C_CONTIGUOUS"]
        assert (
            array == 7
            if key.endswith("num_batches_tracked")
            else not np.shares_memory(array, arrays[key])
        )
    net.load_state_dict({key: torch.tensor(array) for key, array in there.items()}, strict=True)
    assert_close(apply(variables, images), torch_logits(net, images))


def test_names_of_the_largest_network_are_as_published():
    """PyramidNet-200 has 23 names per block, 66 blocks, and 13 names around them."""
    with torch.device("meta"):
        net = torch_models.PyramidNet(200, 240, 100)
    model = create_model("pyramidnet200", 100)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images_of(32))
    there = convert.to_torch(jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes))
    assert len(there) == 1531
    assert {key: array.shape for key, array in there.items()} == {
        key: tuple(tensor.shape) for key, tensor in net.state_dict().items()
    }


def test_networks_are_recognized_by_their_shapes():
    """Every network with its own names, wider ones and a narrow one."""
    for name in (
        *("resnet8", "resnet110_basic", "resnet34", "resnext50_32x4d", "ge_resnet50"),
        *("pyramidnet29_8", "resnet20x4", "resnet18_cifar", "resnet50_cifarx2", "resnet18x0.25"),
    ):
        model = create_model(name, 10)
        flat = flatten_dict(
            jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 224, 224, 3)))
        )
        arrays = {
            there: np.broadcast_to(np.float32(0), names.torch_shape(flat[path].shape))
            for path, there in convert.torch_names(flat).items()
        }
        assert convert.infer_model(arrays) == name


@pytest.fixture(scope="module")
def resnet20():
    """A network in PyTorch, and its arrays."""
    net = torch_models.randomise(torch_models.ResNet((3, 3, 3), bottleneck=False))
    return net, arrays_of(net)


def assert_same(variables, arrays):
    """Our variables have exactly these values of PyTorch."""
    there = convert.to_torch(variables)
    wanted = {k: v for k, v in arrays.items() if "num_batches" not in k}
    assert {k for k in there if "num_batches" not in k} == wanted.keys()
    for key, array in wanted.items():
        np.testing.assert_array_equal(there[key], array)


class TestFiles:
    def contents(self, net):
        """The files that the sources save."""
        state = net.state_dict()
        parallel = {f"module.{key}": tensor for key, tensor in state.items()}
        old = {key: tensor for key, tensor in state.items() if "num_batches" not in key}
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9).state_dict()
        return {
            "torchvision": state,
            "the authors": {
                "epoch": 299,
                "arch": "resnet",
                "state_dict": parallel,
                "best_err1": np.float64(21.4),
                "best_err5": torch.tensor(5.92),
                "optimizer": optimizer,
            },
            "wsol": {"architecture": "resnet20", "epoch": 9, "state_dict": state},
            "before 0.4.1": old,
            "twice wrapped": {"model": {f"module._orig_mod.{k}": v for k, v in state.items()}},
        }

    @pytest.mark.parametrize("zipped", [True, False])
    def test_every_source_is_read(self, resnet20, tmp_path, zipped):
        net, arrays = resnet20
        path = tmp_path / "model_best.pth.tar"
        for content in self.contents(net).values():
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
            assert_same(convert.from_torch(convert.read_file(path)).variables, arrays)

    def test_a_note_says_that_resnets_may_be_for_localization(self, resnet20, tmp_path):
        """Weights do not show the stride of the last stage."""
        path = tmp_path / "last.pth.tar"
        torch.save({"architecture": "resnet20", "state_dict": resnet20[0].state_dict()}, path)
        converted = convert.from_torch(convert.read_file(path))
        assert "--config.last_stride=1" in converted.notes[0]

    def test_half_precision_is_read(self, resnet20, tmp_path):
        from safetensors.torch import save_file

        net, _ = resnet20
        halves = {
            k: v.bfloat16() if v.is_floating_point() else v for k, v in net.state_dict().items()
        }
        arrays = {k: v.float().numpy() for k, v in halves.items()}
        torch.save(halves, tmp_path / "half.pth")
        save_file(halves, tmp_path / "half.safetensors")
        for name in ("half.pth", "half.safetensors"):
            found = convert.read_file(tmp_path / name)
            assert_same(convert.from_torch(found).variables, arrays)

    def test_legacy_names_of_timm(self):
        """They are renamed, and a note says that the network strides elsewhere."""
        with torch.device("meta"):
            net = torch_models.ResNet((3, 4, 6, 3), 1000, se=True)
        arrays = {k: np.zeros(v.shape, np.float32) for k, v in net.state_dict().items()}
        legacy = {}
        for key, array in arrays.items():
            key = re.sub(r"^(conv1|bn1)\.", r"layer0.\1.", key)
            key = key.replace(".se.", ".se_module.").replace(
                "fc.", "last_linear.", key.startswith("fc")
            )
            legacy[key] = array
        assert {"layer0.conv1.weight", "last_linear.bias"} < legacy.keys()
        assert "layer1.0.se_module.fc1.weight" in legacy
        converted = convert.from_torch(legacy)
        assert converted.model == "se_resnet50"
        assert "stride in conv1" in converted.notes[0]
        assert_same(converted.variables, arrays)

    def test_a_vgg_of_torchvision_is_a_start(self):
        """Table 9 starts from the features. New layers are named and initialized as in training."""
        net = torch_models.VGG16GAP(1000)
        arrays = {k: v for k, v in arrays_of(net).items() if k.startswith("features")}
        classifier = {
            "classifier.0.weight": np.zeros((8, 2)),
            "classifier.6.weight": np.zeros((7, 8)),
        }
        converted = convert.from_torch(arrays | classifier)
        assert (converted.model, converted.num_classes) == ("vgg16_gap", 7)
        assert converted.new == ("conv6", "fc")
        assert "conv6, fc of vgg16_gap are not in the file" in converted.notes[0]
        params = converted.variables["params"]
        assert params["fc"]["kernel"].shape == (1024, 7)
        assert 0.01 < np.abs(params["fc"]["kernel"]).max() <= 1 / 32
        assert np.std(params["conv6"]["kernel"]) == pytest.approx((2 / 9 / 1024) ** 0.5, rel=0.01)
        there = convert.to_torch(converted.variables)
        for key, array in arrays.items():
            np.testing.assert_array_equal(there[key], array)
        with pytest.raises(UserError, match=r"extra: .*extra"):
            convert.from_torch(arrays | classifier | {"extra": np.zeros(3)})


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda a: a.pop("layer2.1.bn2.running_var"),
                r"missing: layer2\.1\.bn2\.running_var\)",
            ),
            (lambda a: a.update(more=a["fc.bias"]), r"extra: more\)"),
            (
                lambda a: a.update({"conv1.weight": a["conv1.weight"][:, :, :1]}),
                r"conv1\.weight is \(16, 3, 1, 3\), but \(16, 3, 3, 3\) was expected",
            ),
            (
                lambda a: a.update({"fc.weight": a["fc.weight"].astype(np.int64)}),
                r"fc\.weight is int64, but floating point",
            ),
            (
                lambda a: a.update({"fc.bias": a["fc.bias"] * np.nan}),
                r"not finite in fc\.bias: use another",
            ),
        ],
    )
    def test_tensors_that_do_not_fit(self, resnet20, change, message):
        arrays = dict(resnet20[1])
        change(arrays)
        with pytest.raises(UserError, match=message):
            convert.from_torch(arrays)

    def test_another_network_is_refused_in_one_short_sentence(self, resnet20):
        with pytest.raises(UserError) as caught:
            convert.from_torch(resnet20[1], model="pyramidnet20_48")
        message = str(caught.value)
        assert re.search(r"missing: .* and \d+ more; extra: .* more; wrong", message)
        assert message.endswith("Name the network that was saved, with --model or --config.model.")
        assert len(message) < 1500
        assert "\n" not in message

    def test_a_pre_activation_network_without_the_last_norm(self):
        """Widespread code has none. Its weights would be those of another function."""
        arrays = arrays_of(torch_models.PreActResNet(width=4))
        arrays = {key: array for key, array in arrays.items() if not key.startswith("bn.")}
        with pytest.raises(UserError, match=r"not fit preact_resnet18x0\.0625 \(missing: bn\.bias"):
            convert.from_torch(arrays)

    def test_networks_that_are_not_ours(self, resnet20):
        arrays = dict(resnet20[1])
        with pytest.raises(UserError, match=r"no model 'resnt20'"):
            convert.from_torch(arrays, model="resnt20")
        with pytest.raises(UserError, match=r"contains no network .*blocks\.0.*state_dict"):
            convert.from_torch({"blocks.0.attn.qkv.weight": np.zeros((3, 3))})
        del arrays["layer3.2.conv2.weight"]
        with pytest.raises(UserError, match=r"looks like resnet18|looks like .*no model"):
            convert.from_torch(
                {k: v for k, v in arrays.items() if not k.startswith("layer3.2")}
                | {
                    "layer3.2.conv2.weight": np.zeros(1),
                    "layer3.3.conv2.weight": np.zeros(1),
                    "layer3.4.conv2.weight": np.zeros(1),
                }
            )

    @pytest.mark.parametrize("name", ["model.pth", "model.pth.tar", "model.safetensors"])
    def test_broken_files(self, resnet20, tmp_path, name):
        net, arrays = resnet20
        path = tmp_path / name
        if path.suffix == ".safetensors":
            safetensors.save_file(arrays, path)
        else:
            torch.save(net.state_dict(), path, _use_new_zipfile_serialization=".tar" not in name)
        whole = path.read_bytes()
        for content in (b"", b"<html>", whole[:100], whole[: len(whole) // 2], whole[:-20]):
            path.write_bytes(content)
            with pytest.raises(UserError, match=r"cannot be read, .*download it again") as caught:
                convert.read_file(path)
            assert "\n" not in str(caught.value)

    def test_a_pickle_that_runs_code_is_refused(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "executed"),)

        path = tmp_path / "evil.pth"
        for zipped in (True, False):
            torch.save({"state_dict": Evil()}, path, _use_new_zipfile_serialization=zipped)
            with pytest.raises(UserError, match=r"would call posix\.mkdir, but only tensors"):
                convert.read_file(path)
        assert not (tmp_path / "executed").exists()

    def test_things_that_are_not_a_state_dict(self, resnet20, tmp_path):
        path = tmp_path / "model.pth"
        for content, message in (
            ([torch.zeros(3)], "contains a list, but a state_dict was expected"),
            ({}, "contains nothing, but a state_dict was expected"),
        ):
            torch.save(content, path)
            with pytest.raises(UserError, match=message):
                convert.read_file(path)
        with pytest.raises(UserError, match=r"no file or workdir"):
            convert.read_file(tmp_path / "nowhere.pth")

    @pytest.mark.parametrize(
        ("package", "suffix"), [("torch", "pth"), ("safetensors", "safetensors")]
    )
    def test_missing_packages(self, tmp_path, monkeypatch, package, suffix):
        for module in [m for m in sys.modules if m.split(".")[0] == package]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, package, None)
        path = tmp_path / f"model.{suffix}"
        command = rf"\.{suffix} needs {package}.*python -m pip install {package}"
        with pytest.raises(UserError, match=command):
            files.saver(path)
        path.write_bytes(b"")
        with pytest.raises(UserError, match=command):
            convert.read_file(path)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A workdir as training leaves it, with EMA weights, and those weights."""
    folder = tmp_path_factory.mktemp("run")
    mapping = create_mapping("pmap", 1)
    task = tasks.create_task(small_config(ema=0.9), mapping)
    state = train.create_state(task)
    averaged = jax.tree.map(lambda leaf: leaf * 1.5, state.ema)
    state = state.replace(step=np.int32(5), ema=averaged)
    with Checkpoints(folder) as checkpoints:
        meta = run.describe_run(task) | {"progress": {}}
        checkpoints.save(5, mapping.replicate(state), meta, error=0.5)
        worse = state.replace(ema=state.evaluated() | {"params": state.params})
        checkpoints.save(10, mapping.replicate(worse), meta, error=0.6)
    return folder, jax.device_get(averaged)


def measure(folder, **options):
    return run.evaluate(None, folder, stream=io.StringIO(), **options)


class TestWorkdirs:
    @pytest.mark.parametrize("suffix", ["pth", "safetensors"])
    def test_out_and_in_again_measures_the_same(self, workdir, tmp_path, suffix):
        folder, averaged = workdir
        path, back = tmp_path / f"model.{suffix}", tmp_path / "back"
        _, _, notes = convert.export_weights(folder, path, which="best")
        assert notes == ["These are the run's EMA weights (config.ema)."]
        arrays = convert.read_file(path)
        assert_same(averaged, arrays)
        assert arrays["bn1.num_batches_tracked"] == 5
        if suffix == "pth":
            state = torch.load(path, weights_only=True)
            assert all(tensor.is_contiguous() for tensor in state.values())

        overrides = ["--config.image_size=8", "--config.train_examples=320"]
        converted = convert.import_weights(path, back, overrides=overrides)
        assert (converted.model, converted.channels) == ("resnet8x0.25", 1)
        with Checkpoints(back, read_only=True) as checkpoints:
            config = from_plain(checkpoints.read_meta()["config"])
        assert (config.dataset, config.model, config.mix.name) == ("digits", "resnet8x0.25", "none")
        before, after = measure(folder, which="best"), measure(back)
        assert after.pop("checkpoint") == 0
        assert before.pop("checkpoint") == 5
        assert after == pytest.approx(before, rel=1e-6)
        # The config may be overridden, because there is no run to resume.
        assert measure(back, overrides={"image_size": 16})["test_loss"] != after["test_loss"]

    def test_converted_weights_start_a_run_and_are_none(self, workdir, tmp_path):
        folder, averaged = workdir
        path, back = tmp_path / "model.safetensors", tmp_path / "back"
        convert.export_weights(folder, path, which="best")
        convert.import_weights(path, back)
        with pytest.raises(
            UserError, match=r"from model\.safetensors, not a run.*--config\.init_from="
        ):
            run.train(small_config(), back)
        task = tasks.create_task(small_config(), create_mapping("pmap", 1))
        state, _ = run.initialize_from(task, train.create_state(task), str(back))
        for ours, theirs in zip(
            jax.tree.leaves(state.params), jax.tree.leaves(averaged["params"]), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)

    def test_data_of_other_classes_are_refused(self, workdir, tmp_path, resnet20):
        path, back = tmp_path / "model.safetensors", tmp_path / "back"
        safetensors.save_file(resnet20[1], path)
        convert.import_weights(path, back)
        gray = {"normalize.mean": (0.3,), "normalize.std": (0.4,), "image_size": 8}
        with pytest.raises(UserError, match=r"do not fit resnet20 with 10 classes \(params/conv1"):
            measure(back, overrides={"dataset": "digits", **gray})

    def test_a_network_without_norms(self, tmp_path):
        """Its checkpoint has no batch statistics, and can be evaluated."""
        path, back = tmp_path / "vgg.safetensors", tmp_path / "back"
        net, model = torch_models.VGG16GAP(10, width=4), "vgg16_gapx0.0625"
        net.features[0] = torch.nn.Conv2d(1, 4, 3, padding=1)
        arrays = arrays_of(net)
        safetensors.save_file({k: v for k, v in arrays.items() if k.startswith("features")}, path)
        with pytest.raises(UserError, match=r"1000 classes and images with 1 channels.*--config"):
            convert.import_weights(path, back, model)
        safetensors.save_file(arrays, path)
        convert.import_weights(path, back, model, overrides=["--config.image_size=16"])
        assert measure(back)["test_loss"] == pytest.approx(np.log(10), abs=0.1)

    def test_nothing_is_overwritten_unasked(self, workdir, tmp_path):
        folder, _ = workdir
        path, back = tmp_path / "model.safetensors", tmp_path / "back"
        convert.export_weights(folder, path)
        with pytest.raises(UserError, match=r"exists: .*--overwrite"):
            convert.export_weights(folder, path)
        convert.export_weights(folder, path, overwrite=True)
        convert.import_weights(path, back)
        with pytest.raises(UserError, match=r"contains converted weights: .*--overwrite"):
            convert.import_weights(path, back)
        convert.import_weights(path, back, overwrite=True)
        with pytest.raises(UserError, match=r"contains a run, which is never overwritten"):
            convert.import_weights(path, folder, overwrite=True)

    def test_command_line(self, workdir, tmp_path, capsys):
        folder, back, path = str(workdir[0]), str(tmp_path / "back"), str(tmp_path / "m.pth")
        assert command.main([folder, "--output", path, "--checkpoint", "best"]) == 0
        assert "resnet8x0.25, 56 tensors" in capsys.readouterr().out
        assert command.main([path, "--output", back, "--config.image_size=8"]) == 0
        assert f"--workdir={back} --mode=evaluate" in capsys.readouterr().out
        for words, message in (
            ([path, "--output", back, "--config.no=8"], "no config key 'no'"),
            ([path, "--output", back, "--nothing"], "nothing"),
            ([path, "--output", back, "--config.model=resnet20"], "config.model is 'resnet20'"),
            ([path, "--output", back, "--config", "no.py:x"], "no.py"),
            ([path, "--output", f"{back}.pth"], "give a folder"),
            ([folder, "--output", path, "--config.seed=1"], "for weights from PyTorch"),
            ([folder, "--output", f"{back}.onnx"], "ends in .pth or .safetensors"),
            ([str(tmp_path), "--output", f"{back}.pth"], "holds no checkpoint"),
        ):
            assert command.main(words) == 1
            out, err = capsys.readouterr()
            assert message in err
            assert err.count("\n") == 1
            assert not out
