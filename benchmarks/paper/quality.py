"""The metric on five GLUE tasks: HiFi against task head only, random heads, LoRA and full.

Prints the tables of ``results/quality.jsonl``, runs of an earlier harness: 3 epochs, batch size 32,
rivals in bfloat16 autocast, rates chosen on validation with seed 0. ``python -m benchmarks.paper``
does new runs, with other settings.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "quality.jsonl"
# Each with its metric.
TASKS = {
    "mrpc": "f1",
    "rte": "accuracy",
    "stsb": "spearman",
    "sst2": "accuracy",
    "cola": "matthews",
}
# Random heads use HiFi's best rate. If the highest of three rates was the best on average, a higher
# one was tried too.
LEARNING_RATES = {
    "head-only": (1e-3, 5e-3, 2e-2, 5e-2),
    "hifi": (3e-4, 5e-4, 1e-3),
    "lora-qv": (5e-4, 1e-3, 2e-3, 4e-3),
    "full": (3e-5, 1e-4, 3e-4),
}
METHODS = ("head-only", "random", "hifi", "lora-qv", "full")


def read_results() -> Iterator[dict[str, Any]]:
    """Read the stored runs."""
    with RESULTS.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def best_rates() -> dict[tuple[str, str], float]:
    """Return the best learning rate with seed 0 of each method and task."""
    values: dict[tuple[str, str], dict[float, float]] = defaultdict(dict)
    for row in read_results():
        if row["seed"] == 0 and row["method"] in LEARNING_RATES:
            values[row["method"], row["task"]][row["learning_rate"]] = row["value"]
    best = {key: max(found, key=lambda rate: found[rate]) for key, found in values.items()}
    return best | {("random", task): rate for (name, task), rate in best.items() if name == "hifi"}


def print_table() -> None:
    """Print mean ± standard deviation ×100 over the seeds, per method and task."""
    rates = best_rates()
    values = defaultdict(list)
    for row in read_results():
        key = row["method"], row["task"]
        if rates.get(key) == row["learning_rate"]:
            values[key].append(100 * row["value"])
    print("| method | " + " | ".join(f"{t} ({TASKS[t]})" for t in TASKS) + " |")
    print("|---" * (len(TASKS) + 1) + "|")
    for method in METHODS:
        cells = [_cell(values[method, task], rates.get((method, task))) for task in TASKS]
        print(f"| {method} | " + " | ".join(cells) + " |")


def print_search() -> None:
    """Print the result of every learning rate with seed 0."""
    values = {
        (r["method"], r["learning_rate"], r["task"]): 100 * r["value"]
        for r in read_results()
        if r["seed"] == 0
    }
    print("| method | learning rate | " + " | ".join(TASKS) + " |")
    print("|---" * (len(TASKS) + 2) + "|")
    for method, rates in LEARNING_RATES.items():
        for rate in rates:
            found = [values.get((method, rate, task)) for task in TASKS]
            cells = ["not run" if value is None else f"{value:.1f}" for value in found]
            print(f"| {method} | {rate:g} | " + " | ".join(cells) + " |")


def _cell(values: list[float], rate: float | None) -> str:
    if not values:
        return "not run"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread} (n={len(values)}, lr {rate:g})"


if __name__ == "__main__":
    print_search()
    print()
    print_table()
