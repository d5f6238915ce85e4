"""A class for each kind of resource: data sets, backbones, jobs, tenants, keys."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from service.client.downloads import Download, Watch, download
from service.client.uploads import open_form
from service.client.watching import Watcher
from service.paging import DEFAULT_LIMIT

if TYPE_CHECKING:
    from service.client.connection import Connection
    from service.client.documents import (
        AdminJob,
        AuditEvent,
        BackbonePage,
        BatchPrediction,
        Dataset,
        Estimate,
        Event,
        Heads,
        Input,
        Job,
        JobInput,
        Key,
        Page,
        Predictions,
        Progress,
        SharedInput,
        Tenant,
        Usage,
    )

_UPLOAD_SECONDS = 600.0  # the server reads every row before it answers
_PREDICTION_SECONDS = 300.0  # the longest timeout that a server may choose
_SPARE_SECONDS = 30.0  # for its response to arrive
_WATCH_SECONDS = 1.0


class _Resource:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._ask = connection.ask

    def _page(self, path: str, **query: str | int | None) -> Page[Any]:
        return cast("Page[Any]", self._ask("GET", path, query=query))


class Datasets(_Resource):
    """The data sets of a tenant."""

    def push(
        self,
        train: Path,
        *,
        validation: Path | None = None,
        test: Path | None = None,
        name: str | None = None,
        idempotency_key: str | None = None,
        on_progress: Watch | None = None,
    ) -> Dataset:
        """Upload a data set; the files are streamed, not read into memory.

        Args:
            train: the training split: .jsonl, .json, .csv, .tsv or .parquet.
            validation: the validation split.
            test: the test split.
            name: for people.
            idempotency_key: by default random; equal keys and files create one data set.
            on_progress: called with the bytes so far and the total.

        Raises:
            ApiError: the server refuses; the message names an invalid row.
            LocalFileError: a file cannot be read.
        """
        splits = {"train": train, "validation": validation, "test": test}
        files = {split: path for split, path in splits.items() if path is not None}
        fields = {} if name is None else {"name": name}
        dataset: Dataset = self._ask(
            "POST",
            "/datasets",
            idempotency_key=idempotency_key or secrets.token_hex(16),
            open_form=partial(open_form, files, fields=fields, watch=on_progress),
            timeout=_UPLOAD_SECONDS,
        )
        return dataset

    def list(
        self, *, name: str | None = None, after: str | None = None, limit: int = DEFAULT_LIMIT
    ) -> Page[Dataset]:
        """Return a page of the data sets, newest first; ``name`` selects those of that name."""
        return self._page("/datasets", name=name, after=after, limit=limit)

    def get(self, dataset_id: str) -> Dataset:
        """Return a data set."""
        return cast("Dataset", self._ask("GET", _path("datasets", dataset_id)))

    def delete(self, dataset_id: str) -> None:
        """Delete a data set that no unfinished job needs."""
        self._ask("DELETE", _path("datasets", dataset_id))


class Models(_Resource):
    """The backbones that workers have."""

    def list(self, *, after: str | None = None, limit: int = DEFAULT_LIMIT) -> BackbonePage:
        """Return a page of the backbones, and the models that no job can use."""
        return cast("BackbonePage", self._page("/models", after=after, limit=limit))


class Jobs(_Resource):
    """The jobs of a tenant."""

    def create(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Post a job; retries use the same key, so they never create a second job.

        Args:
            spec: the job spec, plain JSON.
            idempotency_key: by default random.

        Raises:
            ApiError: the server refuses; ``param`` names the invalid field.
        """
        key = idempotency_key or secrets.token_hex(16)
        return cast("Job", self._ask("POST", "/jobs", body=spec, idempotency_key=key))

    def dry_run(self, spec: Mapping[str, Any]) -> Estimate:
        """Check a job spec and estimate the job's cost; nothing is stored."""
        query = {"dry_run": "true"}
        return cast("Estimate", self._ask("POST", "/jobs", query=query, body=spec))

    def get(self, job_id: str) -> Job:
        """Return a job."""
        return cast("Job", self._ask("GET", _path("jobs", job_id)))

    def list(
        self,
        *,
        status: str | None = None,
        name: str | None = None,
        after: str | None = None,
        limit: int = DEFAULT_LIMIT,
    ) -> Page[Job]:
        """Return a page of the jobs, newest first: those with that status and that name."""
        return self._page("/jobs", status=status, name=name, after=after, limit=limit)

    def cancel(self, job_id: str) -> Job:
        """Cancel a job: at once if no worker runs it, else at its worker's next step."""
        return cast("Job", self._ask("POST", _path("jobs", job_id, "cancel")))

    def pause(self, job_id: str) -> Job:
        """Pause a training job at its next step, with a checkpoint."""
        return cast("Job", self._ask("POST", _path("jobs", job_id, "pause")))

    def resume(self, job_id: str) -> Job:
        """Queue a paused job again."""
        return cast("Job", self._ask("POST", _path("jobs", job_id, "resume")))

    def delete(self, job_id: str) -> None:
        """Delete a finished job with its events and artifacts."""
        self._ask("DELETE", _path("jobs", job_id))

    def events(
        self, job_id: str, *, after: str | None = None, limit: int = DEFAULT_LIMIT
    ) -> Page[Event]:
        """Return a page of a job's events, oldest first."""
        return self._page(_path("jobs", job_id, "events"), after=after, limit=limit)

    def watch(
        self,
        job_id: str,
        *,
        after: str | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Iterator[Event]:
        """Yield a job's events as they happen, until the job is finished.

        Broken connections are reopened; every event is yielded exactly once.

        Args:
            job_id: of the job.
            after: id of an event; only later events are yielded.
            on_progress: called with the job's progress when it changes.
        """
        path = _path("jobs", job_id)
        return Watcher(self._connection, path, last=after, on_progress=on_progress).run()

    def heads(self, job_id: str) -> Heads:
        """Return the scores of all heads, and the selected heads."""
        return cast("Heads", self._ask("GET", _path("jobs", job_id, "heads")))

    def download_delta(
        self,
        job_id: str,
        out: Path,
        *,
        encoding: str = "float32",
        on_progress: Watch | None = None,
    ) -> Download:
        """Download a succeeded job's head delta; see :func:`download`."""
        path = _path("jobs", job_id, "heads", "delta")
        query = {"encoding": encoding}
        return download(self._connection, path, query=query, out=out, on_progress=on_progress)

    def download_lora(
        self, job_id: str, out: Path, *, on_progress: Watch | None = None
    ) -> Download:
        """Download the head delta as a PEFT adapter, in a tar file."""
        path = _path("jobs", job_id, "heads", "lora")
        return download(self._connection, path, out=out, on_progress=on_progress)

    def download_merged(
        self, job_id: str, out: Path, *, on_progress: Watch | None = None
    ) -> Download:
        """Download the merged model with its tokenizer, in a tar file."""
        path = _path("jobs", job_id, "merged")
        return download(self._connection, path, out=out, on_progress=on_progress)

    def predict(
        self,
        job_id: str,
        inputs: Sequence[Input],
        *,
        truncate: bool = True,
        timeout_seconds: float | None = None,
    ) -> Predictions:
        """Predict with a succeeded job's head delta.

        Args:
            job_id: of the job.
            inputs: 1 to 256.
            truncate: cut texts of too many tokens, as in training; if False they get an error.
            timeout_seconds: limit of the request; None: the server's default.

        Returns:
            An answer for each input, in order; a failed one has an ``error`` instead.

        Raises:
            ApiError: the server refuses the whole request.
        """
        return ask_for_predictions(
            self._connection,
            _path("jobs", job_id, "predict"),
            inputs,
            truncate=truncate,
            timeout_seconds=timeout_seconds,
        )


class BatchPredictions(_Resource):
    """The batch predictions of a tenant: data sets answered in the background."""

    def create(
        self,
        dataset: str,
        jobs: Sequence[str],
        *,
        split: str = "train",
        result_format: str = "parquet",
        truncate: bool = True,
        name: str | None = None,
        idempotency_key: str | None = None,
    ) -> BatchPrediction:
        """Queue a batch prediction; retries use the same key, so they never create a second one.

        Args:
            dataset: its id, or its name if no other has it.
            jobs: ids of succeeded jobs.
            split: of the data set.
            result_format: ``parquet`` or ``jsonl``.
            truncate: cut texts of too many tokens; if False their rows get an error.
            name: for people.
            idempotency_key: by default random.

        Raises:
            ApiError: the server refuses; ``param`` names the invalid field.
        """
        body = {
            "dataset": dataset,
            "jobs": list(jobs),
            "split": split,
            "format": result_format,
            "truncate": truncate,
            **_given(name=name),
        }
        key = idempotency_key or secrets.token_hex(16)
        answer = self._ask("POST", "/predictions", body=body, idempotency_key=key)
        return cast("BatchPrediction", answer)

    def get(self, prediction_id: str) -> BatchPrediction:
        """Return a batch prediction."""
        return cast("BatchPrediction", self._ask("GET", _path("predictions", prediction_id)))

    def list(
        self,
        *,
        status: str | None = None,
        name: str | None = None,
        after: str | None = None,
        limit: int = DEFAULT_LIMIT,
    ) -> Page[BatchPrediction]:
        """Return a page of the batch predictions, newest first."""
        return self._page("/predictions", status=status, name=name, after=after, limit=limit)

    def watch(self, prediction_id: str) -> Iterator[BatchPrediction]:
        """Yield a batch prediction every second, until it is finished."""
        while True:
            prediction = self.get(prediction_id)
            yield prediction
            if prediction["finished_at"] is not None:
                return
            self._connection.sleep(_WATCH_SECONDS)

    def cancel(self, prediction_id: str) -> BatchPrediction:
        """Cancel a batch prediction: at once if it waits, else within seconds."""
        path = _path("predictions", prediction_id, "cancel")
        return cast("BatchPrediction", self._ask("POST", path))

    def delete(self, prediction_id: str) -> None:
        """Delete a finished batch prediction with its result."""
        self._ask("DELETE", _path("predictions", prediction_id))

    def download(
        self, prediction_id: str, out: Path, *, on_progress: Watch | None = None
    ) -> Download:
        """Download the result: every row with its answers beside it; see :func:`download`."""
        path = _path("predictions", prediction_id, "result")
        return download(self._connection, path, out=out, on_progress=on_progress)


class AllJobs(_Resource):
    """The jobs of all tenants, for administrators, without what their owners have written."""

    def list(
        self,
        *,
        status: str | None = None,
        tenant: str | None = None,
        after: str | None = None,
        limit: int = DEFAULT_LIMIT,
    ) -> Page[AdminJob]:
        """Return a page of the jobs, newest first; ``tenant`` is a tenant's id."""
        return self._page("/admin/jobs", status=status, tenant=tenant, after=after, limit=limit)

    def cancel(self, job_id: str) -> AdminJob:
        """Cancel a job: at once if no worker runs it, else at its worker's next step."""
        return cast("AdminJob", self._ask("POST", _path("admin", "jobs", job_id, "cancel")))


class Tenants(_Resource):
    """The tenants of the server, for its administrators."""

    def create(
        self, name: str, *, is_admin: bool = False, quotas: Mapping[str, int] | None = None
    ) -> Tenant:
        """Add a tenant.

        Args:
            name: must be unique.
            is_admin: whether it may manage tenants and keys.
            quotas: ``max_queued``, ``max_running``, ``max_bytes``; by default the server's.
        """
        body = {"name": name, "is_admin": is_admin, **(quotas or {})}
        return cast("Tenant", self._ask("POST", "/tenants", body=body))

    def list(self, *, after: str | None = None, limit: int = DEFAULT_LIMIT) -> Page[Tenant]:
        """Return a page of the tenants, newest first."""
        return self._page("/tenants", after=after, limit=limit)

    def change_quotas(self, tenant_id: str, quotas: Mapping[str, int | None]) -> Tenant:
        """Change some of a tenant's quotas; None resets one to the server's setting."""
        path = _path("tenants", tenant_id)
        return cast("Tenant", self._ask("PATCH", path, body=dict(quotas)))

    def suspend(self, tenant_id: str) -> Tenant:
        """Refuse a tenant's keys and leave its queued jobs waiting; its running jobs go on."""
        return cast("Tenant", self._ask("POST", _path("tenants", tenant_id, "suspend")))

    def resume(self, tenant_id: str) -> Tenant:
        """End a tenant's suspension."""
        return cast("Tenant", self._ask("POST", _path("tenants", tenant_id, "resume")))

    def delete(self, tenant_id: str) -> None:
        """Delete a tenant with its keys, jobs, data sets and files."""
        self._ask("DELETE", _path("tenants", tenant_id))

    def audit(
        self,
        *,
        tenant_id: str | None = None,
        action: str | None = None,
        after: str | None = None,
        limit: int = DEFAULT_LIMIT,
    ) -> Page[AuditEvent]:
        """Return a page of the audit trail, newest first: of a tenant, of an action, or of all."""
        return self._page("/admin/audit", tenant=tenant_id, action=action, after=after, limit=limit)

    def usage(self, tenant_id: str) -> Usage:
        """Return a tenant's usage and quotas."""
        return cast("Usage", self._ask("GET", _path("tenants", tenant_id, "usage")))


class Keys(_Resource):
    """Keys: those of all tenants for administrators, else the caller's own."""

    def create(
        self, tenant_id: str, *, name: str | None = None, expires_at: datetime | None = None
    ) -> Key:
        """Create a key; only this response contains its secret."""
        body = _given(name=name, expires_at=expires_at)
        return cast("Key", self._ask("POST", _path("tenants", tenant_id, "keys"), body=body))

    def replace(
        self, key_id: str, *, grace_seconds: int = 0, expires_at: datetime | None = None
    ) -> Key:
        """Create a key in place of another one, which ends after ``grace_seconds``."""
        body = _given(grace_seconds=grace_seconds, expires_at=expires_at)
        return cast("Key", self._ask("POST", _path("keys", key_id, "replace"), body=body))

    def list(
        self, tenant_id: str | None = None, *, after: str | None = None, limit: int = DEFAULT_LIMIT
    ) -> Page[Key]:
        """Return a page of a tenant's keys, by default your own, newest first, without secrets."""
        path = "/keys" if tenant_id is None else _path("tenants", tenant_id, "keys")
        return self._page(path, after=after, limit=limit)

    def revoke(self, key_id: str) -> None:
        """Revoke a key, effective at once."""
        self._ask("DELETE", _path("keys", key_id))


def _given(**fields: str | int | datetime | None) -> dict[str, str | int]:
    """Return the fields of a body that are given, in JSON."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in fields.items()
        if value is not None
    }


def ask_for_predictions(
    connection: Connection,
    path: str,
    inputs: Sequence[Input | JobInput | SharedInput],
    *,
    truncate: bool,
    timeout_seconds: float | None,
) -> Predictions:
    """Post inputs; retried if the connection breaks, since predictions change nothing."""
    body = {"inputs": list(inputs), "truncate": truncate}
    if timeout_seconds is not None:
        body["timeout_seconds"] = timeout_seconds
    timeout = max(timeout_seconds or _PREDICTION_SECONDS, 0.0) + _SPARE_SECONDS
    answer = connection.ask("POST", path, body=body, changes_nothing=True, timeout=timeout)
    return cast("Predictions", answer)


def _path(*parts: str) -> str:
    return "".join(f"/{quote(part, safe='')}" for part in parts)
