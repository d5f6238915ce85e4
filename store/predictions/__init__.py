"""Batch predictions: their states, the owner's actions, and what the process that runs one does."""
