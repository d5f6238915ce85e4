"""The demo's data: first sentences of docstrings, labelled with their library."""

from __future__ import annotations

import ast
import json
import random
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path

# Each library with a regular expression for its own names, which are removed from its sentences.
LIBRARIES = {
    "torch": r"py\s*torch|torch\w*|aten",
    "scipy": r"scipy\w*",
    "sklearn": r"scikit[- ]?learn|sklearn\w*",
    "pandas": r"pandas\w*",
}
_MARKUP = re.compile(r"--|==|::|>>>|\.\. ")  # a heading or an example, not a sentence


def build_data_set(
    folder: Path, *, rows_per_library: int, seed: int, label: str = "library"
) -> dict[str, int]:
    """Write ``train.jsonl`` and ``validation.jsonl``; return the number of rows of each (4 to 1).

    The column next to ``text`` is ``label``: ``library``, or ``kind`` (class or function) for the
    same rows. Equal seeds and versions of the libraries give equal files.
    """
    draw = random.Random(seed)  # noqa: S311 - a sample, not a secret
    found = {name: _find(name, enough=2 * rows_per_library, draw=draw) for name in LIBRARIES}
    owners = Counter(text for rows in found.values() for text in rows)
    splits: dict[str, list[dict[str, str]]] = {"train": [], "validation": []}
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


def _find(library: str, *, enough: int, draw: random.Random) -> dict[str, dict[str, str]]:
    """Parse a library's files until there are enough rows; return them by text."""
    files = sorted(Path(import_module(library).__path__[0]).rglob("*.py"))
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
    with (
        suppress(SyntaxError, ValueError),  # a template, or for a newer Python
        warnings.catch_warnings(action="ignore", category=SyntaxWarning),
    ):
        for node in ast.walk(ast.parse(file.read_bytes())):
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
