"""What detectors have in common as tasks: data, mixes, difficult objects, mAP, words and plots."""

import functools
from typing import ClassVar

import jax
import numpy as np
from jax import numpy as jnp

from cutmix_jax import UserError, methods, mix, models
from cutmix_jax.config import check_unused
from cutmix_jax.data import objects
from cutmix_jax.detection import ssd
from cutmix_jax.detection.average_precision import Truths, mean_average_precision
from cutmix_jax.mix.plan import rescaled_fill
from cutmix_jax.parallel import AXIS
from cutmix_jax.tasks import Task, check_channels, mixing_key, trace_mix

# An object of a mixed image is learned if this fraction of it can be seen, as in Ultralytics.
MIN_VISIBLE = 0.1


class Detector(Task):
    """A detector with the backbone `config.model`; `config.image_size` is the side of its images.

    A subclass defines `create_model`, `init`, `augmented`, `load`, `loss`, `measure`, `detections`
    and `describe`.
    """

    ranked_by, higher_is_better = "map", True
    measure_name, in_percent = "mAP", True
    mix_keys = ("label_smoothing", "loss")
    left_out = ("fc",)  # of a classifier
    pictures = ("objects.png", "map.png")
    losses: ClassVar[dict[str, str]] = {}  # counters of `loss`, and their words
    unused: ClassVar[tuple[str, ...]] = ()  # keys of config.detection for other detectors

    @classmethod
    def check_config(cls, config):
        if not config.image_size:
            raise UserError(
                f"The task {config.task!r} resizes images to config.image_size, which is not set. "
                "Set it, for instance to 300."
            )
        if not ssd.fits(cls.backbone(config)):
            raise UserError(
                f"config.model={config.model!r} with config.last_stride={config.last_stride} does "
                "not have the feature maps of strides 8, 16 and 32 that a detector needs. Use a "
                "network for ImageNet such as resnet50 or resnet18x0.25, with config.last_stride=2."
            )
        models.check_image_size(config.model, (config.image_size,) * 2 + (3,))
        unused = [f"detection.{key}" for key in cls.unused]
        check_unused(config, unused, f"the task {config.task!r} does not use it")
        cls._check_mix(config)

    @classmethod
    def _check_mix(cls, config):
        """Refuses mixes that blend, as the losses have no weight per object, or at feature maps."""
        mixing = methods.create_mix(config.mix)
        if set(mixing.layers) - {"image"}:
            raise UserError(
                f"config.mix mixes at {', '.join(mixing.layers)}, but a detector can only mix "
                "images. Set config.mix.layers=('image',), or another mix."
            )
        for shape in cls.shapes(config):
            plans = trace_mix(mixing, 2, shape)
            if any(p.ratio is not None or p.mask is not None for p in plans):
                raise UserError(
                    f"config.mix.name is {config.mix.name!r}, but objects in a blend have no box "
                    "or weight that a detector could learn. Use a mix of boxes, such as cutmix."
                )

    @classmethod
    def shapes(cls, config):
        """(height, width) of each kind of training images."""
        return ((config.image_size,) * 2,)

    @classmethod
    def open_data(cls, config, shards):
        data = objects.open_objects(config, shards)
        check_channels(config, data.image_shape)
        return data

    @staticmethod
    def backbone(config):
        """The network of `config.model`, without a head."""
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

    def init(self, key):
        side = self.config.image_size
        return self.model.init(key, jnp.zeros((1, side, side, self.data.image_shape[-1])))

    @functools.cached_property
    def mix(self):
        """The mix of `config.mix`."""
        return methods.create_mix(self.config.mix)

    def mixed(self, batch, xs, step):
        """A batch of augmented images and their objects, as `augmented` returns it, mixed."""
        plans = self.mix.sample(
            mixing_key(xs["seed"], step),
            len(batch["label"]),
            batch["image"].shape[1:3],
            progress=step / self.total_steps,
            axis_name=AXIS,
        )
        normalize = self.config.normalize
        for plan in plans:  # a fill is for normalized images
            plan = rescaled_fill(plan, normalize.mean, normalize.std)
            batch = mix_objects(plan, batch)
        return batch

    def augmented(self, arrays, xs, step):
        """One device's training images in [0, 1], with their objects, mixed; traced.

        Returns:
            `{'image': float32 [b, H, W, 3], 'boxes': float32 [b, G, 4], 'label': int32 [b, G],
            'difficult': bool [b, G]}` at least, boxes as fractions of these images.
        """
        raise NotImplementedError

    def learned(self, batch):
        """int32 `[b, G]`, the labels of a batch, -1 for difficult objects unless they are kept."""
        keep = self.config.detection.keep_difficult | ~batch["difficult"]
        return jnp.where(keep, batch["label"], -1)

    @property
    def fill(self):
        """float32 `[3]`, the color outside the images: the mean, which is 0 once normalized."""
        return jnp.broadcast_to(jnp.array(self.config.normalize.mean), 3)

    def detections(self, outputs):
        """The `average_precision.Detections` in the outputs of `measure`; on the host.

        Boxes are fractions of the image, as are the true 'boxes' of `measure`.
        """
        raise NotImplementedError

    def score(self, split, outputs):
        """`{'map': mAP, 'ap_CLASS': AP, ...}`, without the classes that the split does not have."""
        mean, each = mean_average_precision(
            self.detections(outputs),
            Truths(outputs["boxes"], outputs["label"], outputs["difficult"]),
            self.data.num_classes,
            rule=self.config.detection.ap_rule,
        )
        named = zip(self.data.class_names, each, strict=True)
        return {"map": mean} | {f"ap_{name}": ap for name, ap in named if not np.isnan(ap)}

    def describe_data(self, resized):
        """The data in words; `resized` says to what the images are resized."""
        data = self.data
        examples = ", ".join(
            f"{count:,} {split.replace('_', '-')}" for split, count in data.examples.items()
        )
        return f"{self.config.dataset}: {examples}; resized to {resized}, {data.kind}"

    def describe_mix(self):
        """`{'mix': words}`, or `{}` if nothing is mixed."""
        return {} if self.config.mix.name == "none" else {"mix": self.mix.describe()}

    def describe_epoch(self, history):
        record = history[-1]
        parts = ", ".join(
            f"{word} {record[f'train_{name}']:.3f}" for name, word in self.losses.items()
        )
        words = f"train loss {record['train_loss']:.3f} ({parts})"
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
        return results | self.held_out_choice(history, "map")

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


def mix_objects(plan, batch):
    """Mixes images and their objects by a plan that pastes boxes; traced.

    Objects of which less than `MIN_VISIBLE` can be seen get label -1.

    Args:
        plan: a `mix.Plan` for the images.
        batch: `{'image': float [b, H, W, 3], 'boxes': float32 [b, G, 4], 'label': int32 [b, G],
            'difficult': bool [b, G]}`, boxes as fractions of the images. 'size', int32 `[b, 2]`,
            is the height and width of an image in the corner of its canvas, if it has one.

    Returns:
        A batch like `batch`, with 2 G objects per image. An image grows if its partner's, pasted
        into it, reaches further.
    """
    canvas = jnp.array(2 * plan.sides, jnp.float32)
    values = {name: batch[name] for name in ("label", "difficult")}
    found = mix.mix_boxes(plan, batch["boxes"] * canvas, batch["label"] >= 0, values)
    kept = found.valid & (found.visible >= MIN_VISIBLE)
    mixed = {
        "image": mix.apply(plan, batch["image"]),
        "boxes": jnp.where(kept[..., None], found.boxes / canvas, 0),
        "label": jnp.where(kept, found.values["label"], -1),
        "difficult": found.values["difficult"],
    }
    if "size" in batch:  # what the partner's image covers is found as if it were an object
        size = batch["size"]
        image = jnp.pad(size.astype(jnp.float32), ((0, 0), (2, 0)))[:, None]
        pasted = mix.mix_boxes(plan, image, jnp.ones(image.shape[:2], bool)).boxes[:, 1, 2:]
        mixed["size"] = jnp.maximum(size, jnp.ceil(pasted).astype(size.dtype))
    return batch | mixed
