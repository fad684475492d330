"""Runs of a task within the process of a test, networks for them, weights as of another run."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cutmix_jax import run, train
from cutmix_jax.detection import faster_rcnn
from cutmix_jax.run import initialize_from  # before a test replaces it

SMALL_FASTER_RCNN = {
    "model": "resnet10x0.0625",
    "image_size": 32,
    "train_examples": 32,
    "max_objects": 2,
    "epochs": 2,
    "eval_every": 1,
    "checkpoint_every": 3,
    "detection.anchor_scales": (1, 2),
    "detection.train_proposals": (40, 10),
    "detection.test_proposals": (40, 10),
    "detection.regions": 8,
    "detection.max_per_image": 12,
}


class Linear(nn.Module):
    """SSD that is compiled at once, on images of 32 pixels: the mean color decides all."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train=False, progress=1.0):
        logits = self.num_classes + 1
        found = nn.Dense(84 * (logits + 4))(images.mean((1, 2))).reshape(len(images), 84, -1)
        return found[..., :logits], found[..., logits:]


class Colors(faster_rcnn.FasterRCNN):
    """Faster R-CNN that is compiled at once: mean colors decide all."""

    def setup(self):
        self.image_part, self.rpn = nn.Dense(4), nn.Dense(6 * 3 * len(self.scales))
        self.region_part = nn.Dense(5 * (self.num_classes + 1))

    def features(self, images, train=False, progress=1.0):
        count, height, width, _ = images.shape
        cells = images.reshape(count, height // 8, 8, width // 8, 8, 3)
        return self.image_part(cells.mean((2, 4)))

    def propose(self, features):
        found = self.rpn(features).reshape(len(features), -1, 6)
        return found[..., :2], found[..., 2:]

    def classify(self, features, regions):
        means = features.mean((1, 2))[:, None] + regions / 32
        found = self.region_part(means).reshape(*regions.shape[:2], -1, 5)
        return found[..., 0], found[..., 1:]


def compile_once(patch, task):
    """The task, whose first state and compiled steps are made now, for all calls of `train`."""
    made = {
        "map_steps": train.map_steps(task),
        "compile_ahead": train.compile_ahead(task),
        "create_state": jax.device_get(train.create_state(task)),
    }
    for name, value in made.items():
        original = getattr(train, name)
        patch.setattr(
            train, name, lambda asked, v=value, f=original: v if asked is task else f(asked)
        )
    return task


def records(folder):
    """The records of a run's epochs."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def one_step(task, state=None):
    """The state and the counters after the first step, from another state if it is given."""
    state = task.mapping.replicate(state or train.create_state(task))
    arrays = task.mapping.replicate(task.data.arrays["train"])
    xs = task.mapping.shard(next(train.group(task.data.train_batches(0), 1)))
    return jax.device_get(train.map_steps(task)[0](state, arrays, xs))


def weights_of(model, side=32):
    """Weights of a network for images as of another run: all 0.5."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    return jax.tree.map(lambda x: np.full(x.shape, 0.5, x.dtype), dict(shapes))


def start_from(task, weights, monkeypatch):
    """The first state, and what is said of it, if the weights of another run are these."""
    found = {"weights": weights, "averaged": False, "step": 1}
    monkeypatch.setattr(run, "read_weights", lambda path, name: (found, {}, []))
    return initialize_from(task, train.create_state(task), "there")
