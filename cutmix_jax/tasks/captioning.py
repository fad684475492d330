"""Captioning: a sentence about an image, by an LSTM on an encoder that a classifier trained."""

import sys

import jax
import numpy as np
from clu.metrics import Average
from jax import lax
from jax import numpy as jnp

from cutmix_jax import UserError, models, optimizer
from cutmix_jax.captioning import nic, scores, search
from cutmix_jax.config import check_unused
from cutmix_jax.data import captions
from cutmix_jax.data.records import require
from cutmix_jax.parallel import AXIS
from cutmix_jax.tasks import Task, check_channels

# The keys of `scores.score`, and their words.
SCORES = {
    "bleu1": "BLEU-1",
    "bleu2": "BLEU-2",
    "bleu3": "BLEU-3",
    "bleu4": "BLEU-4",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
}
# Keys that a frozen encoder does not use.
UNUSED = ("stochastic_depth", "shake_drop", "drop_block.rate", "norm.groups")


class Captioning(Task):
    """Neural Image Caption (NIC) with the encoder `config.model`.

    A training example is a caption, an example of another split is an image with all its captions.
    """

    ranked_by, higher_is_better = "cider", True
    measure_name = SCORES["cider"]
    heads = ("project", "project_norm", "words", "lstm", "output")
    word_heads = ("words", "output")
    left_out = ("fc",)  # of a classifier
    pictures = ("captions.png", "cider.png")

    @classmethod
    def check_config(cls, config):
        for package in ("nltk", "pycocoevalcap"):
            require(package, "captioning", "pip install -r requirements-captions.txt")
        if config.init_from is None and not config.captions.finetune:
            raise UserError(
                "The encoder would stay random, because config.captions.finetune is False. Give "
                "the workdir or file of a classifier as --config.init_from, or train the encoder "
                "as well."
            )
        if not config.captions.finetune:
            reason = "without config.captions.finetune the encoder runs as in evaluation"
            check_unused(config, UNUSED, reason)

    @classmethod
    def open_data(cls, config, shards):
        check_parts(config, shards.devices)
        data = captions.open_captions(config, shards)
        check_channels(config, data.image_shape)
        models.check_image_size(config.model, data.image_shape, config.last_stride)
        return data

    @classmethod
    def create_model(cls, config, data):
        options = config.captions
        return nic.NIC(
            models.from_config(config, num_classes=None, norm_axis=AXIS),
            vocabulary_size=data.num_classes,
            **{name: options[name] for name in ("embed", "hidden", "dropout", "finetune")},
        )

    @classmethod
    def create_optimizer(cls, config, schedule):
        learned = optimizer.create_optimizer(config, schedule, cls.heads)
        if config.captions.finetune:
            return learned
        return optimizer.freeze(learned, lambda path: path.split("/")[0] not in cls.heads)

    def init(self, key):
        images = jnp.zeros((1, *self.data.image_shape))
        return self.model.init(key, images, jnp.zeros((1, 2), jnp.int32))

    def load(self, arrays, xs, step):
        batch = self.data.load_train(arrays, xs, step // self.data.steps_per_epoch)
        # The loss is a mean over the predicted words of all devices and parts of the batch.
        predicted = (batch["tokens"][:, 1:] != search.PAD).sum(1).mean()
        return {
            "image": self.normalize(batch["image"]),
            "tokens": batch["tokens"],
            "predicted": jnp.full(len(batch["tokens"]), lax.pmean(predicted, AXIS)),
        }

    def loss(self, weights, batch, step, key):
        logits, updates = self.model.apply(
            weights,
            batch["image"],
            batch["tokens"],
            train=True,
            progress=step / self.total_steps,
            rngs={"drop": key},
            mutable=["batch_stats"],
        )
        total, count = nic.caption_loss(logits, batch["tokens"])
        counters = {"loss": Average(total=total, count=count)}
        return total / batch["predicted"].sum(), (updates["batch_stats"], counters)

    def measure(self, weights, arrays, xs):
        batch, options = self.data.load_eval(arrays, xs), self.config.captions
        images = self.normalize(batch["image"].astype(jnp.float32) / 255)
        first = self.model.apply(weights, images, method="encode")
        tokens = jnp.where(batch["mask"][:, None, None], batch["tokens"], search.PAD)
        each = tokens.shape[1]
        logits = self.model.apply(
            weights,
            jax.tree.map(lambda x: jnp.repeat(x, each, axis=0), first),
            tokens.reshape(-1, tokens.shape[2]),
            method="predict",
        )
        total, count = nic.caption_loss(
            logits.reshape(*tokens.shape[:2], -1, logits.shape[-1]), tokens
        )
        found, _ = search.beam_search(
            lambda carry, last: self.model.apply(weights, carry, last, method="step"),
            first,
            len(images),
            options.beam,
            options.max_words,
            self.data.num_classes,
            options.length_power,
        )
        counters = {"loss": Average(total=total, count=count)}
        return counters, {"tokens": found[:, 0], "mask": batch["mask"]}

    def score(self, split, outputs):
        """The scores of `captioning.scores`, times 100; METEOR if asked for and if it runs."""
        written = [self.data.vocabulary.decode(row) for row in outputs["tokens"]]
        references = [list(texts) for texts in self.data.captions[split]]
        meteor = self.config.captions.meteor and scores.java_available()
        found, _, failure = score_captions(references, written, meteor)
        if failure:
            print(
                f"METEOR is not measured: {failure} --config.captions.meteor=False leaves it out.",
                file=sys.stderr,
                flush=True,
            )
        return found

    def describe(self):
        options, data = self.config.captions, self.data
        frozen = "trained" if options.finetune else "frozen"
        images = {split: f"{len(texts):,}" for split, texts in data.captions.items()}
        listed = ", ".join(f"{n} {split.replace('_', '-')}" for split, n in images.items())
        search_words = f"beam of {options.beam}" if options.beam > 1 else "greedy search"
        return {
            "model": f"NIC on {self.config.model} ({frozen}), LSTM of {options.hidden}, "
            f"{data.num_classes:,} words, {search_words}",
            "data": f"{self.config.dataset}: images {listed}; {data.examples['train']:,} captions "
            f"to train on, {data.kind}",
        }

    def describe_epoch(self, history):
        record = history[-1]
        words = f"train loss {record['train_loss']:.3f}"
        split = self.ranking_split(record)
        if split is None:
            return words
        best = self.best(history, split)[f"{split}_cider"]
        return (
            f"{words}  {split.replace('_', '-')} CIDEr {record[f'{split}_cider']:.1f} (best "
            f"{best:.1f})  BLEU-4 {record[f'{split}_bleu4']:.1f}"
        )

    def summarize(self, history):
        last = history[-1]
        results = super().summarize(history)
        results["scores_last"] = {
            name: last[f"test_{name}"] for name in SCORES if f"test_{name}" in last
        }
        return results | self.held_out_choice(history, "cider")

    def describe_results(self, results):
        chosen = []
        if "held_out_epoch" in results:
            chosen = [
                f"CIDEr, held-out choice  {results['cider_held_out']:.1f}   epoch "
                f"{results['held_out_epoch']}"
            ]
        found = results["scores_last"]
        each = ", ".join(
            f"{words} {found[name]:.1f}" if name in found else f"{words} - (not measured)"
            for name, words in SCORES.items()
        )
        return [
            f"CIDEr, last epoch       {results['cider_last']:.1f}",
            *chosen,
            f"CIDEr, best on test     {results['cider_best']:.1f}   epoch {results['best_epoch']}",
            f"last epoch              {each}",
        ]

    def plot_start(self, arrays, folder):
        """Writes `captions.png`: the first device's images and captions of the first batch."""
        from cutmix_jax import pictures  # Matplotlib takes a second

        mapped = self.mapping.map(lambda epoch, *inputs: self.data.load_train(*inputs, epoch))
        xs = self.mapping.shard(next(iter(self.data.train_batches(0))))
        batch = jax.device_get(mapped(self.mapping.replicate(np.int32(0)), arrays, xs))
        if jax.process_index() == 0:
            texts = [self.data.vocabulary.decode(row) for row in batch["tokens"]]
            pictures.draw_captions(batch["image"], texts, folder / "captions.png")

    def plot_history(self, history, folder):
        """Writes `cider.png`."""
        from cutmix_jax import pictures

        pictures.draw_measure(history, "cider", "CIDEr", folder / "cider.png", top=None)


def check_parts(config, devices):
    """Refuses batches whose parts are too small for BatchNorm.

    Raises:
        UserError: it would see fewer than two captions at a time.
    """
    parts = config.accumulate * (1 if config.sync_batch_norm else devices)
    if config.batch_size < 2 * parts:
        synced = ", or set --config.sync_batch_norm=True" * (parts > config.accumulate)
        raise UserError(
            f"config.batch_size={config.batch_size} on {devices} devices with config.accumulate="
            f"{config.accumulate} gives BatchNorm fewer than two captions at a time. Alone, each "
            "one is normalized to zero, and the LSTM would not see its image. Use "
            f"--config.batch_size={2 * config.accumulate * devices} or more{synced}."
        )


def score_captions(references, written, meteor):
    """The scores of captions, without METEOR if that fails.

    Args:
        references: as for `scores.score`.
        written: a caption per image.
        meteor: whether to compute METEOR. Only the first process does, which writes the results.

    Returns:
        `(corpus, images, failure)`: those of `scores.score`, and why METEOR failed, or ''.
    """
    failure = ""
    if meteor and jax.process_index() == 0:
        try:
            return *scores.score(references, written, meteor=True), ""
        except UserError as error:
            failure = str(error)
    return *scores.score(references, written), failure
