"""service.datasets.documents: what a data set's notes point out."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.datasets.documents import DatasetDocument, Note
from store.tables import Dataset
from tests.hifi.data.files import convert_here, write


def notes_of(folder: Path, content: str, *, name: str = "a.csv") -> list[Note]:
    converted = convert_here(folder, train=write(folder / name, content))
    dataset = Dataset(
        id="ds_1",
        name=None,
        splits={"train": {"rows": converted.rows["train"], "bytes": 1, "sha256": "0" * 64}},
        columns=dict(converted.columns),
        profile=converted.profile.to_json(),
        bytes=1,
        sha256="0" * 64,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    return DatasetDocument.of(dataset).notes


class TestNotes:
    @pytest.mark.parametrize(
        "content",
        [
            "text,label\na,yes\nb,Yes\n",
            "text,code\na,1E3\nb,1000\n",  # classes or numbers: the type is uncertain
            "a,b,c,label\nx,y,z,1E3\nx,y,z,1000\n",  # the text columns are uncertain
        ],
    )
    def test_name_classes_that_look_alike(self, content: str, tmp_path: Path):
        [note] = notes_of(tmp_path, content)
        assert note.code == "classes_alike"
        assert note.param == content.partition("\n")[0].split(",")[-1]
        assert "different classes that look alike: '" in note.message

    @pytest.mark.parametrize(
        "content",
        [
            "text,label\na,yes\nb,no\n",
            "text,one,two\na,1E3,1\nb,1000,2\n",  # either could be the label
        ],
    )
    def test_are_none_without(self, content: str, tmp_path: Path):
        assert notes_of(tmp_path, content) == []

    def test_say_how_to_use_a_column_without_a_name(self, tmp_path: Path):
        [note] = notes_of(tmp_path, ",text,label\n0,a,1\n1,b,0\n")
        assert (note.code, note.param) == ("column_left_out", "Unnamed: 0")
        assert note.message.endswith("give it one in the file to use it")

    def test_count_the_rows_that_no_annotator_accepted(self, tmp_path: Path):
        row = {"text": "Ada wrote", "spans": [{"start": 0, "end": 3, "label": "A"}]}
        answers = ("accept", "reject", "ignore")
        lines = [json.dumps({**row, "answer": answer}) for answer in answers]
        [note] = notes_of(tmp_path, "\n".join(lines), name="a.jsonl")
        assert (note.code, note.param) == ("rows_left_out", "train")
        assert note.message.endswith("because nobody accepted or labelled them: 2")
