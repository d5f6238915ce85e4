"""Print the report of a classification: the scores of each class, and what it is taken for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hifi.cli import output
from hifi.errors import shorten

_MOST_COLUMNS = 10  # of predicted classes; of more, the table shows the scores only
_LABEL_CHARACTERS = 24
_OTHERS = "(others)"


def print_report(report: Mapping[str, Any]) -> None:
    """Print a report as a table, after an empty line.

    Args:
        report: plain JSON, as ``ClassReport.to_json`` or a job's ``result.report`` has it.
    """
    scores, confusion = report["per_class"], report["confusion"]
    labels = (output.printable(each["label"]) for each in scores)  # they come from others' data
    names = [shorten(label, characters=_LABEL_CHARACTERS) for label in labels]
    if len(confusion) > len(names):
        names.append(_OTHERS)
    has_counts = len(names) <= _MOST_COLUMNS
    header = ["true class", "precision", "recall", "f1", "rows"]
    rows = []
    for place, (name, counts) in enumerate(zip(names, confusion, strict=True)):
        known = scores[place] if place < len(scores) else None
        numbers = [
            "" if known is None else f"{known[metric]:.4f}"
            for metric in ("precision", "recall", "f1")
        ]
        shown = map(str, counts) if has_counts else ()
        rows.append([name, *numbers, str(sum(counts)), *shown])
    output.print_line("")
    what = "; the columns after rows: predicted as" if has_counts else ""
    total = sum(map(sum, confusion))
    output.print_line(f"{report['split']} split, {total:,} rows, {report['classes']} classes{what}")
    output.print_table([*header, *(names if has_counts else ())], rows)
