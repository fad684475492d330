"""Memory of one gradient, with and without computing blocks again (`config.remat`).

    python benchmarks/memory.py --model=pyramidnet200 --batch=64

Runs nothing. Prints what the forward pass keeps for the backward pass, from the traced step, and
with `--compile` the temporary memory of the step compiled for this backend (minutes for
PyramidNet-200 on CPU).
"""

import argparse
import math
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp

from cutmix_jax.models import create_model


def main():
    """Measures what the flags say."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="pyramidnet200")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compile", action="store_true")
    flags = parser.parse_args()
    for remat in (False, True):
        model = create_model(flags.model, flags.classes, dtype=flags.dtype, remat=remat)
        shape = (flags.batch, flags.side, flags.side, 3)
        images = jax.ShapeDtypeStruct(shape, jnp.float32)
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        args = variables["params"], variables.get("batch_stats", {}), images

        def loss(params, batch_stats, images, model=model):
            logits, _ = model.apply(
                {"params": params, "batch_stats": batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            return jax.nn.logsumexp(logits, -1).mean()

        # The leaves of the pullback are all that it keeps, weights included.
        pullback = jax.eval_shape(lambda *args, loss=loss: jax.vjp(loss, *args)[1], *args)
        kept = size(pullback) - size(args[0])
        print(f"{flags.model} remat={remat}: keeps {kept / 2**30:.2f} GiB", flush=True)
        if flags.compile:
            memory = jax.jit(jax.grad(loss)).lower(*args).compile().memory_analysis()
            print(f"  compiled: {memory.temp_size_in_bytes / 2**30:.2f} GiB temporary", flush=True)


def size(tree):
    """Bytes of all leaves."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


if __name__ == "__main__":
    main()
