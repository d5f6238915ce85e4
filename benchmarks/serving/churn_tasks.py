"""Tasks of every kind with their merged models' answers, and the comparison of answers."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from hifi.backbones.heads import HeadId
from hifi.selection.head_selection import HeadSelection
from hifi.tuning.tuner import HeadTuner
from store.storage import ArtifactStorage

if TYPE_CHECKING:
    from hifi.deltas.delta import HeadDelta

Answer: TypeAlias = Mapping[str, Any]
CLOSE = 1e-4
# Large enough that the answers of two tasks are rarely close. With 0.3 in the rows of MiniLM, plain
# transformers' own answers differ by 1e-4 between a row alone and in a batch; with 0.1 by 6e-7.
_NOISE = 0.1
_APART = 10 * CLOSE


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of task.

    Attributes:
        labels: their number; None for regression.
        columns: 1, or 2 for pairs.
        k: heads per layer.
        max_length: tokens of a text.
    """

    labels: int | None
    columns: int
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


@dataclass(frozen=True, eq=False)
class Task:
    """A head delta, and the answers of its merged model.

    Attributes:
        tenant: the owner.
        file: of the head delta.
        sha256: of the file.
        inputs: as JSON.
        answers: one for each input.
    """

    tenant: str
    file: Path
    sha256: str
    inputs: Sequence[str]
    answers: Sequence[Answer]


def make_tasks(
    backbone: Path,
    texts: Sequence[tuple[str, str]],
    *,
    count: int,
    tenants: int,
    folder: Path,
    artifacts: Path,
) -> list[Task]:
    """Create tasks of all kinds, and store their head deltas in an artifact store.

    Args:
        backbone: folder of a BERT with four heads per layer or more.
        texts: the inputs; tasks on single texts take the first of each pair.
        count: number of tasks.
        tenants: number of tenants, which get tasks in turn.
        folder: for the deltas' files.
        artifacts: folder of the artifact store.
    """
    storage, draw = ArtifactStorage(str(artifacts)), random.Random(0)  # noqa: S311 - not a secret
    models = {kind: _classifier(backbone, kind) for kind in KINDS}
    tasks: list[Task] = []
    while len(tasks) < count:
        kind, tenant = KINDS[len(tasks) % len(KINDS)], f"ten_{len(tasks) % tenants}"
        delta = noise_delta(models[kind], kind, draw=draw)
        answers = merged_answers(models[kind], delta, texts)
        if any(_are_alike(answers, task.answers) for task in tasks):
            continue  # the check could not distinguish them
        file = folder / f"{len(tasks)}.safetensors"
        delta.save(file)
        inputs = [json.dumps(_input(pair, columns=kind.columns)) for pair in texts]
        tasks.append(Task(tenant, file, storage.put(tenant, file).sha256, inputs, answers))
    return tasks


def _classifier(backbone: Path, kind: Kind) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        backbone, num_labels=kind.labels or 1
    )
    model.eval()
    return model


def noise_delta(model: PreTrainedModel, kind: Kind, *, draw: random.Random) -> HeadDelta:
    """Create a head delta with random noise instead of training; the model is unchanged."""
    layers, most = model.config.num_hidden_layers, model.config.num_attention_heads
    heads = [
        HeadId(layer, head)
        for layer in range(layers)
        for head in sorted(draw.sample(range(most), kind.k))
    ]
    generator = torch.Generator().manual_seed(draw.getrandbits(60))
    tuner = HeadTuner(model, HeadSelection.from_heads(heads, num_layers=layers))
    for parameter in tuner.parameters():
        parameter.data += _NOISE * torch.randn(parameter.shape, generator=generator)
    columns = ["text", "text_pair"][: kind.columns]
    task = {
        "type": "regression" if kind.labels is None else "classification",
        "text": columns,
        "label": "label",
        "max_length": kind.max_length,
    }
    labels = None if kind.labels is None else [f"label {n}" for n in range(kind.labels)]
    delta = tuner.delta(task=task, labels=labels)
    tuner.undo()
    return delta


def merged_answers(
    model: PreTrainedModel, delta: HeadDelta, texts: Sequence[tuple[str, str]]
) -> list[Answer]:
    """Return the answers of plain transformers with the delta merged; the model is unchanged."""
    task = delta.metadata.task or {}
    tokenizer = AutoTokenizer.from_pretrained(model.config.name_or_path)
    columns = list(zip(*texts, strict=True))[: len(task["text"])]
    batch = tokenizer(
        *map(list, columns),
        truncation=True,
        max_length=task["max_length"],
        padding=True,
        return_tensors="pt",
    )
    displaced = delta.merge(model)
    with torch.inference_mode():
        logits: Tensor = model(**batch).logits.double()
    displaced.merge(model)
    if task["type"] == "regression":
        return [{"value": value} for value in logits.squeeze(-1).tolist()]
    names = list(map(str, delta.metadata.labels or ()))
    return [_classified(names, shares) for shares in logits.softmax(-1).tolist()]


def _classified(labels: Sequence[str], shares: Sequence[float]) -> Answer:
    scores = dict(zip(labels, shares, strict=True))
    label = max(scores, key=scores.__getitem__)
    return {"label": label, "score": scores[label], "scores": scores}


def _input(pair: tuple[str, str], *, columns: int) -> dict[str, str]:
    return dict(zip(("text", "text_pair")[:columns], pair, strict=False))


def is_right(answer: Answer, expected: Answer) -> bool:
    """Return whether an answer has the same fields and label, and numbers within ``CLOSE``.

    Another label is right too if the two likeliest scores differ by less than ``CLOSE``.
    """
    if answer.keys() != expected.keys():
        return False
    if "value" in expected:
        return bool(abs(answer["value"] - expected["value"]) <= CLOSE)
    given, wanted = answer["scores"], expected["scores"]
    if given.keys() != wanted.keys() or answer["label"] not in given:
        return False
    best, second = sorted(wanted.values(), reverse=True)[:2]
    is_label_right = answer["label"] == expected["label"] or (
        best - second < CLOSE and wanted[answer["label"]] >= second
    )
    return (
        is_label_right
        and answer["score"] == given[answer["label"]]
        and all(abs(given[name] - wanted[name]) <= CLOSE for name in wanted)
    )


def _are_alike(some: Sequence[Answer], others: Sequence[Answer]) -> bool:
    """Return whether at least a quarter of two tasks' answers to the same inputs are close."""
    near = [
        distance <= _APART
        for one, other in zip(some, others, strict=True)
        if (distance := _distance(one, other)) is not None
    ]
    return 4 * sum(near) >= len(some)


def _distance(one: Answer, other: Answer) -> float | None:
    """Return the largest difference of two answers; None if they are of different kinds."""
    if "value" in one and "value" in other:
        return float(abs(one["value"] - other["value"]))
    given, wanted = one.get("scores"), other.get("scores")
    if given is None or wanted is None or given.keys() != wanted.keys():
        return None
    return float(max(abs(given[name] - wanted[name]) for name in wanted))
