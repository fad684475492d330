"""Class activation maps, and the figures of the paper that show them (Figures 1 and 4)."""

import jax
import numpy as np
from jax import numpy as jnp

from cutmix_jax import UserError
from cutmix_jax.data import records
from cutmix_jax.evals import figures
from cutmix_jax.evals.evaluation import Evaluation, Report
from cutmix_jax.evals.map_boxes import largest_box

HEAD = "fc"


def why_not(subject):
    """Maps need a linear head on the average of the last feature map."""
    name = subject.task.model.feature_names[-1]
    kernel = subject.weights["params"].get(HEAD, {}).get("kernel")
    images = jax.ShapeDtypeStruct((1, *subject.image_shape), jnp.float32)
    maps, _ = jax.eval_shape(subject.features, subject.weights, images)
    if kernel is None or kernel.ndim != 2 or maps.ndim != 4 or kernel.shape[0] != maps.shape[-1]:
        found = "no such layer" if kernel is None else f"one of {kernel.shape[0]} inputs"
        return (
            f"class activation maps need a linear head {HEAD!r} on the average of the map "
            f"{name!r} ({maps.shape[-1]} channels), and {subject.task.config.model} has {found}: "
            "evaluate a network with global average pooling, such as resnet50 or vgg16_gap."
        )
    return None


def activation_maps(features, kernel, classes, sides):
    r"""Class activation maps, upsampled to the image and scaled to [0, 1].

    .. math:: M_c(p) = \sum_k w_{k c} f_k(p), \qquad
        \hat M_c = (M_c - \min M_c) / (\max M_c - \min M_c)

    The upsampling is bicubic. Minimum and maximum are those of the upsampled map. A constant map
    becomes 0.

    Args:
        features: float32 ``[b, h, w, d]``, the feature map that is averaged for the head.
        kernel: float32 ``[d, K]`` of the head.
        classes: int32 ``[b]``.
        sides: (H, W) of the image.

    Returns:
        float32 ``[b, H, W]``.

    Example:
        >>> features = jnp.array([[0.0, 1.0], [2.0, 4.0]])[None, :, :, None]
        >>> activation_maps(features, jnp.ones((1, 3)), jnp.array([2]), (2, 2)).tolist()
        [[[0.0, 0.25], [0.5, 1.0]]]

    Reference:
        Zhou, Khosla, Lapedriza, Oliva, Torralba. Learning Deep Features for Discriminative
        Localization. CVPR 2016.
    """
    weights = jnp.take(kernel, classes, axis=1).T
    maps = jnp.einsum("bhwd,bd->bhw", features, weights)
    maps = jax.image.resize(maps, (len(maps), *sides), "bicubic")
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    # Upsampling a constant map leaves rounding errors, which must not be scaled up.
    relief = high - low > 1e-6 * jnp.maximum(jnp.abs(low), jnp.abs(high))
    return jnp.where(relief, (maps - low) / jnp.where(relief, high - low, 1), 0)


def class_maps(subject, weights, batch, of="label"):
    """Maps of the classes in ``batch[of]``, or of the 'predicted' ones, and the logits.

    To be compiled by `Subject.compile`.
    """
    features, logits = subject.features(weights, batch["image"])
    classes = logits.argmax(-1) if of == "predicted" else batch[of]
    kernel = weights["params"][HEAD]["kernel"]
    return activation_maps(features, kernel, classes, subject.image_shape[:2]), logits


def find_boxes(subject, options):
    """The true boxes of the split, or None if the dataset has none."""
    del options
    if subject.task.data.boxes is None:
        return (None,), ""
    boxes = subject.task.data.boxes(subject.split)
    return (boxes,), records.digest(np.asarray(some, np.float32).tobytes() for some in boxes)


def run(subject, options, boxes=None):
    """Two figures: maps of some images with their boxes, and maps of mixed images."""
    data, count = subject.task.data, min(options.images, subject.examples)
    of = class_of_maps(options.of, data.num_classes)
    order = np.round(np.linspace(0, subject.examples - 1, count)).astype(int)

    def look(weights, batch):
        if isinstance(of, int):
            batch = {**batch, "named": jnp.full_like(batch["label"], of)}
        key = {"true": "label", "predicted": "predicted"}.get(of, "named")
        maps, logits = class_maps(subject, weights, batch, key)
        return {
            "image": batch["image"],
            "label": batch["label"],
            "map": maps,
            "predicted": logits.argmax(-1),
        }

    found = subject.map_examples(look, order=order, words="cam")
    true = [np.zeros((0, 4))] * count if boxes is None else [boxes[i] for i in order]
    predicted = [largest_box(one, options.threshold) for one in found["map"]]
    rows = [
        {
            "index": int(order[i]),
            "label": int(found["label"][i]),
            "predicted": int(found["predicted"][i]),
            **dict(zip(("top", "left", "bottom", "right"), map(int, predicted[i]), strict=True)),
        }
        for i in range(count)
    ]
    values = {"images": count, "threshold": float(options.threshold)}
    pictures = {"cam.png": draw_boxes(found, true, predicted, data.class_names)}
    mixed = mix_two(subject)
    if mixed:
        pictures["cam_mixed.png"] = draw_mixed(mixed, data.class_names)
    return Report(values, rows, pictures)


def class_of_maps(of, num_classes):
    """'true', 'predicted', or the id of a class."""
    if of in ("true", "predicted"):
        return of
    if str(of).isdecimal() and int(of) < num_classes:
        return int(of)
    raise UserError(
        f"config.evals.cam.of is {of!r}, and 'true', 'predicted' or a class from 0 to "
        f"{num_classes - 1} was expected."
    )


def mix_two(subject):
    """Two confidently classified images of two classes, mixed in three ways, with their maps.

    Returns None if the split has only one class.
    """
    height, width, _ = subject.image_shape

    def confidence(weights, batch):
        probs = jax.nn.softmax(subject.logits(weights, batch["image"]))
        return probs[jnp.arange(len(probs)), batch["label"]], batch["label"]

    sure, labels = subject.map_examples(confidence, words="cam: choosing two images")
    first = int(sure.argmax())
    others = np.where(labels != labels[first], sure, -1)
    second = int(others.argmax())
    if others[second] < 0:
        return None
    pair = subject.images([first, second])
    a, b = pair["image"]
    mean = np.broadcast_to(np.float32(subject.task.config.normalize.mean), a.shape)
    # The lower right quarter: most of the first image stays visible.
    corner = np.zeros((height, width, 1), bool)
    corner[height // 2 :, width // 2 :] = True
    mixes = {
        "Cutout": np.where(corner, mean, a),
        "Mixup": (0.5 * a + 0.5 * b).astype(np.float32),
        "CutMix": np.where(corner, b, a),
    }
    images = np.stack(list(mixes.values()))
    call = subject.compile(
        lambda weights, batch, classes: class_maps(
            subject, weights, {**batch, "of": jnp.full_like(batch["label"], classes)}, "of"
        )[0],
        lambda arrays, xs: xs,
    )
    placed = subject.replicate([np.int32(label) for label in pair["label"]])
    maps = subject.collect(
        lambda xs: [call(xs, label) for label in placed],
        subject.foreign_batches(len(images), lambda index: images[index]),
        len(images),
    )
    return {"pair": pair, "names": list(mixes), "image": images, "maps": maps}


def draw_boxes(found, true, predicted, names):
    """Figure 4: images with true boxes in red and predicted ones in green, and the heat map."""
    count = len(found["image"])
    figure, axes = figures.new_figure(1.35 * count + 0.2, 3.1, 2, count, squeeze=False)
    for i in range(count):
        right = found["label"][i] == found["predicted"][i]
        words = names[found["label"][i]] if right else (
            f"{names[found['label'][i]]}\ntaken for {names[found['predicted'][i]]}"
        )  # fmt: skip
        figures.show(axes[0, i], found["image"][i], title=words)
        figures.show(axes[1, i], found["image"][i], found["map"][i])
        for row in range(2):
            for box in true[i]:
                figures.outline(axes[row, i], box, figures.TRUE)
            figures.outline(axes[row, i], predicted[i], figures.PREDICTED)
    words = "Predicted boxes in green" + (", true ones in red" if any(map(len, true)) else "")
    figure.suptitle(f"{words}; below, the class activation map", fontsize=9)
    return figure


def draw_mixed(mixed, names):
    """Figure 1: originals, mixed images, and the maps of both classes."""
    titles = [names[label] for label in mixed["pair"]["label"]]
    figure, axes = figures.new_figure(5.2, 6.4, 4, 3)
    for axis in axes.ravel():
        axis.set_axis_off()
    for column, name in enumerate(mixed["names"]):
        if column < 2:
            figures.show(axes[0, column], mixed["pair"]["image"][column], title=titles[column])
        figures.show(axes[1, column], mixed["image"][column], title=name)
        for row, title in enumerate(titles):
            heat = mixed["maps"][row][column]
            figures.show(axes[2 + row, column], mixed["image"][column], heat, f"map of {title}")
    figure.suptitle("Class activation maps of both classes on mixed images", fontsize=9)
    return figure


EVALUATION = Evaluation(run, why_not, find=find_boxes)
