"""The most probable captions of a network, by beam search under jit."""

import jax
import jax.numpy as jnp
from jax import lax

from cutmix_jax.captioning.words import END, PAD, START, UNKNOWN


def beam_search(
    step,
    carry,
    batch,
    beam,
    max_words,
    vocabulary_size,
    length_power=0.0,
    *,
    unknown=False,
):
    r"""The best captions that a beam search finds, with their scores.

    The score of a caption of n tokens :math:`w_1, \dots, w_n` with the power p is

    .. math::

        s = \frac{1}{n^p} \sum_{t=1}^n \log P(w_t \mid \text{image}, w_1, \dots, w_{t-1})

    The end token counts as a token. In every step, each caption is continued by every token, and
    those with the best scores stay. A caption that has its end stays as it is and competes with the
    others. After `max_words` tokens, captions without an end are cut. Pad, start and unknown are
    never chosen. Probabilities are those of the network, not normalized again over what is left.

    Args:
        step: `(carry, tokens) -> (carry, logits)` for int32 tokens `[n]`, the last ones of n
            captions, and float logits `[n, V]` of the next ones. Dtypes and shapes of the carry
            stay.
        carry: any pytree of arrays with leading axis b: what `step` knows of each image before the
            first word.
        batch: b, number of images; static.
        beam: K, number of captions that are kept per image; static.
        max_words: T, number of tokens of the longest caption; static.
        vocabulary_size: V; static.
        length_power: p; 0 prefers short captions, 1 is the mean over the tokens. May be traced.
        unknown: whether the unknown word may be chosen; static.

    Returns:
        `(tokens, scores)`: int32 `[b, K, T]`, words, then the end, then pads; float32 `[b, K]`,
        best first. If there are fewer than K captions at all, the rest are pads with a score of
        minus infinity.

    Raises:
        ValueError: a number is too small, or the shapes of the carry or of the logits do not fit.

    Example:
        >>> chances = jnp.full([6, 6], 1e-9)  # of the next token (columns) after each token (rows)
        >>> chances = chances.at[START, 4:].set(jnp.array([0.6, 0.4]))  # the words are 4 and 5
        >>> chances = chances.at[4, END:].set(jnp.array([0.2, 0.6, 0.1, 0.1])).at[5, END].set(1.0)
        >>> def step(carry, tokens):
        ...   return carry, jnp.log(chances)[tokens]
        >>> tokens, scores = beam_search(step, (), 1, beam=2, max_words=3, vocabulary_size=6)
        >>> tokens.tolist(), [round(float(chance), 3) for chance in jnp.exp(scores[0])]
        ([[[5, 2, 0], [4, 2, 0]]], [0.4, 0.12])

    Reference:
        Vinyals, Toshev, Bengio, Erhan. Show and Tell: A Neural Image Caption Generator. CVPR 2015,
        section 3.1. The power of the length is the option of later systems.
    """
    numbers = {"batch": batch, "beam": beam, "max_words": max_words}
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} is {value}, but at least 1 was expected.")
    shapes = [jnp.shape(x) for x in jax.tree.leaves(carry)]
    if any(shape[:1] != (batch,) for shape in shapes):
        raise ValueError(
            f"The arrays of the carry have the shapes {shapes}, but the first axis of each was "
            f"expected to be batch={batch}."
        )
    never = jnp.array([PAD, START] if unknown else [PAD, START, UNKNOWN])
    forbidden = jnp.zeros(vocabulary_size).at[never].set(-jnp.inf)
    only_pad = jnp.full(vocabulary_size, -jnp.inf).at[PAD].set(0)
    firsts = beam * jnp.arange(batch)[:, None]  # the row of each image's first caption

    def extend(state, t):
        carry, captions, last, sums, lengths = state
        carry, logits = step(carry, last.reshape(-1))
        if logits.shape != (batch * beam, vocabulary_size):
            raise ValueError(
                f"The logits have shape {logits.shape}, but [batch * beam, vocabulary_size] = "
                f"[{batch * beam}, {vocabulary_size}] was expected."
            )
        finished = (last == END) | (last == PAD)
        logs = jax.nn.log_softmax(logits.astype(jnp.float32)) + forbidden
        logs = jnp.where(finished[..., None], only_pad, logs.reshape(batch, beam, -1))
        sums = sums[..., None] + logs
        lengths += ~finished
        scores = sums / lengths[..., None].astype(jnp.float32) ** length_power
        scores, best = lax.top_k(scores.reshape(batch, -1), beam)
        parents, last = jnp.divmod(best, vocabulary_size)
        rows = (firsts + parents).reshape(-1)
        captions = jnp.take_along_axis(captions, parents[..., None], axis=1)
        state = (
            jax.tree.map(lambda x: x[rows], carry),
            captions.at[..., t].set(last),
            last,
            jnp.take_along_axis(sums.reshape(batch, -1), best, axis=1),
            jnp.take_along_axis(lengths, parents, axis=1),
        )
        return state, scores

    start = (
        jax.tree.map(lambda x: jnp.repeat(x, beam, axis=0), carry),
        jnp.full((batch, beam, max_words), PAD),
        jnp.full((batch, beam), START),
        # All captions of an image are alike at the start. One of them is continued.
        jnp.full((batch, beam), -jnp.inf).at[:, 0].set(0),
        jnp.zeros((batch, beam), jnp.int32),
    )
    (_, captions, *_), scores = lax.scan(extend, start, jnp.arange(max_words))
    scores = scores[-1]
    return jnp.where(scores[..., None] == -jnp.inf, PAD, captions), scores


def greedy(step, carry, batch, max_words, vocabulary_size, *, unknown=False):
    """The caption of the most probable next words: a beam search that keeps one caption.

    Args:
        step: as for `beam_search`.
        carry: as for `beam_search`.
        batch: b, number of images; static.
        max_words: T, number of tokens of the longest caption; static.
        vocabulary_size: V; static.
        unknown: whether the unknown word may be chosen; static.

    Returns:
        `(tokens, scores)`: int32 `[b, T]`, and float32 `[b]`, the sum of the log probabilities.

    Raises:
        ValueError: as for `beam_search`.

    Example:
        >>> following = jnp.array([0, 5, 0, 0, 2, 4])  # after the start 5, then 4, then the end
        >>> def step(carry, tokens):
        ...   return carry, 50.0 * jax.nn.one_hot(following[tokens], 6)
        >>> tokens, scores = greedy(step, (), 1, max_words=5, vocabulary_size=6)
        >>> tokens.tolist(), scores.tolist()
        ([[5, 4, 2, 0, 0]], [0.0])

    Reference:
        As for `beam_search`.
    """
    tokens, scores = beam_search(step, carry, batch, 1, max_words, vocabulary_size, unknown=unknown)
    return tokens[:, 0], scores[:, 0]
