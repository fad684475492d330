"""One page of all tables and figures of the paper, with what has been run beside them.

    python -m cutmix_jax.report runs/table6 runs/mine --output report

RUNS are workdirs, or folders that hold some at any depth, such as a sweep's. The output folder gets
`index.html`, which needs no other file and no network, and `index.md` with its figures.
"""
