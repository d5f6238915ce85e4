"""Batch predictions: the rows of a stored data set, answered in the background, part by part."""
