"""``hifi predictions``: answer whole data sets in the background of a server."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rich.console import Console

from hifi.cli import output
from service.cli import names, options
from service.cli.actions import Actions, perform
from service.cli.pages import report_deleted, report_page
from service.cli.progress import transfer_display
from service.client.resources import BatchPredictions
from store.predictions.spec import Format, SplitName
from store.states import PredictionStatus

if TYPE_CHECKING:
    from service.client import Client
    from service.client.documents import BatchPrediction

run = perform


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``hifi predictions``."""
    actions = Actions(parser, connect=options.connect)
    _add_submit(actions)
    listing = actions.add("list", _list, summary="list the batch predictions, newest first")
    listing.add_argument(
        "--status",
        choices=[status.value for status in PredictionStatus],
        help="list only those in this state",
    )
    listing.add_argument("--name", metavar="NAME", help="list only those of this name")
    options.add_page(listing)
    options.add_server(listing)
    for name, act, summary in (
        ("show", _calling(BatchPredictions.get), "show a batch prediction"),
        ("watch", _watch, "follow one to its end; the exit code is 0 only if it succeeds"),
        (
            "cancel",
            _calling(BatchPredictions.cancel),
            "cancel one: at once if it waits, else within seconds; its answers are dropped",
        ),
        ("download", _download, "download the result: every row with its answers beside it"),
        ("delete", _delete, "delete a finished one with its result"),
    ):
        action = actions.add(name, act, summary=summary)
        action.add_argument("prediction_id", metavar="PREDICTION", help="its id, pred_…")
        if name == "download":
            action.add_argument(
                "--out",
                type=Path,
                required=True,
                metavar="FILE",
                help="the target; an existing file is replaced",
            )
        options.add_server(action)


def _add_submit(actions: Actions[Client]) -> None:
    submit = actions.add(
        "submit",
        _submit,
        summary="answer the rows of a data set with one or several jobs",
        notes="The data set needs the columns that the jobs read; other columns stay in the "
        "result. A row that cannot be read gets an error beside it.",
    )
    submit.add_argument(
        "dataset", metavar="DATASET", help="its id, ds_…, or its name if no other has it"
    )
    submit.add_argument(
        "jobs",
        nargs="+",
        metavar="JOB",
        help="a succeeded job: its id, job_…, or its name if no other job has it",
    )
    submit.add_argument(
        "--split", choices=get_args(SplitName), default="train", help="default: %(default)s"
    )
    submit.add_argument(
        "--format",
        choices=get_args(Format),
        default="parquet",
        help="of the result (default: %(default)s)",
    )
    submit.add_argument("--name", metavar="NAME", help="for people")
    submit.add_argument(
        "--no-truncate",
        dest="truncate",
        action="store_false",
        help="give rows with texts of too many tokens an error, instead of cutting the texts",
    )
    submit.add_argument(
        "--watch", action="store_true", help="follow it to its end, like `hifi predictions watch`"
    )
    options.add_server(submit)


def _submit(client: Client, args: argparse.Namespace) -> int:
    prediction = client.predictions.create(
        args.dataset,
        [names.job_id(client, job) for job in args.jobs],
        split=args.split,
        result_format=args.format,
        truncate=args.truncate,
        name=args.name,
    )
    if args.watch:
        output.note(f"posted {prediction['id']}")
        return _follow(client, prediction["id"], args)
    code = output.report(prediction, _describe, as_json=args.json)
    if not args.json:
        output.note(f"follow it with `hifi predictions watch {prediction['id']}`")
    return code


def _list(client: Client, args: argparse.Namespace) -> int:
    page = client.predictions.list(
        status=args.status, name=args.name, after=args.after, limit=args.limit
    )
    return report_page(page, args, columns=_COLUMNS, what="batch predictions")


def _calling(
    call: Callable[[BatchPredictions, str], BatchPrediction],
) -> Callable[[Client, argparse.Namespace], int]:
    """Return an action that makes a call of the client and prints the returned prediction."""

    def act(client: Client, args: argparse.Namespace) -> int:
        prediction = call(client.predictions, args.prediction_id)
        return output.report(prediction, _describe, as_json=args.json)

    return act


def _watch(client: Client, args: argparse.Namespace) -> int:
    return _follow(client, args.prediction_id, args)


def _follow(client: Client, prediction_id: str, args: argparse.Namespace) -> int:
    """Print a line whenever rows are done, until the end; return 0 only if it succeeded."""
    shown = None
    try:
        for prediction in client.predictions.watch(prediction_id):
            line = f"{prediction['status']}: {_progress(prediction)}"
            if line != shown:
                output.note(line)
                shown = line
    except KeyboardInterrupt:
        return output.fail(
            f"interrupted; it continues: `hifi predictions watch {prediction_id}` follows it again",
            code=output.EXIT_INTERRUPTED,
        )
    output.report(prediction, _describe, as_json=args.json)
    if prediction["status"] == "succeeded":
        return output.EXIT_OK
    error = prediction["error"]
    return output.fail(
        f"prediction {prediction_id} {prediction['status']}"
        + ("" if error is None else f": {error['message']} ({error['code']})")
    )


def _download(client: Client, args: argparse.Namespace) -> int:
    with transfer_display(Console(stderr=True), "downloading") as display:
        done = client.predictions.download(args.prediction_id, args.out, on_progress=display)
    document = {"path": str(done.path), "bytes": done.bytes, "sha256": done.sha256}
    shown = {
        "file": str(done.path),
        "size": output.format_bytes(done.bytes),
        "sha256": done.sha256,
    }
    return output.report(document, lambda _: shown, as_json=args.json)


def _delete(client: Client, args: argparse.Namespace) -> int:
    client.predictions.delete(args.prediction_id)
    return report_deleted(args.prediction_id, args, kind="prediction")


def _progress(prediction: BatchPrediction) -> str:
    progress = prediction["progress"]
    eta = progress["eta_seconds"]
    ending = "" if eta is None else f", about {eta:.0f} s left"
    return f"{progress['rows']:,} of {progress['total_rows']:,} rows{ending}"


def _describe(prediction: BatchPrediction) -> dict[str, str]:
    artifact, error = prediction["artifact"], prediction["error"]
    return {
        "id": prediction["id"],
        "status": prediction["status"],
        "name": prediction["name"] or "",
        "dataset": f"{prediction['dataset']} ({prediction['split']})",
        "jobs": ", ".join(prediction["jobs"]),
        "progress": _progress(prediction),
        "result": ""
        if artifact is None
        else f"{prediction['format']}, {output.format_bytes(artifact['bytes'])}",
        "error": "" if error is None else f"{error['message']} ({error['code']})",
        "created": output.format_moment(prediction["created_at"]),
    }


_COLUMNS: dict[str, Callable[[BatchPrediction], str]] = {
    "id": lambda prediction: prediction["id"],
    "status": lambda prediction: prediction["status"],
    "name": lambda prediction: prediction["name"] or "",
    "jobs": lambda prediction: ", ".join(prediction["jobs"]),
    "progress": _progress,
    "created": lambda prediction: output.format_moment(prediction["created_at"]),
}
