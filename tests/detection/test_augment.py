"""Augmentation against loops in NumPy, colorsys, JAX's resize, Pillow, and by counting."""

import colorsys
import functools

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from cutmix_jax.data.augment import example_keys
from cutmix_jax.detection import augment
from cutmix_jax.detection import boxes as boxes_module

FILL = (0.25, 0.5, 0.75)
MIRRORED = [0, 3, 2, 1]  # left and right change places
augment_ssd = jax.jit(augment.augment_ssd, static_argnums=2)
resample = jax.jit(augment.resample, static_argnums=2)
to_hsv, to_rgb = jax.jit(augment.rgb_to_hsv), jax.jit(augment.hsv_to_rgb)
distort = jax.jit(jax.vmap(augment.distort_colors, (0, None)))


def some_images(count=4, height=11, width=9, seed=0):
    random = np.random.RandomState(seed)
    return random.uniform(size=(count, height, width, 3)).astype(np.float32)


# Pixels.


def plain_resample(image, window, shape, fill, size, mirror):
    """Pixel by pixel: the window is cut out of an endless canvas, then interpolated."""
    top, left, bottom, right = window

    def pixel(y, x):
        inside = 0 <= y < size[0] and 0 <= x < size[1]
        return image[y, x] if inside else np.array(fill)

    def neighbors(i, low, high, count):
        at = min(max(low + (i + 0.5) * (high - low) / count - 0.5, low), high - 1)
        before = int(np.floor(at))
        return (before, 1 - (at - before)), (min(before + 1, high - 1), at - before)

    out = np.zeros((*shape, 3))
    for i in range(shape[0]):
        for j in range(shape[1]):
            for y, down in neighbors(i, top, bottom, shape[0]):
                for x, across in neighbors(j, left, right, shape[1]):
                    out[i, j] += down * across * pixel(y, x)
    return out[:, ::-1] if mirror else out


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(
    "window", [(0, 0, 11, 9), (2, 3, 9, 4), (-5, -3, 20, 9), (1, -20, 4, 30), (-9, -9, -2, -1)]
)
def test_resampling_equals_a_loop(window, mirror):
    image, size = some_images(1)[0], (10, 7)
    image[10:], image[:, 7:] = np.nan, np.nan  # beyond the real image
    got = resample(image, np.array(window), (6, 8), np.array(FILL), size=size, mirror=mirror)
    want = plain_resample(image, window, (6, 8), FILL, size, mirror)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_the_image_itself_is_returned_exactly():
    image = some_images(1)[0]
    window = np.array([0, 0, 11, 9])
    np.testing.assert_array_equal(resample(image, window, (11, 9), 9.0), image)
    np.testing.assert_array_equal(
        resample(image, window, (11, 9), 9.0, mirror=True), image[:, ::-1]
    )
    np.testing.assert_array_equal(
        resample(image, np.array([2, 1, 7, 5]), (5, 4), 9.0), image[2:7, 1:5]
    )


@pytest.mark.parametrize("shape", [(23, 17), (4, 5), (30, 3)])
def test_equal_to_bilinear_resize_of_others(shape):
    image = some_images(1)[0]
    got = resample(image, np.array([0, 0, 11, 9]), shape, 9.0)
    want = jax.image.resize(image, (*shape, 3), "linear", antialias=False)
    np.testing.assert_allclose(got, want, atol=1e-5)
    if shape[0] > 11 and shape[1] > 9:  # Pillow has antialiasing when it makes images smaller
        planes = [PIL.Image.fromarray(image[..., c]) for c in range(3)]
        want = [p.resize(shape[::-1], PIL.Image.Resampling.BILINEAR) for p in planes]
        np.testing.assert_allclose(got, np.stack(want, -1), atol=1e-5)


# Colors.


def test_hsv_equals_colorsys():
    colors = np.random.RandomState(0).uniform(size=(500, 3)).astype(np.float32)
    levels = np.stack(np.meshgrid(*[[0, 0.25, 1]] * 3), -1).reshape(-1, 3)  # grays and ties
    colors = np.concatenate([colors, levels.astype(np.float32)])
    got = np.asarray(to_hsv(colors))
    want = np.array([colorsys.rgb_to_hsv(*map(float, color)) for color in colors])
    turns = np.abs(got[:, 0] - want[:, 0])
    assert np.minimum(turns, 1 - turns).max() < 1e-6
    np.testing.assert_allclose(got[:, 1:], want[:, 1:], atol=1e-6)
    back = np.asarray(to_rgb(got + np.array([3, 0, 0])))
    np.testing.assert_allclose(back, colors, atol=5e-6)
    want = np.array([colorsys.hsv_to_rgb(*map(float, color)) for color in colors])
    np.testing.assert_allclose(to_rgb(colors), want, atol=2e-6)


def test_colors_outside_the_range_come_back():
    colors = np.random.RandomState(0).uniform(-1, 2, (500, 3)).astype(np.float32)
    colors[:3] = [[0, 0, 0], [-0.5, -0.5, -0.5], [-0.1, -0.2, -0.1]]
    found = to_hsv(colors)
    np.testing.assert_allclose(to_rgb(found), colors, atol=1e-5)
    # Contrast changes the value alone, so it may come before saturation and hue or after them.
    np.testing.assert_allclose(to_hsv(colors * 2), found * np.array([1, 1, 2]))
    assert np.isfinite(to_hsv(np.array([0, -0.1, -0.2]))).all()


def test_gray_shows_brightness_and_contrast():
    """Both change black and gray pixels linearly, whether before or after saturation and hue."""
    keys = jax.random.split(jax.random.key(0), 4000)
    found = np.asarray(distort(keys, np.array([0.0, 0.5])[None, :, None] * np.ones(3)))[:, 0, :, 0]
    contrast = (found[:, 1] - found[:, 0]) / 0.5
    brightness = found[:, 0] / contrast
    for values, low, high, none in ((contrast, 0.5, 1.5, 1), (brightness, -32 / 255, 32 / 255, 0)):
        changed = np.abs(values - none) > 1e-5
        assert abs(changed.mean() - 0.5) < 0.04  # five standard deviations
        assert low - 1e-5 < values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() < high + 1e-5
        assert abs(values[changed].mean() - none) < 0.05 * (high - low)
    assert abs(np.corrcoef(contrast, brightness)[0, 1]) < 0.08
    assert found.min() < -0.15  # not clipped


def test_colors_show_saturation_hue_and_order():
    color = np.array([0.6, 0.5, 0.3])  # red is highest: its hue of 40 degrees stays below 60
    keys = jax.random.split(jax.random.key(1), 4000)
    found = np.asarray(distort(keys, color[None, None].astype(np.float32)))[:, 0, 0]
    order = np.argsort(-found, axis=1)
    # Half of 4,000 in place, and half in one of 6 orders.
    counts = {
        tuple(o): n for o, n in zip(*np.unique(order, axis=0, return_counts=True), strict=True)
    }
    assert len(counts) == 6
    assert abs(counts.pop((0, 1, 2)) - 4000 * 7 / 12) < 5 * 31.2
    assert all(abs(n - 4000 / 12) < 5 * 17.5 for n in counts.values())
    high, middle, low = -np.sort(-found, axis=1).T
    hue = (middle - low) / (high - low) / 6 * 360
    turned = np.abs(hue - 40) > 1e-3
    assert abs(turned.mean() - 0.5) < 0.04
    assert 22 - 1e-3 < hue.min() < 22.5
    assert 57.5 < hue.max() < 58 + 1e-3
    # Contrast leaves the saturation of this color alone, where brightness did not change it.
    plain = np.asarray(distort(keys, np.zeros((1, 1, 3), np.float32)))[:, 0, 0, 0] == 0
    factor = ((high - low) / high / 0.5)[plain]
    assert abs((np.abs(factor - 1) > 1e-4).mean() - 0.5) < 0.06
    assert 0.499 < factor.min() < 0.52
    assert 1.48 < factor.max() < 1.501


# Windows.

WINDOWS = {
    check: jax.jit(
        jax.vmap(
            lambda key, boxes, labels, size, check=check: augment.sample_window(
                key, boxes, labels, size, check_overlap=check
            ),
            (0, None, None, None),
        )
    )
    for check in (True, False)
}
SIZE = (60, 80)
KEYS = jax.random.split(jax.random.key(5), 2500)


def windows(boxes, labels, check=True):
    found = WINDOWS[check](KEYS, np.float32(boxes), np.array(labels), np.array(SIZE))
    return np.asarray(found)


def canvases():
    """Without objects, no crop is valid."""
    return windows(np.zeros((2, 4)), [-1, -1])


def test_expansion():
    found = canvases()
    np.testing.assert_array_equal(found, np.round(found))
    expands = (found != [0, 0, *SIZE]).any(1)
    ratio = (found[:, 2:] - found[:, :2]) / SIZE
    assert abs(expands.mean() - 0.5) < 0.05  # five standard deviations
    assert np.abs(ratio[:, 0] - ratio[:, 1]).max() < 1.1 / 60
    own = ratio[expands].mean(1)
    np.testing.assert_allclose(np.quantile(own, [0, 0.25, 0.5, 0.75, 1]), [1, 1.75, 2.5, 3.25, 4],
                               atol=0.15)  # fmt: skip
    assert (found[:, :2] <= 0).all()
    assert (found[:, 2:] >= SIZE).all()
    position = -found[:, 0] / np.maximum(found[:, 2] - found[:, 0] - 60, 1)
    quantiles = np.quantile(position[ratio[:, 0] > 1.5], [0.05, 0.5, 0.95])
    np.testing.assert_allclose(quantiles, [0.05, 0.5, 0.95], atol=0.07)


def overlaps(found, boxes):
    return np.asarray(boxes_module.iou(found, np.float32(boxes)))


def contain(found, points):
    points = np.asarray(points)
    return ((points > found[:, None, :2]) & (points < found[:, None, 2:])).all(-1)


def test_crops_keep_a_center_and_their_ratio():
    boxes, labels = [[5, 5, 25, 15], [30, 40, 50, 75], [0, 0, 60, 80]], [3, 0, -1]
    found, canvas = windows(boxes, labels), canvases()
    whole = (found == canvas).all(1)
    crop, of = found[~whole], canvas[~whole]
    assert contain(crop, [[15, 10], [40, 57.5]]).any(1).all()
    np.testing.assert_array_equal(crop, np.round(crop))
    sides, most = crop[:, 2:] - crop[:, :2], of[:, 2:] - of[:, :2]
    assert (sides >= 0.3 * most - 1).all()
    assert (crop[:, :2] >= of[:, :2]).all()
    assert (crop[:, 2:] <= of[:, 2:]).all()
    assert ((sides[:, 0] + 1) / (sides[:, 1] - 1) >= 0.5).all()
    assert ((sides[:, 0] - 1) / (sides[:, 1] + 1) <= 2).all()


def plain_crop(random, canvas, boxes, minimums):
    """The rule of the original in a loop; at most 50 windows, then the whole canvas."""
    mode = random.choice([None, 0, *minimums])
    if mode is None:
        return canvas
    top, left = canvas[:2]
    height, width = canvas[2:] - canvas[:2]
    for _ in range(50):
        h, w = random.uniform(0.3 * height, height), random.uniform(0.3 * width, width)
        if not 0.5 <= h / w <= 2:
            continue
        y, x = top + random.uniform(0, height - h), left + random.uniform(0, width - w)
        window = np.floor([y, x, y + h, x + w])
        low, high = np.maximum(window[:2], boxes[:, :2]), np.minimum(window[2:], boxes[:, 2:])
        common = np.clip(high - low, 0, None).prod(1)
        union = np.prod(window[2:] - window[:2]) + (boxes[:, 2:] - boxes[:, :2]).prod(1) - common
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        inside = ((window[:2] < centers) & (centers < window[2:])).all(1)
        if (common / union).max() >= mode and inside.any():
            return window
    return canvas


@pytest.mark.parametrize("check", [True, False])
def test_crops_are_distributed_as_those_of_a_loop(check):
    boxes = np.array([[10.0, 10, 50, 70], [0, 0, 12, 10]])
    found, canvas = windows(boxes, [0, 1], check), canvases()
    random = np.random.RandomState(0)
    minimums = np.array([0.1, 0.3, 0.5, 0.7, 0.9]) * check
    want = np.array([plain_crop(random, c, boxes, minimums.tolist()) for c in canvas])
    for value in (
        lambda w: (w == canvas).all(1),
        lambda w: (w[:, 2] - w[:, 0]) / (canvas[:, 2] - canvas[:, 0]),
        lambda w: (w[:, 1] - canvas[:, 1]) / (canvas[:, 3] - canvas[:, 1]),
        lambda w: overlaps(w, boxes).max(1) >= 0.1,
        lambda w: overlaps(w, boxes).max(1) >= 0.5,
        lambda w: overlaps(w, boxes).max(1) >= 0.7,
        lambda w: contain(w, [[6, 5]]).all(1),
    ):
        a, b = value(found).astype(float), value(want).astype(float)
        error = np.sqrt((a.var() + b.var()) / len(a))
        assert abs(a.mean() - b.mean()) < 4.5 * error + 1e-9


def test_modes_are_equally_likely():
    """An object of the size of the image: no window can have IoU 0.999, so that mode is whole."""
    run = jax.jit(
        jax.vmap(
            lambda key, minimum: augment.sample_window(
                key, np.float32([[0, 0, *SIZE]]), np.array([0]), SIZE, minimum_overlaps=(minimum,)
            ),
            (0, None),
        )
    )
    none, reached = run(KEYS, 0.999), run(KEYS, 0.0)
    canvas = canvases()
    inside = (canvas == [0, 0, *SIZE]).all(1)  # no expansion: some center is always inside
    for found, want in ((none, 2 / 3), (reached, 1 / 3)):
        whole = (found == canvas).all(1)[inside]
        assert abs(whole.mean() - want) < 5 * np.sqrt(want * (1 - want) / len(whole))


# Batches.


def some_batch(count=8, height=24, width=32, objects=3, seed=0):
    random = np.random.RandomState(seed)
    size = random.randint(12, (height + 1, width + 1), (count, 2))
    low = random.uniform(0, 0.5, (count, objects, 2))
    both = np.concatenate([low, low + random.uniform(0.1, 0.5, low.shape)], 2)
    return {
        "image": random.randint(0, 256, (count, height, width, 3), np.uint8),
        "size": size.astype(np.int32),
        "boxes": (both * np.tile(size, 2)[:, None]).astype(np.float32),
        "label": random.randint(-1, 4, (count, objects)),
        "difficult": random.uniform(size=(count, objects)) < 0.5,
    }


def test_boxes_move_with_pixels():
    """A white rectangle on black: the box is where it is bright, to one pixel."""
    random, count, side = np.random.RandomState(0), 400, 32
    batch = some_batch(count)
    batch["image"][:] = 255  # beyond the real image all is white
    batch["label"][:] = [5, -1, -1]
    for image, size, boxes in zip(batch["image"], batch["size"], batch["boxes"], strict=True):
        low = random.randint(0, size - 8)
        high = low + random.randint(8, size - low + 1)
        boxes[0] = [*low, *high]
        image[: size[0], : size[1]] = 0
        image[low[0] : high[0], low[1] : high[1]] = 255
    keys = example_keys(0, 0, jnp.arange(count))
    found = jax.tree.map(np.asarray, augment_ssd(keys, batch, side, np.zeros(3)))
    compared = 0
    for image, box, label in zip(
        found["image"], found["boxes"][:, 0], found["label"][:, 0], strict=True
    ):
        bright = image.mean(-1) > image.mean(-1).max() / 2
        if label < 0:
            assert not box.any()
            continue
        assert label == 5
        box = box * side
        if (box[2:] - box[:2]).min() < 3:  # without antialiasing, it may fall between the pixels
            continue
        (top, bottom), (left, right) = (
            (at[0], at[-1] + 1) for at in (np.flatnonzero(bright.any(a)) for a in (1, 0))
        )
        np.testing.assert_allclose(box, [top, left, bottom, right], atol=1.01)
        compared += 1
    assert compared > 250
    assert (found["label"][:, 1] == -1).all()


def test_objects_stay_if_their_center_does():
    batch = some_batch(400)
    center = (batch["boxes"][:, 1, :2] + batch["boxes"][:, 1, 2:]) / 2
    batch["boxes"][:, 2] = np.concatenate([center - 0.01, center + 0.01], 1)
    batch["label"][:] = [1, 2, 3]
    found = augment_ssd(example_keys(1, 0, jnp.arange(400)), batch, 32, np.array(FILL))
    kept = np.asarray(found["label"]) == [1, 2, 3]
    np.testing.assert_array_equal(kept[:, 1], kept[:, 2])
    sides = np.asarray(found["boxes"][..., 2:] - found["boxes"][..., :2])
    np.testing.assert_array_equal((sides > 0).all(-1), kept)
    assert 10 < (~kept[:, 1]).sum() < 200


def test_half_of_the_images_are_mirrored():
    batch = some_batch(400)
    batch["size"][:] = [24, 32]
    batch["image"][:, :, :16] = 0
    batch["image"][:, :, 16:] = 255
    batch["label"][:] = -1  # the window is the canvas, so both halves are in it
    keys = example_keys(0, 0, jnp.arange(400))
    image = np.asarray(augment_ssd(keys, batch, 32, np.full(3, 0.5))["image"]).mean((1, 3))
    mirrored = image.argmax(1) < image.argmin(1)
    assert abs(mirrored.mean() - 0.5) < 0.125  # five standard deviations


def test_an_image_is_augmented_alike_in_any_batch_and_on_any_device():
    batch, index = some_batch(), jnp.arange(8)
    whole = augment_ssd(example_keys(3, 2, index), batch, 16, np.array(FILL))
    order = np.random.RandomState(0).permutation(8)
    shuffled = jax.tree.map(lambda x: x[order], batch)
    again = augment_ssd(example_keys(3, 2, index[order]), shuffled, 16, np.array(FILL))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[order], b), whole, again)
    split = jax.tree.map(lambda x: x.reshape(2, 4, *x.shape[1:]), (index, batch))
    devices = jax.pmap(
        lambda i, b: augment.augment_ssd(example_keys(3, 2, i), b, 16, np.array(FILL)),
        devices=jax.devices()[:2],
    )(*split)
    devices = jax.tree.map(lambda x: np.asarray(x).reshape(8, *x.shape[2:]), devices)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), whole, devices)
    for seed, epoch in ((4, 2), (3, 3)):
        other = augment_ssd(example_keys(seed, epoch, index), batch, 16, np.array(FILL))
        assert np.abs(other["image"] - whole["image"]).mean() > 0.05


def test_pixels_beyond_the_real_image_do_not_matter():
    batch, keys = some_batch(), example_keys(0, 0, jnp.arange(8))
    other = {**batch, "image": batch["image"].copy()}
    for image, (height, width) in zip(other["image"], other["size"], strict=True):
        image[height:], image[:, width:] = 77, 200
    for run in (lambda b: augment_ssd(keys, b, 16, np.array(FILL)), resize):
        a, b = run(batch), run(other)
        jax.tree.map(np.testing.assert_array_equal, a, b)


def resize(batch, side=16):
    return RESIZE(batch, side)


RESIZE = jax.jit(augment.resize_batch, static_argnums=1)


def test_resize_for_evaluation():
    batch = some_batch()
    found = resize(batch)
    for i, (height, width) in enumerate(batch["size"]):
        real = batch["image"][i, :height, :width] / np.float32(255)
        want = jax.image.resize(real, (16, 16, 3), "linear", antialias=False)
        np.testing.assert_allclose(found["image"][i], want, atol=1e-5)
        boxes = batch["boxes"][i] / np.array([height, width, height, width])
        boxes[batch["label"][i] < 0] = 0
        np.testing.assert_allclose(found["boxes"][i], boxes, atol=1e-6)
    np.testing.assert_array_equal(found["label"], batch["label"])
    np.testing.assert_array_equal(found["difficult"], batch["difficult"])


def test_whole_images_keep_all_objects():
    """Without expansion and crop only colors and the mirror are random."""
    batch = some_batch(20)
    keys = example_keys(0, 0, jnp.arange(20))
    whole = functools.partial(augment.augment_ssd, minimum_overlaps=None)
    found = jax.jit(whole, static_argnums=2)(keys, batch, 16, np.array(FILL))
    plain = np.asarray(resize(batch)["boxes"])
    turned = np.where(plain[..., 2:3] > 0, plain * [1, -1, 1, -1] + [0, 1, 0, 1], 0)[..., MIRRORED]
    mirrored = (np.abs(found["boxes"] - turned) < 1e-6).all((1, 2))
    assert ((np.abs(found["boxes"] - plain) < 1e-6).all((1, 2)) | mirrored).all()
    assert 4 < mirrored.sum() < 16
    np.testing.assert_array_equal(found["label"], batch["label"])


@pytest.mark.parametrize("case", ["padding", "pixels", "empty", "no size", "gray"])
def test_no_nan(case):
    batch, count = some_batch(), 8
    if case == "padding":
        batch["label"][:], batch["boxes"][:] = -1, 0
    elif case == "pixels":
        batch["boxes"][..., 2:] = batch["boxes"][..., :2] = np.floor(batch["boxes"][..., :2])
        batch["boxes"][..., 2:] += 1
    elif case == "empty":
        batch["boxes"][..., 2:] = batch["boxes"][..., :2]
    elif case == "no size":
        batch["size"][:] = [[0, 0], [1, 1]] * 4
    else:
        batch["image"][:] = np.array([0, 1, 128, 255] * 2)[:, None, None, None]
    for found in (augment_ssd(example_keys(0, 0, jnp.arange(count)), batch, 16, np.array(FILL)),
                  resize(batch)):  # fmt: skip
        assert np.isfinite(found["image"]).all()
        boxes, labels = np.asarray(found["boxes"]), np.asarray(found["label"])
        assert np.isfinite(boxes).all()
        assert (boxes[..., 2:] >= boxes[..., :2]).all()
        assert set(np.unique(labels)) <= {-1, *np.unique(batch["label"])}
        assert found["image"].dtype == found["boxes"].dtype == np.float32
    if case == "pixels":
        assert (labels >= 0).sum() > 8


def test_images_may_have_no_room_for_objects():
    batch, keys = some_batch(2, objects=0), example_keys(0, 0, jnp.arange(2))
    found = jax.eval_shape(lambda: augment.augment_ssd(keys, batch, 8, FILL))
    assert found["boxes"].shape == (2, 0, 4)
    empty = np.zeros((0, 4), np.float32), np.zeros(0, int)
    np.testing.assert_array_equal(WINDOWS[True](KEYS, *empty, np.array(SIZE)), canvases())


def test_refuses_wrong_arguments():
    batch, keys = some_batch(), example_keys(0, 0, jnp.arange(8))
    with pytest.raises(ValueError, match="image has dtype float32"):
        augment.augment_ssd(keys, {**batch, "image": np.float32(batch["image"])}, 8, FILL)
    with pytest.raises(ValueError, match=r"size \(8,\)"):
        augment.resize_batch({**batch, "size": batch["size"][:, 0]}, 8)
    with pytest.raises(ValueError, match=r"labels \(2,\)"):
        augment.sample_window(keys[0], np.zeros((3, 4)), np.zeros(2), (8, 8))
    with pytest.raises(ValueError, match="window"):
        augment.resample(np.zeros((3, 3, 1)), np.zeros((2, 4)), (2, 2), 0)


# Faster R-CNN's images.


def batch_of_sizes(sizes, side=40):
    random = np.random.RandomState(0)
    count = len(sizes)
    return {
        "image": random.randint(0, 256, (count, side, side, 3), np.uint8),
        "size": np.array(sizes, np.int32),
        "boxes": np.tile(np.float32([[3, 4, 9, 12], [0, 0, 0, 0]]), (count, 1, 1)),
        "label": np.tile([2, -1], (count, 1)),
        "difficult": np.zeros((count, 2), bool),
    }


@pytest.mark.parametrize("mirror", [False, True])
def test_fitted_images_are_pillows_in_the_corner(mirror):
    batch = batch_of_sizes([(20, 30), (40, 15)])
    fit = jax.jit(augment.fit_batch, static_argnums=1)
    mirrored = np.array([mirror, mirror])
    found = fit(batch, (64, 64), jnp.array(FILL), shorter_side=35, mirror=mirrored)
    # 35 / 20 = 1.75 for the first; of the second, 64 / 40 < 35 / 15.
    assert found["size"].tolist() == [[35, 52], [64, 24]]
    for i, ((h, w), (height, width)) in enumerate(zip(batch["size"], found["size"], strict=True)):
        inside = np.float32(batch["image"][i, :h, :w]) / 255
        planes = [PIL.Image.fromarray(inside[..., c]) for c in range(3)]
        size = int(width), int(height)
        planes = [np.array(plane.resize(size, PIL.Image.Resampling.BILINEAR)) for plane in planes]
        want = np.stack(planes, -1)[:, :: -1 if mirror else 1]
        canvas = np.array(found["image"][i])
        np.testing.assert_allclose(canvas[:height, :width], want, atol=1e-5)
        np.testing.assert_allclose(canvas[height:], np.broadcast_to(FILL, canvas[height:].shape))
        np.testing.assert_allclose(
            canvas[:, width:], np.broadcast_to(FILL, canvas[:, width:].shape)
        )
        across = (w - 12, w - 4) if mirror else (4, 12)
        box = np.array([3, across[0], 9, across[1]]) * np.tile([height / h, width / w], 2)
        np.testing.assert_allclose(found["boxes"][i] * 64, [box, np.zeros(4)], atol=1e-4)
        assert found["label"][i].tolist() == [2, -1]


def test_without_a_shorter_side_the_longer_one_fills_the_canvas():
    found = augment.fit_batch(batch_of_sizes([(40, 40), (1, 40), (40, 20)]), (40, 40), 0.0)
    assert found["size"].tolist() == [[40, 40], [1, 40], [40, 20]]
    np.testing.assert_allclose(
        found["image"][0], np.float32(batch_of_sizes([(40, 40)])["image"][0]) / 255, atol=1e-6
    )


@pytest.mark.parametrize("portrait", [False, True])
def test_a_narrower_canvas_has_less_padding_and_nothing_else_changes(portrait):
    sizes = [(15, 40), (20, 30), (18, 18)]
    sizes, shape = ([s[::-1] for s in sizes], (66, 38)) if portrait else (sizes, (38, 66))
    fit = functools.partial(augment.fit_batch, shorter_side=35, longer_side=64)
    batch, fit = batch_of_sizes(sizes), jax.jit(fit, static_argnums=1)
    narrow, square = (fit(batch, canvas, jnp.array(FILL)) for canvas in (shape, (66, 66)))
    # 64 / 40 < 35 / 15 for the first; 35 / 20 and 35 / 18 for the others.
    expected = [[24, 64], [35, 52], [35, 35]]
    assert narrow["size"].tolist() == [own[::-1] if portrait else own for own in expected]
    np.testing.assert_array_equal(narrow["size"], square["size"])
    cut = square["image"][:, : shape[0], : shape[1]]
    np.testing.assert_allclose(narrow["image"], cut, atol=1e-6)
    in_pixels = [f["boxes"] * np.tile(f["image"].shape[1:3], 2) for f in (narrow, square)]
    np.testing.assert_allclose(*in_pixels, atol=1e-4)


def test_an_image_never_reaches_over_its_canvas():
    found = augment.fit_batch(batch_of_sizes([(40, 20)]), (16, 32), 0.0, shorter_side=16)
    assert found["size"].tolist() == [[16, 8]]
