"""Speed and memory: run one with `python -m benchmarks.NAME`."""
