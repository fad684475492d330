"""Photographs of one's own, which an evaluation shows with what the network finds."""

from cutmix_jax import UserError
from cutmix_jax.data import image_files, records
from cutmix_jax.paths import existing_folder


def find(name, options, prepare):
    """The images of `evals.NAME.images`, none by default.

    Args:
        name: of the evaluation.
        options: its section, with `images` and `most_images`.
        prepare: makes what is kept of an image uint8 `[h, w, 3]`.

    Returns:
        ``((paths, images), digest)``, images as `prepare` makes them. For `Evaluation.find`.

    Raises:
        UserError: the folder has no images, or too many.
    """
    if options.images is None:
        return ((), ()), ""
    where = f"evals.{name}.images"
    folder = existing_folder(options.images, where, "a folder of images")
    passed_over = {}
    paths = image_files.find(folder, passed_over)
    image_files.say_passed_over(folder, passed_over)
    if not paths:
        raise UserError(
            f"config.{where}={options.images} contains no image. Give the folder of some "
            "photographs."
        )
    if len(paths) > options.most_images:
        raise UserError(
            f"config.{where}={options.images} contains {len(paths)} images, more than "
            f"config.evals.{name}.most_images={options.most_images}. Raise it, or give another "
            "folder."
        )
    stored = [image_files.read(path) for path in paths]
    images = [
        prepare(image_files.decode(data, 3, path)) for data, path in zip(stored, paths, strict=True)
    ]
    return (tuple(paths), images), records.digest(iter(stored))


def shrink(image, most):
    """An image uint8 `[H, W, C]` whose longer side is at most `most` pixels."""
    shape = image_files.shrunk_shape(image.shape[:2], most)
    return image if shape == image.shape[:2] else image_files.resize(image, shape)
