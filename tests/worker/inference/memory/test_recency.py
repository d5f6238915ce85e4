"""worker.inference.memory.recency: within a budget, and the least recently used goes first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.inference.memory.recency import LeastRecentlyUsed


def nobody(_: object) -> bool:
    return False


def filled(budget: int, **sizes: int) -> LeastRecentlyUsed[str, str]:
    kept: LeastRecentlyUsed[str, str] = LeastRecentlyUsed(budget)
    for key, size in sizes.items():
        kept.put(key, key.upper(), size=size)
    return kept


class TestLeastRecentlyUsed:
    def test_evicts_the_least_recently_used(self):
        kept = filled(4, a=2, b=2, c=2)
        assert kept.use("a") == "A"
        assert kept.shrink(is_used=nobody) == [("b", "B")]
        assert list(kept) == ["c", "a"]
        assert kept.held == 4

    def test_evicts_as_many_as_needed(self):
        kept = filled(5, a=2, b=2, c=2, d=3)
        assert [key for key, _ in kept.shrink(is_used=nobody)] == ["a", "b"]

    def test_leaves_alone_what_is_in_use(self):
        kept = filled(1, a=2, b=2, c=2)
        assert [key for key, _ in kept.shrink(is_used="b".__eq__)] == ["a", "c"]
        assert (len(kept), kept.held) == (1, 2)

    def test_a_key_put_twice_counts_once(self):
        kept = filled(9, a=2, b=2)
        kept.put("a", "new", size=5)
        assert (kept.held, len(kept), kept.use("a")) == (7, 2, "new")
        assert list(kept) == ["b", "a"]

    def test_forgets_evicted_keys(self):
        kept = filled(9, a=2)
        assert kept.pop("a") == "A"
        assert (kept.pop("a"), kept.use("a"), kept.held, len(kept)) == (None, None, 0, 0)

    def test_with_no_budget_keeps_nothing(self):
        kept = filled(0, a=1)
        assert kept.shrink(is_used=nobody) == [("a", "A")]

    @given(
        st.integers(0, 20),
        st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 9)), max_size=40),
        st.sets(st.sampled_from("abcdef")),
    )
    def test_stays_within_its_budget_except_for_keys_in_use(self, budget, puts, used):
        kept: LeastRecentlyUsed[str, int] = LeastRecentlyUsed(budget)
        sizes: dict[str, int] = {}
        for key, size in puts:
            kept.put(key, size, size=size)
            sizes[key] = size
            gone = kept.shrink(is_used=used.__contains__)
            for name, value in gone:
                assert sizes.pop(name) == value
                assert name not in used
            assert kept.held == sum(sizes.values())
            assert set(kept) == set(sizes)
            assert kept.held <= budget or set(kept) <= used
