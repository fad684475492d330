"""Images with captions: every form of their files, the arrays of a task, crops, what is refused."""

import doctest
import io
import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

from cutmix_jax import UserError
from cutmix_jax.captioning.words import END, PAD, START, UNKNOWN, Vocabulary
from cutmix_jax.checkpoint import digest
from cutmix_jax.data import Shards, augment, cache, captions, coco, open_data, shapes
from cutmix_jax.data.captions import open_captions

from .conftest import WRITERS, encode, photograph

TRAIN = {
    7: ["A red cat.", "One cat sits."],
    3: ["A dog runs"],
    12: ["A cat and a dog.", "a dog!", "A red dog."],
}
TEST = {5: ["A cat runs.", "A fox"], 2: ["a red dog"]}


def picture(number):
    return photograph(number, 20 + number, 40)


def config(tree, **changes):
    """A config for a tree of COCO's form, with images stored at 12 pixels and cropped to 9."""
    sections = {"train": "train2014", "test": "val2014", "resize": 12, "min_count": 2}
    return {
        "dataset": "coco_captions",
        "data_dir": str(tree),
        "batch_size": 2,
        "image_size": 9,
        **changes,
        "captions": sections | changes.get("captions", {}),
    }


def write_images(folder, numbers, name="{:012d}.png"):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / name.format(number)).write_bytes(encode(picture(number)))


def write_coco(tree, name, texts):
    """COCO's own form; captions are in another order than images."""
    write_images(tree / name, texts)
    listed = [(number, caption) for number, several in texts.items() for caption in several]
    content = {
        "info": {},
        "images": [{"id": number, "file_name": f"{number:012d}.png"} for number in texts],
        "annotations": [
            {"id": i, "image_id": number, "caption": caption}
            for i, (number, caption) in sorted(enumerate(listed), key=lambda one: one[0] % 2)
        ],
    }
    (tree / "annotations").mkdir(exist_ok=True)
    (tree / f"annotations/captions_{name}.json").write_text(json.dumps(content))


@pytest.fixture
def tree(tmp_path):
    write_coco(tmp_path, "train2014", TRAIN)
    write_coco(tmp_path, "val2014", TEST)
    return tmp_path


def stored(number):
    """Pillow's resize of an image, without regard to its aspect ratio."""
    return np.asarray(Image.fromarray(picture(number)).resize((12, 12), Image.Resampling.BILINEAR))


def as_they_are(texts):
    return tuple(map(tuple, texts.values()))


def test_coco_is_read_as_it_is_in_its_files(tree):
    data = open_captions(config(tree))
    assert data.kind == "resident"
    assert data.examples == {"train": 6, "test": 2}
    assert data.steps_per_epoch == 3
    assert data.image_shape == (9, 9, 3)
    assert data.names == {"train": ["7", "3", "12"], "test": ["5", "2"]}
    assert data.captions["test"] == as_they_are(TEST)
    train = [set(several) for several in data.captions["train"]]
    assert train == [set(several) for several in TRAIN.values()]
    part = data.arrays["train"]
    assert {name: (values.shape, values.dtype.name) for name, values in part.items()} == {
        "image": ((3, 12, 12, 3), "uint8"),
        "image_of": ((6,), "int32"),
        "tokens": ((6, 22), "int32"),
    }
    np.testing.assert_array_equal(part["image"], [stored(number) for number in TRAIN])
    assert part["image_of"].tolist() == [0, 0, 1, 2, 2, 2]


def test_tokens_are_those_of_the_training_captions(tree):
    data = open_captions(config(tree, captions={"max_words": 4}))
    texts = [text for several in data.captions["train"] for text in several]
    assert data.vocabulary == Vocabulary.build(texts, min_count=2)
    assert data.class_names == data.vocabulary.words
    assert data.num_classes == len(data.class_names)
    assert "fox" not in data.class_names
    tokens = data.arrays["train"]["tokens"]
    np.testing.assert_array_equal(tokens, data.vocabulary.encode(texts, 4))
    # As many rows as the image with the most captions has; pads for the others.
    tokens = data.arrays["test"]["tokens"]
    assert (tokens.shape, tokens.dtype) == ((2, 2, 6), np.int32)
    a, cat = map(data.class_names.index, ("a", "cat"))
    assert tokens[0, 0, :3].tolist() == [START, a, cat]
    assert tokens[0, 1].tolist() == [START, a, UNKNOWN, END, PAD, PAD]
    assert tokens[1, 0, 0] == START
    assert tokens[1, 1].tolist() == [PAD] * 6


def write_karpathy(tree, splits, folder="{}"):
    images = []
    for split, texts in splits.items():
        write_images(tree / folder.format(split), texts)
        images += [
            {
                "filepath": folder.format(split),
                "filename": f"{number:012d}.png",
                "split": split,
                "cocoid": number,
                "sentences": [{"raw": text, "tokens": ["other"]} for text in several],
            }
            for number, several in texts.items()
        ]
    file = tree / "dataset.json"
    file.write_text(json.dumps({"dataset": "coco", "images": images}))
    return file


def write_list(folder, name, texts):
    write_images(folder / "pictures", texts)
    content = [
        {"image": f"pictures/{number:012d}.png", "captions": several}
        for number, several in texts.items()
    ]
    (folder / name).write_text(json.dumps(content))
    return str(folder / name)


def write_prepared(root, splits, version="1.1.0", shards=2):
    """What TFDS writes for coco_captions, in the bytes of its own features."""
    tfds = pytest.importorskip("tensorflow_datasets")
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "image/filename": tfds.features.Text(),
            "image/id": np.int64,
            "captions": tfds.features.Sequence({"id": np.int64, "text": np.str_}),
        }
    )
    folder = root / "coco_captions/2014" / version
    folder.mkdir(parents=True)
    features.save_config(folder)
    listed = []
    for split, texts in splits.items():
        examples = [
            features.serialize_example(
                features.encode_example(
                    {
                        "image": io.BytesIO(encode(picture(number))),
                        "image/filename": f"{number:012d}.png",
                        "image/id": number,
                        "captions": [{"id": i, "text": text} for i, text in enumerate(several)],
                    }
                )
            )
            for number, several in texts.items()
        ]
        parts = np.array_split(np.arange(len(examples)), shards)
        for i, part in enumerate(parts):
            name = f"coco_captions-{split}.tfrecord-{i:05d}-of-{shards:05d}"
            WRITERS["tfrecord"](folder / name, [examples[j] for j in part])
        lengths = [str(len(part)) for part in parts]
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        listed.append(
            {
                "name": split,
                "shardLengths": lengths,
                "numBytes": "1",
                "filepathTemplate": template,
            }
        )
    info = {
        "name": "coco_captions",
        "configName": "2014",
        "version": version,
        "fileFormat": "tfrecord",
        "splits": listed,
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return root


FORMS = ("coco", "karpathy", "list", "prepared")


@pytest.fixture(params=FORMS)
def form(request, tmp_path):
    """The config of the same images in each form, the training split in two parts."""
    tmp_path /= "forms"
    tmp_path.mkdir()
    first, second = {7: TRAIN[7]}, {number: TRAIN[number] for number in (3, 12)}
    if request.param == "coco":
        for name, texts in (("one", first), ("two", second), ("three", TEST)):
            write_coco(tmp_path, name, texts)
        return config(tmp_path, captions={"train": "one+two", "test": "three"})
    splits = {"train": first, "restval": second, "test": TEST}
    named = {"train": "train+restval", "test": "test"}
    if request.param == "karpathy":
        file = write_karpathy(tmp_path, splits)
        return config(tmp_path, captions=named | {"splits": str(file)})
    if request.param == "prepared":
        return config(write_prepared(tmp_path, splits), captions=named)
    one, two, three = (
        write_list(tmp_path / f"{name}+", f"{name}.json", texts) for name, texts in splits.items()
    )
    return config(None, data_dir=None, captions={"train": f"{one}+{two}", "test": three})


def test_all_forms_give_the_same(form, tree):
    data = open_captions(form)
    assert data.captions["test"] == as_they_are(TEST)
    assert list(map(sorted, data.captions["train"])) == list(map(sorted, TRAIN.values()))
    expected = open_captions(config(tree)).arrays
    for split, part in data.arrays.items():
        np.testing.assert_array_equal(part["image"], expected[split]["image"])
    assert [int("".join(filter(str.isdigit, name))) for name in data.names["train"]] == [7, 3, 12]
    # Held-out images take their captions with them.
    held = open_captions(form | {"held_out": 1, "test_split": "held_out", "batch_size": 1})
    kept, gone = held.captions["train"], held.captions["test"]
    assert (len(kept), len(gone)) == (2, 1)
    assert sorted(map(sorted, kept + gone)) == sorted(map(sorted, TRAIN.values()))
    assert held.examples == {"train": sum(map(len, kept)), "test": 1}
    if data.names["train"][0] == "7":  # a number of COCO, not a path
        assert set(held.names["train"] + held.names["test"]) == {"7", "3", "12"}


def test_images_are_held_out_and_chosen_by_the_rule_of_all_datasets(tree):
    data = open_captions(config(tree, held_out=1, train_examples=1, batch_size=1))
    by_image = list(map(sorted, TRAIN.values()))
    chosen = {
        split: [by_image.index(sorted(several)) for several in data.captions[split]]
        for split in ("train", "held_out")
    }
    train, held = captions.batches.choose_examples(3, 1, 1)
    assert chosen == {"train": train.tolist(), "held_out": held.tolist()}
    assert data.examples == {"train": len(data.captions["train"][0]), "held_out": 1, "test": 2}
    # A batch may have more captions than there are images.
    assert open_captions(config(tree, batch_size=6)).steps_per_epoch == 1
    with pytest.raises(UserError, match="6 training examples are fewer than one batch of 7"):
        open_captions(config(tree, batch_size=7))


def loaded(data, shards, epoch=1, start=0):
    """(image, tokens) of an epoch in the order of the batches, over all devices."""
    batches = []
    load = jax.jit(data.load_train)
    for xs in data.train_batches(epoch, start):
        for device in range(shards):
            batch = load(data.arrays["train"], jax.tree.map(lambda x: x[device], xs), epoch)  # noqa: B023
            batches.append(jax.device_get(batch))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def test_a_caption_is_trained_with_a_crop_of_its_image(tree):
    data = open_captions(config(tree, augment={"flip": True}))
    (order,) = captions.batches.train_positions(0, 1, 6, 6, Shards())[0]
    keys = augment.example_keys(0, 1, order)
    top, left, mirror = map(np.asarray, augment.crop_and_flip_draws(keys, 0, (3, 3)))
    got = loaded(data, 1)
    assert got["image"].dtype == np.float32
    part = data.arrays["train"]
    np.testing.assert_array_equal(got["tokens"], part["tokens"][order])
    for k, i in enumerate(order):
        crop = part["image"][part["image_of"][i], top[k] : top[k] + 9, left[k] : left[k] + 9]
        crop = crop[:, ::-1] if mirror[k] else crop
        np.testing.assert_allclose(got["image"][k], crop / np.float32(255), rtol=1e-6)
    other = loaded(data, 1, epoch=2)
    assert not np.array_equal(got["image"], other["image"])


def test_batches_are_the_same_on_eight_devices_and_after_a_restart(tree):
    changes = {"batch_size": 8, "augment": {"flip": True}}
    texts = dict.fromkeys((7, 3, 12), TRAIN[7] * 4)
    write_coco(tree, "train2014", texts)
    one, eight = (open_captions(config(tree, **changes), Shards(n)) for n in (1, 8))
    assert one.steps_per_epoch == 3
    jax.tree.map(np.testing.assert_array_equal, loaded(one, 1), loaded(eight, 8))
    rest = loaded(one, 1, start=2)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[16:], b), loaded(one, 1), rest)


def test_every_image_is_evaluated_once_from_its_center(tree):
    data = open_captions(config(tree, batch_size=2, image_size=8))
    for image, number in zip(data.arrays["test"]["image"], TEST, strict=True):
        np.testing.assert_array_equal(image, stored(number)[2:10, 2:10])
    (xs,) = data.eval_batches("test")
    batch = jax.jit(data.load_eval)(data.arrays["test"], jax.tree.map(lambda x: x[0], xs))
    assert batch.keys() == {"image", "tokens", "mask"}
    np.testing.assert_array_equal(batch["tokens"], data.arrays["test"]["tokens"])
    assert batch["mask"].all()


def test_images_are_decoded_once(tree, monkeypatch):
    first = open_captions(config(tree, captions={"resize": 14}))
    with monkeypatch.context() as patch:
        patch.setattr(coco.image_files, "decode", None)
        again = open_captions(config(tree, captions={"resize": 14}))
    assert digest(dict(first.arrays)) == digest(dict(again.arrays))
    path = tree / "train2014/000000000003.png"
    path.write_bytes(encode(picture(9)))
    changed = open_captions(config(tree, captions={"resize": 14})).arrays["train"]["image"]
    assert (changed != first.arrays["train"]["image"]).any((1, 2, 3)).tolist() == [0, 1, 0]


def test_streamed_images_have_the_bits_of_resident_ones(form):
    """From threads, and from processes, which get the images of each form by pickling."""
    flipped = form | {"augment": {"flip": True}}
    resident = open_captions(flipped)
    for changes in ({}, {"reader_processes": 1}):
        streamed = open_captions(flipped | changes | {"source": "streaming"})
        assert (resident.kind, streamed.kind) == ("resident", "streaming")
        assert streamed.arrays["train"].keys() == {"tokens"}
        assert streamed.examples == resident.examples
        jax.tree.map(
            np.testing.assert_array_equal,
            loaded(streamed, 1, start=1),
            loaded(resident, 1, start=1),
        )
        found, expected = ([*evaluated(data)] for data in (streamed, resident))
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_photographs_of_ones_own_are_not_cropped_again(tree):
    """They come in the arrays, as `captions.fit` returns them."""
    own = {"image": np.arange(2 * 9 * 9 * 3, dtype=np.uint8).reshape(2, 9, 9, 3)}
    own["tokens"] = np.zeros((2, 1, 2), np.int32)
    xs = {"index": np.arange(2), "mask": np.ones(2, bool)}
    for source in ("resident", "streaming"):
        found = open_captions(config(tree, source=source)).load_eval(own, xs)
        np.testing.assert_array_equal(found["image"], own["image"])


def evaluated(data):
    """The batches of evaluation."""
    for xs in data.eval_batches("test"):
        yield jax.jit(data.load_eval)(data.arrays["test"], jax.tree.map(lambda x: x[0], xs))


def test_captions_decide_whether_a_run_resumes(tree):
    """Other captions change the digest of the data, or the vocabulary."""
    before = open_captions(config(tree))
    write_coco(tree, "train2014", TRAIN | {3: ["A cat runs"]})
    assert digest(dict(before.arrays)) != digest(dict(open_captions(config(tree)).arrays))
    other = open_captions(config(tree, captions={"min_count": 1}))
    assert other.class_names != before.class_names


SHAPES = {"dataset": "shapes", "image_size": 16, "train_examples": 30, "batch_size": 8}


@pytest.fixture
def few_shapes(monkeypatch):
    monkeypatch.setattr(shapes, "TEST_EXAMPLES", 11)


def test_shapes_have_the_sentence_that_describes_them(few_shapes):
    data = open_captions(SHAPES | {"held_out": 5})
    assert data.examples == {"train": 30, "held_out": 5, "test": 11}
    assert data.names is None
    for i, (caption,) in enumerate(data.captions["test"]):
        example = shapes.draw_example(shapes.SEEDS["test"], i, 16)
        assert caption == example.caption
        np.testing.assert_array_equal(data.arrays["test"]["image"][i], example.image)
    several = open_captions(SHAPES | {"max_objects": 3})
    assert any(" and " in caption for (caption,) in several.captions["train"])


def test_shapes_are_padded_and_flipped_like_those_of_a_classifier(few_shapes):
    changes = {"augment": {"pad": 2, "flip": True}}
    data, classified = open_captions(SHAPES | changes), open_data(SHAPES | changes)
    xs = jax.tree.map(lambda x: x[0], next(iter(data.train_batches(0))))
    got = data.load_train(data.arrays["train"], xs, 0)
    expected = classified.load_train(classified.arrays["train"], xs, 0)
    np.testing.assert_array_equal(got["image"], expected["image"])


def test_shapes_are_drawn_once_for_all_tasks(few_shapes, monkeypatch):
    data = open_captions(SHAPES | {"train_examples": 31})
    with monkeypatch.context() as patch:
        patch.setattr(shapes, "draw_example", None)
        classified = open_data(SHAPES | {"train_examples": 31})
    np.testing.assert_array_equal(
        classified.arrays["train"]["image"], data.arrays["train"]["image"]
    )


def test_drawings_from_before_there_were_captions_serve_a_classifier(few_shapes, monkeypatch):
    config = SHAPES | {"train_examples": 32}
    open_data(config)
    path = cache.cache_path("shapes", f"{shapes.VERSION} 16 {{'train': 32, 'test': 11}}")
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files if "caption" not in key}
    np.savez(path, **arrays)
    with monkeypatch.context() as patch:
        patch.setattr(shapes, "draw_example", None)
        open_data(config)
    assert len(open_captions(config).captions["train"]) == 32
    monkeypatch.setattr(shapes, "draw_example", None)
    open_captions(config)  # the captions are kept


def test_the_example_is_right(few_shapes):
    result = doctest.testmod(captions)
    assert (result.attempted, result.failed) == (4, 0)


def test_what_is_empty_is_left_out_and_said(tree, capsys):
    write_coco(tree, "train2014", TRAIN | {3: ["A dog runs", " \n"], 4: [], 8: [""]})
    data = open_captions(config(tree))
    assert data.names["train"] == ["7", "3", "12"]
    assert data.captions["train"][1] == ("A dog runs",)
    said = capsys.readouterr().err
    assert "train2014: left out the empty captions of 2 (" in said
    assert "train2014: left out images without a caption: 2 (" in said
    assert "too" not in said


def test_captions_of_punctuation_are_empty(tree, capsys):
    """They have no word that scores could compare."""
    write_coco(tree, "val2014", {5: ["A cat", " . "], 6: ["..."], 2: ["é"]})
    data = open_captions(config(tree))
    assert data.captions["test"] == (("A cat",), ("é",))
    said = capsys.readouterr().err
    assert "val2014: left out the empty captions of 2 (" in said
    assert "val2014: left out images without a caption: 1 (" in said


def test_images_in_both_splits_are_said(tree, capsys):
    write_coco(tree, "other", {9: ["A cat"]})
    open_captions(config(tree, captions={"test": "other+train2014"}))
    assert re.search(
        r"^3 of the 4 images of config\.captions\.test are in config\.captions\.train, too "
        r"\(.*007\.png, .*003\.png, .*012\.png\)\.$",
        capsys.readouterr().err,
        re.MULTILINE,
    )


def test_lists_may_have_capital_endings(tmp_path):
    one, two, three = (
        write_list(tmp_path, name, {number: TRAIN[number]})
        for name, number in (("one.JSON", 7), ("two.json", 3), ("three.JSON", 12))
    )
    data = open_captions(config(None, captions={"train": f"{one}+{two}", "test": three}))
    assert [len(several) for several in data.captions["train"]] == [2, 1]


def test_lists_and_splits_are_not_joined(tree):
    file = write_list(tree, "own.json", TRAIN)
    with pytest.raises(UserError, match=r"captions\.train=.*own\.json\+train2014 joins JSON files"):
        open_captions(config(tree, captions={"train": f"{file}+train2014"}))
    (tree / "annotations").rename(tree / "notes")
    with pytest.raises(
        UserError, match=r"for config\.captions\.test=val2014\. .*captions\.test to"
    ):
        open_captions(config(tree, captions={"train": file}))


def test_training_captions_of_rare_words_are_counted(tree, capsys):
    write_coco(tree, "train2014", TRAIN | {3: ["Unseen words"]})
    assert open_captions(config(tree)).examples["train"] == 6
    said = capsys.readouterr().err
    assert "1 of the 6 training captions have only words that occur fewer than 2 times" in said
    assert "'Unseen words'" in said


def rewrite(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


VAL = "annotations/captions_val2014.json"

BROKEN = {
    "no folder": (lambda tree: tree.rename(tree.parent / "other"), "is not a folder"),
    "no annotations": (
        lambda tree: (tree / "annotations").rename(tree / "notes"),
        r"neither the folder annotations of COCO nor a prepared coco_captions",
    ),
    "no such split": (
        lambda tree: (tree / VAL).rename(tree / "annotations/captions_test2015.json"),
        r"captions_\*\.json has no split 'val2014', only test2015, train2014\. .*captions\.test",
    ),
    "no JSON": (
        lambda tree: (tree / VAL).write_text("{"),
        r"captions_val2014\.json is not a JSON file \(Expecting property",
    ),
    "another form": (
        lambda tree: (tree / VAL).write_text("[]"),
        r"captions_val2014\.json is not a file of captions of COCO \(.*docs/input\.md",
    ),
    "boxes instead of captions": (
        lambda tree: rewrite(tree / VAL, lambda c: c["annotations"][0].pop("caption")),
        r"is not a file of captions of COCO \('caption' is missing\)",
    ),
    "a number for a caption": (
        lambda tree: rewrite(tree / VAL, lambda c: c["annotations"][0].update(caption=3)),
        r"\(the caption 3 is not a string\)",
    ),
    "half a character": (
        lambda tree: rewrite(tree / VAL, lambda c: c["annotations"][0].update(caption="a \ud83d")),
        r"captions_val2014\.json is .*\(the caption 'a \\ud83d' has half of a surrogate pair\)",
    ),
    "a caption of no image": (
        lambda tree: rewrite(tree / VAL, lambda c: c["images"].pop(0)),
        r"captions_val2014\.json has a caption of image 5, which it does not list",
    ),
    "no image": (
        lambda tree: (tree / "val2014/000000000005.png").unlink(),
        r"1 of the 2 images in .*captions_val2014\.json have no file \(.*0005\.png\)\. Add",
    ),
    "a damaged image": (
        lambda tree: (tree / "val2014/000000000005.png").write_bytes(b"no"),
        r"0005\.png is not a readable image",
    ),
    "an image listed twice": (
        lambda tree: rewrite(tree / VAL, lambda c: c["images"].append(c["images"][0])),
        r"config\.captions\.test=val2014 has .*0005\.png twice",
    ),
    "an empty split": (
        lambda tree: write_coco(tree, "val2014", {}),
        r"split 'val2014' of config\.captions\.test has no image with a caption",
    ),
    "empty captions only": (
        lambda tree: write_coco(tree, "val2014", {5: [" "]}),
        r"split 'val2014' of config\.captions\.test has no image with a caption",
    ),
    "words that training does not know": (
        lambda tree: write_coco(tree, "val2014", {5: ["Ein Hund", "eine Katze"]}),
        r"No caption of the split test has a word of the vocabulary, such as 'Ein Hund'",
    ),
    "no word that occurs often enough": (
        lambda tree: write_coco(tree, "train2014", {3: ["A dog", "two cats"]}),
        r"config\.captions\.min_count is 2, but no word of the captions of 1 training images",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_trees_are_refused(tree, case):
    damage, match = BROKEN[case]
    damage(tree)
    with pytest.raises(UserError, match=match) as caught:
        open_captions(config(tree))
    assert "\n" not in str(caught.value)


def test_broken_splits_of_karpathy_are_refused(tmp_path):
    file = write_karpathy(tmp_path, {"train": TRAIN, "test": TEST})
    named = {"splits": str(file), "train": "train", "test": "test"}
    with pytest.raises(UserError, match=r"no split 'val', only test, train\. .*captions\.test"):
        open_captions(config(tmp_path, captions=named | {"test": "val"}))
    missing = (
        r"^\S*nowhere\.json cannot be read \(No such file or directory\)\. Replace or remove it\.$"
    )
    with pytest.raises(UserError, match=missing):
        open_captions(config(tmp_path, captions=named | {"splits": "nowhere.json"}))
    with pytest.raises(UserError, match=r"config\.captions\.splits is 's3://a', but a local path"):
        open_captions(config(tmp_path, captions=named | {"splits": "s3://a"}))
    with pytest.raises(UserError, match=r"captions\.splits is .* are JSON files"):
        open_captions(config(tmp_path, captions=named | {"train": "a.json", "test": "b.json"}))
    rewrite(file, lambda content: content["images"][0].pop("sentences"))
    with pytest.raises(UserError, match=r"not a file of splits by Karpathy \('sentences' is miss"):
        open_captions(config(tmp_path, captions=named))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"images": []}, r'is not a list of {"image": path, .* \(it is a dict\)'),
        ([], r"split '.*list\.json' of config\.captions\.train has no image"),
        ([{"captions": ["a"]}], r"\('image' is missing\)"),
        ([{"image": "a.png", "captions": "a dog"}], r"\('captions' of a\.png is not a list\)"),
        ([{"image": "a.png", "captions": [1]}], r"\(the caption 1 is not a string\)"),
        ([{"image": "a.png", "captions": ["a"]}], r"1 of the 1 images in .* have no file"),
        ([{"image": 3, "captions": ["a"]}], r"is not a list of"),
        (["a.png"], r"is not a list of"),
    ],
)
def test_broken_lists_are_refused(tmp_path, content, match):
    file = tmp_path / "list.json"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=match):
        open_captions(config(tmp_path, captions={"train": str(file), "test": str(file)}))


def test_broken_prepared_sets_are_refused(tmp_path, write_tfds):
    root = write_prepared(tmp_path, {"train": TRAIN, "test": TEST})
    with pytest.raises(UserError, match=r"1\.1\.0 has no split 'train2014', only test, train\."):
        open_captions(config(root))
    examples = {"train": [(encode(picture(1)), 1)]}
    write_tfds(tmp_path, examples, name="coco_captions", config="2014", version="1.2.0", shards=1)
    with pytest.raises(UserError, match=r"record 0 of train .* lacks captions/text, image/id"):
        open_captions(config(root, captions={"train": "train", "test": "train"}))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"dataset": "cifar10"}, r"dataset=cifar10 has no captions\. .*coco_captions"),
        ({"test_split": "val"}, r"test_split is 'val', but .* --config\.captions\.test"),
        ({"augment": {"min_area": 0.1}}, r"augment\.min_area is 0\.1, but captions of coco_capt"),
        (
            {"augment": {"policy": "rand_augment"}},
            r"augment\.policy is .rand_augment., but captions",
        ),
        ({"augment": {"erasing": 0.5}}, r"augment\.erasing is 0\.5, but captions"),
        ({"square_resize": 20}, r"config\.square_resize is 20"),
        ({"max_objects": 2}, r"config\.max_objects is 2"),
        ({"image_size": 13}, r"image_size is 13, but .*captions\.resize=12"),
        ({"augment": {"pad": 1}}, r"augment\.pad is 1, but .* already cropped to .*image_size=9"),
        ({"image_size": None, "augment": {"pad": 13}}, r"augment\.pad=13 is larger"),
        ({"held_out": 3}, "leaves none of the 3 training examples"),
        ({"held_out": 0, "test_split": "held_out"}, r"--config\.held_out=N"),
        (
            {"resident_limit_mib": 0, "source": "resident"},
            r"coco_captions takes 0\.0 MiB in device memory.* --config\.source=streaming",
        ),
        ({"captions": {"max_words": 0}}, "max_words is 0, but a finite number of at least 1"),
    ],
)
def test_what_captioning_cannot_use_is_refused(tree, changes, match):
    with pytest.raises(UserError, match=match) as caught:
        open_captions(config(tree, **changes))
    assert "\n" not in str(caught.value)


def test_keys_for_photographs_are_refused_for_shapes():
    with pytest.raises(UserError, match="shapes is always resident"):
        open_captions(SHAPES | {"source": "streaming"})
    for key, value in {"train": "a", "splits": "a", "resize": 20}.items():
        with pytest.raises(UserError, match=rf"config\.captions\.{key} is {value!r}, but capt"):
            open_captions(SHAPES | {"captions": {key: value}})


def test_captions_are_not_for_classifiers(tree):
    with pytest.raises(UserError, match=r"has captions instead of one label .* to captioning"):
        open_data({"dataset": "coco_captions", "data_dir": str(tree)})


def test_real_captions_are_read_as_a_plain_loop_reads_them(tfds_dir):
    tree = tfds_dir.parent / "captions"
    if not tree.is_dir():
        pytest.skip(f"needs {tree}")
    splits = {"train": "train2017", "test": "val2017"}
    data = open_captions(
        config(tree, image_size=224, batch_size=20, captions=splits | {"resize": 256})
    )
    assert data.examples == {"train": 100, "test": 20}
    for split, name in splits.items():
        content = json.loads((tree / f"annotations/captions_{name}.json").read_text())
        for k, image in enumerate(content["images"]):
            assert data.names[split][k] == str(image["id"])
            assert list(data.captions[split][k]) == [
                one["caption"] for one in content["annotations"] if one["image_id"] == image["id"]
            ]
            picture = Image.open(tree / name / image["file_name"]).convert("RGB")
            pixels = np.asarray(picture.resize((256, 256), Image.Resampling.BILINEAR))
            pixels = pixels if split == "train" else pixels[16:240, 16:240]
            np.testing.assert_array_equal(data.arrays[split]["image"][k], pixels)
