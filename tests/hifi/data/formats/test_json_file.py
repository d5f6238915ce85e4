"""hifi.data.formats.json_file: the layouts of a .json file, and what it is refused for."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hifi.data.formats.json_file import JsonReader
from hifi.data.formats.reader import find_lines
from hifi.data.splits import load_split, read_split
from hifi.errors import DataError
from tests.hifi.data.files import LIMITS, convert_here, json_list, jsonl, refusal_of, write

Row = dict[str, Any]

ROWS: list[Row] = [
    {"text": "größe 🙂", "label": 1, "score": 1, "words": ["a", "b"]},
    {"text": 'a "quote"\n[', "label": 0, "score": 0.5, "other": {"a": 1, "b": ["x"]}},
    {"text": "", "label": None, "words": []},
]
LAYOUTS = {
    "a list": json.dumps,
    "a list over several lines": lambda rows: json.dumps(rows, indent=2),
    "a list of one line for each row": lambda rows: "[" + ",\n".join(map(json.dumps, rows)) + "]",
    "an object's data": lambda rows: json.dumps({"version": "1", "data": rows, "more": [1, {}]}),
    "an object's data over several lines": lambda rows: json.dumps({"data": rows}, indent=1),
    "JSON Lines": lambda rows: "\n\n".join(map(json.dumps, rows)),
    "JSON Lines that end": lambda rows: "".join(f"{json.dumps(row)}\r\n" for row in rows),
}


def read(path: Path, folder: Path) -> list[Row]:
    """Read a file as training does, and as an upload; both are the same."""
    found: list[Row] = read_split(path, split="train").dataset.to_list()
    uploaded = convert_here(folder, train=path).paths["train"]
    assert load_split(uploaded, split="train").to_list() == found
    return found


class TestLayouts:
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("start", ["", "\ufeff", "\n \t\r\n", "\ufeff\n"])
    def test_have_the_rows_of_json_lines(self, layout: str, start: str, tmp_path: Path):
        path = write(tmp_path / "a.json", start + LAYOUTS[layout](ROWS))
        expected = jsonl(tmp_path / "a.jsonl", ROWS)
        assert read(path, tmp_path) == read(expected, tmp_path)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_make_the_same_parquet_as_json_lines(self, layout: str, tmp_path: Path):
        path = write(tmp_path / "a.json", LAYOUTS[layout](ROWS))
        expected = jsonl(tmp_path / "a.jsonl", ROWS)
        first, second = (
            convert_here(tmp_path, train=each).paths["train"].read_bytes()
            for each in (path, expected)
        )
        assert first == second

    def test_of_many_rows_have_them_all(self, tmp_path: Path):
        rows = [{"text": f"text {number}", "n": number} for number in range(40_000)]
        path = json_list(tmp_path / "a.json", rows)
        assert read_split(path, split="train").dataset.to_list() == rows

    @settings(max_examples=50)
    @given(
        st.lists(
            st.dictionaries(
                st.sampled_from(["a", "b", "text", "data", "label", "answer"]),
                st.none()
                | st.integers(-(2**70), 2**70)
                | st.floats()
                | st.sampled_from(["", "a", "\ud800", "\0", "é🙂"])
                | st.lists(st.integers(0, 3) | st.text(max_size=2), max_size=2)
                | st.dictionaries(st.sampled_from("ab"), st.integers(0, 3), max_size=2),
                max_size=4,
            ),
            min_size=2,
            max_size=5,
        )
    )
    def test_are_used_or_refused_as_json_lines_are(self, rows: list[Row]):
        with tempfile.TemporaryDirectory() as name:
            expected = outcome(jsonl(Path(name, "a.jsonl"), rows))
            for number, layout in enumerate(LAYOUTS.values()):
                assert outcome(write(Path(name, f"{number}.json"), layout(rows))) == expected

    def test_have_a_line_for_each_row(self, tmp_path: Path):
        content = '\n[\n\n{"a": 1}, {"a": 2},\n{"a":\n3\n},\r\n\r\n {"a": 4}]'
        path = write(tmp_path / "a.json", content)
        found = find_lines(path, ending=".json", rows={1, 2, 3, 4, 5})
        assert found == {1: 4, 2: 4, 3: 5, 4: 9}

    def test_with_an_object_on_an_only_line_have_one_row(self, tmp_path: Path):
        path = write(tmp_path / "a.json", '{"text": "a", "data": {"x": 1}}\n')
        assert read(path, tmp_path) == [{"text": "a", "data": {"x": 1}}]

    def test_of_lines_may_have_a_list_that_is_called_data(self, tmp_path: Path):
        rows = [{"data": [1], "label": "a"}, {"data": [], "label": "b"}]
        path = jsonl(tmp_path / "a.json", rows)
        assert read(path, tmp_path) == rows

    def test_of_lines_are_known_by_the_first(self, tmp_path: Path):
        path = write(tmp_path / "a.json", '{"a": 1}\n{"a": 2,}\n')
        with pytest.raises(DataError, match=r"row 2 \(line 2\): not JSON: Expecting property name"):
            load_split(path, split="train")
        assert JsonReader.holds_lines(path, most=100)


def outcome(path: Path) -> tuple[Any, ...]:
    """Read a file; return its rows and columns, or the row, column and reason of the refusal."""
    try:
        loaded = read_split(path, split="train")
    except DataError as error:
        return (error.row, error.column, error.reason.partition(" at ")[0])
    unfit = {name: (found.row, found.reason) for name, found in loaded.unfit.items()}
    return (repr(loaded.dataset.to_list()), unfit)


class TestRefusals:
    @pytest.mark.parametrize(
        ("entry", "words"),
        [
            ("[1, 2]", "every entry of the list must be a JSON object, not a list"),
            ('"a"', "every entry of the list must be a JSON object, not a text"),
            ("1", "every entry of the list must be a JSON object, not a whole number"),
            ("1.5", "every entry of the list must be a JSON object, not a number"),
            ("null", "every entry of the list must be a JSON object, not null"),
            ("true", "every entry of the list must be a JSON object, not a boolean"),
            ("nothing", "not JSON: Expecting value at line 4, character 2"),
            ("{'a': 1}", "not JSON: Expecting property name enclosed in double quotes at line 4"),
            ('{"a": NaN}', "not JSON: NaN is not a JSON number; leave the entry out, or write"),
            ('{"a": [-Infinity]}', "not JSON: -Infinity is not a JSON number"),
            (b'{"a": "\xff"}', "not UTF-8 (at line 4, character 9): save the file as UTF-8"),
            (b'{"a": "b\x00"}', "not JSON: NUL bytes; save the file as UTF-8"),
            ('{"a": ' + "[" * 100_000, "lists or objects are nested too deeply"),
            ('{"a": ' + "9" * 5000 + "}", "not JSON: Exceeds the limit"),
            ('{"a": "' + "x" * 3_000_000 + '"}', "the row has more than 2 MiB"),
            ("", "not JSON: Expecting value at line 5, character 1"),
        ],
        ids=range(16),
    )
    @pytest.mark.parametrize(("start", "end"), [("[", "]"), ('{"data": [', "]}")])
    def test_of_entries_name_the_row_and_the_place(
        self, entry: str | bytes, words: str, start: str, end: str, tmp_path: Path
    ):
        content = entry if isinstance(entry, bytes) else entry.encode()
        before, after = f'{start}\n{{"a": 1}},\n\n '.encode(), f'\n,{{"a": 2}}\n{end}\n'.encode()
        path = write(tmp_path / "a.json", before + content + after)
        refusal = refusal_of(tmp_path, train=path)
        assert (refusal.split, refusal.row, refusal.column) == ("train", 2, None)
        assert refusal.line == (5 if entry == "" else 4)
        assert refusal.reason.startswith(words)

    @pytest.mark.parametrize(
        "content",
        [
            *("5", '"a"', "null", '{"a": 1,\n "b": 2}', '{"a": [1, 2],\n"b": [3, 4]}', "{\n}"),
            *('{"a": {"0": 1}, "b": {"0": 2}}', '{"data": {"a": 1},\n "b": [{"a": 1}]}'),
        ],
    )
    def test_of_other_layouts_name_those_that_are_read(self, content: str, tmp_path: Path):
        refusal = refusal_of(tmp_path, train=write(tmp_path / "a.json", content))
        assert (refusal.split, refusal.row) == ("train", None)
        assert refusal.reason == (
            "a .json file must be a list of objects, one for each row (which pandas writes with "
            "orient='records'), or JSON Lines, or an object whose entry 'data' is a list of "
            "objects or of SQuAD's articles"
        )

    @pytest.mark.parametrize("content", ["", "\n \n", "\ufeff", "[]", " [ ] ", '{"data": []}'])
    def test_of_files_without_rows(self, content: str, tmp_path: Path):
        path = write(tmp_path / "a.json", content)
        assert refusal_of(tmp_path, train=path).reason == "there are no rows"
        with pytest.raises(DataError, match=r"^train: there are no rows$"):
            load_split(path, split="train")

    @pytest.mark.parametrize(
        ("content", "row", "place"),
        [
            ('[\n{"a": 1},\n{"a": "b', 2, "line 3, character 9"),
            ('[\n{"a": 1},\n{"a": 2}', 3, "line 3, character 9"),
            ('[\n{"a": 1},\n', 2, "line 3, character 1"),
            ("[", 1, "line 1, character 2"),
            ('{"version": 1,\n"data": [{"a": 1}]', 2, "line 2, character 19"),
            ('{"version": 1,\n"data": [{"a": 1}', 2, "line 2, character 18"),
            ('{"version": 1,\n', 1, "line 2, character 1"),
        ],
    )
    def test_of_truncated_files_name_their_end(
        self, content: str, row: int, place: str, tmp_path: Path
    ):
        refusal = refusal_of(tmp_path, train=write(tmp_path / "a.json", content))
        assert refusal.row == row
        assert refusal.reason == f"not JSON: the file ends at {place}; is it complete?"

    def test_of_a_missing_comma_name_the_row_behind_it(self, tmp_path: Path):
        path = write(tmp_path / "a.json", '[{"a": 1}\n{"a": 2}]')
        refusal = refusal_of(tmp_path, train=path)
        assert (refusal.row, refusal.line) == (2, 2)
        assert refusal.reason == "not JSON: Expecting ',' delimiter at line 2, character 1"

    @pytest.mark.parametrize("end", ["]", "x", '\n{"a": 3}', "[]"])
    def test_of_what_follows_the_list(self, end: str, tmp_path: Path):
        path = write(tmp_path / "a.json", f'[{{"a": 1}},\n{{"a": 2}}]{end}')
        refusal = refusal_of(tmp_path, train=path)
        assert (refusal.row, refusal.reason.startswith("not JSON: Extra data at line ")) == (
            3,
            True,
        )

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
    def test_of_other_encodings(self, encoding: str, tmp_path: Path):
        content = json.dumps([{"text": "größe"}], ensure_ascii=False).encode(encoding)
        refusal = refusal_of(tmp_path, train=write(tmp_path / "a.json", content))
        assert refusal.reason.endswith("save the file as UTF-8")

    def test_far_down_the_file_name_the_row_too(self, tmp_path: Path):
        rows = ",\n".join(json.dumps({"a": row}) for row in range(50_000))
        path = write(tmp_path / "a.json", f"[{rows},\n{{'a'}},\n{rows}]")
        refusal = refusal_of(tmp_path, train=path)
        assert (refusal.row, refusal.line) == (50_001, 50_001)
        assert refusal.reason.endswith("at line 50001, character 2")

    def test_of_values_name_row_line_and_column(self, tmp_path: Path):
        path = json_list(tmp_path / "a.json", [{"a": "x"}, {"a": "\ud800"}])
        with pytest.raises(DataError, match=r"train, row 2 \(line 3\), column 'a': .*surrogate"):
            load_split(path, split="train")
        refusal = refusal_of(tmp_path, train=path)
        assert (refusal.row, refusal.line, refusal.column) == (2, 3, "a")

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ([1, 10**30], "64-bit"),
            ([1, "a"], "'a' is a text, the rows above hold int64"),
            ([[1], [[1]]], "no task reads columns of list<list<int64>>"),
        ],
    )
    def test_of_values_leave_the_column_out(self, values: list[Any], words: str, tmp_path: Path):
        path = json_list(tmp_path / "a.json", [{"a": value, "b": 0} for value in values])
        column = convert_here(tmp_path, train=path).profile.column("a")
        assert column is not None
        assert column.unfit is not None
        assert (column.unfit.row, column.unfit.line) == (2, 3)
        assert words in column.unfit.reason

    def test_of_a_number_out_of_range(self, tmp_path: Path):
        path = write(tmp_path / "a.json", '[{"a": 1.5}, {"a": 1e999}]')
        refusal = refusal_of(tmp_path, train=path)
        assert (refusal.row, refusal.column) == (2, "a")
        assert refusal.reason == "the number does not fit in a 64-bit float"


class TestLimits:
    def test_of_rows(self, tmp_path: Path):
        path = json_list(tmp_path / "a.json", [{"a": 1}] * 11)
        limits = replace(LIMITS, max_rows=10)
        assert "more than 10 rows" in refusal_of(tmp_path, train=path, limits=limits).reason

    def test_of_bytes_of_a_row_are_those_of_the_file(self, tmp_path: Path):
        row = {"a": "é" * 2000}
        content = json.dumps([row], ensure_ascii=False)
        path = write(tmp_path / "a.json", content)
        size = len(json.dumps(row, ensure_ascii=False).encode())
        assert convert_here(tmp_path, train=path, limits=replace(LIMITS, max_row_bytes=size))
        refusal = refusal_of(tmp_path, train=path, limits=replace(LIMITS, max_row_bytes=size - 1))
        assert (refusal.row, "the row has more than" in refusal.reason) == (1, True)

    def test_of_the_library_take_larger_rows_than_an_upload(self, tmp_path: Path):
        text = "x" * (3 << 20)
        path = json_list(tmp_path / "a.json", [{"text": text}])
        assert load_split(path, split="train")["text"][:] == [text]
        assert refusal_of(tmp_path, train=path).reason == "the row has more than 2 MiB"


class TestLabellingTools:
    """Label Studio exports a list; tools of JSON Lines may be copied into one."""

    STUDIO = (
        {"id": 1, "data": {"text": "not seen"}, "annotations": []},
        {
            "id": 2,
            "data": {"text": "🙂 Ada wrote", "year": 1843},
            "annotations": [
                {
                    "was_cancelled": False,
                    "result": [
                        {
                            "value": {"start": 3, "end": 6, "text": "Ada", "labels": ["person"]},
                            "type": "labels",
                            "to_name": "text",
                        }
                    ],
                }
            ],
        },
        {
            "id": 3,
            "data": {"text": "It rained", "year": 1844},
            "annotations": [{"was_cancelled": False, "result": []}],
        },
        {
            "id": 4,
            "data": {"text": "skipped"},
            "annotations": [{"was_cancelled": True, "result": []}],
        },
    )

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_are_converted_as_their_json_lines(self, layout: str, tmp_path: Path):
        path = write(tmp_path / "a.json", LAYOUTS[layout](self.STUDIO))
        found = read(path, tmp_path)
        assert [row["text"] for row in found] == ["🙂 Ada wrote", "It rained"]
        assert [len(row["spans"]) for row in found] == [1, 0]
        assert found[0]["spans"][0]["start"] == 2
        assert found == read(jsonl(tmp_path / "a.jsonl", self.STUDIO), tmp_path)

    def test_have_rows_left_out_that_are_counted(self, tmp_path: Path):
        path = write(tmp_path / "a.json", json.dumps(self.STUDIO, indent=2))
        assert convert_here(tmp_path, train=path).profile.left_out == {"train": 2}
        assert read_split(path, split="train").left_out == 2

    def test_have_errors_with_the_row_among_those_that_are_kept(self, tmp_path: Path):
        lines = [json.dumps(task) for task in self.STUDIO]
        path = write(tmp_path / "a.json", "[" + ",\n".join([*lines, "{'a'}"]) + "]")
        with pytest.raises(DataError, match=r"row 3 \(line 5\): not JSON") as caught:
            load_split(path, split="train")
        assert str(refusal_of(tmp_path, train=path)) == str(caught.value)

    def test_have_the_lines_of_the_rows_that_are_kept(self, tmp_path: Path):
        path = json_list(tmp_path / "a.json", self.STUDIO)
        assert find_lines(path, ending=".json", rows={1, 2, 3}) == {1: 3, 2: 4}
