"""Selection: score every attention head and pick the best of each layer (Alg. 1 and 2)."""

from hifi.data.settings import DEFAULT_XI
from hifi.selection.scoring import sample_indices, select_heads

__all__ = ["DEFAULT_XI", "sample_indices", "select_heads"]
