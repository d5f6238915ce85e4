"""The whole service in one process: a gateway, a worker that runs jobs when asked, predictions."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from structlog.testing import capture_logs

from hifi.backbones.resident import ResidentBackbones
from service.app import build_app
from store.database.connection import Database, database_now
from store.database.schema import upgrade
from store.jobs.claims import Claimant, claim_next
from store.queue import TokenPublisher
from store.storage import ArtifactStorage
from store.tables import Backbone
from tests.service.gateways import add_member, served, settings_for
from tests.tiny_tasks import write_rows
from worker.context import WorkerContext
from worker.engine.computing import compute
from worker.engine.descriptions import describe_backbone
from worker.engine.messages import Command, Message, RunJob
from worker.inference.app import build_app as build_inference_app
from worker.runner import run_job

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.service.gateways import Member


class EngineHere:
    """Replaces the engine: computes jobs in this process."""

    def __init__(self) -> None:
        self.is_ready = True
        self._messages: deque[Message] = deque()
        self._backbones = ResidentBackbones(max_bytes=1 << 30)

    def start(self) -> None:
        """Do nothing: it always runs."""

    def send(self, command: Command) -> None:
        if isinstance(command, RunJob):
            tell = self._messages.append
            tell(compute(command, backbones=self._backbones, send=tell, stop_request=lambda: None))

    def receive(self, *, timeout: float) -> Message | None:  # noqa: ARG002 - the real one's
        return self._messages.popleft() if self._messages else None

    def kill(self) -> None:
        """Do nothing: there is no process."""


@dataclass(frozen=True)
class Service:
    """A gateway, and a worker that runs the next job.

    Attributes:
        url: of the gateway.
        member: a tenant with a key.
        client: asks the gateway with that key.
        work: runs the oldest queued job.
    """

    url: str
    member: Member
    client: httpx2.Client
    work: Callable[[], None]

    def post(self, path: str, **content: Any) -> dict[str, Any]:
        """Post a request that succeeds."""
        answer = self.client.post(path, **content)
        assert answer.status_code in (200, 201, 202), answer.text
        return answer.json()

    def get(self, path: str) -> dict[str, Any]:
        """Get a document."""
        return self.client.get(path).json()

    def upload(self, folder: Path, **splits: Sequence[Mapping[str, Any]]) -> str:
        """Upload splits, and return the data set's id."""
        paths = {name: write_rows(folder / name, rows) for name, rows in splits.items()}
        files = {name: (path.name, path.read_bytes()) for name, path in paths.items()}
        return str(self.post("/datasets", files=files)["id"])


@contextmanager
def running_service(folder: Path, *, backbones: Mapping[str, Path]) -> Iterator[Service]:
    """Run the service with some backbones, each a folder of one ``models`` folder by its name."""
    url = f"sqlite:///{folder}/hifi.db"
    upgrade(url)
    (models,) = {path.parent for path in backbones.values()}
    settings = settings_for(folder / "home", url, models=models, device="cpu")
    database = Database(url)
    with database.write() as session:
        for name, path in backbones.items():
            found = describe_backbone(name, path)
            session.add(Backbone(**vars(found), updated_at=database_now(session)))
    member = add_member(database, "alice")

    def work() -> None:
        claimant = Claimant(worker_id="worker-1", backbones=frozenset(backbones))
        job = claim_next(database, claimant, lease_seconds=300, max_running=9)
        assert job is not None
        run_job(
            job,
            context=WorkerContext(
                worker_id="worker-1",
                settings=settings,
                database=database,
                storage=ArtifactStorage(settings.artifacts_url),
                engine=EngineHere(),  # type: ignore[arg-type] # it stands in for the process
                folder=folder / "work",
                backbones=dict(backbones),
                stopping=threading.Event(),
            ),
        )

    with (
        pytest.MonkeyPatch.context() as patch,
        capture_logs(),  # they would mix with what commands print
        served(build_inference_app(settings)) as address,
    ):
        patch.setattr(TokenPublisher, "publish", lambda *_, **__: None)
        gateway = build_app(settings.model_copy(update={"infer_url": address}))
        with (
            served(gateway) as url,
            httpx2.Client(base_url=url, headers=member.headers, timeout=60) as client,
        ):
            yield Service(url, member, client, work)
    database.close()
