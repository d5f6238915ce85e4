"""hifi.data.formats.json_text: values of a file that is never in memory as a whole."""

from __future__ import annotations

import json
import math
import tempfile
import tracemalloc
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hifi.data.formats import json_text
from hifi.data.formats.json_text import JsonText, open_json, parse_line
from hifi.errors import DataError
from tests.hifi.data.files import write

MOST = 1 << 20

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.sampled_from('aé🙂"\\\n\t{}[],: \ud800'), max_size=8)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.sampled_from('ab"é'), max_size=3), inner, max_size=4)
    ),
    max_leaves=20,
)


def descend(text: JsonText) -> Any:
    """Read a value entry by entry."""
    start = text.peek()
    if start == "[":
        return [descend(text) for _ in text.elements(what="it")]
    if start == "{":
        return {name: descend(text) for name in text.members(what="it")}
    return text.value()


def read_values(text: JsonText) -> None:
    """Read a list, each of its values as a whole."""
    for _ in text.elements(what="the list"):
        text.value()


def enter_values(text: JsonText) -> None:
    """Enter each value of a list as a list."""
    for _ in text.elements(what="the list"):
        for _ in text.elements(what="a part"):
            pass


def skip_members(text: JsonText) -> None:
    """Read an object and none of its values."""
    for _ in text.members(what="it"):
        pass


def error_of(path: Path, *, read: Callable[[JsonText], None] = read_values) -> DataError:
    """Read a file to its end; return the error."""

    def read_all() -> None:
        with open_json(path, most=MOST) as text:
            read(text)
            text.end()

    with pytest.raises(DataError) as caught:
        read_all()
    return caught.value


class TestValues:
    @settings(max_examples=200)
    @given(value=VALUES, indent=st.sampled_from([None, 0, 2]), chunk=st.integers(1, 40))
    def test_are_those_of_the_standard_parser(self, value: Any, indent: int | None, chunk: int):
        """Wherever the file is cut into parts, read as a whole or entry by entry."""
        with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
            patch.setattr(json_text, "_CHUNK_CHARACTERS", chunk)
            for is_ascii, mark in product([True, False], ["", "\ufeff"]):
                content = json.dumps(value, indent=indent, ensure_ascii=is_ascii)
                if not is_ascii and "\ud800" in content:
                    continue  # no file holds it unless it is escaped
                path = write(Path(name, "a.json"), mark + content)
                for read in (JsonText.value, descend):
                    with open_json(path, most=MOST) as text:
                        assert repr(read(text)) == repr(json.loads(content))
                        text.end()

    def test_that_are_not_read_are_skipped(self, tmp_path: Path):
        path = write(tmp_path / "a.json", '{"a": [1, {"b": 2}], "c": 3, "d": {"e": 4}}')
        with open_json(path, most=MOST) as text:
            found = {name: text.value() for name in text.members(what="it") if name == "c"}
            text.end()
        assert found == {"c": 3}

    def test_have_their_line_and_bytes(self, tmp_path: Path):
        content = '[\n  {"a": "é"},\r\n\n  {"b":\n 1}, {"c": 2}]'
        with open_json(write(tmp_path / "a.json", content), most=MOST) as text:
            found = [text.entry(what="it") for _ in text.elements(what="the list")]
        assert [(entry.line, entry.size) for entry in found] == [(2, 11), (4, 9), (5, 8)]

    def test_may_be_numbers_that_a_part_of_the_file_ends_within(self, tmp_path: Path, monkeypatch):
        path = write(tmp_path / "a.json", "[12345, -1.5e3, 1e999]")
        monkeypatch.setattr(json_text, "_CHUNK_CHARACTERS", 3)
        with open_json(path, most=MOST) as text:
            assert [text.value() for _ in text.elements(what="it")] == [12345, -1500.0, math.inf]


class TestErrors:
    @pytest.mark.parametrize(
        ("content", "line", "reason"),
        [
            ("[1, 2", 1, "the file ends at line 1, character 6; is it complete?"),
            ('[1,\n{"a": ', 2, "the file ends at line 2, character 7; is it complete?"),
            ('[1,\n "ab', 2, "the file ends at line 2, character 5; is it complete?"),
            ("[", 1, "the file ends at line 1, character 2; is it complete?"),
            ("[1,\n\n2 3]", 3, "Expecting ',' delimiter at line 3, character 3"),
            ('[{"a": 1,\n"b" 2}]', 1, "Expecting ':' delimiter at line 2, character 5"),
            ("[1,\n]", 2, "Expecting value at line 2, character 1"),
            ("[1] [2]", 1, "Extra data at line 1, character 5"),
            ('["a\nb"]', 1, "Invalid control character at line 1, character 4"),
            ("[tru]", 1, "Expecting value at line 1, character 2"),
            ("[1,\n[NaN]]", 2, "NaN is not a JSON number; leave the entry out, or write null"),
            ("[1,\n-Infinity]", 2, "-Infinity is not a JSON number; leave the entry out, or"),
            ('[1,\n"a\0"]', 2, "NUL bytes; save the file as UTF-8"),
        ],
    )
    def test_name_the_place(self, content: str, line: int, reason: str, tmp_path: Path):
        path = write(tmp_path / "a.json", content)
        for chunk in (1, 5, 1 << 17):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(json_text, "_CHUNK_CHARACTERS", chunk)
                error = error_of(path)
            assert (error.line, error.row) == (line, None)
            assert error.reason.startswith(f"not JSON: {reason}")

    @pytest.mark.parametrize(
        ("content", "line", "place"),
        [
            (b'["a",\n "b\xff"]', 2, "line 2, character 4"),
            (b'["a",\n{"b": "\xed\xa0\x80"}]', 2, "line 2, character 8"),
            ('["é"]'.encode("latin-1"), 1, "line 1, character 3"),
            ('["é"]'.encode("utf-16"), 1, "line 1, character 1"),
        ],
    )
    def test_name_what_is_not_utf_8(self, content: bytes, line: int, place: str, tmp_path: Path):
        error = error_of(write(tmp_path / "a.json", content))
        assert error.reason == f"not UTF-8 (at {place}): save the file as UTF-8"
        assert error.line == line

    @pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-be"])
    def test_name_zeros_of_other_encodings(self, encoding: str, tmp_path: Path):
        error = error_of(write(tmp_path / "a.json", '["a"]'.encode(encoding)))
        assert error.reason == "not JSON: NUL bytes; save the file as UTF-8"

    @pytest.mark.parametrize("start", ["[", '{"a":', '{"a":['])
    def test_of_values_that_are_nested_too_deeply(self, start: str, tmp_path: Path):
        error = error_of(write(tmp_path / "a.json", "[1,\n" + start * 100_000))
        assert (error.line, error.reason) == (2, "lists or objects are nested too deeply")

    def test_of_numbers_without_end(self, tmp_path: Path):
        error = error_of(write(tmp_path / "a.json", "[1,\n" + "9" * 5000 + "]"))
        assert (error.line, "not JSON: Exceeds the limit" in error.reason) == (2, True)

    @pytest.mark.parametrize(
        "value",
        ['"' + "é" * 600_000 + '"', "[" + "0," * 600_000 + "0]", '{"a": "' + "x" * MOST + '"}'],
    )
    def test_of_values_that_are_too_large(self, value: str, tmp_path: Path):
        error = error_of(write(tmp_path / "a.json", f"[1,\n{value}, 2]"))
        assert (error.line, error.reason) == (2, "the row has more than 1 MiB")

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            ("[[1], 2]", "a part must be a list, not a whole number"),
            ("[[1], null]", "a part must be a list, not null"),
            ('[[1], {"a": 1}]', "a part must be a list, not an object"),
        ],
    )
    def test_of_values_that_are_no_lists(self, content: str, reason: str, tmp_path: Path):
        error = error_of(write(tmp_path / "a.json", content), read=enter_values)
        assert (error.reason, error.line) == (reason, 1)

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            ("5", "it must be a JSON object, not a whole number"),
            ("{1: 2}", "Expecting property name enclosed in double quotes at line 1, character 2"),
            ('{"a", 2}', "Expecting ':' delimiter at line 1, character 5"),
            (
                '{"a": 2,}',
                "Expecting property name enclosed in double quotes at line 1, character 9",
            ),
        ],
    )
    def test_of_values_that_are_no_objects(self, content: str, reason: str, tmp_path: Path):
        error = error_of(write(tmp_path / "a.json", content), read=skip_members)
        assert error.reason.removeprefix("not JSON: ") == reason


class TestMemory:
    def test_is_that_of_a_few_parts_of_the_file(self, tmp_path: Path):
        rows = ",\n".join(json.dumps({"text": "x" * 100, "n": number}) for number in range(100_000))
        path = write(tmp_path / "a.json", f"[{rows}]{' ' * 5_000_000}")
        assert path.stat().st_size > 16_000_000
        tracemalloc.start()
        with open_json(path, most=MOST) as text:
            count = sum(text.entry(what="it").size > 0 for _ in text.elements(what="it"))
            text.end()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert count == 100_000
        assert peak < 3_000_000


class TestLines:
    def test_have_their_number_and_bytes(self):
        entry = parse_line(b'{"a": 1}\n', number=7)
        assert (entry.values, entry.size, entry.line) == ({"a": 1}, 9, 7)

    def test_that_are_no_objects_name_their_number(self):
        with pytest.raises(
            DataError, match="every line must be a JSON object, not a list"
        ) as caught:
            parse_line(b"[1]", number=7)
        assert (caught.value.line, caught.value.row) == (7, None)
