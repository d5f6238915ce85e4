"""Print the tables of result files.

    python -m benchmarks.paper.tables results.jsonl
    python -m benchmarks.paper.tables results.jsonl --pair hifi lora-qv/probe --format csv
    python -m benchmarks.paper.tables results.jsonl --table ablation --most-rows 3668

Tables: comparison has all that is wanted, methods × tasks; ablation the rankings of heads against
random ones (Tab. 3); curves the defaults at four sizes and few-shot at 16 rows of each class, both
against rivals at their best rates; stored quality against bytes. The last three say which targets
are met. overview has the averages of curves.

Numbers are the metric ×100, the mean over seeds ± their standard deviation (n−1), with the number
of seeds. In Markdown the best mean of a task is bold and the second best underlined, among the rows
of as many shots; an average stands only in rows that have every task. A method is named
``method/head start/rates`` as far as the rows differ.

Differences are paired by task and seed. The 95 % interval is Student's t over the pairs; that of
"all" takes pairs of different tasks for independent.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.paper.results import read_lines
from benchmarks.paper.splits import FULL
from benchmarks.paper.tables import ablation, comparison, curves, few_shot, overview, stored
from benchmarks.paper.tables.table import Line, Lines, Record, Table
from hifi.errors import DataError, HifiError, InvalidArgumentError

COMPARISON = "comparison"


@dataclass(frozen=True)
class Layout:
    """A table in both formats."""

    markdown: Callable[[Lines], Iterator[str]]
    records: Callable[[Lines], Iterator[Record]]


LAYOUTS: Mapping[str, Layout] = {
    COMPARISON: Layout(
        lambda lines: comparison.markdown(Table(lines)),
        lambda lines: comparison.records(Table(lines)),
    ),
    "ablation": Layout(ablation.markdown, ablation.records),
    "overview": Layout(overview.markdown, overview.records),
    "curves": Layout(curves.markdown, curves.records),
    "few-shot": Layout(few_shot.markdown, few_shot.records),
    "stored": Layout(stored.markdown, stored.records),
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.paper.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--table", choices=LAYOUTS, default=COMPARISON)
    parser.add_argument("--format", choices=("markdown", "csv"), default="markdown")
    parser.add_argument("--pair", nargs=2, metavar=("FIRST", "SECOND"), help="show differences")
    for name in ("shots", "methods", "tasks", "head-starts", "rates", "backbones"):
        parser.add_argument(f"--{name}", nargs="+", help=f"only these {name.replace('-', ' ')}")
    parser.add_argument("--most-rows", help="only full runs with this cap; all for no cap")
    return parser.parse_args(arguments)


def _is_wanted(line: Line, options: argparse.Namespace) -> bool:
    named = {
        "shots": options.shots,
        "method": options.methods,
        "task": options.tasks,
        "head_start": options.head_starts,
        "rates": options.rates,
        "backbone": options.backbones,
    }
    cap = "all" if line["most_rows"] is None else str(line["most_rows"])
    is_capped = options.most_rows is None or line["shots"] != FULL or cap == options.most_rows
    return is_capped and all(
        wanted is None or line[name] in wanted for name, wanted in named.items()
    )


def write_csv(records: Iterable[Record]) -> None:
    """Write records to the standard output; the first names the columns."""
    rows = list(records)
    writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def wanted_lines(options: argparse.Namespace) -> Lines:
    """Return the runs that a command line asks for.

    Raises:
        DataError: there are none, or a line is not a result.
    """
    lines = [line for path in options.files for line in read_lines(path)]
    wanted = [line for line in lines if line["kind"] == "run" and _is_wanted(line, options)]
    if not wanted:
        raise DataError(f"no runs in {', '.join(map(str, options.files))} are wanted")
    return wanted


def markdown(lines: Lines, options: argparse.Namespace) -> Iterator[str]:
    """Format the table that a command line asks for.

    Raises:
        InvalidArgumentError: differences of a table that has none.
    """
    _check_pair(options)
    yield from LAYOUTS[options.table].markdown(lines)
    if options.pair:
        yield ""
        yield from comparison.markdown_differences(Table(lines), *options.pair)


def _records(lines: Lines, options: argparse.Namespace) -> Iterator[Record]:
    _check_pair(options)
    if options.pair:
        return comparison.difference_records(Table(lines), *options.pair)
    return LAYOUTS[options.table].records(lines)


def _check_pair(options: argparse.Namespace) -> None:
    if options.pair and options.table != COMPARISON:
        limit = f"only with the table {COMPARISON}, not with {options.table}"
        raise InvalidArgumentError("pair", value=options.pair, limit=limit)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = parse(arguments)
    try:
        lines = wanted_lines(options)
        if options.format == "csv":
            write_csv(_records(lines, options))
        else:
            print("\n".join(markdown(lines, options)))
    except HifiError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0
