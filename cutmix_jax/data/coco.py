"""Images with captions: COCO's files, Karpathy's splits, lists in JSON, TFDS's coco_captions."""

import concurrent.futures
import contextlib
import functools
import json
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from cutmix_jax import UserError, first_names, host
from cutmix_jax.data import cache, image_files, records, tfds_sets
from cutmix_jax.paths import existing_folder, local_path

NAME = "coco_captions"
LIST_FORM = 'a list of {"image": path, "captions": [text, ...]}'


class Captioned(NamedTuple):
    """An image with its captions.

    Attributes:
        id: COCO's number of the image, or else its path in the JSON file.
        captions: as in the file.
        name: path of the image, or description of its record, for messages.
        file: path of the file that has its bytes.
        read: returns the bytes of the encoded image.
    """

    id: str
    captions: tuple[str, ...]
    name: str
    file: str
    read: Callable[[], bytes]


def read_splits(config: ConfigDict) -> dict[str, list[Captioned]]:
    """The images of `config.captions.train` and, unless images are held out, `.test`.

    Images without a caption, and captions without a letter or digit, are left out. A line on stderr
    says so, and another one if images are in both splits.

    Raises:
        UserError: a file is missing or has another form, or a split does not exist; the message
            names it.
    """
    keys = ("train",) if config.test_split == "held_out" else ("train", "test")
    in_lists = {key: _in_lists(config, key) for key in keys}
    if all(in_lists.values()) and config.captions.splits:
        raise UserError(
            f"config.captions.splits is {config.captions.splits!r}, but captions.train and "
            "captions.test are JSON files instead of its splits. Set only one of them."
        )
    named = [key for key in keys if not in_lists[key]]
    find = _finder(config, named[0]) if named else None
    splits = {}
    for key in keys:
        if in_lists[key]:
            splits[key] = _read_names(config, key, r"(?i)(?<=\.json)\+", _from_list)
        else:
            splits[key] = _read_names(config, key, r"\+", find)
    _say_common(splits)
    return splits


def encoded(images: Sequence[Captioned]) -> records.Split:
    """The encoded images, by their position. The result can be pickled."""
    return records.Split(
        count=len(images),
        read=functools.partial(_read, images),
        labels=None,
        name=functools.partial(_name, images),
    )


def _read(images: Sequence[Captioned], i: int) -> bytes:
    return images[i].read()


def _name(images: Sequence[Captioned], i: int) -> str:
    return images[i].name


def decode(images: Sequence[Captioned], side: int) -> np.ndarray:
    """uint8 [n, side, side, 3]: all images, resized without regard to their aspect ratio."""

    def make() -> dict[str, np.ndarray]:
        print(f"Decoding {len(images):,} images, once.", file=sys.stderr, flush=True)
        pixels = np.empty((len(images), side, side, 3), np.uint8)

        def fill(i: int) -> None:
            image = image_files.decode(images[i].read(), 3, images[i].name)
            pixels[i] = image_files.resize(image, (side, side))

        with concurrent.futures.ThreadPoolExecutor(host.cores(), "images") as pool:
            for _ in pool.map(fill, range(len(images))):
                pass
        return {"image": pixels}

    files = dict.fromkeys(image.file for image in images)
    described = [str(side), *(image.name for image in images), *cache.stats(files)]
    return cache.load_or_make(NAME, "\n".join(described), make)["image"]


def _in_lists(config: ConfigDict, key: str) -> bool:
    """Whether `config.captions[key]` names JSON files instead of splits."""
    names = config.captions[key].lower()
    if not names.endswith(".json") and ".json+" in names:
        raise UserError(
            f"config.captions.{key}={config.captions[key]} joins JSON files and splits. Give only "
            "files, or only splits."
        )
    return names.endswith(".json")


def _say_common(splits: dict[str, list[Captioned]]) -> None:
    """Prints a line to stderr if images of the training split are in the test split, too."""
    train = {image.name for image in splits["train"]}
    test = [image.name for image in splits.get("test", ())]
    if common := [name for name in test if name in train]:
        print(
            f"{len(common)} of the {len(test)} images of config.captions.test are in "
            f"config.captions.train, too ({first_names(common)}).",
            file=sys.stderr,
            flush=True,
        )


def _read_names(config: ConfigDict, key: str, separator: str, find: Callable) -> list[Captioned]:
    """The images of all splits that `config.captions[key]` names."""
    found, seen = [], set()
    for name in re.split(separator, config.captions[key]):
        images = _with_captions(find(name, key), name)
        if not images:
            raise UserError(
                f"The split {name!r} of config.captions.{key} has no image with a caption. Choose "
                f"another one with --config.captions.{key}."
            )
        for image in images:
            if image.name in seen:
                raise UserError(
                    f"config.captions.{key}={config.captions[key]} has {image.name} twice. Remove "
                    "the repeated image or split."
                )
            seen.add(image.name)
        found += images
    return found


def _finder(config: ConfigDict, named: str) -> Callable[[str, str], list[Captioned]]:
    """A function from the name of a split, and the key with that name, to the images.

    `named` is a key that names splits.
    """
    if config.data_dir is None:
        root = tfds_sets.default_root()
    else:
        root = existing_folder(config.data_dir, "data_dir", "the folder of COCO")
    if config.captions.splits:
        file = local_path(config.captions.splits, "config.captions.splits")
        images = local_path(root, "config.data_dir")
        return functools.partial(_from_karpathy, file, _load(file), images)
    if (root / "annotations").is_dir():
        return functools.partial(_from_tree, local_path(root, "config.data_dir"))
    folder = tfds_sets.find_prepared(NAME, root)
    if folder is None:
        raise UserError(
            f"{root} has neither the folder annotations of COCO nor a prepared {NAME}, for "
            f"config.captions.{named}={config.captions[named]}. Set --config.data_dir to the "
            f"folder that holds annotations, or --config.captions.{named} to a JSON file."
        )
    return functools.partial(_from_prepared, folder)


def _from_tree(root: pathlib.Path, name: str, key: str) -> list[Captioned]:
    """annotations/captions_NAME.json, with images in the folder NAME."""
    files = root / "annotations" / "captions_*.json"
    file = files.with_stem(f"captions_{name}")
    if not file.is_file():
        found = sorted(files.parent.glob(files.name))
        _refuse_split(name, (one.stem.removeprefix("captions_") for one in found), files, key)
    content = _load(file)
    with _form(file, "a file of captions of COCO"):
        captions = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            if annotation["image_id"] not in captions:
                raise UserError(
                    f"{file} has a caption of image {annotation['image_id']}, which it does not "
                    "list. Correct or replace the file."
                )
            captions[annotation["image_id"]].append(_text(annotation["caption"]))
        found = [
            _of_file(root / name / image["file_name"], captions[image["id"]], image["id"])
            for image in content["images"]
        ]
    return _checked(found, file)


def _from_karpathy(
    file: pathlib.Path, content, root: pathlib.Path, name: str, key: str
) -> list[Captioned]:
    """The split `name` of Karpathy's file, with images in the folders that it names."""
    with _form(file, "a file of splits by Karpathy"):
        splits = sorted({image["split"] for image in content["images"]})
        if name not in splits:
            _refuse_split(name, splits, file, key)
        found = [
            _of_file(
                root / image.get("filepath", "") / image["filename"],
                [_text(sentence["raw"]) for sentence in image["sentences"]],
                image.get("cocoid", image["filename"]),
            )
            for image in content["images"]
            if image["split"] == name
        ]
    return _checked(found, file)


def _from_list(name: str, key: str) -> list[Captioned]:
    """A JSON file of images and captions; paths are relative to its folder."""
    file = local_path(name, f"config.captions.{key}")
    content = _load(file)
    with _form(file, LIST_FORM):
        if not isinstance(content, list):
            raise TypeError(f"it is a {type(content).__name__}")
        found = []
        for image in content:
            if not isinstance(image["captions"], list):
                raise TypeError(f"'captions' of {image['image']} is not a list")
            captions = [_text(caption) for caption in image["captions"]]
            found.append(_of_file(file.parent / image["image"], captions, image["image"]))
    return _checked(found, file)


def _from_prepared(folder: pathlib.Path, name: str, key: str) -> list[Captioned]:
    """A split of coco_captions as TFDS prepared it."""
    info, _ = tfds_sets.read_info(NAME, folder)
    if name not in info.splits:
        _refuse_split(name, sorted(info.splits), folder, key)
    split = tfds_sets.open_split(NAME, info, name)

    def make() -> dict[str, np.ndarray]:
        print(f"Reading the captions of {split.count:,} images, once.", file=sys.stderr, flush=True)
        text = json.dumps([_record(split, i) for i in range(split.count)])
        return {"json": np.frombuffer(text.encode(), np.uint8)}

    paths = [str(path) for path in info.splits[name].filepaths]
    stored = cache.load_or_make(f"{NAME}-text", "\n".join([name, *cache.stats(paths)]), make)

    files = np.repeat(paths, info.splits[name].shard_lengths).tolist()
    return [
        Captioned(
            number, tuple(captions), split.name(i), files[i], functools.partial(_image, split, i)
        )
        for i, (number, captions) in enumerate(json.loads(stored["json"].tobytes()))
    ]


def _image(split: records.Split, i: int) -> bytes:
    return records.parse_example(split.read(i))["image"].bytes_list.value[0]


def _record(split: records.Split, i: int) -> tuple[str, list[str]]:
    """(id, captions) of a record."""
    feature = records.parse_example(split.read(i))
    if missing := {"image", "image/id", "captions/text"} - set(feature):
        raise UserError(
            f"{split.name(i)} lacks {', '.join(sorted(missing))}. Prepare {NAME} again."
        )
    captions = feature["captions/text"].bytes_list.value
    return str(feature["image/id"].int64_list.value[0]), [text.decode() for text in captions]


def _of_file(path: pathlib.Path, captions: list[str], number) -> Captioned:
    path = os.fspath(path)
    return Captioned(
        str(number), tuple(captions), path, path, functools.partial(image_files.read, path)
    )


def _text(caption) -> str:
    if not isinstance(caption, str):
        raise TypeError(f"the caption {caption!r} is not a string")
    if re.search(r"[\ud800-\udfff]", caption):
        raise ValueError(f"the caption {caption!r} has half of a surrogate pair")
    return caption


def _load(file: pathlib.Path):
    content = image_files.read(file)
    try:
        return json.loads(content)
    except ValueError as error:
        raise UserError(f"{file} is not a JSON file ({error}). Replace it.") from error


@contextlib.contextmanager
def _form(file: pathlib.Path, expected: str):
    """Turns the errors of a file of another form into one for the user."""
    try:
        yield
    except UserError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{file} is not {expected} ({reason}). Correct it, or see docs/input.md for the forms "
            "that are read."
        ) from error


def _refuse_split(name: str, names: Iterable[str], where, key: str) -> None:
    raise UserError(
        f"{where} has no split {name!r}, only {', '.join(names) or 'no file of captions'}. Choose "
        f"one with --config.captions.{key}."
    )


def _checked(images: list[Captioned], file: pathlib.Path) -> list[Captioned]:
    """The images, whose files all exist."""
    missing = [image.file for image in images if not os.path.isfile(image.file)]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(images)} images in {file} have no file "
            f"({first_names(missing)}). Add them, or correct the paths or --config.data_dir."
        )
    return images


def _with_captions(images: list[Captioned], where: str) -> list[Captioned]:
    """The images that have a caption, without their empty captions; says what is left out.

    A caption without a letter or digit is empty, because no score can compare it.
    """
    kept, without, empty = [], [], []
    for image in images:
        captions = tuple(caption for caption in image.captions if any(map(str.isalnum, caption)))
        if len(captions) < len(image.captions):
            empty.append(image.name)
        if captions:
            kept.append(image._replace(captions=captions))
        else:
            without.append(image.name)
    for names, what in ((empty, "the empty captions of"), (without, "images without a caption:")):
        if names:
            line = f"{where}: left out {what} {len(names)} ({first_names(names)})."
            print(line, file=sys.stderr, flush=True)
    return kept
