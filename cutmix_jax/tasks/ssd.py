"""SSD: boxes and classes of the objects in an image, on a backbone that a classifier trained."""

import functools
from typing import ClassVar

import jax
import numpy as np
from clu.metrics import Average
from jax import lax
from jax import numpy as jnp

from cutmix_jax.data.augment import example_keys
from cutmix_jax.detection import augment, ssd
from cutmix_jax.detection.average_precision import Detections
from cutmix_jax.detection.matching import ssd_targets
from cutmix_jax.detection.ssd_loss import ssd_loss
from cutmix_jax.parallel import AXIS
from cutmix_jax.tasks.detector import Detector

# Expansion and crop by `config.detection.crop`: options of `augment.augment_ssd`. The code that the
# paper cites lacks a minimum overlap of 0.5, and its test of the overlap rejects nothing.
CROPS = {
    "original": {},
    "cited": {"minimum_overlaps": (0.1, 0.3, 0.7, 0.9), "check_overlap": False},
    "none": {"minimum_overlaps": None},
}


class SSD(Detector):
    """SSD with the backbone `config.model`, for square images of `config.image_size` pixels."""

    heads = ("norm", "extras", "heads")
    losses: ClassVar = {"box_loss": "boxes", "class_loss": "classes"}
    unused = (
        "max_per_image",
        "freeze",
        "shorter_side",
        "region_stage",
        "anchor_scales",
        "train_proposals",
        "test_proposals",
        "regions",
    )

    @classmethod
    def create_model(cls, config, data):
        return ssd.SSD(cls.backbone(config), data.num_classes)

    @functools.cached_property
    def priors(self):
        """float32 `[P, 4]`, fractions of the image."""
        return ssd.priors_of(self.config.image_size)

    def augmented(self, arrays, xs, step):
        epoch = step // self.data.steps_per_epoch
        batch = self.data.load_train(arrays, xs, epoch)
        batch = augment.augment_ssd(
            example_keys(xs["seed"], epoch, xs["index"]),
            batch | {"label": self.learned(batch)},
            self.config.image_size,
            self.fill,
            **CROPS[self.config.detection.crop],
        )
        return self.mixed(batch, xs, step)

    def load(self, arrays, xs, step):
        batch = self.augmented(arrays, xs, step)
        classes, offsets = self.targets(batch["boxes"], batch["label"])
        # The loss is a mean over the positive priors of all devices and parts of the batch.
        positives = lax.pmean((classes > 0).sum(1).mean(), AXIS)
        return {
            "image": self.normalize(batch["image"]),
            "classes": classes,
            "offsets": offsets,
            "positives": jnp.full(len(classes), positives),
        }

    def targets(self, boxes, labels):
        """What the priors learn, int32 `[b, P]` and float32 `[b, P, 4]`; traced."""
        return jax.vmap(functools.partial(ssd_targets, self.priors))(boxes, labels)

    def loss(self, weights, batch, step, key):
        (logits, offsets), updates = self.model.apply(
            weights,
            batch["image"],
            train=True,
            progress=step / self.total_steps,
            rngs={"drop": key},
            mutable=["batch_stats"],
        )
        mean = batch["positives"].sum()
        parts = ssd_loss(
            logits,
            offsets,
            batch["classes"],
            batch["offsets"],
            count=jnp.where(mean > 0, mean, 1),
        )
        losses = {"loss": sum(parts), "box_loss": parts[0], "class_loss": parts[1]}
        counters = {name: Average.from_model_output(value) for name, value in losses.items()}
        return losses["loss"], (updates.get("batch_stats", {}), counters)

    def measure(self, weights, arrays, xs):
        batch = self.data.load_eval(arrays, xs)
        batch = augment.resize_batch(batch, self.config.image_size) | {"mask": batch["mask"]}
        images, options = self.normalize(batch["image"]), self.config.detection
        logits, offsets = self.model.apply(weights, images, train=False)
        labels = jnp.where(batch["mask"][:, None], self.learned(batch), -1)
        classes, true_offsets = self.targets(batch["boxes"], labels)
        parts = ssd_loss(logits, offsets, classes, true_offsets, count=1)
        boxes, scores, found = ssd.detect(
            logits,
            offsets,
            self.priors,
            min_score=options.min_score,
            threshold=options.nms_threshold,
            max_outputs=options.max_per_class,
        )
        counters = {"loss": Average(total=sum(parts), count=(classes > 0).sum())}
        outputs = {"found_boxes": boxes, "scores": scores, "found": found}
        return counters, outputs | {
            name: batch[name] for name in ("boxes", "label", "difficult", "mask")
        }

    def detections(self, outputs):
        return detections(outputs["found_boxes"], outputs["scores"], outputs["found"])

    def describe(self):
        side = self.config.image_size
        sides = ", ".join(str(own) for own, _ in ssd.ssd_layout(side).map_shapes)
        return {
            "model": f"SSD on {self.config.model}, {self.data.num_classes} classes",
            "maps": f"of sides {sides}; {len(self.priors):,} priors",
            "data": self.describe_data(f"{side}x{side}"),
            **self.describe_mix(),
        }


def detections(boxes, scores, found):
    """`Detections` of n images from padded arrays `[n, C, K, 4]`, `[n, C, K]` and `[n, C, K]`.

    Only what was found is kept, so that the measure does not sort padding.
    """
    labels = np.broadcast_to(np.arange(found.shape[1])[:, None], found.shape[1:])
    return Detections(
        [own[mask] for own, mask in zip(boxes, found, strict=True)],
        [own[mask] for own, mask in zip(scores, found, strict=True)],
        [labels[mask] for mask in found],
    )
