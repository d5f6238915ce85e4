"""Batches: what many requests want of the database at once is asked in one go."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from anyio import CapacityLimiter, to_thread

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class Batcher(Generic[Question, Answer]):
    """Answers many callers with one call in a thread.

    Whoever comes while a call is running waits for the next one, which takes all who wait. So a
    single caller waits for nobody, and the more there are, the less each of them costs: a round
    trip to the database, and the sync of a commit, are shared by all of a batch.

    All but the call happens on one event loop.

    Args:
        call: answers several questions, in their order; an exception among the answers is raised
            where its question was asked, and one that it raises everywhere.
        most: how many questions it takes at once.
        pause: seconds between two calls. Those who were answered together come again together,
            and without it half of them would be taken while the rest is still on its way.
    """

    def __init__(
        self,
        call: Callable[[Sequence[Question]], Sequence[Answer | Exception]],
        *,
        most: int,
        pause: float,
    ) -> None:
        self._call = call
        self._most = most
        self._pause = pause
        self._waiting: deque[tuple[Question, asyncio.Future[Answer]]] = deque()
        self._running: asyncio.Task[None] | None = None
        self._limiter = CapacityLimiter(1)

    async def ask(self, question: Question) -> Answer:
        """Wait for an answer."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await future

    async def close(self) -> None:
        """Wait until nothing is under way; what the call needs can be closed then.

        When a gateway ends, those who still wait have been given up, and so are their questions.
        """
        if self._running is not None:
            await asyncio.wait([self._running])

    async def _run(self) -> None:
        try:
            while self._waiting:
                if batch := self._take():
                    await self._answer(batch)
                    await asyncio.sleep(self._pause)
        finally:
            self._running = None

    def _take(self) -> Sequence[tuple[Question, asyncio.Future[Answer]]]:
        """Take the next batch; whoever has left while waiting is not asked for any more."""
        batch: list[tuple[Question, asyncio.Future[Answer]]] = []
        while self._waiting and len(batch) < self._most:
            question, future = self._waiting.popleft()
            if not future.done():
                batch.append((question, future))
        return batch

    async def _answer(self, batch: Sequence[tuple[Question, asyncio.Future[Answer]]]) -> None:
        questions = [question for question, _ in batch]
        answers: Sequence[Answer | Exception]
        try:
            answers = await to_thread.run_sync(self._call, questions, limiter=self._limiter)
        except Exception as error:  # noqa: BLE001 - raised again by everybody who waits
            answers = [error] * len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():  # whoever asked has left
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
