"""The cost of selection beyond its forward passes."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.data import minilm, pad, read_rows, tokenize_pairs
from benchmarks.rows import Row, interleaved, print_rows
from hifi.selection.scoring import sample_indices, select_heads

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
