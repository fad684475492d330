"""What can be configured: every key with its type, default, rule and meaning, in one table."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import config_dict

from cutmix_jax import UserError
from cutmix_jax import nearest as nearest
from cutmix_jax.paths import place

# Overriding these changes where or how fast a run goes, not what it computes: they are not part of
# a workdir's name, and a run may go on with other values of them.
FREE_KEYS = (
    "data_dir",
    "boxes_dir",
    "resident_limit_mib",
    "mapping",
    "steps_per_call",
    "checkpoint_every",
    "checkpoint_epochs",
    "evals",
)


class Rule(NamedTuple):
    """What a key accepts besides None, and how to say so."""

    accepts: Callable[[Any], bool]
    expected: str


class Key(NamedTuple):
    """One key of the config; a default of None means unset."""

    type: type
    default: Any
    rule: Rule | None
    meaning: str


def _one_of(*names):
    return Rule(lambda value: value in names, "one of " + ", ".join(map(repr, names)))


def _between(low, high=math.inf, above=False, below=False):
    """Numbers from `low` to `high`, without the ends by `above` and `below`; never NaN."""

    def accepts(value):
        inside = value > low if above else value >= low
        return inside and (value < high if below else value <= high) and math.isfinite(value)

    expected = f"a finite number {'above' if above else 'of at least'} {low}"
    if high < math.inf:
        expected += f" and {'below' if below else 'at most'} {high}"
    return Rule(accepts, expected)


def _each(rule, expected):
    return Rule(lambda values: all(map(rule.accepts, values)), expected)


_SEED = _between(0, 2**31 - 1)
_COUNT = _between(1)
_NOT_NEGATIVE = _between(0)
_FRACTION = _between(0, 1)
_RATE = _between(0, 1, below=True)
_INNER = _between(0, 1, above=True, below=True)
_FINITE = _between(-math.inf, above=True)
_SCHEDULE = _one_of("constant", "linear")
_EPS = _each(_between(0, 255), "sizes from 0 to 255 (in units of 1/255; the paper's is 8)")

SCHEMA = {
    "seed": Key(int, 0, _SEED, "Seed of the weights, the order, the augmentation and the mixing."),
    "epochs": Key(int, 300, _COUNT, "Passes over the training images."),
    "batch_size": Key(int, 64, _COUNT, "Images per step, over all devices."),
    # The network.
    "model": Key(str, "resnet20", None, "Name of the network."),
    "zero_init": Key(bool, False, None, "Start the last BatchNorm scale of each block at 0."),
    "last_stride": Key(
        int, 2, _one_of(1, 2), "Stride of layer4; 1 gives maps of twice the size (14x14 at 224)."
    ),
    "dtype": Key(str, "float32", _one_of("float32", "bfloat16"), "Type of the activations."),
    "remat": Key(
        bool, False, None, "Compute blocks again for the gradient: less memory, more time."
    ),
    "sync_batch_norm": Key(bool, False, None, "Average batch statistics over all devices."),
    "norm.momentum": Key(
        float, 0.9, _FRACTION, "Fraction of the running statistics that a step keeps."
    ),
    "norm.epsilon": Key(float, 1e-5, _between(0, above=True), "Added to the variance."),
    "norm.groups": Key(
        int, 1, _COUNT, "Parts of a device's batch that BatchNorm normalizes separately."
    ),
    "init_from": Key(str, None, None, "Workdir of a run whose weights are the start."),
    "new_head": Key(bool, False, None, "Initialize the head, even where that of `init_from` fits."),
    # What the network drops in training.
    "stochastic_depth": Key(
        float, 0.0, _RATE, "Probability to drop the last block; linearly less before it."
    ),
    "shake_drop": Key(
        float, 0.0, _RATE, "Probability to disturb the last block; linearly less before it."
    ),
    "drop_block.rate": Key(float, 0.0, _RATE, "Fraction of a feature map that DropBlock drops."),
    "drop_block.size": Key(int, 7, _COUNT, "Side of a dropped square, in pixels of the map."),
    "drop_block.stages": Key(
        tuple,
        (3, 4),
        Rule(
            lambda values: len(values) > 0 and all(value in (1, 2, 3, 4) for value in values),
            "some of the stages 1, 2, 3 and 4",
        ),
        "Stages in which DropBlock works.",
    ),
    "drop_block.schedule": Key(
        str, "constant", _SCHEDULE, "'linear': the rate grows from 0 over the run."
    ),
    # The mix. `cutmix_jax.mix` documents the parameters, checks them, and has their defaults.
    "mix.name": Key(
        str, "none", None, "A mix, or several joined by '+' or '_or_', with their parameters."
    ),
    "mix.alpha": Key(float, None, None, "Parameter of the Beta distribution of lambda."),
    "mix.prob": Key(float, None, None, "Probability to mix a batch."),
    "mix.box": Key(str, None, None, "Rounding of the box: 'exact', or 'paper' as the authors'."),
    "mix.size": Key(float, None, None, "Side of every box: pixels, or below 1 a fraction."),
    "mix.min_ratio": Key(float, None, None, "Least side of a box, as a fraction of the image's."),
    "mix.max_ratio": Key(float, None, None, "Largest side of a box, as a fraction of the image's."),
    "mix.placement": Key(str, None, None, "Box centers: 'uniform', 'gaussian' or 'inside'."),
    "mix.sigma": Key(float, None, None, "Standard deviation of 'gaussian' placement."),
    "mix.label": Key(str, None, None, "Label weights: 'share', 'one_hot' or 'complete'."),
    "mix.correct_lam": Key(bool, None, None, "Weigh labels by the area after clipping."),
    "mix.scope": Key(str, None, None, "One box per 'batch', 'device', 'pair' or 'image'."),
    "mix.partner": Key(str, None, None, "Partners: 'permutation', 'reverse' or 'rotate'."),
    "mix.across_devices": Key(bool, None, None, "Take partners from the batches of all devices."),
    "mix.fill": Key(float, None, None, "Value that Cutout writes into the box."),
    "mix.layers": Key(tuple, None, None, "Feature maps to mix at; one of them per batch."),
    "mix.schedule": Key(str, None, None, "'linear': `mix.prob` grows from 0 over the run."),
    "mix.until": Key(float, None, None, "Fraction of the run after which nothing is mixed."),
    "mix.switch_prob": Key(float, None, None, "Probability of the second of 'FIRST_or_SECOND'."),
    "label_smoothing": Key(float, 0.0, _FRACTION, "Label smoothing; no mix implies it."),
    # The images.
    "dataset": Key(str, "digits", None, "'digits', 'shapes', 'folder', or a name of TFDS."),
    "data_dir": Key(str, None, None, "Folder of the dataset."),
    "boxes_dir": Key(str, None, None, "ILSVRC's XML files with boxes, for localization."),
    "source": Key(
        str,
        "auto",
        _one_of("auto", "resident", "streaming"),
        "'resident' in device memory, 'streaming' from disk, or 'auto'.",
    ),
    "resident_limit_mib": Key(
        int, 2048, _NOT_NEGATIVE, "Largest dataset in MiB that 'auto' holds in device memory."
    ),
    "image_size": Key(int, None, _COUNT, "Height and width of the images; unset: as stored."),
    "eval_resize": Key(
        int, None, _COUNT, "Shorter side of test images before the center crop (streaming)."
    ),
    "square_resize": Key(
        int, None, _COUNT, "Height and width of images before a crop, random in training."
    ),
    "train_examples": Key(int, None, _COUNT, "Train on a fixed subset of this size."),
    "held_out": Key(int, 0, _NOT_NEGATIVE, "Training images held out to choose the epoch on."),
    "test_split": Key(str, None, None, "Split to test on; unset: 'test', else 'validation'."),
    "augment.pad": Key(int, 0, _NOT_NEGATIVE, "Padding before the random crop, in pixels."),
    "augment.pad_mode": Key(
        str, "zero", _one_of("zero", "reflect"), "What the padding shows; 'reflect': the image."
    ),
    "augment.flip": Key(bool, False, None, "Flip half of the images left to right."),
    "augment.min_area": Key(
        float,
        None,
        _between(0, 1, above=True),
        "Least area that the random-resized crop keeps (streaming); unset: no such crop.",
    ),
    "augment.max_area": Key(
        float, 1.0, _between(0, 1, above=True), "Largest area that the random-resized crop keeps."
    ),
    "augment.color_jitter": Key(
        float, 0.0, _NOT_NEGATIVE, "Strength of changes in brightness, contrast and saturation."
    ),
    "augment.lighting": Key(float, 0.0, _NOT_NEGATIVE, "Standard deviation of the PCA noise."),
    "normalize.mean": Key(
        tuple, (0.5,), _each(_FINITE, "a finite number per channel"), "Mean of images in [0, 1]."
    ),
    "normalize.std": Key(
        tuple,
        (0.5,),
        _each(_between(0, above=True), "a finite number above 0 per channel"),
        "Standard deviation of images in [0, 1].",
    ),
    # The optimizer.
    "learning_rate": Key(float, 0.1, _NOT_NEGATIVE, "Learning rate, the highest of the run."),
    "head_lr_factor": Key(
        float, 1.0, _NOT_NEGATIVE, "Learning rate of the head (fc) over that of the rest."
    ),
    "schedule": Key(str, "step", _one_of("step", "cosine"), "How the learning rate falls."),
    "lr_drops": Key(
        tuple,
        (0.5, 0.75),
        Rule(
            lambda values: all(map(_INNER.accepts, values)) and sorted(values) == list(values),
            "rising fractions of the epochs between 0 and 1",
        ),
        "When the learning rate falls ('step'), as fractions of the epochs.",
    ),
    "lr_factor": Key(float, 0.1, _between(0, 1, above=True), "Factor by which it falls there."),
    "warmup_epochs": Key(float, 0.0, _NOT_NEGATIVE, "Epochs of linear warm-up."),
    "momentum": Key(float, 0.9, _FRACTION, "Momentum of SGD."),
    "nesterov": Key(bool, True, None, "Nesterov's momentum."),
    "weight_decay": Key(float, 1e-4, _NOT_NEGATIVE, "Weight decay, on all parameters."),
    "accumulate": Key(int, 1, _COUNT, "Parts of a device's batch whose gradients make one step."),
    "ema": Key(float, 0.0, _RATE, "Decay of the EMA weights, which are evaluated; 0: none."),
    # How the run goes.
    "mapping": Key(
        str,
        "auto",
        _one_of("auto", "pmap", "shard_map"),
        "How steps go over devices; 'auto': pmap in one process, shard_map in several.",
    ),
    "steps_per_call": Key(
        int, 0, _NOT_NEGATIVE, "Steps per call; 0: 1 on CPU, many on GPU and TPU (resident)."
    ),
    "checkpoint_every": Key(
        int, 0, _NOT_NEGATIVE, "Steps between checkpoints; 0: at the end of epochs only."
    ),
    "checkpoint_epochs": Key(
        int, 1, _COUNT, "Epochs between checkpoints; the best epoch is one of these."
    ),
    # The evaluations. The defaults suit a few thousand images on a CPU; docs/evaluations.md gives
    # those of the paper's protocols.
    "evals.split": Key(str, "test", None, "Split to evaluate: 'test' or 'held_out'."),
    "evals.classification.bins": Key(int, 15, _COUNT, "Bins of the calibration error."),
    "evals.cam.images": Key(int, 8, _COUNT, "Images whose maps are shown."),
    "evals.cam.of": Key(
        str, "predicted", None, "Class whose maps are shown: 'predicted', 'true', or a name."
    ),
    "evals.cam.threshold": Key(float, 0.15, _INNER, "Fraction of the maximum, for the boxes."),
    "evals.localization.threshold": Key(float, 0.15, _INNER, "Fraction of the maximum."),
    "evals.localization.sweep_step": Key(
        float, 0.05, _INNER, "Distance of the thresholds of the curve."
    ),
    "evals.localization.max_box_step": Key(
        float, 0.01, _INNER, "Distance of the thresholds of MaxBoxAcc."
    ),
    "evals.fgsm.eps": Key(
        tuple, (0.0, 1.0, 2.0, 4.0, 8.0, 12.0, 16.0), _EPS, "Sizes of the attack, in 1/255."
    ),
    "evals.fgsm.clip": Key(bool, True, None, "Clip attacked images to [0, 1]."),
    "evals.fgsm.pgd_eps": Key(tuple, (8.0,), _EPS, "Sizes of PGD in 1/255; empty: no PGD."),
    "evals.fgsm.pgd_steps": Key(int, 10, _COUNT, "Steps of PGD."),
    "evals.fgsm.pgd_step_size": Key(
        float, 2.0, _between(0, above=True), "Size of a step of PGD, in 1/255."
    ),
    "evals.fgsm.pgd_random_start": Key(bool, True, None, "Start PGD at a random point."),
    "evals.fgsm.seed": Key(int, 0, _SEED, "Seed of the random start."),
    "evals.occlusion.steps": Key(int, 8, _COUNT, "Sizes of the square, from 0 to the image's."),
    "evals.occlusion.step": Key(int, None, _COUNT, "Pixels between sizes, instead of `steps`."),
    "evals.occlusion.fill": Key(str, "mean", None, "Color of the square: 'mean' or 'black'."),
    "evals.between.pairs": Key(int, None, _COUNT, "Pairs; unset: as many as images."),
    "evals.between.lam_steps": Key(int, 10, _COUNT, "Steps of lambda from 0 to 1."),
    "evals.between.steps": Key(int, 8, _COUNT, "Sizes of the box, from 0 to the image's."),
    "evals.between.step": Key(int, None, _COUNT, "Pixels between sizes, instead of `steps`."),
    "evals.between.seed": Key(int, 0, _SEED, "Seed of the pairs."),
    "evals.ood.sets": Key(
        tuple,
        ("uniform", "gaussian", "digits"),
        Rule(
            lambda values: (
                all(isinstance(value, str) for value in values)
                and 0 < len(values) == len(set(values))
            ),
            "names of sets, none of them twice,",
        ),
        "These, TFDS sets, or 'folder:PATH', the last two also with ':resize' or ':crop'.",
    ),
    "evals.ood.limit": Key(int, None, _COUNT, "Images per set; unset: at most 10,000."),
    "evals.ood.seed": Key(int, 0, _SEED, "Seed of the random images and choices."),
}


def base_config():
    """All keys with their defaults; files in `configs/` set what differs per dataset."""
    config = config_dict.ConfigDict()
    for path, key in SCHEMA.items():
        *sections, name = path.split(".")
        section = config
        for part in sections:
            if part not in section:
                section[part] = config_dict.ConfigDict()
            section = section[part]
        unset = key.default is None
        section[name] = config_dict.placeholder(key.type) if unset else key.default
    return config


def check_config(config):
    """Refuses values that no run can use.

    Raises:
      UserError: names the key, its value and what was expected.
    """
    for key, value in flatten(config.to_dict()).items():
        if key not in SCHEMA:
            raise UserError(f"There is no config key {key!r} ({nearest(key, SCHEMA)}).")
        rule = SCHEMA[key].rule
        try:
            accepted = value is None or rule is None or rule.accepts(value)
        except TypeError:  # a string among numbers
            accepted = False
        if not accepted:
            raise UserError(f"config.{key} is {value!r}, and {rule.expected} was expected.")
    for key, path in given_paths(config):
        place(path, key)
    _check_crop(config)
    limit = config.epochs - (config.schedule == "cosine")
    if config.warmup_epochs > limit:
        raise UserError(
            f"config.warmup_epochs is {config.warmup_epochs:g}, and at most {limit} was expected "
            f"with config.epochs={config.epochs} and config.schedule={config.schedule!r}."
        )
    if config.norm.groups > 1 and config.sync_batch_norm:
        raise UserError(
            f"config.norm.groups is {config.norm.groups}, which divides a device's batch, and "
            "config.sync_batch_norm averages over all devices: set only one of them."
        )
    if len(config.normalize.mean) != len(config.normalize.std):
        raise UserError(
            f"config.normalize has {len(config.normalize.mean)} means and "
            f"{len(config.normalize.std)} standard deviations: give one of each per channel."
        )


def _check_crop(config):
    """Refuses more than one way to crop, and crops that the source does not have."""
    augment = config.augment
    if augment.min_area is not None and augment.min_area > augment.max_area:
        raise UserError(
            f"config.augment.min_area is {augment.min_area:g}, and at most "
            f"config.augment.max_area={augment.max_area:g} was expected."
        )
    larger = {"augment.min_area": augment.min_area, "square_resize": config.square_resize}
    ways = {"augment.pad": augment.pad, **larger}
    if config.square_resize:
        ways["eval_resize"] = config.eval_resize
    given = [f"config.{key}" for key, value in ways.items() if value]
    if len(given) > 1:
        raise UserError(
            f"{' and '.join(given)} are set, but an image is resized and cropped in one way only: "
            "unset all but one."
        )
    if config.source == "resident" and crops_larger_images(config):
        raise UserError(
            f"{given[0]} crops from larger images, which config.source='resident' does not have: "
            "use --config.source=streaming, or --config.augment.pad."
        )


def crops_larger_images(config):
    """Whether training images are crops of larger ones, which only streaming has.

    `augment.min_area` asks for a random-resized crop, `square_resize` for a random crop of what is
    resized to a square. Otherwise images are padded by `augment.pad` and cropped back.
    """
    return config.augment.min_area is not None or config.square_resize is not None


def given_paths(config):
    """The paths that a config names, as pairs of what names it and the path."""
    for key in ("data_dir", "boxes_dir", "init_from"):
        if config[key] is not None:
            yield f"config.{key}", config[key]
    for name in config.evals.ood.sets:
        kind, _, path = name.partition(":")
        if kind == "folder":
            yield "A folder of config.evals.ood.sets", path


def differences(ours, theirs):
    """The keys that matter and differ between two configs, as ``(key, ours, theirs)``."""
    ours, theirs = flatten(ours), flatten(theirs)
    return [
        (key, ours.get(key), theirs.get(key))
        for key in sorted(ours.keys() | theirs.keys())
        if key.split(".")[0] not in FREE_KEYS and ours.get(key) != theirs.get(key)
    ]


def to_plain(config):
    """The config as nested dictionaries of what JSON has, tuples as lists.

    What the mix is not told is left out: most mixes have few of all the parameters.
    """
    plain = _plain(config.to_dict())
    plain["mix"] = {key: value for key, value in plain["mix"].items() if value is not None}
    return plain


def from_plain(plain):
    """The inverse of `to_plain`, for a config that a checkpoint carries; what it lacks is default.

    Raises:
      UserError: it has keys that this version does not know.
    """
    config = base_config()
    values = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in flatten(plain).items()
    }
    unknown = values.keys() - SCHEMA.keys()
    if unknown:
        raise UserError(
            f"The config has the key {min(unknown)!r}, which this version does not know: use the "
            "version that wrote it, or train again."
        )
    config.update_from_flattened_dict(values)
    return config


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def flatten(tree, prefix=""):
    """Nested dictionaries as one, with keys like 'augment.pad'."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
