"""TFDS builders of this project's datasets, for other tools. Training does not need them.

    python -m cutmix_jax.data.prepare shapes/several --data_dir=PATH
    python -m cutmix_jax.data.prepare tiny_imagenet --data_dir=PATH --source=tiny-imagenet-200

Importing this file registers both with `tfds.load`. Preparing needs TensorFlow.
"""

import dataclasses
import io
import pathlib

import numpy as np
import tensorflow_datasets as tfds

from cutmix_jax import UserError
from cutmix_jax.data import shapes, tiny_imagenet
from cutmix_jax.paths import local_path


class TinyImagenet(tfds.core.GeneratorBasedBuilder):
    """Tiny-ImageNet from the folder tiny-imagenet-200. JPEG bytes are kept as they are."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, source=None, **options):
        """`source` is the folder tiny-imagenet-200, or its parent."""
        self._source = source and local_path(source, "source")
        super().__init__(**options)

    def _info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(64, 64, 3), encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(),
                    "words": tfds.features.Text(),
                    "bbox": tfds.features.BBoxFeature(),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        tree = self._source and tiny_imagenet.find_tree(self._source)
        if not tree:
            raise UserError(
                f"source={self._source} holds no {tiny_imagenet.FOLDER} with wnids.txt and train/. "
                f"Give the folder that {tiny_imagenet.FOLDER}.zip was unpacked into."
            )
        image_set, words = tiny_imagenet.open_tree(tree, None), tiny_imagenet.read_words(tree)
        self.info.features["label"].names = image_set.class_names
        names = [words.get(name, name) for name in image_set.class_names]
        return {
            split: self._generate_examples(image_set.splits[ours], names)
            for split, ours in (("train", "train"), ("validation", "test"))
        }

    def _generate_examples(self, split, names):
        for i in range(split.count):
            stem, (box,) = pathlib.Path(split.name(i)).stem, split.boxes(i)
            yield (
                stem,
                {
                    "id": stem,
                    "image": io.BytesIO(split.read(i)),
                    "label": int(split.labels[i]),
                    "words": names[split.labels[i]],
                    "bbox": tfds.features.BBox(*map(float, box)),
                },
            )


@dataclasses.dataclass
class ShapesConfig(tfds.core.BuilderConfig):
    """Side of the images, maximum number of objects, and number of images per split."""

    size: int = shapes.DEFAULT_SIZE
    max_objects: int = 1
    train: int = shapes.TRAIN_EXAMPLES
    test: int = shapes.TEST_EXAMPLES


class Shapes(tfds.core.GeneratorBasedBuilder):
    """Images of colored, textured shapes, with boxes, masks and captions."""

    VERSION = tfds.core.Version(f"{shapes.VERSION}.0.0")
    BUILDER_CONFIGS = (
        ShapesConfig(name="single", description="One object, 64x64 pixels."),
        ShapesConfig(
            name="several",
            description="One to four objects, 128x128 pixels.",
            size=128,
            max_objects=4,
        ),
    )

    def _info(self):
        size = self.builder_config.size
        label = tfds.features.ClassLabel(names=shapes.CLASS_NAMES)
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
                    "label": label,
                    "objects": tfds.features.Sequence(
                        {"bbox": tfds.features.BBoxFeature(), "label": label}
                    ),
                    "mask": tfds.features.Image(shape=(size, size, 1), encoding_format="png"),
                    "caption": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        config = self.builder_config
        return {
            split: self._generate_examples(shapes.SEEDS[split], count)
            for split, count in (("train", config.train), ("test", config.test))
        }

    def _generate_examples(self, seed, count):
        config = self.builder_config
        for i in range(count):
            example = shapes.draw_example(seed, i, config.size, config.max_objects)
            objects = zip(example.boxes.astype(np.float64), example.labels, strict=True)
            yield (
                i,
                {
                    "image": example.image,
                    "label": example.label,
                    "objects": [
                        {"bbox": tfds.features.BBox(*map(float, box)), "label": int(label)}
                        for box, label in objects
                    ],
                    "mask": example.mask[..., None],
                    "caption": example.caption,
                },
            )
