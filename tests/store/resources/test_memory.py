"""store.resources.memory: a process's limit holds."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.root import ROOT

MIB = 1 << 20


@pytest.mark.process
class TestLimit:
    def test_an_allocation_beyond_it_fails_and_the_process_goes_on(self):
        assert run_limited("bytearray(300 << 20)") == "MemoryError, and then 1048576"

    def test_an_allocation_below_it_succeeds(self):
        assert run_limited("bytearray(100 << 20)") == "fine, and then 1048576"

    def test_a_file_mapped_for_reading_does_not_count(self, tmp_path: Path):
        file = tmp_path / "large"
        with file.open("wb") as sparse:
            sparse.truncate(500 * MIB)
        code = f"mmap.mmap(os.open({str(file)!r}, os.O_RDONLY), 0, prot=mmap.PROT_READ)"
        assert run_limited(code) == "fine, and then 1048576"

    def test_a_lower_limit_stays(self):
        code = "limit_memory(1 << 40) or bytearray(300 << 20)"
        assert run_limited(code, hard=200 * MIB) == "MemoryError, and then 1048576"


@pytest.mark.process
def test_pyarrow_reserves_less_than_it_would():
    code = """
        from pathlib import Path
        from store.resources.memory import keep_reservations_small
        keep_reservations_small()
        import pyarrow
        pyarrow.array([1])
        status = Path("/proc/self/status").read_text()
        print(status.partition("VmData:")[2].split()[0])
    """
    assert int(output_of(code)) < 512 << 10  # KiB; by itself it reserves 1 GiB


@pytest.mark.process
@pytest.mark.parametrize(("is_kept", "kept"), [(True, 80), (False, 40)])
def test_large_blocks_are_returned(is_kept: bool, kept: int):
    """Freed blocks with small ones between them stay with the process unless it returns them."""
    code = f"""
        from pathlib import Path
        from store.resources.memory import return_large_blocks
        def resident():
            status = Path("/proc/self/status").read_text()
            return int(status.partition("VmRSS:")[2].split()[0]) // 1024
        {is_kept} or return_large_blocks()
        bytes(16 << 20)  # when it is freed, the C library begins to keep such blocks
        before = resident()
        blocks = []
        for _ in range(10):
            blocks += [b"x" * (10 << 20), bytes(2000)]
        blocks = blocks[1::2]
        print(resident() - before)
    """
    assert (int(output_of(code)) > kept) is is_kept


def output_of(code: str) -> str:
    """Run code in a process of its own; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def run_limited(allocation: str, *, hard: int | None = None) -> str:
    """Run code in a process that may use 200 MiB; return what happened."""
    code = f"""
        import mmap, os, resource
        from store.resources.memory import limit_memory
        if {hard}:
            resource.setrlimit(resource.RLIMIT_DATA, ({hard}, {hard}))
        limit_memory({200 * MIB})
        try:
            held = {allocation}
            outcome = "fine"
        except MemoryError:
            outcome = "MemoryError"
        print(f"{{outcome}}, and then {{len(bytearray(1 << 20))}}")
    """
    return output_of(code)
