"""What can be configured: every key with its default, what is refused, what binds a workdir."""

import math

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
    "reader_processes",
    "mapping",
    "steps_per_call",
    "checkpoint_every",
    "checkpoint_epochs",
    "evals",
)

MIX_PARAMETERS = {
    "alpha": float,
    "prob": float,
    "box": str,
    "size": float,
    "min_ratio": float,
    "max_ratio": float,
    "placement": str,
    "sigma": float,
    "label": str,
    "correct_lam": bool,
    "scope": str,
    "partner": str,
    "across_devices": bool,
    "fill": float,
    "layers": tuple,
    "schedule": str,
    "until": float,
    "switch_prob": float,  # of 'FIRST_or_SECOND'
}
# Of combinations, where the parts differ: 'mixup_alpha', 'cutout_size'.
_CUTMIX = ("alpha", "prob", "size", "layers")
PARTS = {
    "cutmix": _CUTMIX,
    "center_gaussian_cutmix": _CUTMIX,
    "fixed_size_cutmix": _CUTMIX,
    "one_hot_cutmix": _CUTMIX,
    "scheduled_cutmix": _CUTMIX,
    "complete_label_cutmix": _CUTMIX,
    "feature_cutmix": _CUTMIX,
    "mixup": ("alpha", "prob"),
    "manifold_mixup": ("alpha", "prob", "layers"),
    "cutout": ("prob", "size"),
}
MIX_PARAMETERS |= {
    f"{name}_{key}": MIX_PARAMETERS[key] for name, keys in PARTS.items() for key in keys
}


def base_config():
    """All keys with the paper's defaults; files in `configs/` set what differs per data set."""
    config = config_dict.ConfigDict()
    config.seed = 0
    config.epochs = 300
    config.batch_size = 64  # over all devices

    config.model = "resnet20"
    config.zero_init = False  # last BatchNorm scale of each block starts at 0
    config.last_stride = 2  # of layer4; 1: maps of twice the side (14x14 at 224)
    config.dtype = "float32"  # of activations: float32 or bfloat16
    config.remat = False  # True: blocks are computed again for the gradient, not kept
    config.sync_batch_norm = False  # True: batch statistics over all devices
    config.norm = config_dict.ConfigDict(
        {
            "momentum": 0.9,  # of the running statistics: PyTorch's 0.1
            "epsilon": 1e-5,
            "groups": 1,  # more: batch statistics of so many parts of a device's batch, apart
        }
    )
    config.init_from = config_dict.placeholder(str)  # workdir whose weights are the start
    config.new_head = False  # True: the head starts anew, even where that of init_from fits

    # The parameters of `mix.create_mix`; None: the mix's own default.
    config.mix = config_dict.ConfigDict(
        {key: config_dict.placeholder(kind) for key, kind in MIX_PARAMETERS.items()}
    )
    config.mix.name = "none"
    config.label_smoothing = 0.0

    config.stochastic_depth = 0.0  # probability that the last block is dropped; linear before it
    config.shake_drop = 0.0  # the same of ShakeDrop; the paper's is 0.5
    config.drop_block = config_dict.ConfigDict(
        {
            "rate": 0.0,  # share of a map that is dropped: 1 - keep_prob
            "size": 7,  # side of a dropped square
            "stages": (3, 4),
            "schedule": "constant",  # or 'linear': the rate grows from 0 over the run
        }
    )

    config.dataset = "digits"  # 'digits', 'shapes', 'folder', or a name of TFDS
    config.data_dir = config_dict.placeholder(str)
    config.boxes_dir = config_dict.placeholder(str)  # ILSVRC's XML files, for localization
    config.source = "auto"  # 'resident' (in device memory), 'streaming' (by threads), or 'auto'
    config.resident_limit_mib = 2048
    config.reader_processes = 0  # that decode images (streaming); 0: threads of this process
    config.image_size = config_dict.placeholder(int)  # None: as stored (resident)
    config.eval_resize = config_dict.placeholder(int)  # shorter side before the center crop
    config.square_resize = config_dict.placeholder(int)  # both sides before crops (streaming)
    config.train_examples = config_dict.placeholder(int)  # a fixed subset; None: all
    config.held_out = 0  # training examples kept back to choose the epoch on
    config.test_split = config_dict.placeholder(str)  # None: 'test', else 'validation'
    config.augment = config_dict.ConfigDict(
        {
            "pad": 0,  # pixels of padding before the random crop (resident)
            "pad_mode": "zero",  # or 'reflect'
            "flip": False,
            "min_area": config_dict.placeholder(float),  # least share of the image that the
            "max_area": 1.0,  # random-resized crop keeps (streaming), and the most; None: no such
            "color_jitter": 0.0,  # strength of brightness, contrast and saturation
            "lighting": 0.0,  # standard deviation of the PCA noise
        }
    )
    config.normalize = config_dict.ConfigDict({"mean": (0.5,), "std": (0.5,)})  # of [0, 1]

    config.learning_rate = 0.1
    config.head_lr_factor = 1.0  # learning rate of the head (fc) over that of the rest
    config.schedule = "step"  # 'step' or 'cosine'
    config.lr_drops = (0.5, 0.75)  # shares of the epochs at which the rate falls (step)
    config.lr_factor = 0.1  # by this factor
    config.warmup_epochs = 0.0
    config.momentum = 0.9
    config.nesterov = True
    config.weight_decay = 1e-4  # on all parameters
    config.accumulate = 1  # gradients of so many parts of a device's batch make one step
    config.ema = 0.0  # decay of the averaged weights that are evaluated; 0: none

    config.mapping = "pmap"  # or 'shard_map'
    config.steps_per_call = 0  # 0: 1 on CPU, many on GPU and TPU with resident data
    config.checkpoint_every = 0  # steps; 0: at the end of epochs only
    config.checkpoint_epochs = 1  # epochs; more: fewer checkpoints, where an epoch takes seconds
    config.evals = evals_config()
    return config


def evals_config():
    """Options of `--mode evaluate --evals NAME`.

    The defaults suit a few thousand images on a CPU; docs/evaluations.md gives those of the
    paper's protocols.
    """
    return config_dict.ConfigDict(
        {
            "split": "test",  # or 'held_out'
            "classification": {"bins": 15},  # of the calibration error
            "cam": {
                "images": 8,
                "of": "predicted",  # or 'true', or a class: whose maps are drawn
                "threshold": 0.15,  # share of the maximum, for the boxes
            },
            "localization": {
                "threshold": 0.15,  # share of the maximum
                "sweep_step": 0.05,  # between the thresholds of the curve
                "max_box_step": 0.01,  # between those of MaxBoxAcc
            },
            "fgsm": {
                "eps": (0.0, 1.0, 2.0, 4.0, 8.0, 12.0, 16.0),  # in 1/255, as the other sizes here
                "clip": True,  # to [0, 1]
                "pgd_eps": (8.0,),  # empty: no PGD
                "pgd_steps": 10,
                "pgd_step_size": 2.0,
                "pgd_random_start": True,
                "seed": 0,
            },
            "occlusion": {
                "steps": 8,  # from no side to the image's
                "step": config_dict.placeholder(int),  # pixels between sides, instead
                "fill": "mean",  # or 'black'
            },
            "between": {
                "pairs": config_dict.placeholder(int),  # None: as many as images
                "lam_steps": 10,  # from 0 to 1
                "steps": 8,  # from no side to the image's
                "step": config_dict.placeholder(int),  # pixels between sides, instead
                "seed": 0,
            },
            "ood": {
                # Or names of TFDS sets and 'folder:PATH', each with ':resize' or ':crop'.
                "sets": ("uniform", "gaussian", "digits"),
                # Images a set; None: as many as the split has, at most 10,000.
                "limit": config_dict.placeholder(int),
                "seed": 0,
            },
        }
    )


def parse_arg(arg, default_model, default_mix="cutmix"):
    """Splits a config's argument, 'MODEL,METHOD', either of which may be left out.

    Args:
      arg: what stands behind the colon of `--config FILE:ARG`, or None.
      default_model: the model where `arg` names none.
      default_mix: the mix where `arg` names none.

    Returns:
      ``(model, mix)``, where the mix 'baseline' is called 'none'.

    Raises:
      UserError: more than two parts.

    Example:
      >>> parse_arg('resnet56,baseline', 'resnet20')
      ('resnet56', 'none')
      >>> parse_arg(None, 'resnet20')
      ('resnet20', 'cutmix')
    """
    parts = [part.strip() for part in (arg or "").split(",")]
    if len(parts) > 2:
        raise UserError(
            f"The config argument {arg!r} has {len(parts)} parts, and MODEL,METHOD were expected: "
            "for instance resnet20,cutmix."
        )
    model, name = [*parts, ""][:2]
    name = name or default_mix
    return model or default_model, "none" if name == "baseline" else name


def check_config(config):
    """Refuses values that no run can use.

    Raises:
      UserError: names the key, its value and what was expected.
    """
    for key, (accepts, expected) in _RULES.items():
        value = config
        for part in key.split("."):
            value = value[part]
        try:
            accepted = value is None or accepts(value)
        except TypeError:  # a string among numbers
            accepted = False
        if not accepted:
            raise UserError(f"config.{key} is {value!r}, and {expected} was expected.")
    for key, path in given_paths(config):
        place(path, key)
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
    create_mix(config)


def given_paths(config):
    """The paths that a config names, as pairs of what names it and the path."""
    for key in ("data_dir", "boxes_dir", "init_from"):
        if config[key] is not None:
            yield f"config.{key}", config[key]
    for name in config.evals.ood.sets:
        kind, _, path = name.partition(":")
        if kind == "folder":
            yield "A folder of config.evals.ood.sets", path


def create_mix(config):
    """The mix that `config.mix` names, with its parameters."""
    from cutmix_jax import mix  # imports jax, which the flags are read without

    parameters = {key: value for key, value in config.mix.items() if value is not None}
    try:
        return mix.create_mix(parameters.pop("name"), **parameters)
    except (TypeError, ValueError) as error:
        raise UserError(f"config.mix: {error}") from error


def create_model(config, num_classes, norm_axis=None):
    """The network that `config` describes; `norm_axis` is what `sync_batch_norm` averages over."""
    from cutmix_jax import models, regularize  # import jax, which the flags are read without

    return models.create_model(
        config.model,
        num_classes,
        dtype=config.dtype,
        norm_axis=norm_axis if config.sync_batch_norm else None,
        **{f"norm_{key}": value for key, value in config.norm.items()},
        zero_init=config.zero_init,
        remat=config.remat,
        last_stride=config.last_stride,
        regularization=regularize.Regularization(
            stochastic_depth=config.stochastic_depth,
            shake_drop=config.shake_drop,
            drop_block=config.drop_block.rate,
            size=config.drop_block.size,
            stages=config.drop_block.stages,
            schedule=config.drop_block.schedule,
        ),
    )


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
    """The inverse of `to_plain`, for a config that a checkpoint carries."""
    config = base_config()
    values = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in flatten(plain).items()
    }
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


def _one_of(*names):
    return (lambda value: value in names), "one of " + ", ".join(map(repr, names))


def _between(low, high=math.inf, open_low=False):
    """Numbers in a closed range; NaN and infinity are in none."""
    words = f"a finite number {'above' if open_low else 'of at least'} {low}"
    if high < math.inf:
        words += f" and at most {high}"

    def accepts(value):
        above = value > low if open_low else value >= low
        return above and value <= high and math.isfinite(value)

    return accepts, words


_share_below_one = (lambda value: 0 <= value < 1, "a number of at least 0 and below 1")
_inner_share = (lambda value: 0 < value < 1, "a number between 0 and 1")
_seed = _between(0, 2**31 - 1)
_eps = (
    lambda values: all(0 <= value <= 255 for value in values),
    "sizes from 0 to 255 (in units of 1/255; the paper's is 8)",
)

_RULES = {
    "seed": _seed,
    "epochs": _between(1),
    "last_stride": _one_of(1, 2),
    "dtype": _one_of("float32", "bfloat16"),
    "norm.momentum": _between(0.0, 1.0),
    "norm.epsilon": _between(0.0, open_low=True),
    "norm.groups": _between(1),
    "stochastic_depth": _share_below_one,
    "shake_drop": _share_below_one,
    "drop_block.rate": _share_below_one,
    "drop_block.size": _between(1),
    "drop_block.stages": (
        lambda values: len(values) > 0 and all(value in (1, 2, 3, 4) for value in values),
        "some of the stages 1, 2, 3 and 4",
    ),
    "drop_block.schedule": _one_of("constant", "linear"),
    "label_smoothing": _between(0.0, 1.0),
    "normalize.std": (
        lambda values: all(value > 0 and math.isfinite(value) for value in values),
        "a finite number above 0 per channel",
    ),
    "normalize.mean": (
        lambda values: all(math.isfinite(value) for value in values),
        "a finite number per channel",
    ),
    "learning_rate": _between(0.0),
    "head_lr_factor": _between(0.0),
    "schedule": _one_of("step", "cosine"),
    "lr_drops": (
        lambda values: all(0 < value < 1 for value in values) and sorted(values) == list(values),
        "rising shares of the epochs between 0 and 1",
    ),
    "lr_factor": _between(0.0, 1.0, open_low=True),
    "warmup_epochs": _between(0.0),
    "momentum": _between(0.0, 1.0),
    "weight_decay": _between(0.0),
    "accumulate": _between(1),
    "ema": _share_below_one,
    "mapping": _one_of("pmap", "shard_map"),
    "steps_per_call": _between(0),
    "checkpoint_every": _between(0),
    "checkpoint_epochs": _between(1),
    "evals.classification.bins": _between(1),
    "evals.cam.images": _between(1),
    "evals.cam.threshold": _inner_share,
    "evals.localization.threshold": _inner_share,
    "evals.localization.sweep_step": _inner_share,
    "evals.localization.max_box_step": _inner_share,
    "evals.fgsm.eps": _eps,
    "evals.fgsm.pgd_eps": _eps,
    "evals.fgsm.pgd_steps": _between(1),
    "evals.fgsm.pgd_step_size": _between(0.0, open_low=True),
    "evals.fgsm.seed": _seed,
    "evals.occlusion.steps": _between(1),
    "evals.occlusion.step": _between(1),
    "evals.between.pairs": _between(1),
    "evals.between.lam_steps": _between(1),
    "evals.between.steps": _between(1),
    "evals.between.step": _between(1),
    "evals.between.seed": _seed,
    "evals.ood.sets": (
        lambda values: (
            all(isinstance(value, str) for value in values) and 0 < len(values) == len(set(values))
        ),
        "names of sets, none of them twice,",
    ),
    "evals.ood.limit": _between(1),
    "evals.ood.seed": _seed,
}
