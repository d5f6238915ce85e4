"""bytes: families of methods and encodings of handmade runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.paper.figures import stored_bytes
from hifi.errors import DataError
from tests.benchmarks.paper.tables.test_stored import run
from tests.benchmarks.paper.tiny import line

if TYPE_CHECKING:
    from benchmarks.paper.figures.figure import Request

LINES = [
    run((0.50, 0.50, 0.40), (4000, 2000, 1000), "lora-qv", seed=0),
    run((0.60, 0.60, 0.50), (4000, 2000, 1000), "lora-qv", seed=1),
    run((0.40, 0.40, 0.40), (400, 200, 100), "lora-qv-r1", seed=0),
    run((0.70, 0.65, 0.698), (8000, 4000, 2300), "hifi-budget", seed=0),
    run((0.30, 0.30, 0.30), (900, 500, 300), "hifi-heads-1", seed=0),
    run((0.55, 0.50, 0.45), (3000, 1500, 800), "bitfit", seed=0),
    run((0.90, 0.90, 0.90), (9, 9, 9), "hifi", seed=0),  # of no family
    run((0.95, 0.95, 0.95), (9, 9, 9), "bitfit", seed=0, backbone="another"),
    line(0.9, method="full"),
]


def compute(request_for: Callable[..., Request], path: Path, lines: list[dict[str, Any]]):
    path.write_text("".join(f"{json.dumps(each)}\n" for each in lines))
    return stored_bytes.compute(request_for(results=path))


def test_a_line_for_each_family_and_encoding(request_for: Callable[..., Request], tmp_path: Path):
    numbers = compute(request_for, tmp_path / "r.jsonl", LINES)
    found = {
        (each["family"], each["encoding"]): [
            (point["method"], point["bytes"], pytest.approx(point["average"]))
            for point in each["points"]
        ]
        for each in numbers["lines"]
    }
    assert {family for family, _ in found} == {"LoRA", "HiFi heads", "BitFit"}
    assert len(found) == 9
    assert found["LoRA", "float32"] == [("lora-qv-r1", 400, 40), ("lora-qv", 4000, 55)]
    assert found["LoRA", "int8"] == [("lora-qv-r1", 100, 40), ("lora-qv", 1000, 45)]
    assert found["HiFi heads", "int8"] == [("hifi-heads-1", 300, 30), ("hifi-budget", 2300, 69.8)]
    assert found["BitFit", "bfloat16"] == [("bitfit", 1500, 50)]
    axes = stored_bytes.draw(numbers).axes[0]
    assert axes.get_xscale() == "log"
    lines = {each.get_label(): each for each in axes.lines}
    assert list(lines["LoRA, int8"].get_xdata()) == [100, 1000]
    assert "HiFi heads, int8: best 69.8 with hifi-budget, 2.3 kB" in "\n".join(
        stored_bytes.notes(numbers)
    )


def test_head_starts_are_lines_of_their_own(request_for: Callable[..., Request], tmp_path: Path):
    probe = run((0.58, 0.5, 0.5), (3000, 1500, 800), "bitfit", seed=0, head_start="probe")
    numbers = compute(request_for, tmp_path / "r.jsonl", [*LINES, probe])
    families = {each["family"] for each in numbers["lines"]}
    assert {"BitFit probe", "BitFit random"} < families


def test_a_method_without_every_task_is_left_out_and_named(
    request_for: Callable[..., Request], tmp_path: Path
):
    more = run((0.2, 0.2, 0.2), (9, 8, 7), "bitfit", seed=0, task="rte")
    more["metric"] = "accuracy"
    for each in more["encoded"].values():
        each["validation"] = {"accuracy": 0.2}
    numbers = compute(request_for, tmp_path / "r.jsonl", [*LINES, more])
    assert {each["family"] for each in numbers["lines"]} == {"BitFit"}
    assert "full lora-qv" in numbers["left_out"]
    assert "Left out, as a task is missing" in "\n".join(stored_bytes.notes(numbers))


def test_results_without_such_runs_are_refused(request_for: Callable[..., Request], tmp_path: Path):
    with pytest.raises(DataError, match="no runs of the methods stored on tiny-bert"):
        compute(request_for, tmp_path / "r.jsonl", [line(0.9, method="full")])
