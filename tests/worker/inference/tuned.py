"""Head deltas of tiny backbones, and the merged models as the reference for answers."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers as tf
from PIL import Image

from hifi.backbones.heads import HeadId, describe
from hifi.selection.head_selection import HeadSelection
from hifi.tuning.tuner import HeadTuner
from tests.tiny_tasks import IMAGE_SIZE

if TYPE_CHECKING:
    from hifi.deltas.delta import HeadDelta

CLOSE = 1e-5
HEADS = (HeadId(0, 1), HeadId(2, 3))
_PARTS = ("text", "text_pair", "image")


@dataclass(frozen=True)
class Tuned:
    """A head delta with noise instead of training.

    Attributes:
        delta: of the backbone.
        folder: of the backbone.
    """

    delta: HeadDelta
    folder: Path

    @property
    def labels(self) -> list[str] | None:
        labels = self.delta.metadata.labels
        return None if labels is None else list(map(str, labels))

    @cached_property
    def model(self) -> tf.PreTrainedModel:
        """The plain transformers model with the delta merged: the reference."""
        model = _plain(self.folder, labels=self.labels, is_image=self._is_image)
        self.delta.merge(model)
        return model

    @cached_property
    def _tokenizer(self) -> Any:
        return tf.AutoTokenizer.from_pretrained(self.folder)

    @cached_property
    def _processor(self) -> Any:
        return tf.AutoImageProcessor.from_pretrained(self.folder, backend="pil")

    @property
    def _is_image(self) -> bool:
        return (self.delta.metadata.task or {})["type"] == "image-classification"

    def logits(self, given: Mapping[str, str]) -> torch.Tensor:
        """Return the merged model's logits for one input."""
        with torch.no_grad():
            return self.model(**self._encode(given)).logits[0]

    def check(self, answer: Mapping[str, Any], given: Mapping[str, str]) -> None:
        """Assert that an answer is the merged model's."""
        logits = self.logits(given)
        if self.labels is None:
            assert answer.keys() == {"value"}
            assert answer["value"] == pytest.approx(logits.item(), abs=CLOSE)
            return
        shares = dict(zip(self.labels, logits.softmax(-1).tolist(), strict=True))
        assert answer.keys() == {"label", "score", "scores"}
        assert answer["scores"] == pytest.approx(shares, abs=CLOSE)
        assert list(answer["scores"]) == self.labels
        assert sum(answer["scores"].values()) == pytest.approx(1.0)
        assert (
            answer["score"] == answer["scores"][answer["label"]] == max(answer["scores"].values())
        )

    def _encode(self, given: Mapping[str, str]) -> Mapping[str, torch.Tensor]:
        if self._is_image:
            image = Image.open(io.BytesIO(base64.b64decode(given["image"]))).convert("RGB")
            return self._processor([image], return_tensors="pt")
        texts = [[given[name]] for name in _PARTS if name in given]
        length = (self.delta.metadata.task or {})["max_length"]
        return self._tokenizer(*texts, truncation=True, max_length=length, return_tensors="pt")


def tune(
    folder: Path,
    *,
    seed: int = 0,
    labels: Sequence[str | int] | None = ("bad", "good"),
    columns: int = 1,
    max_length: int = 32,
    heads: Sequence[HeadId] = HEADS,
    is_image: bool = False,
    noise: float = 0.3,
) -> Tuned:
    """Make a delta from noise instead of training; without labels the task is a regression."""
    plain = _plain(folder, labels=labels, is_image=is_image)
    layers = describe(plain).num_layers
    tuner = HeadTuner(plain, HeadSelection.from_heads(heads, num_layers=layers))
    generator = torch.Generator().manual_seed(seed)
    for parameter in tuner.parameters():
        parameter.data += noise * torch.randn(parameter.shape, generator=generator)
    task: dict[str, Any] = {"type": "image-classification", "image": "photo", "label": "y"}
    if not is_image:
        kind = "regression" if labels is None else "classification"
        names = ["first", "second"][:columns]
        task = {"type": kind, "text": names, "label": "y", "max_length": max_length}
    return Tuned(tuner.delta(task=task, labels=labels), folder)


def _plain(
    folder: Path, *, labels: Sequence[str | int] | None, is_image: bool
) -> tf.PreTrainedModel:
    count = 1 if labels is None else len(labels)
    auto = tf.AutoModelForImageClassification if is_image else tf.AutoModelForSequenceClassification
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of the task head
        return auto.from_pretrained(folder, num_labels=count, ignore_mismatched_sizes=True).eval()


def image(shade: int, *, size: tuple[int, int] = (IMAGE_SIZE, IMAGE_SIZE)) -> str:
    """Return a base64 PNG that is not of one shade."""
    buffer = io.BytesIO()
    picture = Image.new("RGB", size, (shade, 0, 255 - shade))
    picture.putpixel((size[0] - 1, 0), (0, shade, 7))
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
