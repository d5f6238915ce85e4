"""The HTTP client: typed methods for the server's API, with retries where they are safe.

>>> with Client("http://127.0.0.1:8000") as client:  # doctest: +SKIP
...     dataset = client.datasets.push(Path("train.jsonl"))
...     job = client.jobs.create({"model": "all-MiniLM-L6-v2", "dataset": dataset["id"]})
...     for event in client.jobs.watch(job["id"]):
...         print(event["message"])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from service.client.connection import Connection
from service.client.downloads import Download
from service.client.errors import (
    AddressError,
    ApiError,
    BodyError,
    ClientError,
    DamagedDownloadError,
    LocalFileError,
    UnexpectedAnswerError,
    UnreachableError,
)
from service.client.resources import (
    AllJobs,
    BatchPredictions,
    Datasets,
    Jobs,
    Keys,
    Models,
    Tenants,
    ask_for_predictions,
)

if TYPE_CHECKING:
    from service.client.documents import JobInput, Predictions, SharedInput

__all__ = [
    "AddressError",
    "ApiError",
    "BodyError",
    "Client",
    "ClientError",
    "DamagedDownloadError",
    "Download",
    "LocalFileError",
    "UnexpectedAnswerError",
    "UnreachableError",
]


class Client:
    """A client of one HiFi server.

    Args:
        url: of the server, ``http://`` or ``https://``.
        api_key: a key of the server; None if it requires none.
        timeout: read timeout in seconds.

    Attributes:
        datasets, models, jobs, all_jobs, predictions, tenants, keys: the server's resources.

    Raises:
        AddressError: invalid URL or key.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = 60.0) -> None:
        self._connection = Connection(url, api_key=api_key, timeout=timeout)
        self.datasets = Datasets(self._connection)
        self.models = Models(self._connection)
        self.jobs = Jobs(self._connection)
        self.all_jobs = AllJobs(self._connection)
        self.predictions = BatchPredictions(self._connection)
        self.tenants = Tenants(self._connection)
        self.keys = Keys(self._connection)

    @property
    def url(self) -> str:
        """The server's URL."""
        return self._connection.url

    def predict(
        self,
        items: Sequence[JobInput | SharedInput],
        *,
        truncate: bool = True,
        timeout_seconds: float | None = None,
    ) -> Predictions:
        """Predict with the head deltas of any jobs, mixed freely; else as ``jobs.predict``.

        Args:
            items: inputs, each with its job or ``jobs``; 1 to 256 answers in all.
            truncate: cut texts of too many tokens, as in training; if False they get an error.
            timeout_seconds: limit of the request; None: the server's default.

        Raises:
            ApiError: the server refuses the whole request.
        """
        return ask_for_predictions(
            self._connection, "/predict", items, truncate=truncate, timeout_seconds=timeout_seconds
        )

    def close(self) -> None:
        """Close the open connections."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
