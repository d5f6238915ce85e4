"""The inference process while head deltas are added, deleted and evicted; each answer checked."""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.data import MODEL, read_rows
from benchmarks.load import Connection
from benchmarks.rows import Row, print_rows
from benchmarks.service.deployment import end_in_order
from benchmarks.serving.churn_tasks import KINDS, Answer, Task, is_right, make_tasks
from benchmarks.serving.inference import Inference, inference, prediction_request
from hifi.backbones.models import resolve_model
from store.storage import ArtifactStorage

if TYPE_CHECKING:
    from store.orders import DeltaOrder

SECONDS = 600.0
TASKS, TEXTS = 48, 24
_CLIENTS = 6
_MOST_TASKS, _MOST_INPUTS = 8, 3  # of one request, and of each of its tasks
# The tiers have room for a quarter and a third of all head deltas' bytes.
_DEVICE_SHARE, _DISK_SHARE = 4, 3
_PAUSE_SECONDS = 0.1  # between two changes of the store
_DELETES = 0.25  # chance that a present delta, once drawn, is deleted: four fifths are present
_SAMPLE_SECONDS = 0.1
_HANG_UPS = 0.02  # share of the requests whose caller disconnects
_STRANGERS = 0.05  # share of the questions that use another tenant's head delta
_JOBS = 5  # ids that all tasks share, so that nothing can be cached by id


@dataclass(kw_only=True)
class Churned:
    """The result of a run.

    Attributes:
        right, wrong: answers.
        refused: questions for missing deltas that got an error, as expected.
        errors: counts of other errors, by code or status.
        strangers: answers from another tenant's head delta.
        hung_up: requests whose caller disconnected.
        added, deleted: head deltas in the artifact store.
        resident: share of all tasks that were on the device at the end.
        megabytes: resident memory, sampled from beginning to end.
    """

    right: int = 0
    wrong: list[str] = field(default_factory=list)
    refused: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    strangers: int = 0
    hung_up: int = 0
    added: int = 0
    deleted: int = 0
    resident: float = 0.0
    megabytes: list[float] = field(default_factory=list)

    def quarter(self, number: int) -> float:
        """Return the median memory in a quarter of the run, counted from 0."""
        size = len(self.megabytes) // 4
        return statistics.median(self.megabytes[number * size : (number + 1) * size])


@dataclass(frozen=True, kw_only=True)
class _Question:
    """One input of a request.

    Attributes:
        task: has the input and its answer.
        place: index of the input in its task.
        order: index of the request's order for the head delta.
        is_stranger: sent for a tenant that does not own the delta.
        deletions: of the delta before the request was sent; None if it was missing then.
    """

    task: Task
    place: int
    order: int
    is_stranger: bool
    deletions: int | None


@dataclass
class _Churn:
    """Clients that send requests and check the answers, while deltas are deleted and added."""

    server: Inference
    tasks: Sequence[Task]
    storage: ArtifactStorage
    done: Churned = field(default_factory=Churned)
    draw: random.Random = field(default_factory=partial(random.Random, 0))
    under_way: set[asyncio.Future[None]] = field(default_factory=set)

    async def run(self, seconds: float) -> Churned:
        """Run clients and changes for some seconds."""
        end = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for _ in range(_CLIENTS):
                group.create_task(self._ask_until(end))
            group.create_task(self._change_deltas(end))
            group.create_task(self._sample(end))
        on_device = self.server.metric('hifi_inference_deltas{tier="device"}')
        self.done.resident = on_device / len(self.tasks)
        return self.done

    async def _ask_until(self, end: float) -> None:
        connection = await Connection.open(self.server.port)
        while time.monotonic() < end:
            answered = asyncio.get_running_loop().create_future()
            self.under_way.add(answered)
            try:
                if self.draw.random() < _HANG_UPS:
                    await self._hang_up()
                else:
                    await self._ask(connection)
            except OSError:
                self.done.errors["connection lost"] += 1
                connection = await Connection.open(self.server.port)
            finally:
                self.under_way.discard(answered)
                answered.set_result(None)
        connection.close()

    async def _ask(self, connection: Connection) -> None:
        questions, request = self._draw_request()
        status, document = await connection.send(request)
        if status != 200:
            self.done.errors[f"{status} {document.get('code')}"] += 1
            return
        for question, answer in zip(questions, document["data"], strict=True):
            self._judge(question, answer)

    async def _hang_up(self) -> None:
        connection = await Connection.open(self.server.port)
        connection.send(self._draw_request()[1])
        await asyncio.sleep(self.draw.uniform(0.0, 0.2))
        connection.close()
        await asyncio.sleep(1.0)  # a load that has begun is finished nevertheless
        self.done.hung_up += 1

    def _draw_request(self) -> tuple[list[_Question], bytes]:
        """Draw some tasks and some inputs of each, in random order; write them as a request."""
        orders: list[DeltaOrder] = []
        questions: list[_Question] = []
        for task in self.draw.sample(self.tasks, self.draw.randint(1, _MOST_TASKS)):
            is_stranger = self.draw.random() < _STRANGERS
            changes = {"job": f"job_{self.draw.randrange(_JOBS)}"}
            if is_stranger:
                changes["tenant"] = f"{task.order.tenant}_not"
            questions += [
                _Question(
                    task=task,
                    place=self.draw.randrange(len(task.inputs)),
                    order=len(orders),
                    is_stranger=is_stranger,
                    deletions=task.deletions if task.is_there else None,
                )
                for _ in range(self.draw.randint(1, _MOST_INPUTS))
            ]
            orders.append(task.order.model_copy(update=changes))
        self.draw.shuffle(questions)
        items = [(question.order, question.task.inputs[question.place]) for question in questions]
        return questions, prediction_request(orders, items)

    def _judge(self, question: _Question, answer: Answer) -> None:
        task = question.task
        expected = task.answers[question.place]
        if "error" in answer:
            code = answer["error"]["code"]
            was_there = question.deletions == task.deletions  # the whole time since it was sent
            if code == "blob_lost" and (question.is_stranger or not was_there):
                self.done.refused += 1
            else:
                self.done.errors[code] += 1
        elif question.is_stranger:
            self.done.strangers += 1
        elif is_right(answer, expected):
            self.done.right += 1
        else:
            where = f"{task.file.name}, input {question.place}"
            self.done.wrong.append(f"{where}: {answer} instead of {expected}")

    async def _change_deltas(self, end: float) -> None:
        """Delete and add head deltas."""
        async with asyncio.TaskGroup() as group:
            while time.monotonic() < end:
                await asyncio.sleep(self.draw.expovariate(1 / _PAUSE_SECONDS))
                task = self.draw.choice(self.tasks)
                if task.is_there and self.draw.random() < _DELETES:
                    await self._delete(task)
                elif not task.is_there and not task.is_coming:
                    task.is_coming = True
                    group.create_task(self._add(task))

    async def _delete(self, task: Task) -> None:
        task.is_there = False
        task.deletions += 1
        await asyncio.to_thread(self.storage.delete, task.order.tenant, task.order.sha256)
        self.done.deleted += 1

    async def _add(self, task: Task) -> None:
        await asyncio.to_thread(self.storage.put, task.order.tenant, task.file)
        self.done.added += 1
        if self.under_way:  # they may have found it missing, and share that with new requests
            await asyncio.wait(set(self.under_way))
        task.is_there, task.is_coming = True, False

    async def _sample(self, end: float) -> None:
        while time.monotonic() < end:
            self.done.megabytes.append(self.server.megabytes)
            await asyncio.sleep(_SAMPLE_SECONDS)


def churn(
    backbone: Path, texts: Sequence[tuple[str, str]], *, count: int, seconds: float
) -> Churned:
    """Run an inference process with room for few of its tasks, and check all answers.

    ``texts`` are the inputs, as pairs; ``count`` is the number of tasks.
    """
    with tempfile.TemporaryDirectory(prefix="hifi-churn-") as name:
        folder, artifacts = Path(name), Path(name) / "artifacts"
        storage = ArtifactStorage(str(artifacts))
        tasks = make_tasks(backbone, texts, count=count, folder=folder, storage=storage)
        total = sum(task.file.stat().st_size for task in tasks)
        with inference(
            artifacts,
            INFER_DEVICE_BYTES=str(total // _DEVICE_SHARE),
            INFER_DISK_BYTES=str(total // _DISK_SHARE),
            MODELS=str(backbone.parent),
        ) as server:
            return asyncio.run(_Churn(server, tasks, storage).run(seconds))


def main() -> Iterator[Row]:
    """Run ten minutes of churn on texts of MRPC."""
    rows = read_rows("mrpc", "validation")[:TEXTS]
    texts = [(row["sentence1"], row["sentence2"]) for row in rows]
    done = churn(resolve_model(MODEL).path, texts, count=TASKS, seconds=SECONDS)
    label = f"{SECONDS:,.0f} s, {TASKS} tasks of {len(KINDS)} kinds, room for a quarter of them"
    changes = f"{done.added:,} added and {done.deleted:,} deleted meanwhile"
    yield Row(f"{label}: right answers, {changes}", done.right)
    yield Row(f"{label}: wrong answers", len(done.wrong), "≤ 0")
    yield Row(f"{label}: answers from another tenant's head delta", done.strangers, "≤ 0")
    kinds = f" {dict(done.errors)}" if done.errors else ""
    yield Row(f"{label}: errors other than for missing deltas{kinds}", done.errors.total(), "≤ 0")
    yield Row(f"{label}: errors for missing deltas", done.refused)
    yield Row(f"{label}: callers that disconnected", done.hung_up)
    second, last = done.quarter(1), done.quarter(3)
    yield Row("resident memory: median of the second quarter", second, unit="MB")
    yield Row("resident memory: median of the last quarter", last, unit="MB")
    yield Row("resident memory: last quarter / second quarter", last / second, "≤ 1.05")


if __name__ == "__main__":
    end_in_order()
    print_rows(main())
