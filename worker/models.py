"""Which backbones this machine has, found without loading anything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hifi.backbones.packaged import PACKAGED_MODEL, find_packaged_folder

if TYPE_CHECKING:
    from store.settings import Settings

# An id is part of URLs and of the names of files.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def find_backbones(settings: Settings) -> dict[str, Path]:
    """Find the backbones that jobs may name.

    They are the folders in ``settings.models`` that hold a ``config.json`` and safetensors, by
    their own names, and the packaged ``all-MiniLM-L6-v2`` where it is installed; a folder of that
    name stands before it. Left out are names of other characters than letters, digits, ``.``,
    ``_`` and ``-``, or that do not begin with a letter or digit.

    Args:
        settings: its ``models`` may not be there.

    Returns:
        Id to folder, in the order of the ids. Whether a model can be loaded and tuned,
        :func:`worker.descriptions.describe_backbone` tells.
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
