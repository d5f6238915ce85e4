"""What Prometheus reads: how the queue stands by the tables, and how fast this process answers."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPMethod
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends
from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from starlette.requests import HTTPConnection  # noqa: TC002 - FastAPI reads it when it runs

from store.states import JobStatus
from store.telemetry import ENGINE_CRASHES, LEASE_LOSSES

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from store.telemetry import Telemetry

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# A stream lasts as long as its job: what is above the last bound says nothing about speed.
_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# By the name that the store counts under: ours, and what it counts.
_COUNTERS = {
    LEASE_LOSSES: ("hifi_lease_losses", "Jobs taken back from a worker that fell silent."),
    ENGINE_CRASHES: ("hifi_engine_crashes", "Engines that died or were killed during a job."),
}


class Metrics:
    """The metrics of one gateway process, in a registry of its own."""

    def __init__(self) -> None:
        self._latencies = Histogram(
            "hifi_http_request_duration_seconds",
            "Time from a request's first byte to its answer's last.",
            labelnames=("method", "route", "status"),
            buckets=_BOUNDS,
            registry=None,
        )
        # Asks the operating system at each scrape; a registry of its own takes none at import.
        self._process = ProcessCollector(registry=None)

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answered request.

        Args:
            method: GET, POST, …; one that HTTP does not know counts as ``other``.
            route: the route's template such as ``/jobs/{job_id}``, never the path: each value
                makes a series that is never forgotten.
            status: of the answer.
            seconds: that it took.
        """
        known = method if method in HTTPMethod.__members__ else "other"
        self._latencies.labels(known, route, str(status)).observe(seconds)

    def render(self, telemetry: Telemetry | None) -> bytes:
        """Write all metrics in Prometheus' text format 0.0.4.

        Args:
            telemetry: how the tables stand; None where they cannot be read: then their metrics
                are missing rather than old, and ``hifi_database_up`` is 0.
        """
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self._latencies)
        registry.register(self._process)
        registry.register(_Tables(telemetry))
        return generate_latest(registry)


class _Tables:
    """A collector over one measurement of the tables."""

    def __init__(self, telemetry: Telemetry | None) -> None:
        self._telemetry = telemetry

    def collect(self) -> Iterator[Metric]:
        """Give each number of the measurement its name."""
        telemetry = self._telemetry
        yield GaugeMetricFamily(
            "hifi_database_up",
            "1 where the tables could be read for this scrape.",
            value=float(telemetry is not None),
        )
        if telemetry is None:
            return
        jobs = GaugeMetricFamily("hifi_jobs", "Jobs by state.", labels=["state"])
        for status in JobStatus:
            jobs.add_metric([status.value], telemetry.jobs_by_state[status])
        yield jobs
        yield GaugeMetricFamily(
            "hifi_queue_age_seconds",
            "How long the oldest queued job has waited; 0 where none waits.",
            value=telemetry.oldest_queued_seconds,
        )
        yield GaugeMetricFamily(
            "hifi_jobs_without_worker",
            "Queued jobs that no live worker can run: none has their backbone or may use the hub.",
            value=telemetry.jobs_without_worker,
        )
        yield GaugeMetricFamily(
            "hifi_steps_per_second",
            "Training steps per second of all running jobs together.",
            value=telemetry.steps_per_second,
        )
        yield GaugeMetricFamily(
            "hifi_workers", "Workers that were seen lately.", value=telemetry.live_workers
        )
        for counted, (name, meaning) in _COUNTERS.items():
            yield CounterMetricFamily(name, meaning, value=telemetry.counters[counted])


async def _metrics(connection: HTTPConnection) -> Metrics:
    metrics: Metrics = connection.state.metrics
    return metrics


MetricsDep = Annotated[Metrics, Depends(_metrics)]
