"""Head deltas: the file, its metadata, and how a delta goes into a backbone and out again."""
