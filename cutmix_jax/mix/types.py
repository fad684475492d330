"""Types of the arguments of public functions, for type checkers and editors."""

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

from jax.typing import ArrayLike

ArrayOrList = ArrayLike | list[Any] | tuple[Any, ...]
Axes = int | Sequence[int]
PyTree = Any
Sides = Sequence[int]
Size = float | Sequence[float]

BoxRule = Literal["exact", "paper"]
LabelRule = Literal["area", "one_hot", "complete"]
Lengths = Literal["beta", "uniform"]
Partner = Literal["permutation", "reverse", "rotate"]
Paste = Literal["auto", "window", "mask"]
Placement = Literal["uniform", "gaussian", "inside"]
Scope = Literal["batch", "device", "pair", "image"]
UnpairedScope = Literal["batch", "device", "image"]


class ApplyOptions(TypedDict, total=False):
    """The options of `apply`."""

    spatial_axes: Axes
    paste: Paste


class MixupOptions(TypedDict, total=False):
    """The options of `sample_mixup`."""

    alpha: ArrayLike
    prob: ArrayLike
    scope: Scope
    partner: Partner
    axis_name: str | None
    across_devices: bool


class CutmixOptions(MixupOptions, total=False):
    """The options of `sample_cutmix`."""

    size: Size | None
    lengths: Lengths
    min_ratio: ArrayLike
    max_ratio: ArrayLike
    box: BoxRule
    placement: Placement
    sigma: ArrayLike
    label: LabelRule
    correct_lam: bool


class CutoutOptions(TypedDict, total=False):
    """The options of `sample_cutout`."""

    size: Size
    fill: ArrayOrList
    prob: ArrayLike
    box: BoxRule
    placement: Placement
    sigma: ArrayLike
    scope: UnpairedScope
    axis_name: str | None
