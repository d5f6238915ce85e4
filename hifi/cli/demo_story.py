"""What both demos tell: commands as a user would type them, and the proof at the end."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hifi.errors import HifiError

MODEL = "all-MiniLM-L6-v2"
DELTA = "libraries.safetensors"
KINDS = "kinds"  # the folder of the second task's data
# In float32 on the processor that checks it, the merged model must repeat the metric to the last
# digit.
TASK = (
    *("--text", "text", "--label", "library", "--metric", "accuracy"),
    *("--precision", "float32", "--learning-rate", "1e-3"),
)
# The easier one of the two; no metric is repeated here, so it may tune in bfloat16.
SECOND_TASK = (
    *("--text", "text", "--label", "kind", "--metric", "accuracy"),
    *("--epochs", "2", "--learning-rate", "2e-3"),
)


class DemoError(HifiError):
    """A command of the demo failed, or what it promised is not so."""


def say(text: str) -> None:
    """Tell something."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def show_command(*arguments: str, into: Path | None = None) -> None:
    """Show a command as it would be typed.

    Args:
        arguments: what follows ``hifi``.
        into: the file that takes its output; by default the terminal does.
    """
    say(f"\n$ hifi {shlex.join(arguments)}" + (f" > {into}" if into else ""))


def prove(folder: Path, *, model: str, metrics: Mapping[str, float]) -> None:
    """Check the two promises: the merged model is the tuned one, and merging can be undone.

    Args:
        folder: with the validation split, the head delta and the merged model.
        model: the backbone's name or folder.
        metrics: of the tuned model, as its own evaluation found them.

    Raises:
        DemoError: one of them is broken.
    """
    from hifi.cli.proof import measure_accuracy, undo_is_exact
    from hifi.deltas.delta import HeadDelta
    from hifi.deltas.loading import quiet_transformers

    tuned = metrics["accuracy"]
    delta = HeadDelta.load(folder / DELTA)
    with quiet_transformers():
        merged = measure_accuracy(folder / "merged", folder / "validation.jsonl", delta=delta)
        is_restored = undo_is_exact(delta, model=model)
    if merged != tuned:
        raise DemoError(f"the merged model's accuracy is {merged}, the tuned model's was {tuned}")
    say(f"\nThe merged model, loaded by plain transformers: accuracy {merged:.4f}, the very same.")
    if not is_restored:
        raise DemoError("undoing the merge did not restore the backbone")
    say("Merged into the backbone in memory and undone: every weight is what it was, bit for bit.")


def prove_answers(folder: Path, *, texts: Sequence[str], answers: Sequence[str | None]) -> None:
    """Check that a mixed batch has answered as the merged model does.

    Args:
        folder: with the merged model.
        texts: what was asked.
        answers: the labels that were answered.

    Raises:
        DemoError: they differ.
    """
    from hifi.cli.proof import predict_labels
    from hifi.deltas.loading import quiet_transformers

    with quiet_transformers():
        expected = predict_labels(folder / "merged", texts)
    if list(answers) != expected:
        raise DemoError(f"the mixed batch answered {list(answers)}, the merged model {expected}")
    say("\nThe merged model gives the first task's answers, label by label.")
