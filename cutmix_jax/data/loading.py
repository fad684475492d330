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
        shape: (H, W, C) of the resulting images in training.
        eval_shape: the same in evaluation.
        resize: the shorter side before the crop in training; None if images already have their
            size.
        eval_resize: the same in evaluation.
        square: whether both sides are resized to `resize`.
        area: (smallest, largest) fraction in the random-resized crop; None: no such crop.
        splits: name -> (records, int [n] indices of those to use).
    """

    set_name: str
    shape: tuple[int, int, int]
    eval_shape: tuple[int, int, int]
    resize: int | None
    eval_resize: int | None
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
            images: uint8 `[n, *shape]`, or `[n, *eval_shape]` in evaluation; output.
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
            if image.shape != images.shape[1:]:
                raise UserError(
                    f"{split.name(i)} is {image.shape[0]}x{image.shape[1]}, but {self.set_name} "
                    f"says {images.shape[1]}x{images.shape[2]}. Replace or remove it."
                )
            images[slot] = image

    def shape_in(self, training: bool) -> tuple[int, int, int]:
        """(H, W, C) of the images that `fill` writes."""
        return self.shape if training else self.eval_shape

    def center(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(size of the resized image, offset of the crop) in evaluation."""
        return _center((height, width), self.eval_shape, self.eval_resize, self.square)

    def _for_eval(self, image: np.ndarray) -> np.ndarray:
        return _central_crop(image, self.eval_shape, self.eval_resize, self.square)

    def _for_train(self, image: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        if self.area is not None:
            box = crops.random_resized(numbers, *image.shape[:2], self.area)
            return image_files.crop_and_resize(image, box, self.shape[:2])
        if self.square:
            square = (self.resize, self.resize)
            offset = crops.position(numbers[0, 2:], square, self.shape[:2])
            return image_files.resize_and_crop(image, square, offset, self.shape[:2])
        return _central_crop(image, self.shape, self.resize, square=False)


def _center(stored, shape, resize, square):
    """(size of the resized image, offset of the crop)."""
    if resize is None:
        return stored, (0, 0)
    return crops.central(*stored, shape[:2], resize, square)


def _central_crop(image, shape, resize, square):
    if resize is None:
        return image
    resized, offset = _center(image.shape[:2], shape, resize, square)
    return image_files.resize_and_crop(image, resized, offset, shape[:2])


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

    def shape_in(self, training: bool) -> tuple[int, int, int]:
        """(H, W, C) of the images that `fill` writes."""
        del training
        return self.shape

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
