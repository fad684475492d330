"""Random-resized crops follow torchvision. Their random numbers are those of JAX's generator."""

import jax
import numpy as np
import pytest
from jax.extend.random import threefry_2x32

from cutmix_jax.data import crops


def test_the_generator_is_that_of_jax():
    random = np.random.RandomState(0)
    for key in random.randint(0, 2**32, (4, 2), np.uint32):
        x, y = random.randint(0, 2**32, (2, 1000), np.uint32)
        got = np.concatenate(crops.threefry(key, x, y))
        want = threefry_2x32(jax.numpy.asarray(key), np.concatenate([x, y]))
        np.testing.assert_array_equal(got, want)


def test_numbers_follow_seed_epoch_and_index_alone():
    index = np.array([7, 0, 2**31 - 1, 5])
    numbers = crops.sample(3, 4, index)
    assert numbers.shape == (4, crops.ATTEMPTS, 4)
    for i, row in zip(index, numbers, strict=True):
        np.testing.assert_array_equal(crops.sample(3, 4, np.array([i]))[0], row)
    others = [crops.sample(*key, index) for key in ((3, 5), (4, 4), (4, 3))]
    assert len(np.unique([numbers, *others])) == 4 * numbers.size


def test_repetitions_have_numbers_of_their_own():
    first, *others = (crops.sample(3, 4, np.array([7]), np.array([copy])) for copy in range(3))
    np.testing.assert_array_equal(first, crops.sample(3, 4, np.array([7])))
    numbers = np.stack([first, *others])
    assert len(np.unique(numbers)) == numbers.size


def test_numbers_stay_what_they_are():
    """A resumed run continues with the crops that it began with."""
    got = crops.sample(1, 2, np.array([3]))[0, 0]
    np.testing.assert_array_equal(got * 2**32, [3172306435, 347942790, 2567747939, 1188903077])


def test_numbers_are_uniform_and_independent():
    """Over images, and for one image over neighboring seeds and epochs."""
    parts = [crops.sample(s, e, np.arange(4000)) for s in (0, 1) for e in (0, 1)]
    numbers = np.stack(parts).transpose(1, 0, 2, 3).reshape(4000, -1)  # 160 numbers per image
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.stack([np.histogram(row, 10, (0, 1))[0] for row in numbers.T])
    chi_squared = ((counts - 400) ** 2 / 400).sum(1)  # mean 9, variance 18
    assert abs(chi_squared.mean() - 9) < 5 * np.sqrt(18 / 160)
    correlation = np.corrcoef(numbers.T)[np.triu_indices(160, 1)] * np.sqrt(4000)  # N(0, 1)
    assert abs(correlation).max() < 5.5
    assert abs(correlation.std() - 1) < 0.05
    along = [np.corrcoef(row[1:], row[:-1])[0, 1] for row in numbers.T]  # image after image
    assert abs(np.array(along)).max() * np.sqrt(4000) < 5


def boxes(height, width, count=3000, area=(0.08, 1.0)):
    """int [count, 4] of random-resized boxes."""
    numbers = crops.sample(7, 0, np.arange(count))
    return np.array([crops.random_resized(row, height, width, area) for row in numbers])


def test_random_resized_boxes_are_torchvision_s():
    """A box of area a fits a square if its ratio is at most 1/a: known moments, loose bounds."""
    side = 400
    top, left, height, width = boxes(side, side).T
    share, ratio = height * width / side**2, width / height
    assert share.min() > 0.078
    assert ratio.min() > 0.74
    assert ratio.max() < 1.35
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= side).all()
    assert (left + width <= side).all()
    # A reference sampled independently, by rejection in NumPy.
    random = np.random.RandomState(0)
    a = random.uniform(0.08, 1, (60000, 10))
    r = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3), (60000, 10)))
    fits = (a * r <= 1) & (a / r <= 1)
    first = fits.argmax(1)
    want = np.where(fits.any(1), a[np.arange(60000), first], 1.0)
    error = 5 * want.std() / np.sqrt(3000)
    assert abs(share.mean() - want.mean()) < error
    for q in (0.1, 0.5, 0.9):
        assert abs(np.quantile(share, q) - np.quantile(want, q)) < 0.04
    # Symmetric in the logarithm: neither tall nor wide boxes are preferred.
    assert abs(np.log(ratio).mean()) < 5 * np.log(ratio).std() / np.sqrt(3000)
    # The position is uniform: relative offsets average one half.
    free = side - height > 20
    assert abs((top[free] / (side - height[free])).mean() - 0.5) < 0.03
    assert abs((left[free] / np.maximum(side - width[free], 1)).mean() - 0.5) < 0.04


@pytest.mark.parametrize(
    ("size", "want"), [((100, 500), (0, 183, 100, 133)), ((500, 100), (183, 0, 133, 100))]
)
def test_elongated_images_fall_back_to_the_central_box(size, want):
    got = boxes(*size, count=4, area=(0.9, 1.0))
    np.testing.assert_array_equal(got, [want] * 4)


def test_area_can_be_the_whole_image():
    np.testing.assert_array_equal(boxes(60, 60, 1, (1.0, 1.0)), [[0, 0, 60, 60]])


def test_no_box_leaves_the_image_or_is_empty():
    for size in ((1, 1), (1, 900), (900, 1), (2, 3), (7, 5), (333, 500)):
        top, left, height, width = boxes(*size, count=300).T
        assert min(top.min(), left.min()) >= 0
        assert min(height.min(), width.min()) >= 1
        assert (top + height).max() <= size[0]
        assert (left + width).max() <= size[1]


@pytest.mark.parametrize(
    ("size", "square", "resized", "corner"),
    [
        ((300, 400), False, (38, 50), (2, 8)),  # 8.5 is rounded to even
        ((400, 300), False, (50, 38), (8, 2)),
        ((300, 400), True, (38, 38), (2, 2)),
    ],
)
def test_central_crop(size, square, resized, corner):
    assert crops.central(*size, (33, 33), 38, square) == (resized, corner)
