"""Measurements of asynctag beside other libraries: `python -m benchmarks`, which `make bench` calls."""
