"""Serving: many head deltas on one backbone, in batches that mix their tasks."""
