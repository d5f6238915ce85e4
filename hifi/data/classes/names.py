"""Names of classes for people: which of them look alike, and how they are listed."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from hifi.errors import shorten

_NAMED_CLASSES, _CHARACTERS = 6, 30  # of a list, and of each name in it
_NAMED_GROUPS = 2
_INVISIBLE = ("Cf", "Cc")  # general categories: zero-width and control characters
_VARIATIONS = range(0xFE00, 0xFE10)  # selectors of a glyph's form


def find_alike(names: Sequence[str]) -> list[list[str]]:
    """Return the groups of different names that a reader would take for the same.

    They differ in case, white space, invisible characters, the Unicode form of equal characters
    (é in one code point or two, full-width digits), or the notation of a number (``1E3``, ``1000``,
    ``01000``).

    Args:
        names: all different.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_fold(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _fold(name: str) -> str:
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    shown = (" " if sign.isspace() else sign for sign in text if not _is_invisible(sign))
    word = " ".join("".join(shown).split())
    try:
        return word if "_" in word else repr(float(word))
    except ValueError:
        return word


def _is_invisible(sign: str) -> bool:
    if sign.isspace():
        return False
    return unicodedata.category(sign) in _INVISIBLE or ord(sign) in _VARIATIONS


def shown_names(names: Sequence[str]) -> list[str]:
    """Return the first few names, shortened."""
    return [shorten(name, characters=_CHARACTERS) for name in names[:_NAMED_CLASSES]]


def describe_classes(
    count: int, *, names: Sequence[str], alike: Sequence[Sequence[str]] = ()
) -> str:
    """List classes in words, at most the first six, and those that look alike.

    Args:
        count: of the classes.
        names: of the first of them, or of none.
        alike: groups of names that look alike.
    """
    shown = shown_names(names)
    text = f"{count} classes"
    if shown:
        text += f": {', '.join(shown)}{', …' if count > len(shown) else ''}"
    return f"{text}; {describe_alike(alike)}" if alike else text


def describe_alike(alike: Sequence[Sequence[str]]) -> str:
    """Describe groups of classes that look alike; characters outside ASCII are escaped."""
    groups = [
        " and ".join(
            shorten(ascii(name), characters=_CHARACTERS) for name in group[:_NAMED_CLASSES]
        )
        for group in alike[:_NAMED_GROUPS]
    ]
    more = ", …" if len(alike) > _NAMED_GROUPS else ""
    return f"different classes that look alike: {', '.join(groups)}{more}"
