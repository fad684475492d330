"""Renders each mix, or each operation of augmentation, on your images or on handwritten digits.

    python -m cutmix_jax.gallery --output sheet.png
    python -m cutmix_jax.gallery --images photos/ --output sheet.png --mixes cutmix mixup
    python -m cutmix_jax.gallery --images cat.jpg dog.jpg apple.jpg --output sheet.png --scope batch
    python -m cutmix_jax.gallery --images cat.jpg dog.jpg --output sheet.png --operations

Boxes are outlined. The labels and their weights are below each image; images are named after their
files. Mixes of feature maps are shown on the image, at the resolution of their map.
"""

import argparse
import io
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np

from cutmix_jax import UserError, methods, mix, pictures
from cutmix_jax.data import augment, image_files, image_operations
from cutmix_jax.paths import local_path

MIXES = (
    "cutmix",
    "center_gaussian_cutmix",
    "fixed_size_cutmix",
    "one_hot_cutmix",
    "complete_label_cutmix",
    "scheduled_cutmix",
    "feature_cutmix",
    "mixup",
    "manifold_mixup",
    "cutout",
    "erasing",
    "cutout+mixup",
    "cutout+manifold_mixup",
    "cutmix_or_mixup",
    "hmix",
    "gmix",
    "gridmix",
    "fmix",
    "cowmix",
    "resizemix",
    "saliencymix",
)
# Strides of the feature maps in the paper's networks for small images.
MAPS = {"image": 1, "stem": 1, "layer1": 1, "layer2": 2, "layer3": 4, "layer4": 8}
# Magnitudes that show what an operation does; translations as fractions of the side.
MAGNITUDES = {
    "identity": None,
    "shear_x": 0.3,
    "shear_y": 0.3,
    "translate_x": 0.2,
    "translate_y": 0.2,
    "rotate": 30,
    "brightness": 1.6,
    "contrast": 1.9,
    "color": 0.1,
    "sharpness": 1.9,
    "posterize": 2,
    "solarize": 128,
    "solarize_add": 77,
    "auto_contrast": None,
    "equalize": None,
    "invert": None,
}
INK = "#222222"


def read_images(paths, side, count=None):
    """Reads `count` images as uint8 `[B, side, side, 3]`, cropped to squares, with their names."""
    from PIL import Image

    files = []
    for path in (local_path(path, "--images") for path in paths):
        passed_over = {}
        files += image_files.find(path, passed_over) if path.is_dir() else [str(path)]
        image_files.say_passed_over(path, passed_over)
    if not files:
        raise UserError(
            f"--images {' '.join(paths)}: no images found. Give image files, or a folder of them "
            f"({', '.join(image_files.SUFFIXES)})."
        )
    images = []
    for file in files[:count]:
        pixels = image_files.decode(image_files.read(file), 3, file)
        height, width = pixels.shape[:2]
        edge = min(width, height)
        left, top = (width - edge) // 2, (height - edge) // 2
        square = Image.fromarray(pixels[top : top + edge, left : left + edge])
        images.append(np.asarray(square.resize((side, side), Image.Resampling.LANCZOS)))
    names = [pathlib.Path(image_files.printable(file)).stem for file in files[:count]]
    return np.stack(images), names


def read_digits(count, side):
    """Returns handwritten digits as uint8 `[count, side, side, 1]`, and their names."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.repeat(np.repeat(digits.images[:count], 8, axis=1), 8, axis=2)
    images = jax.image.resize(images[..., None] * 15.9, (count, side, side, 1), "linear")
    return np.asarray(images).astype(np.uint8), [str(digit) for digit in digits.target[:count]]


def mix_for_picture(name, images, *, seed, scope):
    """Returns mixed images, labels `[B, B]` (each image its own class), and the plans."""
    # The mean, which is zero in normalized images.
    parameters = {"fill": 128.0} if re.search("cutout|erasing", name) else {}
    if scope == "image" and not re.fullmatch(r"(cutout|erasing)(_[a-z]+[\d.]+)*", name):
        parameters |= {"scope": "image", "partner": "rotate"}
    chosen = methods.create_mix({"name": name, **parameters}, "--mixes")
    sides = {
        layer: tuple(max(1, side // scale) for side in images.shape[1:3])
        for layer, scale in MAPS.items()
    }
    key = jax.random.key(seed)
    plans = chosen.sample(key, len(images), sides, images=images, progress=0.75)
    labels = jnp.eye(len(images))
    for plan in plans:
        images, labels = mix.apply(plan, images), mix.mix_labels(plan, labels)
    return np.asarray(images), np.asarray(labels), plans


def draw(images, names, mixes, path, *, seed=0, scope="image", panels=2):
    """Renders originals and mixes into an image file, with `panels` of them per row."""
    sheets = [("originals", (images, np.eye(len(images)), ()))]
    for i, name in enumerate(mixes):
        sheets.append((name, mix_for_picture(name, images, seed=seed + i, scope=scope)))
    _draw_sheets(sheets, names, path, panels)


def draw_operations(images, path, *, seed=0, panels=4):
    """Renders each operation of `image_operations`, and random erasing, into an image file."""
    if images.shape[3] == 1:
        images = np.repeat(images, 3, axis=3)
    count, side = images.shape[:2]
    changed = []
    for name, magnitude in MAGNITUDES.items():
        unit = side if "translate" in name else 1
        magnitudes = np.full(count, unit * (magnitude or 0.0))
        index = np.full(count, image_operations.INDEX[name])
        operations = image_operations.create_operations(index, magnitudes, images.shape[1:3])
        title = name if magnitude is None else f"{name} {magnitude:g}"
        changed.append((title, image_operations.apply_operations(operations, images)))
    keys = jax.random.split(jax.random.key(seed), count)
    for fill in augment.ERASING_FILLS:
        floats = images.astype(np.float32) / 255
        options = {"probability": 1.0, "fill": fill, "mean": (0.5,), "std": (0.25,)}
        erased = np.clip(augment.random_erasing(keys, floats, **options), 0, 1)
        changed.append((f"erasing, {fill}", (255 * erased).astype(np.uint8)))
    sheets = [(title, (np.asarray(found), None, ())) for title, found in changed]
    _draw_sheets(sheets, None, path, panels)


def _draw_sheets(sheets, names, path, panels):
    """Renders `(title, (images, labels or None, plans))`, with `panels` of them per row."""
    from matplotlib.figure import Figure

    images = sheets[0][1][0]
    count = len(images)
    panels = min(panels, len(sheets))
    lines = -(-len(sheets) // panels)
    # In inches: an image has 1, with space above for the title and below for two labels.
    above, below, between = 0.2, 0.3, 0.12
    height = 1 + above + below
    figure = Figure(figsize=(panels * (count * 1.04 + between), lines * height), dpi=100)
    grid = figure.add_gridspec(
        lines,
        panels,
        left=0.01,
        right=0.99,
        top=1 - above / (lines * height),
        bottom=below / (lines * height),
        wspace=0.04,
        hspace=above + below,
    )
    for i, (name, (mixed, labels, plans)) in enumerate(sheets):
        panel = grid[divmod(i, panels)].subgridspec(1, count, wspace=0.04)
        for k in range(count):
            axis = figure.add_subplot(panel[k])
            axis.imshow(mixed[k], cmap="gray", vmin=0, vmax=255, interpolation="lanczos")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
            words = "" if labels is None else pictures.describe_target(labels[k], k, names)
            axis.set_xlabel(words, fontsize=5.5, color=INK, labelpad=2, parse_math=False)
            if k == 0:
                axis.set_title(name, fontsize=8, loc="left", color=INK, pad=3, weight="bold")
            for plan in plans:
                pictures.outline(axis, plan, k, images.shape[1:3])
    _save(figure, path)


def _save(figure, path):
    """Saves the figure. A PNG gets 256 colors, so pages load it three times as fast."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    image = Image.open(buffer).convert("RGB")
    if pathlib.Path(path).suffix.lower() == ".png":
        image = image.quantize(palette=image.quantize(256), dither=Image.Dither.FLOYDSTEINBERG)
    try:
        image.save(path, optimize=True)
    except (OSError, ValueError) as error:
        raise UserError(f"--output {path} cannot be written: {error}.") from None


def main(arguments=None):
    """Reads the flags, renders the picture, and prints its path."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", nargs="+", help="image files or folders; none: digits")
    parser.add_argument("--output", required=True, help="file to write, .png or .jpg")
    parser.add_argument("--mixes", nargs="+", default=MIXES, help="names as in METHOD")
    parser.add_argument(
        "--operations",
        action="store_true",
        help="instead of mixes: the operations of TrivialAugment and RandAugment, random erasing",
    )
    parser.add_argument("--count", type=int, default=4, help="images to show")
    parser.add_argument("--side", type=int, default=96, help="side of an image in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scope", choices=["image", "batch"], default="image")
    flags = parser.parse_args(arguments)
    try:
        output = local_path(flags.output, "--output")
        if flags.images:
            images, names = read_images(flags.images, flags.side, flags.count)
        else:
            images, names = read_digits(flags.count, flags.side)
        if flags.operations:
            draw_operations(images, output, seed=flags.seed)
        else:
            draw(images, names, flags.mixes, output, seed=flags.seed, scope=flags.scope)
    except ValueError as error:
        print(f"cutmix_jax.gallery: {error}", file=sys.stderr)
        return 1
    shown = f"{len(MAGNITUDES)} operations" if flags.operations else f"{len(flags.mixes)} mixes"
    print(f"{shown} of {len(images)} images: {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
