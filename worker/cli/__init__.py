"""The commands that run a worker and the inference process."""
