"""What a server has, a class for each kind: data sets, backbones, jobs, tenants, keys."""

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
_PREDICTION_SECONDS = 300.0  # the longest that a server may choose to take
_SPARE_SECONDS = 30.0  # until it has said so
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
        """Upload a data set, file by file and never whole in memory.

        Args:
            train: the training split: .jsonl, .csv, .tsv or .parquet.
            validation: a further split.
            test: a further split.
            name: for people.
            idempotency_key: drawn anew where None; equal keys and files make one data set.
            on_progress: told the bytes so far, and all of them.

        Raises:
            ApiError: the server refuses; a bad row is named.
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
        """Take a page of the data sets, newest first."""
        return self._page("/datasets", after=after, limit=limit)

    def get(self, dataset_id: str) -> Dataset:
        """Look at a data set."""
        dataset: Dataset = self._connection.ask("GET", f"/datasets/{quote(dataset_id, safe='')}")
        return dataset

    def delete(self, dataset_id: str) -> None:
        """Remove a data set that no live job needs."""
        self._connection.ask("DELETE", f"/datasets/{quote(dataset_id, safe='')}")


class Models(_Resource):
    """The backbones that workers have."""

    def list(self, *, after: str | None = None, limit: int = DEFAULT_LIMIT) -> Page[Backbone]:
        """Take a page of the backbones."""
        return self._page("/models", after=after, limit=limit)


class Jobs(_Resource):
    """The jobs of a tenant."""

    def create(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Post a job; repeated under its key where the connection breaks, it is still one job.

        Args:
            spec: the job spec, plain JSON.
            idempotency_key: drawn anew where None.

        Raises:
            ApiError: the server refuses; ``param`` names the field.
        """
        job: Job = self._connection.ask(
            "POST", "/jobs", body=spec, idempotency_key=idempotency_key or new_idempotency_key()
        )
        return job

    def dry_run(self, spec: Mapping[str, Any]) -> Estimate:
        """Check a job spec and estimate what the job would take; nothing is stored."""
        estimate: Estimate = self._connection.ask(
            "POST", "/jobs", query={"dry_run": "true"}, body=spec
        )
        return estimate

    def get(self, job_id: str) -> Job:
        """Look at a job."""
        job: Job = self._connection.ask("GET", _job(job_id))
        return job

    def list(
        self, *, status: str | None = None, after: str | None = None, limit: int = DEFAULT_LIMIT
    ) -> Page[Job]:
        """Take a page of the jobs, newest first."""
        return self._page("/jobs", status=status, after=after, limit=limit)

    def cancel(self, job_id: str) -> Job:
        """Cancel a job: at once, or at its worker's next step."""
        return self._ask_to("cancel", job_id)

    def pause(self, job_id: str) -> Job:
        """Stop a training job at its next step, with a checkpoint."""
        return self._ask_to("pause", job_id)

    def resume(self, job_id: str) -> Job:
        """Queue a paused job again."""
        return self._ask_to("resume", job_id)

    def delete(self, job_id: str) -> None:
        """Remove a finished job with its artifact and events."""
        self._connection.ask("DELETE", _job(job_id))

    def events(
        self, job_id: str, *, after: str | None = None, limit: int = DEFAULT_LIMIT
    ) -> Page[Event]:
        """Take a page of a job's events, oldest first."""
        return self._page(f"{_job(job_id)}/events", after=after, limit=limit)

    def watch(
        self,
        job_id: str,
        *,
        after: str | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Iterator[Event]:
        """Give a job's events as they happen, until it is finished.

        Where the connection breaks it is taken up again: no event is lost, none comes twice.

        Args:
            job_id: which.
            after: id of an event: only those behind it.
            on_progress: told how far the job is whenever that changes.
        """
        return watch(self._connection, quote(job_id, safe=""), after=after, on_progress=on_progress)

    def heads(self, job_id: str) -> Heads:
        """Give the scores of all heads, and which were selected."""
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
            job_id: which.
            inputs: 1 to 256.
            truncate: whether a text of too many tokens is cut, as in the training, or refused.
            timeout_seconds: how long the answer may take; the server's choice where None.

        Returns:
            An answer for each, in their order; one that fails has an ``error`` in its place.

        Raises:
            ApiError: the server refuses all of it.
        """
        return ask_for_predictions(
            self._connection,
            f"{_job(job_id)}/predict",
            inputs,
            truncate=truncate,
            timeout_seconds=timeout_seconds,
        )

    def _ask_to(self, what: str, job_id: str) -> Job:
        job: Job = self._connection.ask("POST", f"{_job(job_id)}/{what}")
        return job


class Tenants(_Resource):
    """The tenants of the server, for its administrators."""

    def create(
        self, name: str, *, is_admin: bool = False, quotas: Mapping[str, int] | None = None
    ) -> Tenant:
        """Add a tenant.

        Args:
            name: no other has it.
            is_admin: whether it may see to tenants and keys itself.
            quotas: of its own: ``max_queued``, ``max_running``, ``max_bytes``; those that are
                missing are the server's.
        """
        body = {"name": name, "is_admin": is_admin, **(quotas or {})}
        tenant: Tenant = self._connection.ask("POST", "/tenants", body=body)
        return tenant

    def list(self, *, after: str | None = None, limit: int = DEFAULT_LIMIT) -> Page[Tenant]:
        """Take a page of the tenants, newest first."""
        return self._page("/tenants", after=after, limit=limit)

    def change_quotas(self, tenant_id: str, quotas: Mapping[str, int | None]) -> Tenant:
        """Change a tenant's quotas.

        Args:
            tenant_id: whose.
            quotas: those to change; None is the server's setting.
        """
        tenant: Tenant = self._connection.ask(
            "PATCH", f"/tenants/{quote(tenant_id, safe='')}", body=dict(quotas)
        )
        return tenant

    def usage(self, tenant_id: str) -> Usage:
        """Tell what a tenant has and may have."""
        usage: Usage = self._connection.ask("GET", f"/tenants/{quote(tenant_id, safe='')}/usage")
        return usage


class Keys(_Resource):
    """The keys of the server's tenants, for its administrators."""

    def create(self, tenant_id: str, *, name: str | None = None) -> Key:
        """Add a key; only this answer holds its secret."""
        key: Key = self._connection.ask(
            "POST",
            f"/tenants/{quote(tenant_id, safe='')}/keys",
            body={} if name is None else {"name": name},
        )
        return key

    def list(
        self, tenant_id: str, *, after: str | None = None, limit: int = DEFAULT_LIMIT
    ) -> Page[Key]:
        """Take a page of a tenant's keys, newest first; without their secrets."""
        return self._page(f"/tenants/{quote(tenant_id, safe='')}/keys", after=after, limit=limit)

    def revoke(self, key_id: str) -> None:
        """Make a key worthless at once."""
        self._connection.ask("DELETE", f"/keys/{quote(key_id, safe='')}")


def ask_for_predictions(
    connection: Connection,
    path: str,
    inputs: Sequence[Input | JobInput],
    *,
    truncate: bool,
    timeout_seconds: float | None,
) -> Predictions:
    """Post inputs; asked again where the connection breaks, since they change nothing."""
    body = {"inputs": list(inputs), "truncate": truncate}
    if timeout_seconds is not None:
        body["timeout_seconds"] = timeout_seconds
    patience = max(timeout_seconds or _PREDICTION_SECONDS, 0.0) + _SPARE_SECONDS
    predictions: Predictions = connection.ask(
        "POST", path, body=body, changes_nothing=True, timeout=patience
    )
    return predictions


def _job(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"
