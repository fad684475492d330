"""SSD's augmentation on the device: colors, expansion, crop, mirror and resize; and fitting.

Expansion and crop choose one window in coordinates of the image, so pixels are resampled once.
Images are padded: `size` is the height and width of the real image, in the top left corner.
"""

import itertools

import jax
import jax.numpy as jnp
from jax import lax

from cutmix_jax.detection.boxes import as_boxes, clip, iou, to_center_size

# Of the original SSD. The code that the CutMix paper cites leaves out 0.5.
MINIMUM_OVERLAPS = (0.1, 0.3, 0.5, 0.7, 0.9)
TRIALS = 50  # windows that a crop tries


def augment_ssd(
    keys, batch, out_size, fill, *, minimum_overlaps=MINIMUM_OVERLAPS, check_overlap=True
):
    """Augments a batch as SSD does for training, and resizes it.

    The order is `distort_colors`, `sample_window`, a horizontal mirror with probability 1/2, and
    `resample`. Boxes are clipped to the window. Objects whose center is not inside get label -1.
    To train without difficult objects, set their labels to -1 before: they then do not choose the
    window either.

    Args:
        keys: `[b]` keys, one per image. Keys from `cutmix_jax.data.augment.example_keys` are a
            function of (seed, epoch, index), so the result depends on nothing else.
        batch: `{'image': uint8 [b, H, W, 3], 'size': int [b, 2], 'boxes': float [b, G, 4],
            'label': int [b, G], 'difficult': bool [b, G]}`. Sizes are (height, width) of the real
            images, boxes (top, left, bottom, right), both in pixels. Labels are -1 for padding.
        out_size: S, height and width of the output in pixels; static.
        fill: three numbers in [0, 1], the color outside the image; SSD takes the mean color.
        minimum_overlaps: as for `sample_window`; None for whole images, without a window.
        check_overlap: as for `sample_window`.

    Returns:
        A dictionary with `image`, float32 `[b, S, S, 3]`, in [0, 1] or beyond, as colors are not
        clipped; `boxes`, float32 `[b, G, 4]`, fractions of the output image, and zeros where the
        label is -1; `label`, int32 `[b, G]`; and `difficult`, bool `[b, G]`.

    Raises:
        ValueError: the shapes do not fit, or images are not uint8.

    Example:
        >>> batch = {
        ...     "image": jnp.full((2, 40, 50, 3), 128, jnp.uint8),
        ...     "size": jnp.array([[40, 30], [20, 50]]),
        ...     "boxes": jnp.zeros((2, 3, 4)).at[:, 0].set(jnp.array([5, 5, 15, 25])),
        ...     "label": jnp.array([[7, -1, -1], [2, -1, -1]]),
        ...     "difficult": jnp.zeros((2, 3), bool),
        ... }
        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> augment = jax.jit(augment_ssd, static_argnums=2)
        >>> found = augment(keys, batch, 32, jnp.array([0.48, 0.46, 0.41]))
        >>> found["image"].shape, found["boxes"].shape, found["label"].dtype
        ((2, 32, 32, 3), (2, 3, 4), dtype('int32'))

    Reference:
        Liu et al. SSD: Single Shot MultiBox Detector. ECCV 2016, sections 2.2 and 3.6.
    """
    _check(batch)

    def augment(key, image, size, boxes, labels):
        for_colors, for_window, for_mirror = jax.random.split(key, 3)
        mirror = jax.random.bernoulli(for_mirror)
        window = _whole(size)
        if minimum_overlaps is not None:
            window = sample_window(
                for_window,
                boxes,
                labels,
                size,
                minimum_overlaps=minimum_overlaps,
                check_overlap=check_overlap,
            )
        image = distort_colors(for_colors, image.astype(jnp.float32) / 255)
        image = resample(image, window, (out_size, out_size), fill, size=size, mirror=mirror)
        kept = (labels >= 0) & _contains(window, to_center_size(boxes)[:, :2])
        boxes = jnp.where(kept[:, None], _in_window(boxes, window, mirror), 0)
        return image, boxes, jnp.where(kept, labels, -1).astype(jnp.int32)

    image, boxes, labels = jax.vmap(augment)(
        keys, batch["image"], batch["size"], batch["boxes"], batch["label"]
    )
    return {"image": image, "boxes": boxes, "label": labels, "difficult": batch["difficult"]}


def resize_batch(batch, out_size):
    """Resizes a batch for evaluation, without random numbers.

    Args:
        batch: as for `augment_ssd`.
        out_size: S, height and width of the output in pixels; static.

    Returns:
        As `augment_ssd`, with images in [0, 1] and all objects.

    Raises:
        ValueError: the shapes do not fit, or images are not uint8.

    Example:
        >>> batch = {
        ...     "image": jnp.full((1, 40, 50, 3), 51, jnp.uint8),
        ...     "size": jnp.array([[40, 20]]),
        ...     "boxes": jnp.array([[[10, 10, 20, 20], [0, 0, 0, 0]]]),
        ...     "label": jnp.array([[7, -1]]),
        ...     "difficult": jnp.array([[True, False]]),
        ... }
        >>> found = jax.jit(resize_batch, static_argnums=1)(batch, 8)
        >>> found["image"].shape, found["boxes"][0, 0].tolist()
        ((1, 8, 8, 3), [0.25, 0.5, 0.5, 1.0])
    """
    _check(batch)

    def resize(image, size, boxes, labels):
        window = _whole(size)
        image = resample(
            image.astype(jnp.float32) / 255, window, (out_size, out_size), 0.0, size=size
        )
        return image, jnp.where((labels >= 0)[:, None], _in_window(boxes, window, False), 0)

    image, boxes = jax.vmap(resize)(batch["image"], batch["size"], batch["boxes"], batch["label"])
    labels = jnp.asarray(batch["label"], jnp.int32)
    return {"image": image, "boxes": boxes, "label": labels, "difficult": batch["difficult"]}


def fit_batch(batch, shape, fill, *, shorter_side=None, longer_side=None, mirror=False):
    r"""Resizes images to a canvas with their aspect ratio, as Faster R-CNN does.

    An image of height h and width w is multiplied by

    .. math:: \min\left(\frac{q}{\min(h, w)}, \frac{p}{\max(h, w)}, \frac{H}{h}, \frac{W}{w}\right)

    for the shorter side q, the longest longer side p and a canvas of H by W. Sides are rounded to
    whole pixels. The image lies in the top left corner. It is interpolated as by `resample`.

    Args:
        batch: as for `augment_ssd`.
        shape: (H, W), height and width of the canvas in pixels; static.
        fill: float, or float `[3]`, the color outside the image.
        shorter_side: q in pixels; by default the canvas is the only limit.
        longer_side: p in pixels; by default the canvas is the only limit.
        mirror: bool, or bool `[b]`, whether to mirror an image horizontally.

    Returns:
        As `resize_batch`, with boxes as fractions of the canvas; and `size`, int32 `[b, 2]`, height
        and width of the image inside in pixels.

    Raises:
        ValueError: the shapes do not fit, or images are not uint8.

    Example:
        >>> batch = {
        ...     "image": jnp.full((1, 40, 50, 3), 51, jnp.uint8),
        ...     "size": jnp.array([[40, 20]]),
        ...     "boxes": jnp.array([[[10, 10, 20, 20], [0, 0, 0, 0]]]),
        ...     "label": jnp.array([[7, -1]]),
        ...     "difficult": jnp.array([[True, False]]),
        ... }
        >>> found = jax.jit(fit_batch, static_argnums=1)(batch, (80, 40), 0.0, shorter_side=30)
        >>> found["size"].tolist(), found["boxes"][0, 0].tolist()
        ([[60, 30]], [0.1875, 0.375, 0.375, 0.75])
    """
    _check(batch)
    canvas = jnp.array(shape, jnp.float32)
    shorter, longer = (jnp.inf if s is None else s for s in (shorter_side, longer_side))

    def fit(image, size, boxes, labels, mirror):
        sides = _whole(size)[2:]
        factor = jnp.minimum(shorter / sides.min(), longer / sides.max())
        factor = jnp.minimum(factor, (canvas / sides).min())
        inner = jnp.clip(jnp.round(sides * factor), 1, canvas)
        rows, columns = (
            _fitted_weights(sides[i], inner[i], image.shape[i], shape[i], mirror & (i == 1))
            for i in range(2)
        )
        pixels = _product(rows, columns, image.astype(jnp.float32) / 255, fill)
        boxes = _in_window(boxes, _whole(size), mirror) * jnp.tile(inner / canvas, 2)
        boxes = jnp.where((labels >= 0)[:, None], boxes, 0)
        return pixels, inner.astype(jnp.int32), boxes

    mirrored = jnp.broadcast_to(jnp.asarray(mirror, bool), batch["label"].shape[:1])
    image, size, boxes = jax.vmap(fit)(
        batch["image"], batch["size"], batch["boxes"], batch["label"], mirrored
    )
    labels = jnp.asarray(batch["label"], jnp.int32)
    return {
        "image": image,
        "size": size,
        "boxes": boxes,
        "label": labels,
        "difficult": batch["difficult"],
    }


def _fitted_weights(side, inner, count, out_size, mirror):
    """float32 `[out_size, count]`, as `_weights`, for a side that is resized to `inner` pixels."""
    index = jnp.arange(out_size)
    at = jnp.where(mirror, inner - 1 - index, index)
    at = jnp.clip((at + 0.5) * (side / inner) - 0.5, 0, side - 1)[:, None]
    hats = jnp.maximum(1 - jnp.abs(at - jnp.arange(count)), 0)
    return jnp.where((index < inner)[:, None], hats, 0)


def _check(batch):
    image, size, boxes, labels, difficult = (
        jnp.asarray(batch[key]) for key in ("image", "size", "boxes", "label", "difficult")
    )
    if image.dtype != jnp.uint8:
        raise ValueError(f"image has dtype {image.dtype}, but uint8 was expected.")
    count, objects = image.shape[:1], labels.shape
    if (
        image.ndim != 4
        or image.shape[3] != 3
        or size.shape != (*count, 2)
        or objects[:1] != count
        or boxes.shape != (*objects, 4)
        or difficult.shape != objects
        or len(objects) != 2
    ):
        raise ValueError(
            f"image has shape {image.shape}, size {size.shape}, boxes {boxes.shape}, label "
            f"{objects} and difficult {difficult.shape}, but [b, H, W, 3], [b, 2], [b, G, 4], "
            "[b, G] and [b, G] were expected."
        )


def distort_colors(key, image):
    """Changes the colors of an image at random, without clipping.

    Each of these happens with probability 1/2, in this order: brightness +- up to 32/255; contrast,
    a factor in [0.5, 1.5]; saturation, a factor in [0.5, 1.5]; hue +- up to 18 degrees; a random
    order of the channels. All numbers are uniform. The original changes the contrast before the
    saturation or after the hue. That is the same, as nothing is clipped.

    Args:
        key: `jax.random` key.
        image: float `[H, W, 3]`, RGB in [0, 1].

    Returns:
        float32 `[H, W, 3]`; it may leave [0, 1].

    Example:
        >>> image = jax.jit(distort_colors)(jax.random.key(0), jnp.full((2, 2, 3), 0.5))
        >>> image.shape, bool(jnp.ptp(image) < 1e-6)  # gray stays gray
        ((2, 2, 3), True)

    Reference:
        Howard. Some Improvements on Deep Convolutional Neural Network Based Image Classification.
        2013; the ranges are those of SSD's code.
    """
    # One call, because each takes long to compile on CPUs.
    numbers = jax.random.uniform(key, (10,))
    brightens, contrasts, saturates, turns, permutes = numbers[:5] < 0.5
    amounts = 2 * numbers[5:9] - 1
    brightness = jnp.where(brightens, amounts[0] * 32 / 255, 0)
    contrast = jnp.where(contrasts, 1 + amounts[1] / 2, 1)
    factor = jnp.where(saturates, 1 + amounts[2] / 2, 1)
    turn = jnp.where(turns, amounts[3] * 18 / 360, 0)
    image = (jnp.asarray(image, jnp.float32) + brightness) * contrast
    hue, saturation, value = jnp.moveaxis(rgb_to_hsv(image), -1, 0)
    image = hsv_to_rgb(jnp.stack([hue + turn, saturation * factor, value], -1))
    orders = jnp.array(list(itertools.permutations(range(3))))
    order = orders[jnp.where(permutes, jnp.floor(6 * numbers[9]), 0).astype(jnp.int32)]
    red, green, blue = jnp.moveaxis(image, -1, 0)
    # Not a gather along the channels, which is slow on CPUs.
    channels = [jnp.where(i == 0, red, jnp.where(i == 1, green, blue)) for i in order]
    return jnp.stack(channels, -1)


def rgb_to_hsv(image):
    r"""Converts RGB to hue, saturation and value.

    With M and m the largest and the smallest channel, the value is M and the saturation
    :math:`(M - m) / M`. Hue is in turns: 0 is red, 1/3 green and 2/3 blue. Gray has hue and
    saturation 0. Colors outside [0, 1], also negative ones, come back by `hsv_to_rgb`, except
    where M is exactly 0.

    Args:
        image: float `[..., 3]`, RGB; [0, 1] is black to white.

    Returns:
        float32 `[..., 3]`, (hue, saturation, value).

    Example:
        >>> rgb_to_hsv(jnp.array([0.0, 0.5, 0.5])).tolist()  # cyan
        [0.5, 1.0, 0.5]

    Reference:
        Smith. Color Gamut Transform Pairs. SIGGRAPH 1978.
    """
    red, green, blue = jnp.moveaxis(jnp.asarray(image, jnp.float32), -1, 0)
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    divisor = jnp.where(chroma > 0, chroma, 1)
    sixths = jnp.where(
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    saturation = chroma / jnp.where(value == 0, 1, value)
    saturation = jnp.where(value == 0, 0, saturation)
    hue = sixths / 6
    return jnp.stack([hue - jnp.floor(hue), saturation, value], -1)


def hsv_to_rgb(image):
    r"""Converts hue, saturation and value to RGB, the inverse of `rgb_to_hsv`.

    With hue h, saturation s and value v, the channels n = 5, 3, 1 (red, green, blue) are

    .. math:: v - v s \max(0, \min(k, 4 - k, 1)), \quad k = (n + 6 h) \bmod 6

    Args:
        image: float `[..., 3]`, (hue, saturation, value); hue in turns, of any integer part.

    Returns:
        float32 `[..., 3]`, RGB.

    Example:
        >>> hsv_to_rgb(jnp.array([0.5, 1.0, 0.5])).tolist()
        [0.0, 0.5, 0.5]

    Reference:
        As for `rgb_to_hsv`.
    """
    hue, saturation, value = jnp.moveaxis(jnp.asarray(image, jnp.float32), -1, 0)
    turns = hue[..., None] + jnp.array([5, 3, 1]) / 6
    k = 6 * (turns - jnp.floor(turns))  # `%` is several times slower on CPUs
    falls = jnp.clip(jnp.minimum(k, 4 - k), 0, 1)
    return value[..., None] - (value * saturation)[..., None] * falls


def sample_window(
    key, boxes, labels, size, *, minimum_overlaps=MINIMUM_OVERLAPS, check_overlap=True
):
    """SSD's expansion and crop of an image, as one window with integer corners.

    With probability 1/2 the image lies at a random position in a canvas that is r times as high
    and wide, r uniform in [1, 4]. Otherwise the canvas is the image. Then one mode is chosen, all
    with the same probability: the whole canvas, any window, or a window with one of the minimum
    overlaps. A window has a height and a width uniform in 0.3 to 1 times those of the canvas, a
    ratio of height to width in [0.5, 2], and the center of at least one object strictly inside. The
    first of 50 random windows that satisfies all this is taken.

    If none does, the window is the whole canvas. The original code chooses a mode again.

    Args:
        key: `jax.random` key.
        boxes: float `[G, 4]`, (top, left, bottom, right) in pixels.
        labels: int `[G]`, -1 for padding.
        size: (height, width) of the image in pixels; int `[2]`, may be traced.
        minimum_overlaps: numbers in [0, 1], one for each further mode. The default is that of the
            original SSD; (0.1, 0.3, 0.7, 0.9) is that of the code that the CutMix paper cites.
        check_overlap: whether the IoU of the window with at least one object has to reach the
            minimum of the mode, as in the original SSD. If False, the minimum is not checked, as in
            the cited code, whose check never rejects.

    Returns:
        float32 `[4]`, (top, left, bottom, right) in pixels of the image. It may reach outside.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> boxes, labels = jnp.array([[10, 10, 30, 30]]), jnp.array([0])
        >>> window = jax.jit(sample_window)(jax.random.key(0), boxes, labels, (60, 80))
        >>> top, left, bottom, right = window
        >>> bool(top < 20) and bool(20 < bottom), bool(left < 20) and bool(20 < right)
        (True, True)

    Reference:
        Liu et al. SSD: Single Shot MultiBox Detector. ECCV 2016, sections 2.2 and 3.6.
    """
    boxes, labels = as_boxes("boxes", boxes), jnp.asarray(labels)
    if boxes.ndim != 2 or labels.shape != boxes.shape[:1]:
        raise ValueError(
            f"boxes has shape {boxes.shape} and labels {labels.shape}, but [G, 4] and [G] were "
            "expected. Use jax.vmap for several images."
        )
    numbers = jax.random.uniform(key, (5 + 4 * TRIALS,))
    canvas = _canvas(numbers[:4], size)
    minimums = jnp.array([0, 0, *minimum_overlaps], jnp.float32)  # the first mode has no crop
    mode = jnp.floor(numbers[4] * len(minimums)).astype(jnp.int32)
    windows, valid = _windows(numbers[5:].reshape(TRIALS, 4), canvas)
    real = labels >= 0
    centers = to_center_size(boxes)[:, :2]
    valid &= (_contains(windows[:, None], centers) & real).any(1)
    if check_overlap:
        valid &= ((iou(windows, boxes) >= minimums[mode]) & real).any(1)
    return jnp.where((mode > 0) & valid.any(), windows[valid.argmax()], canvas)


def _whole(size):
    """float32 `[4]`, the image itself as a window; at least one pixel."""
    height, width = size
    sides = jnp.maximum(jnp.stack([jnp.asarray(height), jnp.asarray(width)]), 1)
    return jnp.concatenate([jnp.zeros(2), sides.astype(jnp.float32)])


def _canvas(numbers, size):
    """float32 `[4]`, the expanded image as a window, from four numbers in [0, 1)."""
    whole = _whole(size)
    ratio = jnp.where(numbers[0] < 0.5, 1 + 3 * numbers[1], 1)
    sides = whole[2:] * ratio
    before = jnp.floor(numbers[2:] * (sides - whole[2:]))
    return jnp.concatenate([-before, jnp.floor(sides) - before])


def _windows(numbers, canvas):
    """Windows float32 `[n, 4]` of a canvas, from as many numbers in [0, 1).

    Also bool `[n]`, whether the ratio of height to width is in [0.5, 2].
    """
    whole = canvas[2:] - canvas[:2]
    sides = whole * (0.3 + 0.7 * numbers[:, :2])
    low = canvas[:2] + numbers[:, 2:] * (whole - sides)
    high = jnp.floor(low + sides)
    low = jnp.floor(low)
    windows = jnp.concatenate([low, jnp.maximum(high, low + 1)], 1)
    ratio = sides[:, 0] / sides[:, 1]
    return windows, (ratio >= 0.5) & (ratio <= 2)


def _contains(windows, points):
    """Whether points `[..., 2]` are strictly inside windows `[..., 4]`."""
    return ((points > windows[..., :2]) & (points < windows[..., 2:])).all(-1)


def _in_window(boxes, window, mirror):
    """Boxes `[G, 4]` in pixels as fractions of a window, clipped to it."""
    origin, sides = window[:2], window[2:] - window[:2]
    boxes = (as_boxes("boxes", boxes) - jnp.tile(origin, 2)) / jnp.tile(sides, 2)
    top, left, bottom, right = jnp.moveaxis(clip(boxes, (1, 1)), -1, 0)
    left, right = jnp.where(mirror, 1 - right, left), jnp.where(mirror, 1 - left, right)
    return jnp.stack([top, left, bottom, right], -1)


def resample(image, window, shape, fill, *, size=None, mirror=False):
    r"""Cuts a window out of an image and resizes it, by two matrix products.

    With top t and bottom b of the window, row i of n output rows is interpolated at

    .. math:: y_i = t + \left(i + \tfrac{1}{2}\right) \frac{b - t}{n} - \tfrac{1}{2}

    between the two next pixels, and likewise for columns. Positions beyond the outermost pixels of
    the window take the values of these. Outside the image is the color `fill`. This is OpenCV's
    bilinear resize of the window: there is no antialiasing.

    Args:
        image: float `[H, W, C]`.
        window: float `[4]`, (top, left, bottom, right) in pixels, with integers, at least one pixel
            high and wide; may reach outside the image and may be traced.
        shape: (height, width) of the output; static.
        fill: float, or float `[C]`.
        size: (height, width) of the real image inside `image`, whose other pixels count as outside;
            may be traced. By default (H, W).
        mirror: bool, whether to mirror the output horizontally; may be traced.

    Returns:
        float32 `[*shape, C]`.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> image = jnp.arange(4.0).reshape(1, 4, 1)
        >>> resample(image, jnp.array([0, 0, 1, 4]), (1, 2), 9.0)[0, :, 0].tolist()
        [0.5, 2.5]
        >>> resample(image, jnp.array([0, -1, 1, 3]), (1, 4), 9.0)[0, :, 0].tolist()
        [9.0, 0.0, 1.0, 2.0]
    """
    image, window = jnp.asarray(image, jnp.float32), as_boxes("window", window)
    if image.ndim != 3 or window.ndim != 1:
        raise ValueError(
            f"image has shape {image.shape} and window {window.shape}, but [H, W, C] and [4] were "
            "expected. Use jax.vmap for several images."
        )
    height, width = image.shape[:2] if size is None else size
    real = (jnp.arange(image.shape[0]) < height)[:, None] & (jnp.arange(image.shape[1]) < width)
    image = jnp.where(real[..., None], image, 0)
    rows = _weights(window[0], window[2], real.any(1), shape[0])
    columns = _weights(window[1], window[3], real.any(0), shape[1])
    columns = jnp.where(mirror, columns[::-1], columns)
    return _product(rows, columns, image, fill)


def _product(rows, columns, image, fill):
    """The image, interpolated along both axes, with `fill` where the weights are less than 1."""
    exact = {"precision": lax.Precision.HIGHEST}  # TPUs round to bfloat16 otherwise, GPUs to TF32
    pixels = jnp.einsum("ih,hwc->iwc", rows, image, **exact)
    pixels = jnp.einsum("jw,iwc->ijc", columns, pixels, **exact)
    inside = rows.sum(1)[:, None] * columns.sum(1)
    return pixels + (1 - inside)[..., None] * jnp.asarray(fill, jnp.float32)


def _weights(low, high, real, count):
    """float32 `[count, n]`: what each pixel of an axis gives to each output, if `real` `[n]`.

    It is a hat function of their distance.
    """
    at = low + (jnp.arange(count) + 0.5) * ((high - low) / count) - 0.5
    at = jnp.clip(at, low, high - 1)[:, None]
    return jnp.where(real, jnp.maximum(1 - jnp.abs(at - jnp.arange(len(real))), 0), 0)
