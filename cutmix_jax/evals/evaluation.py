"""What an evaluation is, and what it returns."""

import dataclasses
from collections.abc import Callable

from cutmix_jax.tasks.classification import Classification


@dataclasses.dataclass
class Report:
    """The results of an evaluation.

    Attributes:
        values: ``{name: number}``; fractions are in [0, 1].
        rows: a list of dictionaries with the same keys, the rows of ``NAME.csv``.
        figures: ``{file name: matplotlib Figure}``.
        tables: further ``{file name: rows}``.
        left_out: sentences about parts that were not measured.
        again: measure again the next time, because those parts may exist by then.
        texts: further ``{file name: text}``.
    """

    values: dict
    rows: list
    figures: dict = dataclasses.field(default_factory=dict)
    tables: dict = dataclasses.field(default_factory=dict)
    left_out: tuple = ()
    again: bool = False
    texts: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation of a trained network.

    Attributes:
        run: ``(subject, options, *inputs) -> Report``. `options` is this evaluation's section of
            `config.evals`.
        why_not: ``(subject) -> None``, or a sentence that says why it does not apply and what to
        do.
        version: raise it when the numbers change their meaning. Older files are then measured
        again.
        find: ``(subject, options) -> (inputs, digest)``: further arguments of `run`, besides the
            images of the split, and a string that changes if they do.
        task: the class of tasks whose networks it measures.
    """

    run: Callable
    why_not: Callable = lambda subject: None
    version: int = 1
    find: Callable = lambda subject, options: ((), "")
    task: type = Classification
