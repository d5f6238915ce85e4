"""hifi.cli.docstrings: sentences that do not give their library away."""

from __future__ import annotations

import json
import re

import pytest

from hifi.cli import docstrings
from hifi.cli.docstrings import build_data_set, find_names, first_sentence


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Build a small data set."""
    folder = tmp_path_factory.mktemp("docstrings")
    rows = build_data_set(folder, rows_per_library=20, seed=0)
    assert rows == {"train": 64, "validation": 16}
    return folder


class TestFirstSentence:
    @pytest.mark.parametrize(
        ("docstring", "sentence"),
        [
            ("Return the mean.", "Return the mean."),
            ("Return the\n    mean. And more.", "Return the mean."),
            ("Return the mean\n\nof all.", "Return the mean"),
            ("Wrap a SciPy matrix.", "Wrap a matrix."),
            ("See scipy.sparse for matrices.", "See sparse for matrices."),
            ("Is this scipy? Yes.", "Is this ?"),
        ],
    )
    def test_is_extracted_without_the_librarys_name(self, docstring, sentence):
        assert first_sentence(docstring, own_name=r"scipy\w*") == sentence


class TestBuildDataSet:
    def test_has_as_many_rows_of_every_library(self, folder):
        for split, count in (("train", 16), ("validation", 4)):
            labels = [row["library"] for row in read(folder / f"{split}.jsonl")]
            assert {library: labels.count(library) for library in labels} == dict.fromkeys(
                docstrings.LIBRARIES, count
            )

    def test_no_text_occurs_twice_or_names_its_library(self, folder):
        rows = read(folder / "train.jsonl") + read(folder / "validation.jsonl")
        assert len({row["text"].lower() for row in rows}) == len(rows)
        for row in rows:
            assert not re.search(rf"\b{row['library']}\b", row["text"], re.IGNORECASE)

    def test_equal_seeds_give_equal_files(self, folder, tmp_path):
        build_data_set(tmp_path, rows_per_library=20, seed=0)
        for name in ("train.jsonl", "validation.jsonl"):
            assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()

    @pytest.mark.parametrize("label", ["names", "length"])
    def test_the_same_sentences_serve_other_tasks(self, label, folder, tmp_path):
        build_data_set(tmp_path, rows_per_library=20, seed=0, label=label)
        for name in ("train.jsonl", "validation.jsonl"):
            texts = [row["text"] for row in read(folder / name)]
            assert [row["text"] for row in read(tmp_path / name)] == texts
        values = [row[label] for row in read(tmp_path / "train.jsonl")]
        assert any(values)
        assert min(values) == ([] if label == "names" else 0.0)


class TestNames:
    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("Return the mean of `x`, or ``None``.", ["x", "None"]),
            ("Call np.mean, fit_transform() or _repr_html_.", None),
            ("A MultiIndex of the values.", ["MultiIndex"]),
            ("Return the mean.", []),
        ],
    )
    def test_are_code(self, text, names):
        found = [text[each["start"] : each["end"]] for each in find_names(text)]
        assert found == (["np.mean", "fit_transform", "_repr_html_"] if names is None else names)
