"""CutMix and related mixes, inside jit, for anything with a batch axis.

A `Plan` says what will be mixed. It is sampled from a key and a shape, without touching a pixel.
(Only SaliencyMix looks at the images first.) ::

    plan = mix.sample_cutmix(key, batch_size=64, sides=(32, 32))
    images = mix.apply(plan, images)
    labels = mix.mix_labels(plan, labels, num_classes=10)

* `cutmix`, `mixup` and `cutout` do all of this in one call.
* `sample_cutmix`, `sample_mixup`, `sample_cutout`, `sample_erasing`, `sample_resizemix`,
  `sample_saliencymix`, `sample_hmix`, `sample_gmix`, `sample_gridmix`, `sample_fmix` and
  `sample_cowmix` sample a plan. `plan_from_mask` makes one from regions of any shape, such as
  those of `classmix_mask`.
* `apply` mixes images, masks and signals by the plan, and `apply_at` feature maps.
* `mix_labels`, `mix_values`, `mix_losses` and `mix_boxes` do what belongs to labels, other values,
  losses and the boxes of objects.
* `create_mix` makes any mix by its name. `chain` and `random_choice` combine mixes.
"""

from cutmix_jax.mix.boxes import MixedBoxes, mix_boxes
from cutmix_jax.mix.calls import cutmix, cutout, mixup
from cutmix_jax.mix.labels import mix_labels, mix_losses, mix_values
from cutmix_jax.mix.masks import classmix_mask, plan_from_mask
from cutmix_jax.mix.named import LAYERS, Mix, chain, create_mix, random_choice
from cutmix_jax.mix.pixels import apply, apply_at
from cutmix_jax.mix.plan import Plan, kept_fraction
from cutmix_jax.mix.saliency import saliency, sample_saliencymix
from cutmix_jax.mix.sample import (
    sample_cutmix,
    sample_cutout,
    sample_erasing,
    sample_hmix,
    sample_mixup,
    sample_resizemix,
)
from cutmix_jax.mix.sampled_masks import (
    sample_cowmix,
    sample_fmix,
    sample_gmix,
    sample_gridmix,
)

__all__ = [
    "LAYERS",
    "Mix",
    "MixedBoxes",
    "Plan",
    "apply",
    "apply_at",
    "chain",
    "classmix_mask",
    "create_mix",
    "cutmix",
    "cutout",
    "kept_fraction",
    "mix_boxes",
    "mix_labels",
    "mix_losses",
    "mix_values",
    "mixup",
    "plan_from_mask",
    "random_choice",
    "saliency",
    "sample_cowmix",
    "sample_cutmix",
    "sample_cutout",
    "sample_erasing",
    "sample_fmix",
    "sample_gmix",
    "sample_gridmix",
    "sample_hmix",
    "sample_mixup",
    "sample_resizemix",
    "sample_saliencymix",
]
