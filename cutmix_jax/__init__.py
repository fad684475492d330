"""CutMix in JAX: the mixing library, training, and the evaluations of the paper."""

__version__ = "0.1.0"


class UserError(ValueError):
    """Something the user can put right: shown as one sentence, without a traceback."""
