"""service.http.shares: no tenant holds more than its share, and shares are returned."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from service.http.shares import Share
from store.errors import ProblemError


@pytest.fixture
def share():
    return Share(2, code="too_many_things", what="things")


class TestShare:
    def test_one_more_is_refused_with_the_limit(self, share):
        with share.hold("ten_a"), share.hold("ten_a"):
            with pytest.raises(ProblemError, match="2 open things") as raised, share.hold("ten_a"):
                raise AssertionError("it was held")
            assert (raised.value.status, raised.value.code) == (429, "too_many_things")

    def test_is_every_tenants_own(self, share):
        with share.hold("ten_a"), share.hold("ten_a"), share.hold("ten_b"):
            pass

    def test_a_released_share_may_be_held_again(self, share):
        for _ in range(5):
            with share.hold("ten_a"), share.hold("ten_a"):
                pass

    def test_is_given_back_after_an_error_and_not_by_a_refusal(self, share):
        with pytest.raises(KeyError), share.hold("ten_a"):
            raise KeyError
        with ExitStack() as stack:
            for _ in range(2):
                stack.enter_context(share.hold("ten_a"))
            for _ in range(3):
                with pytest.raises(ProblemError), share.hold("ten_a"):
                    raise AssertionError("it was held")

    def test_tenants_that_hold_nothing_are_forgotten(self, share):
        for number in range(100):
            with share.hold(f"ten_{number}"):
                pass
        assert not share._held
