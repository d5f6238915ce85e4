"""Requests of many rows, within the limits of one request; late items are sent again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from service.client.errors import ClientError

if TYPE_CHECKING:
    from service.cli.predictions.rows import Row
    from service.client.documents import Prediction, Predictions

# Limits of one request; the server accepts twice the bytes and the values.
_MOST_ANSWERS, _MOST_BYTES, _MOST_VALUES = 256, 8 << 20, 60_000
_MOST_ATTEMPTS = 5

Ask: TypeAlias = "Callable[[Sequence[Any]], Predictions]"


def predict_rows(rows: Iterable[Row], ask: Ask) -> Iterator[tuple[list[Row], list[Prediction]]]:
    """Yield the rows of each request with their answers, whose index is that among all rows."""
    for chunk in _chunks(rows):
        yield chunk, _answers(chunk, ask)


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    answers = size = values = 0
    for row in rows:
        is_full = (
            answers + row.answers > _MOST_ANSWERS
            or size + row.size > _MOST_BYTES
            or values + row.values > _MOST_VALUES
        )
        if chunk and is_full:
            yield chunk
            chunk, answers, size, values = [], 0, 0, 0
        chunk.append(row)
        answers += row.answers
        size += row.size
        values += row.values
    if chunk:
        yield chunk


def _answers(rows: Sequence[Row], ask: Ask) -> list[Prediction]:
    """Return an answer for each row of a request, in order.

    Items that miss the deadline are retried, a few times and as long as some are answered. Only
    the first request may fail.
    """
    answers: dict[int, Prediction] = {}
    late = list(range(len(rows)))
    for attempt in range(_MOST_ATTEMPTS):
        asked = late
        try:
            given = ask([rows[place].item for place in asked])["data"]
        except ClientError:
            if not attempt:
                raise
            break
        answers |= dict(zip(asked, given, strict=True))
        late = [place for place in asked if _is_late(answers[place])]
        if len(late) in (0, len(asked)):
            break
    return [_placed(answers[place], row.number - 1) for place, row in enumerate(rows)]


def _is_late(answer: Prediction) -> bool:
    """Return whether an item, or a job of an item for several, missed the deadline."""
    each = answer.get("answers", [answer])
    return any("error" in own and own["error"]["code"] == "deadline_exceeded" for own in each)


def _placed(answer: Prediction, index: int) -> Prediction:
    """Change an answer's index, and the path of its error, to the index among all rows."""
    placed: Prediction = {**answer, "index": index}
    if "answers" in answer:
        placed["answers"] = [_placed(own, index) for own in answer["answers"]]
    error = answer.get("error")
    if error is not None and error["param"] is not None:
        here, there = f"inputs.{answer['index']}", f"inputs.{placed['index']}"
        placed["error"] = {**error, "param": there + error["param"].removeprefix(here)}
    return placed
