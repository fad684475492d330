"""Faster R-CNN: boxes and classes of the objects in an image, in regions that it proposes."""

import functools
from typing import ClassVar

import jax
from clu.metrics import Average
from jax import lax
from jax import numpy as jnp

from cutmix_jax import optimizer
from cutmix_jax.config import check_unused
from cutmix_jax.data import buckets
from cutmix_jax.data.augment import example_keys
from cutmix_jax.detection import augment, faster_rcnn, rcnn
from cutmix_jax.detection.average_precision import Detections
from cutmix_jax.detection.matching import rpn_targets, sample_rois
from cutmix_jax.parallel import AXIS
from cutmix_jax.tasks.detector import Detector

# What `config.detection.freeze` keeps: stem, first stage and every BatchNorm.
FROZEN = ("conv1", "bn1", "layer1_", "*/bn", "*/downsample_bn")


class FasterRCNN(Detector):
    """Faster R-CNN with the backbone `config.model`.

    Images keep their aspect ratio, in the corner of a canvas. Landscapes and portraits have
    canvases and batches of their own if `config.detection.shorter_side` makes them differ.
    """

    heads = ("rpn", "heads")
    undecayed = ("bias",)
    losses: ClassVar = {
        "rpn_box_loss": "RPN boxes",
        "rpn_class_loss": "objects",
        "box_loss": "boxes",
        "class_loss": "classes",
    }
    unused = ("crop", "max_per_class")

    @classmethod
    def check_config(cls, config):
        super().check_config(config)
        if config.detection.freeze:
            reason = "with config.detection.freeze the backbone runs as in evaluation"
            check_unused(config, ("stochastic_depth", "shake_drop", "drop_block.rate"), reason)

    @staticmethod
    def canvases(config):
        """The canvas of landscapes and that of portraits, or the only one, a square."""
        side, shorter = config.image_size, config.detection.shorter_side
        if shorter is None or shorter >= side:
            return (buckets.Canvas(side, side),)
        stride = faster_rcnn.stride_of(config.detection.region_stage)
        low, high = (-(-pixels // stride) * stride for pixels in (shorter, side))
        return buckets.Canvas(low, high), buckets.Canvas(high, low)

    @classmethod
    def shapes(cls, config):
        return tuple(canvas.shape for canvas in cls.canvases(config))

    @classmethod
    def open_data(cls, config, shards):
        data, canvases = super().open_data(config, shards), cls.canvases(config)
        if len(canvases) == 1:
            return data
        found = {split: buckets.by_orientation(part["size"]) for split, part in data.arrays.items()}
        return buckets.in_buckets(data, config.seed, canvases, found)

    @classmethod
    def create_model(cls, config, data):
        options = config.detection
        return faster_rcnn.FasterRCNN(
            cls.backbone(config), data.num_classes, options.region_stage, options.anchor_scales
        )

    @classmethod
    def create_optimizer(cls, config, schedule):
        frozen = FROZEN if config.detection.freeze else ()
        return optimizer.create_optimizer(config, schedule, cls.heads, frozen, cls.undecayed)

    @property
    def left_out(self):
        """Modules of a classifier that the network does not have."""
        backbone = self.model.backbone
        stages = range(self.config.detection.region_stage + 2, backbone.stages + 1)
        blocks = [f"layer{i}_{j}" for i in stages for j in range(backbone.stage_sizes[i - 1])]
        return ("fc", *blocks)

    def fitted(self, batch, xs, mirror=False):
        """The images in the corner of the canvas of `xs`, from `augment.fit_batch`; traced.

        If it has none, as batches of other photographs, the canvas is a square.
        """
        side = self.config.image_size
        return augment.fit_batch(
            batch,
            xs["canvas"].shape if "canvas" in xs else (side, side),
            self.fill,
            shorter_side=self.config.detection.shorter_side,
            longer_side=side,
            mirror=mirror,
        )

    def augmented(self, arrays, xs, step):
        epoch = step // self.data.steps_per_epoch
        batch = self.data.load_train(arrays, xs, epoch)
        mirror = jax.vmap(jax.random.bernoulli)(self._keys(xs, step)[0])
        batch = self.fitted(batch | {"label": self.learned(batch)}, xs, mirror)
        return self.mixed(batch, xs, step)

    def _keys(self, xs, step):
        """Keys `[3, b]`, for the mirror, the sampled anchors and the sampled regions."""
        keys = example_keys(xs["seed"], step // self.data.steps_per_epoch, xs["index"])
        return jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)

    def load(self, arrays, xs, step):
        batch = self.augmented(arrays, xs, step)
        shape = batch["image"].shape[1:3]
        boxes = batch["boxes"] * jnp.array(2 * shape)
        _, anchor_keys, region_keys = self._keys(xs, step)
        targets = jax.vmap(rpn_targets, (0, None, 0, 0, 0))
        kinds, offsets = targets(
            anchor_keys, self.model.anchors(*shape), boxes, batch["label"], batch["size"]
        )
        # The loss of the RPN is a mean over the sampled anchors of all devices and parts.
        sampled = lax.pmean((kinds >= 0).sum(1).mean(), AXIS)
        return {
            "image": self.normalize(batch["image"]),
            "size": batch["size"],
            "boxes": boxes,
            "label": batch["label"],
            "keys": region_keys,
            "kinds": kinds,
            "offsets": offsets,
            "sampled": jnp.full(len(kinds), sampled),
        }

    def proposals(self, rpn, batch, numbers):
        """The regions of a batch and which of them are valid, from `rcnn.rpn_proposals`; traced."""
        logits, deltas = rpn
        candidates, max_outputs = numbers
        propose = functools.partial(
            rcnn.rpn_proposals, candidates=candidates, max_outputs=max_outputs
        )
        scores = logits[..., 1] - logits[..., 0]
        anchors = self.model.anchors(*batch["image"].shape[1:3])
        return jax.vmap(propose, (0, 0, None, 0))(scores, deltas, anchors, batch["size"])

    def loss(self, weights, batch, step, key):
        options = self.config.detection
        run = functools.partial(self.model.apply, weights)
        features, updates = run(
            batch["image"],
            train=not options.freeze,
            progress=step / self.total_steps,
            method="features",
            rngs={"drop": key},
            mutable=["batch_stats"],
        )
        rpn = run(features, method="propose")
        proposals, valid = self.proposals(rpn, batch, options.train_proposals)
        sample = jax.vmap(functools.partial(sample_rois, count=options.regions))
        regions, classes, offsets = sample(
            batch["keys"], proposals, valid, batch["boxes"], batch["label"]
        )
        head = run(features, regions, method="classify")
        mean = batch["sampled"].sum()
        parts = (
            *rcnn.rpn_loss(
                *rpn, batch["kinds"], batch["offsets"], count=jnp.where(mean > 0, mean, 1)
            ),
            # Unused regions count, so that the mean does not depend on the number of devices.
            *rcnn.head_loss(*head, classes, offsets, count=classes.size),
        )
        losses = {"loss": sum(parts)} | dict(zip(self.losses, parts, strict=True))
        counters = {name: Average.from_model_output(value) for name, value in losses.items()}
        return losses["loss"], (updates["batch_stats"], counters)

    def measure(self, weights, arrays, xs):
        options = self.config.detection
        batch = self.data.load_eval(arrays, xs)
        batch = self.fitted(batch, xs) | {"mask": batch["mask"], "index": xs["index"]}
        run = functools.partial(self.model.apply, weights)
        features = run(self.normalize(batch["image"]), method="features")
        rpn = run(features, method="propose")
        regions, valid = self.proposals(rpn, batch, options.test_proposals)
        detect = functools.partial(
            rcnn.rcnn_detections,
            threshold=options.nms_threshold,
            max_outputs=options.max_per_image,
            min_score=options.min_score,
        )
        head = run(features, regions, method="classify")
        boxes, scores, labels = jax.vmap(detect)(*head, regions, valid, batch["size"])
        sides, canvas = jnp.tile(batch["size"], 2)[:, None], 2 * batch["image"].shape[1:3]
        outputs = {
            "found_boxes": boxes / sides,
            "scores": scores,
            "found_labels": labels,
            "boxes": batch["boxes"] * jnp.array(canvas) / sides,
        }
        # No loss: it would be that of sampled regions, not of those that are measured.
        return {}, outputs | {name: batch[name] for name in ("label", "difficult", "mask", "index")}

    def detections(self, outputs):
        return Detections(outputs["found_boxes"], outputs["scores"], outputs["found_labels"])

    def describe(self):
        options, side = self.config.detection, self.config.image_size
        canvases = self.canvases(self.config)
        anchors = len(self.model.anchors(*canvases[0].shape))
        resized = f"a longer side of {side}"
        if options.shorter_side:
            resized = f"a shorter side of {options.shorter_side}, a longer one of at most {side}"
        if len(canvases) > 1:
            resized += f", in {' or '.join(f'{c.height}x{c.width}' for c in canvases)}"
        frozen = "; BatchNorm, stem and layer1 frozen" * options.freeze
        return {
            "model": f"Faster R-CNN on {self.config.model}, {self.data.num_classes} classes"
            + frozen,
            "maps": f"layer{options.region_stage}, stride {self.model.stride}, for the RPN; "
            f"{anchors:,} anchors",
            "data": self.describe_data(resized),
            **self.describe_mix(),
        }
