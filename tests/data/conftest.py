"""Small datasets written from scratch, in the formats that people have on disk."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from cutmix_jax.data import tfds_files, voc

RED = (255, 0, 0)


def encode(image, kind="png"):
    """An encoded image of uint8 [H, W, C]."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    file = io.BytesIO()
    picture.save(file, kind, **({"quality": 95} if kind == "jpeg" else {}))
    return file.getvalue()


def photograph(seed, height, width):
    """A smooth color image, which JPEG preserves well."""
    noise = np.random.RandomState(seed).randint(0, 256, (6, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def photo_config(folder, **changes):
    """A config that streams random-resized crops of a folder of photographs."""
    return {
        "dataset": "folder",
        "data_dir": str(folder),
        "batch_size": 8,
        "image_size": 16,
        "augment": {"min_area": 0.08, "flip": True},
        **changes,
    }


def _example(data, label, boxes=None, box_key="bbox", file_name=None):
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(data)
    example.features.feature["label"].int64_list.value.append(label)
    if boxes is not None:
        example.features.feature[box_key].float_list.value.extend(np.ravel(boxes))
    if file_name:
        example.features.feature["file_name"].bytes_list.value.append(file_name.encode())
    return example.SerializeToString()


def _write_tfrecord(path, records):
    with open(path, "wb") as file:
        for record in records:
            file.write(len(record).to_bytes(8, "little") + b"crc1" + record + b"crc2")


def _write_array_record(path, records):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


WRITERS = {"tfrecord": _write_tfrecord, "array_record": _write_array_record}


def _write_tfds(
    root,
    splits,
    *,
    name="toys",
    version="1.0.0",
    file_format="tfrecord",
    shape=(8, 8, 3),
    dtype="uint8",
    num_classes=10,
    image_key="image",
    shards=2,
    config=None,
    box_key=None,
):
    """A prepared TFDS dataset; splits: name -> [(encoded image, label[, boxes, key, file])]."""
    folder = root / name / (config or "") / version
    folder.mkdir(parents=True)
    listed = []
    for split, examples in splits.items():
        parts = np.array_split(np.arange(len(examples)), shards)
        for i, part in enumerate(parts):
            path = folder / f"{name}-{split}.{file_format}-{i:05d}-of-{shards:05d}"
            WRITERS[file_format](path, [_example(*examples[j]) for j in part])
        listed.append(
            {
                "name": split,
                "shardLengths": [str(len(part)) for part in parts],
                "numBytes": "1",
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        )
    info = {"name": name, "version": version, "fileFormat": file_format, "splits": listed}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    package = "tensorflow_datasets.core.features"
    dimensions = [str(-1 if side is None else side) for side in shape]
    features = {
        image_key: {
            "pythonClassName": f"{package}.image_feature.Image",
            "image": {"dtype": dtype, "shape": {"dimensions": dimensions}},
        },
        "label": {
            "pythonClassName": f"{package}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": str(num_classes)},
        },
    }
    if box_key:
        box = {"pythonClassName": f"{package}.bounding_boxes.BBoxFeature", "boundingBox": {}}
        box["boundingBox"] = {"bboxFormat": "REL_YXYX", "dtype": "float32"}
        features |= {"bbox": box} if box_key == "bbox" else {"objects": _sequence(package, box)}
    document = {
        "pythonClassName": f"{package}.features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }
    (folder / "features.json").write_text(json.dumps(document))
    return folder


def _sequence(package, box):
    """The feature 'objects' of a detection dataset, with their boxes."""
    within = {
        "pythonClassName": f"{package}.features_dict.FeaturesDict",
        "featuresDict": {"features": {"bbox": box}},
    }
    return {
        "pythonClassName": f"{package}.sequence_feature.Sequence",
        "sequence": {"feature": within, "length": "-1"},
    }


def _toys(count, seed=0, size=8, channels=3):
    """(noise images uint8 [count, size, size, channels], labels)."""
    random = np.random.RandomState(seed)
    images = random.randint(0, 256, (count, size, size, channels), np.uint8)
    return images, random.randint(0, 10, count)


@pytest.fixture
def write_tfds():
    return _write_tfds


@pytest.fixture
def toys():
    return _toys


@pytest.fixture
def toy_set(tmp_path):
    """make(file_format=...) -> (data_dir, images, labels): 41 training and 11 test images."""

    def make(add_to_labels=0, **options):
        images, labels = _toys(52)
        labels += add_to_labels
        examples = [(encode(*pair), label) for *pair, label in zip(images, labels, strict=True)]
        splits = {"train": examples[:41], "test": examples[41:]}
        _write_tfds(tmp_path, splits, **options)
        return tmp_path, images, labels

    return make


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory):
    """train/CLASS and val/CLASS with 24 and 7 images, JPEG and PNG, of different sizes."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.RandomState(0)
    for split, count in (("train", 24), ("val", 7)):
        for i in range(count):
            kind = "png" if i % 4 == 0 else "jpeg"
            folder = root / split / ("ant", "bee", "cat")[i % 3]
            folder.mkdir(parents=True, exist_ok=True)
            image = photograph(i, *random.randint(40, 90, 2))
            suffix = {"png": "png", "jpeg": "JPEG"}[kind]
            (folder / f"{i:02d}.{suffix}").write_bytes(encode(image, kind))
    return root


def red_object(height, width, box, name="dog", **more):
    """(gray image with a red rectangle, its object); box: (top, left, bottom, right), half-open."""
    image = np.full((height, width, 3), 90, np.uint8)
    top, left, bottom, right = box
    image[top:bottom, left:right] = RED
    return image, {"name": name, "corners": (left + 1, top + 1, right, bottom), **more}


def write_xml(path, size, objects):
    """An annotation; corners: (xmin, ymin, xmax, ymax), inclusive, from 1."""
    text = f"<annotation><size><width>{size[1]}</width><height>{size[0]}</height></size>"
    for one in objects:
        text += f"<object><name>{one['name']}</name>"
        if "difficult" in one:
            text += f"<difficult>{one['difficult']}</difficult>"
        corners = zip(("xmin", "ymin", "xmax", "ymax"), one["corners"], strict=True)
        box = "".join(f"<{key}>{value}</{key}>" for key, value in corners)
        # The head of a person is no object.
        part = f"<part><name>head</name><bndbox>{box}</bndbox></part>"
        text += f"{part}<bndbox>{box}</bndbox></object>"
    path.write_text(f"{text}</annotation>")


def write_tree(tree, splits):
    """splits: name -> {ID: (image, objects)}. The pixels are stored exactly, as PNG."""
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (tree / folder).mkdir(parents=True, exist_ok=True)
    for split, examples in splits.items():
        (tree / f"ImageSets/Main/{split}.txt").write_text("\n".join([*examples, ""]))
        for name, (image, objects) in examples.items():
            (tree / f"JPEGImages/{name}.jpg").write_bytes(encode(image))
            write_xml(tree / f"Annotations/{name}.xml", image.shape[:2], objects)
    return tree


def tree_examples(start=0, count=3, name="dog"):
    """{ID: (image of 10 to 12 x 16 pixels, one object)}"""
    return {
        f"{i:06d}": (image, [one])
        for i in range(start, start + count)
        for image, one in [red_object(10 + i % 3, 16, (2, 3 + i % 3, 7, 12), name)]
    }


@pytest.fixture
def tree(tmp_path):
    """A small tree with the splits train and val."""
    return write_tree(
        tmp_path / "tree", {"train": tree_examples(), "val": tree_examples(3, 2, "cat")}
    )


def voc_config(data_dir, **changes):
    sides = {"train": "train", "test": "val"} | changes.pop("voc", {})
    return {"dataset": "voc", "data_dir": str(data_dir), "batch_size": 2, "voc": sides, **changes}


def write_voc_records(root, year, splits):
    """voc/YEAR as TFDS prepares it, from what `write_tree` takes; records are in another order."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.proto import tf_example_pb2

    label = tfds.features.ClassLabel(names=voc.CLASS_NAMES)
    one_object = {"bbox": tfds.features.BBoxFeature(), "label": label, "is_difficult": np.bool_}
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(),
            "image/filename": tfds.features.Text(),
            "objects": tfds.features.Sequence(one_object),
        }
    )
    folder = root / "voc" / year / "5.0.0"
    folder.mkdir(parents=True)
    for split, examples in splits.items():
        stored = []
        for name, (image, objects) in reversed(examples.items()):
            example = tf_example_pb2.Example()
            values = example.features.feature
            values["image"].bytes_list.value.append(encode(image))
            values["image/filename"].bytes_list.value.append(f"{name}.jpg".encode())
            for one in objects:
                left, top, right, bottom = one["corners"]
                fractions = np.divide((top, left, bottom, right), [*image.shape[:2]] * 2)
                values["objects/bbox"].float_list.value.extend(fractions)
                values["objects/label"].int64_list.value.append(label.str2int(one["name"]))
                difficult = one.get("difficult", 0)
                values["objects/is_difficult"].int64_list.value.append(difficult)
            stored.append(example.SerializeToString())
        _write_array_record(folder / f"voc-{split}.array_record-00000-of-00001", stored)
    counts = {split: [(len(examples), 1)] for split, examples in splits.items()}
    tfds_files.write_info(folder, "voc", features, counts, "voc", [])
    return root
