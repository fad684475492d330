"""`python -m cutmix_jax.convert`."""

import argparse
import sys

import jax

from cutmix_jax import UserError, convert
from cutmix_jax import config as config_lib
from cutmix_jax.convert.files import SUFFIXES
from cutmix_jax.convert.hub import why_not_timm
from cutmix_jax.convert.workdirs import export_folder, export_weights, import_weights
from cutmix_jax.paths import user_path


def main(arguments=None):
    """Reads flags, converts, and prints what was made and how to use it."""
    parser = argparse.ArgumentParser(
        description=convert.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", help="a .pth or .safetensors file, or a workdir")
    parser.add_argument(
        "--output",
        required=True,
        help="workdir; from a workdir: file (.pth, .safetensors) or folder for timm and the Hub",
    )
    parser.add_argument("--model", help="network; by default found from names and shapes")
    parser.add_argument(
        "--weights",
        choices=["raw", "ema"],
        help="which weights, if a file has both; by default ema",
    )
    parser.add_argument(
        "--config",
        metavar="FILE:ARG",
        help="how to evaluate; by default from the number of classes; --config.KEY=VALUE overrides",
    )
    parser.add_argument("--checkpoint", choices=["latest", "best"], default="latest")
    parser.add_argument("--overwrite", action="store_true", help="replace converted weights")
    flags, rest = parser.parse_known_args(arguments)
    try:
        # A path forgets the / at its end. Names on the Hub have dots, too.
        to_folder = flags.output.endswith("/")
        flags.source = user_path(flags.source, "The source")
        flags.output = user_path(flags.output, "--output")
        if flags.source.is_dir():
            if flags.weights:
                rest = ["--weights", *rest]
            if rest:
                raise UserError(f"{rest[0]!r} is only for weights from PyTorch: leave it out.")
            to_folder = to_folder or not flags.output.suffix or flags.output.is_dir()
            _export(flags, to_folder)
        else:
            _import(flags, rest)
    except (UserError, OSError) as error:
        print(f"cutmix_jax.convert: {error}", file=sys.stderr)
        return 1
    return 0


def _import(flags, overrides):
    if flags.output.suffix in SUFFIXES:
        raise UserError(
            f"--output {flags.output} is a file, but PyTorch weights are converted into a workdir: "
            "give a folder."
        )
    converted = import_weights(
        flags.source,
        flags.output,
        flags.model,
        flags.config,
        overrides,
        flags.overwrite,
        flags.weights,
    )
    _print(converted.notes)
    print(
        f"{converted.model}, {converted.num_classes} classes, "
        f"{_count(converted.variables['params']):,} parameters: {flags.output}\n"
        f"To measure:  python main.py --workdir={flags.output} --mode=evaluate "
        "--config.data_dir=PATH\n"
        f"To start from:  --config.init_from={flags.output}"
    )


def _export(flags, to_folder):
    export = export_folder if to_folder else export_weights
    arrays, meta, notes = export(flags.source, flags.output, flags.checkpoint, flags.overwrite)
    _print(notes)
    config = config_lib.from_plain(meta["config"])
    card = ", with a model card" if to_folder else ""
    print(f"{config.model}, {len(arrays)} tensors{card}: {flags.output}")
    if not to_folder:
        print(
            f"It expects RGB images in [0, 1], minus the mean {_numbers(config.normalize.mean)}, "
            f"divided by {_numbers(config.normalize.std)}."
        )
        return
    if why_not_timm(config) is None:
        print(f'To load:  timm.create_model("local-dir:{flags.output}", pretrained=True)')
    print("Before you publish the folder, add the license of the weights to README.md.")


def _print(notes):
    for note in notes:
        print(note)


def _numbers(values):
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"


def _count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


if __name__ == "__main__":
    sys.exit(main())
