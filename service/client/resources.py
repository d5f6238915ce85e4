"""A class for each kind of resource: data sets, backbones, jobs, tenants, keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from service.client.connection import Connection, new_idempotency_key
from service.client.downloads import Download, Watch, download
from service.client.uploads import Upload
from service.client.watching import watch

if TYPE_CHECKING:
    from service.client.documents import (
        Backbone,
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
        Tenant,
        Usage,
    )

_UPLOAD_SECONDS = 600.0  # the server reads every row before it answers
_PREDICTION_SECONDS = 300.0  # the longest timeout that a server may choose
_SPARE_SECONDS = 30.0  # for its response to arrive
DEFAULT_LIMIT = 20


class _Resource:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def _page(self, path: str, **query: str | int | None) -> Page[Any]:
        page: Page[Any] = self._connection.ask("GET", path, query=query)
        return page


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
            train: the training split: .jsonl, .csv, .tsv or .parquet.
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
        upload = Upload(files, fields={} if name is None else {"name": name}, watch=on_progress)
        dataset: Dataset = self._connection.ask(
            "POST",
            "/datasets",
            idempotency_key=idempotency_key or new_idempotency_key(),
            open_form=upload.open,
            timeout=_UPLOAD_SECONDS,
        )
        return dataset

    def list(self, *, after: str | None = None, limit: int = DEFAULT_LIMIT) -> Page[Dataset]:
        """Return a page of the data sets, newest first."""
        return self._page("/datasets", after=after, limit=limit)

    def get(self, dataset_id: str) -> Dataset:
        """Return a data set."""
        dataset: Dataset = self._connection.ask("GET", f"/datasets/{quote(dataset_id, safe='')}")
        return dataset

    def delete(self, dataset_id: str) -> None:
        """Delete a data set that no unfinished job needs."""
        self._connection.ask("DELETE", f"/datasets/{quote(dataset_id, safe='')}")


class Models(_Resource):
    """The backbones that workers have."""

    def list(self, *, after: str | None = None, limit: int = DEFAULT_LIMIT) -> Page[Backbone]:
        """Return a page of the backbones."""
        return self._page("/models", after=after, limit=limit)


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
        job: Job = self._connection.ask(
            "POST", "/jobs", body=spec, idempotency_key=idempotency_key or new_idempotency_key()
        )
        return job

    def dry_run(self, spec: Mapping[str, Any]) -> Estimate:
        """Check a job spec and estimate the job's cost; nothing is stored."""
        estimate: Estimate = self._connection.ask(
            "POST", "/jobs", query={"dry_run": "true"}, body=spec
        )
        return estimate

    def get(self, job_id: str) -> Job:
        """Return a job."""
        job: Job = self._connection.ask("GET", _job(job_id))
        return job

    def list(
        self, *, status: str | None = None, after: str | None = None, limit: int = DEFAULT_LIMIT
    ) -> Page[Job]:
        """Return a page of the jobs, newest first."""
        return self._page("/jobs", status=status, after=after, limit=limit)

    def cancel(self, job_id: str) -> Job:
        """Cancel a job: at once if no worker runs it, else at its worker's next step."""
        return self._act("cancel", job_id)

    def pause(self, job_id: str) -> Job:
        """Pause a training job at its next step, with a checkpoint."""
        return self._act("pause", job_id)

    def resume(self, job_id: str) -> Job:
        """Queue a paused job again."""
        return self._act("resume", job_id)

    def delete(self, job_id: str) -> None:
        """Delete a finished job with its events and artifacts."""
        self._connection.ask("DELETE", _job(job_id))

    def events(
        self, job_id: str, *, after: str | None = None, limit: int = DEFAULT_LIMIT
    ) -> Page[Event]:
        """Return a page of a job's events, oldest first."""
        return self._page(f"{_job(job_id)}/events", after=after, limit=limit)

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
        return watch(self._connection, quote(job_id, safe=""), after=after, on_progress=on_progress)

    def heads(self, job_id: str) -> Heads:
        """Return the scores of all heads, and the selected heads."""
        heads: Heads = self._connection.ask("GET", f"{_job(job_id)}/heads")
        return heads

    def download_delta(
        self,
        job_id: str,
        out: Path,
        *,
        encoding: str = "float32",
        on_progress: Watch | None = None,
    ) -> Download:
        """Download a succeeded job's head delta; see :func:`download`."""
        return download(
            self._connection,
            f"{_job(job_id)}/heads/delta",
            query={"encoding": encoding},
            out=out,
            on_progress=on_progress,
        )

    def download_lora(
        self, job_id: str, out: Path, *, on_progress: Watch | None = None
    ) -> Download:
        """Download the head delta as a PEFT adapter, in a tar file."""
        path = f"{_job(job_id)}/heads/lora"
        return download(self._connection, path, out=out, on_progress=on_progress)

    def download_merged(
        self, job_id: str, out: Path, *, on_progress: Watch | None = None
    ) -> Download:
        """Download the merged model with its tokenizer, in a tar file."""
        path = f"{_job(job_id)}/merged"
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
            f"{_job(job_id)}/predict",
            inputs,
            truncate=truncate,
            timeout_seconds=timeout_seconds,
        )

    def _act(self, action: str, job_id: str) -> Job:
        job: Job = self._connection.ask("POST", f"{_job(job_id)}/{action}")
        return job


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
        tenant: Tenant = self._connection.ask("POST", "/tenants", body=body)
        return tenant

    def list(self, *, after: str | None = None, limit: int = DEFAULT_LIMIT) -> Page[Tenant]:
        """Return a page of the tenants, newest first."""
        return self._page("/tenants", after=after, limit=limit)

    def change_quotas(self, tenant_id: str, quotas: Mapping[str, int | None]) -> Tenant:
        """Change some of a tenant's quotas; None resets one to the server's setting."""
        tenant: Tenant = self._connection.ask(
            "PATCH", f"/tenants/{quote(tenant_id, safe='')}", body=dict(quotas)
        )
        return tenant

    def usage(self, tenant_id: str) -> Usage:
        """Return a tenant's usage and quotas."""
        usage: Usage = self._connection.ask("GET", f"/tenants/{quote(tenant_id, safe='')}/usage")
        return usage


class Keys(_Resource):
    """The keys of the server's tenants, for its administrators."""

    def create(self, tenant_id: str, *, name: str | None = None) -> Key:
        """Create a key; only this response contains its secret."""
        key: Key = self._connection.ask(
            "POST",
            f"/tenants/{quote(tenant_id, safe='')}/keys",
            body={} if name is None else {"name": name},
        )
        return key

    def list(
        self, tenant_id: str, *, after: str | None = None, limit: int = DEFAULT_LIMIT
    ) -> Page[Key]:
        """Return a page of a tenant's keys, newest first, without their secrets."""
        return self._page(f"/tenants/{quote(tenant_id, safe='')}/keys", after=after, limit=limit)

    def revoke(self, key_id: str) -> None:
        """Revoke a key, effective at once."""
        self._connection.ask("DELETE", f"/keys/{quote(key_id, safe='')}")


def ask_for_predictions(
    connection: Connection,
    path: str,
    inputs: Sequence[Input | JobInput],
    *,
    truncate: bool,
    timeout_seconds: float | None,
) -> Predictions:
    """Post inputs; retried if the connection breaks, since predictions change nothing."""
    body = {"inputs": list(inputs), "truncate": truncate}
    if timeout_seconds is not None:
        body["timeout_seconds"] = timeout_seconds
    timeout = max(timeout_seconds or _PREDICTION_SECONDS, 0.0) + _SPARE_SECONDS
    predictions: Predictions = connection.ask(
        "POST", path, body=body, changes_nothing=True, timeout=timeout
    )
    return predictions


def _job(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"
