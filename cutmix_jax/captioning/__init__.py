"""Functions of image captioning that work alone.

- `words`: tokens of captions, and the vocabulary that numbers them.
- `nic`: the network Neural Image Caption (NIC), and its loss.
- `search`: captions from a network by beam search.
- `scores`: BLEU, METEOR, ROUGE-L and CIDEr.

A caption is a row of word ids of static length: start, words, end, then pads.

nltk splits captions into words, and pycocoevalcap scores them. They are imported when they are
first needed: `python -m pip install -r requirements-captions.txt`.
"""

from cutmix_jax.captioning import nic, scores, search, words

__all__ = ["nic", "scores", "search", "words"]
