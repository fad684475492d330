"""Functions of image captioning that work alone.

- `nic`: the network Neural Image Caption (NIC), and its loss.
- `search`: captions from a network by beam search.

A caption is a row of word ids of static length: start, words, end, then pads.
"""

from cutmix_jax.captioning import nic, search

__all__ = ["nic", "search"]
