"""hifi.memory: the limits of a machine, a container and a process are found."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from hifi.memory import _cgroup_limits, machine_memory, memory_limit, usable_memory


class TestMachine:
    def test_has_no_more_than_its_physical_memory(self):
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        assert 0 < machine_memory() <= pages

    @pytest.mark.parametrize(
        ("membership", "files", "limits"),
        [
            ("0::/\n", {"memory.max": "1000"}, [1000]),
            ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": "700"}, [700]),
            ("0::/a\n", {"a/memory.max": "5", "memory.max": "9"}, [5, 9]),
            (
                "4:cpu,memory:/a\n2:pids:/a\n",
                {"memory/a/memory.limit_in_bytes": "800", "a/memory.max": "1"},
                [800],
            ),
            ("0::/not/here\n", {}, []),
        ],
    )
    def test_knows_the_limits_of_its_groups(self, tmp_path: Path, membership, files, limits):
        for name, text in files.items():
            file = tmp_path / "cgroup" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n")
        own = tmp_path / "membership"
        own.write_text(membership)
        assert list(_cgroup_limits(tmp_path / "cgroup", own)) == limits

    def test_without_groups_there_is_no_limit(self, tmp_path: Path):
        assert list(_cgroup_limits(tmp_path, tmp_path / "missing")) == []


class TestProcess:
    @pytest.fixture
    def limited(self):
        """Limit this process to more than it uses, and less than its machine has."""
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        most = machine_memory() - 4096
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
        yield most
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))

    def test_without_a_limit_it_may_use_the_machines(self, monkeypatch: pytest.MonkeyPatch):
        none = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        monkeypatch.setattr(resource, "getrlimit", lambda _: none)
        assert memory_limit() is None
        assert usable_memory() == machine_memory()

    def test_a_limit_of_its_own_counts(self, limited: int):
        assert memory_limit() == usable_memory() == limited
