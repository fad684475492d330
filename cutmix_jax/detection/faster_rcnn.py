"""Faster R-CNN's network: a residual network whose last part looks at regions (C4)."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from cutmix_jax.detection.priors import rcnn_anchors
from cutmix_jax.detection.roi_align import roi_align
from cutmix_jax.detection.ssd import fits
from cutmix_jax.models.layers import mean_over_map

RATIOS = (0.5, 1, 2)  # height to width of the anchors
REGION_SHAPE = (7, 7)


class FasterRCNN(nn.Module):
    """Faster R-CNN on a residual network, which is cut in two.

    The stages up to `region_stage` see the image. The region proposal network (RPN) sees their map:
    a 3x3 convolution with ReLU, then 1x1 convolutions for scores and coded boxes of the anchors.
    The next stage sees 7x7 features of regions. Their mean goes to linear layers for the scores of
    the classes and a coded box per class. New weights are normal, with standard deviation 0.01, and
    0.001 for the boxes of regions. Biases are 0.

    With `region_stage=3` this is the network C4: stages up to `layer3`, of stride 16, and `layer4`
    for the regions. The parameters of the backbone have the names that they have in a classifier.
    Stages after the one that sees regions are not built.

    The parts are methods, because regions are chosen between them: `features`, `propose` and
    `classify`.

    Attributes:
        backbone: a `models.resnet.ResNet` with strides 8, 16 and 32, without a head. Its `width`
            scales the channels of the RPN, which are 512 for 64.
        num_classes: C, without the background.
        region_stage: number of the stage with the map of stride `2 ** (region_stage + 1)` from
            which regions are cut, 1 to 3.
        scales: sizes of the anchors, in strides.

    Call:
        `(images) -> (features, (logits, deltas), (region_logits, region_deltas))`, all parts in a
        row on one empty region per image, to make the variables.

    Raises:
        ValueError: the backbone does not fit, or `region_stage` is out of range.

    Example:
        >>> from cutmix_jax.models import create_model
        >>> model = FasterRCNN(create_model('resnet18x0.25', num_classes=None), num_classes=20)
        >>> images, regions = jnp.zeros([2, 128, 160, 3]), jnp.zeros([2, 50, 4])
        >>> variables = model.init(jax.random.key(0), images)
        >>> features = model.apply(variables, images, method='features')
        >>> features.shape, model.anchors(128, 160).shape
        ((2, 8, 10, 64), (720, 4))
        >>> [x.shape for x in model.apply(variables, features, method='propose')]
        [(2, 720, 2), (2, 720, 4)]
        >>> [x.shape for x in model.apply(variables, features, regions, method='classify')]
        [(2, 50, 21), (2, 50, 21, 4)]

    Reference:
        Ren et al. Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks.
        NIPS 2015. That the last stage sees the regions: He et al. Deep Residual Learning for Image
        Recognition. CVPR 2016, appendix A.
    """

    backbone: nn.Module
    num_classes: int
    region_stage: int = 3
    scales: tuple = (8, 16, 32)

    def setup(self):
        if not fits(self.backbone) or self.backbone.num_classes is not None:
            raise ValueError(
                "The backbone has to be a ResNet with strides 8, 16 and 32 and without a head, as "
                "from create_model('resnet50', num_classes=None)."
            )
        if self.region_stage not in (1, 2, 3):
            raise ValueError(
                f"region_stage is {self.region_stage}, but 1, 2 or 3 was expected: the stage after "
                "it sees the regions."
            )
        self.image_part = self.backbone.clone(last=self.region_stage)
        self.region_part = self.backbone.clone(
            first=self.region_stage + 1, last=self.region_stage + 1
        )
        nn.share_scope(self, self.image_part)
        nn.share_scope(self, self.region_part)
        self.rpn = _Proposer(
            self.backbone.conv_layer,
            8 * self.backbone.width,
            len(self.scales) * len(RATIOS),
            self.backbone.dtype,
        )
        self.heads = _Heads(self.num_classes)

    @property
    def stride(self):
        """Distance of neighboring cells of the map, in pixels."""
        return stride_of(self.region_stage)

    def anchors(self, height, width):
        """The anchors of an image size.

        Args:
            height: of the images in pixels.
            width: of the images in pixels.

        Returns:
            float32 `[A, 4]`, (top, left, bottom, right) in pixels, from `priors.rcnn_anchors`.
        """
        shape = tuple(-(-side // self.stride) for side in (height, width))
        return rcnn_anchors(shape, self.stride, self.scales, RATIOS)

    def __call__(self, images):
        features = self.features(images)
        regions = jnp.zeros((len(images), 1, 4))
        return features, self.propose(features), self.classify(features, regions)

    def features(self, images, train=False, progress=1.0):
        """The map that regions are cut from.

        Args:
            images: normalized float `[b, H, W, 3]`.
            train: whether BatchNorm uses the statistics of the batch, and blocks are dropped.
            progress: completed fraction of training, for the schedule of DropBlock.

        Returns:
            `[b, h, w, D]`; sides are divided by `stride` and rounded up.
        """
        return self.image_part(images, train, progress=progress)

    def propose(self, features):
        """What the RPN says of the anchors.

        Args:
            features: `[b, h, w, D]`, from `features`.

        Returns:
            `(logits, deltas)`: float32 `[b, A, 2]`, (background, object), and float32 `[b, A, 4]`,
            coded boxes with variances of 1.
        """
        return self.rpn(features)

    def classify(self, features, regions):
        """What is in regions, and where exactly.

        BatchNorm uses the running statistics, in training too: a batch of regions has many of the
        same image, and padding. Its parameters are learned.

        Args:
            features: `[b, h, w, D]`, from `features`.
            regions: float `[b, R, 4]`, (top, left, bottom, right) in pixels of the images. They
                have no gradient.

        Returns:
            `(logits, deltas)`: float32 `[b, R, C + 1]`, class 0 is the background, and float32
            `[b, R, C + 1, 4]`, coded boxes per class.
        """
        cut = functools.partial(roi_align, output_shape=REGION_SHAPE, scale=1 / self.stride)
        maps = jax.vmap(cut)(features, regions)
        found = self.heads(self.region_part(maps.reshape(-1, *maps.shape[2:])))
        return tuple(x.reshape(*regions.shape[:2], *x.shape[1:]) for x in found)


def stride_of(region_stage):
    """The stride of the map from which regions are cut.

    Args:
        region_stage: as of `FasterRCNN`, 1 to 3.

    Returns:
        int, in pixels of the image.

    Example:
        >>> stride_of(3)
        16
    """
    return 2 ** (region_stage + 1)


class _Proposer(nn.Module):
    """The region proposal network: two logits and a coded box per anchor, in float32."""

    conv_layer: functools.partial
    width: int
    anchors: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        conv = functools.partial(
            self.conv_layer, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype
        )
        x = nn.relu(conv(self.width, (3, 3), padding=((1, 1),) * 2, name="conv")(x))
        found = [
            conv(count * self.anchors, (1, 1), name=name)(x).astype(jnp.float32)
            for name, count in {"class": 2, "box": 4}.items()
        ]
        return tuple(y.reshape(len(y), -1, count) for y, count in zip(found, (2, 4), strict=True))


class _Heads(nn.Module):
    """Class logits and coded boxes of regions from their maps `[n, h, w, D]`, in float32."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        x, count = mean_over_map(x), self.num_classes + 1
        logits = nn.Dense(count, kernel_init=nn.initializers.normal(0.01), name="class")(x)
        deltas = nn.Dense(4 * count, kernel_init=nn.initializers.normal(0.001), name="box")(x)
        return logits, deltas.reshape(len(x), count, 4)
