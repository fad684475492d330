"""Words of captions: tokens for training, and the vocabulary that numbers them.

A caption is a row of L = max_words + 2 ids: start, the words, end, then padding.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterable

import numpy as np

from cutmix_jax import UserError, first_line

PAD, START, END, UNKNOWN = range(4)
SPECIAL = ("<pad>", "<start>", "<end>", "<unknown>")

# A sentence ends here, but not after an initial, as in "u.s.", or after a title.
_SENTENCE_END = re.compile(
    r"(?<=[.?!])(?<![\s.][a-z]\.)(?<!\b(?:mr|ms|dr|st|vs|jr)\.)(?<!\bmrs\.)\s+"
)
# Most captions: letters, and a period at the end.
_PLAIN = re.compile(r"[a-z\s]+\.?\s*")


def tokenize(text: str) -> list[str]:
    """Splits a caption into lowercase words and punctuation, as for training.

    Each sentence is split by nltk's `NLTKWordTokenizer`, as `nltk.word_tokenize` does. Sentences
    are found without its trained model, which would have to be downloaded: they end at a period,
    question mark or exclamation mark before a space, but not at an initial or a title.

    Args:
        text: one caption.

    Returns:
        list of str; empty if the caption has neither words nor punctuation.

    Raises:
        ValueError: `text` is not a str, or nltk is not installed.

    Example:
        >>> tokenize("A man's dog, asleep. It can't see.")
        ['a', 'man', "'s", 'dog', ',', 'asleep', '.', 'it', 'ca', "n't", 'see', '.']

    Reference:
        Bird, Klein, Loper. Natural Language Processing with Python. O'Reilly 2009, section 3.7.
    """
    if not isinstance(text, str):
        raise ValueError(f"A caption is {text!r}, but a str was expected.")
    text, tokenizer = text.lower(), _tokenizer()
    if _PLAIN.fullmatch(text) and not any(
        contraction.search(f" {text} ") for contraction in tokenizer.CONTRACTIONS2
    ):
        return text.replace(".", " .").split()  # the same in a tenth of the time
    return [word for sentence in _SENTENCE_END.split(text) for word in tokenizer.tokenize(sentence)]


@functools.cache
def _tokenizer():
    try:
        from nltk.tokenize.destructive import NLTKWordTokenizer
    except ImportError as error:
        raise UserError(
            f"Captions are split into words by nltk, which cannot be imported "
            f"({first_line(error)}). Install it: pip install nltk"
        ) from error
    return NLTKWordTokenizer()


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Words and their ids, which are their positions.

    Args:
        words: tuple of str, `[V]`. The first four are '<pad>', '<start>', '<end>' and '<unknown>'.

    Raises:
        ValueError: the first four words are others, or a word occurs twice.

    Example:
        >>> vocabulary = Vocabulary.build(['A cat.', 'A dog.', 'A cat and a dog.'], min_count=2)
        >>> vocabulary.words[4:]
        ('a', 'cat', '.', 'dog')
        >>> vocabulary.encode(['A dog and a cat'], max_words=6)
        array([[1, 4, 7, 3, 4, 5, 2, 0]], dtype=int32)
        >>> vocabulary.decode([1, 4, 7, 2, 0])
        'a dog'

    Reference:
        Vinyals et al. Show and Tell: A Neural Image Caption Generator. CVPR 2015.
    """

    words: tuple[str, ...]

    def __post_init__(self):
        object.__setattr__(self, "words", tuple(self.words))
        if self.words[:4] != SPECIAL:
            raise ValueError(
                f"The vocabulary starts with {self.words[:4]}, but {SPECIAL} was expected."
            )
        if len(self._ids) != len(self.words):
            twice = collections.Counter(self.words).most_common(1)[0][0]
            raise ValueError(f"The vocabulary has {twice!r} twice. Give each word once.")

    def __len__(self):
        return len(self.words)

    @functools.cached_property
    def _ids(self):
        return {word: i for i, word in enumerate(self.words)}

    @classmethod
    def build(cls, captions: Iterable[str], min_count: int = 4) -> "Vocabulary":
        """The words of captions that occur `min_count` times or more.

        Args:
            captions: str, as they are in the file; `tokenize` splits them.
            min_count: smallest number of occurrences of a word, 1 or more.

        Returns:
            `Vocabulary`, with words in the order of their first appearance.

        Raises:
            ValueError: no word occurs that often, or `min_count` is below 1.

        Example:
            >>> Vocabulary.build(['two cats', 'two dogs'], min_count=2).words[4:]
            ('two',)
        """
        if min_count < 1:
            raise ValueError(f"min_count is {min_count}, but 1 or more was expected.")
        counts = collections.Counter(
            word for caption in _texts(captions) for word in tokenize(caption)
        )
        words = tuple(word for word, count in counts.items() if count >= min_count)
        if not words:
            most = max(counts.values(), default=0)
            raise ValueError(
                f"No word of the captions occurs {min_count} times; the most frequent one occurs "
                f"{most} times. Give more captions or a smaller min_count."
            )
        return cls(SPECIAL + words)

    def encode(self, captions: Iterable[str], max_words: int = 20) -> np.ndarray:
        """Captions as rows of ids: start, words, end, then padding.

        A caption of more than `max_words` words is cut after them and has no end. Words that the
        vocabulary does not have become '<unknown>'.

        Args:
            captions: str, N of them; `tokenize` splits them.
            max_words: most words of a caption, 1 or more; punctuation counts.

        Returns:
            int32 `[N, max_words + 2]`.

        Raises:
            ValueError: `captions` is a str, or `max_words` is below 1.

        Example:
            >>> Vocabulary((*SPECIAL, 'two', 'cats')).encode(['two cats', 'two'], max_words=2)
            array([[1, 4, 5, 2],
                   [1, 4, 2, 0]], dtype=int32)
        """
        if max_words < 1:
            raise ValueError(f"max_words is {max_words}, but 1 or more was expected.")
        captions = list(_texts(captions))
        rows = np.full((len(captions), max_words + 2), PAD, np.int32)
        for row, caption in zip(rows, captions, strict=True):
            ids = [self._ids.get(word, UNKNOWN) for word in tokenize(caption)]
            ids = [START, *ids, END] if len(ids) <= max_words else [START, *ids[:max_words]]
            row[: len(ids)] = ids
        return rows

    def decode(self, ids) -> str:
        """The words of one row of ids, joined by spaces.

        Args:
            ids: int `[n]`. Start and padding are left out, and so is all after the first end.

        Returns:
            str, empty if there are no words.

        Raises:
            ValueError: `ids` are not a row of integers, or one of them is not in the vocabulary.

        Example:
            >>> Vocabulary((*SPECIAL, 'two', 'cats')).decode([1, 4, 5, 3, 2, 5])
            'two cats <unknown>'
        """
        ids = np.asarray(ids)
        if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
            raise ValueError(
                f"ids have shape {ids.shape} and dtype {ids.dtype}, but a row of integers was "
                "expected. Decode one caption at a time."
            )
        if ((ids < 0) | (ids >= len(self))).any():
            raise ValueError(
                f"ids are from {ids.min()} to {ids.max()}, but the vocabulary has 0 to "
                f"{len(self) - 1}. Use the vocabulary that the ids were made with."
            )
        ids = ids[: np.argmax(ids == END)] if (ids == END).any() else ids
        return " ".join(self.words[i] for i in ids if i not in (PAD, START))


def _texts(captions):
    if isinstance(captions, str):
        raise ValueError(f"captions is the str {captions!r}, but a list of them was expected.")
    return captions
