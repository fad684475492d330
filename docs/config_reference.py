"""Writes the tables of docs/config.md: `python docs/config_reference.py`.

`rows` is the one place that knows where keys, defaults, rules and explanations are kept.
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cutmix_jax import config as config_lib  # noqa: E402
from cutmix_jax.data import settings  # noqa: E402

PAGE = ROOT / "docs/config.md"

EXPLANATIONS = {
    "Run": {
        "seed": "Seed of the weights, the order of examples, augmentation and mixing.",
        "epochs": "Number of epochs.",
        "batch_size": "Examples per step, over all devices together.",
        "accumulate": "Parts of a batch whose gradients make one step.",
        "checkpoint_every": "Steps between checkpoints; 0 saves at the end of epochs only.",
        "checkpoint_epochs": "Epochs between checkpoints. The best one is one of those saved.",
        "mapping": "How a step is mapped over devices.",
        "steps_per_call": "Steps per dispatch; 0 is 1 on CPU, many on GPU and TPU with resident "
        "data.",
    },
    "Network": {
        "model": "Name of the network: see [Networks](#networks).",
        "zero_init": "Start the last BatchNorm scale of each block at 0.",
        "last_stride": "Stride of `layer4`; 1 gives maps of twice the size (14x14 at 224 px).",
        "dtype": "Type of the activations. Parameters are always float32.",
        "remat": "Compute each block again for the gradient: less memory, more time.",
        "sync_batch_norm": "Average batch statistics over all devices.",
        "norm.momentum": "Share of the running statistics that a step keeps (PyTorch: 1 - this).",
        "norm.epsilon": "Added to the variance.",
        "norm.groups": "Parts of a device's batch that are normalized separately (ghost "
        "BatchNorm).",
        "init_from": "Workdir whose weights are the start.",
        "new_head": "Initialize the head again, even if the one of `init_from` fits.",
    },
    "Optimization": {
        "learning_rate": "Learning rate after the warm-up.",
        "schedule": "'step' multiplies the rate at milestones, 'cosine' lowers it to 0.",
        "lr_drops": "Milestones of 'step', as fractions of the epochs.",
        "lr_factor": "Factor at each milestone.",
        "warmup_epochs": "Epochs of linear warm-up.",
        "head_lr_factor": "Learning rate of the head over that of the rest.",
        "momentum": "Momentum of SGD.",
        "nesterov": "Use Nesterov momentum.",
        "weight_decay": "Weight decay, on all parameters, as in the authors' code.",
        "ema": "Decay of the EMA weights, which are then evaluated; 0 keeps none.",
    },
    "Regularization": {
        "label_smoothing": "Label smoothing; mixing never implies it.",
        "stochastic_depth": "Probability that the last block is dropped; linear over the blocks.",
        "shake_drop": "Probability that ShakeDrop disturbs the last block; linear over the blocks.",
        "drop_block.rate": "Fraction of a feature map that DropBlock drops.",
        "drop_block.size": "Side of the dropped squares, in pixels of the map.",
        "drop_block.stages": "Stages of the network in which DropBlock works.",
        "drop_block.schedule": "'linear' raises the rate from 0 over the run.",
    },
    "Mix": {
        "mix.name": "Name of the mix: see [Mixing](mix.md).",
        "mix.alpha": "Parameter of the Beta distribution.",
        "mix.prob": "Probability that a batch is mixed at all.",
        "mix.box": "'exact' rounds the box to whole pixels; 'paper' repeats the authors' code.",
        "mix.size": "Fixed side of the box: pixels, or a fraction of the image's side.",
        "mix.min_ratio": "Smallest side of the box over the image's side.",
        "mix.max_ratio": "Largest side of the box over the image's side.",
        "mix.placement": "Position of the box: 'uniform', 'gaussian' or 'inside'.",
        "mix.sigma": "Standard deviation of 'gaussian', over the image's side.",
        "mix.label": "Label weight: 'share' of the pixels, 'one_hot' or 'complete'.",
        "mix.correct_lam": "Weigh labels by the pixels pasted, not by the sampled value.",
        "mix.scope": "One box per 'batch', 'device', 'pair' or 'image'.",
        "mix.partner": "How partners are chosen: 'permutation', 'reverse' or 'rotate'.",
        "mix.across_devices": "Take partners from the batches of all devices.",
        "mix.fill": "Value that Cutout writes into the box.",
        "mix.layers": "Feature maps that are mixed, by name or number.",
        "mix.schedule": "'linear' raises `prob` from 0 over the run.",
        "mix.until": "Fraction of training after which nothing is mixed.",
        "mix.switch_prob": "Probability of the second mix in `A_or_B`.",
    },
    "Data": {
        "dataset": "'digits', 'shapes', 'folder', or the name of a TFDS dataset.",
        "data_dir": "Folder of the data.",
        "source": "'resident' keeps the dataset in device memory, 'streaming' decodes batch by "
        "batch.",
        "reader_processes": "Processes that decode streamed images; 0 is a thread per core of this "
        "process.",
        "resident_limit_mib": "Size up to which 'auto' keeps a dataset in device memory.",
        "image_size": "Height and width of the images.",
        "eval_resize": "Shorter side before the center crop of evaluation.",
        "square_resize": "Height and width before a random crop (streaming).",
        "boxes_dir": "Folder of ILSVRC's XML files, for localization.",
        "train_examples": "Number of training examples: a fixed subset, the same for every seed.",
        "held_out": "Training examples held out to choose the epoch on.",
        "test_split": "Split to evaluate on: 'test', else 'validation', if not set.",
        "normalize.mean": "Mean per channel, of images in [0, 1].",
        "normalize.std": "Standard deviation per channel.",
    },
    "Augmentation": {
        "augment.pad": "Pixels of padding before the random crop.",
        "augment.pad_mode": "What the padding holds: 'zero', or 'reflect' for the mirrored image.",
        "augment.flip": "Flip horizontally at random.",
        "augment.min_area": "Smallest area of the random-resized crop (streaming); None: no crop.",
        "augment.max_area": "Largest area of the random-resized crop.",
        "augment.color_jitter": "Strength of brightness, contrast and saturation jitter.",
        "augment.lighting": "Standard deviation of AlexNet's PCA noise.",
    },
    "Evaluation": {
        "evals.split": "Split to evaluate: 'test' or 'held_out'.",
        "evals.classification.bins": "Bins of the calibration error.",
        "evals.cam.images": "Number of images to show.",
        "evals.cam.of": "Class whose map is shown: 'predicted', 'true' or a number.",
        "evals.cam.threshold": "Threshold of the boxes, over the map's maximum.",
        "evals.localization.threshold": "Threshold of the boxes, over the map's maximum.",
        "evals.localization.sweep_step": "Step between the thresholds of the curve.",
        "evals.localization.max_box_step": "Step between the thresholds of MaxBoxAcc.",
        "evals.fgsm.eps": "Sizes of the FGSM perturbation, in 1/255.",
        "evals.fgsm.clip": "Clip perturbed images to [0, 1].",
        "evals.fgsm.pgd_eps": "Sizes of the PGD perturbation, in 1/255; empty: no PGD.",
        "evals.fgsm.pgd_steps": "Steps of PGD.",
        "evals.fgsm.pgd_step_size": "Step size of PGD, in 1/255.",
        "evals.fgsm.pgd_random_start": "Start PGD at a random point.",
        "evals.fgsm.seed": "Seed of the random start.",
        "evals.occlusion.steps": "Number of steps from no square to the whole image.",
        "evals.occlusion.step": "Pixels per step, instead of `steps`.",
        "evals.occlusion.fill": "'mean' color or 'black'.",
        "evals.between.pairs": "Number of image pairs; None: as many as images.",
        "evals.between.lam_steps": "Steps of lambda from 0 to 1.",
        "evals.between.steps": "Number of steps from no square to the whole image.",
        "evals.between.step": "Pixels per step, instead of `steps`.",
        "evals.between.seed": "Seed of the pairs.",
        "evals.ood.sets": "Out-of-distribution datasets: see [Evaluations](evaluations.md#ood).",
        "evals.ood.limit": "Images per dataset; None: as many as the split has, at most 10,000.",
        "evals.ood.seed": "Seed of subsets, crops and noise.",
    },
}


def rows():
    """Every key once, as `(section, key, type, default, rule, explanation)`."""
    config = config_lib.base_config()
    values = config_lib.flatten(config.to_dict())
    for section, explanations in EXPLANATIONS.items():
        for key, explanation in explanations.items():
            yield section, key, _type_of(config, key), values[key], _rule_of(key), explanation


def explained(key):
    """Whether a key has a row: all but those of one part of a combination (`mix.mixup_alpha`)."""
    return not any(key.startswith(f"mix.{part}_") for part in config_lib.PARTS)


def _type_of(config, key):
    *sections, name = key.split(".")
    for section in sections:
        config = config[section]
    return config.get_type(name).__name__


def _rule_of(key):
    """What values are accepted, in words; empty where any are."""
    if key in config_lib._RULES:
        words = config_lib._RULES[key][1].strip(",")
    else:
        lowest = settings.LOWEST.get(key.removeprefix("augment."))
        words = "" if lowest is None else f"a number of at least {lowest}"
    return words.replace("a finite number of ", "").replace("a number of ", "").replace(".0", "")


def table(section):
    """The Markdown table of one section."""
    lines = ["| key | type | default | explanation |", "|---|---|---|---|"]
    for name, key, kind, default, rule, explanation in rows():
        if name == section:
            accepted = f" *{rule}*" if rule else ""
            lines.append(f"| `{key}` | {kind} | `{default}` | {explanation}{accepted} |")
    return "\n".join(lines)


def fill(page):
    """The page with the tables between its markers written again."""
    for section in EXPLANATIONS:
        begin, end = f"<!-- table: {section} -->\n", "\n<!-- end -->"
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        page = f"{before}{begin}\n{table(section)}\n{end}{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
