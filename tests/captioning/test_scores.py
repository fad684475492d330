"""Scores against nltk, sacrebleu, plain versions, and COCO's programs in Java."""

import collections
import math
import sys
import warnings

import numpy as np
import pytest

from cutmix_jax.captioning import scores
from cutmix_jax.captioning.scores import ptb_tokens, score

LONG = "a man on a horse in front of a house near a tree with a dog and a cat and a bird on a wall"
HAND = [  # references, candidate
    (["A dog runs.", "The dog is running on grass!"], "a dog is running on the grass"),
    (["Two cats sleep on a red sofa."], "two cats sleep on a sofa"),
    (["A man rides a horse past a house.", "A horse."], LONG),
    (["A bird on a wall", "A wall with a bird on it", "bird"], ""),
    (["The the the cat"], "the the the the"),
    (["Two cats sleep on a red sofa."], "two cats sleep on a sofa"),
    (["Bus"], "bus"),
]
METEOR = 33.872627787402784  # of HAND and a caption with accents
KEYS = ["bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider"]


@pytest.fixture(scope="module")
def java():
    if not scores.java_available():
        pytest.skip("needs Java")


@pytest.fixture(scope="module", params=["hand", "coco"])
def pairs(request):
    """(references, candidates): written by hand; and of COCO, each caption against the others."""
    if request.param == "hand":
        return tuple(zip(*HAND, strict=True))
    found = [
        (own[:i] + own[i + 1 :], own[i])
        for own in request.getfixturevalue("caption_sample").values()
        for i in range(len(own))
    ]
    assert len(found) >= 200
    return tuple(zip(*found, strict=True))


@pytest.fixture(scope="module")
def scored(pairs):
    return score(*pairs)[0]


@pytest.fixture(scope="module")
def tokens(pairs):
    return [[ptb_tokens(r) for r in own] for own in pairs[0]], [ptb_tokens(c) for c in pairs[1]]


def test_tokens_are_those_of_java(java, caption_sample):
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    hard = [
        "A dog.  A cat! Why?",
        'The sign says "Stop."',
        "He can't, won't and cannot go (today).",
        "'quoted' and “quoted” and ‘quoted’ – it’s",
        "The U.S. flag at 10 a.m. today, Mr. Jones and a St. Bernard",
        "$5 or 50% of 1,000; a 5th 3/4 & #1: and/or",
        "cats... [x] {y} -- a t-shirt - the dogs' food ...",
        "un café",
    ]
    captions = [caption for own in caption_sample.values() for caption in own] + hard
    theirs = PTBTokenizer().tokenize({i: [{"caption": c}] for i, c in enumerate(captions)})
    for i, caption in enumerate(captions):
        assert ptb_tokens(caption) == theirs[i][0].split(), caption


def test_keys(scored):
    assert list(scored) == KEYS
    assert all(type(value) is float for value in scored.values())


def test_bleu_is_that_of_nltk(pairs):
    """Without candidates of fewer than 4 words, of which nltk counts a 4-gram."""
    from nltk.translate.bleu_score import corpus_bleu

    kept = [pair for pair in zip(*pairs, strict=True) if len(ptb_tokens(pair[1])) >= 4]
    references, candidates = zip(*kept, strict=True)
    got, _ = score(references, candidates)
    expected = corpus_bleu(
        [[ptb_tokens(r) for r in own] for own in references],
        [ptb_tokens(c) for c in candidates],
        weights=[(1 / n,) * n for n in range(1, 5)],
    )
    assert [got[key] for key in KEYS[:4]] == pytest.approx(100 * np.array(expected), rel=1e-6)


def test_bleu_is_that_of_sacrebleu(tokens, scored):
    from sacrebleu.metrics import BLEU

    references, candidates = tokens
    most = max(map(len, references))
    columns = [
        [" ".join(own[i]) if i < len(own) else None for own in references] for i in range(most)
    ]
    for n in range(1, 5):
        bleu = BLEU(max_ngram_order=n, tokenize="none", smooth_method="none", force=True)
        expected = bleu.corpus_score([" ".join(c) for c in candidates], columns).score
        assert scored[f"bleu{n}"] == pytest.approx(expected, rel=1e-6)


def plain_rouge(references, candidate):
    if not candidate:
        return 0.0

    def common(a, b):
        row = [0] * (len(b) + 1)
        for word in a:
            before, row = row, [0]
            for j, other in enumerate(b):
                row.append(before[j] + 1 if word == other else max(row[j], before[j + 1]))
        return row[-1]

    lengths = [common(own, candidate) for own in references]
    precision = max(lengths) / len(candidate)
    recall = max(length / len(own) for length, own in zip(lengths, references, strict=True))
    top = (1 + 1.2**2) * precision * recall
    return top / (recall + 1.2**2 * precision) if top else 0.0


def plain_cider(references, candidates):
    """float64 `[N]`: dense vectors over all n-grams of the references and candidates."""

    def counts(words, n):
        return collections.Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    total = np.zeros(len(candidates))
    for n in range(1, 5):
        sets = [{g for own in each for g in counts(own, n)} for each in references]
        names = sorted(set().union(*sets, *(counts(c, n) for c in candidates)))
        seen = np.array([sum(name in grams for grams in sets) for name in names])
        weights = np.log(len(references) / np.maximum(seen, 1))

        def vector(words, n=n, names=names, weights=weights):
            found = counts(words, n)
            return np.array([found[name] for name in names]) * weights

        for i, (own, candidate) in enumerate(zip(references, candidates, strict=True)):
            c = vector(candidate)
            for reference in own:
                r = vector(reference)
                norms = np.linalg.norm(c) * np.linalg.norm(r)
                far = math.exp(-((len(candidate) - len(reference)) ** 2) / (2 * 6**2))
                if norms > 0:
                    total[i] += 10 / 4 / len(own) * far * (np.minimum(c, r) @ r) / norms
    return total


def test_rouge_and_cider_are_those_of_plain_versions(pairs, tokens):
    scored, each = score(*pairs)
    rouge = [plain_rouge(*pair) for pair in zip(*tokens, strict=True)]
    np.testing.assert_allclose(each["rouge_l"], 100 * np.array(rouge), rtol=1e-12)
    np.testing.assert_allclose(each["cider"], 100 * plain_cider(*tokens), rtol=1e-9, atol=1e-9)
    assert each.keys() == {"rouge_l", "cider"}
    for key, values in each.items():
        assert values.dtype == np.float64
        assert scored[key] == values.mean()


def test_the_candidate_itself_is_perfect():
    captions = ["a dog runs on grass", "two cats sleep on a sofa"]
    scored, _ = score([[caption] for caption in captions], captions)
    assert [scored[key] for key in KEYS] == pytest.approx([100] * 5 + [1000], rel=1e-6)


@pytest.mark.parametrize(
    ("references", "candidate", "expected"),
    [
        (["A dog runs."], "", [0] * 6),
        (["A dog runs."], "...", [0] * 6),
        (["A dog runs."], "two cats", [0] * 6),
        (["A dog."], "a dog", [100, 100, 0, 0, 100, 0]),  # no 3-gram; of one image, log 1 = 0
        (["A dog.", "", "!"], "a dog", [100, 100, 0, 0, 100, 0]),
    ],
)
def test_one_image_of_few_words(references, candidate, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scored, _ = score([references], [candidate])
    assert [scored[key] for key in KEYS] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("references", "candidates", "message"),
    [
        ([], [], "0 images and 0 candidates"),
        ([["a dog"]], ["a dog", "a cat"], "1 images and 2 candidates"),
        ([["a dog"], []], ["a dog", "a cat"], r"references\[1\] has no caption with a word"),
        ([["...", ""]], ["a dog"], r"references\[0\] has no caption with a word"),
        (["a dog"], ["a dog"], r"references\[0\] is the str"),
        ("a dog", ["a dog"], "references is the str"),
        ([["a dog"]], "a", "candidates is the str"),
        ([["a dog"]], [["a dog"]], "a str was expected"),
        ([[None]], ["a dog"], "a str was expected"),
    ],
)
def test_what_is_refused(references, candidates, message):
    with pytest.raises(ValueError, match=message):
        score(references, candidates)


def test_a_missing_pycocoevalcap_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider", None)
    with pytest.raises(ValueError, match="pip install pycocoevalcap"):
        score([["a dog"]], ["a dog"])


@pytest.fixture
def fake_java(tmp_path, monkeypatch):
    """Writes a shell script as the only `java`."""

    def write(script):
        path = tmp_path / "java"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path))
    return write


def test_without_java(fake_java):
    assert not scores.java_available()
    with pytest.raises(ValueError, match="needs Java, which cannot be started"):
        score([["a dog"]], ["a dog"], meteor=True)
    fake_java("echo 'Unable to locate a Java Runtime.' >&2; exit 1")  # as on macOS
    assert not scores.java_available()
    with pytest.raises(ValueError, match=r"status 1 \(Unable to locate a Java Runtime\.\)"):
        score([["a dog"]], ["a dog"], meteor=True)


def test_meteor_that_prints_no_score_or_hangs(fake_java, monkeypatch):
    fake_java("exit 0")
    with pytest.raises(ValueError, match="without a message"):
        score([["a dog"]], ["a dog"], meteor=True)
    monkeypatch.setattr(scores, "_METEOR_START", 0.1)
    fake_java("exec /bin/sleep 60")
    with pytest.raises(ValueError, match="METEOR did not end"):
        score([["a dog"]], ["a dog"], meteor=True)


def test_meteor_is_that_of_pycocoevalcap(java, monkeypatch):
    """Its Python class gave the number, with UTF-8; here Java is set to ASCII and German."""
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Dfile.encoding=US-ASCII")
    references, candidates = zip(*HAND, (["Un café noir"], "un café ☕"), strict=True)
    got, _ = score(references, candidates, meteor=True)
    assert list(got) == [*KEYS, "meteor"]
    assert got["meteor"] == pytest.approx(METEOR, rel=1e-9)


@pytest.mark.slow
def test_meteor_of_real_captions_is_that_of_pycocoevalcap(java, caption_sample):
    from pycocoevalcap.meteor.meteor import Meteor

    references = {i: own[1:] for i, own in enumerate(caption_sample.values())}
    candidates = {i: [own[0]] for i, own in enumerate(caption_sample.values())}
    got, _ = score([*references.values()], [text for (text,) in candidates.values()], meteor=True)
    theirs = [
        {i: [" ".join(ptb_tokens(text)) for text in own] for i, own in group.items()}
        for group in (references, candidates)
    ]
    assert got["meteor"] == pytest.approx(100 * Meteor().compute_score(*theirs)[0], rel=1e-9)
