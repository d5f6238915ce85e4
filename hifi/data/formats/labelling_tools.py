"""Rows as labelling tools export them, converted to texts with lists of spans.

- Prodigy: ``{"text": …, "spans": [{"start": …, "end": …, "label": …}], "answer": "accept"}``, with
  its own tokens and hashes. Rows that the annotator rejected or ignored are left out.
- doccano: ``{"text": …, "label": [[start, end, "name"]]}`` (``labels`` in its older versions), or
  ``{"text": …, "entities": [{"start_offset": …, "end_offset": …, "label": …}]}``.
- Label Studio: ``{"data": {"text": …}, "annotations": [{"result": [{"value": …}]}]}``, of which the
  first annotation counts that was not cancelled, and rows without one are left out; or
  ``{"text": …, "label": [{"start": …, "end": …, "labels": […]}]}``. It counts UTF-16 units.

An entry of a row that the conversion does not use stays a column, if it is no list or object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]
Convert: TypeAlias = Callable[[Row], "Row | None"]
_TEXT, _SPANS = "text", "spans"
_PRODIGY = frozenset({"_input_hash", "_task_hash"})
_LABELS = ("label", "labels")
_ACCEPTED = "accept"


def find_conversion(rows: Iterable[Row]) -> Convert | None:
    """Return the function that converts the rows of a tool, from the first row that shows it.

    Args:
        rows: of a file, from its beginning.

    Returns:
        A function that returns a row with ``text`` and ``spans``, or None for a row that is left
        out; None if the rows are no tool's.
    """
    return next(filter(None, map(_conversion_of, rows)), None)


def find_text(row: Mapping[str, Any]) -> str | None:
    """Return the text of a task of Label Studio; None if the row is none."""
    data = row.get("data")
    if not isinstance(data, dict):
        return None
    texts = [value for value in data.values() if isinstance(value, str)]
    text = data.get(_TEXT, texts[0] if len(texts) == 1 else None)
    return text if isinstance(text, str) else None


def _conversion_of(row: Row) -> Convert | None:
    is_prodigy = _PRODIGY & row.keys() or row.get("answer") in ("accept", "reject", "ignore")
    if is_prodigy and isinstance(row.get(_SPANS), list):
        return _from_prodigy
    annotations = _objects(row.get("annotations"))
    has_result = any(isinstance(each.get("result"), list) for each in annotations)
    if isinstance(row.get("data"), dict) and has_result:
        return _from_label_studio
    return _from_listed(row) if isinstance(row.get(_TEXT), str) else None


def _from_listed(row: Row) -> Convert | None:
    """Return the conversion of a row whose spans are in a list beside its text."""
    if any("start_offset" in each for each in _objects(row.get("entities"))):
        return _from_doccano_entities
    for name in _LABELS:
        entries = row.get(name)
        if not isinstance(entries, list) or not entries:
            continue
        if all(map(_is_triple, entries)):
            return _named(name, _from_triple)
        if all("labels" in each for each in _objects(entries)):
            return _named(name, None)
    return None


def _from_prodigy(row: Row) -> Row | None:
    if row.get("answer", _ACCEPTED) != _ACCEPTED:
        return None
    names = ("start", "end", "label")
    spans = [{name: each.get(name) for name in names} for each in _objects(row.get(_SPANS))]
    return _plain(row, spans=spans)


def _from_doccano_entities(row: Row) -> Row:
    names = {"start": "start_offset", "end": "end_offset", "label": "label"}
    entities = _objects(row.get("entities"))
    spans = [{name: each.get(own) for name, own in names.items()} for each in entities]
    return _plain(row, spans=spans)


def _from_triple(entry: Any) -> Mapping[str, Any]:  # noqa: ANN401 - of a file
    return dict(zip(("start", "end", "label"), entry, strict=True)) if _is_triple(entry) else {}


def _named(name: str, read: Callable[[Any], Mapping[str, Any]] | None) -> Convert:
    """Return the conversion of rows whose spans are in an entry of this name."""

    def convert(row: Row) -> Row:
        text, entries = row.get(_TEXT), row.get(name)
        entries = entries if isinstance(entries, list) else []
        if read is None:
            spans = [span for entry in entries for span in _values(entry, text)]
        else:
            spans = [read(entry) for entry in entries]
        return _plain({key: value for key, value in row.items() if key != name}, spans=spans)

    return convert


def _from_label_studio(row: Row) -> Row | None:
    data = row["data"] if isinstance(row.get("data"), dict) else {}
    kept = [each for each in _objects(row.get("annotations")) if not each.get("was_cancelled")]
    if not kept:
        return None
    results = [
        each for each in _objects(kept[0].get("result")) if each.get("type", "labels") == "labels"
    ]
    texts = {name: value for name, value in data.items() if isinstance(value, str)}
    only = list(texts)[:1] if len(texts) == 1 else []
    named = [*(str(each.get("to_name")) for each in results), _TEXT, *only]
    field = next((name for name in named if name in texts), _TEXT)
    spans = [span for each in results for span in _values(each.get("value"), texts.get(field))]
    others = {name: value for name, value in data.items() if name != field}
    return _plain({**others, _TEXT: texts.get(field)}, spans=spans)


def _values(value: Any, text: object) -> list[Mapping[str, Any]]:  # noqa: ANN401 - of a file
    """Return the spans of a value of Label Studio, one for each of its labels."""
    if not isinstance(value, dict):
        return [{}]
    start, end, own = (value.get(name) for name in ("start", "end", "text"))
    if isinstance(text, str) and type(start) is int and type(end) is int:
        start, end = (_characters(text, units) for units in (start, end))
    labels = value.get("labels")
    if not isinstance(labels, list) or not labels:
        labels = [None]
    return [{"start": start, "end": end, "label": label, "text": own} for label in labels]


def _characters(text: str, units: int) -> int:
    """Convert UTF-16 units to characters; numbers outside the text stay outside."""
    encoded = text.encode("utf-16-le", errors="surrogatepass")
    if not 0 <= 2 * units <= len(encoded):
        return units
    return len(encoded[: 2 * units].decode("utf-16-le", errors="replace"))


def _plain(row: Row, *, spans: Sequence[Mapping[str, Any]]) -> Row:
    others = {key: value for key, value in row.items() if not isinstance(value, list | dict)}
    return {**others, _SPANS: spans}


def _is_triple(entry: object) -> bool:
    return isinstance(entry, list) and [type(each) for each in entry] == [int, int, str]


def _objects(entries: object) -> list[dict[str, Any]]:
    """Return the entries of a list; one that is no object is an empty one."""
    given = entries if isinstance(entries, list) else []
    return [each if isinstance(each, dict) else {} for each in given]
