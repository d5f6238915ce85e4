"""Find the backbones of this machine, without loading anything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hifi.backbones.packaged import PACKAGED_MODEL, find_packaged_folder

if TYPE_CHECKING:
    from store.settings import Settings

# An id is part of URLs and file names.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def find_backbones(settings: Settings) -> dict[str, Path]:
    """Find the backbones that jobs may name.

    They are the folders in ``settings.models`` that have a ``config.json`` and safetensors, by
    their own names, and the packaged ``all-MiniLM-L6-v2`` if it is installed; a folder of that name
    takes precedence. A name must begin with a letter or digit and contain only letters, digits,
    ``.``, ``_`` and ``-``; other folders are ignored. ``settings.models`` may be missing.

    Returns:
        Id to folder, sorted by id. :func:`worker.engine.descriptions.describe_backbone` checks
        whether a model can be loaded and tuned.
    """
    packaged = find_packaged_folder()
    found = {} if packaged is None else {PACKAGED_MODEL: packaged}
    found.update((folder.name, folder) for folder in _model_folders(settings.models))
    return dict(sorted(found.items()))


def _model_folders(parent: Path) -> Iterator[Path]:
    if not parent.is_dir():
        return
    for folder in parent.iterdir():
        is_model = (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
        if is_model and _ID.fullmatch(folder.name):
            yield folder
