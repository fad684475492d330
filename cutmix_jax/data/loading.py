"""Turns records into the pixels of a batch, in every reader thread and process."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from cutmix_jax import UserError
from cutmix_jax.data import crops, image_files, records
from cutmix_jax.data.records import Split


@dataclasses.dataclass(frozen=True)
class Loader:
    """Decodes, crops and resizes images. It can be pickled.

    Attributes:
        set_name: name of the dataset in error messages.
        shape: (H, W, C) of the resulting images.
        resize: the shorter side before the crop; None if images already have their size.
        square: whether both sides are resized to `resize`.
        area: (smallest, largest) fraction in the random-resized crop; None: no such crop.
        splits: name -> (records, int [n] indices of those to use).
    """

    set_name: str
    shape: tuple[int, int, int]
    resize: int | None
    square: bool
    area: tuple[float, float] | None
    splits: Mapping[str, tuple[Split, np.ndarray]]

    def fill(
        self,
        name: str,
        images: np.ndarray,
        labels: np.ndarray,
        positions: np.ndarray,
        numbers: np.ndarray | None,
    ) -> None:
        """Writes examples of a split to `images` and `labels`.

        Args:
            name: name of the split.
            images: uint8 `[n, H, W, C]`, output.
            labels: int64 `[n]`, output.
            positions: int `[n]`, positions of the examples.
            numbers: random numbers `[n, ...]` from `crops.sample`; None in evaluation.

        Raises:
            UserError: an image cannot be used; the message names it.
        """
        split, index = self.splits[name]
        for slot, position in enumerate(positions.tolist()):
            i = int(index[position])
            image, labels[slot] = records.decode_record(split, i, self.shape[2])
            if numbers is None:
                image = self._for_eval(image)
            else:
                image = self._for_train(image, numbers[slot])
            if image.shape != self.shape:
                raise UserError(
                    f"{split.name(i)} is {image.shape[0]}x{image.shape[1]}, but {self.set_name} "
                    f"says {self.shape[0]}x{self.shape[1]}. Replace or remove it."
                )
            images[slot] = image

    def center(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(size of the resized image, offset of the crop) in evaluation."""
        if self.resize is None:
            return (height, width), (0, 0)
        return crops.central(height, width, self.shape[:2], self.resize, self.square)

    def _for_eval(self, image: np.ndarray) -> np.ndarray:
        if self.resize is None:
            return image
        return image_files.resize_and_crop(image, *self.center(*image.shape[:2]), self.shape[:2])

    def _for_train(self, image: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        if self.area is not None:
            box = crops.random_resized(numbers, *image.shape[:2], self.area)
            return image_files.crop_and_resize(image, box, self.shape[:2])
        if self.square:
            square = (self.resize, self.resize)
            offset = crops.position(numbers[0, 2:], square, self.shape[:2])
            return image_files.resize_and_crop(image, square, offset, self.shape[:2])
        return self._for_eval(image)


@dataclasses.dataclass(frozen=True)
class PaddedLoader:
    """Decodes images into the top left corner of one canvas. It can be pickled.

    Attributes:
        shape: (H, W, 3) of the canvas.
        splits: name -> (encoded images, int [n] indices of those to use).
        sizes: name -> int32 [n, 2], (height, width) that each image is resized to.
    """

    shape: tuple[int, int, int]
    splits: Mapping[str, tuple[Split, np.ndarray]]
    sizes: Mapping[str, np.ndarray]

    def fill(self, name: str, images: np.ndarray, labels, positions: np.ndarray, numbers) -> None:
        """Writes images of a split, uint8 `[n, H, W, 3]`, like `Loader.fill`, but no labels.

        Raises:
            UserError: an image cannot be decoded; the message names it.
        """
        del labels, numbers
        split, index = self.splits[name]
        for slot, position in enumerate(positions.tolist()):
            i = int(index[position])
            height, width = shape = tuple(self.sizes[name][position].tolist())
            image = image_files.decode(split.read(i), 3, split.name(i))
            if image.shape[:2] != shape:
                image = image_files.resize(image, shape)
            images[slot] = 0
            images[slot, :height, :width] = image
