"""service.inference.processes: each head delta has its process, which another one replaces."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from service.inference import client as client_module
from service.inference import processes as processes_module
from service.inference.client import InferenceClient, Reply
from service.inference.processes import Processes
from store.errors import ProblemError
from store.orders import DeltaOrder, Outcomes, PredictionOrder
from store.settings import Settings
from tests.service.gateways import serving
from tests.waiting import eventually_async, patience

if TYPE_CHECKING:
    from starlette.requests import Request

URLS = [f"http://127.0.0.1:{port}" for port in range(9001, 9006)]


def delta(number: int) -> DeltaOrder:
    return DeltaOrder(tenant="ten_1", job=f"job_{number}", model="minilm", sha256=f"{number:064x}")


DELTAS = [delta(number) for number in range(500)]


def places(urls: list[str]) -> dict[str, str]:
    """Return the process of each delta."""
    processes = Processes(Settings(infer_url=",".join(urls)))
    return {each.job: processes.choose(each).url for each in DELTAS}


class TestChoose:
    def test_spreads_the_deltas(self):
        counts = Counter(places(URLS).values())
        assert counts.keys() == set(URLS)
        assert min(counts.values()) > 60

    def test_is_the_same_in_every_gateway_whatever_the_order_of_the_setting(self):
        assert places(URLS) == places(URLS[::-1])

    def test_removing_a_process_moves_only_its_own_deltas(self):
        before, after = places(URLS), places(URLS[:2] + URLS[3:])
        moved = {job for job in before if before[job] != after[job]}
        assert moved == {job for job in before if before[job] == URLS[2]}
        assert len({after[job] for job in moved}) == 4

    def test_one_that_is_left_out_moves_only_its_own_deltas_and_gets_them_back(self):
        async def look() -> None:
            processes = Processes(Settings(infer_url=",".join(URLS)))
            before = {each.job: processes.choose(each) for each in DELTAS}
            lost = before[DELTAS[0].job]
            processes.note_failure(lost, was_reached=False)
            after = {each.job: processes.choose(each) for each in DELTAS}
            assert lost not in after.values()
            assert all(after[job] is old for job, old in before.items() if old is not lost)
            lost.health.is_used = True
            assert {each.job: processes.choose(each) for each in DELTAS} == before
            await processes.close()

        asyncio.run(look())

    def test_equal_deltas_of_two_jobs_share_a_process(self):
        processes = Processes(Settings(infer_url=",".join(URLS)))
        twin = delta(3).model_copy(update={"job": "job_twin"})
        assert processes.choose(twin) is processes.choose(delta(3))


class Fake:
    """An inference process that answers with its name, and ends connections when it is told to."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.url = f"unix://{folder}/{name}.sock"
        self.path = f"{folder}/{name}.sock"
        self.asked: list[Any] = []
        self.crashes: Callable[[Any], bool] = lambda _: False
        self.answer: Callable[[Request], Awaitable[Response]] = self._say
        self.is_late: Callable[[], bool] = lambda: False
        self.probes = 0
        self.app = Starlette(
            routes=[
                Route("/predict", self._predict, methods=["POST"]),
                Route("/healthz", self._health),
            ]
        )

    def delays(self, seconds: float) -> list[Any]:
        """Let every answer take so long; return the requests from now on."""
        asked = []

        async def answer(request: Request) -> Response:
            asked.append(request)
            await asyncio.sleep(seconds)
            return await self._say(request)

        self.answer = answer
        return asked

    def refuse_connections(self) -> None:
        """Let no further connection reach it."""
        Path(self.path).unlink()

    async def _health(self, _: Request) -> Response:
        self.probes += 1
        await asyncio.sleep(3 if self.is_late() else 0)
        return JSONResponse({})

    async def _predict(self, request: Request) -> Response:
        return await self.answer(request)

    async def _say(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        if self.crashes(body):
            return broken()
        return JSONResponse(
            {"data": [{"from": self.name, "text": item["input"]["text"]} for item in body["items"]]}
        )


def broken() -> Response:
    """Return a response whose connection ends in the middle, as that of a killed process."""
    return StreamingResponse(iter([b"{"]), headers={"content-length": "9"})


@pytest.fixture
def fakes(tmp_path: Path) -> list[Fake]:
    return [Fake("one", tmp_path), Fake("two", tmp_path)]


@pytest.fixture
def up(fakes: list[Fake]) -> Iterator[ExitStack]:
    with ExitStack() as stack:
        for fake in fakes:
            stack.enter_context(serving(fake.app, uds=fake.path))
        yield stack


@pytest.fixture
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes_module, "_QUIET_SECONDS", 0.1)
    monkeypatch.setattr(processes_module, "_HUNG_SECONDS", 0.5)


def order(*numbers: int, seconds: float = 30.0) -> PredictionOrder:
    deltas = [delta(number) for number in dict.fromkeys(numbers)]
    index = {number: place for place, number in enumerate(dict.fromkeys(numbers))}
    items = [(index[number], {"text": str(number)}) for number in numbers]
    return PredictionOrder.of_checked(deltas, items, truncate=True, timeout_seconds=seconds)


def put_together(replies: list[Reply], *, count: int) -> list[Any]:
    """Return the outcome of each item, or the problem of its reply."""
    found: dict[int, Any] = {}
    for reply in replies:
        if isinstance(reply.content, ProblemError):
            found.update(dict.fromkeys(reply.places, reply.content))
            continue
        data = Outcomes.model_validate_json(reply.content).data
        found.update(zip(reply.places, data, strict=True))
    assert sorted(found) == list(range(count))
    return [found[place] for place in range(count)]


async def ask(client: InferenceClient, *numbers: int, seconds: float = 30.0) -> list[Any]:
    replies = await client.predict(order(*numbers, seconds=seconds), size=100, request_id="r")
    return put_together(replies, count=len(numbers))


def run(work: Any) -> None:
    asyncio.run(asyncio.wait_for(work, patience(60)))


@pytest.fixture
def client_of(fakes: list[Fake]) -> Callable[..., InferenceClient]:
    def make(*chosen: Fake) -> InferenceClient:
        return InferenceClient(Settings(infer_url=",".join(f.url for f in chosen or fakes)))

    return make


NUMBERS = (5, 1, 2, 5, 3, 4, 1, *range(6, 30))  # each process has some, whatever its address


@pytest.mark.usefixtures("up")
class TestPredict:
    def test_is_divided_and_put_together_in_the_order_asked(self, fakes, client_of):
        async def look() -> None:
            client = client_of()
            answers = await ask(client, *NUMBERS)
            assert [int(answer["text"]) for answer in answers] == list(NUMBERS)
            assert {answer["from"] for answer in answers} == {"one", "two"}
            again = await ask(client, *NUMBERS)
            assert answers == again
            for fake in fakes:
                assert len(fake.asked) == 2
                (jobs, _) = ({each["job"] for each in body["orders"]} for body in fake.asked)
                assert len(jobs) == len(fake.asked[0]["orders"])
            await client.close()

        run(look())

    def test_goes_to_the_other_process_when_one_breaks(self, fakes, client_of):
        fakes[0].crashes = lambda _: True

        async def look() -> None:
            client = client_of()
            answers = await ask(client, *NUMBERS)
            assert [answer["from"] for answer in answers] == ["two"] * len(NUMBERS)
            assert [int(answer["text"]) for answer in answers] == list(NUMBERS)
            states = {state.url: state for state in client.states()}
            assert not states[fakes[0].url].is_up
            assert states[fakes[0].url].failures >= 1
            assert states[fakes[1].url].is_up
            await client.close()

        run(look())

    def test_goes_to_the_other_process_after_a_late_answer(self, fakes, client_of, monkeypatch):
        monkeypatch.setattr(client_module, "_SPARE_SECONDS", 0.1)
        late = fakes[0].delays(2)

        async def look() -> None:
            client = client_of()
            answers = await ask(client, *NUMBERS, seconds=0.3)
            hung = [answer for answer in answers if isinstance(answer, ProblemError)]
            assert {problem.code for problem in hung} == {"inference_unavailable"}
            assert len(late) == 1
            answers = await ask(client, *NUMBERS)
            assert len(late) == 1
            assert [answer["from"] for answer in answers] == ["two"] * len(NUMBERS)
            await client.close()

        run(look())

    @pytest.mark.usefixtures("quick_probes")
    def test_goes_to_the_other_process_as_soon_as_one_hangs(self, fakes, client_of):
        hung = fakes[0].delays(3)
        fakes[0].is_late = lambda: True

        async def look() -> None:
            client = client_of()
            answers = await ask(client, *NUMBERS, *NUMBERS)
            assert [answer["from"] for answer in answers] == ["two"] * 2 * len(NUMBERS)
            assert len(hung) == 1
            assert not {state.url: state for state in client.states()}[fakes[0].url].is_up
            await client.close()

        run(look())

    @pytest.mark.usefixtures("quick_probes")
    def test_waits_for_a_process_that_is_only_slow(self, fakes, client_of):
        """Every other probe is late."""
        one = fakes[0]
        slow = one.delays(3)
        one.is_late = lambda: one.probes % 2 == 1

        async def look() -> None:
            client = client_of(one)
            (answer,) = await ask(client, 1)
            assert answer["from"] == "one"
            await client.close()

        run(look())
        assert len(slow) == 1
        assert one.probes >= 4

    @pytest.mark.usefixtures("quick_probes")
    def test_waits_for_a_process_that_refuses_connections(self, fakes, client_of):
        """It has begun to shut down, and finishes its requests first."""
        one = fakes[0]
        asked = one.delays(1.5)

        async def look() -> None:
            client = client_of(one)
            asking = asyncio.ensure_future(ask(client, 1))
            await eventually_async(lambda: asked)
            one.refuse_connections()
            (answer,) = await asking
            assert answer["from"] == "one"
            await client.close()

        run(look())
        assert len(asked) == 1

    @pytest.mark.usefixtures("quick_probes")
    def test_many_that_wait_share_the_probes(self, fakes, client_of):
        one = fakes[0]
        one.delays(1)

        async def look() -> None:
            client = client_of(one)
            await asyncio.gather(*(ask(client, number) for number in range(60)))
            await client.close()

        run(look())
        assert one.probes <= 120  # not ten for each of them; slow answers are probed for again

    def test_that_breaks_every_process_is_tried_three_times(self, fakes, client_of):
        def kills(body: Any) -> bool:
            return any(item["input"]["text"] == "1" for item in body["items"])

        for fake in fakes:
            fake.crashes = kills

        async def look() -> None:
            client = client_of()
            (problem,) = await ask(client, 1)
            assert (problem.status, problem.code) == (503, "inference_unavailable")
            assert sum(len(fake.asked) for fake in fakes) == 3
            (answer,) = await ask(client, 2)  # others go on
            assert answer["text"] == "2"
            await client.close()

        run(look())

    def test_the_last_try_is_made_alone(self, fakes, client_of):
        """What shares a process with a request that ends it survives."""
        one = fakes[0]
        running: list[str] = []
        most = 0

        async def predict(request: Request) -> Response:
            nonlocal most
            body = await request.json()
            (text,) = (item["input"]["text"] for item in body["items"])
            tries[text] += 1
            if tries[text] < 3:
                return broken()
            running.append(text)
            most = max(most, len(running))
            await asyncio.sleep(0.05)
            running.remove(text)
            return JSONResponse({"data": [{"text": text}]})

        tries: Counter[str] = Counter()
        one.answer = predict

        async def look() -> None:
            client = client_of(one)
            answers = await asyncio.gather(*(ask(client, number) for number in range(6)))
            assert [answer["text"] for (answer,) in answers] == [str(n) for n in range(6)]
            await client.close()

        run(look())
        assert set(tries.values()) == {3}
        assert most == 1

    def test_a_long_last_try_holds_up_no_other_beyond_its_deadline(self, fakes, client_of):
        one = fakes[0]
        hanging, tries = asyncio.Event(), Counter[str]()

        async def predict(request: Request) -> Response:
            (item,) = (await request.json())["items"]
            text = item["input"]["text"]
            tries[text] += 1
            if tries[text] < 3:
                return broken()
            hanging.set()
            await asyncio.sleep(2)
            return JSONResponse({"data": [{"text": text}]})

        one.answer = predict

        async def look() -> None:
            client = client_of(one)
            long = asyncio.ensure_future(ask(client, 1))
            await eventually_async(hanging.is_set)
            (problem,) = await ask(client, 2, seconds=1)
            assert problem.code == "inference_unavailable"
            assert not long.done()
            assert tries["2"] == 2
            (answer,) = await long
            assert answer["text"] == "1"
            await client.close()

        run(look())


class TestRestart:
    def test_is_waited_for(self, fakes, client_of):
        one = fakes[0]

        async def look() -> None:
            client = client_of(one)
            with serving(one.app, uds=one.path):
                await ask(client, 1)
            waiting = [asyncio.ensure_future(ask(client, number)) for number in range(5)]
            await eventually_async(lambda: client.states()[0].failures > 2)
            assert not any(each.done() for each in waiting)
            with serving(one.app, uds=one.path):
                answers = [answer for (answer,) in await asyncio.gather(*waiting)]
                assert [answer["text"] for answer in answers] == ["0", "1", "2", "3", "4"]
                await client.close()

        run(look())

    def test_is_waited_for_until_the_deadline(self, fakes, client_of):
        one = fakes[0]

        async def look() -> None:
            client = client_of(one)
            with serving(one.app, uds=one.path):
                await ask(client, 1)
            started = asyncio.get_running_loop().time()
            (problem,) = await ask(client, 1, seconds=0.6)
            assert problem.code == "inference_unavailable"
            assert asyncio.get_running_loop().time() - started >= 0.6
            await client.close()

        run(look())

    def test_is_waited_for_by_few(self, fakes, client_of, monkeypatch):
        one = fakes[0]
        monkeypatch.setattr(client_module, "_MOST_WAITING", 2)

        async def look() -> None:
            client = client_of(one)
            with serving(one.app, uds=one.path):
                await ask(client, 1)
            waiting = [asyncio.ensure_future(ask(client, 1)) for _ in range(5)]
            await eventually_async(lambda: sum(each.done() for each in waiting) == 3)
            refused = [each.result()[0] for each in waiting if each.done()]
            assert {problem.code for problem in refused} == {"inference_unavailable"}
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            await client.close()

        run(look())

    def test_of_a_process_that_never_answered_is_not_waited_for(self, fakes, client_of):
        async def look() -> None:
            client = client_of(fakes[0])
            async with asyncio.timeout(patience(5)):
                (problem,) = await ask(client, 1, seconds=300)
            assert problem.code == "inference_unavailable"
            await client.close()

        run(look())

    def test_a_process_that_comes_back_gets_its_deltas_again(self, fakes, client_of):
        one, two = fakes

        async def look() -> None:
            client = client_of()
            with serving(two.app, uds=two.path):
                assert {a["from"] for a in await ask(client, *NUMBERS)} == {"two"}
                with serving(one.app, uds=one.path):
                    await eventually_async(lambda: client.states()[0].is_up)
                    assert {a["from"] for a in await ask(client, *NUMBERS)} == {"one", "two"}
                await client.close()

        run(look())
