"""service.http.waiting: large CPU work runs in a thread."""

from __future__ import annotations

import asyncio
import threading

import pytest

from service.http import waiting as module


class TestAside:
    @pytest.mark.parametrize(("size", "is_here"), [(100, True), (16 << 20, False)])
    def test_large_work_runs_in_a_thread(self, size: int, is_here: bool):
        async def run() -> int:
            return await module.in_thread_if_large(threading.get_ident, size=size)

        assert (asyncio.run(run()) == threading.get_ident()) is is_here
