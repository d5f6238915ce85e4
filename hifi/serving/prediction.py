"""Predictions as a head delta records them: inputs encoded as in training, logits read."""

from __future__ import annotations

import base64
import binascii
import copy
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from hifi.backbones.models import max_positions, reads
from hifi.data.images import decode_image, image_size
from hifi.deltas.loading import configure_for
from hifi.errors import (
    AnswerError,
    ImageInputError,
    InputError,
    InvalidArgumentError,
    TaskNotSupportedError,
    TextTooLongError,
)
from hifi.tasks.image import ImageEncoder
from hifi.tasks.text import TextEncoder

if TYPE_CHECKING:
    from PIL import Image
    from transformers import PreTrainedConfig, PreTrainedModel

    from hifi.backbones.models import ModelSource
    from hifi.deltas.delta import HeadDelta
    from hifi.tasks import Task

Answer: TypeAlias = dict[str, Any]
_FIRST, _SECOND, _IMAGE = "text", "text_pair", "image"
# A few decoded at once must not fill the memory; cameras make half as many.
_MOST_PIXELS = 1 << 25


@dataclass(frozen=True, eq=False)
class Sample:
    """An encoded input.

    Attributes:
        inputs: what ``model.forward`` takes of it: tokens ``[S]``, or pixels ``[C, h, w]``.
        pads: what fills a batch of longer ones, by name; of pixels there is none.
        length: tokens that the model sees.
    """

    inputs: Mapping[str, Tensor]
    pads: Mapping[str, int]
    length: int


class InputReader(ABC):
    """Turns inputs into samples. Used by several threads at once."""

    @abstractmethod
    def read(
        self, inputs: Sequence[Mapping[str, str]], *, truncate: bool
    ) -> list[Sample | InputError]:
        """Encode inputs as the training split was encoded.

        Args:
            inputs: each ``text`` and perhaps ``text_pair``, or ``image``, encoded in base64.
            truncate: False refuses a text that training would have cut.

        Returns:
            For each a sample, or what is wrong with it; one does not disturb the others.
        """


@dataclass(frozen=True)
class TaskRecord:
    """What a head delta says about predictions.

    Attributes:
        kind: the task's type.
        columns: how many columns were read.
        labels: in the order of the logits; None for numbers.
        max_length: tokens of a text at most; None where the delta does not say: then what the model
            takes.
        pad_token_id: None where the delta does not say.
    """

    kind: type[Task]
    columns: int
    labels: tuple[str, ...] | None
    max_length: int | None
    pad_token_id: int | None

    @classmethod
    def of(cls, delta: HeadDelta, config: PreTrainedConfig) -> TaskRecord:
        """Read what a delta records.

        Args:
            delta: with a task head.
            config: of its backbone.

        Raises:
            TaskNotSupportedError: it does not say what task it is for, or of which columns; its
                task is none for such a backbone, or it has no task head.
            DeltaFileError: it records a pad token, padding side or length that cannot be.
        """
        kind = configure_for(copy.deepcopy(config), delta)
        if not delta.task_head:
            raise TaskNotSupportedError("the head delta has no task head: it predicts nothing")
        if not reads(config, input_kind=kind.input_kind):
            raise TaskNotSupportedError(
                f"the head delta's {kind.type} task needs a model that reads {kind.input_kind}s"
            )
        task, labels = dict(delta.metadata.task or {}), delta.metadata.labels
        names = task.get("text") if kind.input_kind == "text" else [task.get("image")]
        if not isinstance(names, list | tuple) or len(names) not in (1, 2):
            raise TaskNotSupportedError(
                f"the head delta does not record the columns that its {kind.type} task reads"
            )
        return cls(
            kind=kind,
            columns=len(names),
            labels=None if labels is None else tuple(map(str, labels)),
            max_length=task.get("max_length"),
            pad_token_id=task.get("pad_token_id"),
        )

    @property
    def encoding(self) -> tuple[str, int, int | None, int | None]:
        """Tell what an input reader depends on: equal ones share theirs."""
        if self.kind.input_kind == "image":
            return "image", 1, None, None
        return "text", self.columns, self.max_length, self.pad_token_id

    def load_reader(self, source: ModelSource, model: PreTrainedModel) -> InputReader:
        """Load the tokenizer or image processor of the backbone, set up as in training.

        Args:
            source: the backbone.
            model: the backbone; left as it is.

        Raises:
            ModelError: there is none, or it does not suit the model.
            InvalidArgumentError: a recorded length that leaves a text without a token, or is beyond
                what the model takes.
        """
        config = copy.deepcopy(model.config)
        if self.pad_token_id is not None:
            config.pad_token_id = self.pad_token_id
        names = ("first", "second")[: self.columns]
        task = self.kind(inputs=names, label="label", metric=self.kind.metrics[0])
        encoder = task.load_encoder(source, config, max_length=self._length_for(model))
        if isinstance(encoder, ImageEncoder):
            return _ImageReader(encoder)
        if isinstance(encoder, TextEncoder):
            return _TextReader(encoder, columns=self.columns)
        raise TypeError(f"no reader for {type(encoder).__name__}")

    def _length_for(self, model: PreTrainedModel) -> int:
        """Give the tokens of a text at most."""
        if self.kind.input_kind == "image":
            return 1  # nobody asks
        limit = max_positions(model)
        if self.max_length is None:
            return sys.maxsize if limit is None else limit
        if limit is not None and self.max_length > limit:
            # A GPU does not survive a token that has no position.
            raise InvalidArgumentError("max_length", value=self.max_length, limit=f"1 to {limit}")
        return self.max_length

    def read_answer(self, logits: Tensor) -> Answer:
        """Say what a sample's logits mean.

        Args:
            logits: ``[labels]``.

        Returns:
            ``{"label", "score", "scores"}``: the likeliest class, its softmax share, and that of
            every class by name; or ``{"value"}``.

        Raises:
            AnswerError: the logits are no numbers.
        """
        exact = logits.double()
        if not exact.isfinite().all():
            raise AnswerError("the model's answer to this input is not a number")
        if self.labels is None:
            return {"value": exact.item()}
        shares = exact.softmax(-1).tolist()
        best = int(exact.argmax())
        return {
            "label": self.labels[best],
            "score": shares[best],
            "scores": dict(zip(self.labels, shares, strict=True)),
        }


class _TextReader(InputReader):
    """Reads texts, or pairs of texts.

    Args:
        encoder: with a tokenizer of its own, whose settings nobody changes: that is what lets
            several threads use it at once.
        columns: 1, or 2 for pairs.
    """

    def __init__(self, encoder: TextEncoder, *, columns: int) -> None:
        self._encoder = encoder
        self._names = (_FIRST, _SECOND)[:columns]
        self._encoder.tokenize([["a"]] * columns)  # the first use settles the settings

    def read(
        self, inputs: Sequence[Mapping[str, str]], *, truncate: bool
    ) -> list[Sample | InputError]:
        """Tokenise."""
        read: list[Sample | InputError | None] = [self._check(given) for given in inputs]
        sound = [place for place, error in enumerate(read) if error is None]
        if sound:
            texts = [[inputs[place][name] for place in sound] for name in self._names]
            samples = self._encode(texts, truncate=truncate)
            for place, sample in zip(sound, samples, strict=True):
                read[place] = sample
        return [entry for entry in read if entry is not None]

    def _check(self, given: Mapping[str, str]) -> InputError | None:
        for name in self._names:
            if name not in given:
                what = "pairs of texts" if len(self._names) == 2 else "texts"
                if _IMAGE in given:
                    return InputError(f"the task reads {what}, and this is an image", param=_IMAGE)
                return InputError(f"the task reads {what}: {name} is missing", param=name)
            if not given[name].strip():
                return InputError(f"{name} is empty", param=name)
        for name in sorted(given.keys() - set(self._names)):
            what = "two texts" if len(self._names) == 2 else "one text"
            return InputError(f"the task reads {what} and no {name}", param=name)
        return None

    def _encode(
        self, texts: Sequence[Sequence[str]], *, truncate: bool
    ) -> list[Sample | InputError]:
        tokenized = self._encoder.tokenize(texts)
        return [
            self._sample(
                {name: rows[place] for name, rows in tokenized.tokens.items()},
                whole_length=whole,
                truncate=truncate,
            )
            for place, whole in enumerate(tokenized.lengths)
        ]

    def _sample(
        self, row: Mapping[str, list[int]], *, whole_length: int, truncate: bool
    ) -> Sample | InputError:
        length = len(row["input_ids"])
        if not length:
            return InputError("the tokenizer makes no token of this text", param=_FIRST)
        if whole_length > length and not truncate:
            having = "the text has" if len(self._names) == 1 else "both texts together have"
            return TextTooLongError(
                f"{having} {whole_length} tokens, the task reads {length} at most, and truncate is "
                "off",
                param=_FIRST,
            )
        inputs = {name: torch.tensor(values) for name, values in row.items()}
        inputs["attention_mask"] = torch.ones(length, dtype=torch.int64)
        return Sample(inputs, {**self._encoder.pads, "attention_mask": 0}, length)


class _ImageReader(InputReader):
    """Reads images.

    Args:
        encoder: with the backbone's image processor.
    """

    def __init__(self, encoder: ImageEncoder) -> None:
        self._encoder = encoder

    def read(
        self,
        inputs: Sequence[Mapping[str, str]],
        *,
        truncate: bool,  # noqa: ARG002 - an image is never cut
    ) -> list[Sample | InputError]:
        """Decode and scale, one after the other: each may take much memory while it is decoded."""
        return [self._read_one(given) for given in inputs]

    def _read_one(self, given: Mapping[str, str]) -> Sample | InputError:
        for name in sorted(given.keys() - {_IMAGE}):
            return InputError(f"the task reads an image and no {name}", param=name)
        if _IMAGE not in given:
            return InputError("the task reads images: image is missing", param=_IMAGE)
        try:
            encoded = base64.b64decode(given[_IMAGE], validate=True)
        except (binascii.Error, ValueError):
            return ImageInputError("the image is not base64", param=_IMAGE)
        image = _decode(encoded)
        if isinstance(image, InputError):
            return image
        pixels = self._encoder.scale([image])[0]
        return Sample({"pixel_values": pixels}, {}, self._encoder.sequence_length)


def _decode(encoded: bytes) -> Image.Image | ImageInputError:
    """Decode an image that may be anything."""
    try:
        width, height = image_size(encoded)
        if width * height <= _MOST_PIXELS:
            return decode_image(encoded)
    except Exception:  # noqa: BLE001 - Pillow's readers fail with errors of any kind
        return ImageInputError("the image cannot be read: it is broken", param=_IMAGE)
    reason = f"the image has {width}×{height} pixels, at most {_MOST_PIXELS:,} are read"
    return ImageInputError(reason, param=_IMAGE)


def collate(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Put samples into one batch, padded on the right to the longest of them.

    Args:
        samples: of one backbone.

    Returns:
        What the backbone's ``forward`` takes, ``[B, …]``.

    Raises:
        InvalidArgumentError: an input that some samples have and others have not.
    """
    names = list(samples[0].inputs)
    for sample in samples:
        if sample.inputs.keys() != samples[0].inputs.keys():
            limit = f"{names} of every sample"
            raise InvalidArgumentError("samples", value=list(sample.inputs), limit=limit)
    longest = max(sample.length for sample in samples)
    return {
        name: torch.stack([_padded(sample, name, length=longest) for sample in samples])
        for name in names
    }


def _padded(sample: Sample, name: str, *, length: int) -> Tensor:
    tensor = sample.inputs[name]
    if name not in sample.pads or len(tensor) == length:
        return tensor
    fill = tensor.new_full((length - len(tensor),), sample.pads[name])
    return torch.cat((tensor, fill))
