from __future__ import annotations

from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from service.operations.metrics import Metrics
from store.jobs.telemetry import ENGINE_CRASHES, LEASE_LOSSES, Telemetry
from store.states import JobStatus

MEASURED = Telemetry(
    jobs_by_state={status: place for place, status in enumerate(JobStatus)},
    oldest_queued_seconds=12.5,
    steps_per_second=3.25,
    jobs_without_worker=6,
    live_workers=2,
    counters={LEASE_LOSSES: 4, ENGINE_CRASHES: 5},
)


def samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Read the metrics as Prometheus does."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(text: bytes, name: str, **labels: str) -> float | None:
    return samples(text).get((name, frozenset(labels.items())))


class TestRender:
    def test_shows_what_was_measured(self):
        text = Metrics().render(MEASURED, inference=[])
        for place, status in enumerate(JobStatus):
            assert value(text, "hifi_jobs", state=status) == place
        assert value(text, "hifi_queue_age_seconds") == 12.5
        assert value(text, "hifi_steps_per_second") == 3.25
        assert value(text, "hifi_workers") == 2
        assert value(text, "hifi_jobs_without_worker") == 6
        assert value(text, "hifi_lease_losses_total") == 4
        assert value(text, "hifi_engine_crashes_total") == 5
        assert value(text, "hifi_database_up") == 1

    def test_leaves_out_what_could_not_be_measured(self):
        metrics = Metrics()
        metrics.render(MEASURED, inference=[])
        text = metrics.render(None, inference=[])
        assert value(text, "hifi_database_up") == 0
        assert value(text, "hifi_jobs", state="queued") is None
        assert value(text, "hifi_workers") is None
        resident = value(text, "process_resident_memory_bytes")
        assert resident is not None
        assert resident > 1 << 20


class TestObserve:
    def test_counts_by_method_route_and_status(self):
        metrics = Metrics()
        for seconds in (0.003, 0.2, 7.0):
            metrics.observe("GET", "/jobs/{job_id}", 200, seconds)
        metrics.observe("GET", "/jobs/{job_id}", 404, 0.1)
        text = metrics.render(None, inference=[])
        labels = {"method": "GET", "route": "/jobs/{job_id}", "status": "200"}
        name = "hifi_http_request_duration_seconds"
        assert value(text, f"{name}_count", **labels) == 3
        assert value(text, f"{name}_sum", **labels) == 7.203
        assert value(text, f"{name}_bucket", **labels, le="0.25") == 2
        assert value(text, f"{name}_count", **{**labels, "status": "404"}) == 1

    def test_makes_no_series_from_callers_input(self):
        metrics = Metrics()
        for number in range(50):
            metrics.observe(f"BREW{number}", "unmatched", 404, 0.1)
        text = metrics.render(None, inference=[])
        labels = {"method": "other", "route": "unmatched", "status": "404"}
        assert value(text, "hifi_http_request_duration_seconds_count", **labels) == 50
        assert b"BREW" not in text


class TestMetrics:
    def test_of_two_gateways_in_one_process_are_two(self):
        first, second = Metrics(), Metrics()
        first.observe("GET", "/", 200, 0.1)
        assert b"hifi_http_request_duration_seconds_count" not in second.render(None, inference=[])
        assert "hifi_http_request_duration_seconds" not in REGISTRY._names_to_collectors
