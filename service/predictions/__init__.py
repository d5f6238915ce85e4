"""Batch predictions: data sets answered in the background by the head deltas of jobs."""
