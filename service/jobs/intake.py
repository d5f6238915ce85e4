"""The intake: posted jobs are admitted and queued, as many in one transaction as there are."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from anyio import CapacityLimiter, to_thread
from starlette.concurrency import run_in_threadpool

from service.http.batches import Batcher
from service.http.replay import Answer, still_at_work
from service.jobs.admission import Completions, admit
from service.jobs.documents import JobDocument
from service.jobs.hub import is_hub_id
from store.datasets import keep_datasets
from store.errors import StoreError
from store.idempotency import KeyedRequest, key_reused, recall, remember
from store.jobs import NewJob, QueuedJob, SpaciousQueues, draft, enqueue
from store.problems import ProblemError
from store.spec import HubDataset
from store.tables import Backbone, Dataset
from store.tenants import lock_tenants

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from store.database import Database
    from store.queue import TokenPublisher
    from store.settings import Settings
    from store.spec import JobSpec

PATH = "/jobs"
_MOST = 64
_PAUSE_SECONDS = 0.003  # a fifth of what a batch takes
_HUB_QUESTIONS = 4  # at once


@dataclass(frozen=True, kw_only=True)
class Posting:
    """A posted job.

    Attributes:
        tenant_id: whose it is to be.
        spec: as the caller wrote it.
        request: which request it is, where it came with a key.
        admitted: where it was admitted before it joins others, because the hub was asked.
    """

    tenant_id: str
    spec: JobSpec
    request: KeyedRequest | None
    admitted: NewJob | None = None


class Intake:
    """Takes posted jobs in.

    A request with a key is recalled, done and remembered in one transaction that holds its
    tenant's row: there is never a twin at work beside it, and a crash leaves nothing of it.

    Args:
        database: where the jobs go.
        settings: of the server.
        publisher: of tokens, after the commit.
    """

    def __init__(
        self, *, database: Database, settings: Settings, publisher: TokenPublisher
    ) -> None:
        self._database = database
        self._settings = settings
        self._publisher = publisher
        self._spacious = SpaciousQueues()
        self._completions = Completions()
        self._batcher = Batcher(self._take, most=_MOST, pause=_PAUSE_SECONDS)
        self._asking_hub = CapacityLimiter(_HUB_QUESTIONS)

    async def post(self, posting: Posting) -> Answer:
        """Queue a job.

        Returns:
            202 with the job's document; what a request with the same key was answered.

        Raises:
            ProblemError: as ``admit``; 409 ``idempotency_in_progress``.
            NotFoundError: there is no such data set, or it is another tenant's.
            QuotaExceededError: too many jobs wait already.
            IdempotencyKeyReusedError: the key came with another body.
        """
        limiter = self.limiter_for(posting.spec)
        if limiter is not None:
            # Nobody else is to wait for the hub, nor is the database.
            known = await run_in_threadpool(self._recall, posting)
            if known is not None:
                return known
            posting = await to_thread.run_sync(self._admit_alone, posting, limiter=limiter)
        return await self._batcher.ask(posting)

    def limiter_for(self, spec: JobSpec) -> CapacityLimiter | None:
        """Give what an admission has to wait for that asks the hub; None where it does not.

        The hub may take seconds, and callers who wait for it must not take the threads that all
        others need.
        """
        is_elsewhere = is_hub_id(spec.model) or isinstance(spec.dataset, HubDataset)
        return self._asking_hub if self._settings.allow_hub and is_elsewhere else None

    async def close(self) -> None:
        """Wait for the batch that is being queued, if any."""
        await self._batcher.close()

    def _recall(self, posting: Posting) -> Answer | None:
        if posting.request is None:
            return None
        with self._database.read() as session:
            known = recall(session, [posting.request]).get(posting.request)
        if isinstance(known, Exception):
            raise known
        return None if known is None else Answer(**known).again()

    def _admit_alone(self, posting: Posting) -> Posting:
        with self._database.read() as session:
            admission = admit(
                session, tenant_id=posting.tenant_id, spec=posting.spec, settings=self._settings
            )
        return replace(posting, admitted=admission.new_job)

    def _admit(self, session: Session, posting: Posting) -> NewJob:
        return posting.admitted or (
            admit(
                session,
                tenant_id=posting.tenant_id,
                spec=posting.spec,
                settings=self._settings,
                completions=self._completions,
            ).new_job
        )

    def _take(self, postings: Sequence[Posting]) -> list[Answer | Exception]:
        """Take in what has come while the last batch was at work."""
        with self._database.write() as session:
            lock_tenants(session, {posting.tenant_id for posting in postings})
            requests = {posting.request for posting in postings if posting.request is not None}
            known = recall(session, requests)
            firsts: dict[Hashable, Posting] = {}
            for index, posting in enumerate(postings):
                if posting.request is None or posting.request not in known:
                    firsts.setdefault(_name(posting, index), posting)
            queued = self._queue(session, list(firsts.values()))
        count = sum(isinstance(answer, Answer) for answer in queued)
        if count:
            self._publisher.publish(count)
        answers = dict(zip(firsts, queued, strict=True))
        outcomes: list[Answer | Exception] = []
        for index, posting in enumerate(postings):
            if posting.request is not None and posting.request in known:
                outcomes.append(_found(known[posting.request]))
            else:
                name = _name(posting, index)
                outcomes.append(_share(posting, first=firsts[name], answer=answers[name]))
        return outcomes

    def _queue(self, session: Session, postings: Sequence[Posting]) -> list[Answer | Exception]:
        """Admit postings, and queue those that can be done."""
        # Held while the session is asked for them: it forgets what nobody holds.
        backbones, kept = _load(session, postings)
        admitted = [self._try_to_admit(session, posting) for posting in postings]
        del backbones
        wanted = [
            (posting.tenant_id, new)
            for posting, new in zip(postings, admitted, strict=True)
            if isinstance(new, NewJob)
        ]
        limit = self._settings.tenant_max_queued
        drafts = iter(
            draft(session, wanted, kept=kept, max_queued=limit, spacious=self._spacious)
            if wanted
            else ()
        )
        jobs = [next(drafts) if isinstance(new, NewJob) else new for new in admitted]
        enqueue(session, [job for job in jobs if isinstance(job, QueuedJob)])
        answers = [_answer(job) if isinstance(job, QueuedJob) else job for job in jobs]
        remember(
            session,
            [
                (posting.request, vars(answer))
                for posting, answer in zip(postings, answers, strict=True)
                if posting.request is not None and isinstance(answer, Answer)
            ],
        )
        return answers

    def _try_to_admit(self, session: Session, posting: Posting) -> NewJob | Exception:
        try:
            return self._admit(session, posting)
        except (ProblemError, StoreError) as refusal:
            return refusal


_BACKBONES = sa.select(Backbone).where(Backbone.id.in_(sa.bindparam("ids", expanding=True)))


def _load(
    session: Session, postings: Sequence[Posting]
) -> tuple[Sequence[Backbone], Mapping[str, Dataset]]:
    """Have the session know what postings speak of, in two queries for all."""
    models = {posting.spec.model for posting in postings}
    datasets = {
        posting.spec.dataset for posting in postings if isinstance(posting.spec.dataset, str)
    }
    backbones = session.scalars(_BACKBONES, {"ids": list(models)}).all()
    return backbones, keep_datasets(session, datasets)


def _answer(job: QueuedJob) -> Answer:
    return Answer(
        status=HTTPStatus.ACCEPTED,
        headers={"Location": f"{PATH}/{job.id}"},
        body=JobDocument.of_queued(job).model_dump_json(),
    )


def _name(posting: Posting, index: int) -> Hashable:
    """Name a posting within its batch: equal names are twins."""
    return index if posting.request is None else posting.request.key


def _share(posting: Posting, *, first: Posting, answer: Answer | Exception) -> Answer | Exception:
    """Answer a posting whose twin in the batch was queued or refused; it may be the twin itself."""
    if posting is first:
        return answer
    if posting.request is not None and posting.request != first.request:
        # With another body; of a refused request no key is remembered, so it may come again.
        is_used = isinstance(answer, Answer)
        return key_reused(posting.request.key) if is_used else still_at_work()
    return answer.again() if isinstance(answer, Answer) else answer


def _found(known: Mapping[str, Any] | Exception) -> Answer | Exception:
    return known if isinstance(known, Exception) else Answer(**known).again()
