"""The Prometheus metrics of the inference process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from worker.inference.predictions import Answer

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ANSWERED = "answered"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


@dataclass(frozen=True)
class TierFigures:
    """The state of a tier: the number of its entries, and their bytes."""

    count: int
    nbytes: int


@dataclass(frozen=True)
class Figures:
    """The state of the process.

    Attributes:
        under_way: inputs that have arrived and are not answered yet.
        waiting: samples that wait for a batch.
        tiers: by name: ``device``, ``host``, ``disk``.
    """

    under_way: int
    waiting: int
    tiers: Mapping[str, TierFigures]


class Metrics:
    """The metrics of one inference process, in their own registry.

    Args:
        look: returns the state of the process; called at each scrape.
    """

    def __init__(self, look: Callable[[], Figures]) -> None:
        self._look = look
        self._registry = CollectorRegistry(auto_describe=False)
        self._latency = Histogram(
            "hifi_inference_request_duration_seconds",
            "Time from a request's body to its answer.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._predictions = Counter(
            "hifi_inference_predictions",
            "Inputs by outcome: answered, or the code of their error.",
            labelnames=("outcome",),
            registry=self._registry,
        )
        self._samples = Histogram(
            "hifi_inference_batch_samples",
            "Samples per pass over the backbone.",
            buckets=_SAMPLES,
            registry=self._registry,
        )
        self._tokens = Histogram(
            "hifi_inference_batch_tokens",
            "Tokens per pass over the backbone, including padding.",
            buckets=_TOKENS,
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)
        self._registry.register(self)

    def observe_pass(self, samples: int, tokens: int) -> None:
        """Count a pass over the backbone; called by the thread that computes it."""
        self._samples.observe(samples)
        self._tokens.observe(tokens)

    def observe_request(self, answers: list[Answer], seconds: float) -> None:
        """Count an answered request."""
        self._latency.observe(seconds)
        for answer in answers:
            error = answer.get("error")
            self._predictions.labels(_ANSWERED if error is None else error["code"]).inc()

    def observe_refusal(self, code: str, inputs: int) -> None:
        """Count the inputs of a request that was refused as a whole."""
        self._predictions.labels(code).inc(inputs)

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges of the process, as a collector of the registry."""
        figures = self._look()
        yield GaugeMetricFamily(
            "hifi_inference_under_way",
            "Inputs that have arrived and are not answered yet.",
            value=figures.under_way,
        )
        yield GaugeMetricFamily(
            "hifi_inference_waiting", "Samples that wait for a batch.", value=figures.waiting
        )
        deltas = GaugeMetricFamily(
            "hifi_inference_deltas", "Head deltas that a tier keeps.", labels=["tier"]
        )
        nbytes = GaugeMetricFamily(
            "hifi_inference_delta_bytes", "Bytes of a tier.", labels=["tier"]
        )
        for name, tier in figures.tiers.items():
            deltas.add_metric([name], tier.count)
            nbytes.add_metric([name], tier.nbytes)
        yield deltas
        yield nbytes

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)
