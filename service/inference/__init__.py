"""Predictions and merged models, through the inference process."""
