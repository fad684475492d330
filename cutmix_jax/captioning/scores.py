"""COCO's scores of captions: BLEU, METEOR, ROUGE-L and CIDEr, on the host.

Captions are compared as lowercase tokens of the Penn Treebank without punctuation. All scores are
multiplied by 100, as papers print them.
"""

import importlib
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Sequence

import numpy as np

from cutmix_jax import UserError, first_line
from cutmix_jax.captioning.words import tokenize

_QUOTES = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "—": "-"})
_BRACKETS = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"
}  # fmt: skip
_PUNCTUATION = "'`.,:;?!-"
# Seconds: a slow computer reads METEOR's tables in 20, and scores 50 images in another.
_METEOR_START, _METEOR_EACH = 300, 0.5


def ptb_tokens(text: str) -> list[str]:
    """Tokens of the Penn Treebank in lower case, without punctuation, as COCO scores captions.

    Brackets stay, as '-lrb-' and '-rrb-'. The result is that of the Java tokenizer which COCO's
    evaluation runs, except for rare forms: it keeps '!!', 'at&t', 'c#' and, at the end of a
    sentence, 'u.s.' as they are, and splits 'w/'.

    Args:
        text: one caption.

    Returns:
        list of str; empty if the caption has no words.

    Raises:
        ValueError: `text` is not a str, or nltk is not installed.

    Example:
        >>> ptb_tokens("A man's dog (asleep), on a 'red' t-shirt.")
        ['a', 'man', "'s", 'dog', '-lrb-', 'asleep', '-rrb-', 'on', 'a', 'red', 't-shirt']

    Reference:
        Chen et al. Microsoft COCO Captions: Data Collection and Evaluation Server. 2015,
        section 3.1.
    """
    text = text.translate(_QUOTES) if isinstance(text, str) else text
    return [_BRACKETS.get(word, word) for word in tokenize(text) if word.strip(_PUNCTUATION)]


def java_available() -> bool:
    """Whether Java runs here, which METEOR needs.

    Returns:
        bool.

    Example:
        >>> isinstance(java_available(), bool)
        True
    """
    try:  # macOS has a `java` that only says where to get one
        found = subprocess.run(["java", "-version"], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return found.returncode == 0


def score(
    references: Sequence[Sequence[str]], candidates: Sequence[str], meteor: bool = False
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    r"""COCO's scores of one caption for each image: of all images together, and of each.

    BLEU-n is of the corpus. With the clipped precision :math:`p_k` of the k-grams of all captions,
    their number of words c, and r the sum of the reference lengths that are closest:

    .. math::

        \mathrm{BLEU}_n = \min(1, e^{1 - r / c}) \prod_{k=1}^{n} p_k^{1/n}

    It is 0 if there is no common n-gram. METEOR is version 1.5, of the corpus, too.

    ROUGE-L compares longest common subsequences. With the largest precision P and the largest
    recall R over the references of an image, and :math:`\beta = 1.2`:

    .. math::

        \mathrm{ROUGE}_L = \frac{(1 + \beta^2) P R}{R + \beta^2 P}

    CIDEr is CIDEr-D. With the counts of n-grams g weighted by the logarithm of N over the number
    of images whose references have them, lengths :math:`l`, M references s and a candidate c:

    .. math::

        \mathrm{CIDEr} = \frac{10}{4 M} \sum_{n=1}^{4} \sum_{s}
        e^{-(l_c - l_s)^2 / (2 \cdot 6^2)} \,
        \frac{\min(g_n(c), g_n(s)) \cdot g_n(s)}{\|g_n(c)\| \, \|g_n(s)\|}

    It depends on the other images. So give all images of a split. With one image, all weights are
    log 1, and CIDEr is 0.

    Args:
        references: for each of N images a list of one caption or more. Those without a word are
            left out.
        candidates: N captions to score; they may be empty.
        meteor: whether to compute METEOR, which runs Java; see `java_available`. It comes first,
            so that nothing is lost if it fails.

    Returns:
        `(corpus, images)`, all in percent. `corpus` is a dict of float with the keys 'bleu1',
        'bleu2', 'bleu3', 'bleu4', 'rouge_l', 'cider' and, if asked for, 'meteor'. ROUGE-L and CIDEr
        are means over the images. `images` has 'rouge_l' and 'cider' of each image, float64 `[N]`;
        an empty candidate has 0.

    Raises:
        ValueError: there are no images, the numbers differ, an image has no reference with a word,
            a package is not installed, or METEOR fails, as without Java.

    Example:
        >>> references = [['A cat on a red mat.', 'A cat sits on a mat.'], ['Two dogs play.']]
        >>> corpus, images = score(references, ['a cat on a mat', 'two dogs play'])
        >>> {key: round(value) for key, value in corpus.items()}
        {'bleu1': 88, 'bleu2': 88, 'bleu3': 88, 'bleu4': 74, 'rouge_l': 95, 'cider': 652}
        >>> images['rouge_l'].round(1).tolist()
        [89.4, 100.0]

    Reference:
        Papineni et al. BLEU: a Method for Automatic Evaluation of Machine Translation. ACL 2002.
        Denkowski, Lavie. Meteor Universal. WMT 2014.
        Lin. ROUGE: A Package for Automatic Evaluation of Summaries. ACL 2004 workshop.
        Vedantam et al. CIDEr: Consensus-based Image Description Evaluation. CVPR 2015.
    """
    texts = _tokens(references, candidates)
    last = {"meteor": _meteor(*texts)} if meteor else {}
    images = _each(*texts)
    means = {key: float(each.mean()) for key, each in images.items()}
    return _bleu(*texts) | means | last, images


def _tokens(references, candidates):
    """Both as tokens joined by spaces, as the scorers take them: {i: [text, ...]}."""
    for name, values in (("references", references), ("candidates", candidates)):
        if isinstance(values, str):
            raise ValueError(f"{name} is the str {values!r}, but one entry per image was expected.")
    if len(references) != len(candidates) or not len(candidates):
        raise ValueError(
            f"There are references of {len(references)} images and {len(candidates)} candidates. "
            "Give one candidate for each image, and at least one."
        )
    texts = {}
    for i, captions in enumerate(references):
        if isinstance(captions, str):
            raise ValueError(f"references[{i}] is the str {captions!r}. Give a list of captions.")
        texts[i] = [*filter(None, _joined(captions))]
        if not texts[i]:
            raise ValueError(
                f"references[{i}] has no caption with a word, but at least one was expected. "
                "Leave the image out, or give it a caption."
            )
    return texts, {i: [text] for i, text in enumerate(_joined(candidates))}


def _joined(captions):
    return [" ".join(ptb_tokens(caption)) for caption in captions]


def _scorer(name):
    """A module of pycocoevalcap."""
    try:
        return importlib.import_module(f"pycocoevalcap.{name}.{name}")
    except ImportError as error:
        raise UserError(
            f"Captions are scored by pycocoevalcap, which cannot be imported ({first_line(error)})."
            " Install it: pip install pycocoevalcap"
        ) from error


def _bleu(references, candidates):
    values, _ = _scorer("bleu").Bleu(4).compute_score(references, candidates, verbose=0)
    # Where nothing matches, the scorer returns up to 3 %, from what it adds to avoid 0 / 0.
    return {
        f"bleu{n}": 100 * value if _matches(references, candidates, n) else 0.0
        for n, value in enumerate(values, 1)
    }


def _matches(references, candidates, n):
    """Whether any n-gram of a candidate is in a reference of its image."""
    return any(
        _ngrams(candidate, n) & _ngrams(reference, n)
        for i, (candidate,) in candidates.items()
        for reference in references[i]
    )


def _ngrams(text, n):
    words = text.split()
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def _each(references, candidates):
    _, rouge = _scorer("rouge").Rouge().compute_score(references, candidates)
    _, cider = _scorer("cider").Cider().compute_score(references, candidates)
    return {"rouge_l": 100 * rouge, "cider": 100 * cider}


def _meteor(references, candidates):
    """METEOR of pycocoevalcap's jar, which reads files here.

    Its Python class talks to a process instead, which hangs when that process fails.
    """
    jar = pathlib.Path(_scorer("meteor").__file__).with_name("meteor-1.5.jar")
    most = max(map(len, references.values()))
    texts = {
        "candidates": [text for (text,) in candidates.values()],
        # As many for each image. The best one counts, so repetitions change nothing.
        "references": [text for own in references.values() for text in (own * most)[:most]],
    }
    # Neither the encoding nor the decimal point may depend on the user's settings.
    java = ["java", "-Xmx2G", "-Dfile.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US"]
    limit = _METEOR_START + _METEOR_EACH * len(candidates)
    with tempfile.TemporaryDirectory() as folder:
        for name, lines in texts.items():
            text = "".join(f"{line}\n" for line in lines)
            pathlib.Path(folder, name).write_bytes(text.encode(errors="replace"))
        command = [*java, "-jar", str(jar), *texts, "-l", "en", "-norm", "-r", str(most)]
        try:
            run = subprocess.run(
                command, cwd=folder, capture_output=True, encoding="utf-8", timeout=limit
            )
        except OSError as error:
            raise UserError(
                f"METEOR needs Java, which cannot be started ({first_line(error)}). Install Java, "
                "or leave METEOR out."
            ) from error
        except subprocess.TimeoutExpired as error:
            raise UserError(
                f"METEOR did not end in {limit:.0f} s. Leave it out, or try again on a computer "
                "that has less to do."
            ) from error
    found = re.search(r"^Final score:\s*(\S+)", run.stdout, re.M)
    if run.returncode or not found:
        lines = run.stderr.strip().splitlines() or ["without a message"]
        raise UserError(
            f"METEOR failed with exit status {run.returncode} ({lines[-1].strip()}). It needs Java "
            "8 or later and 2 GB of memory. Install Java, or leave METEOR out."
        )
    return 100 * float(found[1])
