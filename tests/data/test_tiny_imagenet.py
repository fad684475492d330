"""Tiny-ImageNet's folder, read as it is or prepared for TFDS, and our other builder."""

import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw

from cutmix_jax import UserError
from cutmix_jax.data import open_data, prepare, shapes, tiny_imagenet

WNIDS = ("n03000001", "n01000002", "n02000003")  # not sorted, as in the original
BLUE = (20, 30, 220)


def draw(random, path):
    """A gray image with a blue rectangle; returns its inclusive corners x0, y0, x1, y1."""
    low = random.randint(0, 30, 2)
    high = low + random.randint(10, 30, 2)
    image = Image.new("RGB", (64, 64), (128, 128, 128))
    corners = [int(value) for value in (*low, *high)]
    ImageDraw.Draw(image).rectangle(corners, fill=BLUE)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "jpeg", quality=98, subsampling=0)
    return corners


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder that contains tiny-imagenet-200, {file name: (class, corners)})."""
    root, written = tmp_path_factory.mktemp("official"), {}
    tree, random = root / "tiny-imagenet-200", np.random.RandomState(0)
    for name in WNIDS:
        lines = []
        for i in range(4):
            file = f"{name}_{i}.JPEG"
            written[file] = name, draw(random, tree / "train" / name / "images" / file)
            lines.append("\t".join(map(str, [file, *written[file][1]])))
        (tree / "train" / name / f"{name}_boxes.txt").write_text("\n".join(lines) + "\n")
    lines = []
    for i in range(6):
        file, name = f"val_{i}.JPEG", WNIDS[i % 3]
        written[file] = name, draw(random, tree / "val" / "images" / file)
        lines.append("\t".join(map(str, [file, name, *written[file][1]])))
    (tree / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    (tree / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    words = [f"{name}\tthing, {name[-1]}" for name in WNIDS]
    (tree / "words.txt").write_text("\n".join([*words, "n09999999\tunused"]) + "\n")
    return root, written


def config(data_dir):
    return {"dataset": "tiny_imagenet", "data_dir": str(data_dir), "batch_size": 4}


def blue_box(image):
    blue = np.asarray(image, int)[..., 2] > 175
    rows, columns = np.flatnonzero(blue.any(1)), np.flatnonzero(blue.any(0))
    return [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]


def test_the_folder_is_read_as_it_is(made):
    root, _ = made
    for data_dir in (root, root / "tiny-imagenet-200"):
        data = open_data(config(data_dir))
        assert (data.kind, data.image_shape) == ("resident", (64, 64, 3))
        assert data.class_names == tuple(sorted(WNIDS))
        assert data.examples == {"train": 12, "test": 6}
        assert data.arrays["train"]["label"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert data.arrays["test"]["label"].tolist() == [2, 0, 1, 2, 0, 1]
    for split in ("train", "test"):
        images, boxes = data.arrays[split]["image"], data.boxes(split)
        assert [box.tolist() for box in boxes] == [[blue_box(image)] for image in images]


def test_the_prepared_set_has_the_same_images_and_boxes(made, tmp_path, capsys):
    pytest.importorskip("tensorflow")
    root, written = made
    prepare.main(["tiny_imagenet", "--data_dir", str(tmp_path), "--source", str(root)])
    folder = capsys.readouterr().out.strip().splitlines()[-1]
    assert folder == str(tmp_path / "tiny_imagenet" / "1.0.0")
    ours, theirs = open_data(config(root)), open_data(config(tmp_path))
    assert ours.class_names == theirs.class_names

    def known(data, split):
        part = data.arrays[split]
        rows = zip(part["image"], part["label"], data.boxes(split), strict=True)
        return sorted((image.tobytes(), int(label), box.tolist()) for image, label, box in rows)

    for split in ("train", "test"):  # TFDS shuffles
        assert known(ours, split) == known(theirs, split)
    import tensorflow_datasets as tfds

    prepared = tfds.builder_from_directory(folder).as_dataset("validation")
    for example in prepared.as_numpy_iterator():
        name, (left, top, right, bottom) = written[f"{example['id'].decode()}.JPEG"]
        assert example["words"].decode() == f"thing, {name[-1]}"
        assert (example["bbox"] * 64).tolist() == [top, left, bottom + 1, right + 1]


def test_prepared_shapes_carry_masks_and_captions(tmp_path):
    pytest.importorskip("tensorflow")
    tfds = pytest.importorskip("tensorflow_datasets")
    folder = prepare.prepare("shapes/several", str(tmp_path), examples=6)
    builder = tfds.builder_from_directory(folder)
    assert builder.info.splits["train"].num_examples == 6
    drawn = {}
    for i in range(6):
        example = shapes.draw_example(shapes.SEEDS["test"], i, 128, 4)
        drawn[example.image.tobytes()] = example
    for found in builder.as_dataset("test").as_numpy_iterator():
        example = drawn[found["image"].tobytes()]
        np.testing.assert_array_equal(found["mask"][..., 0], example.mask)
        np.testing.assert_array_equal(found["objects"]["bbox"], example.boxes)
        np.testing.assert_array_equal(found["objects"]["label"], example.labels)
        assert found["caption"].decode() == example.caption
        assert found["label"] == example.label


@pytest.mark.parametrize(
    ("file", "text", "match"),
    [
        ("wnids.txt", "n03000001\nn04444444\n", "wnids.txt lists n04444444"),
        ("val/val_annotations.txt", "val_0.JPEG\tn03000001\t0\t0\n", "6 columns that end in four"),
        ("val/val_annotations.txt", "", "lists no image of the classes"),
        ("val/val_annotations.txt", None, "cannot be read"),
        ("train/n01000002/n01000002_boxes.txt", "", r"no line for n01000002_0\.JPEG"),
        (
            "train/n01000002/n01000002_boxes.txt",
            "n01000002_0.JPEG\t9\t0\t3\t9\n",
            r"n01000002_0\.JPEG of .*n01000002_boxes\.txt has the box",
        ),
        ("wnids.txt", b"n0300000\xe9", "wnids.txt cannot be read .it is not UTF-8"),
    ],
)
def test_a_damaged_folder_is_refused(made, tmp_path, file, text, match):
    tree = shutil.copytree(made[0] / "tiny-imagenet-200", tmp_path / "tiny-imagenet-200")
    (tree / file).unlink()
    if text is not None:
        (tree / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=match):
        open_data(config(tmp_path)).boxes("train")


def test_what_is_left_out_is_counted(made, tmp_path, capfd):
    tree = shutil.copytree(made[0] / "tiny-imagenet-200", tmp_path / "tiny-imagenet-200")
    hidden = tree / "train/n01000002/images/._n01000002_0.JPEG"
    hidden.write_bytes(b"")
    (tree / "wnids.txt").write_text("n01000002\nn02000003\n")
    shutil.copy(tree / "val/images/val_0.JPEG", tree / "val/images/val_9.JPEG")
    data = open_data(config(tmp_path))
    assert data.examples == {"train": 8, "test": 4}
    assert capfd.readouterr().err.splitlines() == [
        f"{tree}: passed over 1 hidden ({hidden.relative_to(tree)}).",
        f"{tree}: passed over 2 of classes not in wnids.txt (val/images/val_0.JPEG, "
        "val/images/val_3.JPEG); 1 without a line in val_annotations.txt (val/images/val_9.JPEG).",
    ]


def test_a_source_that_is_not_the_folder_is_refused(tmp_path, capsys):
    pytest.importorskip("tensorflow")
    with pytest.raises(SystemExit):
        prepare.main(["tiny_imagenet", "--data_dir", str(tmp_path), "--source", str(tmp_path)])
    assert f"source={tmp_path} holds no tiny-imagenet-200" in capsys.readouterr().err
    assert tiny_imagenet.find_tree(tmp_path) is None
