"""``hifi jobs``: post jobs to a server, follow them, and download their results."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from hifi.cli import output
from hifi.cli.options import ENCODINGS
from hifi.cli.progress import open_screen
from hifi.cli.render import print_heads
from hifi.data.settings import IMPLIED
from service.cli import job_spec, names, options
from service.cli.actions import Actions, perform
from service.cli.job_report import describe_estimate, describe_job, describe_progress, print_job
from service.cli.pages import report_deleted, report_page
from service.cli.predictions import command as predictions
from service.cli.progress import JobDisplay, transfer_display
from service.client.resources import Jobs
from store.states import JobStatus

if TYPE_CHECKING:
    from service.cli.tenant_tables import Tables
    from service.client import Client
    from service.client.documents import AdminJob, Heads, Job

run = perform

STATUSES = tuple(status.value for status in JobStatus)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``hifi jobs``."""
    actions = Actions(parser, connect=options.connect)
    _add_submit(actions)
    listing = actions.add("list", _list, summary="list the jobs, newest first")
    listing.add_argument("--status", choices=STATUSES, help="list only jobs in this state")
    listing.add_argument("--name", metavar="NAME", help="list only those of this name")
    _add_all_tenants(listing)
    listing.add_argument(
        "--tenant", metavar="TENANT", help="with --all-tenants: only jobs of this id, ten_…"
    )
    options.add_page(listing)
    options.add_server(listing)
    cancel = actions.add(
        "cancel",
        _cancel,
        summary="cancel a job: at once if no worker runs it, else at its worker's next step",
    )
    _add_all_tenants(cancel)
    _add_job(cancel)
    options.add_server(cancel)
    for name, act, summary in (
        ("show", _calling(Jobs.get), "show a job"),
        ("watch", _watch, "show a job's progress live; the exit code is 0 only if it succeeds"),
        ("pause", _calling(Jobs.pause), "pause a training job at its next step, with a checkpoint"),
        (
            "resume",
            _calling(Jobs.resume),
            "queue a paused job again; it continues from its checkpoint",
        ),
        ("heads", _heads, "show the scores of all heads, and the selected heads"),
        ("download", _download, "download a job's head delta, adapter or merged model"),
        ("delete", _delete, "delete a finished job with its events and artifacts"),
    ):
        action = actions.add(name, _of_job(act), summary=summary)
        _add_job(action)
        if name == "download":
            _add_download(action)
        options.add_server(action)
    predictions.add_action(actions)


def _add_job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "job_id", metavar="JOB", help="its id, job_…, or its name if no other job has it"
    )


def _add_all_tenants(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--all-tenants",
        action="store_true",
        help="as an administrator, for the jobs of all tenants; without --url and HIFI_URL "
        "directly in the tables of HIFI_DATABASE_URL",
    )


def _administered(
    client: Client, args: argparse.Namespace
) -> AbstractContextManager[Client | Tables]:
    """Return the server, if it is named, or open the tables: as `hifi tenants` does."""
    from service.cli.tenant_tables import open_tables

    return nullcontext(client) if options.names_server(args) else open_tables()


def _add_submit(actions: Actions[Client]) -> None:
    submit = actions.add(
        "submit",
        _submit,
        summary="post a job",
        notes="Options that you leave out have the server's defaults; the task's columns are "
        "inferred from the data if they are unambiguous.",
    )
    job_spec.add_arguments(submit)
    submit.add_argument(
        "--dry-run", action="store_true", help="check the job and estimate its cost; store nothing"
    )
    submit.add_argument(
        "--watch", action="store_true", help="follow the job to its end, like `hifi jobs watch`"
    )
    options.add_server(submit)


def _add_download(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--encoding",
        choices=ENCODINGS,
        default="float32",
        help="of the head delta: float32 is exact; bfloat16 and int8 have half and a quarter of "
        "its size, and reading them needs the backbone (default: %(default)s)",
    )
    what.add_argument("--lora", action="store_true", help="download the PEFT adapter, a tar file")
    what.add_argument("--merged", action="store_true", help="download the merged model, a tar file")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="the target; an existing file is replaced",
    )


def _submit(client: Client, args: argparse.Namespace) -> int:
    spec = job_spec.build_spec(args)
    if args.dry_run:
        return output.report(client.jobs.dry_run(spec), describe_estimate, as_json=args.json)
    job = client.jobs.create(spec)
    if args.watch:
        output.note(f"posted {job['id']}")
        return _follow(client, job["id"], args)
    code = output.report(job, describe_job, as_json=args.json)
    if not args.json:
        output.note(f"follow it with `hifi jobs watch {job['id']}`")
    return code


def _list(client: Client, args: argparse.Namespace) -> int:
    if args.all_tenants and args.name is not None:
        return output.fail("--name does not go with --all-tenants", code=output.EXIT_USAGE)
    if args.all_tenants:
        with _administered(client, args) as target:
            every = target.all_jobs.list(
                status=args.status, tenant=args.tenant, after=args.after, limit=args.limit
            )
        return report_page(every, args, columns=_ADMIN_COLUMNS, what="jobs")
    if args.tenant is not None:
        return output.fail("--tenant needs --all-tenants", code=output.EXIT_USAGE)
    page = client.jobs.list(status=args.status, name=args.name, after=args.after, limit=args.limit)
    return report_page(page, args, columns=_COLUMNS, what="jobs")


_COLUMNS: dict[str, Callable[[Job], str]] = {
    "id": lambda job: job["id"],
    "status": lambda job: job["status"],
    "name": lambda job: job["name"] or "",
    "model": lambda job: job["spec"]["model"],
    "progress": describe_progress,
    "created": lambda job: output.format_moment(job["created_at"]),
}


_ADMIN_COLUMNS: dict[str, Callable[[AdminJob], str]] = {
    "id": lambda job: job["id"],
    "status": lambda job: job["status"],
    "tenant": lambda job: job["tenant"],
    "model": lambda job: job["model"] or "",
    "created": lambda job: output.format_moment(job["created_at"]),
    "started": lambda job: output.format_moment(job["started_at"]),
}


def _cancel(client: Client, args: argparse.Namespace) -> int:
    if not args.all_tenants:
        return _of_job(_calling(Jobs.cancel))(client, args)
    with _administered(client, args) as target:
        job = target.all_jobs.cancel(args.job_id)
    return output.report(
        job,
        lambda job: {name: show(job) for name, show in _ADMIN_COLUMNS.items()},
        as_json=args.json,
    )


def _of_job(
    act: Callable[[Client, argparse.Namespace], int],
) -> Callable[[Client, argparse.Namespace], int]:
    """Return the action with the job's id in place of its name."""

    def act_on_id(client: Client, args: argparse.Namespace) -> int:
        args.job_id = names.job_id(client, args.job_id)
        return act(client, args)

    return act_on_id


def _calling(call: Callable[[Jobs, str], Job]) -> Callable[[Client, argparse.Namespace], int]:
    """Return an action that makes a call of the client and prints the returned job."""

    def act(client: Client, args: argparse.Namespace) -> int:
        return print_job(call(client.jobs, args.job_id), as_json=args.json)

    return act


def _watch(client: Client, args: argparse.Namespace) -> int:
    return _follow(client, args.job_id, args)


def _follow(client: Client, job_id: str, args: argparse.Namespace) -> int:
    """Show a job until its end; return 0 only if it succeeded."""
    try:
        with open_screen(Console(stderr=True)) as screen:
            display = JobDisplay(screen)
            for event in client.jobs.watch(job_id, on_progress=display.show_progress):
                display.show_event(event)
    except KeyboardInterrupt:
        return output.fail(
            f"interrupted; the job continues: `hifi jobs watch {job_id}` follows it again",
            code=output.EXIT_INTERRUPTED,
        )
    job = client.jobs.get(job_id)
    print_job(job, as_json=args.json)
    if job["status"] == "succeeded":
        return output.EXIT_OK
    error = job["error"]
    return output.fail(
        f"job {job_id} {job['status']}"
        + ("" if error is None else f": {error['message']} ({error['code']})")
    )


def _heads(client: Client, args: argparse.Namespace) -> int:
    heads = client.jobs.heads(args.job_id)
    if not args.json:
        print_heads(Console(), heads)
        Console().print()
    return output.report(heads, _describe_heads, as_json=args.json)


def _describe_heads(heads: Heads) -> dict[str, str]:
    count = sum(len(layer["selected"]) for layer in heads["layers"])
    score = heads.get("score", IMPLIED["score"])  # earlier servers send neither it nor a budget
    budget = heads.get("budget")
    count_by = f"k {heads['k']}" if budget is None else f"budget {budget}"
    return {
        "selected": f"{count} of {heads['num_layers'] * heads['num_heads']} heads, scored on "
        f"{heads['n_samples']} samples",
        "trained": f"{heads['trainable_parameters']:,} parameters with the task head, "
        f"{heads['fraction']:.2%} of the model",
        "by": f"{score}, {count_by}, xi {heads['xi']:g}, d {heads['d']:g}, {heads['strategy']}, "
        f"teleport {heads['teleport']}",
    }


def _download(client: Client, args: argparse.Namespace) -> int:
    what = "lora" if args.lora else "merged" if args.merged else args.encoding
    with transfer_display(Console(stderr=True), "downloading") as display:
        if args.lora:
            done = client.jobs.download_lora(args.job_id, args.out, on_progress=display)
        elif args.merged:
            done = client.jobs.download_merged(args.job_id, args.out, on_progress=display)
        else:
            done = client.jobs.download_delta(
                args.job_id, args.out, encoding=args.encoding, on_progress=display
            )
    document = {
        "object": "download",
        "job": args.job_id,
        "path": str(done.path),
        "encoding": what,
        "bytes": done.bytes,
        "sha256": done.sha256,
    }
    unpack = f"; tar -xf {done.path} -C FOLDER" if args.lora or args.merged else ""
    entries = {
        "written": f"{done.path}  {output.format_bytes(done.bytes)}  {what}{unpack}",
        "sha256": done.sha256,
    }
    return output.report(document, lambda _: entries, as_json=args.json)


def _delete(client: Client, args: argparse.Namespace) -> int:
    client.jobs.delete(args.job_id)
    return report_deleted(args.job_id, args, kind="job")
