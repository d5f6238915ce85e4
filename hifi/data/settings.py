"""The settings of a run: name, type, range, default and description of each, declared once.

``finetune`` and ``select_heads`` take their defaults from here and check their arguments here. The
job spec, the OpenAPI document and the options of the commands are built from these declarations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, fields, replace
from functools import cache
from operator import ge, gt, le, lt
from types import MappingProxyType, NoneType
from typing import Annotated, Any, Literal, cast, get_args, get_type_hints

from annotated_types import BaseMetadata, GroupedMetadata, Interval

from hifi.arguments import check_count, check_integer, check_number
from hifi.data.allotments import (
    DEFAULT_K,
    Allotment,
    Budget,
    LayerWise,
    Strategy,
    make_allotment,
)
from hifi.data.classes.weights import ClassWeights, check_class_weights, parse_class_weights
from hifi.data.training_defaults import (
    AUTO,
    LEAST_EPOCHS,
    LEAST_STEPS,
    RATE_TIMES_WIDTH,
    LearningRate,
    check_learning_rate,
    choose_epochs,
    choose_learning_rate,
    count_steps_per_epoch,
    parse_learning_rate,
)
from hifi.errors import InvalidArgumentError

Score = Literal["pagerank", "information", "gradient", "gradient-ratio", "output-norm", "random"]
Teleport = Literal["information", "uniform"]
Precision = Literal["auto", "float32", "bfloat16"]
HeadStart = Literal["auto", "keep", "probe", "random"]

DEFAULT_XI = 0.9
CHECKPOINT_SECONDS = 60.0  # between two checkpoints of a run
_DEFAULT_SAMPLES = 300

# The scores of the loss's gradient: they need labels, and are computed in float32.
GRADIENT_SCORES: tuple[Score, ...] = ("gradient", "gradient-ratio")

# Settings that records leave out where they have these values, as records of before them do.
IMPLIED: Mapping[str, Any] = MappingProxyType({"score": "pagerank", "budget": None})


@dataclass(frozen=True, kw_only=True)
class Form:
    """A kind of value that is neither a number nor one of a few texts.

    Attributes:
        metavar: what stands for it in a command's help.
        parse: reads the text of an option; it raises nothing.
        check: checks a value and returns it as plain Python; raises InvalidArgumentError.
    """

    metavar: str
    parse: Callable[[str], object]
    check: Callable[[object], Any]


@dataclass(frozen=True)
class Setting(GroupedMetadata):
    """One setting: its declaration, and the fields that :func:`declared` adds from the dataclass.

    Unpacked as ``annotated_types`` metadata, as pydantic does, it yields the range that a server
    accepts, including ``most``.

    Attributes:
        words: its description, one line.
        ge: the minimum.
        gt: the exclusive minimum.
        le: the maximum.
        lt: the exclusive maximum.
        most: the maximum on a server; the library has no such limit.
        of: what it counts, if a model or a data set has only so many.
        names: its names in documents and options; the first is used in output.
        unset: the meaning of None, if allowed.
        is_recorded: whether head deltas and checkpoints record it; not if no result depends on it.
        form: of a value that is neither a number nor a choice; it replaces ``type``.
        name: of the field, and of the argument of ``finetune``.
        type: ``int``, ``float``, or ``str`` for a choice.
        choices: the allowed texts; empty for a number.
        default: of the field.
    """

    words: str
    _: KW_ONLY
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    most: float | None = None
    of: str | None = None
    names: tuple[str, ...] = ()
    unset: str | None = None
    is_recorded: bool = True
    form: Form | None = None
    name: str = ""
    type: type = str
    choices: tuple[str, ...] = ()
    default: float | str | None = None

    def __iter__(self) -> Iterator[BaseMetadata]:
        """Yield the range that a server accepts."""
        most = self.most if self.le is None else self.le
        yield from Interval(ge=self.ge, gt=self.gt, le=most, lt=self.lt)

    @property
    def help(self) -> str:
        """The description, with the default."""
        return f"{self.words} (default: {self.unset or self.default})"

    def check(self, value: object, *, most: int | None = None) -> Any:  # noqa: ANN401 - its type
        """Check a value and return it as plain Python.

        Args:
            value: numbers may have any numeric type, including numpy's.
            most: the maximum of a count, if known.

        Raises:
            InvalidArgumentError: the type is wrong, or the value is outside the range.
        """
        if value is None and self.unset is not None:
            return None
        if self.form is not None:
            return self.form.check(value)
        if self.choices:
            if value not in self.choices:
                limit = f"one of {', '.join(self.choices)}"
                raise InvalidArgumentError(self.name, value=value, limit=limit)
            return value
        if self.of is not None:
            return check_count(self.name, value, most=most, of=self.of)
        if self.type is int:
            return check_integer(self.name, value, least=int(self.ge or 0))
        limit = f"a number {self._range}"
        return check_number(self.name, value, is_allowed=self._includes, limit=limit)

    def _includes(self, number: float) -> bool:
        bounds = ((self.ge, ge), (self.gt, gt), (self.le, le), (self.lt, lt))
        return all(bound is None or holds(number, bound) for bound, holds in bounds)

    @property
    def _range(self) -> str:
        if self.lt is not None:
            return f"in ({self.gt}, {self.lt})" if self.ge is None else f"in [{self.ge}, {self.lt})"
        if self.le is not None:
            return f"from {self.ge} to {self.le}"
        return f"above {self.gt}" if self.ge is None else f"of at least {self.ge}"


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings that are checked with their declarations.

    Raises:
        InvalidArgumentError: a value is outside its range.
    """

    def __post_init__(self) -> None:
        for name, setting in declared(type(self)).items():
            object.__setattr__(self, name, setting.check(getattr(self, name)))


def declared(kind: type[RunSettings]) -> Mapping[str, Setting]:
    """Return the settings that a class declares, by name and in its order.

    Each field is ``Annotated[type, Setting(…)]`` with a default; ``type`` is ``int``, ``float`` or
    a Literal of texts, or one of them ``| None``, or anything that the setting's ``form`` checks.
    """
    return _read_declarations(cast("type", kind))  # mypy misses that a dataclass hashes


@cache  # evaluating the annotations takes over a millisecond
def _read_declarations(kind: type) -> Mapping[str, Setting]:
    found = {}
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        hint, setting = get_args(hints[field.name])
        plain = next(iter(get_args(hint)), hint) if NoneType in get_args(hint) else hint
        choices = get_args(plain) if setting.form is None else ()
        found[field.name] = replace(
            setting,
            name=field.name,
            names=setting.names or (field.name,),
            type=plain if setting.form is None and not choices else str,
            choices=choices,
            default=field.default,
        )
    return MappingProxyType(found)


@dataclass(frozen=True, kw_only=True)
class Scoring(RunSettings):
    """How heads are scored and selected."""

    score: Annotated[
        Score,
        Setting("the number that ranks heads: pagerank is the paper's; the gradients need labels"),
    ] = "pagerank"
    k: Annotated[
        int | None,
        Setting(
            "heads to select per layer (key-value groups if keys are grouped)",
            ge=1,
            most=1024,
            of=LayerWise.counts,
            unset=f"{DEFAULT_K}, unless there is a budget",
        ),
    ] = None
    budget: Annotated[
        int | None,
        Setting(
            "heads to select in the whole model, instead of k; with strategy budget",
            ge=1,
            most=1_000_000,
            of=Budget.counts,
            unset="none",
        ),
    ] = None
    xi: Annotated[
        float | None,
        Setting(
            "ξ of Eq. (2), the share of singular values that counts as a head's information",
            gt=0,
            lt=1,
            names=("xi", "ξ"),
            unset=f"{DEFAULT_XI}",
        ),
    ] = None
    damping: Annotated[
        float, Setting("d of Eq. (10), PageRank's damping", ge=0, lt=1, names=("d", "damping"))
    ] = 0.85
    strategy: Annotated[
        Strategy,
        Setting(
            "select k heads in every layer, or in those of the upper half only, or as many heads "
            "as the budget says wherever they are"
        ),
    ] = "layer-wise"
    teleport: Annotated[
        Teleport, Setting("where PageRank restarts: by information, or as Eq. (10) is printed")
    ] = "information"
    n_samples: Annotated[
        int | None,
        Setting(
            "calibration samples of the training split",
            ge=1,
            most=1_000_000,
            of="rows of train",
            unset=f"{_DEFAULT_SAMPLES}, or all rows if there are fewer",
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.allotment  # raises if k, budget and strategy do not go together

    @property
    def allotment(self) -> Allotment:
        """How many heads each layer gets.

        Raises:
            InvalidArgumentError: ``k``, ``budget`` and ``strategy`` do not go together.
        """
        return make_allotment(self.strategy, k=self.k, budget=self.budget)

    def check_dtype(self, dtype: str) -> None:
        """Raise if the score cannot be computed on a backbone in a dtype.

        Args:
            dtype: its name, such as ``bfloat16``.

        Raises:
            InvalidArgumentError: a gradient in fewer than 32 bits, where small ones vanish.
        """
        if self.score in GRADIENT_SCORES and dtype not in ("float32", "float64"):
            limit = f'float32 weights, and these are {dtype}; load them with dtype="float32"'
            raise InvalidArgumentError("score", value=self.score, limit=f"a gradient needs {limit}")

    @property
    def share(self) -> float:
        """ξ, whether it was given or not."""
        return DEFAULT_XI if self.xi is None else self.xi

    def count_samples(self, *, rows: int) -> int:
        """Return n, the number of calibration samples.

        Args:
            rows: of the training split.

        Raises:
            InvalidArgumentError: more samples than rows.
        """
        n: int | None = declared(Scoring)["n_samples"].check(self.n_samples, most=rows)
        return min(_DEFAULT_SAMPLES, rows) if n is None else n

    def describe(self, *, rows: int) -> dict[str, Any]:
        """Return the settings as plain JSON, each default as the value that it stands for.

        Args:
            rows: of the training split.

        Raises:
            InvalidArgumentError: more samples than rows.
        """
        given = {name: getattr(self, name) for name in declared(Scoring)}
        meant = {
            "k": self.allotment.k,
            "xi": self.share,
            "n_samples": self.count_samples(rows=rows),
        }
        return describe_scoring(Scoring(**{**given, **meant}))  # of a subclass, this part alone


def describe_scoring(settings: object) -> dict[str, Any]:
    """Return the settings of scoring for a record, by their first names.

    Args:
        settings: has them as attributes.

    Returns:
        Plain JSON, without the settings that :data:`IMPLIED` stands for; a score of None is left
        out too.
    """
    entries = {each.names[0]: getattr(settings, name) for name, each in declared(Scoring).items()}
    return {
        name: value
        for name, value in entries.items()
        if name not in IMPLIED or value not in (None, IMPLIED[name])
    }


@dataclass(frozen=True, kw_only=True)
class Hyperparameters(RunSettings):
    """The hyperparameters of training; the recorded ones are stored in the head delta."""

    epochs: Annotated[
        int | None,
        Setting(
            "passes over the training split",
            ge=1,
            most=1000,
            unset=f"{LEAST_EPOCHS}, or enough for {LEAST_STEPS} steps",
        ),
    ] = None
    learning_rate: Annotated[
        LearningRate,
        Setting(
            "the peak; it rises linearly from 0 and falls linearly to 0; auto is "
            f"{RATE_TIMES_WIDTH} over the backbone's hidden size",
            form=Form(metavar="X", parse=parse_learning_rate, check=check_learning_rate),
        ),
    ] = AUTO
    batch_size: Annotated[int, Setting("samples per step", ge=1, most=4096)] = 32
    max_length: Annotated[
        int, Setting("the most tokens of a text, or of a pair", ge=1, most=131_072)
    ] = 128
    warmup_ratio: Annotated[
        float, Setting("share of the steps in which the learning rate rises", ge=0, le=1)
    ] = 0.06
    weight_decay: Annotated[
        float,
        Setting(
            "weight decay of AdamW on matrices; biases and norms are not decayed", ge=0, most=10
        ),
    ] = 0.01
    seed: Annotated[
        int,
        Setting(
            "random seed of task head, linear probe, calibration samples, score random, the order "
            "of the data and dropout",
            ge=0,
            most=2**63 - 1,
        ),
    ] = 0
    precision: Annotated[
        Precision,
        Setting(
            "dtype of the frozen backbone; auto is bfloat16 if the device supports it natively"
        ),
    ] = "auto"
    early_stopping_patience: Annotated[
        int | None,
        Setting("stop after this many evaluations without gain", ge=1, most=1000, unset="never"),
    ] = None
    head_start: Annotated[
        HeadStart,
        Setting(
            "where the task head starts: keep the model's own, which must fit the labels; from a "
            "linear probe of the frozen model; at random; auto keeps one that fits, else probes"
        ),
    ] = "auto"
    class_weights: Annotated[
        ClassWeights | None,
        Setting(
            "weights of the classes in the training loss: balanced, in inverse proportion to their "
            'rows, or as JSON {"label": 2.5} (1 for labels that are left out)',
            unset="none",
            form=Form(metavar="WEIGHTS", parse=parse_class_weights, check=check_class_weights),
        ),
    ] = None
    max_seconds: Annotated[
        float | None,
        Setting(
            "stop with an error after this many seconds of running",
            gt=0,
            unset="none; for a job, the server's limit",
            is_recorded=False,
        ),
    ] = None

    def count_epochs(self, *, rows: int) -> int:
        """Return the number of epochs, whether it was given or not.

        Args:
            rows: of the training split.
        """
        if self.epochs is not None:
            return self.epochs
        return choose_epochs(rows=rows, batch_size=self.batch_size)

    def count_steps(self, *, rows: int) -> int:
        """Return the number of steps.

        Args:
            rows: of the training split.
        """
        steps = count_steps_per_epoch(rows=rows, batch_size=self.batch_size)
        return self.count_epochs(rows=rows) * steps

    def peak_rate(self, *, hidden_size: int) -> float:
        """Return the learning rate, whether it was given or not.

        Args:
            hidden_size: D, the backbone's hidden size.
        """
        if self.learning_rate != AUTO:
            return float(self.learning_rate)
        return choose_learning_rate(hidden_size=hidden_size)

    def describe(self, *, rows: int, hidden_size: int) -> dict[str, Any]:
        """Return the recorded hyperparameters as plain JSON, those left open as what they became.

        Args:
            rows: of the training split.
            hidden_size: D, the backbone's hidden size.
        """
        settings = declared(Hyperparameters).items()
        given = {name: getattr(self, name) for name, each in settings if each.is_recorded}
        return {**given, **self.choose(rows=rows, hidden_size=hidden_size)}

    def choose(self, *, rows: int | None, hidden_size: int | None) -> dict[str, float]:
        """Return the settings that may be left open, as what they become, as far as that is known.

        Args:
            rows: of the training split, if known.
            hidden_size: D, the backbone's hidden size, if known.
        """
        epochs = {} if rows is None else {"epochs": self.count_epochs(rows=rows)}
        rate = (
            {}
            if hidden_size is None
            else {"learning_rate": self.peak_rate(hidden_size=hidden_size)}
        )
        return {**epochs, **rate}


# Hyperparameters that also affect the scores of the heads.
SCORED_WITH = ("precision", "seed", "max_length", "batch_size", "head_start")
