"""Routes for a job's events: in pages, or live as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, nullcontext
from http import HTTPStatus
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, cast

from fastapi import APIRouter, Depends, Header
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import Response  # noqa: TC002 - FastAPI reads it when it runs

from service.context import GatewayDep  # noqa: TC001 - as above
from service.http.auth import CallerDep  # noqa: TC001 - FastAPI reads it when it runs
from service.http.parameters import After, JobId, Limit  # noqa: TC001 - as above
from service.http.responses import problems
from service.jobs.documents import EventDocument, EventList, JobProgress, event_number
from service.jobs.tailer import ProgressSeen, Tailer, TailerDep
from service.paging import DEFAULT_LIMIT
from store.jobs.actions import get_job, list_events

if TYPE_CHECKING:
    import anyio

STREAM = "text/event-stream"
PING_SECONDS = 15
_GRACE_SECONDS = 2.0  # for streams to end at shutdown; more than they need
_LONGEST_CURSOR = 256

router = APIRouter(tags=["jobs"])

AcceptHeader = Annotated[str, Header(include_in_schema=False)]

_STREAM_DESCRIPTION = (
    "With `Accept: text/event-stream`, the response is a live stream. Each event is a message with "
    "its id, and its document as data. Whenever the job's `progress` changes, there is a message "
    "`progress` without an id. Every 15 seconds there is a comment. The stream ends after the "
    "job's last event, or when the job is deleted, the key ends or its tenant is suspended. A "
    "tenant may have a hundred open streams per gateway process; further ones are refused with "
    "`too_many_streams`."
)


async def _hold_stream(
    gateway: GatewayDep, caller: CallerDep, accept: AcceptHeader = ""
) -> AsyncIterator[None]:
    """Count a stream for its tenant until its last byte is sent or the caller disconnects.

    Raises:
        ProblemError: 429 ``too_many_streams``.
    """
    share = gateway.shares.streams
    with share.hold(caller.tenant_id) if _wants_stream(accept) else nullcontext():
        yield


def _wants_stream(accept: str) -> bool:
    return STREAM in accept.lower()


@router.get(
    "/jobs/{job_id}/events",
    response_model=EventList,
    responses={
        HTTPStatus.OK: {"description": _STREAM_DESCRIPTION, "content": {STREAM: {}}},
        **problems(HTTPStatus.NOT_FOUND, HTTPStatus.TOO_MANY_REQUESTS),
    },
    dependencies=[Depends(_hold_stream)],
)
def get_events(
    *,
    gateway: GatewayDep,
    tailer: TailerDep,
    caller: CallerDep,
    job_id: JobId,
    after: After = None,
    limit: Limit = DEFAULT_LIMIT,
    accept: AcceptHeader = "",
    last_event_id: Annotated[
        str | None, Header(max_length=_LONGEST_CURSOR, description="where a stream resumes")
    ] = None,
) -> EventList | Response:
    """List a job's events, oldest first, or follow them live."""
    is_stream = _wants_stream(accept)
    with gateway.database.read() as session:
        job = get_job(session, caller.tenant_id, job_id)
        number = event_number(job, after, param="after") if after else 0
        if not is_stream:
            events, has_more = list_events(session, job, after=number, limit=limit)
            documents = [EventDocument.of(event) for event in events]
            return EventList.of(documents, has_more=has_more)
        if last_event_id:
            # A client that reconnects repeats its first request: Last-Event-ID is newer.
            number = event_number(job, last_event_id, param="Last-Event-ID")
    return EventSourceResponse(
        _messages(tailer, job_id, after=number, key_id=caller.key_id),
        ping=PING_SECONDS,
        ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
        sep="\n",
        # Only its `set` is called, at shutdown. Streams that end by themselves close their
        # connections; cancelled ones break them.
        shutdown_event=cast("anyio.Event", SimpleNamespace(set=tailer.stop)),
        shutdown_grace_period=_GRACE_SECONDS,
    )


async def _messages(
    tailer: Tailer, job_id: str, *, after: int, key_id: str | None
) -> AsyncIterator[ServerSentEvent]:
    async with aclosing(tailer.follow(job_id, after=after, key_id=key_id)) as followed:
        async for seen in followed:
            if isinstance(seen, ProgressSeen):
                data = JobProgress.of(seen).model_dump_json()
                yield ServerSentEvent(data, event="progress", sep="\n")
            else:
                document = EventDocument.of(seen)
                yield ServerSentEvent(document.model_dump_json(), id=document.id, sep="\n")
