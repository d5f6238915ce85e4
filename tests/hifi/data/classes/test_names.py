"""hifi.data.classes.names: classes that look alike are pointed out, and lists of them are short."""

from __future__ import annotations

from pathlib import Path

import pytest

from hifi.data.classes.names import describe_classes, find_alike
from hifi.data.columns import read_labels
from hifi.data.splits import load_split
from tests.hifi.data.files import convert_here, write


class TestAlike:
    @pytest.mark.parametrize(
        "names",
        [
            ["a", " a"],
            ["a", "a "],
            ["new york", "new  york"],
            ["new york", "new\u00a0york"],
            ["True", "TRUE", "true"],
            ["Straße", "STRASSE"],
            ["caf\u00e9", "cafe\u0301"],
            ["12", "\uff11\uff12"],
            ["\ufb01n", "fin"],
            ["spam", "spam\u200b"],
            ["spam", "\ufeffspam"],
            ["soft", "so\u00adft"],
            ["1E3", "1000"],
            ["01", "1", "1.0", "+1"],
            ["❤", "❤\ufe0f"],
        ],
    )
    def test_names_are_grouped(self, names: list[str]):
        assert find_alike(["other", *names]) == [names]

    @pytest.mark.parametrize(
        "names",
        [["a", "á"], ["1", "10"], ["1_0", "10"], ["resume", "résumé"], ["", "a"], ["+", "-"]],
    )
    def test_names_that_differ_are_not(self, names: list[str]):
        assert find_alike(names) == []


class TestWords:
    def test_list_the_first_classes(self):
        assert describe_classes(2, names=["a", "b"]) == "2 classes: a, b"
        many = [f"c{number}" for number in range(9)]
        assert describe_classes(9, names=many) == "9 classes: c0, c1, c2, c3, c4, c5, …"
        assert describe_classes(99, names=[]) == "99 classes"
        assert len(describe_classes(2, names=["x" * 999, "y" * 999])) < 80

    def test_escape_what_cannot_be_told_apart(self):
        names = ["caf\u00e9", "cafe\u0301"]
        assert describe_classes(2, names=names, alike=find_alike(names)).endswith(
            "; different classes that look alike: 'caf\\xe9' and 'cafe\\u0301'"
        )


class TestLabels:
    """Of each spelling a class of its own, with the name that the user wrote."""

    @pytest.mark.parametrize(
        ("cells", "classes", "alike"),
        [
            (["1E3", "1000", "2E5"], ["1000", "1E3", "2E5"], [["1000", "1E3"]]),
            (["01", "1", "2"], ["01", "1", "2"], [["01", "1"]]),
            (["True", "TRUE", "true"], ["TRUE", "True", "true"], [["TRUE", "True", "true"]]),
            (["a", " a", "b"], [" a", "a", "b"], [[" a", "a"]]),
            (["é", "e\u0301"], ["e\u0301", "é"], [["e\u0301", "é"]]),
            (["\uff11", "1"], ["1", "\uff11"], [["1", "\uff11"]]),
            (["1.0", "1", "2.0"], ["1", "2"], []),
            (["True", "False"], ["false", "true"], []),
            (["0", " 1"], ["0", "1"], []),
        ],
    )
    def test_of_cells(self, cells: list[str], classes: list[str], alike: list, tmp_path: Path):
        path = write(tmp_path / "a.csv", "text,label\n" + "".join(f"x,{cell}\n" for cell in cells))
        profile = convert_here(tmp_path, train=path).profile
        column = profile.column("label")
        assert column is not None
        assert (column.num_classes, list(column.class_names)) == (len(classes), classes)
        assert [list(group) for group in column.classes_alike] == alike
        labels = read_labels(load_split(path, split="train"), "label", split="train")
        assert sorted({str(label) for label in labels}) == classes
