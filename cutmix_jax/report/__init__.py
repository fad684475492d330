"""One page with all tables and figures of the paper, next to your runs.

    python -m cutmix_jax.report runs/table6 runs/mine --output report

RUNS are workdirs, or folders that contain some at any depth, such as a sweep's. The output folder
gets `index.html`, which needs no other file and no network, and `index.md` with its figures.
"""
