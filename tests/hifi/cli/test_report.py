"""hifi.cli.report: the table of a classification."""

from __future__ import annotations

import numpy as np

from hifi.cli.report import print_report
from hifi.tasks.report import report_classes, report_label_sets


def printed(capsys, names, targets, predictions) -> list[str]:
    report = report_classes(
        names, np.array(targets), np.array(predictions), split="validation"
    ).to_json()
    print_report(report)
    return capsys.readouterr().out.splitlines()


class TestTable:
    def test_has_a_row_for_each_true_class(self, capsys):
        assert printed(capsys, ("ant", "bee", "x" * 40), [0, 0, 0, 1, 2], [0, 1, 0, 1, 0]) == [
            "",
            "validation split, 5 rows, 3 classes; the columns after rows: predicted as",
            f"true class{' ' * 14}  precision  recall  f1      rows  ant  bee  {'x' * 23}…",
            f"ant{' ' * 21}  0.6667     0.6667  0.6667  3     2    1    0",
            f"bee{' ' * 21}  0.5000     1.0000  0.6667  1     0    1    0",
            f"{'x' * 23}…  0.0000     0.0000  0.0000  1     1    0    0",
        ]

    def test_of_more_than_ten_classes_leaves_out_the_counts(self, capsys):
        lines = printed(capsys, [f"c{n}" for n in range(11)], range(11), [0] * 11)
        assert lines[1:4] == [
            "validation split, 11 rows, 11 classes",
            "true class  precision  recall  f1      rows",
            "c0          0.0909     1.0000  0.1667  1",
        ]

    def test_of_more_classes_than_a_report_shows_counts_the_others(self, capsys):
        lines = printed(capsys, [f"c{n}" for n in range(60)], range(60), range(60))
        assert lines[-1].split() == ["(others)", "10"]

    def test_of_labels_that_do_not_exclude_each_other_has_no_counts(self, capsys):
        truth = np.array([[True, False], [True, True]])
        found = np.array([[True, False], [False, True]])
        print_report(report_label_sets(("ant", "bee"), truth, found, split="test").to_json())
        assert capsys.readouterr().out.splitlines() == [
            "",
            "test split, 2 labels",
            "label  precision  recall  f1      support",
            "ant    1.0000     0.5000  0.6667  2",
            "bee    1.0000     1.0000  1.0000  1",
        ]
