"""At their ends, covered images and images between two others equal their sources."""

import numpy as np
import pytest

from cutmix_jax import UserError
from cutmix_jax.evals import between, occlusion


@pytest.mark.parametrize("side", range(9))
@pytest.mark.parametrize("inside", [True, False])
def test_occlusion_against_slices(side, inside):
    images = np.random.RandomState(0).uniform(0, 1, (2, 8, 6, 3)).astype(np.float32)
    box = occlusion.center_box(side, 8, 6)
    wide = round(side * 6 / 8)
    top, left = (8 - side) // 2, (6 - wide) // 2
    fill = np.float32([0.1, 0.2, 0.3])
    middle = (slice(None), slice(top, top + side), slice(left, left + wide))
    if inside:
        expected = images.copy()
        expected[middle] = fill
    else:
        expected = np.broadcast_to(fill, images.shape).copy()
        expected[middle] = images[middle]
    np.testing.assert_array_equal(occlusion.occlude(images, box, inside, fill), expected)


@pytest.mark.parametrize("fill", ["mean", "black"])
def test_no_side_is_clean_and_the_full_side_is_blank(subject, pixels, predict, fill):
    images, labels = pixels
    options = subject.task.config.evals.occlusion.copy_and_resolve_references()
    options.update({"steps": 2, "fill": fill})
    rows = occlusion.run(subject, options).rows
    assert [row["side"] for row in rows] == [0, 4, 8]
    clean = (predict(images).argmax(1) != labels).mean()
    value = np.float32(subject.task.config.normalize.mean) if fill == "mean" else np.float32([0])
    blank = (predict(np.full_like(images, value[0])).argmax(1) != labels).mean()
    assert rows[0]["center_top1_error"] == pytest.approx(clean, abs=0.004)
    assert rows[2]["boundary_top1_error"] == rows[0]["center_top1_error"]
    assert rows[2]["center_top1_error"] == pytest.approx(blank)
    assert rows[0]["boundary_top1_error"] == rows[2]["center_top1_error"]
    assert abs(clean - blank) > 0.003  # they differ


def test_sides_by_steps_and_by_pixels():
    assert occlusion.hole_sides(64, 8) == list(range(0, 65, 8))
    assert occlusion.hole_sides(224, 8, 32) == list(range(0, 225, 32))
    assert occlusion.hole_sides(33, 8, 16) == [0, 16, 32, 33]
    with pytest.raises(UserError, match=r"occlusion\.fill is 'white'.*'mean', 'black'"):
        occlusion.fill_value(None, "white")


def test_pairs_are_rings():
    pairs = between.draw_pairs(50, 120, seed=3)
    assert pairs.shape == (120, 2)
    for ring in (pairs[:50], pairs[50:100]):
        for column in ring.T:
            assert sorted(column) == list(range(50))
    assert (pairs[:, 0] != pairs[:, 1]).all()
    np.testing.assert_array_equal(pairs, between.draw_pairs(50, 120, seed=3))
    assert (pairs != between.draw_pairs(50, 120, seed=4)).any()
    assert between.draw_pairs(1, 2).tolist() == [[0, 0], [0, 0]]  # there is no other one


def test_blend_against_slices():
    random = np.random.RandomState(0)
    a, b = random.uniform(0, 1, (2, 3, 8, 8, 1)).astype(np.float32)
    nothing = occlusion.center_box(0, 8, 8)
    for lam in (0.0, 0.3, 1.0):
        expected = lam * a + (1 - lam) * b
        np.testing.assert_allclose(between.blend(a, b, lam, nothing), expected, atol=1e-6)
    expected = a.copy()
    expected[:, 2:6, 2:6] = b[:, 2:6, 2:6]
    box = occlusion.center_box(4, 8, 8)
    np.testing.assert_array_equal(between.blend(a, b, np.float32(1), box), expected)


def test_in_between_at_its_ends_is_the_images_themselves(subject, pixels, predict):
    images, labels = pixels
    options = subject.task.config.evals.between.copy_and_resolve_references()
    options.update({"lam_steps": 2, "steps": 2, "pairs": 400})
    report = between.run(subject, options)
    rows = {(row["form"], row["at"]): row for row in report.rows}
    assert report.values["pairs"] == 400
    pairs = between.draw_pairs(297, 400, options.seed)
    logits = predict(images)
    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    for end, column in ((1.0, 0), (0.0, 1)):
        shown = pairs[:, column]
        wanted = labels[pairs]
        error = (logits[shown].argmax(1)[:, None] != wanted).all(1).mean()
        neither = np.mean(
            [1 - sum(probs[i][list(set(pair))]) for i, pair in zip(shown, wanted, strict=True)]
        )
        for form, at in (("mixup", end), ("cutmix", 8 * (1 - end))):
            assert rows[form, at]["error"] == pytest.approx(error, abs=0.006)
            assert rows[form, at]["prob_neither"] == pytest.approx(neither, abs=1e-4)
    # Between the ends, the two forms are different images.
    assert rows["mixup", 0.5]["prob_neither"] != rows["cutmix", 4]["prob_neither"]
