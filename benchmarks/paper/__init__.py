"""The paper's tables: HiFi and its rivals on GLUE; ``python -m benchmarks.paper --help``."""
