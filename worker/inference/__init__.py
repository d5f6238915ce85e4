"""The inference process: backbones in memory, answers of many tasks in one batch, merges."""
