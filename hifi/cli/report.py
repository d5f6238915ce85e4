"""Print the report of a result: the scores of each class, and what it is taken for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hifi.cli import output
from hifi.errors import shorten

_MOST_COLUMNS = 10  # of predicted classes; of more, the table shows the scores only
_LABEL_CHARACTERS = 24
_OTHERS = "(others)"
_METRICS = ("precision", "recall", "f1")


def print_report(report: Mapping[str, Any]) -> None:
    """Print a report as a table, after an empty line.

    Args:
        report: plain JSON, as ``ClassReport.to_json`` or a job's ``result.report`` has it.
    """
    scores = report["per_class"]
    labels = (output.printable(each["label"]) for each in scores)  # they come from others' data
    names = [shorten(label, characters=_LABEL_CHARACTERS) for label in labels]
    output.print_line("")
    if report["confusion"] is None:
        _print_labels(report, names)
    else:
        _print_classes(report, names)


def _print_labels(report: Mapping[str, Any], names: Sequence[str]) -> None:
    """Print labels, or types of entities, of which a row can have several."""
    output.print_line(f"{report['split']} split, {report['classes']} labels")
    rows = [
        [name, *_numbers(scores), str(scores["support"])]
        for name, scores in zip(names, report["per_class"], strict=True)
    ]
    output.print_table(["label", *_METRICS, "support"], rows)


def _print_classes(report: Mapping[str, Any], names: list[str]) -> None:
    """Print classes that exclude each other, with the confusion matrix if it is small."""
    scores, confusion = report["per_class"], report["confusion"]
    if len(confusion) > len(names):
        names.append(_OTHERS)
    has_counts = len(names) <= _MOST_COLUMNS
    rows = []
    for place, (name, counts) in enumerate(zip(names, confusion, strict=True)):
        known = _numbers(scores[place]) if place < len(scores) else [""] * len(_METRICS)
        shown = map(str, counts) if has_counts else ()
        rows.append([name, *known, str(sum(counts)), *shown])
    what = "; the columns after rows: predicted as" if has_counts else ""
    total = sum(map(sum, confusion))
    output.print_line(f"{report['split']} split, {total:,} rows, {report['classes']} classes{what}")
    header = ["true class", *_METRICS, "rows", *(names if has_counts else ())]
    output.print_table(header, rows)


def _numbers(scores: Mapping[str, Any]) -> list[str]:
    return [f"{scores[metric]:.4f}" for metric in _METRICS]
