"""``hifi jobs predict``: predict for rows from the command line or a file."""

from __future__ import annotations

import argparse
import base64
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, NoReturn, get_origin

from rich.console import Console

from hifi.cli import output
from hifi.data.task_types import task_types
from service.cli import options
from service.cli.progress import transfer_display
from service.client.errors import ClientError, reading

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from service.cli.actions import Actions
    from service.client import Client
    from service.client.documents import Prediction, Predictions

# Limits of one request; the server accepts twice the bytes.
_MOST_ROWS, _MOST_BYTES = 256, 8 << 20
_MOST_ATTEMPTS = 5
_SHOWN_CHARACTERS = 60
_SHOWN_ERRORS = 20
_JOB = "job_"  # the prefix of a job's id
_SOURCES = {"texts": "TEXT", "pair": "--pair", "image": "--image", "file": "--file"}


class RowsError(ClientError):
    """The options do not form rows, or a row cannot be sent."""


class Row(NamedTuple):
    """An item of a request, and its text in the table."""

    item: Any
    shown: str


def add_action(actions: Actions[Client]) -> None:
    """Add ``predict`` to the actions of ``hifi jobs``."""
    parser = actions.add(
        "predict",
        _predict,
        summary="predict with a job's head delta",
        notes="Pass texts, pairs, images or a file: only one kind. The exit code is 0 only if "
        "every row has an answer.",
    )
    parser.add_argument(
        "job_id",
        nargs="?",
        metavar="JOB",
        help="its id, job_…; without it each row of --file names its job",
    )
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="one text per row, after JOB")
    parser.words = "texts"
    parser.add_argument(
        "--pair",
        nargs=2,
        action="append",
        metavar=("TEXT", "TEXT"),
        help="the two texts of a row, for a job on pairs of texts; may be repeated",
    )
    parser.add_argument(
        "--image",
        type=Path,
        action="append",
        metavar="PATH",
        help="an image file, for a job on images; may be repeated",
    )
    parser.add_argument(
        "--file",
        metavar="FILE",
        help='JSON Lines, one input per line: {"text": …}, {"text": …, "text_pair": …} or '
        '{"image": "<Base64>"}; without JOB {"job": …, "input": …}; - is stdin',
    )
    parser.add_argument(
        "--no-truncate",
        dest="truncate",
        action="store_false",
        help="return an error for texts of more tokens than the job's max_length, instead of "
        "cutting them as in training",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help="limit of a request of up to 256 rows, at most 300 (default: the server's)",
    )
    options.add_server(parser)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds")
    return seconds


def _predict(client: Client, args: argparse.Namespace) -> int:
    rows = _read_rows(args)
    sizes = [_size(row, number=number) for number, row in enumerate(rows, start=1)]
    answers: list[Prediction] = []
    call: Callable[..., Predictions] = (
        client.predict if args.job_id is None else partial(client.jobs.predict, args.job_id)
    )
    ask = partial(call, truncate=args.truncate, timeout_seconds=args.timeout)
    with transfer_display(Console(stderr=True), "predicting") as display:
        for chunk in _chunks(sizes):
            answers += _answers([row.item for row in rows[chunk]], ask, start=chunk.start)
            display(sum(sizes[: chunk.stop]), sum(sizes))
    if args.json:
        output.print_json({"object": "list", "data": answers})
    else:
        _print_answers(rows, answers, names_jobs=args.job_id is None)
    return _report_errors(answers)


def _answers(
    items: Sequence[Any], ask: Callable[[Sequence[Any]], Predictions], *, start: int
) -> list[Prediction]:
    """Return an answer for each item of a request, in order; ``start`` is the first one's row.

    Items that miss the deadline are retried, a few times and as long as some are answered. Only
    the first request may fail.
    """
    answers: dict[int, Prediction] = {}
    late = list(range(len(items)))
    for attempt in range(_MOST_ATTEMPTS):
        asked = late
        try:
            given = ask([items[place] for place in asked])["data"]
        except ClientError:
            if not attempt:
                raise
            break
        answers |= dict(zip(asked, given, strict=True))
        late = [place for place in asked if _is_late(answers[place])]
        if len(late) in (0, len(asked)):
            break
    return [_placed(answers[place], start + place) for place in range(len(items))]


def _is_late(answer: Prediction) -> bool:
    return "error" in answer and answer["error"]["code"] == "deadline_exceeded"


def _read_rows(args: argparse.Namespace) -> list[Row]:
    """Return the rows of the only option that may have some."""
    if args.job_id is not None and not args.job_id.startswith(_JOB):
        raise RowsError(f"{args.job_id!r} is not a job's id: pass the id first, then the texts")
    given = [option for name, option in _SOURCES.items() if getattr(args, name)]
    if not given:
        raise RowsError(f"nothing to predict: pass {' or '.join(_SOURCES.values())}")
    if len(given) > 1:
        raise RowsError(f"pass {' or '.join(given)}, not both")
    if args.file:
        rows = _read_file(args.file)
        _check_jobs(rows, job_id=args.job_id)
        return rows
    if args.job_id is None:
        raise RowsError("no job: pass its id first")
    if args.image:
        return [Row({"image": _read_image(path)}, shown=str(path)) for path in args.image]
    pairs = args.pair or [[text] for text in args.texts]
    return [_row(dict(zip(("text", "text_pair"), texts, strict=False))) for texts in pairs]


def _check_jobs(rows: Sequence[Row], *, job_id: str | None) -> None:
    """Check that either the command line or the rows name the job."""
    named = [isinstance(row.item, dict) and "job" in row.item for row in rows]
    if job_id is None and not any(named):
        raise RowsError('no row names its job: pass the job\'s id, or {"job": …, "input": …}')
    if job_id is not None and any(named):
        number = named.index(True) + 1
        raise RowsError(f"row {number} names its own job: remove it, or {job_id}")


def _row(item: object) -> Row:
    """Return the row of an item, with the beginning of its texts."""
    given = item.get("input", item) if isinstance(item, dict) else item
    fields = given if isinstance(given, dict) else {}
    texts = [fields[name] for name in ("text", "text_pair") if isinstance(fields.get(name), str)]
    if not texts:
        return Row(item, shown="image" if "image" in fields else "")
    most = _SHOWN_CHARACTERS // len(texts)
    return Row(item, shown=" | ".join(_beginning(text, most=most) for text in texts))


def _beginning(text: str, *, most: int) -> str:
    line = " ".join(text[: 10 * most].split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _read_file(name: str) -> list[Row]:
    """Return the rows of a JSON Lines file; blank lines are skipped."""
    rows = []
    with reading(name), _opened(name) as file:
        for number, line in enumerate(file, start=1):
            try:
                if line.strip():
                    rows.append(_row(json.loads(line, parse_constant=_refuse)))
            except (ValueError, RecursionError) as error:
                raise RowsError(f"{name}: line {number} is not JSON ({error})") from error
    if not rows:
        raise RowsError(f"{name} has no rows")
    return rows


def _opened(name: str) -> AbstractContextManager[BinaryIO]:
    return nullcontext(sys.stdin.buffer) if name == "-" else Path(name).open("rb")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _read_image(path: Path) -> str:
    with reading(path):
        return base64.b64encode(path.read_bytes()).decode()


def _size(row: Row, *, number: int) -> int:
    """Return the bytes of a row in a request; JSON cannot represent half of a surrogate pair."""
    try:
        return len(json.dumps(row.item, ensure_ascii=False, allow_nan=False).encode())
    except UnicodeEncodeError as error:
        raise RowsError(f"row {number} cannot be sent: it is not valid Unicode") from error
    except ValueError as error:
        raise RowsError(f"row {number} cannot be sent ({error})") from error


def _chunks(sizes: Sequence[int]) -> Iterator[slice]:
    """Divide rows into requests within the limits of rows and bytes."""
    start = size = 0
    for place, more in enumerate(sizes):
        if place - start == _MOST_ROWS or (place > start and size + more > _MOST_BYTES):
            yield slice(start, place)
            start, size = place, 0
        size += more
    yield slice(start, len(sizes))


def _placed(answer: Prediction, index: int) -> Prediction:
    """Change an answer's index, and the path of its error, to the index among all rows."""
    placed: Prediction = {**answer, "index": index}
    error = answer.get("error")
    if error is not None and error["param"] is not None:
        here, there = f"inputs.{answer['index']}", f"inputs.{placed['index']}"
        placed["error"] = {**error, "param": there + error["param"].removeprefix(here)}
    return placed


def _print_answers(rows: Sequence[Row], answers: Sequence[Prediction], *, names_jobs: bool) -> None:
    """Print a table of the rows that have an answer; columns without values are left out."""
    cells: list[dict[str, Any]] = [
        {**answer, "row": answer["index"] + 1, "input": rows[answer["index"]].shown}
        for answer in answers
        if "error" not in answer
    ]
    used = {name for row in cells for name in row}
    fields = ["row", *(["job"] if names_jobs else []), *_shown_fields(), "input"]
    header = [name for name in fields if name in used]
    if cells:
        output.print_table(header, [[_cell(row.get(name, "")) for name in header] for row in cells])


def _shown_fields() -> list[str]:
    """Return the fields of answers that the table shows: all except mappings."""
    fields = (field for each in task_types() for field in each.answer.fields)
    return list(dict.fromkeys(f.name for f in fields if get_origin(f.type) is not dict))


def _cell(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(_cell, value))
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _report_errors(answers: Sequence[Prediction]) -> int:
    """Print the rows without an answer to stderr, and return the exit code."""
    failed = [(answer["index"], answer["error"]) for answer in answers if "error" in answer]
    for index, error in failed[:_SHOWN_ERRORS]:
        output.fail(f"row {index + 1}: {error['message']} ({error['code']})")
    if len(failed) > _SHOWN_ERRORS:
        output.fail(f"{len(failed)} of {len(answers)} rows have no answer; --json lists all")
    return output.EXIT_ERROR if failed else output.EXIT_OK
