"""Benchmarks of this project next to other libraries: `python -m benchmarks.NAME`."""
