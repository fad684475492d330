"""How plans are distributed. Seeds are fixed, and thresholds are four standard errors wide."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cutmix_jax import mix
from cutmix_jax.mix.sample import PARTNERS

DRAWS = 200_000


def draw(sampler, seed=0, draws=DRAWS, sides=(32, 32), **options):
    """Returns the plans of many keys, as NumPy arrays with the keys first."""
    keys = jax.random.split(jax.random.key(seed), draws)
    plans = jax.jit(jax.vmap(lambda key: sampler(key, 1, sides, **options)))(keys)
    return jax.tree.map(np.asarray, plans)


def close(values, expected, errors=4):
    """Whether the mean is within that many standard errors of the expected one."""
    return abs(values.mean() - expected) < errors * values.std() / np.sqrt(len(values)) + 5e-5


# Exact enumeration of the authors' rule for alpha = 1: mean, standard deviation, least, P(empty),
# P(lam < 1/2), and the quantiles of 5, 25, 50, 75, 95 %.
PAPER = {
    7: (0.7645, 0.177, 0.2653, 0.0816, 0.087, 0.388, 0.673, 0.755, 0.918, 1.000),
    8: (0.7674, 0.158, 0.4375, 0.0625, 0.062, 0.438, 0.625, 0.766, 0.938, 1.000),
    32: (0.7007, 0.183, 0.1211, 0.0039, 0.145, 0.367, 0.578, 0.719, 0.850, 0.965),
    33: (0.6994, 0.184, 0.0597, 0.0037, 0.155, 0.366, 0.576, 0.714, 0.846, 0.967),
    224: (0.6822, 0.188, 0.0178, 0.0001, 0.174, 0.343, 0.556, 0.696, 0.831, 0.960),
}


@pytest.mark.parametrize("side", PAPER)
def test_lam_of_the_authors_box(side):
    mean, deviation, least, empty, below_half, *quantiles = PAPER[side]
    lam = draw(mix.sample_cutmix, seed=side, sides=(side, side), box="paper").lam[:, 0]
    assert close(lam, mean)
    assert lam.std() == pytest.approx(deviation, abs=1e-3)
    assert lam.min() >= least - 1e-4
    if side < 224:  # if the samples are enough to see the minimum
        assert lam.min() <= least + 0.005
    assert close(lam == 1, empty)
    assert close(lam < 0.5, below_half, errors=5)
    # lam has steps: the fractions below a quantile, and up to it, enclose the expected one.
    for share, quantile in zip((0.05, 0.25, 0.5, 0.75, 0.95), quantiles, strict=True):
        error = 4 * np.sqrt(share * (1 - share) / DRAWS)
        assert (
            np.mean(lam < quantile - 1e-3) - error < share < np.mean(lam < quantile + 1e-3) + error
        )


@pytest.mark.parametrize("side", [32, 33, 224])
def test_mean_lam_of_the_exact_box(side):
    lam = draw(mix.sample_cutmix, sides=(side, side)).lam[:, 0]
    assert lam.mean() == pytest.approx(163 / 240, abs=2e-3)


@pytest.mark.parametrize(("alpha", "mean"), [(0.25, 0.699), (0.5, 0.689), (2, 0.672), (4, 0.667)])
def test_mean_lam_of_other_alphas(alpha, mean):
    lam = draw(mix.sample_cutmix, sides=(224, 224), alpha=alpha).lam[:, 0]
    assert lam.mean() == pytest.approx(mean, abs=2.5e-3)


@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.5, 1.0, 2.0, 4.0])
def test_lambda_before_clipping_is_beta(alpha):
    lam = draw(mix.sample_mixup, seed=11, alpha=alpha).lam[:, 0].astype(float)
    # Above one half float32 rounds to 1. Below, it distinguishes small values.
    assert close(lam < 0.5, 0.5)
    smaller = lam[lam < 0.5]
    fit = stats.kstest(smaller, lambda x: 2 * stats.beta.cdf(x, alpha, alpha))
    assert fit.pvalue > 1e-3
    larger = 1 - lam[(lam > 0.5) & (lam < 0.999)]
    part = [stats.beta.cdf(x, alpha, alpha) for x in (0.001, 0.5)]
    fit = stats.kstest(
        larger, lambda x: (stats.beta.cdf(x, alpha, alpha) - part[0]) / (part[1] - part[0])
    )
    assert fit.pvalue > 1e-3


def test_sampled_lambda_is_kept_if_it_is_not_corrected():
    lam = draw(mix.sample_cutmix, correct_lam=False).lam[:, 0]
    assert stats.kstest(lam, stats.uniform.cdf).pvalue > 1e-3


def test_center_is_uniform_and_the_exact_box_has_no_side():
    low = draw(mix.sample_cutmix, sides=(9, 9), size=1).box[:, 0, 0]
    for axis in (0, 1):
        assert stats.chisquare(np.bincount(low[:, axis], minlength=9)).pvalue > 1e-3

    box = draw(mix.sample_cutmix).box[:, 0]
    cover = [(box[:, 0, 0] <= i) & (i < box[:, 1, 0]) & (box[:, 1, 1] > 0) for i in range(32)]
    cover = np.mean(cover, axis=1)
    np.testing.assert_allclose(cover, cover[::-1], atol=5e-3)


def test_authors_box_leans_to_the_left():
    box = draw(mix.sample_cutmix, box="paper").box[:, 0, :, 0]
    first, last, middle = (np.mean((box[:, 0] <= i) & (i < box[:, 1])) for i in (0, 31, 16))
    assert (first, last, middle) == pytest.approx((0.3485, 0.3174, 0.635), abs=5e-3)


@pytest.mark.parametrize("scope", ["batch", "image"])
def test_prob_is_how_often_it_mixes(scope):
    @jax.jit
    def draw(keys, prob):
        options = {"prob": prob, "scope": scope, "size": 16, "label": "complete"}
        return jax.vmap(lambda key: mix.sample_cutmix(key, 2, (32, 32), **options).lam[0])(keys)

    keys = jax.random.split(jax.random.key(0), 40_000)
    for prob in (0.0, 0.25, 1.0):
        assert close(np.asarray(draw(keys, prob)) == 0.5, prob)


def test_weights_are_how_often_each_is_taken():
    parts = [mix.create_mix("cutmix"), mix.create_mix("mixup")]
    keys = jax.random.split(jax.random.key(0), 40_000)

    @jax.jit
    def draw(keys, weights):
        mixing = mix.random_choice(*parts, weights=weights)
        return jax.vmap(lambda key: mixing.sample(key, 1, (64, 64)))(keys)

    for second in (0.0, 0.3, 1.0):
        cut, blend = draw(keys, (1 - second, second))
        assert close(np.asarray(blend.ratio[:, 0]) < 1, second)
        assert not ((cut.lam < 1) & (blend.lam < 1)).any()


@pytest.mark.parametrize("box", ["exact", "paper"])
def test_fixed_size(box):
    lam = draw(mix.sample_cutmix, size=16, box=box).lam[:, 0]
    assert close(lam, 0.8086)
    assert close(lam == 0.75, (17 / 32) ** 2)
    assert (lam.min(), lam.max()) == (0.75, 0.9375)


@pytest.mark.parametrize(("sigma", "mean"), [(1 / 4, 0.632), (1 / 6, 0.574), (1 / 8, 0.546)])
def test_center_gaussian(sigma, mean):
    options = {"placement": "gaussian", "sigma": sigma, "sides": (224, 224)}
    lam = draw(mix.sample_cutmix, **options).lam[:, 0]
    assert lam.mean() == pytest.approx(mean, abs=2e-3)


def test_one_hot_takes_the_larger_share():
    plans = draw(mix.sample_cutmix, seed=3, box="paper", label="one_hot")
    kept = draw(mix.sample_cutmix, seed=3, box="paper").lam
    np.testing.assert_array_equal(plans.lam, kept >= 0.5)
    assert close(plans.lam[:, 0] == 0, 0.145)


def test_cutout_removes_its_share():
    plans = draw(mix.sample_cutout, size=16, fill=0.0, box="paper")
    kept = jax.jit(jax.vmap(mix.kept_fraction))(plans)
    assert close(1 - np.asarray(kept)[:, 0], (14 / 32) ** 2)
    assert (plans.lam == 1).all()


@pytest.mark.parametrize("sides", [(64,), (24, 40), (16, 20, 12)])
def test_side_exponent_by_the_number_of_sides(sides):
    lam = draw(mix.sample_cutmix, sides=sides, placement="inside", draws=50_000).lam[:, 0]
    # Unclipped, the pasted area is the sampled one, up to the rounding of height and width.
    assert lam.mean() == pytest.approx(0.5, abs=0.01)
    quantiles = np.quantile(lam, [0.1, 0.3, 0.7, 0.9])
    np.testing.assert_allclose(quantiles, [0.1, 0.3, 0.7, 0.9], atol=0.03)


@pytest.fixture(scope="module")
def erased():
    """20,000 boxes of random erasing in images of 60x90: (top, left, bottom, right)."""
    plans = draw(mix.sample_erasing, sides=(60, 90), draws=20_000, prob=0.25)
    return plans.box.reshape(20_000, 4).T


def test_boxes_to_erase_have_the_papers_distribution(erased):
    top, left, bottom, right = erased
    height, width = bottom - top, right - left
    some = height > 0
    assert close(some, 0.25, errors=5)
    assert min(top.min(), left.min()) == 0
    assert (bottom <= 60).all()
    assert (right <= 90).all()
    # By Monte Carlo from the definition, with NumPy's random numbers.
    random = np.random.default_rng(0)
    area = random.uniform(0.02, 0.33, 200_000) * 60 * 90
    aspect = np.exp(random.uniform(np.log(0.3), np.log(3.3), 200_000))
    h, w = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
    h, w = h[(h < 60) & (w < 90)], w[(h < 60) & (w < 90)]
    for got, want in ((height, h), (width, w), (height * width, h * w)):
        for quantile in (0.05, 0.25, 0.5, 0.75, 0.95):
            expected = np.quantile(want, quantile)
            assert abs(np.quantile(got[some], quantile) - expected) < 0.06 * expected + 1
    for start, length, size in ((top, height, 60), (left, width, 90)):
        part = (start[some] + 0.5) / (size - length[some] + 1)
        assert abs(part.mean() - 0.5) < 0.015
        assert abs(part.std() - 1 / np.sqrt(12)) < 0.015


def test_area_and_aspect_of_boxes_that_always_fit_are_uniform():
    options = {"area": (0.1, 0.4), "aspect": (0.5, 2.0), "sides": (4000, 4000)}
    box = draw(mix.sample_erasing, draws=20_000, **options).box[:, 0].astype(float)
    height, width = (box[:, 1] - box[:, 0]).T
    for found, low, high in (
        (height * width / 4000**2, 0.1, 0.4),
        (np.log(height / width), -np.log(2), np.log(2)),
    ):
        assert stats.kstest(found, stats.uniform(low, high - low).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(height * width, np.log(height / width))[0, 1]) < 4 / np.sqrt(20_000)


@pytest.mark.parametrize("sides", [(40,), (224, 160), (30, 40, 50)])
def test_uniform_lengths_are_independent_and_between_their_bounds(sides):
    options = {"lengths": "uniform", "min_ratio": 0.2, "max_ratio": 0.8, "placement": "inside"}
    plans = draw(mix.sample_cutmix, sides=sides, draws=50_000, **options)
    lengths = (plans.box[:, 0, 1] - plans.box[:, 0, 0]).astype(float)
    for length, side in zip(lengths.T, sides, strict=True):
        whole = np.arange(side + 1)
        edges = np.clip((np.stack([whole - 0.5, whole + 0.5]) - 0.2 * side) / (0.6 * side), 0, 1)
        counts = np.bincount(length.astype(int), minlength=side + 1)
        likely = (edges[1] - edges[0]) > 1e-6  # 0.2 and 0.8 of a side, rounded in float32
        assert counts[~likely].sum() == 0
        expected = (edges[1] - edges[0])[likely] * len(length)
        fit = stats.chisquare(counts[likely], expected * counts[likely].sum() / expected.sum())
        assert fit.pvalue > 1e-3
    if len(sides) > 1:
        off = np.corrcoef(lengths.T)[np.triu_indices(len(sides), 1)]
        assert np.abs(off).max() < 4 / np.sqrt(len(lengths))
    # The mean area of independent lengths with mean 1/2.
    assert plans.lam.mean() == pytest.approx(1 - 0.5 ** len(sides), abs=4e-3)


def test_one_fixed_point_of_the_permutation_on_average():
    keys = jax.random.split(jax.random.key(0), 20_000)
    partners = jax.jit(jax.vmap(lambda key: mix.sample_cutmix(key, 7, (8, 8)).partner))(keys)
    assert close((np.asarray(partners) == np.arange(7)).sum(1), 1)


def permutations(size, draws):
    keys = jax.random.split(jax.random.key(0), draws)
    return np.asarray(jax.vmap(lambda key: PARTNERS["permutation"](key, size))(keys))


def test_all_permutations_are_as_frequent():
    orders, counts = np.unique(permutations(4, 24_000), axis=0, return_counts=True)
    assert len(orders) == 24
    assert stats.chisquare(counts).pvalue > 1e-3
    for size in (1, 2, 255, 256, 257, 1024, 1025):
        assert sorted(permutations(size, 1)[0]) == list(range(size))


def test_equal_words_of_the_permutation_fall_in_either_order(monkeypatch):
    bits = jax.random.bits
    monkeypatch.setattr(jax.random, "bits", lambda *args: bits(*args) & 7)  # the index has these
    places = np.argsort(permutations(5, 20_000), axis=1)
    for i, j in itertools.combinations(range(5), 2):
        assert close(places[:, i] < places[:, j], 0.5)


def test_a_layer_is_sampled_per_batch():
    mixing = mix.create_mix("feature_cutmix", label="complete")
    sides = dict(zip(mixing.layers, [(32, 32), (32, 32), (32, 32), (16, 16), (8, 8)], strict=True))
    keys = jax.random.split(jax.random.key(0), 20_000)
    plans = jax.jit(jax.vmap(lambda key: mixing.sample(key, 2, sides)))(keys)
    active = np.stack([plan.lam[:, 0] < 1 for plan in plans], axis=1)
    assert (active.sum(1) == 1).all()
    assert stats.chisquare(active.sum(0)).pvalue > 1e-3


@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
def test_scheduled_grows_with_progress(progress):
    mixing = mix.create_mix("scheduled_cutmix", prob=0.8, label="complete")
    keys = jax.random.split(jax.random.key(0), 20_000)

    def draw(key, progress):
        return mixing.sample(key, 2, (32, 32), progress=progress)[0].lam

    lam = jax.jit(jax.vmap(draw, in_axes=(0, None)))(keys, jnp.float32(progress))
    assert close(np.asarray(lam)[:, 0] < 1, 0.8 * progress)


def test_nothing_is_mixed_after_until():
    mixing = mix.create_mix("cutmix", until=0.9, label="complete")
    lam = [
        mixing.sample(jax.random.key(0), 2, (8, 8), progress=progress)[0].lam[0]
        for progress in (0.0, 0.9, 0.91, 1.0)
    ]
    assert lam == [0.5, 0.5, 1, 1]
