"""Functions of image captioning that work alone.

- `words`: tokens of captions, and the vocabulary that numbers them.

nltk splits captions into words. It is imported when it is first needed:
`python -m pip install -r requirements-captions.txt`.
"""

from cutmix_jax.captioning import words

__all__ = ["words"]
