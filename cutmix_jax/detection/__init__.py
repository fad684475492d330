"""Functions of object detection that work alone, under jit, grad and vmap.

- `boxes`: overlap, coding relative to priors, clipping, conversions.
- `priors`: SSD's priors and Faster R-CNN's anchors.
- `matching`: which prior or anchor learns which object.
- `ssd_loss`: SSD's loss, with the hardest negatives.
- `nms`: non-maximum suppression.
- `roi_align`: features of regions.
- `rcnn`: Faster R-CNN's proposals, losses and detections.
- `ssd`: SSD's network and what it finds.
- `faster_rcnn`: Faster R-CNN's network.
- `augment`: SSD's augmentation, and resizing for Faster R-CNN and for evaluation.
- `average_precision`: PASCAL VOC's measure, with NumPy on the host.

All boxes are float32 (top, left, bottom, right), half-open. Shapes are static: objects are padded
to a fixed number with label -1, and outputs come with a mask. Padding never gives NaN, neither in
values nor in gradients.
"""

from cutmix_jax.detection import (
    augment,
    average_precision,
    boxes,
    faster_rcnn,
    matching,
    nms,
    priors,
    rcnn,
    roi_align,
    ssd,
    ssd_loss,
)

__all__ = [
    "augment",
    "average_precision",
    "boxes",
    "faster_rcnn",
    "matching",
    "nms",
    "priors",
    "rcnn",
    "roi_align",
    "ssd",
    "ssd_loss",
]
