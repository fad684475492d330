"""Measures of separation against plain counts, and out-of-distribution datasets of users."""

import numpy as np
import pytest
from PIL import Image

from cutmix_jax import UserError
from cutmix_jax.evals import ood


def plain_auroc(inside, outside):
    """The probability that a pair is in order. Ties count one half."""
    order = np.sign(inside[:, None] - outside[None, :])
    return (order + 1).mean() / 2


def plain_precision(wanted, others):
    """Average precision: the sum over the thresholds of precision times the rise of recall."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(wanted) | set(others), reverse=True):
        found, wrong = (wanted >= threshold).sum(), (others >= threshold).sum()
        recall = found / len(wanted)
        total += (recall - before) * found / (found + wrong)
        before = recall
    return total


def plain_separation(inside, outside):
    bounds = sorted(set(inside) | set(outside) | {2.0})
    reached = [t for t in bounds if (inside >= t).mean() >= 0.95 - 1e-12]
    accuracy = max(((inside >= t).mean() + (outside < t).mean()) / 2 for t in bounds)
    return {
        "tnr_at_tpr95": (outside < max(reached)).mean(),
        "auroc": plain_auroc(inside, outside),
        "aupr_in": plain_precision(inside, outside),
        "aupr_out": plain_precision(-outside, -inside),
        "detection_accuracy": accuracy,
    }


@pytest.mark.parametrize("seed", range(20))
def test_separation_against_plain_counts(seed):
    random = np.random.RandomState(seed)
    sizes = random.randint(1, 90, 2)
    shift = random.uniform(-0.3, 0.6)
    inside, outside = random.uniform(0, 1, sizes[0]) + shift, random.uniform(0, 1, sizes[1])
    if seed % 2:  # many ties
        inside, outside = np.round(inside, 1), np.round(outside, 1)
    found = ood.separation(inside, outside)
    assert found == pytest.approx(plain_separation(inside, outside))


def test_separation_at_its_ends():
    low, high = np.linspace(0, 0.4, 40), np.linspace(0.6, 1, 30)
    assert list(ood.separation(high, low).values()) == pytest.approx([1.0] * 5)
    worst = ood.separation(low, high)
    assert (worst["auroc"], worst["tnr_at_tpr95"], worst["detection_accuracy"]) == (0, 0, 0.5)


@pytest.mark.parametrize(
    ("inside", "outside", "expected"),
    [
        ([], [0.5], "no scores inside"),
        ([0.5], [], "no scores outside"),
        ([0.5], [np.nan], "score outside the distribution is not finite"),
    ],
)
def test_scores_of_one_kind_alone_are_refused(inside, outside, expected):
    with pytest.raises(UserError, match=expected):
        ood.separation(np.array(inside), np.array(outside))


def test_noise_is_as_described_and_a_function_of_its_number(subject, make_subject):
    def draw(subject, name):
        load = ood.noise_loader(subject, ood.Foreign(name, 200), seed=0)
        call = subject.compile(lambda weights, batch: batch["image"], load)
        return subject.collect(call, subject.foreign_batches(200), 200)

    uniform, gaussian = draw(subject, "uniform"), draw(subject, "gaussian")
    assert uniform.shape == gaussian.shape == (200, 8, 8, 1)
    assert uniform.mean() == pytest.approx(0.5, abs=0.01)
    assert uniform.std() == pytest.approx(12**-0.5, abs=0.01)
    # N(0.5, 1) is below 0 and above 1 with probability 0.3085 each.
    for bound in (0, 1):
        assert (gaussian == bound).mean() == pytest.approx(0.3085, abs=0.02)
    np.testing.assert_array_equal(draw(make_subject(devices=8), "gaussian"), gaussian)


def test_images_are_made_to_fit():
    color = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3) * 3
    cropped = ood.fit(color, (3, 2, 3), "crop", (0, 1))
    windows = np.lib.stride_tricks.sliding_window_view(color, (3, 2, 3)).reshape(-1, 3, 2, 3)
    assert any((cropped == window).all() for window in windows)
    np.testing.assert_array_equal(cropped, ood.fit(color, (3, 2, 3), "crop", (0, 1)))
    assert ood.fit(color, (9, 12, 3), "crop", (0, 1)).shape == (9, 12, 3)  # enlarged first
    assert ood.fit(color, (8, 8, 1), "resize", None).shape == (8, 8, 1)
    gray = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
    np.testing.assert_array_equal(ood.fit(gray, (4, 4, 3), "resize", None), gray.repeat(3, 2))


@pytest.mark.parametrize("stored", [(60, 40), (12, 90), (3, 700), (700, 3), (1, 5)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_crop_is_that_of_the_enlarged_image(stored, channels):
    """Pillow enlarges the whole image first."""
    image = np.random.RandomState(0).randint(0, 256, (*stored, channels), np.uint8)
    grow = max(1, 16 / min(stored))
    picture = Image.fromarray(image if channels == 3 else image[..., 0])
    sides = [round(side * grow) for side in picture.size]
    enlarged = np.asarray(picture.resize(sides, Image.Resampling.BILINEAR))
    enlarged = enlarged.reshape(*sides[::-1], channels)
    windows = np.lib.stride_tricks.sliding_window_view(enlarged, (16, 16, channels))
    windows = windows.reshape(-1, 16, 16, channels)
    for seed in range(5):
        got = ood.fit(image, (16, 16, channels), "crop", (0, seed))
        assert (windows == got).all((1, 2, 3)).any()


def test_sets_by_name(subject, tmp_path):
    for i in range(3):
        place = tmp_path / "deep" / f"{i}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 10, 3), 40 * i, np.uint8)).save(place)
    found = ood.open_foreign(f"folder:{tmp_path}:crop", subject, 10)
    assert found.count == 3
    images = ood.reader(found)(np.arange(3))
    assert images.shape == (3, 8, 8, 1)
    assert images[:, 0, 0, 0].tolist() == [0, 40, 80]
    assert ood.open_foreign(f"folder:{tmp_path}", subject, 2).count == 2
    for name, expected in (
        (f"folder:{tmp_path / 'no'}", "which does not exist"),
        ("cifar10:cut", r"names 'cifar10:cut'.*NAME:crop"),
        ("cifr10", "cifr10.*cifar10"),
    ):
        with pytest.raises(UserError, match=expected):
            ood.open_foreign(name, subject, 10)


def measure(subject, options):
    inputs, _ = ood.find_sets(subject, options)
    return ood.run(subject, options, *inputs)


def test_a_set_of_tfds_against_the_digits(subject, tfds_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_dir))
    options = subject.task.config.evals.ood.copy_and_resolve_references()
    options.update({"sets": ("digits", "uniform", "cifar100:crop"), "limit": 70})
    options.skip_missing = False
    report = measure(subject, options)
    assert [row["set"] for row in report.rows] == ["uniform", "cifar100:crop", "mean"]
    assert [row["examples"] for row in report.rows] == [70, 70, 140]
    assert "digits: the network was trained on it" in report.left_out[0]
    mean = np.mean([row["auroc"] for row in report.rows[:2]])
    assert report.values["mean_auroc"] == pytest.approx(mean)

    options.sets = ("uniform", "cifar1000")
    with pytest.raises(UserError, match="cifar1000"):
        measure(subject, options)
    options.skip_missing = True
    report = measure(subject, options)
    assert len(report.rows) == 2
    assert report.again
