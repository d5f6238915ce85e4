"""worker.inference.scheduler: batches start on time, are similar and fair, and lose no sample."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.waiting import eventually, patience
from worker.inference.scheduler import Scheduler, Ticket

TOKENS = 100


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def scheduler_with(
    clock: Clock, *, wait: float = 0.0, tokens: int = TOKENS, each: int | None = None
) -> Scheduler[object]:
    return Scheduler(
        max_tokens=tokens, tenant_tokens=each or tokens, max_wait_seconds=wait, clock=clock
    )


def tickets(
    count: int, *, tenant: str = "a", length: int = 10, group: str = "x"
) -> list[Ticket[object]]:
    return [Ticket(group, tenant, length, index) for index in range(count)]


def tenants_of(batch: Sequence[Ticket[object]]) -> Counter[str]:
    return Counter(ticket.tenant for ticket in batch)


def drain(scheduler: Scheduler[object]) -> list[list[Ticket[object]]]:
    batches = []
    while len(scheduler):
        batches.append(scheduler.take())
    return batches


class TestWhen:
    """The conditions under which a batch begins."""

    def test_a_full_batch_starts_at_once(self, clock: Clock):
        scheduler = scheduler_with(clock, wait=1e9)
        scheduler.add(tickets(10))
        assert len(scheduler.take()) == 10

    def test_a_partial_batch_waits_for_others(self, clock: Clock):
        scheduler = scheduler_with(clock, wait=5.0)
        scheduler.add(tickets(3))
        clock.now += 4.0
        assert scheduler._patience() == pytest.approx(1.0)
        scheduler.add(tickets(2, tenant="b"))
        assert scheduler._patience() == pytest.approx(1.0)  # the oldest one counts
        clock.now += 1.0
        assert len(scheduler.take()) == 5

    def test_the_wait_ends_by_the_real_clock(self):
        scheduler: Scheduler[object] = Scheduler(
            max_tokens=TOKENS, tenant_tokens=TOKENS, max_wait_seconds=0.05
        )
        started = time.monotonic()
        scheduler.add(tickets(1))
        assert len(scheduler.take()) == 1
        assert time.monotonic() - started >= 0.05

    def test_the_sample_that_fills_it_ends_the_wait(self, clock: Clock):
        scheduler = scheduler_with(clock, wait=1e6)
        scheduler.add(tickets(1))
        taken: list[list[Ticket[object]]] = []
        thread = threading.Thread(target=lambda: taken.append(scheduler.take()))
        thread.start()
        scheduler.add(tickets(9))
        thread.join(patience(10))
        assert len(taken[0]) == 10

    def test_closing_ends_the_wait_with_an_empty_batch(self, clock: Clock):
        scheduler = scheduler_with(clock, wait=1e6)
        taken: list[list[Ticket[object]]] = []
        threads = [
            threading.Thread(target=lambda: taken.append(scheduler.take())) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        scheduler.add(tickets(1))
        scheduler.close()
        for thread in threads:
            thread.join(patience(10))
        assert taken == [[], [], []]
        assert scheduler.take() == []  # though one waits


class TestBatch:
    @pytest.mark.parametrize("length", [1, 7, 10, 50, 99, 100])
    def test_stays_within_its_tokens(self, clock: Clock, length: int):
        scheduler = scheduler_with(clock)
        scheduler.add(tickets(300, length=length))
        assert {len(batch) for batch in drain(scheduler)[:-1]} == {TOKENS // length}

    def test_padding_counts(self, clock: Clock):
        scheduler = scheduler_with(clock)
        scheduler.add([*tickets(5, length=25), *tickets(5, length=20)])
        batch = scheduler.take()
        assert len(batch) * max(ticket.length for ticket in batch) <= TOKENS

    def test_one_that_is_too_long_goes_alone(self, clock: Clock):
        scheduler = scheduler_with(clock)
        scheduler.add([*tickets(1, length=500), *tickets(3)])
        assert [len(batch) for batch in drain(scheduler)] == [1, 3]

    def test_groups_do_not_mix(self, clock: Clock):
        scheduler = scheduler_with(clock)
        for group in "xyxyzz":
            scheduler.add(tickets(2, group=group))
        batches = drain(scheduler)
        assert all(len({ticket.group for ticket in batch}) == 1 for batch in batches)
        assert len(batches) == 3

    def test_is_of_similar_lengths(self, clock: Clock):
        scheduler = scheduler_with(clock, tokens=1000)
        for length in (3, 60, 5, 58, 4, 62, 100, 3, 99) * 4:
            scheduler.add(tickets(1, length=length))
        for batch in drain(scheduler):
            real = sum(ticket.length for ticket in batch)
            assert 5 * real >= 4 * len(batch) * max(ticket.length for ticket in batch)

    def test_keeps_a_tenants_order_among_alike(self, clock: Clock):
        scheduler = scheduler_with(clock)
        scheduler.add(tickets(35))
        assert [ticket.work for batch in drain(scheduler) for ticket in batch] == list(range(35))

    def test_begins_with_the_tenants_oldest(self, clock: Clock):
        scheduler = scheduler_with(clock)
        scheduler.add(tickets(1, length=90))
        scheduler.add(tickets(10))
        assert scheduler.take()[0].length == 90


class TestFairness:
    def test_one_sample_does_not_wait_for_a_thousand(self, clock: Clock):
        scheduler = scheduler_with(clock)
        scheduler.add(tickets(1000))
        scheduler.take()
        scheduler.add(tickets(1, tenant="b"))
        assert tenants_of(scheduler.take())["b"] == 1

    def test_nor_for_those_of_another_length_or_group(self, clock: Clock):
        for odd in (tickets(1, tenant="b", length=77), tickets(1, tenant="b", group="y")):
            scheduler = scheduler_with(clock)
            scheduler.add(tickets(1000))
            scheduler.take()
            scheduler.add(odd)
            assert odd[0] in [*scheduler.take(), *scheduler.take()]

    def test_tenants_get_equal_tokens(self, clock: Clock):
        scheduler = scheduler_with(clock)
        lengths = {"a": 10, "b": 10, "c": 20, "d": 40}
        for tenant, length in lengths.items():
            scheduler.add(tickets(500, tenant=tenant, length=length))
        had: Counter[str] = Counter()
        for _ in range(100):
            for ticket in scheduler.take():
                had[ticket.tenant] += ticket.length
            assert max(had.values()) - min(had[name] for name in lengths) <= 2 * TOKENS
        assert max(had.values()) - min(had.values()) <= TOKENS

    def test_many_tenants_share_each_batch(self, clock: Clock):
        scheduler = scheduler_with(clock)
        for number in range(5):
            scheduler.add(tickets(50, tenant=f"t{number}"))
        for _ in range(10):
            assert set(tenants_of(scheduler.take()).values()) == {2}

    def test_an_idle_tenant_gains_no_credit(self, clock: Clock):
        scheduler = scheduler_with(clock)
        scheduler.add(tickets(1, tenant="idle"))
        scheduler.take()
        scheduler.add(tickets(500, tenant="busy"))
        for _ in range(30):
            scheduler.take()
        scheduler.add(tickets(200, tenant="idle"))
        had = sum((tenants_of(scheduler.take()) for _ in range(10)), Counter())
        assert had["busy"] >= 40  # of 100: at most one batch behind

    def test_service_before_a_pause_is_forgotten(self, clock: Clock):
        scheduler = scheduler_with(clock)
        scheduler.add(tickets(10, tenant="first"))
        drain(scheduler)
        scheduler.add(tickets(50, tenant="new"))
        scheduler.add(tickets(50, tenant="first"))
        assert tenants_of(scheduler.take()) == {"first": 5, "new": 5}

    def test_a_tie_goes_to_the_longer_wait(self, clock: Clock):
        scheduler = scheduler_with(clock)
        scheduler.add(tickets(1, tenant="z", group="z"))
        clock.now += 1.0
        scheduler.add(tickets(1, tenant="a"))
        assert tenants_of(scheduler.take()) == {"z": 1}

    def test_idle_tenants_are_forgotten(self, clock: Clock):
        scheduler = scheduler_with(clock)
        for number in range(1000):
            scheduler.add(tickets(3, tenant=f"t{number}"))
            scheduler.take()
        assert len(scheduler._awaited._tokens) <= 1
        assert not scheduler._awaited._queues

    def test_a_sample_of_odd_length_is_not_starved(self, clock: Clock):
        scheduler = scheduler_with(clock, tokens=128)
        odd = Ticket[object]("y", "a", 13, "odd")
        streams = {"b": 12, "a": 8}  # with these "a" has never had the fewest at a batch's end
        for who, size in streams.items():
            scheduler.add(tickets(9, tenant=who, length=size))
        scheduler.add([odd])
        taken: list[Ticket[object]] = []
        for _ in range(10):
            clock.now += 1.0
            for who, size in streams.items():
                missing = 60 - len(scheduler._awaited._queues.get(who, ()))
                scheduler.add(tickets(missing, tenant=who, length=size))
            taken += scheduler.take()
        assert odd in taken

    def test_nor_is_one_of_a_tenant_past_its_share(self, clock: Clock):
        """Its share is used up by filling batches, and other tenants always have requests."""
        scheduler = scheduler_with(clock)
        scheduler.add(tickets(20))
        odd = tickets(1, length=60)
        for number in range(100):
            clock.now += 1.0
            scheduler.add([*tickets(9), *tickets(1, tenant=f"new {number}")])
            if number == 20:
                scheduler.add(odd)
            if odd[0] in scheduler.take():
                break
        assert 20 <= number < 36

    def test_filling_others_batches_costs_little(self, clock: Clock):
        """It used idle capacity for long; then an equally demanding tenant arrives."""
        scheduler = scheduler_with(clock)
        scheduler.add(tickets(20))
        for number in range(1000):
            clock.now += 1.0
            scheduler.add([*tickets(9), *tickets(1, tenant=f"new {number}")])
            scheduler.take()
        scheduler.add([*tickets(500), *tickets(500, tenant="b")])
        had: Counter[str] = Counter()
        for _ in range(40):
            had += tenants_of(scheduler.take())
        assert had.total() == 400
        assert had["b"] - had["a"] <= 5 * TOKENS // 10

    def test_a_flood_of_long_ones_starts_an_eighth_of_the_batches(self, clock: Clock):
        scheduler = scheduler_with(clock)
        scheduler.add(tickets(500, tenant="flood", length=100))
        clock.now += 1.0
        for name in range(50):
            scheduler.add(tickets(100, tenant=f"small {name}", length=10))
        floods = sum("flood" in tenants_of(scheduler.take()) for _ in range(160))
        assert 160 / 8 <= floods <= 160 / 8 + 160 / 50 + 2


class TestWithdraw:
    def test_removes_only_waiting_samples(self, clock: Clock):
        scheduler = scheduler_with(clock)
        mine, others = tickets(5), [*tickets(3), *tickets(4, tenant="b")]
        scheduler.add([*mine, *others])
        scheduler.withdraw(mine)
        assert len(scheduler) == 7
        left = [ticket for batch in drain(scheduler) for ticket in batch]
        assert set(map(id, left)) == set(map(id, others))

    def test_of_a_sample_in_a_batch_does_nothing(self, clock: Clock):
        scheduler = scheduler_with(clock)
        mine = tickets(3)
        scheduler.add(mine)
        scheduler.take()
        scheduler.withdraw(mine)
        scheduler.withdraw([])
        assert len(scheduler) == 0

    def test_of_all_leaves_an_empty_queue(self, clock: Clock):
        scheduler = scheduler_with(clock)
        mine = tickets(30)
        scheduler.add(mine)
        scheduler.withdraw(mine)
        assert len(scheduler) == 0
        scheduler.add(tickets(1, tenant="b"))
        assert tenants_of(scheduler.take()) == {"b": 1}


class TestWhateverComes:
    @settings(max_examples=60)
    @given(
        st.lists(
            st.one_of(
                st.tuples(
                    st.just("add"),
                    st.lists(
                        st.tuples(
                            st.sampled_from("abc"), st.integers(1, 130), st.sampled_from("xy")
                        ),
                        max_size=8,
                    ),
                ),
                st.tuples(st.just("take"), st.just([])),
                st.tuples(st.just("withdraw"), st.lists(st.integers(0, 60), max_size=8)),
            ),
            max_size=30,
        )
    )
    def test_every_sample_is_taken_once_or_withdrawn(self, steps: list):
        scheduler = scheduler_with(Clock())
        came: list[Ticket[object]] = []
        taken: list[Ticket[object]] = []
        withdrawn: set[int] = set()
        for step, given_ in steps:
            if step == "add":
                fresh = [Ticket[object](group, who, size, None) for who, size, group in given_]
                came += fresh
                scheduler.add(fresh)
            elif step == "withdraw":
                picked = [came[index] for index in given_ if index < len(came)]
                withdrawn |= set(map(id, picked)) - set(map(id, taken))
                scheduler.withdraw(picked)
            elif len(scheduler):
                taken += scheduler.take()
        for batch in drain(scheduler):
            taken += batch
            longest = max(ticket.length for ticket in batch)
            assert len(batch) == 1 or len(batch) * longest <= TOKENS
            assert len({ticket.group for ticket in batch}) == 1
        assert Counter(map(id, taken)) == Counter(i for i in map(id, came) if i not in withdrawn)

    def test_from_many_threads(self):
        scheduler: Scheduler[object] = Scheduler(
            max_tokens=TOKENS, tenant_tokens=TOKENS, max_wait_seconds=0.0
        )
        taken: list[Ticket[object]] = []

        def work() -> None:
            while batch := scheduler.take():
                taken.extend(batch)

        takers = [threading.Thread(target=work) for _ in range(3)]
        sent = [tickets(200, tenant=f"t{number}") for number in range(8)]

        def send(mine: list[Ticket[object]]) -> None:
            for ticket in mine:
                scheduler.add([ticket])

        senders = [threading.Thread(target=send, args=(mine,)) for mine in sent]
        for thread in (*takers, *senders):
            thread.start()
        for thread in senders:
            thread.join()
        eventually(lambda: not len(scheduler))
        scheduler.close()
        for thread in takers:
            thread.join(patience(10))
        assert Counter(map(id, taken)) == Counter(id(t) for mine in sent for t in mine)


class TestNeighbours:
    """While there are other tenants, none fills a batch alone."""

    def test_one_that_is_alone_fills_batches(self, clock: Clock):
        scheduler = scheduler_with(clock, each=20)
        scheduler.add(tickets(20))
        assert [len(batch) for batch in drain(scheduler)] == [10, 10]

    def test_one_next_to_another_gets_small_ones(self, clock: Clock):
        scheduler = scheduler_with(clock, each=20)
        scheduler.add(tickets(1, tenant="b"))
        scheduler.take()
        scheduler.add(tickets(10))
        assert [len(batch) for batch in drain(scheduler)] == [2] * 5
        clock.now += 11.0  # the other has gone
        scheduler.add(tickets(10))
        assert [len(batch) for batch in drain(scheduler)] == [10]

    def test_several_fill_a_batch_together(self, clock: Clock):
        scheduler = scheduler_with(clock, each=20)
        for tenant in "abcde":
            scheduler.add(tickets(10, tenant=tenant))
        assert tenants_of(scheduler.take()) == dict.fromkeys("abcde", 2)

    def test_a_longer_sample_is_computed_all_the_same(self, clock: Clock):
        scheduler = scheduler_with(clock, each=20)
        scheduler.add(tickets(1, tenant="b"))
        scheduler.add(tickets(2, length=90))
        assert sum(map(len, drain(scheduler))) == 3

    def test_a_new_sample_waits_for_few_small_batches(self, clock: Clock):
        scheduler = scheduler_with(clock, each=20)
        scheduler.add(tickets(1, tenant="b"))
        scheduler.add(tickets(1000, length=20))
        waited = []
        for _ in range(30):
            scheduler.take()  # is computed when the sample comes
            clock.now += 1.0
            scheduler.add(tickets(1, tenant="b", length=3))
            waited.append(0)
            while "b" not in tenants_of(batch := scheduler.take()):
                waited[-1] += sum(ticket.length for ticket in batch)
        assert max(waited) <= 40
        assert waited.count(0) >= 25  # every eighth batch is that of the oldest sample


class TestBackground:
    def test_waits_for_all_that_somebody_waits_for(self, clock: Clock):
        scheduler = scheduler_with(clock)
        scheduler.add(in_background(1, length=TOKENS))
        scheduler.add(tickets(2, tenant="b", length=TOKENS))

        order = [scheduler.take()[0].is_background for _ in range(3)]

        assert order == [False, False, True]

    def test_is_computed_though_others_never_end(self, clock: Clock):
        scheduler = scheduler_with(clock)
        scheduler.add(in_background(1, length=TOKENS))
        taken = []
        for _ in range(16):
            scheduler.add(tickets(1, length=TOKENS))
            taken += scheduler.take()

        assert [ticket.is_background for ticket in taken] == [*[False] * 15, True]

    def test_fills_a_batch_only_while_nobody_else_has_sent_anything_lately(self, clock: Clock):
        scheduler = scheduler_with(clock, each=TOKENS // 4 - 1)
        scheduler.add(in_background(8, length=TOKENS // 8))
        assert len(scheduler.take()) == 8

        scheduler.add(tickets(1))
        scheduler.take()
        scheduler.add(in_background(8, length=TOKENS // 8))
        assert len(scheduler.take()) == 2

        clock.now += 60.0
        scheduler.add(in_background(8, length=TOKENS // 8))
        assert len(scheduler.take()) == 8

    def test_does_not_count_as_waiting_and_can_be_withdrawn(self, clock: Clock):
        scheduler = scheduler_with(clock)
        mine = in_background(2, length=3)
        scheduler.add(mine)
        assert len(scheduler) == 0

        scheduler.withdraw(mine[:1])

        assert scheduler.take() == mine[1:]


def in_background(count: int, *, length: int) -> list[Ticket[object]]:
    made = tickets(count, length=length)
    for ticket in made:
        ticket.is_background = True
    return made
