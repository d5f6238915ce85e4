"""benchmarks.paper.tables.stored: quality and bytes by encoding, computed by hand."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.paper.tables.stored import collect, markdown, records, verdicts
from hifi.errors import DataError
from tests.benchmarks.paper.tables.rows import cells_of
from tests.benchmarks.paper.tiny import line


def run(
    values: tuple[float | None, ...], sizes: tuple[int, int, int], method: str, **changes
) -> dict[str, Any]:
    metrics = [{"validation": {"matthews": value}, "test": None} for value in values[1:]]
    return {
        **line(values[0], method=method, **changes),
        "metric": "matthews",
        "measured_on": "validation",
        "stored_bytes": dict(zip(("float32", "bfloat16", "int8"), sizes, strict=True)),
        "encoded": dict(zip(("bfloat16", "int8"), metrics, strict=True)),
    }


LINES = [
    run((0.50, 0.50, 0.40), (4000, 2000, 1000), "lora-qv", seed=0),
    run((0.60, 0.60, 0.50), (4000, 2000, 1000), "lora-qv", seed=1),
    run((0.50, 0.50, 0.498), (8000, 4000, 2100), "hifi-budget", seed=0),
    run((0.70, 0.65, 0.698), (8000, 4000, 2300), "hifi-budget", seed=1),
]


class TestRecords:
    def test_every_encoding_has_its_bytes_and_its_quality(self):
        found = {(each["method"], each["encoding"]): each for each in records(LINES)}
        assert list(found) == [
            ("lora-qv", "int8"),
            ("lora-qv", "bfloat16"),
            ("hifi-budget", "int8"),
            ("lora-qv", "float32"),
            ("hifi-budget", "bfloat16"),
            ("hifi-budget", "float32"),
        ]
        ours = found["hifi-budget", "int8"]
        assert (ours["bytes"], ours["cola"]) == (2200, pytest.approx(59.8))
        assert found["hifi-budget", "bfloat16"]["cola"] == pytest.approx(57.5)
        assert found["hifi-budget", "float32"]["cola"] == pytest.approx(60)

    def test_few_rows_are_measured_on_test(self):
        few = run((0.5, 0.1, 0.1), (4, 2, 1), "hifi-budget", shots="64", most_rows=None)
        few["measured_on"] = "test"
        few["encoded"]["int8"]["test"] = {"matthews": 0.45}
        few["encoded"]["bfloat16"]["test"] = {"matthews": 0.48}
        values = {each["encoding"]: each["cola"] for each in records([few])}
        assert values == pytest.approx({"int8": 45, "bfloat16": 48, "float32": 50})

    def test_runs_in_one_encoding_are_left_out_and_some_must_be_there(self):
        plain = [line(0.5, method="full"), line(None, method="hifi-budget", seed=5)]
        assert list(records([*LINES, *plain])) == list(records(LINES))
        with pytest.raises(DataError, match="measured in several encodings"):
            collect(plain)


class TestVerdicts:
    def test_the_smallest_as_good_as_lora_is_compared_with_it(self):
        # LoRA in float32: 55 in 4000 bytes; ours in int8: 59.8 in 2200; int8 − float32: −0.2.
        rows = {row.what: row for row in verdicts(collect(LINES))}
        name = "full: bytes of hifi-budget in int8, as good as lora-qv, over lora-qv's"
        assert rows[name].value == pytest.approx(0.55)
        assert rows[name].is_met
        loss = rows["full: hifi-budget, int8 − float32, all cells"]
        assert loss.value == pytest.approx(-0.2)

    def test_an_encoding_that_loses_too_much_is_told(self):
        worse = [*LINES[:-1], run((0.70, 0.7, 0.690), (8, 4, 2), "hifi-budget", seed=1)]
        rows = {row.what: row for row in verdicts(collect(worse))}
        loss = rows["full: hifi-budget, int8 − float32, all cells"]
        assert (loss.value, loss.is_met) == (pytest.approx(-0.6), False)

    def test_an_encoding_without_a_value_is_not_compared(self):
        lost = [*LINES[:2], run((0.5, 0.5, None), (8, 4, 2), "hifi-budget")]
        assert not [row for row in verdicts(collect(lost)) if "int8 −" in row.what]

    def test_none_as_good_is_a_miss(self):
        worse = [*LINES[:2], run((0.1, 0.1, 0.1), (8, 4, 2), "hifi-budget")]
        first = next(iter(verdicts(collect(worse))))
        assert (first.what, first.is_met) == ("full: no head delta as good as lora-qv", False)


def test_markdown_has_a_row_for_each_method_and_encoding():
    rows = cells_of(markdown(LINES))
    assert rows[:3] == [
        ["shots", "method", "encoding", "kB", "cola (matthews)", "average"],
        ["full", "lora-qv", "int8", "1.0", "45.0 ± 7.1 (2)", "45.0"],
        ["full", "lora-qv", "bfloat16", "2.0", "55.0 ± 7.1 (2)", "55.0"],
    ]
