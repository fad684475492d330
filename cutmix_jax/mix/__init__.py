"""CutMix and its relatives, exact, under jit, on anything with a batch axis.

A `Plan` says what will be mixed; it is drawn from a key and a shape, without touching a pixel.
`apply` mixes images, masks and feature maps by it, `mix_labels` mixes their labels:

    plan = mix.sample_cutmix(key, batch_size=64, sides=(32, 32))
    images = mix.apply(plan, images)
    labels = mix.mix_labels(plan, labels, num_classes=10)

and `cutmix(key, images, labels, num_classes=10)` does all of it in one call.
"""

from cutmix_jax.mix.calls import cutmix
from cutmix_jax.mix.plan import Plan, apply, mix_labels, share
from cutmix_jax.mix.recipe import Mix, create_mix
from cutmix_jax.mix.sample import sample_cutmix

__all__ = [
    "Mix",
    "Plan",
    "apply",
    "create_mix",
    "cutmix",
    "mix_labels",
    "sample_cutmix",
    "share",
]
