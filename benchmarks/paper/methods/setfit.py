"""SetFit: what a user of a sentence backbone would choose for few rows with classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.paper.methods.base import Metrics, Outcome, Run, encode
from benchmarks.paper.rivals.channel import Message
from benchmarks.paper.rivals.child import start
from hifi.training.forward import Scored

if TYPE_CHECKING:
    from benchmarks.paper.splits import Rows
    from hifi.tasks import Examples

ENVIRONMENT = "setfit"
_SECONDS = 6 * 3600.0  # of a training; pairs grow with the square of the rows


def run_setfit(run: Run) -> Outcome:
    """Train SetFit with its package's defaults, and measure it.

    The backbone is trained for an epoch on pairs of training rows, by the cosine of their
    embeddings: 1 of the same class, 0 of others, as many of either by oversampling; batches of 16
    pairs, AdamW, 2e-5 after a warm-up of 10 % of the steps, weight decay 0.01. Then a logistic
    regression of scikit-learn's defaults is fitted on the embeddings. Ours are the seed, and the
    most tokens of a row.

    The texts of a pair are one text, with the tokenizer's separator between them. Every weight of
    the backbone counts as trained and is stored. Validation chooses nothing. The memory that a line
    of the result file has is without SetFit's process, and so are its batches.

    Source: Tunstall et al., "Efficient Few-Shot Learning Without Prompts", 2022; ``setfit`` 1.2.

    Raises:
        ChildError: SetFit has failed.
        RivalEnvironmentError: its environment has not been made.
    """
    with start(ENVIRONMENT, module="setfit_child") as child:
        ready, settings = run.prepare(), run.settings
        asked = {
            "folder": str(run.source.path.absolute()),
            "texts": _texts(run, run.splits.train),
            "labels": ready.data.train.targets.tolist(),
            "seed": settings.seed,
            "max_length": settings.max_length,
        }
        trained = child.ask("train", Message(asked), seconds=_SECONDS).content

        def measured(rows: Rows, examples: Examples) -> Metrics:
            answer = child.ask("predict", Message({"texts": _texts(run, rows)}))
            task = ready.data.task
            return Scored(task, answer.tensors["logits"], examples).metrics(task)

        validation, test = ready.data.validation, run.splits.test
        assert validation is not None  # noqa: S101 - every run has one
        return Outcome(
            evaluations=[measured(run.splits.validation, validation)],
            best=0,
            test=None if test is None else measured(test, encode(ready, test, split="test")),
            seconds={"selection": 0.0, "training": trained["seconds"]},
            trained_weights=trained["trained_weights"],
            stored_bytes={"float32": trained["stored_bytes"]},
            fingerprint=ready.fingerprint,
        )


def _texts(run: Run, rows: Rows) -> list[list[str]]:
    return [[row[column] for column in run.task.text] for row in rows]
