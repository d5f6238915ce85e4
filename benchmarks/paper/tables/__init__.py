"""The tables of result files; ``python -m benchmarks.paper.tables --help``."""
