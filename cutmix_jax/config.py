"""Every key of a config with its type, default, rule and meaning, in one table."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import config_dict

from cutmix_jax import UserError
from cutmix_jax import nearest as nearest
from cutmix_jax.paths import user_path

# These keys change where or how fast a run goes, not what it computes. They are not part of a
# workdir's name, and a run may resume with other values.
FREE_KEYS = (
    "data_dir",
    "boxes_dir",
    "resident_limit_mib",
    "reader_processes",
    "mapping",
    "steps_per_call",
    "checkpoint_every",
    "checkpoint_epochs",
    "loggers",
    "captions.meteor",
    "evals",
)


class Rule(NamedTuple):
    """The values that a key accepts besides None, and their description for messages."""

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
    """Finite numbers from `low` to `high`; `above` and `below` exclude the ends."""

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
_POSITIVE = _between(0, above=True)
_PROPOSALS = Rule(
    lambda values: len(values) == 2 and all(map(_COUNT.accepts, values)), "two numbers from 1"
)
_FINITE = _between(-math.inf, above=True)
_SCHEDULE = _one_of("constant", "linear")
_EPS = _each(_between(0, 255), "sizes from 0 to 255 (in units of 1/255; the paper's is 8)")

# Those of `loggers.LOGGERS`.
LOGGERS = {"tensorboard", "wandb", "mlflow"}

# What each policy uses of the section `augment`.
POLICY_KEYS = {
    "none": (),
    "trivial_augment": ("interpolation",),
    "rand_augment": ("interpolation", "operations", "magnitude"),
    "rand_augment_timm": (
        "interpolation",
        "operations",
        "magnitude",
        "magnitude_std",
        "operation_prob",
    ),
}

SCHEMA = {
    # Run
    "task": Key(str, "classification", None, "What is learned, or 'MODULE:CLASS' of your own."),
    "seed": Key(int, 0, _SEED, "Seed of the weights, the order of examples, augmentation and mix."),
    "epochs": Key(int, 300, _COUNT, "Number of epochs."),
    "batch_size": Key(int, 64, _COUNT, "Examples per step, over all devices together."),
    "accumulate": Key(int, 1, _COUNT, "Gradient accumulation: parts of a device's batch per step."),
    "checkpoint_every": Key(
        int, 0, _NOT_NEGATIVE, "Steps between checkpoints; 0 saves at the end of epochs only."
    ),
    "checkpoint_epochs": Key(
        int, 1, _COUNT, "Epochs between checkpoints. Only a saved epoch can be the best."
    ),
    "eval_every": Key(int, 1, _COUNT, "Epochs between evaluations; the last is always evaluated."),
    "mapping": Key(
        str,
        "auto",
        _one_of("auto", "pmap", "shard_map"),
        "Mapping over devices; 'auto' is pmap in one process, shard_map in several.",
    ),
    "steps_per_call": Key(
        int,
        0,
        _NOT_NEGATIVE,
        "Steps per call; 0: many on GPU and TPU with resident data of one shape, else 1.",
    ),
    "loggers": Key(
        tuple,
        ("tensorboard",),
        Rule(
            lambda names: len(set(names)) == len(names) and set(names) <= LOGGERS,
            "names among 'tensorboard', 'wandb' and 'mlflow', none of them twice,",
        ),
        "What gets the records of the epochs, besides `metrics.jsonl`.",
    ),
    # Network
    "model": Key(str, "resnet20", None, "Name of the network."),
    "zero_init": Key(
        bool,
        False,
        None,
        "Start the last BatchNorm scale (pre-activation: kernel) of each block at 0.",
    ),
    "last_stride": Key(
        int,
        2,
        _one_of(1, 2),
        "Stride of `layer4`; 1 gives maps of twice the size (14x14 at 224 px).",
    ),
    "dtype": Key(
        str,
        "float32",
        _one_of("float32", "bfloat16"),
        "Type of the activations. Parameters are always float32.",
    ),
    "remat": Key(
        bool, False, None, "Recompute blocks in the backward pass: less memory, more time."
    ),
    "sync_batch_norm": Key(bool, False, None, "Average batch statistics over all devices."),
    "norm.momentum": Key(
        float,
        0.9,
        _FRACTION,
        "Fraction of the running statistics that a step keeps (PyTorch: 1 - this).",
    ),
    "norm.epsilon": Key(float, 1e-5, _between(0, above=True), "Added to the variance."),
    "norm.groups": Key(
        int,
        1,
        _COUNT,
        "Parts of a device's batch that are normalized separately (ghost BatchNorm).",
    ),
    "init_from": Key(
        str, None, None, "Workdir, .pth or .safetensors file to take the first weights from."
    ),
    "new_head": Key(
        bool, False, None, "Initialize the head at random, even if that of `init_from` fits."
    ),
    # Optimization
    "learning_rate": Key(float, 0.1, _NOT_NEGATIVE, "Learning rate after the warm-up."),
    "schedule": Key(
        str,
        "step",
        _one_of("step", "cosine"),
        "'step' multiplies the rate at milestones, 'cosine' lowers it smoothly.",
    ),
    "lr_drops": Key(
        tuple,
        (0.5, 0.75),
        Rule(
            lambda values: all(map(_INNER.accepts, values)) and sorted(values) == list(values),
            "rising fractions of the epochs between 0 and 1",
        ),
        "Milestones of 'step', as fractions of the epochs.",
    ),
    "lr_factor": Key(float, 0.1, _between(0, 1, above=True), "Factor at each milestone."),
    "min_learning_rate": Key(float, 0.0, _NOT_NEGATIVE, "Learning rate at the end of 'cosine'."),
    "warmup_epochs": Key(float, 0.0, _NOT_NEGATIVE, "Epochs of linear warm-up."),
    "warmup_start": Key(
        float,
        0.0,
        _FRACTION,
        "Learning rate at the start of the warm-up, relative to its end.",
    ),
    "head_lr_factor": Key(
        float, 1.0, _NOT_NEGATIVE, "Learning rate of the head, relative to the rest."
    ),
    "optimizer": Key(
        str, "sgd", _one_of("sgd", "adam", "adamw", "lamb"), "The rule of the updates."
    ),
    "momentum": Key(float, 0.9, _RATE, "Momentum of SGD, beta1 of the others."),
    "nesterov": Key(bool, True, None, "Use Nesterov momentum, in SGD."),
    "weight_decay": Key(
        float, 1e-4, _NOT_NEGATIVE, "Weight decay: added to the gradient, except in AdamW and LAMB."
    ),
    "weight_decay_on": Key(
        str,
        "all",
        _one_of("all", "all_but_norms", "kernels"),
        "Decayed parameters; the authors decay all, torchvision all but norms.",
    ),
    "clip_gradient": Key(
        float, None, _between(0, above=True), "Largest norm of a step's gradient; None: any."
    ),
    "ema": Key(
        float, 0.0, _RATE, "Decay of the EMA weights, which are evaluated if kept; 0 keeps none."
    ),
    "ema_every": Key(int, 1, _COUNT, "Steps between updates of the EMA weights."),
    # Regularization
    "loss": Key(
        str,
        "cross_entropy",
        _one_of("cross_entropy", "bce"),
        "Loss of a classifier; 'bce' is the mean of a binary cross-entropy per class.",
    ),
    "bce_threshold": Key(
        float, None, _RATE, "Targets above it count as 1 in 'bce', others as 0; None: as they are."
    ),
    "label_smoothing": Key(float, 0.0, _FRACTION, "Label smoothing; mixing never implies it."),
    "stochastic_depth": Key(
        float, 0.0, _RATE, "Probability of dropping the last block; linear over the blocks."
    ),
    "shake_drop": Key(
        float,
        0.0,
        _RATE,
        "Probability that ShakeDrop scales the last block; linear over the blocks.",
    ),
    "drop_block.rate": Key(float, 0.0, _RATE, "Fraction of a feature map that DropBlock drops."),
    "drop_block.size": Key(int, 7, _COUNT, "Side of the dropped squares, in pixels of the map."),
    "drop_block.stages": Key(
        tuple,
        (3, 4),
        Rule(
            lambda values: len(values) > 0 and all(value in (1, 2, 3, 4) for value in values),
            "some of the stages 1, 2, 3 and 4",
        ),
        "Stages of the network that use DropBlock.",
    ),
    "drop_block.schedule": Key(
        str, "constant", _SCHEDULE, "'linear' raises the rate from 0 over the run."
    ),
    # Mix. `cutmix_jax.mix` checks these parameters, and has their defaults.
    "mix.name": Key(
        str, "none", None, "A mix, or several joined by '+' or '_or_', with their parameters."
    ),
    "mix.alpha": Key(float, None, None, "Parameter of the Beta distribution."),
    "mix.prob": Key(float, None, None, "Probability to mix at all, decided once per mix.scope."),
    "mix.box": Key(
        str,
        None,
        None,
        "'exact' rounds the box to whole pixels; 'paper' follows the authors' code.",
    ),
    "mix.size": Key(
        float, None, None, "Fixed side of the box in pixels; below 1, as a fraction of the image's."
    ),
    "mix.lengths": Key(
        str, None, None, "Sides of the box: 'beta', or 'uniform' between the next two."
    ),
    "mix.min_ratio": Key(float, None, None, "Smallest side of the box, relative to the image's."),
    "mix.max_ratio": Key(float, None, None, "Largest side of the box, relative to the image's."),
    "mix.placement": Key(
        str, None, None, "Position of the box: 'uniform', 'gaussian' or 'inside'."
    ),
    "mix.sigma": Key(
        float, None, None, "Standard deviation of 'gaussian', relative to the image's side."
    ),
    "mix.box_fraction": Key(
        float, None, None, "Fraction of the partner's weight in HMix's box, before clipping."
    ),
    "mix.decay": Key(float, None, None, "Exponent of FMix's noise, 1 / f^decay."),
    "mix.resolution": Key(
        int, None, None, "Cells of FMix's mask along the longest side; default: one per pixel."
    ),
    "mix.min_area": Key(
        float, None, None, "Smallest area of GridMix's region or CowMix's mask, of the image's."
    ),
    "mix.max_area": Key(
        float, None, None, "Largest area of GridMix's region or CowMix's mask, of the image's."
    ),
    "mix.min_aspect": Key(float, None, None, "Smallest height over width of GridMix's region."),
    "mix.max_aspect": Key(float, None, None, "Largest height over width of GridMix's region."),
    "mix.min_cells": Key(float, None, None, "Smallest number of GridMix's cells across."),
    "mix.max_cells": Key(float, None, None, "Largest number of GridMix's cells across."),
    "mix.min_sigma": Key(
        float, None, None, "Smallest blur of CowMix's noise, relative to the image's side."
    ),
    "mix.max_sigma": Key(
        float, None, None, "Largest blur of CowMix's noise, relative to the image's side."
    ),
    "mix.label": Key(str, None, None, "Label weight: 'area', 'one_hot' or 'complete'."),
    "mix.correct_lam": Key(
        bool, None, None, "Weight labels by the pasted area, not by the sampled lambda."
    ),
    "mix.scope": Key(str, None, None, "One box or mask per 'batch', 'device', 'pair' or 'image'."),
    "mix.partner": Key(
        str, None, None, "Choice of partners: 'permutation', 'reverse' or 'rotate'."
    ),
    "mix.across_devices": Key(bool, None, None, "Take partners from the batches of all devices."),
    "mix.fill": Key(float, None, None, "Value that Cutout and erasing write into the box."),
    "mix.area": Key(tuple, None, None, "Area of the box of erasing over the image's: (low, high)."),
    "mix.aspect": Key(tuple, None, None, "Height over width of the box of erasing: (low, high)."),
    "mix.layers": Key(tuple, None, None, "Feature maps that are mixed, by name or number."),
    "mix.schedule": Key(str, None, None, "'linear' raises `prob` from 0 over the run."),
    "mix.until": Key(float, None, None, "Fraction of training after which nothing is mixed."),
    "mix.switch_prob": Key(
        float, None, None, "Probability of the second mix in `FIRST_or_SECOND`."
    ),
    "mix.switch_scope": Key(
        str, None, None, "One choice in `FIRST_or_SECOND` per 'batch', 'device' or 'image'."
    ),
    # Data
    "dataset": Key(
        str,
        "digits",
        None,
        "'digits', 'shapes', 'folder', 'voc', 'coco_captions', or a TFDS dataset's name.",
    ),
    "data_dir": Key(str, None, None, "Folder of the data."),
    "max_objects": Key(
        int, 1, _between(1, 100), "Largest number of objects per image of 'shapes' (detection)."
    ),
    "voc.train": Key(
        str,
        "2007_trainval+2012_trainval",
        None,
        "Training splits of 'voc', YEAR_SPLIT or SPLIT, joined by '+'.",
    ),
    "voc.test": Key(str, "2007_test", None, "Test splits of 'voc', like `voc.train`."),
    "voc.classes": Key(
        tuple,
        None,
        Rule(
            lambda names: (
                all(isinstance(name, str) and name.strip() == name != "" for name in names)
                and 0 < len(names) == len(set(names))
            ),
            "names of classes, none of them twice,",
        ),
        "Classes of 'voc'; None: VOC's 20, or others in the training split.",
    ),
    "voc.max_side": Key(
        int, 500, _COUNT, "Longer images of 'voc' are shrunk to this side, in pixels."
    ),
    "source": Key(
        str,
        "auto",
        _one_of("auto", "resident", "streaming"),
        "'resident' keeps images in device memory, 'streaming' decodes each batch.",
    ),
    "reader_processes": Key(
        int,
        0,
        _NOT_NEGATIVE,
        "Processes that decode streamed images; 0 is a thread per core of this process.",
    ),
    "resident_limit_mib": Key(
        int, 2048, _NOT_NEGATIVE, "Largest dataset that 'auto' keeps in device memory."
    ),
    "image_size": Key(int, None, _COUNT, "Height and width of the images; None: as stored."),
    "eval_size": Key(
        int, None, _COUNT, "Height and width of the images in evaluation; None: `image_size`."
    ),
    "eval_resize": Key(
        int, None, _COUNT, "Shorter side before the center crop of evaluation (streaming)."
    ),
    "square_resize": Key(int, None, _COUNT, "Height and width before a random crop (streaming)."),
    "boxes_dir": Key(str, None, None, "Folder of ILSVRC's XML files, for localization."),
    "train_examples": Key(
        int,
        None,
        _COUNT,
        "Number of training examples: a fixed subset, the same for every seed.",
    ),
    "repeats": Key(
        int,
        1,
        _COUNT,
        "Repeated augmentation: copies of an image in a batch, each augmented by itself.",
    ),
    "held_out": Key(int, 0, _NOT_NEGATIVE, "Training examples held out to choose the best epoch."),
    "test_split": Key(str, None, None, "Split to evaluate on; None: 'test', else 'validation'."),
    "normalize.mean": Key(
        tuple,
        (0.5,),
        _each(_FINITE, "a finite number per channel"),
        "Mean per channel, of images in [0, 1].",
    ),
    "normalize.std": Key(
        tuple,
        (0.5,),
        _each(_between(0, above=True), "a finite number above 0 per channel"),
        "Standard deviation per channel.",
    ),
    # Augmentation
    "augment.pad": Key(int, 0, _NOT_NEGATIVE, "Pixels of padding before the random crop."),
    "augment.pad_mode": Key(
        str,
        "zero",
        _one_of("zero", "reflect"),
        "Content of the padding: 'zero', or 'reflect' for the mirrored image.",
    ),
    "augment.flip": Key(bool, False, None, "Flip horizontally at random."),
    "augment.min_area": Key(
        float,
        None,
        _between(0, 1, above=True),
        "Smallest area of the random-resized crop (streaming); None: no such crop.",
    ),
    "augment.max_area": Key(
        float, 1.0, _between(0, 1, above=True), "Largest area of the random-resized crop."
    ),
    "augment.color_jitter": Key(
        float, 0.0, _NOT_NEGATIVE, "Strength of brightness, contrast and saturation jitter."
    ),
    "augment.lighting": Key(
        float, 0.0, _NOT_NEGATIVE, "Standard deviation of AlexNet's PCA noise."
    ),
    "augment.policy": Key(
        str,
        "none",
        _one_of(*POLICY_KEYS),
        "Random operations per image, on crop and flip. See Augmentation.",
    ),
    "augment.operations": Key(int, 2, _COUNT, "Number of operations per image of RandAugment."),
    "augment.magnitude": Key(
        float,
        None,
        _between(0, 30),
        "Magnitude of RandAugment: whole, default 9; of timm's, at most 10, default 7.",
    ),
    "augment.magnitude_std": Key(
        float, 0.5, _NOT_NEGATIVE, "Standard deviation of the magnitude of rand_augment_timm."
    ),
    "augment.operation_prob": Key(
        float, 0.5, _FRACTION, "Probability of each operation of rand_augment_timm."
    ),
    "augment.interpolation": Key(
        str,
        "bilinear",
        _one_of("nearest", "bilinear"),
        "Interpolation of the policy's shears, translations and rotations.",
    ),
    "augment.erasing": Key(float, 0.0, _FRACTION, "Probability of random erasing."),
    "augment.erasing_fill": Key(
        str,
        "constant",
        _one_of("constant", "color", "noise"),
        "Erased box: mean color, 'color' per image, or 'noise' per pixel.",
    ),
    # Detection
    "detection.keep_difficult": Key(
        bool, False, None, "Train on difficult objects, too. They never count in evaluation."
    ),
    "detection.crop": Key(
        str,
        "original",
        _one_of("original", "cited", "none"),
        "SSD's expansion and crop: 'original', 'cited' (as in the cited code), or 'none'.",
    ),
    "detection.min_score": Key(float, 0.01, _RATE, "Scores of detections have to be above it."),
    "detection.nms_threshold": Key(
        float, 0.45, _FRACTION, "Largest overlap (IoU) of two detections of a class."
    ),
    "detection.max_per_class": Key(
        int, 200, _COUNT, "Largest number of detections per class, of SSD."
    ),
    "detection.max_per_image": Key(
        int, 100, _COUNT, "Largest number of detections per image, of Faster R-CNN."
    ),
    "detection.ap_rule": Key(
        str,
        "11-point",
        _one_of("11-point", "area"),
        "Average precision of VOC2007 ('11-point'), or of VOC2010 and later ('area').",
    ),
    "detection.freeze": Key(
        bool,
        False,
        None,
        "Faster R-CNN: keep BatchNorm, stem and first stage as the classifier has them.",
    ),
    "detection.shorter_side": Key(
        int,
        None,
        _COUNT,
        "Faster R-CNN: shorter side in pixels; None: the longer one is `image_size`.",
    ),
    "detection.region_stage": Key(
        int, 3, _one_of(1, 2, 3), "Faster R-CNN: last stage before regions are cut out."
    ),
    "detection.anchor_scales": Key(
        tuple,
        (8, 16, 32),
        Rule(lambda values: values and all(map(_POSITIVE.accepts, values)), "numbers above 0"),
        "Faster R-CNN: sizes of anchors, in strides.",
    ),
    "detection.train_proposals": Key(
        tuple,
        (12_000, 2000),
        _PROPOSALS,
        "Faster R-CNN: anchors with the best scores, and proposals that are left of them.",
    ),
    "detection.test_proposals": Key(
        tuple,
        (6000, 300),
        _PROPOSALS,
        "The same in evaluation, where all proposals count.",
    ),
    "detection.regions": Key(
        int, 256, _COUNT, "Faster R-CNN: regions per image that training classifies."
    ),
    # Captioning
    "captions.train": Key(
        str,
        "train2014",
        None,
        "Training splits of 'coco_captions', joined by '+', or a JSON file.",
    ),
    "captions.test": Key(str, "val2014", None, "Test splits, like `captions.train`."),
    "captions.splits": Key(str, None, None, "Karpathy's JSON file, which then defines the splits."),
    "captions.resize": Key(
        int, 256, _COUNT, "Height and width of stored images, before a crop to `image_size`."
    ),
    "captions.min_count": Key(
        int, 4, _COUNT, "Words that occur less often in training captions are unknown."
    ),
    "captions.max_words": Key(int, 20, _COUNT, "Longer captions are cut."),
    "captions.embed": Key(int, 100, _COUNT, "Size of the embeddings of words and images."),
    "captions.hidden": Key(int, 300, _COUNT, "Size of the LSTM's state."),
    "captions.dropout": Key(float, 0.1, _RATE, "Dropout rate of the LSTM's output."),
    "captions.finetune": Key(bool, False, None, "Train the encoder, too."),
    "captions.beam": Key(int, 20, _COUNT, "Width of the beam search; 1 is greedy."),
    "captions.meteor": Key(
        bool, False, None, "Compute METEOR in each evaluation, if Java is there."
    ),
    "captions.length_power": Key(
        float, 0.0, _NOT_NEGATIVE, "Beam search divides log probabilities by length to this power."
    ),
    # Evaluation. The defaults suit a few thousand images on a CPU. docs/evaluations.md lists the
    # values of the paper's protocols.
    "evals.split": Key(str, "test", None, "Split to evaluate: 'test' or 'held_out'."),
    "evals.classification.bins": Key(int, 15, _COUNT, "Bins of the calibration error."),
    "evals.cam.images": Key(int, 8, _COUNT, "Number of images to show."),
    "evals.cam.of": Key(
        str, "predicted", None, "Class whose map is shown: 'predicted', 'true' or a number."
    ),
    "evals.cam.threshold": Key(
        float, 0.15, _INNER, "Threshold of the boxes, relative to the map's maximum."
    ),
    "evals.localization.threshold": Key(
        float, 0.15, _INNER, "Threshold of the boxes, relative to the map's maximum."
    ),
    "evals.localization.sweep_step": Key(
        float, 0.05, _INNER, "Step between the thresholds of the curve."
    ),
    "evals.localization.max_box_step": Key(
        float, 0.01, _INNER, "Step between the thresholds of MaxBoxAcc."
    ),
    "evals.fgsm.eps": Key(
        tuple,
        (0.0, 1.0, 2.0, 4.0, 8.0, 12.0, 16.0),
        _EPS,
        "Sizes of the FGSM perturbation, in 1/255.",
    ),
    "evals.fgsm.clip": Key(bool, True, None, "Clip perturbed images to [0, 1]."),
    "evals.fgsm.pgd_eps": Key(
        tuple, (8.0,), _EPS, "Sizes of the PGD perturbation, in 1/255; empty: no PGD."
    ),
    "evals.fgsm.pgd_steps": Key(int, 10, _COUNT, "Steps of PGD."),
    "evals.fgsm.pgd_step_size": Key(
        float, 2.0, _between(0, above=True), "Step size of PGD, in 1/255."
    ),
    "evals.fgsm.pgd_random_start": Key(bool, True, None, "Start PGD at a random point."),
    "evals.fgsm.seed": Key(int, 0, _SEED, "Seed of the random start."),
    "evals.occlusion.steps": Key(
        int, 8, _COUNT, "Number of steps from no square to the whole image."
    ),
    "evals.occlusion.step": Key(int, None, _COUNT, "Pixels per step, instead of `steps`."),
    "evals.occlusion.fill": Key(str, "mean", None, "'mean' color or 'black'."),
    "evals.between.pairs": Key(
        int, None, _COUNT, "Number of image pairs; None: as many as images."
    ),
    "evals.between.lam_steps": Key(int, 10, _COUNT, "Steps of lambda from 0 to 1."),
    "evals.between.steps": Key(int, 8, _COUNT, "Number of steps from no box to the whole image."),
    "evals.between.step": Key(int, None, _COUNT, "Pixels per step, instead of `steps`."),
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
        "Out-of-distribution datasets, by name or as `folder:PATH`.",
    ),
    "evals.ood.limit": Key(
        int, None, _COUNT, "Images per dataset; None: as many as the split has, at most 10,000."
    ),
    "evals.detection.images": Key(
        str, None, None, "Folder of photographs in which a detector draws what it finds."
    ),
    "evals.detection.most_images": Key(int, 32, _COUNT, "Largest number of photographs in it."),
    "evals.detection.shown": Key(int, 8, _COUNT, "Number of images of the split to show."),
    "evals.detection.min_score": Key(
        float, 0.3, _FRACTION, "Detections are drawn if their score reaches it."
    ),
    "evals.captions.beam": Key(int, None, _COUNT, "Width of the beam; None: `captions.beam`."),
    "evals.captions.length_power": Key(
        float, None, _NOT_NEGATIVE, "Power of the length; None: `captions.length_power`."
    ),
    "evals.captions.images": Key(
        str, None, None, "Folder of photographs that a network writes captions for."
    ),
    "evals.captions.most_images": Key(int, 32, _COUNT, "Largest number of photographs in it."),
    "evals.captions.shown": Key(
        int, 24, _COUNT, "Number of images of the split to show, best and worst each."
    ),
    "evals.ood.seed": Key(int, 0, _SEED, "Seed of subsets, crops and noise."),
}

DEFAULTS = {name: key.default for name, key in SCHEMA.items()}


def base_config():
    """All keys with their defaults; files in `configs/` change them per dataset."""
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
    """Rejects values that no run can use.

    Raises:
        UserError: a value is not allowed; the message names the key, value and rule.
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
            raise UserError(f"config.{key} is {value!r}, but {rule.expected} was expected.")
    for key, path in given_paths(config):
        user_path(path, key)
    _check_crop(config)
    _check_policy(config)
    if not config.ema:
        check_unused(config, ["ema_every"], "config.ema is 0")
    if not config.warmup_epochs:
        check_unused(config, ["warmup_start"], "config.warmup_epochs is 0")
    if config.repeats > config.batch_size:
        raise UserError(
            f"config.repeats is {config.repeats}, but at most config.batch_size="
            f"{config.batch_size} was expected."
        )
    limit = config.epochs - (config.schedule == "cosine")
    if config.warmup_epochs > limit:
        raise UserError(
            f"config.warmup_epochs is {config.warmup_epochs:g}, but at most {limit} was expected "
            f"with config.epochs={config.epochs} and config.schedule={config.schedule!r}."
        )
    if config.min_learning_rate and config.schedule != "cosine":
        raise UserError(
            f"config.min_learning_rate is {config.min_learning_rate:g}, but only "
            "config.schedule='cosine' ends there. Set it to 0, or use that schedule."
        )
    if config.min_learning_rate > config.learning_rate:
        raise UserError(
            f"config.min_learning_rate is {config.min_learning_rate:g}, but at most "
            f"config.learning_rate={config.learning_rate:g} was expected."
        )
    if config.bce_threshold is not None and config.loss != "bce":
        raise UserError(
            f"config.bce_threshold is {config.bce_threshold:g}, but config.loss is "
            f"{config.loss!r}, which has no threshold. Set config.loss='bce', or leave it out."
        )
    if config.norm.groups > 1 and config.sync_batch_norm:
        raise UserError(
            f"config.norm.groups={config.norm.groups} splits a device's batch, but "
            "config.sync_batch_norm averages over all devices. Set only one of them."
        )
    if len(config.normalize.mean) != len(config.normalize.std):
        raise UserError(
            f"config.normalize has {len(config.normalize.mean)} means and "
            f"{len(config.normalize.std)} standard deviations: give one of each per channel."
        )


def check_unused(config, keys, reason):
    """Refuses a key that has no effect, unless it is at its default.

    Args:
        config: with all keys of `SCHEMA`.
        keys: flat keys without effect.
        reason: why, after "but": 'the task does not use it'.

    Raises:
        UserError: one of them was changed.
    """
    values = flatten(config.to_dict())
    for key in keys:
        if values[key] != DEFAULTS[key]:
            raise UserError(
                f"config.{key} is {values[key]!r}, but {reason}. Leave it at {DEFAULTS[key]!r}."
            )


def _check_policy(config):
    """Rejects keys that the policy does not use, and magnitudes that it does not have."""
    augment = config.augment
    used = POLICY_KEYS[augment.policy]
    unused = [f"augment.{key}" for key in POLICY_KEYS["rand_augment_timm"] if key not in used]
    check_unused(config, unused, f"config.augment.policy={augment.policy} does not use it")
    if not augment.erasing:
        check_unused(config, ["augment.erasing_fill"], "config.augment.erasing is 0")
    magnitude = augment.magnitude
    if magnitude is None:
        return
    if augment.policy == "rand_augment" and magnitude != int(magnitude):
        raise UserError(
            f"config.augment.magnitude is {magnitude:g}, but config.augment.policy=rand_augment "
            "has whole magnitudes, from 0 to 30. Set one of them."
        )
    if augment.policy == "rand_augment_timm" and magnitude > 10:
        raise UserError(
            f"config.augment.magnitude is {magnitude:g}, but at most 10 was expected with "
            "config.augment.policy=rand_augment_timm. Set a smaller one."
        )


def _check_crop(config):
    """Rejects more than one way to crop, and crops that the source cannot make."""
    augment = config.augment
    if augment.min_area is not None and augment.min_area > augment.max_area:
        raise UserError(
            f"config.augment.min_area is {augment.min_area:g}, but at most "
            f"config.augment.max_area={augment.max_area:g} was expected."
        )
    larger = {"augment.min_area": augment.min_area, "square_resize": config.square_resize}
    ways = {"augment.pad": augment.pad, **larger}
    if config.square_resize:
        ways["eval_resize"] = config.eval_resize
    given = [f"config.{key}" for key, value in ways.items() if value]
    if len(given) > 1:
        raise UserError(
            f"{' and '.join(given)} are set, but an image is resized and cropped in only one "
            "way. Unset all but one."
        )
    if config.source == "resident" and crops_larger_images(config):
        raise UserError(
            f"{given[0]} crops larger images, which config.source='resident' does not keep. "
            "Use --config.source=streaming, or --config.augment.pad."
        )


def crops_larger_images(config):
    """Whether training images are crops of larger ones, which only streaming supports.

    `augment.min_area` turns on the random-resized crop. `square_resize` turns on a random crop of
    the image resized to a square. Otherwise images are padded by `augment.pad` and cropped back.
    """
    return config.augment.min_area is not None or config.square_resize is not None


def given_paths(config):
    """The paths in a config, as ``(name for messages, path)``."""
    for key in ("data_dir", "boxes_dir", "init_from"):
        if config[key] is not None:
            yield f"config.{key}", config[key]
    if config.captions.splits is not None:
        yield "config.captions.splits", config.captions.splits
    for name in ("detection", "captions"):
        if (images := config.evals[name].images) is not None:
            yield f"config.evals.{name}.images", images
    for name in config.evals.ood.sets:
        kind, _, path = name.partition(":")
        if kind == "folder":
            yield "A folder of config.evals.ood.sets", path


def is_free(key):
    """Whether a flat key may change when a run is resumed."""
    return key in FREE_KEYS or key.split(".")[0] in FREE_KEYS


def differences(ours, theirs):
    """The keys that matter and differ between two configs, as ``(key, ours, theirs)``.

    What one of them lacks, such as a key that is newer than a checkpoint, is the default.
    """
    ours, theirs = flatten(ours), flatten(theirs)

    def value(config, key):
        return config[key] if key in config else _plain(DEFAULTS.get(key))

    return [
        (key, value(ours, key), value(theirs, key))
        for key in sorted(ours.keys() | theirs.keys())
        if not is_free(key) and value(ours, key) != value(theirs, key)
    ]


def to_plain(config):
    """The config as nested dictionaries for JSON, with tuples as lists.

    Unset parameters of the mix are left out: most mixes use only a few of them.
    """
    plain = _plain(config.to_dict())
    plain["mix"] = {key: value for key, value in plain["mix"].items() if value is not None}
    return plain


def from_plain(plain):
    """The inverse of `to_plain`, for the config in a checkpoint. Missing keys get their defaults.

    Raises:
        UserError: the config has keys that this version does not know.
    """
    config = base_config()
    values = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in flatten(plain).items()
    }
    unknown = values.keys() - SCHEMA.keys()
    if unknown:
        raise UserError(
            f"The config has the key {min(unknown)!r}, which this version does not know. Use the "
            "version that wrote it, or train again."
        )
    config.update_from_flattened_dict(values)
    return config


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def flatten(tree, prefix=""):
    """Flattens nested dictionaries; keys become 'augment.pad'."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
