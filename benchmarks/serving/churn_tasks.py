"""Tasks of every kind with their merged models' answers, and the comparison of answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    pipeline,
)

from benchmarks.serving.deltas import noise_delta
from benchmarks.speed.methods import random_heads
from store.orders import DeltaOrder

if TYPE_CHECKING:
    from hifi.deltas.delta import HeadDelta
    from store.storage import ArtifactStorage

Answer: TypeAlias = Mapping[str, Any]
CLOSE = 1e-4
# Large enough that the answers of two tasks are rarely close. With 0.3 in the rows of MiniLM, plain
# transformers' own answers differ by 1e-4 between a row alone and in a batch; with 0.1 by 6e-7.
_NOISE = 0.1
_APART = 10 * CLOSE
_TENANTS = 7  # not a multiple of the kinds, so that each tenant has tasks of several kinds


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of task, with ``k`` heads per layer and texts of at most ``max_length`` tokens."""

    labels: int | None  # None for regression
    columns: int  # 2 for pairs
    k: int
    max_length: int


KINDS = (
    Kind(labels=2, columns=2, k=3, max_length=128),
    Kind(labels=None, columns=1, k=3, max_length=128),
    Kind(labels=5, columns=1, k=1, max_length=16),
    Kind(labels=None, columns=2, k=2, max_length=32),
    Kind(labels=3, columns=2, k=4, max_length=64),
    Kind(labels=2, columns=1, k=3, max_length=24),
)


@dataclass(eq=False, kw_only=True)
class Task:
    """A head delta, the answers of its merged model, and its state in the artifact store.

    Attributes:
        order: for the head delta.
        file: of the head delta.
        inputs: for predictions.
        answers: one for each input.
        is_there: stored before all requests in flight were sent.
        is_coming: being stored, or stored after a request in flight was sent.
        deletions: number of deletions so far.
    """

    order: DeltaOrder
    file: Path
    inputs: Sequence[Mapping[str, str]]
    answers: Sequence[Answer]
    is_there: bool = True
    is_coming: bool = False
    deletions: int = 0


def make_tasks(
    backbone: Path,
    texts: Sequence[tuple[str, str]],
    *,
    count: int,
    folder: Path,
    storage: ArtifactStorage,
) -> list[Task]:
    """Create tasks of all kinds, and store their head deltas in an artifact store.

    Args:
        backbone: folder of a BERT with four heads per layer or more.
        texts: the inputs; tasks on single texts take the first of each pair.
        count: number of tasks.
        folder: for the deltas' files.
        storage: the artifact store.
    """
    models = {kind: _classifier(backbone, kind) for kind in KINDS}
    tasks: list[Task] = []
    seed = 0
    while len(tasks) < count:
        kind, tenant = KINDS[len(tasks) % len(KINDS)], f"ten_{len(tasks) % _TENANTS}"
        columns = ("text", "text_pair")[: kind.columns]
        inputs = [dict(zip(columns, pair, strict=False)) for pair in texts]
        delta = noise_delta(
            models[kind],
            selection=random_heads(models[kind], k=kind.k, seed=seed),
            noise=_NOISE,
            seed=seed,
            task={
                "type": "regression" if kind.labels is None else "classification",
                "text": list(columns),
                "label": "label",
                "max_length": kind.max_length,
            },
        )
        seed += 1
        answers = _merged_answers(models[kind], delta, kind=kind, inputs=inputs)
        if any(_are_alike(answers, task.answers) for task in tasks):
            continue  # the check could not distinguish them
        file = folder / f"{len(tasks)}.safetensors"
        delta.save(file)
        sha256 = storage.put(tenant, file).sha256
        order = DeltaOrder(tenant=tenant, job="job_0", model=backbone.name, sha256=sha256)
        tasks.append(Task(order=order, file=file, inputs=inputs, answers=answers))
    return tasks


def _classifier(backbone: Path, kind: Kind) -> PreTrainedModel:
    names = {number: f"label {number}" for number in range(kind.labels or 0)}
    settings: dict[str, Any] = {"id2label": names} if names else {"num_labels": 1}
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        backbone, **settings
    )
    model.eval()
    return model


def _merged_answers(
    model: PreTrainedModel, delta: HeadDelta, *, kind: Kind, inputs: list[dict[str, str]]
) -> list[Answer]:
    """Return the answers of plain transformers with the delta merged; the model is unchanged."""
    classify: Any = pipeline(
        "text-classification",
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(model.config.name_or_path),
        device="cpu",
        top_k=None,
        function_to_apply="none" if kind.labels is None else "softmax",
        truncation=True,
        max_length=kind.max_length,
    )
    displaced = delta.merge(model)
    ranked = classify(inputs)
    displaced.merge(model)
    if kind.labels is None:
        return [{"value": only["score"]} for (only,) in ranked]
    return [
        {**entries[0], "scores": {entry["label"]: entry["score"] for entry in entries}}
        for entries in ranked
    ]


def is_right(answer: Answer, expected: Answer) -> bool:
    """Return whether an answer has the same fields and label, and numbers within ``CLOSE``.

    Another label is right too if the two likeliest scores differ by less than ``CLOSE``.
    """
    if not _distance(answer, expected) <= CLOSE:  # also if it is not a number
        return False
    if "value" in expected:
        return True
    label, wanted = answer["label"], expected["scores"]
    best, second = sorted(wanted.values(), reverse=True)[:2]
    is_tie = best - second < CLOSE and wanted.get(label, -1.0) >= second
    is_label_right = label == expected["label"] or is_tie
    return is_label_right and bool(answer["score"] == answer["scores"][label])


def _are_alike(some: Sequence[Answer], others: Sequence[Answer]) -> bool:
    """Return whether at least a quarter of two tasks' answers to the same inputs are close."""
    near = [_distance(one, other) <= _APART for one, other in zip(some, others, strict=True)]
    return 4 * sum(near) >= len(some)


def _distance(one: Answer, other: Answer) -> float:
    """Return the largest difference of two answers; infinite if they are of different kinds."""
    if one.keys() != other.keys():
        return math.inf
    given, wanted = (answer.get("scores", answer) for answer in (one, other))
    if given.keys() != wanted.keys():
        return math.inf
    return float(np.abs([given[name] - wanted[name] for name in wanted]).max())  # NaN if any is
