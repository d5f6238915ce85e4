"""SetFit, in its own environment; the harness sends texts and labels, and measures the logits."""

from __future__ import annotations

import tempfile
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import save
from setfit import SetFitModel, Trainer, TrainingArguments

from benchmarks.paper.rivals.channel import Message, serve

if TYPE_CHECKING:
    from collections.abc import Sequence


_LEAST = np.finfo(np.float32).tiny  # a probability of zero has no logarithm


class Classifier:
    """The model, once it is trained."""

    _model: SetFitModel

    def train(self, message: Message) -> Message:
        """Train, and answer with ``seconds``, ``trained_weights`` and ``stored_bytes``.

        The request has the backbone's ``folder``, the ``texts`` of each row, its ``labels`` from 0,
        the ``seed``, and the most tokens of a row, ``max_length``.
        """
        content = message.content
        self._model = SetFitModel.from_pretrained(content["folder"], device="cpu")
        self._model.model_body.max_seq_length = content["max_length"]
        rows = {"text": self._joined(content["texts"]), "label": content["labels"]}
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                seed=content["seed"],
                report_to="none",
                save_strategy="no",
                show_progress_bar=False,
            )
            trainer = Trainer(
                model=self._model, args=arguments, train_dataset=Dataset.from_dict(rows)
            )
            begin = time.perf_counter()
            trainer.train()
            seconds = time.perf_counter() - begin
        body, head = self._model.model_body, self._model.model_head
        solved = {
            "coef": torch.from_numpy(head.coef_),
            "intercept": torch.from_numpy(head.intercept_),
        }
        optimized = sum(parameter.numel() for parameter in body.parameters())
        return Message(
            {
                "seconds": seconds,
                "trained_weights": optimized + sum(value.numel() for value in solved.values()),
                "stored_bytes": len(save({**body.state_dict(), **solved})),
            }
        )

    def predict(self, message: Message) -> Message:
        """Answer with the ``logits``, float32 ``[rows, classes]``, of the ``texts`` of each row.

        They are the logarithms of the probabilities.
        """
        texts = self._joined(message.content["texts"])
        probabilities = self._model.predict_proba(texts, as_numpy=True)
        logits = np.log(probabilities.clip(_LEAST)).astype(np.float32)
        return Message(tensors={"logits": torch.from_numpy(logits)})

    def _joined(self, texts: Sequence[Sequence[str]]) -> list[str]:
        """Return one text for each row; a special token in a text is read as such."""
        separator = self._model.model_body.tokenizer.sep_token
        return [(f" {separator} " if separator else " ").join(row) for row in texts]


if __name__ == "__main__":
    classifier = Classifier()
    serve({"train": classifier.train, "predict": classifier.predict})
