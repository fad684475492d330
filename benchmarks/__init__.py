"""Programs that measure this project beside what else could be used: `python -m benchmarks`."""
