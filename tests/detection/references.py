"""Results of torchvision, which continuous integration does not install.

    python -m tests.detection.references           computes them with torchvision, and compares
    python -m tests.detection.references --write   writes tests/detection/references.json again

The tests compare the package with the file. Boxes in the file are in torchvision's order.
"""

import json
import pathlib
import sys

import numpy as np

FILE = pathlib.Path(__file__).with_suffix(".json")


def read():
    """The stored inputs and results."""
    return json.loads(FILE.read_text())


def rounded(array, digits=3):
    return np.round(array, digits).astype(np.float32)


def random_boxes(random, count, side=100.0):
    """float32 `[count, 4]`, (left, top, right, bottom), of positive size."""
    low = random.uniform(0, 0.7 * side, (count, 2))
    return rounded(np.concatenate([low, low + random.uniform(3, 0.5 * side, (count, 2))], 1))


def boxes(torch, ops, random):
    from torchvision.models.detection._utils import BoxCoder

    first, second = random_boxes(random, 6), random_boxes(random, 6)
    second[0] = first[0] + np.float32([3, -2, 3, -2])
    deltas = rounded(random.normal(size=(6, 4)) * 2)
    deltas[0, 2:] = 30  # larger than the limit
    coder, a, b = BoxCoder((10.0, 10.0, 5.0, 5.0)), torch.tensor(first), torch.tensor(second)
    return {
        "inputs": {"boxes": first, "priors": second, "deltas": deltas},
        "iou": ops.box_iou(a, b),
        "encoded": coder.encode_single(a, b),
        "decoded": coder.decode_single(torch.tensor(deltas), b),
        "clipped": ops.clip_boxes_to_image(a, (40, 50)),
    }


def nms(torch, ops, random):
    centers = random_boxes(random, 8)[random.randint(0, 8, 80)]
    found = rounded(centers + random.normal(size=(80, 4)) * 3, 2)
    scores = rounded(random.permutation(80) / 80, 4)
    classes = random.randint(0, 3, 80)
    a, s = torch.tensor(found), torch.tensor(scores)
    return {
        "inputs": {"boxes": found, "scores": scores, "classes": classes},
        "kept": {str(t): ops.nms(a, s, t) for t in (0.3, 0.5, 0.7)},
        "per_class": ops.batched_nms(a, s, torch.tensor(classes), 0.45),
    }


def priors(torch, ops, random):
    """Of torchvision's own generator: (center x, center y, width, height)."""
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator

    scales = [size / 300 for size in (30, 60, 111, 162, 213, 264, 315)]
    generator = DefaultBoxGenerator(
        [[2], [2, 3], [2, 3], [2, 3], [2], [2]], scales=scales, steps=[8, 16, 32, 64, 100, 300]
    )
    maps = [[side, side] for side in (38, 19, 10, 5, 3, 1)]
    made = generator._grid_default_boxes(maps, [300, 300]).double()
    weights = torch.arange(len(made))[:, None] / len(made)
    return {
        "sums": {"plain": made.sum(0), "by_index": (made * weights.double()).sum(0)},
        "every_499th": made[::499].float(),
    }


def matching(torch, ops, random):
    from torchvision.models.detection._utils import Matcher, SSDMatcher

    truths = random_boxes(random, 5)
    near = np.concatenate([truths + rounded(random.normal(size=(5, 4)) * s) for s in (1, 3, 5, 9)])
    found = np.concatenate([rounded(near), random_boxes(random, 20)])
    overlaps = ops.box_iou(torch.tensor(truths), torch.tensor(found))
    return {
        "inputs": {"priors": found, "boxes": truths},
        "ssd": SSDMatcher(0.5)(overlaps).clamp(min=-1),
        "rpn": Matcher(0.7, 0.3, allow_low_quality_matches=True)(overlaps),
    }


def roi_align(torch, ops, random):
    features = rounded(random.normal(size=(7, 9, 2)), 2)
    found = random_boxes(random, 6, 70.0)
    found[1:5] = [[0, 0, 0, 0], [-90, -90, -70, -80], [-7, -5, 40, 90], [60, 50, 80, 63]]
    inputs = torch.tensor(features.transpose(2, 0, 1)[None]), [torch.tensor(found)]
    return {
        "inputs": {"features": features, "boxes": found},
        **{
            f"aligned={aligned},sampling={n}": ops.roi_align(
                *inputs, (2, 3), 1 / 8, n, aligned
            ).permute(0, 2, 3, 1)
            for aligned in (True, False)
            for n in (1, 2)
        },
    }


def ssd_loss(torch, ops, random):
    import types

    from torchvision.models.detection._utils import BoxCoder, SSDMatcher
    from torchvision.models.detection.ssd import SSD

    truths = np.stack([random_boxes(random, 2) for _ in range(2)])
    found = np.concatenate([truths.reshape(4, 4) + np.float32([1, -2, 3, 2]), truths[:, 0]])
    found = np.concatenate([found, random_boxes(random, 14)])
    labels = random.randint(1, 3, (2, 2))
    logits = torch.tensor(rounded(random.normal(size=(2, 20, 3))), requires_grad=True)
    deltas = torch.tensor(rounded(random.normal(size=(2, 20, 4))), requires_grad=True)
    match = SSDMatcher(0.5)
    settings = types.SimpleNamespace(
        box_coder=BoxCoder((10.0, 10.0, 5.0, 5.0)), neg_to_pos_ratio=3, iou_thresh=0.5
    )
    losses = SSD.compute_loss(
        settings,
        [
            {"boxes": torch.tensor(b), "labels": torch.tensor(k)}
            for b, k in zip(truths, labels, strict=True)
        ],
        {"bbox_regression": deltas, "cls_logits": logits},
        [torch.tensor(found)] * 2,
        [match(ops.box_iou(torch.tensor(b), torch.tensor(found))) for b in truths],
    )
    sum(losses.values()).backward()
    return {
        "inputs": {
            "priors": found,
            "boxes": truths,
            "labels": labels,
            "logits": logits,
            "deltas": deltas,
        },
        "localization": losses["bbox_regression"],
        "classification": losses["classification"],
        "gradient_of_logits": logits.grad,
        "gradient_of_deltas": deltas.grad,
    }


def rcnn(torch, ops, random):
    """Losses, proposals and detections. Class 0 is the background."""
    import types

    from torchvision.models.detection._utils import BoxCoder
    from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
    from torchvision.models.detection.rpn import RegionProposalNetwork

    kinds = random.randint(-1, 2, (2, 15))
    offsets, deltas = rounded(random.normal(size=(2, 2, 15, 4)))
    logits = torch.tensor(rounded(random.normal(size=(2, 15, 2))), requires_grad=True)
    deltas = torch.tensor(deltas, requires_grad=True)
    everything = types.SimpleNamespace(
        fg_bg_sampler=lambda labels: ([(x == k).to(torch.uint8) for x in labels] for k in (1, 0))
    )
    objectness = (logits[..., 1] - logits[..., 0]).reshape(-1, 1)
    rpn = RegionProposalNetwork.compute_loss(
        everything,
        objectness,
        deltas.reshape(-1, 4),
        list(torch.tensor(kinds, dtype=torch.float32)),
        list(torch.tensor(offsets)),
    )
    sum(rpn).backward()

    classes = random.randint(0, 3, (2, 15))
    head_logits = torch.tensor(rounded(random.normal(size=(2, 15, 3))))
    head_deltas = torch.tensor(rounded(random.normal(size=(2, 15, 3, 4))))
    head = fastrcnn_loss(
        head_logits.reshape(-1, 3),
        head_deltas.reshape(-1, 12),
        list(torch.tensor(classes)),
        list(torch.tensor(offsets)),
    )

    regions = random_boxes(random, 8)[random.randint(0, 8, 60)]
    regions = rounded(regions + random.normal(size=(60, 4)) * 2, 2)
    scores = rounded(random.permutation(60) / 60, 4)
    small = rounded(random.normal(size=(60, 4)) / 5)
    filters = types.SimpleNamespace(
        _get_top_n_idx=lambda *_: torch.tensor(np.argsort(-scores)[None, :50].copy()),
        min_size=1e-3,
        score_thresh=0.0,
        nms_thresh=0.7,
        post_nms_top_n=lambda: 20,
    )
    decoded = BoxCoder((1.0, 1.0, 1.0, 1.0)).decode_single(
        torch.tensor(small), torch.tensor(regions)
    )
    proposals, _ = RegionProposalNetwork.filter_proposals(
        filters, decoded[None], torch.tensor(scores)[None], [(70, 80)], [60]
    )
    found_logits = rounded(random.normal(size=(60, 3)) * 2)
    found_deltas = rounded(random.normal(size=(60, 3, 4)) / 2)
    heads = types.SimpleNamespace(
        box_coder=BoxCoder((10.0, 10.0, 5.0, 5.0)),
        score_thresh=0.05,
        nms_thresh=0.3,
        detections_per_img=15,
    )
    found = RoIHeads.postprocess_detections(
        heads,
        torch.tensor(found_logits),
        torch.tensor(found_deltas.reshape(60, 12)),
        [torch.tensor(regions)],
        [(70, 80)],
    )
    return {
        "losses": {
            "kinds": kinds,
            "offsets": offsets,
            "deltas": deltas,
            "logits": logits,
            "rpn": {"classification": rpn[0], "localization": rpn[1]},
            "gradients": {"logits": logits.grad, "deltas": deltas.grad},
            "classes": classes,
            "head_logits": head_logits,
            "head_deltas": head_deltas,
            "head": {"classification": head[0], "localization": head[1]},
        },
        "regions": regions,
        "proposals": {"scores": scores, "deltas": small, "boxes": proposals[0]},
        "detections": {
            "logits": found_logits,
            "deltas": found_deltas,
            "boxes": found[0][0],
            "scores": found[1][0],
            "labels": found[2][0],
        },
    }


CASES = {case.__name__: case for case in (boxes, nms, priors, matching, roi_align, ssd_loss, rcnn)}


def plain(value):
    """Tensors and arrays as lists, with few digits."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if hasattr(value, "detach"):
        value = value.detach().numpy()
    value = np.asarray(value)
    if value.dtype == np.float32 or value.dtype == np.float64:
        return np.vectorize(lambda x: float(f"{x:.7g}"), otypes=[float])(value).tolist()
    return value.tolist()


def compare(name, stored, found):
    if isinstance(stored, dict):
        assert stored.keys() == found.keys(), name
        for key in stored:
            compare(f"{name}.{key}", stored[key], found[key])
    else:
        np.testing.assert_allclose(found, stored, rtol=1e-5, atol=1e-5, err_msg=name)


def main(arguments):
    import torch
    import torchvision

    found = {"from": f"torchvision {torchvision.__version__.partition('+')[0]}"}
    for name, case in CASES.items():
        found[name] = plain(case(torch, torchvision.ops, np.random.RandomState(0)))
    if "--write" in arguments:
        FILE.write_text(json.dumps(found) + "\n")
        return 0
    stored = read()
    for name in CASES:
        compare(name, stored[name], found[name])
        print(f"{name}: equal to {found['from']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
