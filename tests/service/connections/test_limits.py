"""service.connections.limits: how many connections there are, and which make room."""

from __future__ import annotations

import asyncio
import resource

import pytest

from service.connections.limits import Connections, within_descriptors


class FakeConnection:
    def __init__(self, caller: str = "a", *, pace: float | None = None) -> None:
        self.caller = caller
        self.is_open = True
        self.checks = 0
        self._pace = pace

    def pace(self, _now: float) -> float | None:
        return self._pace

    def check(self, _now: float) -> None:
        self.checks += 1

    def abort(self) -> None:
        self.is_open = False


def fill(connections: Connections, *members: FakeConnection, idle: bool) -> list[FakeConnection]:
    for member in members:
        assert connections.admit(member) is None
        if idle:
            connections.set_idle(member)
    return list(members)


def still_open(members):
    return [member.is_open for member in members]


class TestAdmit:
    def test_the_longest_without_a_request_makes_room(self):
        connections = Connections(most=9, most_per_caller=3)
        members = fill(connections, *(FakeConnection() for _ in range(3)), idle=True)
        connections.set_busy(members[0])
        fill(connections, FakeConnection(), idle=True)
        assert still_open(members) == [True, False, True]
        connections.set_idle(members[0])  # from now on
        fill(connections, FakeConnection(), idle=True)
        assert still_open(members) == [True, False, False]

    def test_at_an_address_limit_another_address_loses_nothing(self):
        connections = Connections(most=9, most_per_caller=2)
        (other,) = fill(connections, FakeConnection("b"), idle=True)
        members = fill(connections, FakeConnection(), FakeConnection(), idle=True)
        fill(connections, FakeConnection(), idle=True)
        assert other.is_open
        assert still_open(members) == [False, True]

    def test_at_the_limit_of_all_the_longest_of_any_makes_room(self):
        connections = Connections(most=3, most_per_caller=2)
        members = fill(connections, *map(FakeConnection, "abb"), idle=True)
        fill(connections, FakeConnection("c"), idle=True)
        assert still_open(members) == [False, True, True]

    def test_then_the_slowest_that_keeps_the_server_waiting(self):
        connections = Connections(most=9, most_per_caller=3)
        paces = (None, 100.0, 0.5)
        members = fill(connections, *(FakeConnection(pace=pace) for pace in paces), idle=False)
        fill(connections, FakeConnection(), idle=False)
        assert still_open(members) == [True, True, False]

    @pytest.mark.parametrize(
        ("caller", "status", "limit"), [("a", 429, "2 open"), ("c", 503, "3 open")]
    )
    def test_requests_that_are_served_are_never_cut_off(self, caller, status, limit):
        connections = Connections(most=3, most_per_caller=2)
        members = fill(connections, *map(FakeConnection, "aab"), idle=False)
        problem = connections.admit(FakeConnection(caller))
        assert (problem.code, problem.status) == ("too_many_connections", status)
        assert limit in problem.detail
        assert problem.headers["Retry-After"]
        assert all(still_open(members))

    def test_the_end_of_a_connection_is_counted_once(self):
        connections = Connections(most=2, most_per_caller=2)
        first, second = fill(connections, FakeConnection(), FakeConnection(), idle=False)
        for _ in range(3):
            connections.remove(first)
        fill(connections, FakeConnection(), idle=False)
        assert connections.admit(FakeConnection()).status == 429
        assert second.is_open


def test_all_are_checked():
    connections = Connections(most=2, most_per_caller=2)
    members = fill(connections, FakeConnection("a"), FakeConnection("b"), idle=True)
    asyncio.run(connections.check_all())
    assert [member.checks for member in members] == [1, 1]


@pytest.mark.parametrize(
    ("descriptors", "fitting"),
    [(resource.RLIM_INFINITY, 1000), (1400, 1000), (1024, 624), (512, 128), (1, 1)],
)
def test_connections_leave_descriptors_for_the_rest(descriptors, fitting):
    assert within_descriptors(1000, descriptors=descriptors) == fitting
