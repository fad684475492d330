"""Boxes of mixed images, against the pixels that each object has and keeps."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutmix_jax import mix

SIDE, IMAGES, OBJECTS = 16, 1000, 3
RANDOM = np.random.default_rng(0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class FramedPlan(mix.Plan):
    frame: jax.Array  # as in plans of ResizeMix


def random_boxes(count, step=1):
    """int `[*count, 2, 2]`, half-open boxes on the grid; some are empty, some are the image."""
    edges = RANDOM.integers(0, SIDE // step + 1, (*count, 2, 2)) * step
    edges[RANDOM.random(count) < 0.05] = [[0, SIDE], [0, SIDE]]
    return np.swapaxes(np.sort(edges, -1), -1, -2)


def raster(boxes, low=0, high=SIDE):
    """bool `[..., side, side]`, the pixels of each box."""
    index = np.arange(low, high)
    edges = boxes[..., None]
    rows, columns = (
        (edges[..., 0, axis, :] <= index) & (index < edges[..., 1, axis, :]) for axis in (0, 1)
    )
    return rows[..., :, None] & columns[..., None, :]


def bounds(pixels):
    """The smallest box around pixels `[..., side, side]`; zeros around none."""
    ends = []
    for axis in (-1, -2):
        line = pixels.any(axis)
        some, last = line.any(-1), line.shape[-1]
        ends.append((line.argmax(-1), np.where(some, last - line[..., ::-1].argmax(-1), 0)))
    (top, bottom), (left, right) = ends
    return np.stack([np.stack([top, left], -1), np.stack([bottom, right], -1)], -2)


def expected(plan, boxes, valid):
    """The reference: every object as pixels, in NumPy."""
    partner, low, high = np.asarray(plan.partner), -SIDE, 3 * SIDE
    pasted = raster(np.asarray(plan.box), low, high)[:, None]
    ratio = np.ones(1) if plan.ratio is None else np.asarray(plan.ratio, float)
    own_part = np.where(pasted, 0, ratio[:, None, None, None])
    other_part = (plan.fill is None) * (1 - own_part)
    frame = getattr(plan, "frame", None)
    if plan.fill is None:
        itself = partner == np.arange(len(partner))
        if frame is not None:
            itself &= (np.asarray(frame) == [[0, 0], [SIDE, SIDE]]).all((1, 2))
        itself = itself[:, None, None, None]
        own_part, other_part = np.where(itself, 1, own_part), np.where(itself, 0, other_part)
    others = boxes[partner]
    if frame is not None:
        start, end = np.moveaxis(np.asarray(frame), 1, 0)[:, :, None, None]
        others = start + others * (end - start) // SIDE
    found = []
    for own, part in ((boxes, own_part), (others, other_part)):
        pixels = raster(own, low, high)
        area, part = pixels.sum((-1, -2)), np.where(pixels, part, 0)
        seen = part > 0
        count = seen.sum((-1, -2))
        box = bounds(seen) + low
        rectangle = np.prod(box[..., 1, :] - box[..., 0, :], -1) == count
        box = np.where(rectangle[..., None, None], box, own)
        some = count > 0
        found.append(
            (
                np.where(some[..., None, None], box, 0).reshape(*some.shape, 4),
                some,
                np.float32(count) / np.float32(np.maximum(area, 1)),
                part.sum((-1, -2)) / np.maximum(count, 1),
            )
        )
    box, some, share, weight = (np.concatenate(pair, 1) for pair in zip(*found, strict=True))
    kept = some & np.concatenate([valid, valid[partner]], 1)
    return box * kept[..., None], kept, share * kept, weight * kept


def random_plan(kind):
    partner = RANDOM.permutation(IMAGES)
    partner[::10] = np.arange(0, IMAGES, 10)  # more than one is its own
    box = random_boxes((1 if kind == "one box" else IMAGES,))
    fields = {
        "partner": jnp.asarray(partner, jnp.int32),
        "box": jnp.asarray(box, jnp.int32),
        "lam": jnp.ones(1),
        "sides": (SIDE, SIDE),
    }
    if kind == "resized":
        start = RANDOM.integers(-8, SIDE, (IMAGES, 2))
        length = RANDOM.choice([SIDE // 2, SIDE, 2 * SIDE], (IMAGES, 1))
        frame = np.stack([start, start + length], 1)
        frame[::5] = [[0, 0], [SIDE, SIDE]]
        box = np.clip(frame, 0, SIDE)
        return FramedPlan(**fields | {"box": jnp.asarray(box), "frame": jnp.asarray(frame)})
    plan = mix.Plan(**fields)
    ratio = jnp.asarray(RANDOM.choice([0, 0.25, 0.5, 1], IMAGES), jnp.float32)
    if kind == "filled":
        return replace(plan, fill=0.0)
    if kind == "blended":
        return replace(plan, box=jnp.zeros((1, 2, 2), jnp.int32), ratio=ratio)
    return replace(plan, ratio=ratio) if kind == "pasted and blended" else plan


@pytest.mark.parametrize(
    "kind", ["one box", "pasted", "filled", "blended", "pasted and blended", "resized"]
)
def test_objects_are_those_whose_pixels_are_left(kind):
    plan = random_plan(kind)
    boxes = random_boxes((IMAGES, OBJECTS), step=2 if kind == "resized" else 1)
    valid = RANDOM.random((IMAGES, OBJECTS)) < 0.8
    given = jnp.asarray(boxes.reshape(IMAGES, OBJECTS, 4), jnp.float32)
    classes = jnp.arange(IMAGES * OBJECTS, dtype=jnp.int16).reshape(IMAGES, OBJECTS)
    mixed = jax.jit(mix.mix_boxes)(plan, given, jnp.asarray(valid), {"class": classes})

    box, kept, visible, weight = expected(plan, boxes, valid)
    np.testing.assert_array_equal(mixed.valid, kept)
    np.testing.assert_array_equal(mixed.visible, visible)
    np.testing.assert_array_equal(mixed.boxes, box)
    np.testing.assert_allclose(mixed.weight, weight, atol=1e-6)
    partner = np.asarray(plan.partner)
    np.testing.assert_array_equal(mixed.values["class"][:, OBJECTS:], classes[partner])
    np.testing.assert_array_equal(mixed.values["class"][:, :OBJECTS], classes)
    assert mixed.values["class"].dtype == jnp.int16
    if kind == "pasted and blended":  # has every rule but two, and compiling takes seconds
        eager = mix.mix_boxes(plan, given, valid, {"class": classes})
        jax.tree.map(np.testing.assert_array_equal, eager, mixed)
    assert 0.02 < kept[:, :OBJECTS].mean() < 0.98


def test_without_mixing_objects_stay_as_they_are():
    boxes = jnp.asarray(random_boxes((4, OBJECTS)).reshape(4, OBJECTS, 4), jnp.bfloat16)
    valid = (boxes[..., 2:] > boxes[..., :2]).all(-1)
    for sampler in (mix.sample_cutmix, mix.sample_mixup, mix.sample_cutout):
        plan = sampler(jax.random.key(0), 4, (SIDE, SIDE), prob=0.0)
        mixed = mix.mix_boxes(plan, boxes, valid)
        own, others = mixed.valid[:, :OBJECTS], mixed.valid[:, OBJECTS:]
        np.testing.assert_array_equal(own, valid)
        assert not others.any()
        np.testing.assert_array_equal(mixed.boxes[:, :OBJECTS][valid], boxes[valid])
        assert mixed.boxes.dtype == jnp.bfloat16
        for share in (mixed.visible, mixed.weight):
            np.testing.assert_array_equal(share[:, :OBJECTS], valid)
            assert share.dtype == jnp.float32


def test_partners_of_other_devices_bring_their_objects():
    boxes = np.float32(random_boxes((6, OBJECTS)).reshape(6, OBJECTS, 4))
    valid = np.ones((6, OBJECTS), bool)

    def step(boxes, valid):
        options = {"axis_name": "batch", "across_devices": True, "scope": "pair"}
        plan = mix.sample_cutmix(jax.random.key(5), 3, (SIDE, SIDE), **options)
        return plan, mix.mix_boxes(plan, boxes, valid)

    parts = (x.reshape(2, 3, *x.shape[1:]) for x in (boxes, valid))
    plan, mixed = jax.jit(jax.vmap(step, axis_name="batch"))(*parts)
    whole = mix.Plan(
        partner=plan.partner.reshape(6),
        box=plan.box.reshape(6, 2, 2),
        lam=plan.lam.reshape(6),
        sides=(SIDE, SIDE),
    )
    for found, wanted in zip(
        jax.tree.map(lambda x: x.reshape(6, *x.shape[2:]), mixed)[:4],
        mix.mix_boxes(whole, boxes, valid)[:4],
        strict=True,
    ):
        np.testing.assert_array_equal(found, wanted)


def test_intervals_of_series_and_boxes_of_volumes():
    plan = mix.Plan(
        partner=jnp.array([1, 0]), box=jnp.array([[[2], [6]]]), lam=jnp.ones(1), sides=(8,)
    )
    mixed = mix.mix_boxes(plan, jnp.array([[[0.0, 4.0]], [[1.0, 8.0]]]), jnp.ones((2, 1), bool))
    np.testing.assert_array_equal(mixed.boxes, [[[0, 2], [2, 6]], [[1, 8], [2, 4]]])
    np.testing.assert_array_equal(mixed.visible, np.float32([[1 / 2, 4 / 7], [3 / 7, 1 / 2]]))
    box = jnp.array([[[0, 0, 0], [2, 4, 4]]])
    plan = mix.Plan(partner=jnp.array([1, 0]), box=box, lam=jnp.ones(1), sides=(4, 4, 4))
    mixed = mix.mix_boxes(plan, jnp.tile(jnp.array([1.0, 0, 0, 4, 3, 3]), (2, 1, 1)), [[1 > 0]] * 2)
    np.testing.assert_array_equal(mixed.boxes[0], [[2, 0, 0, 4, 3, 3], [1, 0, 0, 2, 3, 3]])


GOOD = np.tile(np.float32([0, 0, 4, 4]), (2, 3, 1))
VALID = np.ones((2, 3), bool)
WRONG = {
    "another shape": (GOOD[..., :3], VALID, r"float32\[2, 3, 3\], expected \[2, N, 4\]"),
    "another batch": (GOOD[:1], VALID[:1], r"float32\[1, 3, 4\], expected \[2, N, 4\]"),
    "integers": (GOOD.astype(int), VALID, "int64.*expected floats: .* fractions of pixels"),
    "valid of integers": (GOOD, VALID.astype(int), r"valid is int64\[2, 3\], expected bool"),
    "valid of others": (GOOD, VALID[:, :2], r"bool\[2, 2\], expected bool\[2, 3\]"),
    "NaN": (np.where(GOOD == 4, np.nan, GOOD), VALID, r"hold \[0.0, 0.0, nan, nan\], expected"),
    "corners swapped": (GOOD[..., ::-1], VALID, r"hold \[4.0, 4.0, 0.0, 0.0\].*\(top, left"),
}


@pytest.mark.parametrize(("boxes", "valid", "message"), WRONG.values(), ids=WRONG)
def test_wrong_boxes_raise(boxes, valid, message):
    plan = mix.sample_cutmix(jax.random.key(0), 2, (8, 8))
    with pytest.raises(ValueError, match=message):
        mix.mix_boxes(plan, boxes, valid)
    if not {"NaN", "corners"} & set(message.split()):
        with pytest.raises(ValueError, match=r"expected"):
            jax.eval_shape(lambda: mix.mix_boxes(plan, boxes, valid))


def test_padding_may_hold_anything():
    plan = mix.sample_cutmix(jax.random.key(0), 2, (8, 8))
    mixed = mix.mix_boxes(plan, np.where(GOOD == 4, np.nan, GOOD), ~VALID)
    for x in (mixed.boxes, mixed.valid, mixed.visible, mixed.weight):
        assert (x == 0).all()


def test_values_of_other_objects_are_refused():
    plan = mix.sample_cutmix(jax.random.key(0), 2, (8, 8))
    with pytest.raises(ValueError, match=r"shape \(2,\), expected \[2, 3, ...\]"):
        mix.mix_boxes(plan, GOOD, VALID, {"class": np.arange(2)})
