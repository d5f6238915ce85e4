"""Head deltas: the file, its metadata, and merging a delta into a backbone and out of it."""
