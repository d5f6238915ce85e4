"""The Prometheus metrics: the queue, from the tables, and this process's response times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from http import HTTPMethod
from typing import TYPE_CHECKING, Annotated

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from service.context import from_state
from store.jobs.telemetry import ENGINE_CRASHES, LEASE_LOSSES
from store.states import JobStatus

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from service.inference.processes import ProcessState
    from store.jobs.telemetry import Telemetry

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# A stream lasts as long as its job: durations above the last bound do not measure speed.
_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# By the store's name of a counter: the metric's name and help.
_COUNTERS = {
    LEASE_LOSSES: ("hifi_lease_losses", "Jobs taken back from a worker that stopped responding."),
    ENGINE_CRASHES: ("hifi_engine_crashes", "Engines that died or were killed during a job."),
}


class Metrics:
    """The metrics of one gateway process, in their own registry."""

    def __init__(self) -> None:
        self._latencies = Histogram(
            "hifi_http_request_duration_seconds",
            "Time from a request's first byte to its response's last.",
            labelnames=("method", "route", "status"),
            buckets=_BOUNDS,
            registry=None,
        )
        # Reads the operating system at each scrape; the default registry would do so at import.
        self._process = ProcessCollector(registry=None)

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answered request.

        Args:
            method: GET, POST, …; unknown methods count as ``other``.
            route: the route's template such as ``/jobs/{job_id}``, never the path: each value
                creates a series that is kept forever.
            status: of the response.
            seconds: the duration.
        """
        known = method if method in HTTPMethod.__members__ else "other"
        self._latencies.labels(known, route, str(status)).observe(seconds)

    def render(self, telemetry: Telemetry | None, *, inference: Sequence[ProcessState]) -> bytes:
        """Return all metrics in Prometheus' text format 0.0.4.

        Args:
            inference: the inference processes, as this gateway sees them.
            telemetry: measured from the tables; None if they cannot be read: then their metrics are
                missing, not outdated, and ``hifi_database_up`` is 0.
        """
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self._latencies)
        registry.register(self._process)
        registry.register(_Tables(telemetry))
        registry.register(_Inference(inference))
        return generate_latest(registry)


class _Inference:
    """A collector for the inference processes."""

    def __init__(self, states: Sequence[ProcessState]) -> None:
        self._states = states

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of each process."""
        up = GaugeMetricFamily(
            "hifi_inference_up", "1 if this gateway uses the process.", labels=["url"]
        )
        failures = CounterMetricFamily(
            "hifi_inference_connection_failures",
            "Connections to the process that failed or broke, including probes.",
            labels=["url"],
        )
        for state in self._states:
            up.add_metric([state.url], float(state.is_up))
            failures.add_metric([state.url], state.failures)
        yield up
        yield failures


class _Tables:
    """A collector for one measurement of the tables."""

    def __init__(self, telemetry: Telemetry | None) -> None:
        self._telemetry = telemetry

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the measurement."""
        telemetry = self._telemetry
        yield GaugeMetricFamily(
            "hifi_database_up",
            "1 if the tables could be read for this scrape.",
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
            "How long the oldest queued job has waited; 0 if none waits.",
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
            "hifi_workers", "Workers that were seen recently.", value=telemetry.live_workers
        )
        for counted, (name, meaning) in _COUNTERS.items():
            yield CounterMetricFamily(name, meaning, value=telemetry.counters[counted])


MetricsDep = Annotated[Metrics, from_state("metrics")]
