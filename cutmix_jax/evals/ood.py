"""Out-of-distribution detection by the highest probability (Table 12)."""

import dataclasses
import itertools
from collections.abc import Callable

import jax
import numpy as np
from jax import numpy as jnp
from sklearn import metrics

from cutmix_jax import UserError
from cutmix_jax.data import find_set, image_files, records, resident
from cutmix_jax.data.batches import permutation, random_state
from cutmix_jax.evals import figures
from cutmix_jax.evals.evaluation import Evaluation, Report
from cutmix_jax.paths import local_path

NOISE = ("uniform", "gaussian")
VARIANTS = ("resize", "crop")
MEASURES = ("tnr_at_tpr95", "auroc", "aupr_in", "aupr_out", "detection_accuracy")


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A set of out-of-distribution images.

    Attributes:
        name: its name in the report.
        count: the number of images.
        record: ``(i) -> bytes``, an image as it is stored; None for noise.
        read: ``(i) -> uint8 [H, W, C]`` in the network's shape; None for noise.
    """

    name: str
    count: int
    record: Callable | None = None
    read: Callable | None = None


def find_sets(subject, options):
    """Opens the sets that the options name.

    Returns:
        ``((sets, left_out, again), digest)``. `left_out` has a sentence for each set that cannot be
        used. `again` is true if a set was missing.

    Raises:
        UserError: no set is left, or one is missing and `options.skip_missing` is not set.
    """
    limit = options.limit or min(10_000, subject.examples)
    sets, left_out, again = [], [], False
    for name in options.sets:
        if split_name(name)[0] == subject.task.config.dataset:
            left_out.append(f"{name}: the network was trained on it.")
            continue
        try:
            sets.append(open_foreign(name, subject, limit, options.seed))
        except UserError as error:
            if not options.skip_missing:
                raise
            left_out.append(f"{name}: {error}")
            again = True
    if not sets:
        raise UserError(
            f"None of the sets {', '.join(options.sets)} can be used ({' '.join(left_out)}): name "
            "others with config.evals.ood.sets."
        )

    names = (f"{foreign.name} {foreign.count}".encode() for foreign in sets)
    stored = (each.record(i) for each in sets if each.record for i in range(each.count))
    digest = records.digest(itertools.chain(names, stored))
    return (sets, left_out, again), digest


def run(subject, options, sets, left_out=(), again=False):
    """How well the highest probability separates each of the sets, and the mean over the sets."""

    def score(weights, batch):
        return jax.nn.softmax(subject.logits(weights, batch["image"])).max(-1)

    inside = subject.map_examples(score, words="ood")
    plain = subject.compile(score, lambda arrays, xs: xs)
    scores, rows = {}, []
    for foreign in sets:
        if foreign.read is None:
            call, load = subject.compile(score, noise_loader(subject, foreign, options.seed)), None
        else:
            call, load = plain, reader(foreign)
        batches = subject.foreign_batches(foreign.count, load)
        outside = subject.collect(call, batches, foreign.count, f"ood: {foreign.name}")
        scores[foreign.name] = outside
        rows.append({"set": foreign.name, "examples": foreign.count, **separation(inside, outside)})
    mean = {key: float(np.mean([row[key] for row in rows])) for key in MEASURES}
    rows.append({"set": "mean", "examples": sum(row["examples"] for row in rows), **mean})
    values = {f"{row['set']}_{key}": row[key] for row in rows for key in MEASURES}
    values["sets"] = str(tuple(scores))
    return Report(values, rows, {"ood.png": draw(inside, scores)}, {}, tuple(left_out), again)


def open_foreign(name, subject, limit, seed=0):
    """Opens the set that `name` describes, at most `limit` images of it.

    Args:
        name: 'uniform', 'gaussian', 'digits', the name of a TFDS dataset or 'folder:PATH'; then,
            after a colon, 'resize' (the default) or 'crop'.
        subject: its images have the shape to use.
        limit: the largest number of images. If there are more, `seed` chooses some.
        seed: of this choice and of random crops.

    Raises:
        UserError: the set does not exist.
    """
    if name in NOISE:
        return Foreign(name, limit)
    source, variant = split_name(name)
    shape = subject.image_shape
    count, record, read = open_images(source, subject)
    chosen = np.sort(permutation(seed, 0, count)[:limit])

    def fitted(i):
        return fit(read(chosen[i]), shape, variant, (seed, int(chosen[i])))

    return Foreign(name, len(chosen), lambda i: record(int(chosen[i])), fitted)


def open_images(source, subject):
    """``(count, record, read)``: the number of images, and each image as stored and as pixels."""
    config, channels = subject.task.config, subject.image_shape[-1]
    if source == "digits":
        arrays, _ = resident.digits()
        images = np.concatenate([arrays[split]["image"] for split in ("test", "train")])
        return len(images), lambda i: images[i].tobytes(), images.__getitem__
    if source.startswith("folder:"):
        split = open_files(source.removeprefix("folder:"))
    elif ":" in source:
        raise UserError(
            f"config.evals.ood.sets names {source!r}, and NAME, NAME:resize, NAME:crop or "
            "folder:PATH was expected."
        )
    else:
        # A folder holds one dataset. Prepared datasets are next to each other.
        root = None if config.dataset == "folder" else config.data_dir
        split = find_set(source, root, None).splits["test"]
    return split.count, split.read, lambda i: records.decode_record(split, i, channels)[0]


def split_name(name):
    """``(set, variant)`` of 'SET', 'SET:resize' or 'SET:crop'."""
    source, _, variant = name.rpartition(":")
    return (source, variant) if source and variant in VARIANTS else (name, "resize")


def open_files(path):
    """All image files below a folder, sorted by path."""
    folder = local_path(path, "A folder of config.evals.ood.sets")
    passed_over = {}
    files = image_files.find(folder, passed_over) if folder.is_dir() else []
    image_files.say_passed_over(folder, passed_over)
    if not files:
        raise UserError(
            f"config.evals.ood.sets names the folder {path!r}, "
            f"{'which contains no image' if folder.is_dir() else 'which does not exist'}: expected "
            f"files ending in {', '.join(image_files.SUFFIXES)}, at any depth."
        )
    return records.Split(
        count=len(files),
        read=lambda i: image_files.read(files[i]),
        labels=np.zeros(len(files), np.int32),  # they have no class here
        name=files.__getitem__,
    )


def fit(image, shape, variant, seed):
    """uint8 `shape` from an image of any size.

    'resize' ignores the aspect ratio, as the published sets do. 'crop' takes a random part, and
    enlarges images that are too small first. Gray images are repeated over the channels. Color
    images become gray if the network takes gray images.
    """
    from PIL import Image

    height, width, channels = shape
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture = picture.convert("RGB" if channels == 3 else "L")
    image = np.asarray(picture).reshape(*image.shape[:2], channels)
    if variant == "resize":
        return image_files.resize(image, (height, width))
    grow = max(1, height / picture.height, width / picture.width)
    resized = round(picture.height * grow), round(picture.width * grow)
    random = random_state(*seed)
    offset = random.randint(resized[0] - height + 1), random.randint(resized[1] - width + 1)
    return image_files.resize_and_crop(image, resized, offset, (height, width))


def reader(foreign):
    """``(index) -> uint8 [b, H, W, C]``."""
    return lambda index: np.stack([foreign.read(int(i)) for i in index])


def noise_loader(subject, foreign, seed):
    """Makes noise images on the device. Each is a function of its index.

    'uniform': every value is U[0, 1]; 'gaussian': N(0.5, 1), clipped to [0, 1].
    """

    def draw(index):
        key = jax.random.fold_in(jax.random.key(seed), index)
        if foreign.name == "uniform":
            return jax.random.uniform(key, subject.image_shape)
        return jnp.clip(0.5 + jax.random.normal(key, subject.image_shape), 0, 1)

    return lambda arrays, xs: {**xs, "image": jax.vmap(draw)(xs["index"])}


def separation(inside, outside):
    r"""How well a score separates images inside (positive, higher) and outside the distribution.

    .. math:: \text{TNR@TPR95} = P(s_{out} < t), \quad t = \max \{t : P(s_{in} \ge t) \ge 0.95\}
        \qquad \text{detection accuracy} = \max_t \tfrac12
        (P(s_{in} \ge t) + P(s_{out} < t))

    AUROC counts ties as one half. The two AUPR are average precisions, with the inside and with the
    outside as positives.

    Args:
        inside: float ``[n]``.
        outside: float ``[m]``.

    Returns:
        ``{'tnr_at_tpr95', 'auroc', 'aupr_in', 'aupr_out', 'detection_accuracy'}``.

    Raises:
        UserError: one of them is empty, or a score is not finite.

    Example:
        >>> found = separation(np.array([0.9, 0.8, 0.4]), np.array([0.1, 0.4]))
        >>> round(found['auroc'], 3), round(found['detection_accuracy'], 3)
        (0.917, 0.833)

    Reference:
        Hendrycks, Gimpel. A Baseline for Detecting Misclassified and Out-of-Distribution Examples
        in Neural Networks. ICLR 2017; Liang, Li, Srikant. ODIN. ICLR 2018.
    """
    inside, outside = np.asarray(inside, float), np.asarray(outside, float)
    for name, scores in (("inside", inside), ("outside", outside)):
        if not scores.size:
            raise UserError(
                f"There are no scores {name} the distribution: give at least one image of each "
                "kind."
            )
        if not np.isfinite(scores).all():
            raise UserError(
                f"A score {name} the distribution is not finite: the network's outputs overflow. "
                "Evaluate another checkpoint."
            )
    labels = np.concatenate([np.ones(len(inside)), np.zeros(len(outside))])
    scores = np.concatenate([inside, outside])
    bound = np.sort(inside)[int(np.floor(0.05 * len(inside) + 1e-9))]
    thresholds = np.unique(scores)
    tpr = 1 - np.searchsorted(np.sort(inside), thresholds) / len(inside)
    tnr = np.searchsorted(np.sort(outside), thresholds) / len(outside)
    return {
        "tnr_at_tpr95": float((outside < bound).mean()),
        "auroc": float(metrics.roc_auc_score(labels, scores)),
        "aupr_in": float(metrics.average_precision_score(labels, scores)),
        "aupr_out": float(metrics.average_precision_score(1 - labels, -scores)),
        "detection_accuracy": float(max(0.5, (tpr + tnr).max() / 2)),
    }


def draw(inside, scores):
    """Histograms of the scores, one panel per set."""
    columns = 2 if len(scores) == 4 else min(3, len(scores))
    lines = -(-len(scores) // columns)
    figure, axes = figures.new_figure(3.2 * columns, 2.5 * lines, lines, columns, squeeze=False)
    bins = np.linspace(0, 1, 31)
    for axis in axes.ravel()[len(scores) :]:
        axis.set_axis_off()
    for axis, (name, outside) in zip(axes.ravel(), scores.items(), strict=False):
        for label, part, color in (("in", inside, "C0"), ("out", outside, "C3")):
            weights = np.full(len(part), 100 / len(part))
            axis.hist(part, bins, weights=weights, color=color, alpha=0.55, label=label)
        axis.set_title(name if len(name) < 30 else "…" + name[-29:], fontsize=9, parse_math=False)
        axis.set_xlim(0, 1)
        figures.plain(axis)
    axes[0, 0].legend(frameon=False, fontsize=8)
    axes[0, 0].set_ylabel("images (%)")
    figure.supxlabel("highest probability", fontsize=9)
    return figure


EVALUATION = Evaluation(run, find=find_sets)
