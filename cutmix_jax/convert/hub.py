"""What a folder for the Hugging Face Hub holds besides weights: timm's config and a model card."""

import math

import yaml

from cutmix_jax import config as config_lib
from cutmix_jax.data import cifar, resident, shapes, streaming, tiny_imagenet

# The networks that timm has, with the same names of weights, and what it calls them.
TIMM = {
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnet50": "resnet50",
    "resnet101": "resnet101",
    "resnet152": "resnet152",
    "resnext50_32x4d": "resnext50_32x4d",
    "resnext101_32x4d": "resnext101_32x4d",
    "se_resnet50": "seresnet50",
    "se_resnet101": "seresnet101",
}
TIMM_EPSILON = 1e-5  # of its BatchNorm
# The identifier of a dataset on the Hub, if it has one, its name in a sentence, and the height and
# width of its images without config.image_size, if all have the same.
DATASETS = {
    "imagenet2012": ("ILSVRC/imagenet-1k", "ImageNet", None),
    "cifar10": ("uoft-cs/cifar10", "CIFAR-10", cifar.SIDE),
    "cifar100": ("uoft-cs/cifar100", "CIFAR-100", cifar.SIDE),
    "tiny_imagenet": ("zh-plus/tiny-imagenet", "Tiny ImageNet", tiny_imagenet.SIDE),
    "digits": (None, "scikit-learn's handwritten digits", resident.DIGITS_SIZE),
    "shapes": (None, "rendered shapes", shapes.DEFAULT_SIZE),
    "folder": (None, "a folder of images", None),
}
# Keys that a model card has even at their defaults, and paths, which it never has.
RECIPE = ("mix.name", "optimizer", "learning_rate", "schedule", "weight_decay", "seed")
PATHS = ("boxes_dir", "init_from")


def why_not_timm(config):
    """Says why timm cannot load the network of a config, or returns None if it can."""
    if config.model not in TIMM:
        return f"timm has no {config.model}"
    if config.last_stride != 2:
        return f"timm has no {config.model} with config.last_stride={config.last_stride}"
    if config.norm.epsilon != TIMM_EPSILON:
        return (
            f"timm's BatchNorm has epsilon {TIMM_EPSILON:g}, and this network has "
            f"config.norm.epsilon={config.norm.epsilon:g}"
        )
    if eval_side(config) is None:
        return f"config.image_size is not set, and {config.dataset} has no known size"
    return None


def eval_side(config):
    """Height and width of the images in evaluation, or None if the config does not say."""
    if side := config.eval_size or config.image_size:
        return side
    if config_lib.crops_larger_images(config):
        return streaming.DEFAULT_SIZE
    return _dataset(config)[2]


def preprocessing(config, channels):
    """The preprocessing of evaluation, in timm's terms.

    Args:
        config: of the run; `eval_side` is known.
        channels: of the images.

    Returns:
        ``{'input_size': [C, H, W], 'interpolation', 'crop_pct', 'crop_mode', 'mean', 'std'}``. The
        image is resized to ``floor(H / crop_pct)`` (the shorter side, or both for 'squash') and
        cropped at its center. Means and deviations are those of pixels in [0, 1].

    Example:
        >>> config = config_lib.base_config()
        >>> config.image_size, config.augment.min_area = 224, 0.08
        >>> preprocessing(config, 3)['crop_pct']
        0.875
    """
    side, fraction = eval_side(config), 1.0
    if config_lib.crops_larger_images(config):
        resize = (
            config.square_resize or config.eval_resize or round(side * streaming.DEFAULT_RESIZE)
        )
        fraction = crop_fraction(side, resize)
    squashed = config.square_resize is not None or config.source == "resident"
    mean, std = (
        [*values] * (channels if len(values) == 1 else 1)
        for values in (config.normalize.mean, config.normalize.std)
    )
    return {
        "input_size": [channels, side, side],
        "interpolation": "bilinear",
        "crop_pct": fraction,
        "crop_mode": "squash" if squashed else "center",
        "mean": mean,
        "std": std,
    }


def crop_fraction(side, resize):
    """The number from which timm computes the size before the crop: floor(side / it) == resize.

    Example:
        >>> crop_fraction(224, 256)
        0.875
    """
    fraction = side / resize
    while math.floor(side / fraction) < resize:  # rounded up
        fraction = math.nextafter(fraction, 0)
    return fraction


def timm_config(config, arrays, class_names=None):
    """What timm reads from a folder or the Hub as `config.json`.

    Args:
        config: of the run; `why_not_timm` returns None for it.
        arrays: the network's `state_dict`, with PyTorch's names and shapes.
        class_names: one per class, or None if they are not known.

    Returns:
        A dictionary for JSON.
    """
    num_classes, features = arrays["fc.weight"].shape
    names = {"label_names": list(class_names)} if class_names else {}
    return {
        "architecture": TIMM[config.model],
        "num_classes": num_classes,
        "num_features": features,
        "global_pool": "avg",
        **names,
        "pretrained_cfg": {
            "custom_load": False,
            **preprocessing(config, arrays["conv1.weight"].shape[1]),
            "fixed_input_size": False,
            "num_classes": num_classes,
            "first_conv": "conv1",
            "classifier": "fc",
        },
    }


def model_card(config, arrays, meta, name, record=None, results=None, best=False):
    """The text of `README.md`, with the metadata of the Hub in front.

    Args:
        config: of the run.
        arrays: the network's `state_dict`.
        meta: the checkpoint's description.
        name: of the folder.
        record: measures of these weights, as in a run's history, or None.
        results: those of the finished run, for where and how long it ran, or None.
        best: whether these weights are of the best epoch.
    """
    trained = "weights" not in meta
    metadata = {
        "pipeline_tag": "image-classification",
        "tags": ["cutmix_jax", "image-classification"],
    }
    if why_not_timm(config) is None:
        metadata["library_name"] = "timm"
    if trained and config.mix.name != "none":
        metadata["tags"].append(config.mix.name)
    identifier = _dataset(config)[0]
    if trained and identifier:
        metadata["datasets"] = [identifier]
    if record:
        metadata["metrics"] = ["accuracy"]
        metadata["model-index"] = [_model_index(config, name, record)]
    front = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    sections = [
        f"---\n{front}---",
        f"# {name}",
        _describe_network(config, arrays, meta),
        *(["## Results", _describe_results(config, record, best)] if record else []),
        "## Use",
        _describe_use(config),
        *_describe_preprocessing(config, arrays),
        *(["## Training", _describe_training(config, meta, results)] if trained else []),
    ]
    return "\n\n".join(sections) + "\n"


def _model_index(config, name, record):
    """The results in the form of the Hub."""
    identifier, title, _ = _dataset(config)
    dataset = {"type": identifier or config.dataset, "name": title}
    if config.test_split:
        dataset["split"] = config.test_split
    accuracy = [
        {"type": "accuracy", "name": f"Top-{k} accuracy", "value": _accuracy(record, k)}
        for k in (1, 5)
    ]
    task = {"type": "image-classification", "name": "Image classification"}
    return {"name": name, "results": [{"task": task, "dataset": dataset, "metrics": accuracy}]}


def _accuracy(record, k):
    return round(1 - record[f"test_top{k}_error"], 6)


def _dataset(config):
    return DATASETS.get(config.dataset, (None, config.dataset, None))


def _describe_network(config, arrays, meta):
    head = next(arrays[key] for key in ("fc.weight", "linear.weight") if key in arrays)
    what = f"{config.model} with {head.shape[0]} classes"
    if "weights" in meta:
        return f"{what}, converted from {meta['weights']['file']} by cutmix_jax."
    mix = "without mixing" if config.mix.name == "none" else f"with {config.mix.name}"
    paper = " CutMix is described by [Yun et al. (2019)](https://arxiv.org/abs/1905.04899)." * (
        "cutmix" in config.mix.name
    )
    return f"{what}, trained on {_dataset(config)[1]} {mix} by cutmix_jax.{paper}"


def _describe_results(config, record, best):
    rows = {f"Top-{k} accuracy": f"{100 * _accuracy(record, k):.2f} %" for k in (1, 5)}
    rows["Loss"] = f"{record['test_loss']:.4f}"
    text = (
        f"After epoch {record['epoch']} of {config.epochs}, on the split "
        f"`{config.test_split or 'test'}` of {_dataset(config)[1]}."
    )
    if best and config.held_out:
        text += " The epoch was chosen on held-out images."
    elif best:
        text += " The epoch was chosen on this split, so its accuracy is optimistic."
    return f"{text}\n\n{_table(('measure', 'value'), rows.items())}"


def _describe_use(config):
    if why_not_timm(config) is None:
        return (
            "```py\nimport timm\n\n"
            'model = timm.create_model("local-dir:FOLDER", pretrained=True)  '
            '# or "hf-hub:USER/NAME"\n'
            "data = timm.data.resolve_model_data_config(model.eval())\n"
            "transform = timm.data.create_transform(**data, is_training=False)\n```"
        )
    return (
        f"{why_not_timm(config)}, so there is no `config.json`. cutmix_jax reads the weights:\n\n"
        f"```sh\npython -m cutmix_jax.convert model.safetensors --model {config.model} --output "
        "WORKDIR\npython main.py --workdir WORKDIR --mode evaluate\n```"
    )


def _describe_preprocessing(config, arrays):
    stem = next(arrays[key] for key in ("conv1.weight", "features.0.weight") if key in arrays)
    if eval_side(config) is None:
        return []
    data = preprocessing(config, stem.shape[1])
    channels, side, _ = data["input_size"]
    resize = math.floor(side / data["crop_pct"])
    how = "both sides" if data["crop_mode"] == "squash" else "the shorter side"
    crop = f", cropped to {side}x{side} at the center" * (resize > side)
    return [
        f"Images are {'RGB' if channels == 3 else f'of {channels} channels'}, {how} resized to "
        f"{resize} pixels (bilinear){crop}, scaled to [0, 1], minus the mean {data['mean']}, "
        f"divided by {data['std']}."
    ]


def _describe_training(config, meta, results):
    plain = config_lib.to_plain(config)
    changed = config_lib.differences(plain, config_lib.to_plain(config_lib.base_config()))
    values = {key: config_lib.flatten(plain)[key] for key in RECIPE}
    values |= {key: value for key, value, _ in changed if key not in PATHS}
    text = (
        f"{meta['data']['examples']['train']:,} images, {config.epochs} epochs, batches of "
        f"{config.batch_size}."
    )
    if config.init_from:
        text += " Training started from other weights."
    if results:
        text += (
            f" It took {results['seconds'] / 3600:.2g} hours on {results['devices']} x "
            f"{results['device_kind']}, with jax {results['versions']['jax']}."
        )
    text += " The config, whose other keys have their defaults:"
    return f"{text}\n\n{_table(('key', 'value'), values.items())}"


def _table(head, rows):
    return "\n".join(f"| {left} | {right} |" for left, right in [head, ("---", "---"), *rows])
