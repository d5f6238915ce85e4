"""The Prometheus metrics of the inference process."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from functools import partial
from typing import TYPE_CHECKING, Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

if TYPE_CHECKING:
    from worker.inference.predictions import Answer

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ANSWERED = "answered"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class Tier(Protocol):
    """A place for head deltas: device, host memory or disk."""

    def __len__(self) -> int: ...

    @property
    def nbytes(self) -> int:
        """The bytes that it takes."""


class Metrics:
    """The metrics of one inference process, in their own registry.

    Args:
        under_way: the inputs that have arrived and are not answered yet.
        waiting: the samples that wait for a batch.
        tiers: by name: ``device``, ``host``, ``disk``.
    """

    def __init__(self, *, under_way: Sized, waiting: Sized, tiers: Mapping[str, Tier]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        histogram = partial(Histogram, registry=self._registry)
        gauge = partial(Gauge, registry=self._registry)
        self._latency = histogram(
            "hifi_inference_request_duration_seconds",
            "Time from a request's body to its answer.",
            buckets=_SECONDS,
        )
        self._predictions = Counter(
            "hifi_inference_predictions",
            "Inputs by outcome: answered, or the code of their error.",
            labelnames=("outcome",),
            registry=self._registry,
        )
        self._samples = histogram(
            "hifi_inference_batch_samples",
            "Samples per pass over the backbone.",
            buckets=_SAMPLES,
        )
        self._tokens = histogram(
            "hifi_inference_batch_tokens",
            "Tokens per pass over the backbone, including padding.",
            buckets=_TOKENS,
        )
        ProcessCollector(registry=self._registry)
        arrived = gauge(
            "hifi_inference_under_way", "Inputs that have arrived and are not answered yet."
        )
        arrived.set_function(partial(len, under_way))
        queued = gauge("hifi_inference_waiting", "Samples that wait for a batch.")
        queued.set_function(partial(len, waiting))
        deltas = gauge("hifi_inference_deltas", "Head deltas that a tier keeps.", ["tier"])
        nbytes = gauge("hifi_inference_delta_bytes", "Bytes of a tier.", ["tier"])
        for name, tier in tiers.items():
            deltas.labels(name).set_function(partial(len, tier))
            nbytes.labels(name).set_function(partial(getattr, tier, "nbytes"))

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

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)
