"""Selection: score every attention head and pick the best of each layer (Alg. 1 and 2)."""

from hifi.selection.scoring import DEFAULT_XI, sample_indices, select_heads

__all__ = ["DEFAULT_XI", "sample_indices", "select_heads"]
