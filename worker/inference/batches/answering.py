"""Answer the rows of a batch prediction with the head deltas of its jobs, a part at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from store.jobs.actions import find_deltas
from store.orders import MAX_INPUTS, MAX_SECONDS, DeltaOrder, PredictionOrder
from worker.inference.batches.rows import RowInvalidError, read_input
from worker.inference.predictions import Answer, item_error

if TYPE_CHECKING:
    from store.database.connection import Database
    from store.predictions.claims import ClaimedPrediction
    from worker.inference.batches.result import Answers
    from worker.inference.predictions import PredictionHandler

# Of all batch predictions of this process together. Two keep the thread that computes busy while
# one is encoded; each holds up to 256 encoded inputs.
ORDERS_AT_ONCE = 4
_ENCODING = "float32"
# The artifact store or the disk may work again soon: these are no answers.
_PASSING = frozenset({"artifact_storage", "disk_full", "disk_failed"})
_TRIES = 5
_PAUSE_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Answering:
    """Answers rows.

    Attributes:
        claimed: the batch prediction.
        handler: of this process.
        orders: limits the orders in flight.
    """

    claimed: ClaimedPrediction
    handler: PredictionHandler
    orders: asyncio.Semaphore
    database: Database

    async def answer(self, rows: Sequence[Mapping[str, Any]]) -> list[Answers]:
        """Answer rows; an invalid one gets an error, and so do all for a job that is deleted."""
        deltas = await asyncio.to_thread(self._find_deltas)
        answers: list[list[Answer | None]] = [[None] * len(self.claimed.spec.jobs) for _ in rows]
        work = []
        for place, job in enumerate(self.claimed.spec.jobs):
            delta = deltas.get(job.id)
            inputs: list[tuple[int, Mapping[str, Any]]] = []
            for number, row in enumerate(rows):
                try:
                    given = read_input(row, job.columns)
                except RowInvalidError as error:
                    answers[number][place] = item_error("invalid_input", str(error))
                    continue
                if delta is None:
                    message = f"job {job.id} was deleted while the prediction ran"
                    answers[number][place] = item_error("job_deleted", message)
                else:
                    inputs.append((number, given))
            if delta is not None:
                work += [
                    self._predict(delta, inputs[start : start + MAX_INPUTS], answers, place)
                    for start in range(0, len(inputs), MAX_INPUTS)
                ]
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each)
        return [[answer for answer in own if answer is not None] for own in answers]

    def _find_deltas(self) -> dict[str, DeltaOrder]:
        tenant = self.claimed.tenant_id
        ids = [job.id for job in self.claimed.spec.jobs]
        with self.database.read() as session:
            found = find_deltas(session, tenant, ids, encoding=_ENCODING)
        return {
            job_id: DeltaOrder(
                tenant=tenant, job=job_id, model=model, revision=revision, sha256=sha256
            )
            for job_id, _, model, revision, sha256 in found
            if sha256 is not None
        }

    async def _predict(
        self,
        delta: DeltaOrder,
        inputs: Sequence[tuple[int, Mapping[str, Any]]],
        answers: list[list[Answer | None]],
        place: int,
    ) -> None:
        """Fill in the answers of one job to some rows; retry those that fail in passing."""
        left = list(inputs)
        for attempt in range(1, _TRIES + 1):
            order = PredictionOrder.of_checked(
                [delta],
                [(0, given) for _, given in left],
                truncate=self.claimed.spec.truncate,
                timeout_seconds=MAX_SECONDS,
            )
            async with self.orders:
                found = await self.handler.predict_in_background(order)
            for (number, _), answer in zip(left, found, strict=True):
                answers[number][place] = answer
            left = [
                entry
                for entry, answer in zip(left, found, strict=True)
                if answer.get("error", {}).get("code") in _PASSING
            ]
            if not left or attempt == _TRIES:
                return
            await asyncio.sleep(_PAUSE_SECONDS * attempt)
