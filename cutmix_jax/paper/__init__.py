"""The paper's results as data, and the config that trains each row.

`tables.json` has every row of the paper's tables, of the authors' README and of public reruns.
Rows that can be trained here name their config. `networks.json` has the exact number of parameters
of their networks, and the floating-point operations of one image's forward pass, as XLA counts them
(a multiply-add is two). `transfer.json` has the same of what starts from a ResNet-50: detectors of
20 classes, Faster R-CNN with 256 regions; and NIC, for captions of 20 words from 10,000. That
number is an assumption, since the paper does not print the size of its vocabulary. The encoder of
NIC is frozen, and `frozen_flops` are its operations. Reading the files needs only Python.
"""

import json
import pathlib

from cutmix_jax.methods import read_method

FOLDER = pathlib.Path(__file__).resolve().parent

# By the config file of a row, and the data in its argument: the kind of its settings, classes,
# training examples, the chips it uses, and the assumed fraction of their peak.
# ImageNet: from the published 16,600 images/s of ResNet-50 on 8 A100.
# CIFAR: a guess. A batch of 64 fits on one chip, and most of the time goes into many small layers.
DATA_SETS = {
    "imagenet": ("imagenet", 1000, 1_281_167, "all chips", 0.16),
    "cifar": ("cifar", 100, 50_000, "one chip", 0.05),
    "cifar10": ("cifar", 10, 50_000, "one chip", 0.05),
    "wsol,cub": ("imagenet", 200, 5_994, "one chip", 0.16),
    "wsol,imagenet": ("imagenet", 1000, 1_281_167, "all chips", 0.16),
    "voc": ("imagenet", 20, 16_551, "one chip", 0.16),
    "captions": ("imagenet", 10_000, 414_113, "one chip", 0.16),  # words, and captions of train2014
}
EPOCHS = {"wsol,cub": 600, "wsol,imagenet": 20}  # if not 300
LOCALIZATION = {"cub_loc_acc": "CUB-200-2011", "imagenet_loc_acc": "ImageNet"}
# Chips, and the peak of each in bfloat16 operations per second, from the makers.
MACHINES = {"a100": (8, 312e12), "tpu_v4": (4, 275e12)}
BACKWARD = 3  # operations of a training step over those of the forward pass
# The scores of a captioner that the list shows for the rows of a table. `list_rows` has them all.
SCORES = {"10": {"bleu1": "BLEU-1", "bleu4": "BLEU-4"}, "A1": {"cider": "CIDEr"}}


def read_tables():
    """Returns all rows as dictionaries: `table`, `row`, `source`, and what each table prints.

    Example:
        >>> row = next(row for row in read_tables() if row['row'] == 'ResNet-50 + CutMix')
        >>> row['table'], row['top1_err'], row['config']
        ('3', 21.4, 'configs/imagenet.py:resnet50,cutmix')
    """
    return json.loads((FOLDER / "tables.json").read_text())["rows"]


def read_networks():
    """Returns `{(model, num_classes, last_stride): {'image_side', 'params', 'flops'}}`.

    Example:
        >>> read_networks()['resnet50', 1000, 2]['params']
        25557032
    """
    networks = json.loads((FOLDER / "networks.json").read_text())
    return {
        (network["model"], network["num_classes"], network.get("last_stride", 2)): network
        for network in networks
    }


def read_transfer_tasks():
    """Returns `{config.task: {...}}` of the detectors and the captioner of Table 10.

    Each has `name`, `dataset`, `config`, `epochs`, `image_shape`, `params` and `flops`. The
    captioner also has `vocabulary_size` and `frozen_flops`.

    Example:
        >>> tasks = read_transfer_tasks()
        >>> tasks['ssd']['params'], tasks['captioning']['params']
        (31662894, 28204232)
    """
    return json.loads((FOLDER / "transfer.json").read_text())


def list_rows():
    """Returns the rows that can be trained here, in the paper's order.

    Returns:
        Dictionaries with `table`, `row`, `config`, `task` (the `config.task`), `backbone` (the
        config of the classifier that a detector or captioner starts from, or None), `params`
        (exactly, of our network), `top1_error`, `top5_error`, `loc_acc`, `ssd_map` and
        `faster_rcnn_map` (the paper's, in percent, or None), `scores` (the paper's of a captioner,
        times 100, such as `{'bleu1': 61.4, 'bleu4': 22.9}`, or None), `from_original_paper`
        (whether the paper copied these), `epochs`, `flops` (forward, one example), and an estimate
        of the time for each machine in `MACHINES`, such as `a100_chips` and `a100_hours`.

    Example:
        >>> row = next(row for row in reversed(list_rows()) if row['table'] == '9')
        >>> row['table'], row['row'], row['config'].partition(':')[2]
        ('9', 'ResNet-50 + CutMix, ImageNet', 'resnet50,cutmix,imagenet')
    """
    networks, transfer = read_networks(), read_transfer_tasks()
    tasks = {found["config"]: task for task, found in transfer.items()}
    listed = []
    for row, numbers, config in _trainable():
        name = data_name(config)
        data_set = DATA_SETS[name]
        kind, num_classes, examples, _, _ = data_set
        key = next(iter(numbers), None)
        task = tasks.get(config, "classification")
        if task in transfer:
            network = transfer[task]
            epochs, apart = network["epochs"], network["name"]
        else:
            model, method, *_ = config.partition(":")[2].split(",")
            last_stride = 1 if key in LOCALIZATION and model == "resnet50" else 2
            network = networks[model, num_classes, last_stride]
            epochs = read_method(method, model, kind).get("epochs", EPOCHS.get(name, 300))
            apart = LOCALIZATION.get(key)
        scores = {key.removeprefix("nic_"): number for key, number in numbers.items()}
        step = BACKWARD * network["flops"] - (BACKWARD - 1) * network.get("frozen_flops", 0)
        listed.append(
            {
                "table": row["table"],
                "row": row["row"] + (f", {apart}" if apart else ""),
                "config": config,
                "task": task,
                "backbone": row.get("backbone"),
                "params": network["params"],
                "top1_error": row.get("top1_err"),
                "top5_error": row.get("top5_err"),
                "loc_acc": numbers[key] if key in LOCALIZATION else None,
                "ssd_map": numbers[key] if task == "ssd" else None,
                "faster_rcnn_map": numbers[key] if task == "faster_rcnn" else None,
                "scores": scores if task == "captioning" else None,
                "from_original_paper": row.get("from_original_paper", False),
                "epochs": epochs,
                "flops": network["flops"],
                **estimate(step * examples * epochs, data_set),
            }
        )
    return listed


def data_name(config):
    """The key of `DATA_SETS` for a row's config.

    Example:
        >>> data_name('configs/wsol.py:resnet50,cutmix,cub')
        'wsol,cub'
    """
    path, _, arg = config.partition(":")
    return ",".join([pathlib.Path(path).stem, *arg.split(",")[2:]])


def _trainable():
    """Yields (row, {key: number} of what a config trains, the config)."""
    for row in read_tables():
        numbers = {key: value for key, value in row.items() if isinstance(value, float)}
        configs = row.get("configs", dict.fromkeys(row, row.get("config")))
        for config in filter(None, dict.fromkeys(configs.values())):
            yield row, {k: n for k, n in numbers.items() if configs.get(k) == config}, config


def estimate(flops, data_set):
    """The chips and hours of a run, from the operations of all its training steps."""
    *_, layout, share = data_set
    result = {}
    for name, (chips, peak) in MACHINES.items():
        used = chips if layout == "all chips" else 1
        hours = flops / (used * peak * share) / 3600
        result |= {f"{name}_chips": used, f"{name}_hours": round(hours, 1)}
    return result


def _columns(row):
    """The heads of a row's columns, and the paper's numbers."""
    if row["scores"]:
        return {word: row["scores"][key] for key, word in SCORES[row["table"]].items()}
    if row["backbone"]:
        return {"mAP": row[f"{row['task']}_map"]}
    if row["loc_acc"]:
        return {"loc acc": row["loc_acc"]}
    return {"top-1": row["top1_error"], "top-5": row["top5_error"]}


def format_rows(listed):
    """Formats the rows of `list_rows` as text of at most 100 columns."""
    blocks = {}
    for row in listed:
        blocks.setdefault((row["table"], *_columns(row)), []).append(row)
    lines = []
    for (table, first, *second), rows in blocks.items():
        name = table.replace("-", " ").capitalize() if table[0] == "f" else f"Table {table}"
        second = "".join(second)
        lines += [
            "",
            f"{name:<48}{'params':>11}{first:>8}{second:>7}{'8 A100':>12}{'TPU v4-8':>12}",
        ]
        for row in rows:
            numbers = ["-" if n is None else f"{n:.2f}" for n in _columns(row).values()]
            one, two = (*numbers, "")[:2]
            times = (f"{row[f'{m}_chips']} x {row[f'{m}_hours']:.1f} h" for m in MACHINES)
            a100, tpu = (f"{time:>12}" for time in times)
            name = row["row"] + " *" * row["from_original_paper"]
            lines += [
                f"  {name:<46}{row['params']:>11,}{one:>8}{two:>7}{a100}{tpu}",
                f"      {row['config']}",
                *([f"      from {row['backbone']}"] if row["backbone"] else []),
            ]
    imagenet, cifar = (f"{DATA_SETS[name][-1]:.0%}" for name in ("imagenet", "cifar"))
    words = read_transfer_tasks()["captioning"]["vocabulary_size"]
    return "\n".join(
        [
            "Each row of the paper that can be trained here: python main.py --config CONFIG",
            "Errors in percent as the paper prints them (best epoch; CIFAR: mean of three runs).",
            "Table 9: localization accuracy in percent; give --config.init_from=WORKDIR.",
            "Tables 1, 10 and A1: mAP in percent of a detector, or scores times 100 of a",
            "captioner, that starts from a classifier. Train what the line 'from' names first, and",
            "give its folder by --config.init_from=WORKDIR.",
            *lines,
            "",
            "* The paper copies this number from the original paper, which trained differently.",
            "",
            "Chips x hours are an estimate, not a measurement: the operations of three forward",
            f"passes per training image. ImageNet: at {imagenet} of the bfloat16 peak of all chips",
            "(a v4-8 has 4), from published throughput of ResNet-50 with large batches. CIFAR: at",
            f"a guessed {cifar} of the peak of one chip, because layers and batches are small.",
            "Detectors and captioners: without their backbones, on one chip, at the fraction of",
            "ImageNet. Faster R-CNN: for images of 600x800. NIC: one pass of the frozen encoder",
            f"per caption, and three of the rest, with {words:,} words.",
            "Small networks and steps of few images wait for each layer and take longer.",
        ]
    )
