"""Images with captions, for captioning: resident or streamed."""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable, Mapping

import jax
import numpy as np
from ml_collections import ConfigDict

from cutmix_jax import UserError
from cutmix_jax.captioning.words import UNKNOWN, Vocabulary
from cutmix_jax.config import check_unused
from cutmix_jax.data import augment, batches, coco, crops, image_files, resident, shapes, streaming
from cutmix_jax.data.batches import Data, Shards
from cutmix_jax.data.loading import PaddedLoader
from cutmix_jax.data.records import Split

ONE_DEVICE = Shards()
SETS = ("shapes", coco.NAME)
# Keys that change the images of other tasks.
UNUSED = (
    "augment.min_area",
    "augment.max_area",
    "augment.policy",
    "augment.erasing",
    "boxes_dir",
    "eval_size",
    "eval_resize",
    "square_resize",
    "repeats",
)
# Keys for photographs, which shapes do not need.
FILES = ("captions.train", "captions.test", "captions.splits", "captions.resize")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionData(Data):
    """An opened dataset of images with captions.

    `class_names` are the words of the vocabulary, in the order of their ids. `names` has a name per
    image of each split: COCO's number, or its path in the JSON file. A training example is a
    caption, an example of another split is an image.

    Attributes:
        vocabulary: made from the training captions.
        captions: per split and image the captions, as they are in the file.
    """

    vocabulary: Vocabulary
    captions: Mapping[str, tuple[tuple[str, ...], ...]]


@dataclasses.dataclass(frozen=True)
class CaptionSet:
    """A dataset before its splits are chosen.

    Attributes:
        captions: per split and image the captions.
        side: height and width of the stored images, in pixels.
        read: (split, int [n] indices) -> uint8 [n, side, side, 3].
        encoded: per split the encoded images, for streaming; None if there are no files.
        names: per split a name per image, or None.
    """

    captions: Mapping[str, list[tuple[str, ...]]]
    side: int
    read: Callable[[str, np.ndarray], np.ndarray]
    encoded: Mapping[str, Split] | None = None
    names: Mapping[str, list[str]] | None = None


def open_captions(config, shards: Shards = ONE_DEVICE) -> CaptionData:
    """Opens a dataset of images with captions.

    `Data.arrays['train']` has, for `I` images with `M` captions, whose rows of tokens have the
    length `L = captions.max_words + 2`,

    - `image`: uint8 `[I, R, R, 3]`, where `R` is `captions.resize`, or `image_size` for shapes;
    - `image_of`: int32 `[M]`, the image of each caption;
    - `tokens`: int32 `[M, L]`, from `Vocabulary.encode`.

    The other splits have

    - `image`: uint8 `[I, S, S, 3]`, the central crop, where `S` is `image_size`;
    - `tokens`: int32 `[I, C, L]`, for at most `C` captions per image; rows of pads for fewer.

    `load_train` gives the captions at `xs['index']` and their images, `{'image': float32
    [b, S, S, 3] in [0, 1], 'tokens': int32 [b, L]}`, cropped and flipped at random as functions of
    (seed, epoch, index). `load_eval` gives images with all their captions, and the mask.

    Streamed images have the same bits. Those of a batch come as `xs['image']`, uint8
    `[b, R, R, 3]`, one per caption in training, and `arrays` has only the tokens. `source='auto'`
    streams if the images take more than `resident_limit_mib`. Those of shapes are always resident.

    `config.train_examples` and `config.held_out` count images, whose captions go with them.

    Args:
        config: a config that passed `check_config`, or a mapping with the keys that differ from the
            defaults of `config.SCHEMA`. `dataset` is 'shapes' or 'coco_captions'.
        shards: how batches are split over devices and processes.

    Returns:
        The opened dataset; nothing is on a device yet.

    Raises:
        UserError: the config or the dataset cannot be used; the message says why.

    Example:
        >>> config = {'dataset': 'shapes', 'train_examples': 64}
        >>> data = open_captions(config)
        >>> data.captions['train'][0]
        ('A dotted gray hourglass on a purple ground.',)
        >>> {name: values.shape for name, values in data.arrays['train'].items()}
        {'image': (64, 64, 64, 3), 'image_of': (64,), 'tokens': (64, 22)}
    """
    config = batches.prepare(config, shards)
    _check(config)
    found = _shapes(config) if config.dataset == "shapes" else _photographs(config)
    size = config.image_size or found.side
    _check_sizes(config, size, found.side)
    counts = {split: len(captions) for split, captions in found.captions.items()}
    indices = batches.choose_splits(
        counts, config, lambda index: sum(len(found.captions["train"][i]) for i in index)
    )
    captions = {
        split: tuple(found.captions[origin][i] for i in index)
        for split, (origin, index) in indices.items()
    }
    vocabulary = _build_vocabulary(config, captions["train"])
    tokens = {split: _encode(config, vocabulary, texts, split) for split, texts in captions.items()}
    counts = {split: [len(of_image) for of_image in texts] for split, texts in captions.items()}
    image_of = np.repeat(np.arange(len(counts["train"]), dtype=np.int32), counts["train"])
    arrays = {"train": {"tokens": tokens["train"]}}
    for split in [name for name in indices if name != "train"]:
        rows = np.split(tokens[split], np.cumsum(counts[split])[:-1])
        arrays[split] = {"tokens": batches.pad(rows, max(counts[split]), 0)}
    load_train = augment.create_load_train(gather_captions, config, (size, size))
    if _is_resident(config, found.side, size, counts):
        for split, (origin, index) in indices.items():
            images = found.read(origin, index)
            if split == "train":
                arrays[split] = {"image": images, "image_of": image_of} | arrays[split]
            else:
                images = np.ascontiguousarray(_central(images, size))
                arrays[split] = {"image": images} | arrays[split]
        data = resident.open_arrays(
            config, arrays, vocabulary.words, shards, load_train, counted="tokens"
        )
    else:
        data = streaming.open_beside_arrays(
            config,
            _create_loader(found, indices, image_of),
            arrays,
            vocabulary.words,
            shards,
            load_train,
            functools.partial(_load_streamed, size=size),
            (size, size, 3),
        )
    names = found.names and {
        split: [found.names[origin][i] for i in index] for split, (origin, index) in indices.items()
    }
    fields = {field.name: getattr(data, field.name) for field in dataclasses.fields(Data)}
    own = {"image_shape": (size, size, 3), "names": names}
    return CaptionData(**fields | own, vocabulary=vocabulary, captions=captions)


def gather_captions(arrays: Mapping[str, jax.Array], xs: Mapping[str, jax.Array]) -> dict:
    """The captions at `xs['index']`, each with its image: that of `xs`, or a resident one."""
    if "image" in xs:
        return resident.gather(arrays, xs) | {"image": xs["image"]}
    found = resident.gather({name: arrays[name] for name in ("image_of", "tokens")}, xs)
    images = resident.gather({"image": arrays["image"]}, {"index": found["image_of"]})
    return images | {"tokens": found["tokens"]}


def _load_streamed(arrays, xs, size: int) -> dict:
    """The images at `xs['index']` in evaluation, with all their captions."""
    found = resident.gather(arrays, xs)
    # Photographs of one's own come in the arrays, and fit already.
    return found | {"image": _central(xs["image"], size)} if "image" in xs else found


def fit(image: np.ndarray, config: ConfigDict, shape: tuple[int, int, int]) -> np.ndarray:
    """An image uint8 [h, w, 3] of any size, as evaluation sees images: uint8 of `shape`."""
    side = shape[0] if config.dataset == "shapes" else config.captions.resize
    return _central(image_files.resize(image, (side, side))[None], shape[0])[0]


def _check(config: ConfigDict) -> None:
    """Rejects what images with captions do not support."""
    if config.dataset not in SETS:
        raise UserError(
            f"dataset={config.dataset} has no captions. Use --config.dataset=coco_captions with "
            "COCO's files or a JSON file of your own, or shapes."
        )
    if config.test_split not in (None, "test", "held_out"):
        raise UserError(
            f"config.test_split is {config.test_split!r}, but captioning has only test and "
            "held_out. Name the split in --config.captions.test."
        )
    others = FILES if config.dataset == "shapes" else ("max_objects",)
    check_unused(config, (*UNUSED, *others), f"captions of {config.dataset} do not use it")


def _check_sizes(config: ConfigDict, size: int, side: int) -> None:
    if size > side:
        raise UserError(
            f"config.image_size is {size}, but images are stored with captions.resize={side} "
            "pixels. Use a larger --config.captions.resize."
        )
    if config.augment.pad and size < side:
        raise UserError(
            f"config.augment.pad is {config.augment.pad}, but images of {side} pixels are already "
            f"cropped to config.image_size={size}. Set it to 0, or captions.resize={size}."
        )
    if config.augment.pad > size:
        raise UserError(
            f"augment.pad={config.augment.pad} is larger than the images ({size}x{size}). Use a "
            "smaller one."
        )


def _shapes(config: ConfigDict) -> CaptionSet:
    size, counts = shapes.size_and_counts(config)
    arrays = shapes.read_arrays(size, counts, config.max_objects, ("image", "caption"))
    return CaptionSet(
        captions={
            split: [(caption,) for caption in part["caption"].tolist()]
            for split, part in arrays.items()
        },
        side=size,
        read=lambda split, index: arrays[split]["image"][index],
    )


def _photographs(config: ConfigDict) -> CaptionSet:
    splits, side = coco.read_splits(config), config.captions.resize
    return CaptionSet(
        captions={split: [image.captions for image in part] for split, part in splits.items()},
        side=side,
        read=lambda split, index: coco.decode([splits[split][i] for i in index], side),
        encoded={split: coco.encoded(part) for split, part in splits.items()},
        names={split: [image.id for image in part] for split, part in splits.items()},
    )


def _is_resident(config: ConfigDict, side: int, size: int, counts: Mapping[str, list]) -> bool:
    """Whether to keep the images in device memory; see `open_captions`.

    Splits have images of two sizes. So their pixels are counted, each as an image.
    """
    pixels = sum(
        len(of_split) * (side if split == "train" else size) ** 2
        for split, of_split in counts.items()
    )
    if config.dataset == "shapes":
        return True  # `shapes` has checked that they fit
    remedy = "Use fewer with --config.train_examples=N, or --config.source=streaming"
    return batches.is_resident(config, pixels, (1, 1, 3), remedy)


def _create_loader(
    found: CaptionSet, indices: Mapping[str, tuple[str, np.ndarray]], image_of: np.ndarray
) -> PaddedLoader:
    """Decodes the image of each training caption, and the images of the other splits."""
    examples = {
        split: (found.encoded[origin], index[image_of] if split == "train" else index)
        for split, (origin, index) in indices.items()
    }
    return PaddedLoader(
        shape=(found.side, found.side, 3),
        splits=examples,
        sizes={
            split: np.full((len(index), 2), found.side, np.int32)
            for split, (_, index) in examples.items()
        },
    )


def _build_vocabulary(config: ConfigDict, captions: tuple[tuple[str, ...], ...]) -> Vocabulary:
    texts, count = itertools.chain.from_iterable(captions), config.captions.min_count
    try:
        return Vocabulary.build(texts, count)
    except UserError:  # no tokenizer
        raise
    except ValueError as error:
        raise UserError(
            f"config.captions.min_count is {count}, but no word of the captions of "
            f"{len(captions):,} training images occurs that often. Use a smaller one, or more "
            "images."
        ) from error


def _encode(config: ConfigDict, vocabulary: Vocabulary, captions, split: str) -> np.ndarray:
    """int32 [M, L]: the tokens of all captions of a split, image by image."""
    texts = list(itertools.chain.from_iterable(captions))
    tokens = vocabulary.encode(texts, config.captions.max_words)
    unknown = np.flatnonzero((tokens <= UNKNOWN).all(1))
    if len(unknown) == len(texts):
        raise UserError(
            f"No caption of the split {split} has a word of the vocabulary, such as "
            f"{texts[0]!r}. Choose captions in the language of the training captions, with "
            "--config.captions.test."
        )
    if split == "train" and len(unknown):
        print(
            f"{len(unknown)} of the {len(texts)} training captions have only words that occur "
            f"fewer than {config.captions.min_count} times, such as {texts[unknown[0]]!r}.",
            file=sys.stderr,
            flush=True,
        )
    return tokens


def _central(images, size: int):
    """The central crop of images [n, side, side, 3], as in `crops.central`."""
    side = images.shape[1]
    _, (top, left) = crops.central(side, side, (size, size), side, square=True)
    return images[:, top : top + size, left : left + size]
