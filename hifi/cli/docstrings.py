"""The demo's data sets: what does the first sentence of a docstring tell of where it stands?"""

from __future__ import annotations

import ast
import importlib.util
import json
import random
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hifi.errors import HifiError, InvalidArgumentError

LIBRARIES = ("torch", "scipy", "sklearn", "pandas")
_LETTERS = range(25, 201)  # of a usable sentence
_OWN_NAMES = {
    "torch": r"py\s*torch|torch\w*|aten",
    "scipy": r"scipy\w*",
    "sklearn": r"scikit[- ]?learn|sklearn\w*",
    "pandas": r"pandas\w*",
}
_FEWEST_ROWS = 10
_TESTS = {"test", "testing", "tests"}
_MARKUP = re.compile(r"--|==|::|>>>|\.\. ")  # a heading or an example, no sentence
_Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class _Sentence:
    """The first sentence of a docstring, and whether a class or a function has it."""

    text: str
    kind: str


def build_data_set(
    folder: Path, *, rows_per_library: int, seed: int, kinds: Path | None = None
) -> dict[str, int]:
    """Write ``train.jsonl`` and ``validation.jsonl``, a fifth of the rows for validation.

    The libraries' files are parsed and never imported. A library's own name is cut out of its
    sentences, and a sentence that two libraries share is left out.

    Args:
        folder: where to write; it exists.
        rows_per_library: sentences of each library, training and validation together.
        seed: of the draw; equal versions of the libraries give equal files.
        kinds: takes the same sentences with another label, for a second task: does it describe a
            class or a function? It exists.

    Returns:
        The rows of each split.

    Raises:
        InvalidArgumentError: fewer than ten rows.
        HifiError: a library is not installed, or has too few docstrings.
    """
    if rows_per_library < _FEWEST_ROWS:
        raise InvalidArgumentError(
            "rows", value=rows_per_library, limit=f"at least {_FEWEST_ROWS} of each library"
        )
    generator = random.Random(seed)  # noqa: S311 - a draw, not a secret
    sentences = {
        library: _sentences(library, enough=2 * rows_per_library, generator=generator)
        for library in LIBRARIES
    }
    seen: dict[str, set[str]] = {}
    for library, found in sentences.items():
        for sentence in found:
            seen.setdefault(sentence.text.lower(), set()).add(library)
    splits: dict[str, list[tuple[_Sentence, str]]] = {"train": [], "validation": []}
    for library, found in sentences.items():
        own = [sentence for sentence in found if len(seen[sentence.text.lower()]) == 1]
        if len(own) < rows_per_library:
            raise HifiError(
                f"{library} has {len(own)} usable docstrings here, the demo needs "
                f"{rows_per_library}; reinstall {library}"
            )
        drawn = generator.sample(own, rows_per_library)
        rows = [(sentence, library) for sentence in drawn]
        cut = rows_per_library // 5
        splits["validation"] += rows[:cut]
        splits["train"] += rows[cut:]
    for split, rows in splits.items():
        generator.shuffle(rows)
        named = [{"text": sentence.text, "library": library} for sentence, library in rows]
        _write(folder / f"{split}.jsonl", named)
        if kinds is not None:
            sorted_out = [{"text": sentence.text, "kind": sentence.kind} for sentence, _ in rows]
            _write(kinds / f"{split}.jsonl", sorted_out)
    return {split: len(rows) for split, rows in splits.items()}


def _write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def _sentences(library: str, *, enough: int, generator: random.Random) -> list[_Sentence]:
    """List usable first sentences of a library's docstrings, each once, from files drawn."""
    found: dict[str, _Sentence] = {}
    paths = _source_files(library)
    for path in generator.sample(paths, len(paths)):
        for docstring, kind in _docstrings(path):
            sentence = first_sentence(docstring, own_name=_OWN_NAMES[library])
            if len(sentence) in _LETTERS and not _MARKUP.search(sentence):
                found.setdefault(sentence.lower(), _Sentence(sentence, kind))
        if len(found) >= enough:
            break
    return list(found.values())


def _source_files(library: str) -> list[Path]:
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        raise HifiError(f"{library} is not installed; the demo takes its docstrings as data")
    root = Path(spec.submodule_search_locations[0])
    return [path for path in sorted(root.rglob("*.py")) if not _TESTS & set(path.parts)]


def _docstrings(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # about other people's code
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # a template, or for a newer Python
    for node in ast.walk(tree):
        if isinstance(node, _Documented) and not node.name.startswith("_"):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring, "class" if isinstance(node, ast.ClassDef) else "function"


def first_sentence(docstring: str, *, own_name: str) -> str:
    """Cut a docstring to its first sentence and the library's own name out of it.

    Args:
        docstring: as ``ast.get_docstring`` gives it.
        own_name: a regular expression for the library's names.
    """
    paragraph = " ".join(docstring.split("\n\n", maxsplit=1)[0].split())
    sentence = re.split(r"(?<=[.!?])\s", paragraph, maxsplit=1)[0]
    without = re.sub(rf"(?i)\b({own_name})\b\.?", "", sentence)
    return " ".join(without.split()).replace(" .", ".")
