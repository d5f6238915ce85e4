"""The metadata of a head delta, and its canonical JSON form."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from hifi import __version__
from hifi.canonical import canonical_json, parse_json_object
from hifi.errors import InvalidArgumentError

Encoding = Literal["float32", "bfloat16", "int8"]
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
COMPUTE_DTYPES: tuple[str, ...] = ("float32", "bfloat16", "float64", "float16")
FORMAT_VERSION = 1
CREATED_BY = f"hifi/{__version__}"
JsonObject = Mapping[str, Any]

_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")
_PATH_BEGINNING = re.compile(r"[/\\.~]|[A-Za-z]:[/\\]")
_HUB_ID_PARTS = 2  # owner/name


@dataclass(frozen=True, kw_only=True)
class DeltaMetadata:
    """The metadata of a head delta: the file's ``hifi`` entry, field by field.

    Mappings are copied on construction and must be plain JSON; tuples become lists. No field may
    contain a time, a host, an id or a path, so that equal work gives an equal file.

    Attributes:
        model: the backbone's name or hub id; of a path, only the last component is kept.
        revision: the hub commit; None if there is none.
        fingerprint: ``backbone_fingerprint`` of the backbone as stored.
        rows_fingerprint: ``rows_fingerprint`` of the rows that the delta replaces.
        architecture: the configuration's ``model_type``.
        compute_dtype: dtype of the frozen backbone while the rows were tuned. Differences are
            relative to W in this dtype. A tuner uses ``float32`` or ``bfloat16``; what a merge
            displaces has the dtype of the merged model.
        task: what a prediction needs (type, num_labels, problem_type, pad token, padding side,
            max_length, text columns, …); None if the user's own loop tuned the rows.
        labels: the classes in the order of the logits; None for regression and free use.
        selection: k, xi, d, strategy, teleport and the scores. If it has ``layers``, a list of
            objects with ``layer`` and ``selected``, a file's heads must be the selected ones.
        training: the hyperparameters.
        created_by: ``hifi/<version>``.
        encoding: how the weights are stored: ``float32`` for the tuned rows W' themselves,
            ``bfloat16`` and ``int8`` for the difference W'−W.
        format_version: of the file format.

    Raises:
        InvalidArgumentError: a field outside its range.
    """

    model: str
    revision: str | None
    fingerprint: str
    rows_fingerprint: str
    architecture: str
    compute_dtype: str
    task: JsonObject | None = None
    labels: Sequence[str | int] | None = None
    selection: JsonObject = field(default_factory=dict)
    training: JsonObject = field(default_factory=dict)
    created_by: str = CREATED_BY
    encoding: Encoding = "float32"
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Check every field and copy the mutable ones."""
        _check_format_version(self.format_version)
        for name in ("model", "architecture", "created_by"):
            _check(name, getattr(self, name), _is_text, "a text that is not empty")
        _check("revision", self.revision, lambda v: v is None or _is_text(v), "a text or None")
        for name in ("fingerprint", "rows_fingerprint"):
            limit = "'sha256:' and 64 lower-case hexadecimal digits"
            _check(name, getattr(self, name), _is_fingerprint, limit)
        _check("compute_dtype", self.compute_dtype, COMPUTE_DTYPES.__contains__, COMPUTE_DTYPES)
        _check("encoding", self.encoding, ENCODINGS.__contains__, ENCODINGS)
        _check("task", self.task, lambda v: v is None or _is_object(v), "a JSON object or None")
        _check("selection", self.selection, _is_object, "a JSON object")
        _check("training", self.training, _is_object, "a JSON object")
        _check("labels", self.labels, _is_labels, "a list of texts and integers, or None")
        object.__setattr__(self, "model", portable_model_name(self.model))
        for name in ("task", "labels", "selection", "training"):
            copy = json.loads(canonical_json(getattr(self, name)))
            object.__setattr__(self, name, copy)

    def to_json(self) -> bytes:
        """Return the fields as canonical JSON; equal metadata gives equal bytes."""
        return canonical_json({item.name: getattr(self, item.name) for item in fields(self)})

    @classmethod
    def from_json(cls, text: str) -> DeltaMetadata:
        """Parse the output of ``to_json``.

        Args:
            text: untrusted.

        Raises:
            InvalidArgumentError: not JSON, another format version, or a field that is missing,
                unknown or outside its range.
        """
        value = parse_json_object(text)
        _check_format_version(value.get("format_version"))
        wanted = {item.name for item in fields(cls)}
        if missing := sorted(wanted - value.keys()):
            raise InvalidArgumentError("metadata", value=missing, limit="these fields are missing")
        if unknown := sorted(value.keys() - wanted):
            raise InvalidArgumentError("metadata", value=unknown, limit="no such fields")
        if value["model"] != portable_model_name(str(value["model"])):
            raise InvalidArgumentError("model", value=value["model"], limit="a name, not a path")
        return cls(**value)


def portable_model_name(name: str) -> str:
    """Return a model name that is valid on other machines.

    Args:
        name: a name, a hub id ``owner/name``, or a path.

    Returns:
        A name or hub id unchanged; of a path, the last component. A relative path of two components
        looks like a hub id and is treated as one.
    """
    parts = [part for part in re.split(r"[/\\]", name) if part]
    is_path = _PATH_BEGINNING.match(name) or "\\" in name or len(parts) > _HUB_ID_PARTS
    return parts[-1] if parts and (is_path or name.endswith("/")) else name


def _check(name: str, value: object, is_valid: Callable[[Any], bool], limit: object) -> None:
    if not is_valid(value):
        raise InvalidArgumentError(name, value=value, limit=str(limit))


def _check_format_version(value: object) -> None:
    if type(value) is not int or value != FORMAT_VERSION:
        limit = f"this library reads and writes version {FORMAT_VERSION}"
        raise InvalidArgumentError("format_version", value=value, limit=limit)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_fingerprint(value: object) -> bool:
    return isinstance(value, str) and _FINGERPRINT.fullmatch(value) is not None


def _is_object(value: object) -> bool:
    return isinstance(value, Mapping)


def _is_labels(value: object) -> bool:
    if value is None:
        return True
    if isinstance(value, str) or not isinstance(value, Sequence):
        return False
    return all(type(label) in (str, int) for label in value)
