"""Non-maximum suppression and ROIAlign, next to torchvision's compiled ones.

    python -m benchmarks.detection
    taskset -c 1 python -m benchmarks.detection --repeats 5   # on one core

The sizes are those of one image in Faster R-CNN's training: 12,000 boxes of which 2,000 are
proposed, and 128 regions of a map of stride 16. torchvision's maps have their channels first, which
is their layout there. The turns are interleaved in one process.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import mix, timing
from cutmix_jax.detection.boxes import swap_xy
from cutmix_jax.detection.nms import nms
from cutmix_jax.detection.roi_align import roi_align

CANDIDATES, PROPOSALS, THRESHOLD = 12_000, 2000, 0.7
STRIDE, MAP, REGIONS = 16, (38, 63, 1024), 128
CELLS, SAMPLING = (7, 7), 2
NMS = f"NMS {CANDIDATES} -> {PROPOSALS}"
FORWARD, GRADIENT = (
    f"ROIAlign of {REGIONS} regions{more}" for more in ("", ", forward and gradient")
)


def boxes_of(count, seed):
    """float32 `[count, 4]`, (top, left, bottom, right), of 30 to 500 pixels inside the image."""
    random = np.random.default_rng(seed)
    image = STRIDE * np.array(MAP[:2])
    centers = random.uniform(0, image, (count, 2))
    sides = np.exp(random.uniform(np.log(30), np.log(500), (count, 2)))
    corners = [np.clip(centers + sign * sides / 2, 0, image) for sign in (-1, 1)]
    return np.concatenate(corners, 1).astype(np.float32)


def inputs():
    """Boxes, their scores, a map, regions, and a gradient of their features."""
    random = np.random.default_rng(0)
    arrays = (
        boxes_of(CANDIDATES, 1),
        random.permutation(CANDIDATES) / CANDIDATES,
        random.normal(size=MAP),
        boxes_of(REGIONS, 2),
        random.normal(size=(REGIONS, *CELLS, MAP[-1])),
    )
    return [array.astype(np.float32) for array in arrays]


def ours(boxes, scores, features, regions, gradient):
    """``{name: call}`` of this project, with jitted functions."""
    select = jax.jit(functools.partial(nms, threshold=THRESHOLD, max_outputs=PROPOSALS))
    cut = jax.jit(
        functools.partial(roi_align, output_shape=CELLS, scale=1 / STRIDE, sampling=SAMPLING)
    )

    @jax.jit
    def both(features, regions, gradient):
        cells, transposed = jax.vjp(lambda features: cut(features, regions), features)
        return cells, *transposed(gradient)

    boxes, scores, features, regions, gradient = map(
        jnp.asarray, (boxes, scores, features, regions, gradient)
    )
    return {
        NMS: lambda: jax.block_until_ready(select(boxes, scores)),
        FORWARD: lambda: jax.block_until_ready(cut(features, regions)),
        GRADIENT: lambda: jax.block_until_ready(both(features, regions, gradient)),
    }


def torchvision(boxes, scores, features, regions, gradient):
    """``{name: call}`` of torchvision on as many threads."""
    import torch
    from torchvision import ops

    torch.set_num_threads(timing.cores())
    boxes, regions = (torch.tensor(np.asarray(swap_xy(x))) for x in (boxes, regions))
    scores = torch.tensor(scores)
    features = torch.tensor(features.transpose(2, 0, 1)[None].copy())
    gradient = torch.tensor(gradient.transpose(0, 3, 1, 2).copy())
    learned = features.clone().requires_grad_()

    def cut(features):
        return ops.roi_align(features, [regions], CELLS, 1 / STRIDE, SAMPLING, aligned=True)

    def both():
        cells = cut(learned)
        return (*torch.autograd.grad(cells, learned, gradient), cells)

    return {
        NMS: lambda: ops.nms(boxes, scores, THRESHOLD)[:PROPOSALS],
        FORWARD: lambda: cut(features),
        GRADIENT: both,
    }


def measure(options, peer=torchvision):
    """Yields the rows; without torchvision, those of this project alone."""
    given = inputs()
    mine = ours(*given)
    calls, note = {("ours", name): call for name, call in mine.items()}, ""
    try:
        calls |= {("torchvision", name): call for name, call in peer(*given).items()}
    except ImportError as error:
        note = mix.explain(error)
    for call in calls.values():
        call()
    seconds = timing.take_turns(calls, options.repeats, options.rounds)
    yield timing.compare(NMS, "ms", seconds["ours", NMS], scale=1e3, goal="<= 30")
    for name in mine:
        yield timing.compare(
            name,
            "ms",
            seconds["ours", name],
            "torchvision",
            seconds.get(("torchvision", name), ()),
            scale=1e3,
            goal="" if name == NMS else ">= 0.5",
            note=note,
        )


def main():
    parser = timing.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each per repeat")
    options = parser.parse_args()
    timing.run(measure(options), options, "detection")


if __name__ == "__main__":
    main()
