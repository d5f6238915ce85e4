"""The columns that answers to predictions have beside the rows that they answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from hifi.data.task_types import AnswerField

PREFIX = "predicted_"
_ADDRESS = ("index", "job")  # of an answer: it stands beside its row
_ERROR = "error"


def answer_columns(fields: Sequence[AnswerField], *, ending: str = "") -> list[str]:
    """Return the names of the columns: one for each field of an answer, and one for its error.

    Args:
        fields: of the answers.
        ending: of every name, where a row has answers of several jobs.
    """
    return [f"{PREFIX}{name}{ending}" for name in (*(each.name for each in fields), _ERROR)]


def answer_cells(fields: Sequence[AnswerField], answer: Mapping[str, Any]) -> list[Any]:
    """Return an answer's fields and its error; what is no text or number is JSON."""
    error = answer.get(_ERROR)
    values = [answer.get(each.name) for each in fields]
    cells = [to_json(value) if isinstance(value, dict | list) else value for value in values]
    cells += [None if error is None else f"{error['message']} ({error['code']})"]
    return [_to_unicode(cell) if isinstance(cell, str) else cell for cell in cells]


def answer_entries(answer: Mapping[str, Any], *, ending: str = "") -> dict[str, Any]:
    """Return what an object of JSON gets for an answer; names are those of the columns."""
    return {
        f"{PREFIX}{name}{ending}": value for name, value in answer.items() if name not in _ADDRESS
    }


def arrow_fields(fields: Sequence[AnswerField], *, ending: str = "") -> Iterator[pa.Field]:
    """Yield the columns as Arrow has them: numbers are numbers, all else is text."""
    numbers = {float: pa.float64(), int: pa.int64(), int | None: pa.int64()}
    kinds = [*(numbers.get(field.type, pa.string()) for field in fields), pa.string()]
    for name, kind in zip(answer_columns(fields, ending=ending), kinds, strict=True):
        yield pa.field(name, kind)


def to_json(value: object) -> str:
    """Return JSON whose characters are themselves."""
    return json.dumps(value, ensure_ascii=False)


def _to_unicode(text: str) -> str:
    """Escape halves of surrogate pairs, which neither UTF-8 nor Arrow has."""
    return text.encode(errors="backslashreplace").decode()
