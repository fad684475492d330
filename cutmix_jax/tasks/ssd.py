"""SSD: boxes and classes of the objects in an image, on a backbone that a classifier trained."""

import functools

import jax
import numpy as np
from clu.metrics import Average
from jax import lax
from jax import numpy as jnp

from cutmix_jax import UserError, models
from cutmix_jax.data import objects
from cutmix_jax.data.augment import example_keys
from cutmix_jax.detection import augment, ssd
from cutmix_jax.detection.average_precision import Detections, Truths, mean_average_precision
from cutmix_jax.detection.matching import ssd_targets
from cutmix_jax.detection.ssd_loss import ssd_loss
from cutmix_jax.parallel import AXIS
from cutmix_jax.tasks import Task, check_channels

# The random crop by `config.detection.crop`: options of `augment.augment_ssd`. The code that the
# paper cites lacks a minimum overlap of 0.5, and its test of the overlap rejects nothing.
CROPS = {
    "original": {},
    "cited": {"minimum_overlaps": (0.1, 0.3, 0.7, 0.9), "check_overlap": False},
}


class SSD(Task):
    """SSD with the backbone `config.model`, for square images of `config.image_size` pixels."""

    ranked_by, higher_is_better = "map", True
    measure_name, in_percent = "mAP", True
    heads = ("norm", "extras", "heads")
    left_out = ("fc",)  # of a classifier
    pictures = ("objects.png", "map.png")

    @classmethod
    def check_config(cls, config):
        if not config.image_size:
            raise UserError(
                "The task 'ssd' resizes images to config.image_size, which is not set. Set it, for "
                "instance to 300."
            )
        if not ssd.fits(cls._backbone(config)):
            raise UserError(
                f"config.model={config.model!r} with config.last_stride={config.last_stride} does "
                "not have the feature maps of strides 8, 16 and 32 that SSD needs. Use a network "
                "for ImageNet such as resnet50 or resnet18x0.25, with config.last_stride=2."
            )
        models.check_image_size(config.model, (config.image_size,) * 2 + (3,))

    @classmethod
    def open_data(cls, config, shards):
        data = objects.open_objects(config, shards)
        check_channels(config, data.image_shape)
        return data

    @classmethod
    def create_model(cls, config, data):
        return ssd.SSD(cls._backbone(config), data.num_classes)

    @staticmethod
    def _backbone(config):
        return models.from_config(config, num_classes=None, norm_axis=AXIS)

    def check(self):
        """Refuses a split without any object that is learned or measured."""
        for split, part in self.data.arrays.items():
            keep_difficult = split == "train" and self.config.detection.keep_difficult
            if not ((part["label"] >= 0) & (keep_difficult | ~part["difficult"])).any():
                raise UserError(
                    f"The split {split} of {self.config.dataset!r} has no object that is not "
                    "difficult, but at least one is needed. Choose other data, with "
                    "config.data_dir, config.voc.train or config.voc.test."
                )

    @functools.cached_property
    def priors(self):
        """float32 `[P, 4]`, fractions of the image."""
        return ssd.priors_of(self.config.image_size)

    def init(self, key):
        side = self.config.image_size
        return self.model.init(key, jnp.zeros((1, side, side, self.data.image_shape[-1])))

    def augmented(self, arrays, xs, step):
        """One device's training images in [0, 1], with their objects; traced.

        Returns:
            `{'image': float32 [b, S, S, 3], 'boxes': float32 [b, G, 4], 'label': int32 [b, G],
            'difficult': bool [b, G]}`, boxes as fractions of the image.
        """
        epoch = step // self.data.steps_per_epoch
        batch = self.data.load_train(arrays, xs, epoch)
        return augment.augment_ssd(
            example_keys(xs["seed"], epoch, xs["index"]),
            batch | {"label": self.learned(batch)},
            self.config.image_size,
            jnp.broadcast_to(jnp.array(self.config.normalize.mean), 3),
            **CROPS[self.config.detection.crop],
        )

    def learned(self, batch):
        """int32 `[b, G]`, the labels of a batch, -1 for difficult objects unless they are kept."""
        keep = self.config.detection.keep_difficult | ~batch["difficult"]
        return jnp.where(keep, batch["label"], -1)

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

    def score(self, split, outputs):
        """`{'map': mAP, 'ap_CLASS': AP, ...}`, without the classes that the split does not have."""
        mean, each = mean_average_precision(
            detections(outputs["found_boxes"], outputs["scores"], outputs["found"]),
            Truths(outputs["boxes"], outputs["label"], outputs["difficult"]),
            self.data.num_classes,
            rule=self.config.detection.ap_rule,
        )
        named = zip(self.data.class_names, each, strict=True)
        return {"map": mean} | {f"ap_{name}": ap for name, ap in named if not np.isnan(ap)}

    def describe(self):
        config, data = self.config, self.data
        sides = ", ".join(str(side) for side, _ in ssd.ssd_layout(config.image_size).map_shapes)
        examples = ", ".join(
            f"{count:,} {split.replace('_', '-')}" for split, count in data.examples.items()
        )
        return {
            "model": f"SSD on {config.model}, {data.num_classes} classes",
            "maps": f"of sides {sides}; {len(self.priors):,} priors",
            "data": f"{config.dataset}: {examples}; resized to {config.image_size}x"
            f"{config.image_size}, {data.kind}",
        }

    def describe_epoch(self, history):
        record = history[-1]
        words = (
            f"train loss {record['train_loss']:.3f} (boxes {record['train_box_loss']:.3f}, classes "
            f"{record['train_class_loss']:.3f})"
        )
        split = self.ranking_split(record)
        if split is None:
            return words
        best = self.best(history, split)[f"{split}_map"]
        return (
            f"{words}  {split.replace('_', '-')} mAP {record[f'{split}_map']:.3f} (best {best:.3f})"
        )

    def summarize(self, history):
        last = history[-1]
        results = super().summarize(history) | {
            "ap_last": {
                name: last[f"test_ap_{name}"]
                for name in self.data.class_names
                if f"test_ap_{name}" in last
            }
        }
        if "held_out" in self.data.examples:
            chosen = self.best(history, "held_out")
            results |= {"map_held_out": chosen["test_map"], "held_out_epoch": chosen["epoch"]}
        return results

    def describe_results(self, results):
        lines = [f"mAP, last epoch       {results['map_last']:.3f}"]
        if "held_out_epoch" in results:
            lines.append(
                f"mAP, held-out choice  {results['map_held_out']:.3f}   epoch "
                f"{results['held_out_epoch']}"
            )
        each = ", ".join(f"{name} {ap:.2f}" for name, ap in results["ap_last"].items())
        return [
            *lines,
            f"mAP, best on test     {results['map_best']:.3f}   epoch {results['best_epoch']}",
            f"AP, last epoch        {each}",
        ]

    def plot_start(self, arrays, folder):
        """Writes `objects.png`: the first device's images of the first batch."""
        from cutmix_jax import pictures  # Matplotlib takes a second

        mapped = self.mapping.map(lambda step, arrays, xs: self.augmented(arrays, xs, step))
        xs = self.mapping.shard(next(iter(self.data.train_batches(0))))
        batch = jax.device_get(mapped(self.mapping.replicate(np.int32(0)), arrays, xs))
        if jax.process_index() == 0:
            pictures.draw_boxes(batch, self.data.class_names, folder / "objects.png")

    def plot_history(self, history, folder):
        """Writes `map.png`."""
        from cutmix_jax import pictures

        pictures.draw_measure(history, "map", "mAP", folder / "map.png")


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
