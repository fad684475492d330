"""Beam search: all captions enumerated, plain loops, and what never happens."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutmix_jax.captioning import search

PAD, START, END, UNKNOWN = range(4)
SIZE, WORDS, T = 8, (4, 5, 6, 7), 5
STATES, IMAGES = 997, 6


@pytest.fixture(scope="module")
def table():
    """Random logits for each image and each state, which depends on all tokens so far."""
    return np.random.RandomState(0).normal(0, 1.5, (IMAGES, STATES, SIZE)).astype(np.float32)


def next_state(state, token):
    return (31 * state + token + 7) % STATES


@functools.partial(jax.jit, static_argnames=("beam", "unknown"))
def run(table, beam, length_power=0.0, unknown=False):
    """The search with the image and the state as carry, in two arrays of different form."""
    start = {"image": jnp.arange(len(table)), "state": jnp.zeros((len(table), 1), int)}

    def step(carry, tokens):
        state = next_state(carry["state"], tokens[:, None])
        return carry | {"state": state}, table[carry["image"], state[:, 0]]

    return search.beam_search(step, start, len(table), beam, T, SIZE, length_power, unknown=unknown)


def logs_of(logits):
    logits = logits.astype(float)
    return logits - np.log(np.exp(logits).sum())


def score(logits, tokens, power):
    """By the definition, for one image; `tokens` without pads."""
    state, last, total = 0, START, 0
    for token in tokens:
        state = next_state(state, last)
        total += logs_of(logits[state])[token]
        last = token
    return total / len(tokens) ** power


def padded(tokens):
    return [*tokens, *[PAD] * (T - len(tokens))]


def all_captions():
    for length in range(T):
        for words in itertools.product(WORDS, repeat=length):
            yield (*words, END)
    yield from itertools.product(WORDS, repeat=T)


@pytest.mark.parametrize("power", [0.0, 0.7, 1.0])
def test_a_wide_beam_finds_the_best_of_all_captions(table, power):
    captions = list(all_captions())
    assert len(captions) == sum(4**n for n in range(T + 1))
    found, scores = run(table, 256, power)
    assert found.dtype == jnp.int32
    lengths = set()
    for i in range(IMAGES):
        every = [score(table[i], caption, power) for caption in captions]
        best = captions[int(np.argmax(every))]
        lengths.add(len(best))
        assert found[i, 0].tolist() == padded(best)
        np.testing.assert_allclose(scores[i, 0], max(every), rtol=1e-5)
        own = [score(table[i], [t for t in row if t != PAD], power) for row in found[i].tolist()]
        np.testing.assert_allclose(scores[i], own, rtol=1e-5)
    assert len(lengths) > 1 or power == 1


def plain_beam(logits, beam, power, allowed=(END, *WORDS)):
    """(score, tokens) of the captions that stay, best first; lists instead of arrays."""
    kept = [(0.0, 0.0, 0, ())]
    for _ in range(T):
        longer = []
        for rank, total, state, tokens in kept:
            if tokens[-1:] == (END,):
                longer.append((rank, total, state, tokens))
                continue
            state = next_state(state, (START, *tokens)[-1])
            logs = logs_of(logits[state])
            for token in allowed:
                new = total + logs[token]
                rank = new / (len(tokens) + 1) ** power
                longer.append((rank, new, state, (*tokens, token)))
        kept = sorted(longer, reverse=True)[:beam]
    return [(rank, tokens) for rank, _, _, tokens in kept]


@pytest.mark.parametrize(("beam", "power"), [(2, 0.0), (3, 1.0)])
def test_a_narrow_beam_is_a_plain_loop(table, beam, power):
    found, scores = run(table, beam, power)
    for i in range(IMAGES):
        want = plain_beam(table[i], beam, power)
        assert found[i].tolist() == [padded(tokens) for _, tokens in want]
        np.testing.assert_allclose(scores[i], [rank for rank, _ in want], rtol=1e-5)


def plain_greedy(logits, allowed=(END, *WORDS)):
    state, tokens = 0, [START]
    while len(tokens) <= T and tokens[-1] != END:
        state = next_state(state, tokens[-1])
        tokens.append(max(allowed, key=lambda token: logits[state, token]))
    return tokens[1:]


def test_a_beam_of_one_is_greedy():
    table = np.random.RandomState(1).normal(0, 1, (200, STATES, SIZE)).astype(np.float32)
    found, _ = run(table, 1)
    want = [plain_greedy(logits) for logits in table]
    assert found[:, 0].tolist() == [padded(tokens) for tokens in want]
    assert {len(tokens) for tokens in want} == {1, 2, 3, 4, 5}
    found, _ = run(table, 1, 1.0)
    assert found[:, 0].tolist() == [padded(tokens) for tokens in want]


def test_greedy_drops_the_axis_of_the_beam(table):
    def step(carry, tokens):
        state = next_state(carry[1], tokens)
        return (carry[0], state), jnp.asarray(table)[carry[0], state]

    start = jnp.arange(IMAGES), jnp.zeros(IMAGES, int)
    tokens, scores = search.greedy(step, start, IMAGES, T, SIZE)
    want, sums = run(table, 1)
    np.testing.assert_array_equal(tokens, want[:, 0])
    np.testing.assert_allclose(scores, sums[:, 0], rtol=1e-6)  # this one is not compiled


def test_unknown_is_an_option(table):
    table = table + 3 * (np.arange(SIZE) == UNKNOWN)
    found, scores = run(table, 3, unknown=True)
    assert (found == UNKNOWN).any()
    for i in range(IMAGES):
        want = plain_beam(table[i], 3, 0.0, (END, UNKNOWN, *WORDS))
        assert found[i].tolist() == [padded(tokens) for _, tokens in want]
        np.testing.assert_allclose(scores[i], [rank for rank, _ in want], rtol=1e-5)


@pytest.mark.parametrize("favored", range(SIZE))
def test_captions_have_their_form(table, favored):
    """Also if the network would write pads, starts, unknown words, ends or one word alone."""
    found, scores = map(np.asarray, run(table + 20.0 * (np.arange(SIZE) == favored), 20))
    assert np.isfinite(scores).all()
    assert (np.diff(scores) <= 0).all()
    for row in found.reshape(-1, T).tolist():
        words = list(itertools.takewhile(lambda token: token in WORDS, row))
        assert row in (words, padded([*words, END]))
    for own in found.tolist():
        assert len(set(map(tuple, own))) == 20


def test_fewer_captions_than_beams_are_filled_with_pads():
    """With one word and two tokens there are three captions."""

    def step(carry, tokens):
        return carry, jnp.zeros((len(tokens), 5))

    found, scores = search.beam_search(step, (), 1, 6, 2, 5)
    assert sorted(found[0, :3].tolist()) == [[2, 0], [4, 2], [4, 4]]
    assert not found[0, 3:].any()
    np.testing.assert_allclose(np.exp(scores[0]), [0.2, 0.04, 0.04, 0, 0, 0], rtol=1e-6)


def test_every_image_is_searched_alone(table):
    found, scores = run(table, 3)
    alone = [run(table[i : i + 1], 3) for i in range(IMAGES)]
    np.testing.assert_array_equal(found, np.concatenate([tokens for tokens, _ in alone]))
    np.testing.assert_allclose(scores, np.concatenate([own for _, own in alone]), rtol=1e-6)


def test_without_jit_it_is_the_same(table):
    with jax.disable_jit():
        found, scores = run.__wrapped__(jnp.asarray(table[:2]), 2, 0.7)
    want = run(table[:2], 2, 0.7)
    np.testing.assert_array_equal(found, want[0])
    np.testing.assert_allclose(scores, want[1], rtol=1e-5)


def test_refuses_wrong_arguments(table):
    def step(carry, tokens):
        return carry, jnp.zeros((len(tokens), 7))

    with pytest.raises(ValueError, match="beam is 0"):
        search.beam_search(step, (), 1, 0, 5, 7)
    with pytest.raises(ValueError, match="max_words is 0"):
        search.greedy(step, (), 1, 0, 7)
    with pytest.raises(ValueError, match=r"shapes \[\(3, 2\), \(\)\]"):
        search.greedy(step, (jnp.zeros((3, 2)), 0.0), 3, 5, 7)
    with pytest.raises(ValueError, match=r"shape \(6, 7\).* = \[6, 8\]"):
        search.beam_search(step, (), 3, 2, 5, 8)
