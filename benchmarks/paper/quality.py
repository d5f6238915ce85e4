"""The metric on five GLUE tasks: HiFi against task head only, random heads, LoRA and full.

The runs take hours on two cores, so each is stored in ``results/quality.jsonl`` and not repeated.
``python -m benchmarks.paper.quality --run search`` runs each method's learning rates on every task
with seed 0; ``--run table`` runs all seeds with the best rates; without ``--run`` it only prints.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks.data import MODEL, data_folder, minilm
from benchmarks.paper.methods import Method, precision, prepare, random_heads
from hifi.backbones.models import resolve_model
from hifi.data.settings import Hyperparameters
from hifi.tasks import TaskSpec
from hifi.training.batching import TrainingBatches, evaluation_batches, gather
from hifi.training.finetuning import finetune
from hifi.training.learning_rate import learning_rate_at
from hifi.training.preparation import Prepared
from hifi.training.preparation import prepare as prepare_data

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

RESULTS = Path(__file__).parent / "results" / "quality.jsonl"
SEEDS = (0, 1, 2)
PAIR = ("sentence1", "sentence2")
TASKS: dict[str, dict[str, Any]] = {
    "mrpc": {"type": "classification", "text": PAIR, "label": "label", "metric": "f1"},
    "rte": {"type": "classification", "text": PAIR, "label": "label", "metric": "accuracy"},
    "stsb": {"type": "regression", "text": PAIR, "label": "label", "metric": "spearman"},
    "sst2": {"type": "classification", "text": "sentence", "label": "label", "metric": "accuracy"},
    "cola": {"type": "classification", "text": "sentence", "label": "label", "metric": "matthews"},
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


def run(task: str, method: str, seed: int, *, learning_rate: float) -> dict[str, float]:
    """Fine-tune once, 3 epochs at batch size 32; return the best epoch's validation metrics."""
    folder = data_folder() / "glue" / task
    splits = {name: folder / f"{name}.jsonl" for name in ("train", "validation")}
    spec = TaskSpec.of(TASKS[task])
    if method in ("hifi", "random"):
        result = finetune(
            model=MODEL,
            task=spec,
            seed=seed,
            learning_rate=learning_rate,
            selection=random_heads(minilm(), k=3, seed=seed) if method == "random" else None,
            **splits,
        )
        return dict(result.metrics)
    # Rivals train in autocast, so their weights are float32.
    settings = Hyperparameters(learning_rate=learning_rate, seed=seed, precision="float32")
    ready = prepare_data(
        resolve_model(MODEL), spec=spec, settings=settings, device=torch.device("cpu"), **splits
    )
    return _train_rival(ready, method, settings)


def _train_rival(ready: Prepared, name: str, settings: Hyperparameters) -> dict[str, float]:
    """Train as hifi.finetune does, but in bfloat16 autocast and with the checkpoint's dropout."""
    torch.manual_seed(settings.seed)  # LoRA draws its A here
    method = prepare(name, ready.loaded.model)
    optimizer = torch.optim.AdamW(method.parameters, lr=settings.learning_rate, fused=True)
    train, task = ready.data.train, ready.data.task
    batches = TrainingBatches(lengths=train.lengths, batch_size=32, seed=settings.seed)
    total = batches.per_epoch * settings.epochs
    best: dict[str, float] = {}
    torch.manual_seed(settings.seed)
    step = 0
    for epoch in range(settings.epochs):
        method.network.train()
        if name == "head-only":
            # Its features are frozen, as in HiFi's own backbone.
            ready.loaded.model.base_model.eval()
        for indices in batches.epoch(epoch):
            batch = train.batch(indices)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, total_steps=total, settings=settings)
            loss = task.loss(_logits(method, batch.inputs), batch.targets)
            loss.backward()
            nn.utils.clip_grad_norm_(method.parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
        metrics = _evaluate(method, ready)
        if not best or metrics[task.metric] > best[task.metric]:
            best = metrics
    return best


def _logits(method: Method, inputs: Mapping[str, Tensor]) -> Tensor:
    with precision("bfloat16"):
        logits: Tensor = method.network(**inputs).logits
    return logits.float()


def _evaluate(method: Method, ready: Prepared) -> dict[str, float]:
    validation, task = ready.data.validation, ready.data.task
    assert validation is not None  # noqa: S101 - every task here has a validation split
    method.network.eval()
    batches = evaluation_batches(validation.lengths, batch_size=32)
    with torch.no_grad():
        parts = [_logits(method, validation.batch(each).inputs).cpu() for each in batches]
    return task.evaluate(gather(parts, batches), validation.targets)


def read_results() -> Iterator[dict[str, Any]]:
    """Read the stored runs."""
    if RESULTS.exists():
        yield from map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines())


def best_rates() -> dict[tuple[str, str], float]:
    """Return the best learning rate with seed 0 of each method and task."""
    values: dict[tuple[str, str], dict[float, float]] = defaultdict(dict)
    for row in read_results():
        if row["seed"] == 0 and row["method"] in LEARNING_RATES:
            values[row["method"], row["task"]][row["learning_rate"]] = row["value"]
    best = {key: max(found, key=lambda rate: found[rate]) for key, found in values.items()}
    return best | {("random", task): rate for (name, task), rate in best.items() if name == "hifi"}


def run_missing(plan: Iterable[tuple[str, str, int, float]]) -> None:
    """Do the runs (task, method, seed, learning rate) that are not stored yet, and store them."""
    RESULTS.parent.mkdir(exist_ok=True)
    for task, method, seed, rate in plan:
        wanted = {"task": task, "method": method, "seed": seed, "learning_rate": rate}
        if any(wanted.items() <= row.items() for row in read_results()):
            continue
        begin = time.perf_counter()
        metric = TASKS[task]["metric"]
        value = run(task, method, seed, learning_rate=rate)[metric]
        seconds = round(time.perf_counter() - begin, 1)
        row = {**wanted, "metric": metric, "value": value, "seconds": seconds}
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)


def print_table() -> None:
    """Print mean ± standard deviation ×100 over the seeds, per method and task."""
    rates = best_rates()
    values = defaultdict(list)
    for row in read_results():
        key = row["method"], row["task"]
        if rates.get(key) == row["learning_rate"]:
            values[key].append(100 * row["value"])
    print("| method | " + " | ".join(f"{t} ({TASKS[t]['metric']})" for t in TASKS) + " |")
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


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", choices=("search", "table"), help="do these missing runs first")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    arguments = parser.parse_args()
    if arguments.run == "search":
        run_missing(
            (task, method, 0, rate)
            for method in arguments.methods
            for task in arguments.tasks
            for rate in LEARNING_RATES.get(method, ())
        )
    elif arguments.run == "table":
        rates = best_rates()
        run_missing(
            (task, method, seed, rates[method, task])
            for seed in arguments.seeds
            for method in arguments.methods
            for task in arguments.tasks
        )
    print_search()
    print()
    print_table()


if __name__ == "__main__":
    main()
