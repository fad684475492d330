"""The configuration keys that the data sources read, checked."""

import dataclasses
import math

from cutmix_jax import UserError

SOURCES = ("auto", "resident", "streaming")
PAD_MODES = {"zero": "constant", "reflect": "reflect"}  # the names that NumPy gives them


@dataclasses.dataclass(frozen=True)
class Settings:
    """Configuration of the data sources; None means unset.

    The crop of training images follows from what is set: `min_area` asks for a random-resized
    crop, `square_resize` for a random crop of what is resized to a square (both are streaming
    only); otherwise images are padded by `pad` and cropped back.
    """

    batch_size: int
    dataset: str = "digits"
    data_dir: str | None = None
    source: str = "auto"
    resident_limit_mib: float = 2048
    reader_processes: int = 0
    image_size: int | None = None
    seed: int = 0
    train_examples: int | None = None
    held_out: int = 0
    test_split: str | None = None
    eval_resize: int | None = None
    square_resize: int | None = None
    boxes_dir: str | None = None
    pad: int = 0
    pad_mode: str = "zero"
    flip: bool = False
    min_area: float | None = None
    max_area: float = 1.0
    color_jitter: float = 0.0
    lighting: float = 0.0

    @property
    def streaming_only(self) -> bool:
        """Whether training images are cropped from larger ones."""
        return self.min_area is not None or self.square_resize is not None


AUGMENT_KEYS = ("pad", "pad_mode", "flip", "min_area", "max_area", "color_jitter", "lighting")

# Lowest allowed value (None is allowed where the default is None); comparisons refuse NaN too.
LOWEST = {
    "batch_size": 1,
    "resident_limit_mib": 0,
    "reader_processes": 0,
    "image_size": 1,
    "seed": 0,
    "train_examples": 1,
    "held_out": 0,
    "eval_resize": 1,
    "square_resize": 1,
    "pad": 0,
    "min_area": 0,
    "max_area": 0,
    "color_jitter": 0,
    "lighting": 0,
}


def read_settings(config) -> Settings:
    """Settings from a ConfigDict, or any mapping with `get`; absent keys keep their default."""
    values = {}
    augment = config.get("augment") or {}
    for field in dataclasses.fields(Settings):
        section = augment if field.name in AUGMENT_KEYS else config
        value = section.get(field.name)
        values[field.name] = field.default if value is None else value
    if values["batch_size"] is dataclasses.MISSING:
        raise UserError("batch_size is not set; give --config.batch_size=N")
    settings = Settings(**values)
    _check(settings)
    return settings


def _check(settings: Settings) -> None:
    for key, lowest in LOWEST.items():
        value = getattr(settings, key)
        if value is not None and not (value >= lowest and math.isfinite(value)):
            raise UserError(
                f"{_flag(key)}={value} is out of range: expected a finite number of at least "
                f"{lowest}"
            )
    if settings.source not in SOURCES:
        raise UserError(
            f"source={settings.source!r} is unknown: expected one of {', '.join(SOURCES)}"
        )
    if settings.pad_mode not in PAD_MODES:
        raise UserError(
            f"augment.pad_mode={settings.pad_mode!r} is unknown: expected one of "
            f"{', '.join(PAD_MODES)}"
        )
    area = settings.min_area
    if area is not None and not 0 < area <= settings.max_area <= 1:
        raise UserError(
            f"augment.min_area={area} and augment.max_area={settings.max_area} are no range of "
            "areas: expected 0 < min_area <= max_area <= 1"
        )
    if area is not None and settings.pad:
        raise UserError(
            f"augment.pad={settings.pad} and augment.min_area={area} are both set, but an image "
            "is cropped in one way only: set augment.pad=0 for the random-resized crop"
        )
    square = settings.square_resize
    if square is not None and (settings.pad or area is not None or settings.eval_resize):
        raise UserError(
            f"square_resize={square} is set beside augment.pad, augment.min_area or eval_resize, "
            "but an image is resized and cropped in one way only: unset the others"
        )
    if square is not None and settings.source == "resident":
        raise UserError(
            f"square_resize={square} crops from larger images, which source=resident does not "
            "have: use --config.source=streaming"
        )
    if area is not None and settings.source == "resident":
        raise UserError(
            f"augment.min_area={area} asks for a random-resized crop, which source=resident does "
            "not have: use --config.source=streaming, or augment.pad instead"
        )


def _flag(key: str) -> str:
    return f"augment.{key}" if key in AUGMENT_KEYS else key
