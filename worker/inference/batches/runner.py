"""Claim batch predictions and carry them out, as long as the inference process runs."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import structlog
from pyarrow import parquet

from hifi.data.spec import names_in
from store.database.connection import OUTAGES
from store.database.schema import check
from store.datasets import get_dataset
from store.errors import (
    ArtifactStorageError,
    BlobLostError,
    LeaseLostError,
    NotFoundError,
    SchemaError,
    SpaceExceededError,
)
from store.predictions.claims import ClaimedPrediction, PredictionLease, claim_next
from store.states import PredictionStatus
from store.storage.space import store_files
from worker.inference.batches.answering import ORDERS_AT_ONCE, Answering
from worker.inference.batches.result import read_parts, write_part, write_result
from worker.inference.batches.rows import read_batches

if TYPE_CHECKING:
    from store.database.connection import Database
    from store.settings import Settings
    from store.storage import ArtifactStorage, Blob
    from worker.inference.batches.result import Answers
    from worker.inference.predictions import PredictionHandler

# Predictions at once; the last is for a tenant that has none running, so that a short one need not
# wait for another tenant's long one.
_SLOTS = (1 << 30, 1)
_CLAIM_SECONDS = 1.0
_OUTAGE_SECONDS = 5.0
_RENEWALS_PER_LEASE = 6
_MOST_RENEWAL_SECONDS = 2.0  # a cancellation is seen after that time
# A part is what a killed process computes again at most; thousands of parts would make the row of
# the prediction large.
_PART_ANSWERS, _PART_BYTES, _MOST_PARTS = 2048, 64 << 20, 1000
_Done = TypeVar("_Done")
_log = structlog.get_logger(__name__)


class _CancelledByOwnerError(Exception):
    """The owner has requested the cancellation."""


class BatchRunner:
    """Carries out batch predictions, a few at a time, in the background of other predictions.

    Args:
        settings: have the quotas and the duration of a lease.
        database: where the predictions are.
        storage: the artifact store.
        handler: computes the answers.
        folder: for files while a prediction runs; used by this process only.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        database: Database,
        storage: ArtifactStorage,
        handler: PredictionHandler,
        folder: Path,
    ) -> None:
        self._settings = settings
        self._database = database
        self._storage = storage
        self._handler = handler
        self._folder = folder
        self._orders = asyncio.Semaphore(ORDERS_AT_ONCE)
        self._is_away = False
        self._slots = [asyncio.create_task(self._serve(most_each)) for most_each in _SLOTS]

    async def close(self) -> None:
        """Hand back what runs, so that another process continues after its last whole part."""
        for slot in self._slots:
            slot.cancel()
        await asyncio.gather(*self._slots, return_exceptions=True)

    async def _serve(self, most_each: int) -> None:
        while True:
            pause = _CLAIM_SECONDS
            try:
                claimed = await asyncio.to_thread(self._claim, most_each)
                self._is_away = False
                if claimed is not None:
                    await self._carry_out(claimed)
                    continue
            except (*OUTAGES, SchemaError) as error:
                self._note_outage(error)
                pause = _OUTAGE_SECONDS
            except Exception:  # noqa: BLE001 - one prediction's error must not stop the others
                _log.exception("batch predictions failed; the next try comes")
                pause = _OUTAGE_SECONDS
            await asyncio.sleep(pause)

    def _claim(self, most_each: int) -> ClaimedPrediction | None:
        """Claim the next prediction; an inference process without tables claims none.

        Raises:
            SchemaError: the tables are of another version.
        """
        url = self._database.engine.url
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
            return None  # connecting would create an empty file
        check(self._database)
        seconds = self._settings.lease_seconds
        return claim_next(self._database, lease_seconds=seconds, most_each=most_each)

    def _note_outage(self, error: Exception) -> None:
        if not self._is_away:
            _log.warning("batch predictions wait for the database", reason=type(error).__name__)
        self._is_away = True

    async def _carry_out(self, claimed: ClaimedPrediction) -> None:
        """Run one prediction to its end, or hand it back."""
        lease = PredictionLease(self._database, claimed, seconds=self._settings.lease_seconds)
        folder = self._folder / claimed.id
        folder.mkdir(parents=True, exist_ok=True)
        log = _log.bind(prediction=claimed.id, tenant=claimed.tenant_id)
        log.info("prediction begins", rows=claimed.total_rows, parts=len(claimed.parts))
        answering = Answering(
            claimed=claimed, handler=self._handler, orders=self._orders, database=self._database
        )
        batch = _Batch(
            claimed,
            lease=lease,
            database=self._database,
            storage=self._storage,
            answering=answering,
            folder=folder,
            max_bytes=self._settings.tenant_max_bytes,
        )
        end: Callable[[], None] = lease.hand_back
        pause = 0.0
        try:
            result = await self._while_held(batch.run, lease)
        except asyncio.CancelledError:  # at shutdown
            with suppress(*OUTAGES, LeaseLostError):
                lease.hand_back()
            raise
        except LeaseLostError:
            log.warning("prediction lost to another process")
            return
        except _CancelledByOwnerError:
            pass
        except (SpaceExceededError, BlobLostError, NotFoundError) as error:
            code = "dataset_not_found" if isinstance(error, NotFoundError) else error.code
            end = partial(lease.fail, code=code, message=str(error))
        except (*OUTAGES, ArtifactStorageError) as error:
            log.warning("prediction put off", reason=type(error).__name__)
            pause = _OUTAGE_SECONDS
        except Exception:
            log.exception("prediction failed")
            message = "the inference process failed; its log says why"
            end = partial(lease.fail, code="internal_error", message=message)
        else:
            end = partial(lease.succeed, result)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(LeaseLostError):
            await asyncio.to_thread(end)
        log.info("prediction ends here")
        await asyncio.sleep(pause)

    async def _while_held(
        self, work: Callable[[], Coroutine[None, None, _Done]], lease: PredictionLease
    ) -> _Done:
        """Run the work and renew the lease; end it when the lease is lost or cancelled."""
        working = asyncio.create_task(work())
        keeping = asyncio.create_task(self._keep(lease))
        try:
            await asyncio.wait((working, keeping), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return _result_of(working)
            return _result_of(keeping)
        finally:
            for task in (working, keeping):
                task.cancel()
            await asyncio.gather(working, keeping, return_exceptions=True)

    async def _keep(self, lease: PredictionLease) -> NoReturn:
        """Renew the lease until it is lost, or the owner cancels.

        Raises:
            LeaseLostError, _CancelledByOwnerError: which of the two.
        """
        seconds = self._settings.lease_seconds
        last = time.monotonic()
        while True:
            await asyncio.sleep(min(seconds / _RENEWALS_PER_LEASE, _MOST_RENEWAL_SECONDS))
            try:
                status = await asyncio.to_thread(lease.renew)
            except OUTAGES:
                if time.monotonic() - last > seconds:
                    raise
                continue
            last = time.monotonic()
            if status is PredictionStatus.CANCELLING:
                raise _CancelledByOwnerError


def _result_of(task: asyncio.Task[_Done]) -> _Done:
    """Return a task's result; raise the only error of a group of tasks by itself."""
    error = task.exception()
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if error is not None:
        raise error
    return task.result()


class _Batch:
    """One claimed prediction: its rows, its parts, and its result."""

    def __init__(
        self,
        claimed: ClaimedPrediction,
        *,
        lease: PredictionLease,
        database: Database,
        storage: ArtifactStorage,
        answering: Answering,
        folder: Path,
        max_bytes: int,
    ) -> None:
        self._claimed = claimed
        self._lease = lease
        self._database = database
        self._storage = storage
        self._folder = folder
        self._answering = answering
        self._max_bytes = max_bytes
        self._source = folder / "source.parquet"
        self._parts = [dict(part) for part in claimed.parts]
        self._kept_at = time.monotonic()

    async def run(self) -> Blob:
        """Answer the rows that have no stored answer yet; return the stored result.

        Raises:
            NotFoundError, BlobLostError: the data set is gone.
            SpaceExceededError: the tenant's quota of bytes has no room.
            ArtifactStorageError: the artifact store cannot be reached.
        """
        await asyncio.to_thread(self._fetch_source)
        done = sum(part["rows"] for part in self._parts)
        ahead: deque[asyncio.Task[list[Answers]]] = deque()
        with parquet.ParquetFile(self._source) as file:
            pieces = self._pieces(file, start=done)
            try:
                while (rows := await asyncio.to_thread(next, pieces, None)) is not None:
                    ahead.append(asyncio.create_task(self._answering.answer(rows)))
                    if len(ahead) > 1:  # the next part is computed while this one is stored
                        await asyncio.to_thread(self._store_part, await ahead[0])
                        ahead.popleft()
                while ahead:
                    await asyncio.to_thread(self._store_part, await ahead[0])
                    ahead.popleft()
            finally:
                for task in ahead:
                    task.cancel()
                await asyncio.gather(*ahead, return_exceptions=True)
        return await asyncio.to_thread(self._store_result)

    def _fetch_source(self) -> None:
        claimed = self._claimed
        with self._database.read() as session:
            dataset = get_dataset(session, claimed.tenant_id, claimed.dataset_id)
        sha256 = dataset.splits[claimed.spec.split]["sha256"]
        self._storage.fetch(claimed.tenant_id, sha256, to=self._source)

    def _pieces(
        self, file: parquet.ParquetFile, *, start: int
    ) -> Iterator[list[Mapping[str, Any]]]:
        """Yield the rows of each part, with the columns that the jobs read."""
        most = max(_PART_ANSWERS, self._claimed.total_rows * self._jobs // _MOST_PARTS)
        wanted = {name for job in self._claimed.spec.jobs for name in names_in(job.columns)}
        rows: list[Mapping[str, Any]] = []
        size = 0
        for batch in read_batches(file, start=start):
            read = batch.select([name for name in batch.schema.names if name in wanted])
            rows += read.to_pylist()
            size += read.nbytes
            if len(rows) * self._jobs >= most or size >= _PART_BYTES:
                yield rows
                rows, size = [], 0
        if rows:
            yield rows

    @property
    def _jobs(self) -> int:
        return len(self._claimed.spec.jobs)

    def _store_part(self, rows: list[Answers]) -> None:
        path = self._folder / f"part-{len(self._parts)}.gz"
        write_part(path, rows)
        blob = self._store(path)
        now = time.monotonic()
        speed, self._kept_at = len(rows) / max(now - self._kept_at, 1e-6), now
        self._lease.keep_part(blob, rows=len(rows), rows_per_second=speed)
        self._parts.append({"rows": len(rows), **vars(blob)})

    def _store_result(self) -> Blob:
        paths = []
        for number, part in enumerate(self._parts):
            path = self._folder / f"part-{number}.gz"
            if not path.exists():  # of an earlier process
                self._storage.fetch(self._claimed.tenant_id, part["sha256"], to=path)
            paths.append(path)
        result = self._folder / f"result.{self._claimed.spec.format}"
        spec = self._claimed.spec
        write_result(result, source=self._source, answers=read_parts(paths), spec=spec)
        return self._store(result)

    def _store(self, path: Path) -> Blob:
        """Store a file under the prediction's reservation."""
        return store_files(
            {path.name: path},
            database=self._database,
            storage=self._storage,
            tenant_id=self._claimed.tenant_id,
            reservation_id=self._claimed.id,
            max_bytes=self._max_bytes,
        )[path.name]
