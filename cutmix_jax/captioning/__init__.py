"""Functions of image captioning that work alone.

- `words`: tokens of captions, and the vocabulary that numbers them.
- `scores`: BLEU, METEOR, ROUGE-L and CIDEr, on the host.

nltk splits captions into words, and pycocoevalcap scores them. Both are imported when they are
first needed: `python -m pip install -r requirements-captions.txt`.
"""

from cutmix_jax.captioning import scores, words

__all__ = ["scores", "words"]
