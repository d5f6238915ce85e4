"""The cost of selection beyond its forward passes: the paper's, and by gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.data import MODEL, minilm, pad, read_rows, tokenize_pairs
from benchmarks.rows import Row, interleaved, print_rows
from hifi.backbones.models import resolve_model
from hifi.data.settings import Hyperparameters, Scoring
from hifi.selection.scoring import sample_indices, select_heads
from hifi.tasks import TaskSpec
from hifi.training.finetuning import select_prepared
from hifi.training.forward import Forward
from hifi.training.head_start import start_head
from hifi.training.preparation import prepare

SAMPLES = 300
BATCH_SIZE = 32


def calibration_batches() -> list[dict[str, Tensor]]:
    """Draw the samples from MRPC and batch them by length, short ones first."""
    rows = read_rows("mrpc", "train")
    encoded = tokenize_pairs([rows[n] for n in sample_indices(len(rows), n=SAMPLES, seed=0)])
    places = sorted(range(SAMPLES), key=lambda place: len(encoded["input_ids"][place]))
    starts = range(0, SAMPLES, BATCH_SIZE)
    return [pad(encoded, places[start : start + BATCH_SIZE]) for start in starts]


def main() -> list[Row]:
    """Measure both."""
    return [*paper_rows(), *gradient_rows()]


def gradient_rows() -> list[Row]:
    """Measure the linear probe and the gradient score that starts from it, as a run does both."""
    rows = read_rows("mrpc", "train")
    settings = Hyperparameters(batch_size=BATCH_SIZE, precision="float32")
    ready = prepare(
        resolve_model(MODEL),
        spec=TaskSpec(text=("sentence1", "sentence2"), label="label"),
        train=[rows[n] for n in sample_indices(len(rows), n=SAMPLES, seed=0)],
        validation=None,
        settings=settings,
        device=torch.device("cpu"),
    )
    whole = Forward(ready.loaded.model, task=ready.data.task)
    scoring = Scoring(score="gradient", strategy="budget", budget=18, k=None, n_samples=SAMPLES)

    def forward() -> None:
        whole.over(ready.data.train, batch_size=BATCH_SIZE)

    def select() -> None:
        start_head(ready, settings=settings)
        select_prepared(ready, settings=settings, scoring=scoring)

    bare, selection = interleaved([forward, select])
    label = f"selection by gradient, from a probe, n={SAMPLES} MRPC samples, MiniLM, float32"
    return [Row(f"{label}: both / forward passes", selection / bare, "≤ 3.2")]


def paper_rows() -> list[Row]:
    """Measure ``select_heads`` against bare forward passes over the same batches."""
    batches = calibration_batches()
    model = minilm().eval()

    @torch.no_grad()
    def forward() -> None:
        for batch in batches:
            model.base_model(**batch)

    def select() -> None:
        select_heads(model, batches)

    bare, selection = interleaved([forward, select])
    label = f"selection, n={SAMPLES} MRPC samples, MiniLM, batch {BATCH_SIZE}, float32: "
    return [
        Row(f"{label}bare forward passes", bare, unit="s"),
        Row(f"{label}select_heads", selection, unit="s"),
        Row(f"{label}select_heads / bare forward passes", selection / bare, "≤ 1.2"),
    ]


if __name__ == "__main__":
    print_rows(main())
