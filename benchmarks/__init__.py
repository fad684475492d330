"""Programs that measure this project beside others: `python -m benchmarks.NAME`."""
