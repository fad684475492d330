"""Boxes: overlap, coding relative to priors, clipping, and conversions.

All boxes of this package are float32 (top, left, bottom, right) and half-open: a box is
`bottom - top` high, without "+1". The unit is pixels or fractions of the image, the same for all
arguments of a call. Other libraries have (left, top, right, bottom); `swap_xy` converts. Arguments
are converted to float32, so compute boxes in float32 before: bfloat16 rounds 513.4 to 512.
"""

import math

import jax.numpy as jnp

# Standard deviations of coded boxes (center y, center x, height, width).
VARIANCES = (0.1, 0.1, 0.2, 0.2)
# Largest logarithm of a decoded size relative to its prior; larger ones overflow after `exp`.
LARGEST_LOG = math.log(1000 / 16)


def as_boxes(name, boxes):
    """Boxes as float32 `[..., 4]`.

    Raises:
        ValueError: the last axis does not have 4 numbers; the message contains `name`.
    """
    boxes = jnp.asarray(boxes, jnp.float32)
    if boxes.ndim == 0 or boxes.shape[-1] != 4:
        raise ValueError(
            f"{name} has shape {boxes.shape}, but [..., 4] was expected. Give boxes as (top, left, "
            "bottom, right) on the last axis."
        )
    return boxes


def swap_xy(boxes):
    """Converts (left, top, right, bottom) to (top, left, bottom, right), or back.

    Args:
        boxes: float `[..., 4]`, in any unit.

    Returns:
        float32 `[..., 4]`.

    Raises:
        ValueError: the last axis does not have 4 numbers.

    Example:
        >>> swap_xy([1, 2, 3, 4]).tolist()
        [2.0, 1.0, 4.0, 3.0]
    """
    return as_boxes("boxes", boxes)[..., jnp.array([1, 0, 3, 2])]


def to_center_size(boxes):
    r"""Converts corners to (center y, center x, height, width).

    .. math:: (y, x, h, w) = ((t + b) / 2, (l + r) / 2, b - t, r - l)

    Args:
        boxes: float `[..., 4]`, (top, left, bottom, right), in any unit.

    Returns:
        float32 `[..., 4]` in the same unit.

    Raises:
        ValueError: the last axis does not have 4 numbers.

    Example:
        >>> to_center_size([0, 2, 4, 10]).tolist()
        [2.0, 6.0, 4.0, 8.0]
    """
    boxes = as_boxes("boxes", boxes)
    low, high = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([(low + high) / 2, high - low], -1)


def to_corners(boxes):
    """Converts (center y, center x, height, width) to corners, the inverse of `to_center_size`.

    Args:
        boxes: float `[..., 4]`, in any unit.

    Returns:
        float32 `[..., 4]`, (top, left, bottom, right) in the same unit.

    Raises:
        ValueError: the last axis does not have 4 numbers.

    Example:
        >>> to_corners([2, 6, 4, 8]).tolist()
        [0.0, 2.0, 4.0, 10.0]
    """
    boxes = as_boxes("boxes", boxes)
    center, size = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([center - size / 2, center + size / 2], -1)


def clip(boxes, shape):
    """Clips boxes to an image.

    A box outside the image becomes empty.

    Args:
        boxes: float `[..., 4]`, (top, left, bottom, right) in pixels.
        shape: (height, width) of the image in pixels; may be traced, float or int `[2]`. For
            fractions, (1, 1).

    Returns:
        float32 `[..., 4]`.

    Raises:
        ValueError: the last axis does not have 4 numbers.

    Example:
        >>> clip([[-5, 3, 20, 70]], (32, 64)).tolist()
        [[0.0, 3.0, 20.0, 64.0]]
    """
    height, width = shape
    limits = jnp.stack([jnp.asarray(side, jnp.float32) for side in (height, width, height, width)])
    return jnp.clip(as_boxes("boxes", boxes), 0, limits)


def iou(boxes, others):
    r"""Intersection over union of all pairs of boxes.

    .. math:: \mathrm{IoU}(a, b) = |a \cap b| / |a \cup b|

    Args:
        boxes: float `[..., n, 4]`, (top, left, bottom, right).
        others: float `[..., m, 4]` in the same unit.

    Returns:
        float32 `[..., n, m]` in [0, 1]; 0 where either box is empty, as padding is.

    Raises:
        ValueError: the last axis of an argument does not have 4 numbers.

    Example:
        >>> iou([[0, 0, 2, 2]], [[0, 1, 2, 3], [0, 0, 2, 4], [0, 0, 0, 0]]).round(3).tolist()
        [[0.3330000042915344, 0.5, 0.0]]

    Reference:
        Everingham et al. The PASCAL Visual Object Classes (VOC) Challenge. IJCV 2010.
    """
    boxes, others = as_boxes("boxes", boxes), as_boxes("others", others)
    boxes, others = boxes[..., :, None, :], others[..., None, :, :]
    low = jnp.maximum(boxes[..., :2], others[..., :2])
    high = jnp.minimum(boxes[..., 2:], others[..., 2:])
    common = _area(low, high)
    union = _area(boxes[..., :2], boxes[..., 2:]) + _area(others[..., :2], others[..., 2:]) - common
    overlap = common > 0
    return jnp.where(overlap, common, 0) / jnp.where(overlap, union, 1)


def _area(low, high):
    size = jnp.maximum(high - low, 0)
    return size[..., 0] * size[..., 1]


def encode(boxes, priors, variances=VARIANCES):
    r"""Codes boxes relative to priors or anchors.

    With center (y, x) and size (h, w) of a box, those of its prior with index p, and variances v:

    .. math::

        t = \left(\frac{y - y_p}{h_p v_1}, \frac{x - x_p}{w_p v_2},
            \frac{\log(h / h_p)}{v_3}, \frac{\log(w / w_p)}{v_4}\right)

    Where a box or its prior is empty, as padding is, the four numbers and their gradients are 0.

    Args:
        boxes: float `[..., 4]`, (top, left, bottom, right).
        priors: float `[..., 4]` in the same unit; its shape broadcasts with that of `boxes`.
        variances: four numbers. The default is that of SSD, and of Faster R-CNN's second stage.
            Its first stage has (1, 1, 1, 1).

    Returns:
        float32 `[..., 4]`, (center y, center x, height, width), without unit.

    Raises:
        ValueError: the last axis of `boxes` or `priors` does not have 4 numbers.

    Example:
        >>> encode([[1, 0, 5, 8]], [[0, 0, 4, 8]]).tolist()
        [[2.5, 0.0, 0.0, 0.0]]

    Reference:
        Girshick et al. Rich Feature Hierarchies for Accurate Object Detection and Semantic
        Segmentation. CVPR 2014, appendix C; Liu et al. SSD: Single Shot MultiBox Detector. ECCV
        2016, equation 2.
    """
    boxes = to_center_size(as_boxes("boxes", boxes))
    priors = to_center_size(as_boxes("priors", priors))
    some = jnp.minimum(boxes[..., 2:], priors[..., 2:]).min(-1, keepdims=True) > 0
    # A neutral argument before the logarithm: its gradient at 0 would be NaN, also behind `where`.
    size = jnp.where(some, boxes[..., 2:], 1)
    base = jnp.where(some, priors[..., 2:], 1)
    offset = jnp.where(some, boxes[..., :2] - priors[..., :2], 0)
    coded = jnp.concatenate([offset / base, jnp.log(size / base)], -1)
    return coded / jnp.asarray(variances, jnp.float32)


def decode(deltas, priors, variances=VARIANCES, largest_log=LARGEST_LOG):
    r"""Decodes boxes, the inverse of `encode`.

    With the numbers t of `encode`, variances v, and the center and size of the prior p:

    .. math::

        (y, x) &= (y_p + v_1 t_1 h_p,\; x_p + v_2 t_2 w_p) \\
        (h, w) &= (h_p \exp \min(v_3 t_3, m),\; w_p \exp \min(v_4 t_4, m))

    Args:
        deltas: float `[..., 4]`, (center y, center x, height, width), without unit.
        priors: float `[..., 4]`, (top, left, bottom, right); broadcasts with `deltas`.
        variances: four numbers, as for `encode`.
        largest_log: m; the default keeps untrained networks from overflow, as torchvision does.

    Returns:
        float32 `[..., 4]`, (top, left, bottom, right) in the unit of `priors`.

    Raises:
        ValueError: the last axis of `deltas` or `priors` does not have 4 numbers.

    Example:
        >>> decode([[2.5, 0, 0, 0]], [[0, 0, 4, 8]]).tolist()
        [[1.0, 0.0, 5.0, 8.0]]

    Reference:
        As for `encode`.
    """
    priors = to_center_size(as_boxes("priors", priors))
    deltas = as_boxes("deltas", deltas) * jnp.asarray(variances, jnp.float32)
    center = priors[..., :2] + deltas[..., :2] * priors[..., 2:]
    size = priors[..., 2:] * jnp.exp(jnp.minimum(deltas[..., 2:], largest_log))
    return to_corners(jnp.concatenate([center, size], -1))
