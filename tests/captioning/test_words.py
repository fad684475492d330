"""Tokens against nltk's, and the vocabulary against rows written by hand."""

import collections
import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from cutmix_jax.captioning import words
from cutmix_jax.captioning.words import SPECIAL, Vocabulary, tokenize
from tests.commands import REPOSITORY

VOCABULARY = Vocabulary((*SPECIAL, "a", "dog", "cat", "."))


def test_the_import_is_light():
    """Until a caption is split or scored, nothing that captions alone need is imported."""
    code = (
        "import sys, cutmix_jax.captioning; assert not {'nltk', 'pycocoevalcap'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_a_missing_nltk_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk.tokenize.destructive", None)
    words._tokenizer.cache_clear()
    with pytest.raises(ValueError, match="pip install nltk"):
        tokenize("a dog")


@pytest.fixture(scope="module")
def captions(caption_sample):
    return [caption for found in caption_sample.values() for caption in found]


def test_real_captions_are_split_as_nltk_does(captions):
    from nltk.tokenize import NLTKWordTokenizer

    for caption in captions:  # none has a second sentence
        assert tokenize(caption) == NLTKWordTokenizer().tokenize(caption.lower()), caption


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog", "a dog"),
        ("A dog. ", "a dog ."),
        ("A dog.  Two CATS!  Why? ", "a dog . two cats ! why ?"),
        ("a\ndog\tand a cat.\n", "a dog and a cat ."),
        ("He can't. They cannot", "he ca n't . they can not"),
        ("I wanna cannot", "i wan na can not"),
        ("they wanna", "they wan na"),
        ("a man's t-shirt, his dogs'", "a man 's t-shirt , his dogs '"),
        ('a sign says "stop"', "a sign says `` stop ''"),
        ("a u.s. flag. at 10 a.m. today", "a u.s. flag . at 10 a.m. today"),
        ("mr. and mrs. x. a st. bernard.", "mr. and mrs. x. a st. bernard ."),
        ("cats... and 1,000 dogs...", "cats ... and 1,000 dogs ..."),
        ("Un café à 5°", "un café à 5°"),
        (" . ", "."),
        ("", ""),
        (" \n", ""),
    ],
)
def test_tokens(text, expected):
    assert tokenize(text) == expected.split()


def test_joined_tokens_are_the_same_tokens(captions):
    for caption in captions:
        assert tokenize(" ".join(tokenize(caption))) == tokenize(caption)


@pytest.mark.parametrize("text", [None, 3, ["a dog"]])
def test_a_caption_is_a_text(text):
    with pytest.raises(ValueError, match="a str was expected"):
        tokenize(text)


def test_words_are_counted_and_in_the_order_of_appearance(captions):
    counts = collections.Counter()
    for caption in captions:
        counts.update(tokenize(caption))
    for least in (1, 4, 30):
        found = Vocabulary.build(iter(captions), least).words
        assert found[:4] == SPECIAL
        assert set(found[4:]) == {word for word, count in counts.items() if count >= least}
        assert list(found[4:]) == [word for word in counts if word in found[4:]]


def test_rows_are_start_words_end_and_padding():
    captions = ["A dog.", "", "a a a a", "a a a a a", "the dog", "a cat a dog a cat"]
    got = VOCABULARY.encode(captions, max_words=4)
    assert got.dtype == np.int32
    assert got.tolist() == [
        [1, 4, 5, 7, 2, 0],
        [1, 2, 0, 0, 0, 0],
        [1, 4, 4, 4, 4, 2],
        [1, 4, 4, 4, 4, 0],  # cut: no end
        [1, 3, 5, 2, 0, 0],
        [1, 4, 6, 4, 5, 0],
    ]
    assert VOCABULARY.encode([]).shape == (0, 22)


def test_decoding_inverts_encoding(captions):
    vocabulary = Vocabulary.build(captions, 1)
    for caption, row in zip(captions, vocabulary.encode(captions, 60), strict=True):
        assert vocabulary.decode(row).split(" ") == tokenize(caption)
        assert vocabulary.decode(jnp.asarray(row)) == vocabulary.decode(row)


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([4, 5, 2, 6], "a dog"),
        ([1, 0, 4, 0, 5], "a dog"),
        ([4, 3], "a <unknown>"),
        ([2, 4], ""),
        ([], ""),
    ],
)
def test_decoding(ids, text):
    assert VOCABULARY.decode(ids) == text


def test_a_vocabulary_survives_a_list():
    """A checkpoint keeps a list of words."""
    again = Vocabulary(json.loads(json.dumps(VOCABULARY.words)))
    assert again == VOCABULARY
    assert hash(again) == hash(VOCABULARY)
    assert len(again) == 8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Vocabulary(("a", "dog")), "starts with"),
        (lambda: Vocabulary((*SPECIAL, "a", "dog", "a")), "'a' twice"),
        (lambda: Vocabulary.build(["a dog", "a cat"], 3), "occurs 2 times"),
        (lambda: Vocabulary.build([]), "occurs 0 times"),
        (lambda: Vocabulary.build(["a dog"], 0), "min_count is 0"),
        (lambda: Vocabulary.build("a dog"), "a list of them"),
        (lambda: VOCABULARY.encode("a dog"), "a list of them"),
        (lambda: VOCABULARY.encode(["a dog"], 0), "max_words is 0"),
        (lambda: VOCABULARY.decode([[1, 4]]), "one caption at a time"),
        (lambda: VOCABULARY.decode([1.0, 4.0]), "dtype float64"),
        (lambda: VOCABULARY.decode([4, 8]), "from 4 to 8"),
        (lambda: VOCABULARY.decode([-1]), "from -1 to -1"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
