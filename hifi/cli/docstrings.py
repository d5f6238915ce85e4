"""The demo's data: first sentences of docstrings, labelled with their library."""

from __future__ import annotations

import ast
import importlib.util
import json
import random
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from hifi.errors import HifiError, InvalidArgumentError

# Each library with a regular expression for its own names, which are removed from its sentences.
LIBRARIES = {
    "torch": r"py\s*torch|torch\w*|aten",
    "scipy": r"scipy\w*",
    "sklearn": r"scikit[- ]?learn|sklearn\w*",
    "pandas": r"pandas\w*",
}
_FEWEST_ROWS = 10
_MARKUP = re.compile(r"--|==|::|>>>|\.\. ")  # a heading or an example, not a sentence
Rows = list[dict[str, str]]


def build_data_set(
    folder: Path, *, rows_per_library: int, seed: int, label: str = "library"
) -> dict[str, int]:
    """Write ``train.jsonl`` and ``validation.jsonl``; return the number of rows of each (4 to 1).

    Args:
        folder: where to write; it exists.
        rows_per_library: sentences per library that occur in no other library.
        seed: of the draw; equal versions of the libraries give equal files.
        label: the column next to ``text``: ``library``, or ``kind`` (class or function) for the
            same rows.

    Raises:
        InvalidArgumentError: fewer than ten rows.
        HifiError: a library is not installed, or has too few docstrings.
    """
    if rows_per_library < _FEWEST_ROWS:
        limit = f"at least {_FEWEST_ROWS} of each library"
        raise InvalidArgumentError("rows", value=rows_per_library, limit=limit)
    draw = random.Random(seed)  # noqa: S311 - a sample, not a secret
    found = {name: _find(name, enough=2 * rows_per_library, draw=draw) for name in LIBRARIES}
    owners = Counter(text for rows in found.values() for text in rows)
    splits: dict[str, Rows] = {"train": [], "validation": []}
    for name, rows in found.items():
        own = [row for text, row in rows.items() if owners[text] == 1]
        if len(own) < rows_per_library:
            raise HifiError(f"{name} has too few docstrings ({len(own)}); reinstall it")
        drawn = draw.sample(own, rows_per_library)
        splits["validation"] += drawn[: rows_per_library // 5]
        splits["train"] += drawn[rows_per_library // 5 :]
    for split, drawn in splits.items():
        draw.shuffle(drawn)
        written = [{"text": row["text"], label: row[label]} for row in drawn]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in written]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return {split: len(drawn) for split, drawn in splits.items()}


def _find(library: str, *, enough: int, draw: random.Random) -> dict[str, dict[str, str]]:
    """Parse a library's files without importing them until there are enough rows, by text."""
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        raise HifiError(f"{library} is not installed; the demo uses its docstrings as data")
    files = sorted(Path(spec.submodule_search_locations[0]).rglob("*.py"))
    files = [file for file in files if not {"test", "testing", "tests"} & set(file.parts)]
    found: dict[str, dict[str, str]] = {}
    for file in draw.sample(files, len(files)):
        for docstring, kind in _docstrings(file):
            text = first_sentence(docstring, own_name=LIBRARIES[library])
            if 25 <= len(text) <= 200 and not _MARKUP.search(text):
                found.setdefault(text.lower(), {"text": text, "library": library, "kind": kind})
        if len(found) >= enough:
            break
    return found


def _docstrings(file: Path) -> Iterator[tuple[str, str]]:
    try:
        with warnings.catch_warnings(action="ignore", category=SyntaxWarning):
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return  # a template, or for a newer Python
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            docstring = ast.get_docstring(node)
            if docstring and not node.name.startswith("_"):
                yield docstring, "class" if isinstance(node, ast.ClassDef) else "function"


def first_sentence(docstring: str, *, own_name: str) -> str:
    """Return a docstring's first sentence without matches of the pattern ``own_name``."""
    paragraph = " ".join(docstring.split("\n\n", maxsplit=1)[0].split())
    sentence = re.split(r"(?<=[.!?])\s", paragraph, maxsplit=1)[0]
    without = re.sub(rf"(?i)\b({own_name})\b\.?", "", sentence)
    return " ".join(without.split()).replace(" .", ".")
