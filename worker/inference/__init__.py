"""The inference process: backbones in memory, batches that mix tasks, merged models."""
