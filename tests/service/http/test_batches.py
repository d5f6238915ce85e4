"""service.http.batches: many questions in one call, each with its own answer."""

from __future__ import annotations

import asyncio
import threading

import pytest

from service.http.batches import Batcher
from tests.waiting import patience


class TestBatcher:
    def test_a_single_question_is_asked_alone_and_at_once(self):
        batcher, calls = counting()
        assert asyncio.run(batcher.ask(3)) == 9
        assert calls == [[3]]

    def test_whoever_comes_during_a_call_shares_the_next_one(self):
        calls = []
        begun, going_on = threading.Event(), threading.Event()

        def square(numbers):
            calls.append(list(numbers))
            begun.set()
            assert going_on.wait(patience(10))
            return [number**2 for number in numbers]

        async def run():
            batcher = Batcher(square, most=99, pause=0)
            first = asyncio.create_task(batcher.ask(0))
            await asyncio.to_thread(begun.wait)
            others = [asyncio.create_task(batcher.ask(number)) for number in range(1, 6)]
            await asyncio.sleep(0.01)
            going_on.set()
            return [await first, *await asyncio.gather(*others)]

        assert asyncio.run(run()) == [0, 1, 4, 9, 16, 25]
        assert calls == [[0], [1, 2, 3, 4, 5]]

    def test_no_call_is_larger_than_allowed(self):
        batcher, calls = counting(most=4)

        async def run():
            return await asyncio.gather(*map(batcher.ask, range(10)))

        assert asyncio.run(run()) == [number**2 for number in range(10)]
        assert max(map(len, calls)) <= 4
        assert sum(map(len, calls)) == 10

    def test_an_exception_among_the_answers_is_its_questions_own(self):
        def half(numbers):
            return [ValueError(number) if number % 2 else number // 2 for number in numbers]

        async def run():
            batcher = Batcher(half, most=99, pause=0)
            return await asyncio.gather(*map(batcher.ask, range(4)), return_exceptions=True)

        even, odd, also_even, also_odd = asyncio.run(run())
        assert (even, also_even) == (0, 1)
        assert [type(odd), odd.args, also_odd.args] == [ValueError, (1,), (3,)]

    def test_a_call_that_fails_fails_for_all_and_the_next_one_works(self):
        broken = [True]

        def fragile(numbers):
            if broken[0]:
                raise ConnectionError("away")
            return numbers

        async def run():
            batcher = Batcher(fragile, most=99, pause=0)
            failed = await asyncio.gather(*map(batcher.ask, range(3)), return_exceptions=True)
            broken[0] = False
            return failed, await batcher.ask(7)

        failed, worked = asyncio.run(run())
        assert [type(error) for error in failed] == [ConnectionError] * 3
        assert worked == 7

    def test_one_that_has_left_keeps_nobody_from_an_answer(self):
        batcher, _ = counting()

        async def run():
            leaving = asyncio.create_task(batcher.ask(1))
            staying = asyncio.create_task(batcher.ask(2))
            await asyncio.sleep(0)
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            return await staying, await batcher.ask(3)

        assert asyncio.run(run()) == (4, 9)

    def test_what_was_asked_by_one_that_has_left_is_not_asked_for_any_more(self):
        calls = []
        begun, going_on = threading.Event(), threading.Event()

        def note(numbers):
            calls.append(list(numbers))
            begun.set()
            assert going_on.wait(patience(10))
            return numbers

        async def run():
            batcher = Batcher(note, most=2, pause=0)
            first = asyncio.create_task(batcher.ask(0))
            await asyncio.to_thread(begun.wait)
            leaving = [asyncio.create_task(batcher.ask(number)) for number in (1, 2, 3)]
            staying = asyncio.create_task(batcher.ask(4))
            await asyncio.sleep(0.01)
            for task in leaving:
                task.cancel()
            await asyncio.wait(leaving)
            going_on.set()
            return await first, await staying

        assert asyncio.run(run()) == (0, 4)
        assert calls == [[0], [4]]

    def test_is_closed_when_nothing_is_under_way_any_more(self):
        ended = []

        def slow(numbers):
            threading.Event().wait(0.1)
            ended.extend(numbers)
            return numbers

        async def run():
            batcher = Batcher(slow, most=1, pause=0)
            given_up = [asyncio.create_task(batcher.ask(number)) for number in (1, 2)]
            await asyncio.sleep(0.02)
            for task in given_up:
                task.cancel()
            await batcher.close()
            assert ended == [1]
            await batcher.close()

        asyncio.run(run())

    def test_calls_never_run_side_by_side(self):
        running, overlaps = [0], []

        def slow(numbers):
            running[0] += 1
            overlaps.append(running[0])
            threading.Event().wait(0.002)
            running[0] -= 1
            return numbers

        async def run():
            batcher = Batcher(slow, most=2, pause=0)
            await asyncio.gather(*map(batcher.ask, range(20)))

        asyncio.run(run())
        assert set(overlaps) == {1}


def counting(*, most=99):
    calls = []

    def square(numbers):
        calls.append(list(numbers))
        return [number**2 for number in numbers]

    return Batcher(square, most=most, pause=0), calls
