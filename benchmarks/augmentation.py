"""Operations of TrivialAugment and RandAugment and random erasing, next to decoding a JPEG.

    python -m benchmarks.augmentation
    taskset -c 1 python -m benchmarks.augmentation --repeats 5   # on one core

A batch of photographs that come with scikit-learn, cropped to 224 px and changed on the device.
The reader decodes one of them, crops and resizes it. The turns are interleaved in one process.
"""

import functools
import io

import jax
import numpy as np
from PIL import Image

from benchmarks import timing
from cutmix_jax.data import augment, image_files, image_operations, policies

BATCH, SIDE, STORED = 32, 224, (357, 437)
POLICIES = {
    "trivial_augment, nearest": functools.partial(
        policies.trivial_augment, interpolation="nearest"
    ),
    "trivial_augment": policies.trivial_augment,
    "rand_augment": policies.rand_augment,
    "rand_augment_timm": policies.rand_augment_timm,
}
DECODE = f"decode {STORED[1]}x{STORED[0]}, resize to {SIDE} px"


def photographs():
    """uint8 `[BATCH, SIDE, SIDE, 3]` from both photographs, and the bytes of a JPEG file."""
    from sklearn.datasets import load_sample_images

    stored = [
        Image.fromarray(image).resize(STORED[::-1], Image.Resampling.BICUBIC)
        for image in load_sample_images().images
    ]
    file = io.BytesIO()
    stored[0].save(file, "jpeg", quality=90)
    images, random = [], np.random.default_rng(0)
    for i in range(BATCH):
        pixels = np.asarray(stored[i % 2])
        top, left = (random.integers(0, size - SIDE + 1) for size in STORED)
        images.append(pixels[top : top + SIDE, left : left + SIDE])
    return np.stack(images), file.getvalue()


def calls(single=True):
    """``{name: call}``, each for a batch; with `single`, also for each operation alone."""
    images, encoded = photographs()
    keys = jax.random.split(jax.random.key(0), BATCH)
    functions = {name: jax.jit(policy) for name, policy in POLICIES.items()}
    for fill in augment.ERASING_FILLS:
        erase = functools.partial(augment.random_erasing, probability=0.25, fill=fill)
        functions[f"random erasing, {fill}"] = jax.jit(
            lambda keys, images, erase=erase: erase(keys, images.astype(np.float32))
        )
    device_images = jax.numpy.asarray(images)
    found = {
        name: lambda call=call: jax.block_until_ready(call(keys, device_images))
        for name, call in functions.items()
    }
    apply = jax.jit(image_operations.apply_operations)
    magnitudes = dict.fromkeys(image_operations.OPERATIONS, 0.3) | {"rotate": 30.0}
    for name, magnitude in magnitudes.items() if single else ():
        operations = jax.device_put(
            image_operations.create_operations(
                np.full(BATCH, image_operations.INDEX[name]),
                np.full(BATCH, magnitude),
                (SIDE, SIDE),
            )
        )
        found[name] = lambda given=operations: jax.block_until_ready(apply(given, device_images))

    def decode():
        for _ in range(BATCH):
            pixels = image_files.decode(encoded, 3, "a photograph")
            image_files.resize(pixels, (SIDE, SIDE))

    return found | {DECODE: decode}


def measure(options):
    """Yields the rows, in milliseconds of all cores in use per image."""
    found = calls(options.single)
    for call in found.values():
        call()
    seconds = timing.take_turns(found, options.repeats, options.rounds)
    scale = 1e3 / BATCH
    yield timing.compare(DECODE, "ms per image", seconds[DECODE], scale=scale)
    for name in found:
        if name != DECODE:
            yield timing.compare(
                name,
                "ms per image",
                seconds[name],
                "decoding",
                seconds[DECODE],
                scale=scale,
                goal=">= 1" if name in POLICIES else "",
            )


def main():
    parser = timing.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each per repeat")
    parser.add_argument("--single", action="store_true", help="also each operation alone")
    options = parser.parse_args()
    timing.run(measure(options), options, "augmentation")


if __name__ == "__main__":
    main()
