"""Classification: images to one of `num_classes` labels, with mixed images and labels."""

import functools
import statistics

import jax
import numpy as np
import optax
from jax import numpy as jnp

from cutmix_jax import UserError, chips, methods, metrics, mix, models
from cutmix_jax.data import open_data
from cutmix_jax.parallel import AXIS
from cutmix_jax.tasks import Task, check_channels, mixing_key, trace_mix


class Classification(Task):
    """The classifiers of the paper, and its mixes."""

    ranked_by = "top1_error"
    measure_name, in_percent = "top-1 error", True
    heads = ("fc",)
    uses_mix = True
    pictures = ("mixed.png", "error.png")

    @classmethod
    def check_config(cls, config):
        methods.create_mix(config.mix)

    @classmethod
    def open_data(cls, config, shards):
        data = open_data(config, shards)
        check_channels(config, data.image_shape)
        for shape in (data.image_shape, data.eval_shape or data.image_shape):
            models.check_image_size(config.model, shape, config.last_stride)
        return data

    @classmethod
    def create_model(cls, config, data):
        return models.from_config(config, data.num_classes, norm_axis=AXIS)

    @functools.cached_property
    def mix(self):
        """The mix of `config.mix`."""
        return methods.create_mix(self.config.mix)

    @functools.cached_property
    def _traced_init(self):
        """The network's `init`, traced once, and the sides of its feature maps."""
        sides = {}

        def tap(name, x):
            sides[name] = x.shape[1:3]
            return x

        @jax.jit
        def init(key):
            images = jnp.zeros((1, *self.data.image_shape), jnp.float32)
            return self.model.init(key, images, train=False, tap=tap)

        jax.eval_shape(init, jax.random.key(0))
        return init, sides

    @property
    def sides(self):
        """The height and width of every feature map that the model names, the image's first."""
        return self._traced_init[1]

    def check(self):
        """Refuses to mix at a map that does not exist, across parts of a batch, or too large."""
        config, mixing, sides = self.config, self.mix, self.sides
        missing = [layer for layer in mixing.layers if layer not in sides]
        if missing:
            raise UserError(
                f"config.mix mixes at {missing[0]!r}, which {config.model} does not have: set "
                f"config.mix.layers to some of {', '.join(sides)}."
            )
        if config.accumulate > 1 and set(mixing.layers) - {"image"}:
            raise UserError(
                "config.accumulate divides the batch, and partners at feature maps may be in "
                "another part of it: set config.accumulate=1, or mix at the image "
                "(config.mix.layers)."
            )
        trace_mix(mixing, config.batch_size, sides, self.data.image_shape)

    @functools.cached_property
    def train_flops(self):
        return chips.train_flops(self.model, self.data.image_shape)

    def init(self, key):
        return self._traced_init[0](key)

    def make_batch(self, arrays, xs, step):
        """Turns one device's `xs` into a batch that is ready for the model.

        Returns:
            ``{'image', 'target', 'label', 'plans'}``: normalized float images and rows of label
            weights, both mixed; the class ids before mixing; and all plans. Those for feature maps
            are applied in the model.
        """
        data = self.data
        batch = data.load_train(arrays, xs, step // data.steps_per_epoch)
        size = batch["label"].shape[0]
        key, progress = mixing_key(xs["seed"], step), step / self.total_steps
        images = self.normalize(batch["image"])
        plans = self.mix.sample(
            key, size, self.sides, images=images, progress=progress, axis_name=AXIS
        )
        images = mix.apply_at(plans, "image", images)
        targets = jax.nn.one_hot(batch["label"], data.num_classes)
        for plan in plans:
            targets = mix.mix_labels(plan, targets)
        return {"image": images, "target": targets, "label": batch["label"], "plans": plans}

    def load(self, arrays, xs, step):
        batch = self.make_batch(arrays, xs, step)
        plans = [plan for plan in batch["plans"] if plan.layer != "image"]
        return {"image": batch["image"], "target": batch["target"], "plans": plans}

    def loss(self, weights, batch, step, key):
        def mix_features(name, x):
            return mix.apply_at(batch["plans"], name, x)

        logits, updates = self.model.apply(
            weights,
            batch["image"],
            train=True,
            tap=mix_features,
            progress=step / self.total_steps,
            rngs={"drop": key},
            mutable=["batch_stats"],
        )
        config, targets = self.config, batch["target"]
        if config.loss == "bce":
            losses = binary_cross_entropy(
                logits, targets, config.label_smoothing, config.bce_threshold
            )
        else:
            smooth = optax.smooth_labels(targets, config.label_smoothing)
            losses = optax.softmax_cross_entropy(logits, smooth)
        counters = metrics.train_counters(losses, logits, batch["target"])
        return losses.mean(), (updates.get("batch_stats", {}), counters)

    def measure(self, weights, arrays, xs):
        batch = self.data.load_eval(arrays, xs)
        images = self.normalize(batch["image"].astype(jnp.float32) / 255)
        logits = self.model.apply(weights, images, train=False)
        return metrics.eval_counters(logits, batch["label"], batch["mask"]), {}

    def describe(self):
        config, data = self.config, self.data
        height, width, channels = data.image_shape
        size = f"{height}x{width}x{channels}"
        if data.eval_shape not in (None, data.image_shape):
            size += " (evaluated at {}x{})".format(*data.eval_shape)
        if config.repeats > 1:
            size += f", each {config.repeats} times in a batch"
        examples = ", ".join(
            f"{count:,} {split.replace('_', '-')}" for split, count in data.examples.items()
        )
        model = f"{config.model}, {data.num_classes} classes"
        if meant := models.find_small_variant(config.model, data.image_shape):
            model += f"; it is for large images, and {meant} for small ones"
        return {
            "model": model,
            "data": f"{config.dataset}: {examples}; {size}, {data.kind}",
            "mix": self.mix.describe(),
        }

    def describe_epoch(self, history):
        record = history[-1]
        words = (
            f"train loss {record['train_loss']:.3f}  "
            f"weighted accuracy {record['train_weighted_accuracy']:.1%}"
        )
        split = self.ranking_split(record)
        if split is None:
            return words
        key = f"{split}_top1_error"
        best = self.best(history, split)[key]
        return f"{words}  {split.replace('_', '-')} error {record[key]:.2%} (best {best:.2%})"

    def summarize(self, history):
        last, best = history[-1], self.best(history, "test")
        measured = [record for record in history if "test_top1_error" in record]
        return {
            "top1_error_last": last["test_top1_error"],
            "top5_error_last": last["test_top5_error"],
            "loss_last": last["test_loss"],
            "top1_error_best": best["test_top1_error"],
            "top5_error_best": best["test_top5_error"],
            "best_epoch": best["epoch"],
            "top1_error_median_10": statistics.median(
                record["test_top1_error"] for record in measured[-10:]
            ),
            **self.held_out_choice(history, "top1_error", "top5_error"),
        }

    def describe_results(self, results):
        lines = [
            f"top-1 error, last epoch       {results['top1_error_last']:7.2%}   top-5 "
            f"{results['top5_error_last']:.2%}",
        ]
        if "held_out_epoch" in results:
            lines.append(
                f"top-1 error, held-out choice  {results['top1_error_held_out']:7.2%}   epoch "
                f"{results['held_out_epoch']}"
            )
        lines.append(
            f"top-1 error, best on test     {results['top1_error_best']:7.2%}   epoch "
            f"{results['best_epoch']} (chosen on the test split, as the paper does)"
        )
        return lines

    def plot_start(self, arrays, folder):
        """Writes `mixed.png`: the first of the first 20 batches whose images are mixed.

        It is the very first batch if none is, with several processes, and for a mix that is at
        feature maps alone.
        """
        from cutmix_jax import pictures  # Matplotlib takes a second

        batch = jax.device_get(self.first_mixed(0, arrays))
        if jax.process_index() == 0:
            mean, std = (np.asarray(self.config.normalize[name]) for name in ("mean", "std"))
            pictures.draw_mixed(
                batch | {"image": batch["image"] * std + mean},
                self.data.class_names,
                folder / "mixed.png",
            )

    def first_mixed(self, step, arrays, tries=20):
        """What `make_batch` returns for the batch that `plot_start` shows, from `step` on.

        Whether a step mixes does not depend on its images. So the search uses the images of the
        first step to find one that mixes, and then reads the batch of that step.
        """
        data, mapping = self.data, self.mapping
        mapped = mapping.map(lambda step, arrays, xs: self.make_batch(arrays, xs, step))

        def read(at):
            return mapping.shard(next(iter(data.train_batches(*divmod(at, data.steps_per_epoch)))))

        def make(at, xs):
            return mapped(mapping.replicate(np.int32(at)), arrays, xs)

        xs = read(step)
        first = make(step, xs)
        # Processes may see other plans, and all have to make the same calls.
        if "image" not in self.mix.layers or jax.process_count() > 1:
            return first
        for at in range(step, min(step + tries, self.total_steps)):
            batch = first if at == step else make(at, xs)
            if any(map(mixes_images, jax.device_get(batch["plans"]))):
                return batch if at == step else make(at, read(at))
        return first

    def plot_history(self, history, folder):
        """Writes `error.png`."""
        from cutmix_jax import pictures

        pictures.draw_errors({folder.name: history}, folder / "error.png")


def binary_cross_entropy(logits, targets, smoothing=0.0, threshold=None):
    r"""The mean over the classes of a binary cross-entropy, as in timm.

    .. math:: -\frac{1}{K} \sum_k \big( t_k \log \sigma(z_k) + (1 - t_k) \log(1 - \sigma(z_k)) \big)

    Args:
        logits: float32 ``[B, K]``, z.
        targets: float32 ``[B, K]`` in [0, 1], t. A row of zeros is an image without a label, and
            costs nothing.
        smoothing: as for `optax.smooth_labels`, before the threshold.
        threshold: targets above it become 1 and the others 0; None keeps them.

    Returns:
        float32 ``[B]``.

    Example:
        >>> binary_cross_entropy(jnp.array([[0.0, 0.0]]), jnp.array([[0.7, 0.3]]))
        Array([0.6931472], dtype=float32)

    Reference:
        Wightman, Touvron, Jégou. ResNet strikes back. 2021.
    """
    smooth = optax.smooth_labels(targets, smoothing)
    if threshold is not None:
        smooth = (smooth > threshold).astype(smooth.dtype)
    losses = optax.sigmoid_binary_cross_entropy(logits, smooth).mean(-1)
    return jnp.where(targets.any(-1), losses, 0.0)


def mixes_images(plan):
    """Whether a plan, on the host, changes any image."""
    pastes = (plan.box[:, 1] > plan.box[:, 0]).all(-1).any()
    blends = plan.ratio is not None and (plan.ratio != 1).any()
    masks = plan.mask is not None and (plan.mask != 0).any()
    return plan.layer == "image" and bool(pastes or blends or masks)
