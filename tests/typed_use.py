"""The mixing library as users call it. A type checker reads this file, and nothing runs it.

Each line with `type: ignore` is a mistake: if the checker accepts it, the comment is an error.
"""

from functools import partial
from typing import assert_type

import jax
import numpy as np

from cutmix_jax import mix


def one_call(key: jax.Array, images: jax.Array, labels: jax.Array) -> None:
    assert_type(
        mix.cutmix(key, images, labels, num_classes=10, scope="image", prob=labels[0]),
        tuple[jax.Array, jax.Array, mix.Plan],
    )
    assert_type(
        mix.mixup(key, np.zeros((2, 4, 4, 1)), [0, 1], num_classes=2, partner="reverse"),
        tuple[jax.Array, jax.Array, mix.Plan],
    )
    assert_type(
        mix.cutout(key, images, size=(8, 4), fill=[0.0, 0.5, 1.0], spatial_axes=(-2, -1)),
        tuple[jax.Array, mix.Plan],
    )
    mix.cutmix(key, images, labels, num_classes="10")  # type: ignore[arg-type]
    mix.cutmix(key, images, labels, scope="images")  # type: ignore[arg-type]
    mix.cutmix(key, images, labels, lenghts="beta")  # type: ignore[call-arg]
    mix.cutmix(key, images, labels, paste="copy")  # type: ignore[arg-type]
    mix.mixup(key, images, labels, size=16)  # type: ignore[call-arg]
    mix.cutout(key, images, scope="pair")  # type: ignore[arg-type]


def plans(key: jax.Array, images: jax.Array, labels: jax.Array) -> None:
    sides = images.shape[1:3]
    plan = mix.sample_cutmix(key, 64, sides, size=16, label="one_hot", axis_name="devices")
    assert_type(plan, mix.Plan)
    assert_type(plan.lam, jax.Array)
    assert_type(mix.kept_fraction(plan), jax.Array)
    for plan in (
        mix.sample_mixup(key, 64, sides, alpha=np.float32(0.2)),
        mix.sample_cutout(key, 64, [32, 32], fill=1),
        mix.sample_erasing(key, 64, sides, area=(0.02, 0.33), fill="noise"),
        mix.sample_hmix(key, 64, sides, box_fraction=0.5),
        mix.sample_gmix(key, 64, sides),
        mix.sample_gridmix(key, 64, sides, min_cells=2),
        mix.sample_fmix(key, 64, sides, resolution=16),
        mix.sample_cowmix(key, 64, sides, scope="image"),
        mix.sample_resizemix(key, 64, sides, max_ratio=0.5),
        mix.sample_saliencymix(key, 64, sides, images=images),
        mix.plan_from_mask(mix.saliency(images) > 0.5, "permutation", sides, key=key),
        mix.plan_from_mask(mix.classmix_mask(key, labels, 21, ignore=255), np.array([1, 0])),
    ):
        mixed: dict[str, jax.Array] = mix.apply(plan, {"image": images, "mask": labels})
        assert_type(mix.mix_labels(plan, labels, num_classes=10), jax.Array)
        images = mix.mix_values(plan, mixed["image"][:, 0, 0, 0])
        assert_type(mix.mix_losses(plan, lambda ids: 2.0 * ids, labels), jax.Array)
    objects = mix.mix_boxes(plan, [[[0.0, 0, 8, 8]]], [[True]], values={"class": labels})
    assert_type(objects, mix.MixedBoxes)
    assert_type(objects.visible, jax.Array)
    mix.sample_cutmix(64, key, sides)  # type: ignore[arg-type]
    mix.sample_cutmix(key, 64, 32)  # type: ignore[arg-type]
    mix.sample_cutmix(key, 64, sides, box="Paper")  # type: ignore[arg-type]
    mix.sample_cutmix(key, 64, sides, "image")  # type: ignore[arg-type, call-arg]
    mix.sample_mixup(key, 64, sides, partner="random")  # type: ignore[arg-type]
    mix.sample_saliencymix(key, 64, sides)  # type: ignore[call-arg]
    mix.sample_erasing(key, 64, sides, fill="random")  # type: ignore[arg-type]
    mix.plan_from_mask(labels, "matching")  # type: ignore[arg-type]
    mix.apply(images, plan)  # type: ignore[arg-type]
    mix.apply(plan, images, paste="windows")  # type: ignore[arg-type]
    plan.lam = plan.lam / 2  # type: ignore[misc]
    print(plan.lamda)  # type: ignore[attr-defined]


def by_name(key: jax.Array, images: jax.Array, name: str) -> None:
    both = mix.chain(mix.create_mix(name, alpha=0.2), mix.create_mix("cutout"))
    either = mix.random_choice(both, mix.create_mix("none"), weights=[1, 2.0], scope="batch")
    assert_type(either, mix.Mix)
    assert_type(either.layers, tuple[str, ...])
    assert_type(either.needs_images, bool)
    assert_type(either.describe(), str)
    plans = either.sample(key, 64, {"image": (32, 32), "layer1": (8, 8)}, progress=0.5)
    assert_type(plans, tuple[mix.Plan, ...])
    tap = partial(mix.apply_at, plans)
    images = tap(mix.LAYERS[0], images)
    images = mix.apply_at(plans, "layer1", images, spatial_axes=(2, 3))
    mix.create_mix(0.2)  # type: ignore[arg-type]
    mix.chain("cutmix", "mixup")  # type: ignore[arg-type]
    mix.random_choice(both, either, scope="pair")  # type: ignore[arg-type]
    mix.apply_at(plans, 1, images)  # type: ignore[arg-type]
    mix.apply_at(plans, "image", images, past="mask")  # type: ignore[call-arg]
