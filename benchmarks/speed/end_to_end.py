"""``hifi.finetune`` against ``transformers.Trainer``, which a user would use instead."""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import Any

from datasets import Dataset
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from benchmarks.data import MODEL, minilm, minilm_tokenizer, read_rows, tokenize_pairs
from benchmarks.rows import Row, print_rows
from benchmarks.speed.methods import prepare
from hifi.training.finetuning import finetune

ROWS = 1024
REPETITIONS = 3
TARGETS = {"full": "≥ 2.0", "lora-qk": "≥ 1.5", "lora-qv": "≥ 1.5"}


def hifi_rates(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Return the samples per second of one epoch: of training, and with selection."""
    result = finetune(
        model=MODEL, train=rows, text=["sentence1", "sentence2"], label="label", epochs=1
    )
    total = result.train_seconds + result.selection_seconds
    return result.samples_per_second, len(rows) / total


def trainer_rate(method: str, dataset: Dataset, *, bf16: bool) -> float:
    """Return the samples per second of one epoch of ``transformers.Trainer``, grouped by length."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=32,
            num_train_epochs=1,
            learning_rate=3e-4,
            train_sampling_strategy="group_by_length",
            bf16=bf16,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = Trainer(
            prepare(method, minilm()).network,
            arguments,
            train_dataset=dataset,
            data_collator=DataCollatorWithPadding(minilm_tokenizer()),
        )
        begin = time.perf_counter()
        trainer.train()
        return len(dataset) / (time.perf_counter() - begin)


def main() -> list[Row]:
    """Measure in turns; each rival counts with its faster precision."""
    rows = read_rows("mrpc", "train")[:ROWS]
    labels = [row["label"] for row in rows]
    dataset = Dataset.from_dict({**tokenize_pairs(rows), "labels": labels})
    rivals = [(method, bf16) for method in TARGETS for bf16 in (False, True)]
    ours: list[tuple[float, float]] = []
    theirs: dict[tuple[str, bool], list[float]] = {rival: [] for rival in rivals}
    for _ in range(REPETITIONS):
        ours.append(hifi_rates(rows))
        for method, bf16 in rivals:
            theirs[method, bf16].append(trainer_rate(method, dataset, bf16=bf16))
    rate, rate_with_selection = (statistics.median(values) for values in zip(*ours, strict=True))
    label = f"{ROWS} rows of MRPC, one epoch: "
    result = [
        Row(f"{label}hifi.finetune, training", rate, unit="samples/s"),
        Row(f"{label}hifi.finetune, with selection", rate_with_selection, unit="samples/s"),
    ]
    medians = {rival: statistics.median(rates) for rival, rates in theirs.items()}
    for (method, bf16), median in medians.items():
        name = f"Trainer {method} {'bf16' if bf16 else 'float32'}"
        result.append(Row(f"{label}{name}", median, unit="samples/s"))
    for method, target in TARGETS.items():
        best = max(medians[method, bf16] for bf16 in (False, True))
        result.append(Row(f"{label}hifi.finetune / Trainer {method}", rate / best, target))
    return result


if __name__ == "__main__":
    print_rows(main())
