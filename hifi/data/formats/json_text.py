"""Parse JSON strictly: one line, or a file value by value with a bounded part of it in memory.

Python's own parser reads every value, so that a row has the same values and errors in JSON Lines as
in a list. ijson, which streams, has others: half of a surrogate pair becomes a question mark, and
integers beyond 64 bits are refused. It limits neither size nor depth, and its errors have no row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar

from hifi.data.formats.limits import too_large_row
from hifi.errors import DataError

_Item = TypeVar("_Item")

_CHUNK_CHARACTERS = 1 << 17
_TOKEN_CHARACTERS = 16  # more than the parser looks ahead: -Infinity, \ud83d\ude00, 1e+
_NOT_BLANK = re.compile(r"[^ \t\r\n]")
_NOT_ENCODABLE = re.compile("[\ud800-\udfff]")
_UNTERMINATED = "Unterminated string starting"  # the parser's words
_NUL = "NUL bytes; save the file as UTF-8"
_TOO_DEEP = "lists or objects are nested too deeply"
_WORDS = {
    bool: "a boolean",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An object of a file.

    Attributes:
        values: its values by name.
        size: its bytes.
        line: on which it begins.
    """

    values: dict[str, Any]
    size: int
    line: int


def word_for(value: object) -> str:
    """Return the kind of a JSON value in words."""
    return _WORDS.get(type(value), "null")


def parse_line(line: bytes, *, number: int) -> Entry:
    """Parse a line of JSON Lines.

    Args:
        line: its bytes.
        number: of the line, from 1.

    Raises:
        DataError: the line is no object; the error has its number.
    """
    try:
        values = _DECODER.decode(line.decode())
    except UnicodeDecodeError as error:
        place = f"{error.reason} at byte {error.start + 1} of the line"
        raise _not_utf8(place, line=number) from error
    except RecursionError as error:
        raise DataError(_TOO_DEEP, line=number) from error
    except ValueError as error:
        hint = f"{error}"
        if b"\0" in line:
            hint = _NUL
        elif isinstance(error, json.JSONDecodeError):  # its own line is always the first
            hint = f"{error.msg} at character {error.pos + 1} of the line"
        raise DataError(f"not JSON: {hint}", line=number) from error
    _check_object(values, what="every line", line=number)
    return Entry(values=values, size=len(line), line=number)


class JsonText:
    """The text of a JSON file, whose lists and objects are entered, and whose values are read.

    Every method raises a :class:`DataError` for a text that is not JSON, and for a value that is
    too large or nested too deeply; the error has the line on which the value begins.

    Args:
        file: its bytes that are not UTF-8 are read as halves of surrogate pairs.
        most: the bytes of a value that is read, at most.

    Attributes:
        most: as passed.
        size: the bytes of the last value that was read.
    """

    def __init__(self, file: TextIO, *, most: int) -> None:
        self._file = file
        self.most = most
        self._text = ""  # the part in memory
        self._at = 0  # the next character of this part
        self._offset = 0  # of this part in the file, in characters
        self._first = (1, 0)  # the line on which this part begins, and its place in it from 0
        self._counted = (0, 1)  # a character of this part, and its line
        self.size = 0

    @property
    def line(self) -> int:
        """The line of the next character."""
        at, line = self._counted
        self._counted = (self._at, line + self._text.count("\n", at, self._at))
        return self._counted[1]

    def peek(self) -> str:
        """Skip blanks and return the next character; an empty text at the end of the file."""
        while True:
            found = _NOT_BLANK.search(self._text, self._at)
            self._at = found.start() if found else len(self._text)
            if found or not self._read_on():
                return found.group() if found else ""

    def value(self) -> Any:  # noqa: ANN401 - of a file
        """Read the next value."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                self._read_rest(error)
            except RecursionError as error:
                raise DataError(_TOO_DEEP, line=self.line) from error
            except ValueError as error:
                raise DataError(f"not JSON: {error}", line=self.line) from error
            else:
                may_go_on = isinstance(value, int | float) and self._is_near_end(end)
                if not may_go_on or not self._read_on():
                    self.size = self._measure(end)
                    self._at = end
                    return value

    def entry(self, *, what: str) -> Entry:
        """Read the next value, an object.

        Args:
            what: the value in messages.
        """
        self.peek()
        line = self.line
        values = self.value()
        _check_object(values, what=what, line=line)
        return Entry(values=values, size=self.size, line=line)

    def elements(self, *, what: str) -> Iterator[None]:
        """Enter a list and stop before each of its values; one that is not read is skipped.

        Args:
            what: the list in messages.
        """
        for _ in self._parts("[", "]", what=what, kind="a list"):
            yield from self._offer(None)

    def members(self, *, what: str) -> Iterator[str]:
        """Enter an object and yield each name; a value that is not read is skipped.

        Args:
            what: the object in messages.
        """
        for _ in self._parts("{", "}", what=what, kind="a JSON object"):
            if self.peek() != '"':
                self._refuse("Expecting property name enclosed in double quotes", at=self._at)
            name = self.value()
            self._take(":")
            yield from self._offer(name)

    def end(self) -> None:
        """Check that nothing follows."""
        if self.peek():
            self._refuse("Extra data", at=self._at)

    def _parts(self, start: str, end: str, *, what: str, kind: str) -> Iterator[None]:
        if self.peek() != start:
            line = self.line
            raise DataError(f"{what} must be {kind}, not {word_for(self.value())}", line=line)
        self._take(start)
        if self.peek() != end:
            yield
            while self.peek() != end:
                self._take(",")
                yield
        self._at += 1

    def _offer(self, item: _Item) -> Iterator[_Item]:
        self.peek()
        place = self._offset + self._at
        yield item
        if self._offset + self._at == place:
            self.value()

    def _take(self, sign: str) -> None:
        if self.peek() != sign:
            self._refuse(f"Expecting {sign!r} delimiter", at=self._at)
        self._at += 1

    def _read_on(self) -> bool:
        """Read the next part of the file behind what is left of this one; False at its end.

        What is left is doubled, so that a long value is not parsed often.
        """
        left = self._text[self._at :]
        chunk = self._file.read(max(_CHUNK_CHARACTERS, len(left)))
        if not chunk:
            return False
        self._first = self._place(self._at)
        self._counted = (0, self._first[0])
        self._offset += self._at
        self._text, self._at = left + chunk, 0
        return True

    def _read_rest(self, error: json.JSONDecodeError) -> None:
        """Read the next part of the file if a value may only be invalid because it is cut."""
        is_open = error.msg.startswith(_UNTERMINATED)
        if not is_open and not self._is_near_end(error.pos):
            self._refuse(error.msg, at=error.pos)
        if len(self._text) - self._at > self.most:
            raise DataError(too_large_row(self.most), line=self.line)
        if not self._read_on():
            self._refuse(error.msg, at=len(self._text) if is_open else error.pos)

    def _is_near_end(self, at: int) -> bool:
        """Return whether the part in memory may end within the token at a character."""
        return at > len(self._text) - _TOKEN_CHARACTERS

    def _measure(self, end: int) -> int:
        """Check the text of a value and return its bytes."""
        try:
            size = len(self._text[self._at : end].encode())
        except UnicodeEncodeError:
            self._refuse("", at=end)
        if size > self.most:
            raise DataError(too_large_row(self.most), line=self.line)
        return size

    def _refuse(self, reason: str, *, at: int) -> NoReturn:
        """Raise for a character of the text; NUL and bytes that are not UTF-8 are other reasons."""
        read = self._text[self._at : at + 1]
        bad = _NOT_ENCODABLE.search(read)
        if bad is not None:
            raise _not_utf8(self._words_for(self._at + bad.start()), line=self.line)
        if "\0" in read:
            raise DataError(f"not JSON: {_NUL}", line=self.line)
        place = self._words_for(at)
        if at == len(self._text):  # the file's end: a text that may be cut was read on
            raise DataError(f"not JSON: the file ends {place}; is it complete?", line=self.line)
        raise DataError(f"not JSON: {reason.removesuffix(' at')} {place}", line=self.line)

    def _words_for(self, at: int) -> str:
        line, character = self._place(at)
        return f"at line {line}, character {character + 1}"

    def _place(self, at: int) -> tuple[int, int]:
        """Return the line of a character of the text, and its place in this line from 0."""
        line, before = self._first
        start = self._text.rfind("\n", 0, at) + 1
        return line + self._text.count("\n", 0, at), at - start + (0 if start else before)


@contextmanager
def open_json(path: Path, *, most: int) -> Iterator[JsonText]:
    """Open a file of JSON, with or without a byte order mark; ``most`` as for JsonText."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        yield JsonText(file, most=most)


def _check_object(value: object, *, what: str, line: int) -> None:
    if not isinstance(value, dict):
        raise DataError(f"{what} must be a JSON object, not {word_for(value)}", line=line)


def _not_utf8(place: str, *, line: int) -> DataError:
    return DataError(f"not UTF-8 ({place}): save the file as UTF-8", line=line)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number; leave the entry out, or write null")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
