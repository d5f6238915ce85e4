"""The metric on five GLUE tasks: HiFi against task head only, random heads, LoRA and full.

Hours of work on two cores, so every run is kept in ``results/quality.jsonl`` and not repeated;
``python -m benchmarks.quality --run`` does what is missing, without ``--run`` it prints the table.
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
from benchmarks.methods import Method, precision, prepare, random_heads
from hifi.batching import TrainingBatches, evaluation_batches
from hifi.finetuning import finetune
from hifi.hyperparameters import Hyperparameters
from hifi.models import resolve_model
from hifi.preparation import Prepared
from hifi.preparation import prepare as prepare_data
from hifi.tasks import TaskSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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
# One rate per method for all tasks: the best of those tried with seed 0 (see RESULTS.md).
LEARNING_RATES = {"head-only": 1e-3, "random": 1e-3, "hifi": 1e-3, "lora-qv": 1e-3, "full": 1e-4}


def run(task: str, method: str, seed: int, *, learning_rate: float) -> dict[str, float]:
    """Fine-tune once, 3 epochs at batch size 32; the metrics of the best epoch on validation."""
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
        resolve_model(MODEL),
        spec=spec,
        settings=settings,
        selection={},
        device=torch.device("cpu"),
        **splits,
    )
    return _train_rival(ready, method, settings)


def _train_rival(ready: Prepared, name: str, settings: Hyperparameters) -> dict[str, float]:
    """Train as hifi.finetune does, in bfloat16 autocast, with dropout as the checkpoint has it."""
    method = prepare(name, ready.loaded.model)
    optimizer = torch.optim.AdamW(method.parameters, lr=settings.learning_rate, fused=True)
    train, task = ready.data.train, ready.data.task
    batches = TrainingBatches(lengths=train.lengths, batch_size=32, seed=settings.seed)
    total = batches.per_epoch * settings.epochs
    best: dict[str, float] = {}
    torch.manual_seed(settings.seed)
    step = 0
    for epoch in range(settings.epochs):
        _training_mode(method, name, ready.loaded.model)
        for indices in batches.epoch(epoch):
            batch = train.batch(indices)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate_at(step, total_steps=total)
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


def _training_mode(method: Method, name: str, model: nn.Module) -> None:
    method.network.train()
    if name == "head-only":
        model.base_model.eval()  # its features are frozen, as in HiFi's own backbone


def _logits(method: Method, inputs: Mapping[str, Tensor]) -> Tensor:
    with precision("bfloat16"):
        logits: Tensor = method.network(**inputs).logits
    return logits.float()


def _evaluate(method: Method, ready: Prepared) -> dict[str, float]:
    validation, task = ready.data.validation, ready.data.task
    assert validation is not None  # noqa: S101 - every task here has one
    method.network.eval()
    logits = torch.empty(len(validation), task.num_labels)
    with torch.no_grad():
        for indices in evaluation_batches(validation.lengths, batch_size=32):
            logits[torch.from_numpy(indices)] = _logits(method, validation.batch(indices).inputs)
    return task.evaluate(logits, validation.targets)


def read_results() -> Iterator[dict[str, Any]]:
    """Read the runs that are kept."""
    if RESULTS.exists():
        yield from map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines())


def run_missing(methods: list[str], tasks: list[str], seeds: list[int]) -> None:
    """Do the runs that are not kept yet and keep them."""
    RESULTS.parent.mkdir(exist_ok=True)
    done = {(r["task"], r["method"], r["seed"], r["learning_rate"]) for r in read_results()}
    for seed in seeds:
        for method in methods:
            for task in tasks:
                rate = LEARNING_RATES[method]
                if (task, method, seed, rate) in done:
                    continue
                begin = time.perf_counter()
                metrics = run(task, method, seed, learning_rate=rate)
                row = {
                    "task": task,
                    "method": method,
                    "seed": seed,
                    "learning_rate": rate,
                    "metric": TASKS[task]["metric"],
                    "value": metrics[TASKS[task]["metric"]],
                    "seconds": round(time.perf_counter() - begin, 1),
                }
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, flush=True)


def print_table() -> None:
    """Print mean ± standard deviation ×100 over the seeds, per method and task."""
    values = defaultdict(list)
    for row in read_results():
        if LEARNING_RATES[row["method"]] == row["learning_rate"]:
            values[row["method"], row["task"]].append(100 * row["value"])
    print("| method | " + " | ".join(f"{t} ({TASKS[t]['metric']})" for t in TASKS) + " |")
    print("|---" * (len(TASKS) + 1) + "|")
    for method, rate in LEARNING_RATES.items():
        cells = [_cell(values[method, task]) for task in TASKS]
        print(f"| {method} (lr {rate:g}) | " + " | ".join(cells) + " |")


def _cell(values: list[float]) -> str:
    if not values:
        return "not run"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread} (n={len(values)})"


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="store_true", help="do the missing runs first")
    parser.add_argument("--methods", nargs="+", default=list(LEARNING_RATES))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    arguments = parser.parse_args()
    if arguments.run:
        run_missing(arguments.methods, arguments.tasks, arguments.seeds)
    print_table()


if __name__ == "__main__":
    main()
