"""hifi.data.delimited: CSV and TSV that cannot be used, and the place that the error names."""

from __future__ import annotations

import asyncio
import csv
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hifi.data.splits import load_split
from hifi.errors import DataError
from service.datasets.checking.conversion import convert
from service.datasets.checking.exchange import Limits, UploadedFile
from tests.hifi.data.files import LIMITS, convert_here, refusal_of, write
from tests.waiting import within


class TestRefusals:
    @pytest.mark.parametrize(
        ("content", "row", "column", "words"),
        [
            (b"", None, None, "empty"),
            (b"\n\r\n", None, None, "empty"),
            (b"\xef\xbb\xbf", None, None, "empty"),
            (b"text,label\n", None, None, "no rows"),
            (b"text,label", None, None, "no rows"),
            (b"text,label\na,1\nb\n", 2, None, "1 fields, the header has 2"),
            (b"text,label\na,1\nb,0,2\n", 2, None, "3 fields, the header has 2"),
            (b'text,label\n"a\nb\n\nc",1\n\nb\n', 2, None, "1 fields"),
            (b'text,label\na,1\n"b,0\nc,1\n', 2, None, "not closed"),
            (b'text,label\na,1\nb,"0\nc,1\n', 2, None, "not closed"),
            (b'text\na\n"b\nc\n', 2, None, "not closed"),
            (b'text,label\na,1\nb "c"" d,"0\n', 2, None, "not closed"),
            (b"text,label\na,1\ncaf\xe9,0\n", 2, "text", "not UTF-8"),
            (b"text,label\na,1\nb,0\xff\n", 2, "label", "save the file as UTF-8"),
            ("text,label\na,1\n".encode("utf-16"), None, None, "UTF-8"),
            (b"t\xe9xt,label\na,1\n", None, None, "UTF-8"),
            (b"text,label\na,1\nb\x00,0\n", 2, "text", "NUL"),
            (b"te\x00xt,label\na,1\n", None, None, "column 1 is not valid text"),
            (b",\n0,a\n", None, None, "there are no columns"),
            (b"text,label,text\na,1,b\n", None, "text", "more than once"),
            (b"%s,label\na,1\n" % (b"x" * 300), None, None, "has 300 characters"),
            (b"text;label\na;1\n", None, None, "commas, not by semicolons"),
            (b"text\tlabel\na\t1\n", None, None, "commas, not by tabs"),
            (b"text|label\na|1\n", None, None, "commas, not by bars"),
        ],
    )
    def test_name_the_row(self, content: bytes, row, column, words: str, tmp_path: Path):
        refusal = refusal_of(tmp_path, train=write(tmp_path / "a.csv", content))
        assert (refusal.split, refusal.row, refusal.column) == ("train", row, column)
        assert words in refusal.reason

    def test_of_tabs_name_them(self, tmp_path: Path):
        path = write(tmp_path / "a.tsv", "text,label\na,1\n")
        assert "separated by tabs, not by commas" in refusal_of(tmp_path, train=path).reason

    def test_quote_no_data(self, tmp_path: Path):
        path = write(tmp_path / "a.csv", 'text,label\na,1\nsecret "words" of mine\n')
        assert "secret" not in refusal_of(tmp_path, train=path).reason

    def test_far_down_the_file_name_the_row_too(self, tmp_path: Path):
        rows = "".join(f"{'word ' * 24}{number},1\n" for number in range(40_000))
        for last, words in (("a,1,2", "3 fields"), ('"a,1', "not closed"), ("a\0,1", "NUL")):
            path = write(tmp_path / "a.csv", f"text,label\n{rows}{last}\n{rows}")
            refusal = refusal_of(tmp_path, train=path)
            assert (refusal.row, words in refusal.reason) == (40_001, True)

    def test_of_a_row_without_end_name_it(self, tmp_path: Path):
        path = write(tmp_path / "a.csv", "text,label\na,1\n" + "x" * 9_000_000 + ",1\n")
        refusal = refusal_of(tmp_path, train=path)
        assert (refusal.row, "more than 2 MiB, or" in refusal.reason) == (2, True)


class TestColumns:
    @pytest.mark.parametrize("names", ["c{}", '"c{}"'])
    def test_a_million_are_refused_quickly(self, names: str, tmp_path: Path):
        header = ",".join(names.format(number) for number in range(1_000_000))
        path = write(tmp_path / "a.csv", f"{header}\n")
        with within(1):
            refusal = refusal_of(tmp_path, train=path)
        assert "at most 1000 are allowed" in refusal.reason
        assert len(refusal.reason) < 200

    def test_may_be_a_thousand(self, tmp_path: Path):
        header = ",".join(f"c{number}" for number in range(1000))
        cells = ",".join(str(number) for number in range(1000))
        path = write(tmp_path / "a.csv", f"{header}\n{cells}\n{cells}\n")
        assert len(convert_here(tmp_path, train=path).columns) == 1000
        path = write(tmp_path / "b.csv", f"{header},x\n{cells},0\n")
        assert "1001 columns" in refusal_of(tmp_path, train=path).reason

    def test_without_end_are_refused(self, tmp_path: Path):
        path = write(tmp_path / "a.csv", "x" * 3_000_000)
        assert "more than 1 MiB" in refusal_of(tmp_path, train=path).reason

    def test_may_have_commas_and_line_breaks_in_their_names(self, tmp_path: Path):
        path = write(tmp_path / "a.csv", '"a,b","c\nd"\n1,2\n')
        assert list(convert_here(tmp_path, train=path).columns) == ["a,b", "c\nd"]

    @pytest.mark.parametrize(
        ("cells", "kind"),
        [
            (["1", "2"], "int64"),
            (["1", "0.5"], "float64"),
            (["true", "false"], "bool"),
            (["a", "1"], "string"),
            (["007", "7"], "string"),
            (["NA", ""], "null"),
        ],
    )
    def test_record_what_cells_look_like(self, cells: list[str], kind: str, tmp_path: Path):
        path = write(tmp_path / "a.csv", "x,y\n" + "".join(f"{cell},0\n" for cell in cells))
        assert convert_here(tmp_path, train=path).columns["x"] == kind

    @pytest.mark.process
    def test_that_are_many_with_many_rows_take_no_more_memory_than_is_allowed(self, tmp_path: Path):
        header = ",".join(f"c{column}" for column in range(1000))
        rows = "".join(",".join([f"{row}"] * 1000) + "\n" for row in range(200))
        path = write(tmp_path / "a.csv", f"{header}\n{rows * 3}")
        folder = tmp_path / "folder"
        folder.mkdir()
        file = UploadedFile(path=path, filename="a.csv")
        limits = Limits(seconds=60, memory=1 << 30)
        converted = asyncio.run(convert({"train": file}, folder=folder, limits=limits))
        assert converted.profile.rows["train"] == 600


class TestLimits:
    def test_of_rows(self, tmp_path: Path):
        path = write(tmp_path / "a.csv", "x\n" + "1\n" * 1001)
        limits = replace(LIMITS, max_rows=1000)
        assert "more than 1000 rows" in refusal_of(tmp_path, train=path, limits=limits).reason

    def test_of_bytes(self, tmp_path: Path):
        path = write(tmp_path / "a.csv", "x\n" + ("y" * 100 + "\n") * 10_000)
        limits = replace(LIMITS, max_bytes=500_000)
        assert "more than 500000 bytes" in refusal_of(tmp_path, train=path, limits=limits).reason

    def test_hold_over_all_splits(self, tmp_path: Path):
        path = write(tmp_path / "a.csv", "x\n" + "1\n" * 600)
        limits = replace(LIMITS, max_rows=1000)
        refusal = refusal_of(tmp_path, train=path, test=path, limits=limits)
        assert (refusal.split, "more than 1000 rows" in refusal.reason) == ("test", True)


class TestBlocks:
    """Files of many blocks are read like the library, which reads them whole."""

    SIGNS = st.sampled_from('ab"\n\r, é')

    @settings(max_examples=60)
    @given(
        st.lists(
            st.lists(st.text(SIGNS, max_size=6), min_size=2, max_size=2), min_size=5, max_size=40
        ),
        st.sampled_from(["\n", "\r\n"]),
    )
    def test_of_written_rows(self, rows: list[list[str]], newline: str):
        with tempfile.TemporaryDirectory() as name:
            path = Path(name, "a.csv")
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator=newline)
                writer.writerows([["x", "y"], *rows])
            self.check(path)

    @settings(max_examples=60)
    @given(st.text(SIGNS, max_size=200))
    def test_of_any_text(self, text: str):
        with tempfile.TemporaryDirectory() as name:
            self.check(write(Path(name, "a.csv"), f"x,y\n{text}"))

    def test_that_part_a_line_break(self, tmp_path: Path):
        for length in range(1, 70):
            self.check(write(tmp_path / "a.csv", 'x,y\n"{}\r\n",1\n'.format("z" * length)))

    @staticmethod
    def check(path: Path) -> None:
        try:
            expected: object = load_split(path, split="train").to_list()
        except DataError as error:
            expected = error.row
        limits = replace(LIMITS, max_row_bytes=128)
        try:
            converted = convert_here(path.parent, train=path, limits=limits)
        except DataError as refusal:
            # A row of more than a block is refused for that.
            found: object = expected if "quotation" in refusal.reason else refusal.row
        else:
            found = load_split(converted.paths["train"], split="train").to_list()
        assert found == expected
