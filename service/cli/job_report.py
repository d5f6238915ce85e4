"""Describe jobs and estimates for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

from hifi.cli import output
from hifi.cli.progress import describe_pace
from hifi.cli.report import print_report
from hifi.data.classes.names import describe_classes
from hifi.data.spec import INPUT_FIELDS, LABEL_FIELDS, named_columns
from service.cli.progress import progression_of

if TYPE_CHECKING:
    from service.client.documents import Estimate, Job, Warned

    _Yardsticks = Mapping[str, Mapping[str, float | None] | None]


def describe_job(job: Job) -> dict[str, str]:
    """Describe a job for people."""
    return {
        "id": job["id"],
        "name": job["name"] or "",
        "status": job["status"],
        "model": job["spec"]["model"],
        "data": _data(job["spec"]["dataset"]),
        "task": _task(job["spec"].get("task") or {}),
        "progress": describe_progress(job),
        "attempt": str(job["attempt"]) if job["attempt"] > 1 else "",
        "heads": _selection(job),
        **_outcome(job),
        "warnings": describe_warnings(job["warnings"]),
        "created": output.format_moment(job["created_at"]),
        "finished": output.format_moment(job["finished_at"]),
    }


def print_job(job: Job, *, as_json: bool) -> int:
    """Print a job, and the scores of its classes; return the exit code."""
    code = output.report(job, describe_job, as_json=as_json)
    result = job["result"]
    report = None if result is None else result.get("report")
    if report is not None and not as_json:
        print_report(report)
    return code


def _data(dataset: str | Mapping[str, Any]) -> str:
    if isinstance(dataset, str):
        return dataset
    return " ".join(str(part) for part in dataset.values() if part is not None)


def _task(task: Mapping[str, Any]) -> str:
    """Describe a task: ``classification of text by label, metric f1``."""
    of, by = (
        list(chain.from_iterable(named_columns(task, fields).values()))
        for fields in (INPUT_FIELDS, LABEL_FIELDS)
    )
    parts = [str(task.get("type") or "")]
    parts += [f"of {' and '.join(of)}"] if of else []
    parts += [f"by {', '.join(by)}"] if by else []
    metric = f", metric {task['metric']}" if task.get("metric") else ""
    return " ".join(filter(None, parts)) + metric


def describe_progress(job: Job) -> str:
    """Describe the progress of an unfinished job; empty for others."""
    progress = job["progress"]
    if job["finished_at"] is not None:
        return ""
    if not progress["phase"]:
        done, total = progress["step"], progress["total_steps"]
        return f"stopped at {done or 0}/{total}" if total else ""
    parts = (
        progress["phase"],
        progression_of(progress).count,
        describe_pace(eta=progress["eta_seconds"]),
    )
    return " ".join(filter(None, parts))


def _selection(job: Job) -> str:
    selection = job["selection"]
    if selection is None:
        return ""
    return (
        f"{len(selection['heads'])} and the task head, "
        f"{selection['trainable_parameters']:,} parameters"
    )


def _outcome(job: Job) -> dict[str, str]:
    result, artifact, error = job["result"], job["artifact"], job["error"]
    entries = {}
    if result is not None:
        metrics = result["metrics"]
        shown = output.format_metrics(metrics) if metrics else "no validation split"
        entries["metrics"] = f"{shown}  (step {result['best_step']})"
        entries["test"] = output.format_metrics(result.get("test") or {})
        yardsticks = cast("_Yardsticks", result.get("yardsticks") or {})
        entries |= {name: output.format_metrics(known or {}) for name, known in yardsticks.items()}
        entries["trained"] = (
            f"in {output.format_seconds(result['train_seconds'])}, "
            f"{output.format_number(result['samples_per_second'], '.0f')} samples/s"
        )
    if artifact is not None:
        entries["artifact"] = f"{output.format_bytes(artifact['bytes'])}  sha256 "
        entries["artifact"] += artifact["sha256"]
    if error is not None:
        entries["error"] = f"{error['message']} ({error['code']})"
    return entries


def describe_warnings(warnings: Sequence[Warned]) -> str:
    """Describe warnings in one line; empty if there are none."""
    return "; ".join(f"{warning['message']} ({warning['code']})" for warning in warnings)


def describe_estimate(estimate: Estimate) -> dict[str, str]:
    """Describe an estimate for people."""
    artifact, seconds, steps = estimate["artifact"], estimate["seconds"], estimate["steps"]
    return {
        "task": _task(estimate["spec"].get("task") or {}),
        "classes": describe_classes(
            classes["count"], names=classes["names"], alike=classes["alike"]
        )
        if (classes := estimate.get("classes"))
        else "",
        "trains": _trained(estimate),
        "artifact": "unknown until the model is loaded"
        if artifact is None
        else "  ".join(
            f"{name} {output.format_bytes(size)}" for name, size in artifact["bytes"].items()
        ),
        "steps": "unknown until the data are loaded" if steps is None else f"{steps:,}",
        "time": "unknown until a job on this backbone has succeeded"
        if seconds is None
        else f"about {output.format_seconds(seconds)}",
        "warnings": describe_warnings(estimate["warnings"]),
    }


def _trained(estimate: Estimate) -> str:
    count, fraction = estimate["trainable_parameters"], estimate["fraction"]
    if count is None:
        return "unknown until the model is loaded"
    share = "" if fraction is None else f", {fraction:.2%} of the model"
    return f"{count:,} parameters with the task head{share}"
