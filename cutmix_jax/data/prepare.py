"""Prepares a dataset: `python -m cutmix_jax.data.prepare shapes --data_dir=PATH`."""

import argparse
import sys

from cutmix_jax import UserError
from cutmix_jax.data import imagenet, records
from cutmix_jax.paths import local_path

NAMES = ("imagenet2012", "tiny_imagenet", "shapes", "shapes/single", "shapes/several")


def main(words=None):
    """Reads the command line, prepares the dataset, and prints its folder."""
    parser = argparse.ArgumentParser(prog="python -m cutmix_jax.data.prepare", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--data_dir", required=True, help="folder of TFDS datasets to write to")
    parser.add_argument(
        "--source",
        help="for imagenet2012: the folder with both archives; for tiny_imagenet: the unpacked "
        "folder tiny-imagenet-200",
    )
    parser.add_argument("--examples", type=int, help="maximum number per split")
    flags = parser.parse_args(words)
    try:
        print(prepare(flags.name, flags.data_dir, flags.source, flags.examples))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def prepare(name: str, data_dir: str, source: str | None = None, examples: int | None = None):
    """Writes the dataset `name` below `data_dir`, and returns its folder."""
    root = local_path(data_dir, "--data_dir")
    source = source and local_path(source, "--source")
    if name == imagenet.NAME:
        if source is None or examples is not None:
            raise UserError(
                f"{name} is prepared from its two whole archives: give their folder with --source, "
                "and leave out --examples."
            )
        return imagenet.prepare(source, root)
    records.require("tensorflow_datasets", f"preparing {name}", "pip install tensorflow-datasets")
    records.import_tensorflow()
    import tensorflow_datasets as tfds

    from cutmix_jax.data import builders

    options = {"data_dir": str(root)}
    if name == "tiny_imagenet":
        builder = builders.TinyImagenet(source=source, **options)
    else:
        builder = builders.Shapes(config=name.partition("/")[2] or "single", **options)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(max_examples_per_split=examples)
    )
    return builder.data_dir


if __name__ == "__main__":
    main()
