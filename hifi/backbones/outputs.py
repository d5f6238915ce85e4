"""Arguments of a forward pass that keep a model from recording and caching."""

from __future__ import annotations

from collections.abc import Collection

# Passing these as arguments leaves the model's configuration unchanged.
RECORD_NOTHING = {"output_attentions": False, "output_hidden_states": False}
OUTPUT_ARGUMENTS = frozenset({*RECORD_NOTHING, "return_dict", "use_cache"})


def no_cache(arguments: Collection[str]) -> dict[str, bool]:
    """Return the argument that keeps a decoder from caching keys and values.

    Args:
        arguments: names of all arguments of the model's ``forward``; other models have no cache.
    """
    return {"use_cache": False} if "use_cache" in arguments else {}
