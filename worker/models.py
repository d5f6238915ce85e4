"""Find the folders of models on this machine, and whether they are whole, without loading any."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hifi.backbones.packaged import PACKAGED_MODEL, find_packaged_folder
from store.logs import printable

if TYPE_CHECKING:
    from store.settings import Settings

# An id is part of URLs and file names.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_BAD_ID = (
    "its name cannot be an id: rename the folder so that it begins with a letter or digit and has "
    "at most 96 letters, digits, '.', '_' and '-'"
)
_NO_FOLDER = "it is HIFI_MODELS itself: put the model into a folder in it, which gives it its id"
_CONFIG, _WEIGHTS, _INDEX = "config.json", "*.safetensors", "model.safetensors.index.json"
_PICKLED = "pytorch_model*.bin"
# The files that loading reads; others, such as a README, may change at any time.
_READ = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", _PICKLED)
_LENGTH_BYTES = 8  # of the header's length, at the beginning of a safetensors file
_MOST_HEADER_BYTES = 100_000_000  # safetensors refuses longer ones


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A folder that holds a model, or at least a part of one.

    Attributes:
        path: of the folder.
        stamp: as :func:`stamp_of` returns it.
        age_seconds: since the newest of them changed, by this machine's clock.
        missing: what is not there yet; None if the folder is whole.
        is_wrong: whether no further file can help.
    """

    path: Path
    stamp: str
    age_seconds: float
    missing: str | None
    is_wrong: bool = False


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
    return {
        name: folder
        for name, folder in _find_folders(settings)
        if _ID.fullmatch(name) and (folder / _CONFIG).is_file() and any(folder.glob(_WEIGHTS))
    }


def look_at_models(settings: Settings) -> dict[str, ModelFolder]:
    """Look at every folder that could become a backbone, id to folder, sorted by id.

    They are the packaged model and the folders in ``settings.models`` that have a configuration or
    weights, unless their names are hidden; and ``settings.models`` itself, if it holds a model, as
    after ``cp -r MODEL models`` without a folder ``models``. A name that cannot be an id is given
    with its unprintable characters escaped.
    """
    looks: dict[str, ModelFolder] = {}
    if (settings.models / _CONFIG).is_file():
        looks[settings.models.name] = _look_at(settings.models, wrong=_NO_FOLDER)
    for name, folder in _find_folders(settings):
        try:
            looks[name] = _look_at(folder)
        except OSError as error:  # removed meanwhile, or not readable
            if folder.is_dir():
                reason = f"it cannot be read: {error.strerror}"
                looks[name] = ModelFolder(path=folder, stamp=reason, age_seconds=0, missing=reason)
    return looks


def stamp_of(folder: Path) -> str:
    """Return a text that changes with the names, sizes and times of the files of a model.

    Only files that loading reads count.
    """
    facts = [(path.name, path.stat()) for path in sorted(_files(folder, *_READ))]
    files = [(name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in facts]
    return repr((str(folder), files))


def _find_folders(settings: Settings) -> Iterator[tuple[str, Path]]:
    """Yield the folders with a configuration or weights, by name."""
    packaged = find_packaged_folder()
    found = {} if packaged is None else {PACKAGED_MODEL: packaged}
    if settings.models.is_dir():
        for folder in settings.models.iterdir():
            is_hidden = folder.name.startswith(".")
            if not is_hidden and any(_files(folder, _CONFIG, _WEIGHTS, _PICKLED)):
                found[printable(folder.name)] = folder
    yield from sorted(found.items())


def _files(folder: Path, *patterns: str) -> Iterator[Path]:
    return (path for pattern in patterns for path in folder.glob(pattern) if path.is_file())


def _look_at(folder: Path, *, wrong: str | None = None) -> ModelFolder:
    """Look at a folder; ``wrong`` is why no file can make it a backbone."""
    changed_at = max((path.stat().st_ctime for path in _files(folder, *_READ)), default=0.0)
    wrong = wrong or (None if _ID.fullmatch(folder.name) else _BAD_ID)
    return ModelFolder(
        path=folder,
        stamp=stamp_of(folder),
        age_seconds=time.time() - changed_at,
        missing=wrong or next(_lacks(folder), None),
        is_wrong=wrong is not None,
    )


def _lacks(folder: Path) -> Iterator[str]:
    """Yield what a folder lacks for a whole model.

    A folder with pickled weights only is whole: nothing is missing that would make it usable.
    """
    if not (folder / _CONFIG).is_file():
        yield f"it has no {_CONFIG}"
    elif not isinstance(_read_json(folder / _CONFIG), dict):
        yield f"{_CONFIG} is not a whole JSON object"
    weights = sorted(_files(folder, _WEIGHTS))
    if not weights and not any(_files(folder, _PICKLED)):
        yield "it has no safetensors weights"
    yield from filter(None, map(_missing_bytes, weights))
    if (folder / _INDEX).is_file():
        entries = _read_json(folder / _INDEX)
        shards = entries.get("weight_map") if isinstance(entries, dict) else None
        if isinstance(shards, dict):
            names = set(map(str, shards.values())) - {path.name for path in weights}
            yield from (f"{name} is missing" for name in sorted(names))
        else:
            yield f"{_INDEX} is not a whole JSON object with a weight_map"


def _missing_bytes(path: Path) -> str | None:
    """Compare a safetensors file's length with its header; return what is missing.

    The header has the place of every tensor: https://huggingface.co/docs/safetensors.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length > _MOST_HEADER_BYTES:
            return f"{path.name} is not a safetensors file"
        header = file.read(length)
    if size < _LENGTH_BYTES + length or not length:
        return f"{path.name} is incomplete: it has {size:,} bytes"
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name[:2] != "__"]
        whole = _LENGTH_BYTES + length + max(ends, default=0)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return f"{path.name} is not a safetensors file"
    if size > whole:
        return f"{path.name} has {size:,} bytes, but its header is for {whole:,}"
    if size < whole:
        return f"{path.name} is incomplete: it has {size:,} of {whole:,} bytes"
    return None


def _read_json(path: Path) -> Any:  # noqa: ANN401 - any JSON
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
