"""The command: its options, and what it does with the rows."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from hifi.cli import output
from hifi.data.formats import ENDINGS_IN_WORDS
from hifi.data.task_types import find_task_type, request_fields
from service.cli import names, options
from service.cli.predictions.answered_file import AnsweredFile
from service.cli.predictions.display import FindLines, RowErrors, print_answers
from service.cli.predictions.requests import Ask, predict_rows
from service.cli.predictions.rows import (
    CHOICES,
    Row,
    RowFile,
    RowsError,
    image_item,
    input_columns,
    make_row,
    open_row_file,
)
from service.cli.progress import transfer_display
from service.client.errors import ClientError, reading

if TYPE_CHECKING:
    from service.cli.actions import ActionParser, Actions
    from service.client import Client
    from service.client.documents import Job, Prediction

_TEXTS = ("text", "text_pair")
_SOURCES = {"texts": "TEXT", "pair": "--pair", "image": "--image", "file": "--file"}


def add_action(actions: Actions[Client]) -> None:
    """Add ``predict`` to the actions of ``hifi jobs``."""
    parser = actions.add(
        "predict",
        _predict,
        summary="predict with a job's head delta",
        notes="Pass texts, pairs, images or a file: only one kind. The exit code is 0 only if "
        "every row has an answer.",
    )
    _add_rows(parser)
    _add_options(parser)
    options.add_server(parser)


def _add_rows(parser: ActionParser) -> None:
    parser.add_argument(
        "job_id",
        nargs="?",
        metavar="JOB",
        help="its id, job_…, or its name if no other job has it; without it each row of --file "
        "names its job",
    )
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="one text per row, after JOB")
    parser.words = "texts"
    parser.add_argument(
        "--pair",
        nargs=2,
        action="append",
        metavar=("TEXT", "TEXT"),
        help="the two texts of a row, for a job on pairs of texts, or a question and its context; "
        "may be repeated",
    )
    parser.add_argument(
        "--choices",
        nargs="+",
        metavar="TEXT",
        help="the choices of each row, for a multiple-choice job: after its text, or its --pair",
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
        help=f"rows with the columns of the training file ({ENDINGS_IN_WORDS}), or with "
        f"{', '.join(request_fields())}; other columns are ignored; without JOB, objects of JSON "
        '{"job": …, "input": …} or {"jobs": […, …], "input": …}; - is JSON Lines from stdin',
    )


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write the rows of --file with their answers beside them, in the same format; run "
        "the same command again to continue one that was stopped",
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


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds")
    return seconds


def _predict(client: Client, args: argparse.Namespace) -> int:
    _check_options(args)
    if args.job_id is not None:
        args.job_id = _job_id(client, args.job_id)
    ask = _asking(client, args)
    if not args.file:
        listed = list(_listed_rows(args, client))
        size = sum(row.size for row in listed)
        return _predict_listed(listed, ask, args, size=size, find_lines=lambda _: {})
    job = None if args.job_id is None else client.jobs.get(args.job_id)
    columns = None if job is None else input_columns(job)
    with open_row_file(args.file, columns=columns) as file:
        if args.out is None:
            size = _check_rows(file)
            return _predict_listed(file.rows(), ask, args, size=size, find_lines=file.find_lines)
        return _predict_to_file(_answered_file(file, job, args), ask, args)


def _check_options(args: argparse.Namespace) -> None:
    given = [option for name, option in _SOURCES.items() if getattr(args, name)]
    if args.choices and (args.image or args.file):
        raise RowsError("--choices belongs to texts or --pair; a file has the choices of its rows")
    if not given and not args.choices:
        raise RowsError(f"nothing to predict: pass {' or '.join(_SOURCES.values())}")
    if len(given) > 1:
        raise RowsError(f"pass {' or '.join(given)}, not both")
    if args.job_id is None and not args.file:
        raise RowsError("no job: pass its id first")
    if args.out is not None and (not args.file or args.file == "-"):
        raise RowsError("--out needs --file with a file of rows")


def _job_id(client: Client, reference: str) -> str:
    try:
        return names.job_id(client, reference)
    except names.UnclearNameError as error:
        raise RowsError(f"{error}; pass the job first, then the texts") from error


def _asking(client: Client, args: argparse.Namespace) -> Ask:
    call: Any = client.predict if args.job_id is None else partial(client.jobs.predict, args.job_id)
    return partial(call, truncate=args.truncate, timeout_seconds=args.timeout)


def _listed_rows(args: argparse.Namespace, client: Client) -> Iterator[Row]:
    """Yield the rows that the command line itself has."""
    fields: tuple[str, ...] = _TEXTS
    if args.pair:
        read = tuple(input_columns(client.jobs.get(args.job_id)))
        fields = read if len(read) == len(_TEXTS) else _TEXTS  # the server refuses the others
    for number, path in enumerate(args.image or (), start=1):
        with reading(path):
            image = image_item(path.read_bytes())
        yield make_row(image, number=number, shown=str(path))
    pairs = args.pair or [[text] for text in args.texts]
    if args.choices:
        pairs, fields = pairs or [[]], _TEXTS
    for number, texts in enumerate(pairs, start=1):
        item: dict[str, Any] = dict(zip(fields, texts, strict=False))
        if args.choices:
            item[CHOICES] = args.choices
        yield make_row(item, number=number)


def _check_rows(file: RowFile) -> int:
    """Read a whole file before anything is sent, and return the bytes of all requests."""
    size = sum(row.size for row in file.rows())
    if not size:
        raise RowsError(f"{file.name} has no rows")
    return size


def _predict_listed(
    rows: Iterable[Row], ask: Ask, args: argparse.Namespace, *, size: int, find_lines: FindLines
) -> int:
    """Print the answers of all rows."""
    answered: list[Row] = []
    answers: list[Prediction] = []
    with _progress(size) as advance:
        for chunk, given in predict_rows(rows, ask):
            answered += (replace(row, item=None) for row in chunk)
            answers += given
            advance(chunk)
    if args.json:
        output.print_json({"object": "list", "data": answers})
    else:
        print_answers(answered, answers, names_jobs=args.job_id is None)
    errors = RowErrors()
    for answer in answers:
        errors.add(answer)
    errors.report(find_lines)
    if errors.has_more:
        output.fail(f"{errors.failed} of {errors.rows} rows have no answer; --json lists all")
    return output.EXIT_ERROR if errors.failed else output.EXIT_OK


def _answered_file(file: RowFile, job: Job | None, args: argparse.Namespace) -> AnsweredFile:
    task = {} if job is None else job["spec"].get("task") or {}
    fields = find_task_type(task["type"]).answer.fields if task.get("type") else ()
    request = {"job": args.job_id, "truncate": args.truncate}
    return AnsweredFile(path=args.out, source=file, fields=fields, request=request)


def _predict_to_file(out: AnsweredFile, ask: Ask, args: argparse.Namespace) -> int:
    """Write all rows with their answers; those of an earlier run are not asked again."""
    out.check()
    size = _check_rows(out.source)
    with out.open_journal() as journal, _progress(size) as advance:
        rows = out.source.rows()
        advance(list(islice(rows, journal.done)))
        try:
            for chunk, answers in predict_rows(rows, ask):
                journal.add(answers)
                advance(chunk)
        except (ClientError, KeyboardInterrupt):
            if journal.done:
                output.note(f"{journal.done} rows are done; run the same command again to continue")
            raise
    errors = RowErrors()
    written = out.write(errors)
    document = {"object": "predictions", "job": args.job_id, "path": str(out.path), **written}
    output.report(document, _describe_written, as_json=args.json)
    if not errors.failed:
        return output.EXIT_OK
    errors.report(out.source.find_lines)
    return output.fail(
        f"{errors.failed} of {errors.rows} rows have no answer"
        + (
            "; predicted_error says why"
            if args.job_id is not None
            else ", or none of one of their jobs; predicted_error or predicted_answers says why"
        )
    )


def _describe_written(document: Mapping[str, Any]) -> dict[str, str]:
    return {
        "written": f"{document['path']}  {output.format_bytes(document['bytes'])}",
        "rows": f"{document['rows']:,}",
        "sha256": document["sha256"],
    }


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Sequence[Row]], None]]:
    """Show the bytes sent during a block, which gets a function that adds those of some rows."""
    done = 0
    with transfer_display(Console(stderr=True), "predicting") as show:

        def advance(rows: Sequence[Row]) -> None:
            nonlocal done
            done += sum(row.size for row in rows)
            show(done, total)

        yield advance
