"""benchmarks.paper.results: whole lines, whatever is killed, and one process for each cell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.paper.results import Results, read_lines
from hifi.errors import DataError
from tests.benchmarks.paper.tiny import cell, line
from tests.root import ROOT

HOLD = """
import sys, time
from pathlib import Path
from benchmarks.paper.results import Results
from tests.benchmarks.paper.tiny import cell
with Results(Path(sys.argv[1])) as results, results.claim(cell(seed=1)) as is_ours:
    print(is_ours, flush=True)
    time.sleep(60)
"""
APPEND = """
import sys
from pathlib import Path
from benchmarks.paper.results import Results
from tests.benchmarks.paper.tiny import line
with Results(Path(sys.argv[1])) as results:
    for seed in range(50):
        results.append(line(0.5, seed=1000 * int(sys.argv[2]) + seed))
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


class TestFile:
    def test_finished_cells_are_read_back(self, tmp_path: Path):
        with Results(tmp_path / "r.jsonl") as results:
            assert results.finished() == {}
            results.append(line(0.5, seed=1))
            results.append(line(None, seed=2))
            assert results.finished() == {
                cell(seed=1): line(0.5, seed=1),
                cell(seed=2): line(None, seed=2),
            }

    @pytest.mark.parametrize("kept", [1, 30, -1])
    def test_a_half_written_last_line_does_not_count_and_is_rewritten(
        self, tmp_path: Path, kept: int
    ):
        path = tmp_path / "r.jsonl"
        with Results(path) as results:
            results.append(line(0.5, seed=1))
            whole = path.read_bytes()
            results.append(line(0.5, seed=2))
            path.write_bytes(whole + path.read_bytes()[len(whole) :][:kept])
            assert list(results.finished()) == [cell(seed=1)]
            results.append(line(0.7, seed=2))
            assert list(read_lines(path)) == [line(0.5, seed=1), line(0.7, seed=2)]

    def test_a_half_written_first_line_too(self, tmp_path: Path):
        path = tmp_path / "r.jsonl"
        path.write_bytes(b'{"kind": "ru')
        with Results(path) as results:
            assert results.finished() == {}
            results.append(line(0.5))
            assert list(results.finished()) == [cell()]

    @pytest.mark.parametrize("damage", [b"{\n", b"3\n", b'{"kind": "run"}\n', b"\n"])
    def test_damage_before_the_last_line_is_named(self, tmp_path: Path, damage: bytes):
        path = tmp_path / "r.jsonl"
        with Results(path) as results:
            results.append(line(0.5))
            path.write_bytes(path.read_bytes() + damage)
            with pytest.raises(DataError, match=r"r\.jsonl, line 2 is not a result"):
                results.finished()

    def test_numbers_that_are_not_finite_are_refused(self, tmp_path: Path):
        with Results(tmp_path / "r.jsonl") as results, pytest.raises(ValueError, match="JSON"):
            results.append(line(float("nan")))


@pytest.mark.process
class TestProcesses:
    def test_lines_of_two_processes_are_whole(self, tmp_path: Path):
        path = tmp_path / "r.jsonl"
        writers = [start(APPEND, path, number) for number in (1, 2)]
        assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
        seeds = {each["seed"] for each in read_lines(path)}
        assert seeds == {1000 * number + seed for number in (1, 2) for seed in range(50)}

    def test_a_claimed_cell_is_free_once_its_process_is_killed(self, tmp_path: Path):
        path = tmp_path / "r.jsonl"
        holder = start(HOLD, path)
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "True\n"
            with Results(path) as results:
                with results.claim(cell(seed=1)) as is_ours:
                    assert not is_ours
                with results.claim(cell(seed=2)) as is_ours:
                    assert is_ours
                holder.kill()
                holder.wait(timeout=60)
                with results.claim(cell(seed=1)) as is_ours:
                    assert is_ours
        finally:
            holder.kill()
            holder.communicate(timeout=60)
