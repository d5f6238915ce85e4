"""The cells of the tables: everything that determines one run, and the order in which they run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from benchmarks.paper.methods import METHODS
from benchmarks.paper.splits import FULL, PER_CLASS, check_shots
from benchmarks.paper.tasks import TASKS
from hifi.canonical import canonical_json
from hifi.errors import InvalidArgumentError

Kind = Literal["run", "trial"]
Line = Mapping[str, Any]
SEARCH, USUAL, AUTO, GIVEN, NONE = "search", "usual", "auto", "given", "none"
OWN = "own"
TRIAL_SEED = 0  # rates are searched once, for the runs of all seeds


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run, by its settings; a result file has at most one line for each.

    Attributes:
        kind: ``run``, or a ``trial`` of one learning rate on a split of the training rows.
        backbone: its name, never a path.
        task: name of a task.
        shots: as in ``benchmarks.paper.splits``.
        method: name of a method.
        head_start: where the task head starts: ``random``, ``probe``, …
        rates: how the learning rate is chosen: ``search``, ``usual``, ``auto`` (by the library),
            ``given``, or ``none``, if the method has none.
        rate: the learning rate; None if it follows from the trials or the library.
        seed: of everything that is drawn, but see ``most_rows`` and ``TRIAL_SEED``.
        most_rows: cap of the full training split, drawn by the seed 0; None for no cap.
        epochs: the least number of epochs; None if the library chooses.
        least_steps: as many more epochs as it takes to make so many steps.
        max_length: the most tokens of a text, or of a pair.
    """

    kind: Kind = "run"
    backbone: str
    task: str
    shots: str
    method: str
    head_start: str
    rates: str
    rate: float | None
    seed: int
    most_rows: int | None
    epochs: int | None
    least_steps: int | None
    max_length: int

    @classmethod
    def of(cls, line: Line) -> Cell:
        """Return the cell of a line of a result file."""
        return cls(**{field.name: line[field.name] for field in fields(cls)})

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain JSON."""
        return asdict(self)

    @property
    def key(self) -> bytes:
        """The settings in a canonical form."""
        return canonical_json(self.describe())

    @property
    def trials(self) -> tuple[Cell, ...]:
        """The trials that choose the learning rate; none if it is known."""
        if self.kind != "run" or self.rates != SEARCH:
            return ()
        rates = METHODS[self.method].trial_rates
        return tuple(replace(self, kind="trial", seed=TRIAL_SEED, rate=rate) for rate in rates)


@dataclass(frozen=True, kw_only=True)
class Request:
    """The cells that a command asks for.

    Attributes:
        backbone: its name.
        tasks, methods, seeds, shots, head_starts: every combination is a cell.
        rates: ``search``, ``usual``, ``auto``, or a number.
        most_rows, epochs, least_steps, max_length: as in :class:`Cell`.
    """

    backbone: str
    tasks: Sequence[str]
    methods: Sequence[str]
    seeds: Sequence[int]
    shots: Sequence[str]
    head_starts: Sequence[str]
    rates: str
    most_rows: int | None
    epochs: int
    least_steps: int
    max_length: int

    def cells(self) -> list[Cell]:
        """Return the runs, those of one task together, without duplicates.

        Raises:
            InvalidArgumentError: an unknown name, or settings that do not go together.
        """
        _check_names("tasks", self.tasks, known=TASKS)
        _check_names("methods", self.methods, known=METHODS)
        found = {
            cell: None
            for shots in map(check_shots, self.shots)
            for task in self.tasks
            for method in self.methods
            for head_start in self.head_starts
            for seed in self.seeds
            for cell in [self._cell(task, method, shots, head_start, seed)]
        }
        return list(found)

    def _cell(self, task: str, method: str, shots: str, head_start: str, seed: int) -> Cell:
        if shots == str(PER_CLASS) and not TASKS[task].has_classes:
            limit = f"not with {task}, which has no classes to draw {PER_CLASS} rows of each"
            raise InvalidArgumentError("shots", value=shots, limit=limit)
        if shots != FULL and not TASKS[task].is_of_table_2:
            limit = f"{FULL} with {task}, whose answers are fitted on the split that is reported"
            raise InvalidArgumentError("shots", value=shots, limit=limit)
        chosen = METHODS[method]
        if chosen.classifies_few and (shots == FULL or not TASKS[task].has_classes):
            limit = f"not with {task} and shots={shots}: it classifies, and from few rows"
            raise InvalidArgumentError("methods", value=method, limit=limit)
        start = chosen.head_starts[0] if head_start == OWN else head_start
        if start not in chosen.head_starts:
            limit = f"{method} starts from {' or '.join(chosen.head_starts)}"
            raise InvalidArgumentError("head_starts", value=head_start, limit=limit)
        rates, rate = self._rate(method)
        is_chosen = rates in (AUTO, NONE)
        return Cell(
            backbone=self.backbone,
            task=task,
            shots=shots,
            method=method,
            head_start=start,
            rates=rates,
            rate=rate,
            seed=seed,
            most_rows=self.most_rows if shots == FULL else None,
            epochs=None if is_chosen else self.epochs,
            least_steps=None if is_chosen else self.least_steps,
            max_length=self.max_length,
        )

    def _rate(self, method: str) -> tuple[str, float | None]:
        chosen = METHODS[method]
        if chosen.usual_rate is None:
            return NONE, None
        if self.rates == SEARCH:
            return SEARCH, None
        if self.rates == USUAL:
            return USUAL, chosen.usual_rate
        if self.rates == AUTO:
            if not chosen.has_defaults:
                limit = f"{method} has no defaults of its own: {SEARCH}, {USUAL} or a number"
                raise InvalidArgumentError("rates", value=AUTO, limit=limit)
            return AUTO, None
        return GIVEN, _number(self.rates)


def trial_value(line: Line) -> tuple[float, float, float]:
    """Return what orders trials: the metric, then the loss, then the smaller rate; best highest."""
    if line["value"] is None:
        return -math.inf, -math.inf, -line["rate"]
    return line["value"], -line["validation"]["loss"], -line["rate"]


def best_rate(lines: Iterable[Line]) -> float:
    """Return the learning rate of the best of finished trials."""
    rate: float = max(lines, key=trial_value)["rate"]
    return rate


def ready_cells(
    wanted: Iterable[Cell], finished: Mapping[Cell, Line]
) -> Iterator[tuple[Cell, float | None]]:
    """Iterate over the unfinished cells that can run now, each with its learning rate.

    A run whose rate is searched can run once all its trials are finished.
    """
    for cell in wanted:
        if cell in finished:
            continue
        open_trials = [trial for trial in cell.trials if trial not in finished]
        yield from ((trial, trial.rate) for trial in open_trials)
        if not open_trials:
            trials = [finished[trial] for trial in cell.trials]
            yield cell, best_rate(trials) if trials else cell.rate


def _check_names(param: str, names: Iterable[str], *, known: Mapping[str, Any]) -> None:
    for name in names:
        if name not in known:
            raise InvalidArgumentError(param, value=name, limit=f"one of {', '.join(known)}")


def _number(text: str) -> float:
    limit = f"{SEARCH}, {USUAL}, {AUTO} or a number above 0 and at most 1"
    try:
        rate = float(text)
    except ValueError as error:
        raise InvalidArgumentError("rates", value=text, limit=limit) from error
    if not 0 < rate <= 1:
        raise InvalidArgumentError("rates", value=text, limit=limit)
    return rate
