"""Prepares a dataset, from files that you have or by its name.

python -m cutmix_jax.data.prepare files SOURCE --out=FOLDER
python -m cutmix_jax.data.prepare shapes --data_dir=PATH
"""

import argparse
import re
import signal

from cutmix_jax import UserError, host
from cutmix_jax.command_line import fail, guard
from cutmix_jax.data import imagenet, prepare_files, records
from cutmix_jax.paths import absolute, local_path, user_path

NAMES = ("imagenet2012", "tiny_imagenet", "shapes", "shapes/single", "shapes/several")
FILES = "files"


def main(words=None):
    """Reads the command line, prepares the dataset, and prints its folder."""
    guard(_main, _parser().parse_args(words))


def _main(flags) -> None:
    try:
        if flags.name == FILES:
            print(prepare_from_files(flags))
        else:
            print(prepare(flags.name, flags.data_dir, flags.source, flags.examples))
    except KeyboardInterrupt:
        goes_on = "goes on where it stopped" if flags.name == FILES else "starts again"
        fail(f"interrupted. The same command {goes_on}.", 130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cutmix_jax.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = parser.add_subparsers(dest="name", required=True)
    for name in NAMES:
        command = names.add_parser(name, help=f"the dataset {name}")
        command.add_argument(
            "--data_dir", required=True, help="folder of TFDS datasets to write to"
        )
        command.add_argument(
            "--source",
            help="for imagenet2012: the folder with both archives; for tiny_imagenet: the unpacked "
            "folder tiny-imagenet-200",
        )
        command.add_argument("--examples", type=int, help="maximum number per split")
    command = names.add_parser(
        FILES, help="parquet files of the Hub, tar files of webdataset, or folders of images"
    )
    command.add_argument(
        "source",
        nargs="+",
        help="a folder, or patterns of files such as 'train-{0000..1023}.tar'",
    )
    command.add_argument(
        "--out", required=True, help="folder to write to, local or gs://, new or unfinished"
    )
    command.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="NAME=PATTERN",
        help="files of a split in the source folder; without it, their names tell the split",
    )
    command.add_argument(
        "--shorter-side", type=_number(1), help="larger images are resized, and become JPEG"
    )
    command.add_argument("--quality", type=_number(1, 100), help="of this JPEG; 95 by default")
    command.add_argument(
        "--image-column", help="column, or ending in a tar file, of the images; default: image"
    )
    command.add_argument(
        "--label-column", help="column, or ending in a tar file, of the labels; default: label"
    )
    command.add_argument(
        "--shards", type=_number(1, 99_999), help="files per split; default: one per 256 MiB"
    )
    command.add_argument("--workers", type=_number(1), help="threads; default: one per core")
    return parser


def _number(least: int, most: int | None = None):
    def read(text: str) -> int:
        value = int(text)
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{value} is not from {least} to {most or 'any'}")
        return value

    read.__name__ = "number"
    return read


def prepare_from_files(flags):
    """Writes the dataset of the command `files`, and returns its folder."""
    from cutmix_jax.data import sources

    out = absolute(user_path(flags.out, "--out"))
    if flags.quality is not None and flags.shorter_side is None:
        raise UserError(
            "--quality has no effect without --shorter-side, because images keep their bytes. "
            "Leave it out, or set --shorter-side."
        )
    workers = flags.workers or host.cores()
    source = sources.open_source(
        flags.source, _patterns(flags.split), flags.image_column, flags.label_column, workers
    )
    options = prepare_files.Options(
        shorter_side=flags.shorter_side,
        quality=flags.quality or prepare_files.QUALITY,
        shards=flags.shards,
        workers=workers,
    )
    return prepare_files.prepare(source, out, options)


def _patterns(words: list[str]) -> dict[str, str]:
    patterns = {}
    for word in words:
        name, _, pattern = word.partition("=")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or not pattern or name in patterns:
            raise UserError(
                f"--split={word} is not understood. Write --split NAME=PATTERN once per split, "
                "with a name in lower-case letters, such as train."
            )
        patterns[name] = pattern
    return patterns


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
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leaves nothing behind
    main()
