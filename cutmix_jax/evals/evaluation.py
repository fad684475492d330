"""What every evaluation is, and what it hands back."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass
class Report:
    """What an evaluation found.

    Attributes:
      values: ``{name: number}``; what is a share is in [0, 1].
      rows: a list of dictionaries with equal keys, the lines of ``NAME.csv``.
      figures: ``{file name: matplotlib Figure}``.
      tables: further ``{file name: rows}``.
      left_out: sentences about parts that were not measured.
      again: measure anew the next time, because those parts may be there by then.
    """

    values: dict
    rows: list
    figures: dict = dataclasses.field(default_factory=dict)
    tables: dict = dataclasses.field(default_factory=dict)
    left_out: tuple = ()
    again: bool = False


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One question that a trained network can be asked.

    Attributes:
      run: ``(subject, options, *inputs) -> Report``, where `options` is this evaluation's section
        of `config.evals`.
      why_not: ``(subject) -> None``, or a sentence that says why it cannot be asked and what would
        help.
      version: raised whenever the numbers get another meaning, so that older files are not taken
        for what would be measured now.
      find: ``(subject, options) -> (inputs, digest)``: what the evaluation looks at besides the
        images of the split, as further arguments of `run`, and a text that changes when they do.
    """

    run: Callable
    why_not: Callable = lambda subject: None
    version: int = 1
    find: Callable = lambda subject, options: ((), "")
