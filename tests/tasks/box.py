"""A task of your own: find the one object of each image of `shapes`.

    python main.py --config tests/tasks/box.py

A residual network regresses the box by a smooth L1 loss. Checkpoints are ranked by the mean
intersection over union.
"""

import dataclasses

import jax
import numpy as np
import optax
from clu.metrics import Average
from jax import numpy as jnp

from cutmix_jax import UserError, models
from cutmix_jax.config import base_config
from cutmix_jax.data import open_data
from cutmix_jax.parallel import AXIS
from cutmix_jax.tasks import Task


def get_config(arg=None):
    """`arg` is the network; by default resnet8x2."""
    config = base_config()
    config.task = "tests.tasks.box:BoxRegression"
    config.dataset, config.image_size = "shapes", 32
    config.normalize.mean, config.normalize.std = (0.58, 0.53, 0.51), (0.17, 0.13, 0.16)
    config.model = arg or "resnet8x2"
    config.epochs, config.batch_size, config.learning_rate = 10, 32, 0.02
    config.schedule = "cosine"
    return config


class BoxRegression(Task):
    """The box (top, left, bottom, right) of the object, in fractions of the image."""

    ranked_by, higher_is_better = "iou", True
    measure_name = "intersection over union"
    heads = ("fc",)

    @classmethod
    def open_data(cls, config, shards):
        data = open_data(config, shards)
        if config.dataset != "shapes" or config.augment.pad or config.augment.flip:
            raise UserError(
                "The boxes are those of config.dataset='shapes', without config.augment.pad and "
                "config.augment.flip: neither moves them."
            )
        arrays = {
            split: {
                "image": part["image"],
                "box": np.concatenate(data.boxes(split)) / config.image_size,
            }
            for split, part in data.arrays.items()
        }
        return dataclasses.replace(data, arrays=arrays)

    @classmethod
    def create_model(cls, config, data):
        return models.from_config(config, num_classes=4, norm_axis=AXIS)

    def init(self, key):
        return self.model.init(key, jnp.zeros((1, *self.data.image_shape)))

    def load(self, arrays, xs, step):
        batch = jax.tree.map(lambda x: jnp.take(x, xs["index"], axis=0), arrays)
        mean, std = map(jnp.array, self.config.normalize.values())
        return batch | {"image": (batch["image"] / 255 - mean) / std}

    def loss(self, weights, batch, step, key):
        boxes, updates = self.model.apply(
            weights,
            batch["image"],
            train=True,
            progress=step / self.total_steps,
            rngs={"drop": key},
            mutable=["batch_stats"],
        )
        losses = optax.huber_loss(boxes, batch["box"], delta=0.1).sum(-1)
        counters = {"loss": Average.from_model_output(losses)}
        return losses.mean(), (updates["batch_stats"], counters)

    def measure(self, weights, arrays, xs):
        batch = self.load(arrays, xs, step=None)
        boxes = self.model.apply(weights, batch["image"], train=False)
        losses = optax.huber_loss(boxes, batch["box"], delta=0.1).sum(-1)
        counters = {"loss": Average.from_model_output(losses, xs["mask"])}
        return counters, {"found": boxes, "true": batch["box"], "mask": xs["mask"]}

    def score(self, split, outputs):
        return {"iou": intersection_over_union(outputs["found"], outputs["true"]).mean()}


def intersection_over_union(a, b):
    """float ``[n]`` of boxes ``[n, 4]``."""
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])

    def area(low, high):
        return np.maximum(high - low, 0).prod(-1)

    both = area(low, high)
    return both / (area(a[:, :2], a[:, 2:]) + area(b[:, :2], b[:, 2:]) - both)
