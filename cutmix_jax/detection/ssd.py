"""SSD: a residual network that classifies and moves the priors of its feature maps."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cutmix_jax.detection.boxes import as_boxes, decode
from cutmix_jax.detection.nms import nms_per_class
from cutmix_jax.detection.priors import ssd_priors
from cutmix_jax.models.resnet import ResNet

STRIDES = (8, 16, 32)
STAGES = ("layer2", "layer3", "layer4")
SMALLEST, LOW, HIGH = 10, 20, 90  # sizes of priors, in percent of the image's side


class Layout(NamedTuple):
    """The feature maps of an image size, one entry per map.

    Args:
        map_shapes: (height, width).
        steps: distance of neighboring cells in pixels.
        sizes: s of `ssd_priors` in pixels, and one more.
        ratios: ratios of `ssd_priors`.
    """

    map_shapes: tuple
    steps: tuple
    sizes: tuple
    ratios: tuple


def ssd_layout(image_size):
    """The feature maps of SSD, from stride 8 to a single cell.

    Sides are divided by 2 and rounded up, except that 1 follows on 3. The size of the priors is
    10 % of the image for the first map. It grows from 20 % to 90 % over the others, in steps of
    whole percents. The first map and the last two have the ratio 2, the others 2 and 3.

    Args:
        image_size: side of the square image in pixels, at least 32.

    Returns:
        A `Layout`; its fields are arguments of `ssd_priors`. That of 300 pixels has the defaults of
        that function.

    Raises:
        ValueError: the image is too small.

    Example:
        >>> [height for height, _ in ssd_layout(128).map_shapes]
        [16, 8, 4, 2, 1]
        >>> ssd_priors(128, *ssd_layout(128)).shape
        (1524, 4)

    Reference:
        Liu et al. SSD: Single Shot MultiBox Detector. ECCV 2016, section 2.2 and equation 4; the
        whole percents are those of its code.
    """
    if image_size < STRIDES[-1]:
        raise ValueError(
            f"image_size is {image_size}, but at least {STRIDES[-1]} was expected: the side of the "
            "map of stride 32 is rounded up to a whole cell."
        )
    sides = [-(-image_size // stride) for stride in STRIDES]
    while sides[-1] > 1:
        sides.append(_next_side(sides[-1]))
    steps = [8 * 2**i if side > 3 else image_size / side for i, side in enumerate(sides)]
    grow = (HIGH - LOW) // (len(sides) - 2)
    percents = [SMALLEST, *(LOW + grow * i for i in range(len(sides)))]
    ratios = [(2,), *[(2, 3)] * (len(sides) - 3), (2,), (2,)]
    return Layout(
        tuple((side, side) for side in sides),
        tuple(steps),
        tuple(percent * image_size / 100 for percent in percents),
        tuple(ratios),
    )


def _next_side(side):
    return 1 if side == 3 else -(-side // 2)


def priors_of(image_size):
    """The priors of `SSD` for an image size, as fractions of the image.

    Args:
        image_size: side of the square image in pixels, at least 32.

    Returns:
        float32 `[P, 4]`, (top, left, bottom, right).

    Raises:
        ValueError: the image is too small.

    Example:
        >>> priors_of(300).shape, priors_of(128).shape
        ((8732, 4), (1524, 4))

    Reference:
        As for `ssd_layout`.
    """
    return ssd_priors(image_size, *ssd_layout(image_size))


def fits(backbone):
    """Whether a network has feature maps of strides 8, 16 and 32, for images of any size.

    Args:
        backbone: a Flax module.

    Returns:
        bool: whether it is a `models.resnet.ResNet` with four stages and the stem for large images.

    Example:
        >>> from cutmix_jax.models import create_model
        >>> fits(create_model('resnet50', None)), fits(create_model('resnet20', None))
        (True, False)
    """
    return (
        isinstance(backbone, ResNet)
        and (backbone.large_stem, backbone.strides, backbone.stages) == (True, (1, 2, 2, 2), 4)
        and backbone.image_side is None
    )


class SSD(nn.Module):
    """SSD on the feature maps `layer2`, `layer3` and `layer4` of a residual network.

    The first map is normalized per pixel (`L2Norm`). Smaller maps (`Extras`) follow on the last
    one. Each takes a 1x1 and a 3x3 convolution, with bias and ReLU and without BatchNorm. The
    latter has stride 2 and padding 1, or neither on a map of side 3. `Heads` are 3x3 convolutions
    on every map. Weights of extras and heads are Xavier uniform, and biases are 0.

    The parameters of the backbone have the names that they have in a classifier. ResNet-50 with 300
    pixels and 20 classes has 31,662,894 parameters. The code that the CutMix paper cites has
    31,990,958. It makes a fourth extra of 328,064 that no map of 300 pixels reaches.

    Attributes:
        backbone: a `models.resnet.ResNet` with strides 8, 16 and 32, without a head. Its `width`
            scales the channels of the extras, which are 256, 512, 128, 256, ... for 64.
        num_classes: C, without the background.

    Call:
        `(images, train=False, progress=1.0) -> (logits, offsets)` for normalized float images
        `[b, S, S, 3]`: float32 `[b, P, C + 1]`, class 0 is the background, and float32 `[b, P, 4]`,
        coded boxes. P is the number of priors, `priors_of(S)`, in their order.

    Raises:
        ValueError: the backbone does not fit, or the images are not squares of at least 32 pixels.

    Example:
        >>> from cutmix_jax.models import create_model
        >>> model = SSD(create_model('resnet18x0.25', num_classes=None), num_classes=20)
        >>> images = jnp.zeros([2, 128, 128, 3])
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
        >>> [x.shape for x in jax.eval_shape(model.apply, variables, images)]
        [(2, 1524, 21), (2, 1524, 4)]

    Reference:
        Liu et al. SSD: Single Shot MultiBox Detector. ECCV 2016, section 2. The L2 norm: Liu,
        Rabinovich, Berg. ParseNet: Looking Wider to See Better. 2015.
    """

    backbone: nn.Module
    num_classes: int

    def setup(self):
        if not fits(self.backbone) or self.backbone.num_classes is not None:
            raise ValueError(
                "The backbone has to be a ResNet with strides 8, 16 and 32 and without a head, as "
                "from create_model('resnet50', num_classes=None)."
            )
        nn.share_scope(self, self.backbone)

    @nn.compact
    def __call__(self, images, train=False, progress=1.0):
        if images.ndim != 4 or images.shape[1] != images.shape[2]:
            raise ValueError(f"images has shape {images.shape}, but [b, S, S, C] was expected.")
        layout = ssd_layout(images.shape[1])
        width, dtype, maps = self.backbone.width, self.backbone.dtype, {}
        conv = functools.partial(
            self.backbone.conv_layer,
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=dtype,
        )
        self.backbone(images, train, lambda name, x: maps.setdefault(name, x), progress)
        first, *others = (maps[name] for name in STAGES)
        features = [L2Norm(name="norm")(first).astype(dtype), *others]
        features += Extras(conv, width, name="extras")(others[-1])
        cells = [2 + 2 * len(ratios) for ratios in layout.ratios]
        return Heads(conv, cells, self.num_classes, name="heads")(features)


class L2Norm(nn.Module):
    """Divides each pixel by its norm over the channels, and scales each channel by a parameter.

    The parameter `scale` is float32 `[D]`, 20 at first.

    Call:
        `(x) -> y`: a float map `[b, h, w, D]`, and float32 of the same shape.

    Reference:
        Liu et al. ParseNet: Looking Wider to See Better. arXiv 2015.
    """

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.constant(20.0), x.shape[-1:])
        x = x.astype(jnp.float32)
        # Inside the root, because its gradient at 0 would be NaN.
        return x * jax.lax.rsqrt((x**2).sum(-1, keepdims=True) + 1e-10) * scale


class Extras(nn.Module):
    """The maps after that of stride 32, down to a single cell.

    Attributes:
        conv: the class of the convolutions, with their initializers and dtype.
        width: number that scales the channels, 64 in ResNet-50.

    Call:
        `(x) -> maps`: a float map `[b, h, h, D]`, and the list of smaller ones.
    """

    conv: functools.partial
    width: int

    @nn.compact
    def __call__(self, x):
        maps = []
        while x.shape[1] > 1:
            inner = (2 if maps else 4) * self.width
            stride, pad = (1, 0) if x.shape[1] == 3 else (2, 1)
            name = f"layer{len(maps) + 1}"
            x = nn.relu(self.conv(inner, (1, 1), name=f"{name}_conv1")(x))
            x = self.conv(
                2 * inner, (3, 3), (stride, stride), ((pad, pad),) * 2, name=f"{name}_conv2"
            )(x)
            x = nn.relu(x)
            maps.append(x)
        return maps


class Heads(nn.Module):
    """Class logits and coded boxes of the priors of every map, in float32.

    Attributes:
        conv: the class of the convolutions, with their initializers and dtype.
        cells: number of priors per cell of each map.
        num_classes: C, without the background.

    Call:
        `(features) -> (logits, offsets)`: a list of float maps `[b, h, w, D]`; float32
        `[b, P, C + 1]` and `[b, P, 4]`, map after map and row after row.
    """

    conv: functools.partial
    cells: list
    num_classes: int

    @nn.compact
    def __call__(self, features):
        found = []
        for name, count in {"class": self.num_classes + 1, "box": 4}.items():
            maps = [
                self.conv(cell * count, (3, 3), padding=((1, 1),) * 2, name=f"{name}{i}")(x)
                for i, (x, cell) in enumerate(zip(features, self.cells, strict=True), 1)
            ]
            flat = [x.astype(jnp.float32).reshape(len(x), -1, count) for x in maps]
            found.append(jnp.concatenate(flat, 1))
        return tuple(found)


def detect(logits, offsets, priors, *, min_score=0.01, threshold=0.45, max_outputs=200):
    """The boxes that SSD finds: softmax, decoding, and non-maximum suppression per class.

    Args:
        logits: float `[b, P, C + 1]`, from `SSD`; class 0 is the background.
        offsets: float `[b, P, 4]`, from `SSD`.
        priors: float `[P, 4]`, (top, left, bottom, right), in any unit.
        min_score: scores have to be above it; may be traced.
        threshold: largest IoU of two boxes of a class; may be traced.
        max_outputs: K, number of boxes per class and image; static. As many of the best boxes per
            class are compared at all.

    Returns:
        `(boxes, scores, mask)`: float32 `[b, C, K, 4]` in the unit of `priors`, not clipped to the
        image; float32 `[b, C, K]`, best first; bool `[b, C, K]`, False where fewer were found.
        Scores are 0 there.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> priors = jnp.array([[0, 0, 4, 4], [0, 0, 4, 5], [5, 5, 9, 9]])
        >>> logits = jnp.array([[[0, 9], [0, 5], [9, 0]]])
        >>> boxes, scores, mask = detect(logits, jnp.zeros([1, 3, 4]), priors, max_outputs=2)
        >>> boxes[mask].tolist(), mask.tolist()
        ([[0.0, 0.0, 4.0, 4.0]], [[[True, False]]])

    Reference:
        Liu et al. SSD: Single Shot MultiBox Detector. ECCV 2016, section 3. That the number of
        boxes is per class, not per image, is as in the code that the CutMix paper cites.
    """
    logits = jnp.asarray(logits, jnp.float32)
    offsets, priors = as_boxes("offsets", offsets), as_boxes("priors", priors)
    if logits.ndim != 3 or not logits.shape[1] == offsets.shape[-2] == len(priors):
        raise ValueError(
            f"logits has shape {logits.shape}, offsets {offsets.shape} and priors {priors.shape}, "
            "but [b, P, C + 1], [b, P, 4] and [P, 4] were expected."
        )
    scores = nn.softmax(logits)[..., 1:]
    boxes = decode(offsets, priors)

    def select(boxes, scores):
        index, mask = nms_per_class(
            boxes, scores, threshold, max_outputs, candidates=max_outputs, min_score=min_score
        )
        own = jnp.take_along_axis(scores.T, index, axis=1)
        return boxes[index], jnp.where(mask, own, 0), mask

    return jax.vmap(select)(boxes, scores)
