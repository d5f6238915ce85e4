"""Compare what a page shows with what is printed; only what depends on the machine may differ."""

from __future__ import annotations

import re
from typing import Any

_ANY = "…"
# Words and numbers that depend on the machine, each with what stands for it in a comparison.
_VARYING = (
    (re.compile(r"\b(ds|job|key|evt)_([a-z0-9]{24}|…)"), r"\1_#"),
    (re.compile(r"\bhifi_(\w{20,}|…)"), "hifi_#"),
    (re.compile(r"\b[0-9a-f]{8,64}\b…?"), "#"),  # a hash
    (re.compile(r"\b(float32|bfloat16)( on cpu|$)"), r"#\2"),  # the dtype of --precision auto
    (re.compile(r"\[(\s*\d+\.\d)\]"), r" \1 "),  # in a heat map: a selected head
    (
        re.compile(
            r"(?<=^linear probe )\d+(?=/)|(?<=^scoring heads )\d+(?=/)|(?<=^training )\d+(?=/)"
            r"|(?<=step )\d+(?=\))"
        ),
        "#",
    ),
    (re.compile(r"\d+(?= samples/s)|\b\d+:\d\d\b"), "#"),
    (re.compile(r"(?<=\.\d{4})(\s+\d+){3,}$"), " #"),  # in a report: rows, and predicted classes
    (re.compile(r"(?<![\w./-])-?\d+\.\d+(?![\w.])"), "#"),
)
_PROGRESS = re.compile(
    r"^((linear probe|scoring heads|training) #/\d+|validation batch \d+ of \d+)\b"
)
# Fields whose integers depend on the machine; all other integers are the same everywhere.
_VARYING_INTEGERS = frozenset({"best_step", "bytes", "confusion", "head", "iterations", "selected"})


def check_output(shown: str, printed: str) -> None:
    """Assert that a command printed the lines that a page shows for it.

    Equal lines are one line, since the number of progress lines depends on the speed. A line ``…``
    stands for the rest.
    """
    expected, found = _forms(shown), _forms(printed)
    if _ANY in expected:
        expected = expected[: expected.index(_ANY)]
        found = found[: len(expected)]
    found = [line for line in found if line in expected or not _PROGRESS.match(line)]
    assert found == expected, f"\nshown\n{shown}\nprinted\n{printed}"


def check_answer(shown: Any, answered: Any, *, name: str = "$", field: str = "") -> None:
    """Assert that an answer has the fields and values that a page shows for it.

    Fractions may differ, and the integers of some fields. In a text, ``…`` stands for any text; as
    the last item of a list for further items; as a field for further fields.

    Args:
        shown: the page's document.
        answered: the real one.
        name: of this part of the document, for messages.
        field: the innermost field that contains it.
    """
    what = f"{name}: {answered!r} instead of {shown!r}"
    if isinstance(shown, dict):
        assert isinstance(answered, dict), what
        names = shown.keys() - {_ANY}
        missing, more = names - answered.keys(), answered.keys() - names
        assert not missing, f"{name} has no {sorted(missing)}"
        assert _ANY in shown or not more, f"{name} has more than shown: {sorted(more)}"
        for key in names:
            check_answer(shown[key], answered[key], name=f"{name}.{key}", field=key)
    elif isinstance(shown, list):
        assert isinstance(answered, list), what
        items = shown[:-1] if shown and shown[-1] == _ANY else shown
        is_whole = len(items) == len(answered)
        assert is_whole or (len(items) < len(shown) and len(items) < len(answered)), what
        for place, (item, real) in enumerate(zip(items, answered, strict=False)):
            check_answer(item, real, name=f"{name}[{place}]", field=field)
    elif isinstance(shown, str) and _ANY in shown:
        pattern = ".+".join(re.escape(part) for part in shown.split(_ANY))
        assert isinstance(answered, str), what
        assert re.fullmatch(pattern, answered), what
    elif isinstance(shown, float) or (isinstance(shown, int) and field in _VARYING_INTEGERS):
        assert isinstance(answered, int | float), what
    else:
        assert answered == shown, what


def _forms(text: str) -> list[str]:
    """Return the different lines of an output without what depends on the machine."""
    forms = []
    for line in text.splitlines():
        form = line
        for pattern, sign in _VARYING:
            form = pattern.sub(sign, form)
        forms.append(" ".join(form.split()))
    return [form for form in dict.fromkeys(forms) if form]
