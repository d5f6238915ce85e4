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
from pathlib import Path

from benchmarks.data import MODEL, read_rows
from benchmarks.load import Connection
from benchmarks.rows import Row, print_rows
from benchmarks.service.deployment import end_in_order
from benchmarks.serving.churn_tasks import KINDS, Answer, Task, is_right, make_tasks
from benchmarks.serving.inference import (
    Inference,
    inference,
    prediction_request,
    write_order,
)
from hifi.backbones.models import resolve_model
from store.storage import ArtifactStorage

SECONDS = 600.0
TASKS, TEXTS = 48, 24
_TENANTS = 7  # not a multiple of the kinds, so that each tenant has tasks of several kinds
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
_LOST = "blob_lost"


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

    @property
    def second_quarter(self) -> float:
        """The median memory in the second quarter of the run."""
        size = len(self.megabytes) // 4
        return statistics.median(self.megabytes[size : 2 * size])

    @property
    def last_quarter(self) -> float:
        """The median memory in the last quarter of the run."""
        return statistics.median(self.megabytes[-(len(self.megabytes) // 4) :])


@dataclass(eq=False)
class _Stored:
    """A task, and the state of its head delta in the artifact store.

    Attributes:
        is_there: stored before all requests in flight were sent.
        is_coming: being stored, or stored after a request in flight was sent.
        deletions: number of deletions so far.
    """

    task: Task
    is_there: bool = True
    is_coming: bool = False
    deletions: int = 0


@dataclass(frozen=True)
class _Question:
    """One input of a request.

    Attributes:
        stored: the task and its delta.
        place: index of the input in its task.
        is_stranger: sent for a tenant that does not own the delta.
        deletions: of the delta before the request was sent; None if it was missing then.
    """

    stored: _Stored
    place: int
    is_stranger: bool
    deletions: int | None

    @property
    def was_there(self) -> bool:
        """Whether the delta was present the whole time since the request was sent."""
        return self.deletions == self.stored.deletions


class Churn:
    """Clients that send requests and check the answers, while deltas are deleted and added.

    Args:
        server: under test.
        model: the backbone's id.
        tasks: with all deltas in the artifact store.
        storage: the artifact store.
        seed: of all random choices.
    """

    def __init__(
        self,
        server: Inference,
        tasks: Sequence[Task],
        *,
        model: str,
        storage: ArtifactStorage,
        seed: int = 0,
    ) -> None:
        self._server = server
        self._model = model
        self._stored = [_Stored(task) for task in tasks]
        self._storage = storage
        self._draw = random.Random(seed)  # noqa: S311 - not a secret
        self._under_way: set[asyncio.Future[None]] = set()
        self._done = Churned()

    async def run(self, seconds: float) -> Churned:
        """Run clients and changes for some seconds."""
        end = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for _ in range(_CLIENTS):
                group.create_task(self._ask_on(end))
            group.create_task(self._garden(end))
            group.create_task(self._sample(end))
        on_device = self._server.metric('hifi_inference_deltas{tier="device"}')
        self._done.resident = on_device / len(self._stored)
        return self._done

    async def _ask_on(self, end: float) -> None:
        connection = await Connection.open(self._server.port)
        while time.monotonic() < end:
            answered = asyncio.get_running_loop().create_future()
            self._under_way.add(answered)
            try:
                if self._draw.random() < _HANG_UPS:
                    await self._hang_up()
                else:
                    await self._ask(connection)
            except OSError:
                self._done.errors["connection lost"] += 1
                connection = await Connection.open(self._server.port)
            finally:
                self._under_way.discard(answered)
                answered.set_result(None)
        connection.close()

    async def _ask(self, connection: Connection) -> None:
        questions = self._questions()
        status, document = await connection.send(self._request(questions))
        if status != 200:
            self._done.errors[f"{status} {document.get('code')}"] += 1
            return
        for question, answer in zip(questions, document["data"], strict=True):
            self._judge(question, answer)

    async def _hang_up(self) -> None:
        connection = await Connection.open(self._server.port)
        connection.send(self._request(self._questions()))
        await asyncio.sleep(self._draw.uniform(0.0, 0.2))
        connection.close()
        await asyncio.sleep(1.0)  # a load that has begun is finished nevertheless
        self._done.hung_up += 1

    def _questions(self) -> list[_Question]:
        """Draw some tasks and some inputs of each, in random order."""
        questions = []
        for stored in self._draw.sample(self._stored, self._draw.randint(1, _MOST_TASKS)):
            deletions = stored.deletions if stored.is_there else None
            is_stranger = self._draw.random() < _STRANGERS
            for _ in range(self._draw.randint(1, _MOST_INPUTS)):
                place = self._draw.randrange(len(stored.task.inputs))
                questions.append(_Question(stored, place, is_stranger, deletions))
        self._draw.shuffle(questions)
        return questions

    def _request(self, questions: Sequence[_Question]) -> bytes:
        places: dict[tuple[Task, bool], int] = {}
        items = []
        for question in questions:
            task = question.stored.task
            order = places.setdefault((task, question.is_stranger), len(places))
            items.append((order, task.inputs[question.place]))
        orders = [
            write_order(
                f"{task.tenant}{'_not' * is_stranger}",
                task.sha256,
                job=f"job_{self._draw.randrange(_JOBS)}",
                model=self._model,
            )
            for task, is_stranger in places
        ]
        return prediction_request(orders, items)

    def _judge(self, question: _Question, answer: Answer) -> None:
        task = question.stored.task
        expected = task.answers[question.place]
        if "error" in answer:
            code = answer["error"]["code"]
            if code == _LOST and (question.is_stranger or not question.was_there):
                self._done.refused += 1
            else:
                self._done.errors[code] += 1
        elif question.is_stranger:
            self._done.strangers += 1
        elif is_right(answer, expected):
            self._done.right += 1
        else:
            where = f"{task.file.name}, input {question.place}"
            self._done.wrong.append(f"{where}: {answer} instead of {expected}")

    async def _garden(self, end: float) -> None:
        """Delete and add head deltas."""
        async with asyncio.TaskGroup() as group:
            while time.monotonic() < end:
                await asyncio.sleep(self._draw.expovariate(1 / _PAUSE_SECONDS))
                stored = self._draw.choice(self._stored)
                if stored.is_there and self._draw.random() < _DELETES:
                    await self._delete(stored)
                elif not stored.is_there and not stored.is_coming:
                    stored.is_coming = True
                    group.create_task(self._add(stored))

    async def _delete(self, stored: _Stored) -> None:
        stored.is_there = False
        stored.deletions += 1
        await asyncio.to_thread(self._storage.delete, stored.task.tenant, stored.task.sha256)
        self._done.deleted += 1

    async def _add(self, stored: _Stored) -> None:
        await asyncio.to_thread(self._storage.put, stored.task.tenant, stored.task.file)
        self._done.added += 1
        if self._under_way:  # they may have found it missing, and share that with new requests
            await asyncio.wait(set(self._under_way))
        stored.is_there, stored.is_coming = True, False

    async def _sample(self, end: float) -> None:
        while time.monotonic() < end:
            self._done.megabytes.append(self._server.megabytes)
            await asyncio.sleep(_SAMPLE_SECONDS)


def churn(
    backbone: Path, texts: Sequence[tuple[str, str]], *, count: int, seconds: float
) -> Churned:
    """Run an inference process with room for few of its tasks, and check all answers.

    Args:
        backbone: its folder.
        texts: the inputs, as pairs of texts.
        count: number of tasks.
        seconds: duration.
    """
    with tempfile.TemporaryDirectory(prefix="hifi-churn-") as name:
        folder, artifacts = Path(name), Path(name) / "artifacts"
        tasks = make_tasks(
            backbone,
            texts,
            count=count,
            tenants=_TENANTS,
            folder=folder,
            artifacts=artifacts,
        )
        total = sum(task.file.stat().st_size for task in tasks)
        with inference(
            artifacts,
            INFER_DEVICE_BYTES=str(total // _DEVICE_SHARE),
            INFER_DISK_BYTES=str(total // _DISK_SHARE),
            MODELS=str(backbone.parent),
        ) as server:
            storage = ArtifactStorage(str(artifacts))
            clients = Churn(server, tasks, model=backbone.name, storage=storage)
            return asyncio.run(clients.run(seconds))


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
    yield Row("resident memory: median of the second quarter", done.second_quarter, unit="MB")
    yield Row("resident memory: median of the last quarter", done.last_quarter, unit="MB")
    growth = done.last_quarter / done.second_quarter
    yield Row("resident memory: last quarter / second quarter", growth, "≤ 1.05")


if __name__ == "__main__":
    end_in_order()
    print_rows(main())
