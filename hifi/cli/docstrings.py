"""The demo's data: first sentences of docstrings, labelled with their library."""

from __future__ import annotations

import ast
import json
import math
import random
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

# Each library with a regular expression for its own names, which are removed from its sentences.
LIBRARIES = {
    "torch": r"py\s*torch|torch\w*|aten",
    "scipy": r"scipy\w*",
    "sklearn": r"scikit[- ]?learn|sklearn\w*",
    "pandas": r"pandas\w*",
}
# Names of code: between backticks, with an underscore or a dot, before brackets, in camel case.
_NAME = re.compile(
    r"(?<=`)[\w.]+(?=`)|\b_?[A-Za-z]+(?:_\w+)+|\b[A-Za-z]\w*\.[A-Za-z][\w.]*\w|\b\w+(?=\(\))|\b[A-Z][a-z0-9]+[A-Z]\w*"
)
_MARKUP = re.compile(r"--|==|::|>>>|\.\. ")  # a heading or an example, not a sentence


def build_data_set(
    folder: Path, *, rows_per_library: int, seed: int, label: str = "library"
) -> dict[str, int]:
    """Write ``train.jsonl`` and ``validation.jsonl``; return the number of rows of each (4 to 1).

    The column next to ``text`` is ``label``: ``library``, or for the same rows ``names`` (spans of
    names of code) or ``length`` (the binary logarithm of the docstring's lines). Equal seeds and
    versions of the libraries give equal files.
    """
    draw = random.Random(seed)  # noqa: S311 - a sample, not a secret
    found = {name: _find(name, enough=2 * rows_per_library, draw=draw) for name in LIBRARIES}
    owners = Counter(text for rows in found.values() for text in rows)
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    for rows in found.values():
        own = [row for text, row in rows.items() if owners[text] == 1]
        drawn = draw.sample(own, rows_per_library)
        splits["validation"] += drawn[: rows_per_library // 5]
        splits["train"] += drawn[rows_per_library // 5 :]
    for split, drawn in splits.items():
        draw.shuffle(drawn)
        written = ({"text": row["text"], label: row[label]} for row in drawn)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in written)
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return {split: len(drawn) for split, drawn in splits.items()}


def _find(library: str, *, enough: int, draw: random.Random) -> dict[str, dict[str, Any]]:
    """Parse a library's files until there are enough rows; return them by text."""
    files = sorted(Path(import_module(library).__path__[0]).rglob("*.py"))
    files = [file for file in files if not {"test", "testing", "tests"} & set(file.parts)]
    found: dict[str, dict[str, Any]] = {}
    for file in draw.sample(files, len(files)):
        for docstring in _docstrings(file):
            text = first_sentence(docstring, own_name=LIBRARIES[library])
            if 25 <= len(text) <= 200 and not _MARKUP.search(text):
                row = {"text": text, "library": library, "names": find_names(text)}
                length = math.log2(len(docstring.splitlines()))
                found.setdefault(text.lower(), {**row, "length": round(length, 3)})
        if len(found) >= enough:
            break
    return found


def _docstrings(file: Path) -> Iterator[str]:
    with (
        suppress(SyntaxError, ValueError),  # a template, or for a newer Python
        warnings.catch_warnings(action="ignore", category=SyntaxWarning),
    ):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                docstring = ast.get_docstring(node)
                if docstring and not node.name.startswith("_"):
                    yield docstring


def find_names(text: str) -> list[dict[str, Any]]:
    """Return the names of code in a text, as spans with the label ``name``."""
    found = _NAME.finditer(text)
    return [{"start": each.start(), "end": each.end(), "label": "name"} for each in found]


def first_sentence(docstring: str, *, own_name: str) -> str:
    """Return a docstring's first sentence without matches of the pattern ``own_name``."""
    paragraph = " ".join(docstring.split("\n\n", maxsplit=1)[0].split())
    sentence = re.split(r"(?<=[.!?])\s", paragraph, maxsplit=1)[0]
    without = re.sub(rf"(?i)\b({own_name})\b\.?", "", sentence)
    return " ".join(without.split()).replace(" .", ".")
