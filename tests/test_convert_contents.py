"""Files as scripts save them: which weights are used, and what is noted or refused."""

import argparse
import datetime
import gzip
import pathlib
import types

import numpy as np
import pytest

from cutmix_jax import UserError, convert
from cutmix_jax.convert import __main__ as command
from cutmix_jax.convert.contents import choose_network

torch = pytest.importorskip("torch", reason="needs PyTorch")
safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is missing")
torch_models = pytest.importorskip("tests.torch_models")


@pytest.fixture(scope="module")
def net():
    return torch_models.randomise(torch_models.ResNet((1, 1, 1), bottleneck=False))


@pytest.fixture(scope="module")
def raw(net):
    return net.state_dict()


@pytest.fixture(scope="module")
def ema(raw):
    return {name: tensor + 1 for name, tensor in raw.items()}


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def read(content, folder, name="model.pth"):
    """What is read from a file with this content."""
    torch.save(content, folder / name)
    return convert.read_file(folder / name)


def holds(converted, state):
    """Whether these are the weights of `state`."""
    there = convert.to_torch(converted.variables)
    wanted = {k: v.detach().numpy() for k, v in state.items() if "num_batches" not in k}
    return all(np.array_equal(there[name], value) for name, value in wanted.items())


def notes_of(converted):
    return " ".join(converted.notes)


# Files with raw and EMA weights, by the library that saves them.
BOTH = {
    "timm": lambda raw, ema: {"arch": "resnet8", "state_dict": raw, "state_dict_ema": ema},
    "torchvision": lambda raw, ema: {
        "model": prefixed("module.", raw),
        "model_ema": {"n_averaged": torch.tensor(7), **prefixed("module.module.", ema)},
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": []},
    },
    "nested": lambda raw, ema: {"model": raw, "ema": {"module": ema, "updates": 3}},
    "ema-pytorch": lambda raw, ema: {
        "initted": torch.tensor(True),
        **prefixed("online_model.", raw),
        **prefixed("ema_model.", ema),
    },
    "Lightning": lambda raw, ema: {
        "state_dict": prefixed("model.", ema),
        "current_model_state": prefixed("model.", raw),
        "averaging_state": {"n_averaged": torch.tensor(7)},
    },
}


class TestAveragedWeights:
    @pytest.mark.parametrize("saved_by", BOTH)
    def test_averaged_ones_are_taken_unless_raw_ones_are_asked_for(self, raw, ema, saved_by):
        contents = BOTH[saved_by](raw, ema)
        for weights, taken, word in (
            (None, ema, "The EMA weights are used. --weights raw"),
            ("ema", ema, "The EMA weights are used"),
            ("raw", raw, "The raw weights are used. --weights ema"),
        ):
            converted = convert.from_torch(contents, weights=weights)
            assert holds(converted, taken)
            assert word in notes_of(converted)

    def test_averaged_weights_alone(self, net, raw, ema):
        alone = {"model_ema": ema}
        averaged = torch.optim.swa_utils.AveragedModel(net)
        for contents, taken in ((alone, ema), (averaged.state_dict(), raw)):
            converted = convert.from_torch(contents)
            assert holds(converted, taken)
            assert "EMA weights" in notes_of(converted)
            with pytest.raises(UserError, match="has no raw weights, only EMA weights"):
                convert.from_torch(contents, weights="raw")
        assert "n_averaged is 0" in notes_of(converted)
        averaged.update_parameters(net)
        assert "n_averaged is 0" not in notes_of(convert.from_torch(averaged.state_dict()))

    def test_raw_weights_alone(self, raw):
        with pytest.raises(UserError, match=r"no EMA weights, .*\(the file itself\)"):
            convert.from_torch(raw, weights="ema")

    def test_averages_without_names_are_mentioned(self, raw):
        """The package torch_ema saves them."""
        contents = {"model": raw, "ema": {"decay": 0.9, "shadow_params": [torch.zeros(3)]}}
        converted = convert.from_torch(contents)
        assert holds(converted, raw)
        assert "'ema' of the file has no known network" in notes_of(converted)

    def test_several_networks_are_refused(self, raw, ema):
        contents = {"state_dict": prefixed("student.", raw) | prefixed("teacher.", ema)}
        with pytest.raises(UserError, match=r"\(state_dict\.student, state_dict\.teacher\)"):
            convert.from_torch(contents)
        twice = raw | {"bn1.module.bias": raw["bn1.bias"]}
        with pytest.raises(UserError, match=r"twice \(bn1\.module\.bias\)"):
            convert.from_torch(twice)

    def test_dictionaries_that_contain_themselves(self, raw):
        contents = {"model": raw, "best": raw}
        contents["self"] = contents
        assert choose_network(contents)[0].where == "model"

    def test_command_line(self, raw, ema, tmp_path, capsys):
        source, output = tmp_path / "timm.pth", tmp_path / "back"
        torch.save(BOTH["timm"](raw, ema), source)
        words = [str(source), "--output", str(output), "--weights", "raw"]
        assert command.main(words) == 0
        assert "The raw weights are used" in capsys.readouterr().out
        assert command.main([str(output), "--output", f"{output}.pth", "--weights", "raw"]) == 1
        assert "--weights' is only for weights from PyTorch" in capsys.readouterr().err


class TestStrays:
    def test_what_does_not_belong_to_the_network_is_named_and_left_out(self, raw):
        stray = {"criterion.weight": torch.ones(10)}
        converted = convert.from_torch({"state_dict": prefixed("model.", raw) | stray})
        assert holds(converted, raw)
        assert "they are not part of the network: criterion.weight." in notes_of(converted)

    def test_a_head_outside_of_the_network(self, raw):
        """It may be what the network lacks."""
        body = {k: v for k, v in raw.items() if not k.startswith("fc.")}
        contents = prefixed("backbone.", body) | {"head.weight": raw["fc.weight"]}
        message = r"missing: fc\.bias, fc\.weight; extra: head\.weight"
        with pytest.raises(UserError, match=message):
            convert.from_torch(contents, model="resnet8")

    def test_wrappers_within_names(self, raw):
        """DataParallel around some parts, as in PyTorch's example, or compiled parts."""
        contents = {k.replace("layer1.", "layer1._orig_mod.module."): v for k, v in raw.items()}
        assert contents.keys() != raw.keys()
        assert holds(convert.from_torch(contents), raw)

    def test_values_that_are_not_tensors(self, raw):
        with pytest.raises(UserError, match=r"values that are not tensors \(epoch\)"):
            convert.from_torch({**raw, "epoch": 3})


class TestArchitecture:
    @pytest.mark.parametrize(
        "named",
        [
            {"arch": "resnet8"},
            {"arch": "resnet"},  # the authors'
            {"arch": "timm/ResNet-8.a1_in1k"},
            {"args": argparse.Namespace(model="resnet8", gp=None, model_kwargs={})},
            {"hyper_parameters": {"arch": "resnet8", "lr": 0.1}},
        ],
    )
    def test_ours_by_its_name(self, raw, named):
        assert convert.from_torch({**named, "state_dict": raw}).notes == ()

    @pytest.mark.parametrize(
        ("named", "called"),
        [
            ({"arch": "resnetblur8"}, "resnetblur8"),
            ({"architecture": "resnetaa8"}, "resnetaa8"),
            ({"args": argparse.Namespace(model="resnet8", gp="max")}, r"resnet8\(gp=max\)"),
            (
                {"args": {"model": "resnet8", "model_kwargs": {"output_stride": 8}}},
                r"resnet8\(model_kwargs={'output_stride': 8}\)",
            ),
            (
                {"arch": "resnet8", "args": argparse.Namespace(bn_eps=1e-3)},
                r"resnet8\(bn_eps=0\.001\)",
            ),
        ],
    )
    def test_another_with_the_same_weights_is_refused(self, raw, named, called):
        contents = {**named, "state_dict": raw}
        with pytest.raises(UserError, match=rf"names its network {called}.*give --model resnet8"):
            convert.from_torch(contents)
        converted = convert.from_torch(contents, model="resnet8")
        assert "It is converted as resnet8, as you asked" in notes_of(converted)

    def test_published_names(self):
        """timm's names for torchvision's networks, and names of networks without their depth."""
        check = convert.contents.check_architecture
        for theirs, ours in (
            ("tv_resnet50", "resnet50"),
            ("gluon_resnet50_v1b", "resnet50"),
            ("seresnet50.ra2_in1k", "se_resnet50"),
            ("legacy_seresnet101", "se_resnet101"),
            ("resnext101_32x4d", "resnext101_32x4d"),
            ("resnet110", "resnet110_basic"),
            ("pyramidnet200_240", "pyramidnet200"),
            ("pyramidnet", "pyramidnet200"),
            ("vgg16", "vgg16_gap"),
            ("PreActResNet18", "preact_resnet18"),
            ("WideResNet", "wide_resnet28_10"),
            ("WRN-28-10", "wide_resnet28_10"),
        ):
            assert check({"arch": theirs}, ours) == []
        for theirs, ours in (
            ("resnet50d", "resnet50"),
            ("resnet50", "resnet101"),
            ("resnetblur50", "resnet50"),
            ("seresnet50", "resnet50"),
            ("resnet18", "preact_resnet18"),
            ("wrn-16-8", "wide_resnet28_10"),
        ):
            with pytest.raises(UserError, match=f"names its network {theirs}"):
                check({"arch": theirs}, ours)

    def test_what_is_assumed_is_said(self, raw):
        assert "A plain resnet8 is assumed" in notes_of(convert.from_torch(raw))
        assert not convert.from_torch(raw, model="resnet8").notes


class TestHarmlessContents:
    @pytest.mark.parametrize("zipped", [True, False])
    def test_what_reference_scripts_save(self, raw, tmp_path, zipped):
        content = {
            "model": raw,
            "args": argparse.Namespace(
                model="resnet8",
                lr=0.1,
                device=torch.device("cpu"),
                data_path=pathlib.PurePosixPath("/data"),
                output_dir=pathlib.Path("here"),
                workers=None,
                model_kwargs={},
                betas=(0.9, 0.999),
            ),
            "lr_scheduler": {"_last_lr": [0.1], "base_lrs": [0.1]},
            "scaler": {"scale": 65536.0},
            "date": datetime.datetime(2024, 1, 1),
            "more": types.SimpleNamespace(best=np.float32(3), name=np.str_("run")),
        }
        path = tmp_path / "checkpoint.pth"
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        found = convert.read_file(path)
        assert found["args"].lr == 0.1
        converted = convert.from_torch(found)
        assert converted.notes == ()
        assert holds(converted, raw)

    def test_nothing_is_executed_within_them(self, raw, tmp_path):
        class Evil:
            def __reduce__(self):
                return pathlib.Path.mkdir, (tmp_path / "executed",)

        path = tmp_path / "model.pth"
        torch.save({"model": raw, "args": argparse.Namespace(evil=Evil())}, path)
        with pytest.raises(UserError, match=r"cannot be read"):
            convert.read_file(path)
        assert not (tmp_path / "executed").exists()

    def test_parameters_and_sparse_tensors(self, net, raw, tmp_path):
        assert holds(convert.from_torch(read(net.state_dict(keep_vars=True), tmp_path)), raw)
        sparse = dict(raw)
        sparse["fc.weight"] = raw["fc.weight"].to_sparse()
        sparse["layer1.0.bn1.weight"] = raw["layer1.0.bn1.weight"].to_sparse()
        assert holds(convert.from_torch(read(sparse, tmp_path)), raw)
        rows = {**raw, "fc.weight": raw["fc.weight"].to_sparse_csr()}
        assert holds(convert.from_torch(read(rows, tmp_path)), raw)


class TestWhatIsNoStateDict:
    def test_keys_that_are_numbers(self, raw, tmp_path):
        numbered = dict(enumerate(raw.values()))
        with pytest.raises(UserError, match=r"expected names .*but found 0, 1, 2 and \d+ more"):
            convert.from_torch(read({"state_dict": numbered}, tmp_path))
        with pytest.raises(UserError, match=r"extra: 3"):
            convert.from_torch(read({**raw, 3: torch.zeros(1)}, tmp_path))

    def test_formats_are_recognized_by_their_contents(self, raw, tmp_path):
        path = tmp_path / "model.pth"
        safetensors.save_file(dict(raw), path)
        assert holds(convert.from_torch(convert.read_file(path)), raw)
        assert holds(convert.from_torch(read(raw, tmp_path, "model.safetensors")), raw)

    def test_a_length_that_looks_like_the_beginning_of_a_web_page(self, raw, tmp_path):
        path = tmp_path / "model.safetensors"
        safetensors.save_file(dict(raw), path)
        whole = path.read_bytes()
        size = int.from_bytes(whole[:8], "little")
        length = size + (ord("<") - size) % 256
        header = whole[8 : 8 + size].ljust(length)
        path.write_bytes(length.to_bytes(8, "little") + header + whole[8 + size :])
        assert path.read_bytes()[:1] == b"<"
        assert holds(convert.from_torch(convert.read_file(path)), raw)

    def test_programs(self, net, tmp_path):
        path = tmp_path / "model.pt"
        torch.jit.trace(net, torch.zeros(1, 3, 8, 8)).save(path)
        message = r"TorchScript program.*save torch\.jit\.load\(FILE\)\.state_dict\(\)"
        with pytest.raises(UserError, match=message):
            convert.read_file(path)
        # The advice works.
        assert convert.from_torch(torch.jit.load(path).state_dict()).model == "resnet8"

    @pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
    def test_narrow_numbers(self, raw, tmp_path, dtype):
        narrow = {**raw, "fc.weight": raw["fc.weight"].to(getattr(torch, dtype))}
        path = tmp_path / "model.safetensors"
        safetensors.save_file(narrow, path)
        with pytest.raises(UserError, match=r"contains F8_E\w+ \(fc\.weight\).*16 or 32 bits"):
            convert.read_file(path)
        with pytest.raises(UserError, match=rf"contains {dtype} \(fc\.weight\).*16 or 32 bits"):
            convert.from_torch(read(narrow, tmp_path))

    def test_shapes_without_values(self, raw, tmp_path):
        empty = {**raw, "fc.weight": raw["fc.weight"].to("meta")}
        with pytest.raises(UserError, match=r"shapes without values \(fc\.weight\)"):
            convert.from_torch(read(empty, tmp_path))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
            (b"<!DOCTYPE html><html>", "web page"),
            (gzip.compress(b"weights", mtime=0), "gzip archive: unpack"),
            (b"\x89HDF\r\n\x1a\n" + bytes(60), "Keras"),
        ],
    )
    def test_files_of_other_kinds(self, tmp_path, content, message):
        for name in ("model.pth", "model.safetensors"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(UserError, match=message):
                convert.read_file(tmp_path / name)
