"""Datasets from files that people have: complete, resumable, one sentence for each fault."""

import importlib
import io
import json
import pathlib
import signal
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from configs import folder as folder_config
from configs import imagenet as imagenet_config
from cutmix_jax import UserError
from cutmix_jax.data import find_set, open_data, prepare, prepare_files, records, sources
from tests.data.conftest import encode, photograph

CLASSES = ("ant", "bee", "cat")
ROOT = pathlib.Path(__file__).resolve().parents[2]


def make_rows(count, seed=0, size=None):
    """[(JPEG file, label)] of photographs of 40 to 90 pixels, or of one size."""
    sizes = np.random.RandomState(seed).randint(40, 90, (count, 2))
    return [
        (encode(photograph(100 * seed + i, *(size or sizes[i])), "jpeg"), i % 3)
        for i in range(count)
    ]


TRAIN, TEST = make_rows(20), make_rows(7, seed=1)


def write_parquet(path, rows, names=CLASSES, image="image", label="label", label_type="int64"):
    """A file as the Hub has them, with several row groups."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [{"bytes": data, "path": f"{i}.JPEG"} for i, (data, _) in enumerate(rows)]
    columns = {
        image: pa.array(images, kind),
        label: pa.array([value for _, value in rows], label_type),
    }
    features = {label: {"names": list(names or ()), "_type": "ClassLabel"}}
    table = pa.table(columns).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=6)


def write_tar(path, files):
    """`files`: name -> bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def tar_files_of(rows):
    """Labels alternate between the two forms."""
    files = {}
    for i, (data, label) in enumerate(rows):
        files[f"{i:04d}.jpg"] = data
        text = {"cls": f"{label}\n", "json": json.dumps({"label": label, "width": 5})}
        kind = ("cls", "json")[i % 2]
        files[f"{i:04d}.{kind}"] = text[kind].encode()
    return files


def write_source(root, kind):
    """TRAIN and TEST as files of a kind; returns the source for the command."""
    if kind == "parquet":
        write_parquet(root / "data/train-00000-of-00002-abc.parquet", TRAIN[:13])
        write_parquet(root / "data/train-00001-of-00002-abc.parquet", TRAIN[13:])
        write_parquet(root / "data/validation-00000-of-00001-abc.parquet", TEST)
    if kind == "tar":
        write_tar(root / "toys-train-09.tar", tar_files_of(TRAIN[:13]))
        write_tar(root / "toys-train-10.tar", tar_files_of(TRAIN[13:]))
        write_tar(root / "toys-val-0.tar", tar_files_of(TEST))
    if kind == "folder":
        for split, rows in (("train", TRAIN), ("val", TEST)):
            for i, (data, label) in enumerate(rows):
                path = root / split / CLASSES[label] / f"{i:02d}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
    return root


@pytest.fixture(params=["parquet", "tar", "folder"])
def source(request, tmp_path):
    return write_source(tmp_path / "source", request.param)


@pytest.fixture
def tars(tmp_path):
    return write_source(tmp_path / "source", "tar")


@pytest.fixture
def run(tmp_path, capsys):
    """run(source, *flags) -> the folder of the dataset, or its error."""

    def run(source, *flags, out=tmp_path / "out"):
        words = ["files", str(source), "--out", str(out), "--workers", "2", *flags]
        try:
            prepare.main(words)
        except SystemExit:
            error = capsys.readouterr().err
            assert error.count("\n") == 1, error
            return error
        assert capsys.readouterr().out.strip() == str(out)
        return out

    return run


def read_split(image_set, split):
    """[(image, label)], in an order that all sources share."""
    split = image_set.splits[split]
    return sorted(records.encoded(split, i) for i in range(split.count))


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_image_keeps_its_bytes_its_label_and_its_name(source, run):
    found = find_set("folder", str(run(source)), None)
    assert read_split(found, "train") == sorted(TRAIN)
    assert read_split(found, "test") == sorted(TEST)
    without_names = source.name == "source" and (source / "toys-val-0.tar").exists()
    assert found.class_names == (("0", "1", "2") if without_names else CLASSES)
    assert found.shape == (None, None, 3)
    assert records.file_name(found.splits["train"], 0).endswith(("0.JPEG", "0000.jpg"))


def test_the_configs_open_it_and_see_the_pixels_of_the_source(tars, run, tmp_path):
    out = run(tars, out=tmp_path / "imagenet2012")
    split = find_set("folder", str(out), None).splits["train"]
    for i, (data, label) in enumerate(TRAIN):
        pixels, found = records.decode_record(split, i, 3)
        np.testing.assert_array_equal(pixels, Image.open(io.BytesIO(data)))
        assert found == label
    for module in (folder_config, imagenet_config):
        config = module.get_config()
        config.data_dir, config.batch_size, config.image_size = str(out), 10, 32
        config.eval_resize = 36
        data = open_data(config)
        assert (dict(data.examples), data.num_classes) == ({"train": 20, "test": 7}, 3)
        assert next(iter(data.train_batches(0)))["image"].shape[1:] == (10, 32, 32, 3)


def test_another_dataset_is_not_taken_for_it(tars, run):
    out = run(tars)
    with pytest.raises(UserError, match=r"prepared dataset, out, .* --config\.dataset=folder"):
        find_set("cifar10", str(out), None)


def test_tfds_reads_it(tars, run):
    tfds = records.import_tfds()
    builder = tfds.builder_from_directory(run(tars, "--shards", "3"))
    found = builder.as_data_source("train")
    assert [example["label"] for example in found] == [label for _, label in TRAIN]
    np.testing.assert_array_equal(found[13]["image"], Image.open(io.BytesIO(TRAIN[13][0])))


def test_the_size_is_stored_if_all_images_have_it(tmp_path, run):
    write_tar(tmp_path / "train.tar", tar_files_of(make_rows(5, size=(32, 32))))
    out = run(tmp_path / "train.tar", "--shards", "2")
    assert find_set("folder", str(out), "held_out").shape == (32, 32, 3)
    config = {"dataset": "folder", "data_dir": str(out), "test_split": "held_out", "held_out": 2}
    assert open_data(config | {"batch_size": 2}).kind == "resident"


def test_only_larger_images_are_resized(tars, run):
    out = run(tars, "--shorter-side", "60", "--quality", "90")
    split = find_set("folder", str(out), None).splits["train"]
    resized = 0
    for i, (data, _) in enumerate(TRAIN):
        stored, before = records.encoded(split, i)[0], Image.open(io.BytesIO(data))
        if min(before.size) <= 60:
            assert stored == data
            continue
        resized += 1
        side = min(before.size)
        size = tuple(60 * length // side for length in before.size)
        expected = io.BytesIO()
        before.resize(size, Image.Resampling.BILINEAR).save(expected, "JPEG", quality=90)
        found, expected = Image.open(io.BytesIO(stored)), Image.open(expected)
        assert (found.size, found.quantization) == (size, expected.quantization)
        difference = np.asarray(found, int) - np.asarray(expected, int)
        assert abs(difference).max() <= 12  # one level before, and a step of JPEG
        assert abs(difference).mean() < 1
    assert 0 < resized < len(TRAIN)


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_killed_run_goes_on_with_the_same_bytes(kind, tmp_path, run):
    source = write_source(tmp_path / "source", kind)
    flags = ("--shards", "5", "--shorter-side", "60")
    whole = contents(run(source, *flags, out=tmp_path / "whole" / "toys"))
    out = tmp_path / "out" / "toys"
    code = f"""
import os, signal, sys
from cutmix_jax.data import prepare, prepare_files
seen, store = [], prepare_files.store
def count(*arguments):
    seen.append(0)
    if len(seen) == 11:
        os.kill(os.getpid(), signal.SIGKILL)
    return store(*arguments)
prepare_files.store = count
prepare.main(["files", {str(source)!r}, "--out", {str(out)!r}, "--workers", "1", *{flags!r}])
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*-of-00005")}
    assert len(before) == 2  # of four images each
    with pytest.raises(UserError, match=r"is not complete.*goes on where it stopped"):
        find_set("folder", str(out), None)
    assert len(list(out.glob("*.tmp"))) == 1
    found = contents(run(source, *flags, out=out))
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    journals = found.pop(prepare_files.JOURNAL), whole.pop(prepare_files.JOURNAL)
    assert sorted(journals[0].splitlines()) == sorted(journals[1].splitlines())
    assert found == whole


def test_a_complete_dataset_is_left_alone_and_a_lost_file_written_again(tars, run):
    out = run(tars, "--shards", "3")
    before = contents(out)
    paths = sorted(out.glob("*train*"))
    times = [path.stat().st_mtime_ns for path in paths]
    paths[0].unlink()
    assert contents(run(tars, "--shards", "3")).keys() == before.keys()
    assert paths[0].read_bytes() == before[paths[0].name]
    assert [path.stat().st_mtime_ns for path in paths[1:]] == times[1:]


def test_a_full_disk_keeps_what_is_complete(tars, run, monkeypatch):
    array_record_module = importlib.import_module("array_record.python.array_record_module")
    writer = array_record_module.ArrayRecordWriter

    def fill(path, options):
        return writer("/dev/full" if "train" in path and "00003-of" in path else path, options)

    monkeypatch.setattr(array_record_module, "ArrayRecordWriter", fill)
    error = run(tars, "--shards", "5", "--workers", "1")
    assert "No space left on device). Complete files are kept: free" in error
    out = tars.parent / "out"
    assert len(list(out.glob("*train*"))) == 3
    monkeypatch.undo()
    assert read_split(find_set("folder", str(run(tars, "--shards", "5")), None), "train") == sorted(
        TRAIN
    )


def test_two_cannot_write_at_once(tars, run, monkeypatch):
    errors = []

    def write_again(*arguments):
        monkeypatch.undo()
        errors.append(run(tars, "--shards", "1"))
        return prepare_files._write_files(*arguments)

    monkeypatch.setattr(prepare_files, "_write_files", write_again)
    run(tars, "--shards", "1")
    assert "Another run is writing to the folder" in errors[0]


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (("--shorter-side", "50"), "started with --shorter-side none, but now there is 50"),
        (("--shards", "2"), "started with --shards none, but now there is 2"),
    ],
)
def test_other_options_are_refused(tars, run, flags, match):
    run(tars)
    assert match in run(tars, *flags)


def test_a_source_that_changed_is_refused(source, run):
    out = run(source)
    path = next(path for path in source.rglob("*") if path.is_file())
    path.touch()
    before = contents(out)
    assert "The files or the labels of the source have changed since" in run(source)
    assert contents(out) == before


def test_other_contents_of_the_folder_are_left_alone(tars, run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/letter.txt").write_text("Dear")
    assert "holds other files. Choose an empty or new folder with --out" in run(tars)
    assert contents(tmp_path / "out") == {"letter.txt": b"Dear"}
    assert "is a file, but a folder is expected" in run(tars, out=tmp_path / "out/letter.txt")


def test_images_stay_outside_memory(tmp_path):
    """Also if a file is one row group."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    from cutmix_jax.data import parquet_files

    rows = [np.random.RandomState(i).bytes(100_000) for i in range(200)]
    table = pa.table({"image": pa.array(rows, pa.binary()), "label": np.arange(200)})
    pq.write_table(
        table, path := tmp_path / "train.parquet", use_dictionary=False, write_batch_size=8
    )
    del table
    assert pq.ParquetFile(path).num_row_groups == 1
    before, most = pa.total_allocated_bytes(), 0
    for i, example in enumerate(parquet_files.read(str(path), "image", "label", 50, 190)):
        assert (example.image, example.label) == (rows[50 + i], 50 + i)
        most = max(most, pa.total_allocated_bytes() - before)
    assert i == 139
    assert most < 8e6 < sum(map(len, rows)) / 2


PARQUET_FAULTS = {
    "no column": ({"image": "img"}, r"has no column 'image', only img, label.*--image-column"),
    "no label": ({"label": "fine"}, r"has no column 'label', only image, fine.*--label-column"),
    "text": ({"label_type": "string"}, r"labels of type string .* integers are expected"),
    "null": ({"row": (TRAIN[0][0], None)}, r"train-0\.parquet, row 2 has no label"),
    "range": ({"row": (TRAIN[0][0], 3)}, r"row 2 has the label 3, but labels from 0 to 2"),
    "negative": ({"row": (TRAIN[0][0], -1)}, r"row 2 has the label -1, but labels from 0 to 2"),
    "path only": ({"row": (None, 1)}, r"row 2 holds only the path '2.JPEG'.*bytes"),
    "damaged": ({"row": (TRAIN[0][0][:300], 1)}, r"train-0\.parquet, row 2 is not a readable"),
    "twice": ({"names": ["a", "b", "a"]}, r"two classes called 'a'"),
}


@pytest.mark.parametrize("fault", PARQUET_FAULTS)
def test_a_parquet_file_that_cannot_be_used_is_named(fault, tmp_path, run):
    options, match = PARQUET_FAULTS[fault]
    rows = list(TRAIN[:5])
    options = dict(options)
    if "row" in options:
        rows[2] = options.pop("row")
    if options.get("label_type") == "string":
        rows = [(data, str(label)) for data, label in rows]
    write_parquet(tmp_path / "hub/train-0.parquet", rows, **options)
    with pytest.raises(UserError, match=match):
        raise UserError(run(tmp_path / "hub"))


@pytest.mark.parametrize("change", ["start", "cut", "page"])
def test_a_damaged_parquet_file_is_named(change, tmp_path, run):
    write_parquet(path := tmp_path / "train.parquet", TRAIN)
    data = bytearray(path.read_bytes())
    if change == "start":
        data[-4:] = b"junk"
    if change == "cut":
        data = data[:-500]
    if change == "page":
        data[4:40] = bytes(36)  # the header of the first page of images
    path.write_bytes(data)
    assert f"{path} is damaged or cannot be read as parquet" in run(path)


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"0001.cls": b"cat"}, "0001 has the label 'cat', but an integer is expected"),
        ({"0001.json": b'{"label": 1.5}', "0001.cls": None}, "0001 has the label 1.5"),
        ({"0001.json": b"{", "0001.cls": None}, r"0001\.json is damaged"),
        ({"0001.cls": None}, r"0001 has no label among its files jpg\. .*--label-column"),
        ({"0001.jpg": None}, r"0001 has no image among its files cls\. .*--image-column"),
        ({"0001.png": b"x"}, r"0001 has the files jpg, cls, png\. .*--image-column"),
        ({"0001.cls": b"7"}, "has the label 7, but there are only 5 training images"),
        ({"0001.jpg": b"junk"}, r"train\.tar, 0001\.jpg is not a readable image"),
    ],
)
def test_a_tar_file_that_cannot_be_used_is_named(files, match, tmp_path, run):
    members = {}
    for i, (data, label) in enumerate(TRAIN[:5]):
        members |= {f"000{i}.jpg": data, f"000{i}.cls": str(label).encode()}
    members = {name: data for name, data in (members | files).items() if data is not None}
    write_tar(tmp_path / "train.tar", dict(sorted(members.items(), key=lambda pair: pair[0][:4])))
    with pytest.raises(UserError, match=match):
        raise UserError(run(tmp_path / "train.tar"))


@pytest.mark.parametrize("change", ["start", "header", "cut", "cut at a header"])
def test_a_damaged_tar_file_is_named(change, tars, run):
    path = tars / "toys-train-10.tar"
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[6].offset
    data = bytearray(path.read_bytes())
    if change in ("start", "header"):
        data[(0 if change == "start" else offset) + 3] ^= 1
    else:
        data = data[: offset - 600 if change == "cut" else offset]
    path.write_bytes(data)
    assert f"{path} is damaged or cannot be read as tar" in run(tars)


def test_columns_are_chosen(tmp_path, run):
    files = {"0.seg.png": b"mask", "0.jpg": TRAIN[0][0], "0.json": b'{"coarse": 0}'}
    files |= {"1.seg.png": b"mask", "1.jpg": TRAIN[1][0], "1.json": b'{"coarse": 1}'}
    write_tar(tmp_path / "a.tar", files)
    out = run(tmp_path / "a.tar", "--label-column", "coarse", "--image-column", "jpg")
    found = find_set("folder", str(out), "held_out")
    assert read_split(found, "train") == sorted([(TRAIN[0][0], 0), (TRAIN[1][0], 1)])


def test_a_split_without_labels_is_left_out(tars, tmp_path, capsys):
    unlabelled = [(data, -1) for data, _ in TEST]
    write_tar(tars / "toys-test-0.tar", tar_files_of(unlabelled))
    prepare.main(["files", str(tars), "--out", str(tmp_path / "out")])
    assert "The split test has no labels (all are -1), so it is left out" in capsys.readouterr().err
    assert read_split(find_set("folder", str(tmp_path / "out"), None), "test") == sorted(TEST)


def test_files_are_chosen_by_patterns(tars, run, tmp_path):
    flags = ("--split", "train=*-train-{09..10}.tar", "--split", "half=toys-val-*.tar")
    found = find_set("folder", str(run(tars, *flags)), "half")
    assert (found.splits["train"].count, found.splits["test"].count) == (20, 7)
    pattern = tars / "toys-train-{09..10}.tar"
    found = find_set("folder", str(run(pattern, out=tmp_path / "other")), "held_out")
    assert read_split(found, "train") == sorted(TRAIN)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("toys-train-{09..11}.tar",), r"toys-train-11\.tar does not exist.*parquet files, tar"),
        (("missing",), "missing does not exist"),
        ((".", "--split", "train=no*.tar"), r"no\*\.tar does not exist, and matches no file"),
        ((".", "--split", "val=*.tar"), "no training images were found, only val"),
        ((".", "--split", "train=*.tar", "--split", "val=*val*"), "occurs twice, in train and val"),
        ((".", "--split", "train"), "--split=train is not understood"),
        (("toys-val-0.tar",), "no training images were found, only validation"),
        ((".", "--quality", "80"), "--quality has no effect without --shorter-side"),
    ],
)
def test_a_source_that_cannot_be_used_is_refused(words, match, tars, run):
    with pytest.raises(UserError, match=match):
        raise UserError(run(tars / words[0], *words[1:]))


def test_folders_of_several_datasets_are_refused(tars, run):
    for folder in ("small", "large"):
        write_tar(tars / folder / "train/0.tar", tar_files_of(TEST))
    assert "images in several folders (, large, small). Give one" in run(tars)


def test_mixed_files_and_empty_folders_are_refused(tars, run, tmp_path):
    (tars / "train.parquet").touch()
    assert "either only parquet or only tar files" in run(tars)
    (tmp_path / "empty").mkdir()
    assert "holds none of what is expected: parquet files, tar" in run(tmp_path / "empty")


def test_remote_paths_are_refused(tars, tmp_path):
    for source, out in ((str(tars), "s3://bucket/out"), ("gs://bucket/a.tar", str(tmp_path))):
        with pytest.raises(SystemExit):
            prepare.main(["files", source, "--out", out])


def test_a_missing_pyarrow_is_named(tmp_path, run, monkeypatch):
    (tmp_path / "train.parquet").touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "reading parquet files needs pyarrow, which is not installed: pip" in run(tmp_path)


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train-00000-of-00294-a0b1c2.parquet", "train"),
        ("default/validation/0000.parquet", "validation"),
        ("imagenet1k-validation-63.tar", "validation"),
        ("ILSVRC2012_val.tar", "validation"),
        ("train/test-0.tar", "test"),
        ("contest/trainer-0.tar", None),
        ("train_test.tar", None),
    ],
)
def test_names_tell_splits(path, split):
    assert sources.split_of(path) == split


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("a-{8..10}.tar", ["a-8.tar", "a-9.tar", "a-10.tar"]),
        ("{x,y}{00..01}", ["x00", "x01", "y00", "y01"]),
        ("a{b}c", ["a{b}c"]),
    ],
)
def test_braces_are_those_of_a_shell(pattern, words):
    assert sources.expand_braces(pattern) == words
