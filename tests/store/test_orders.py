"""store.orders: the gateway's orders are read back unchanged, field by field."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hifi.data.formats.limits import MAX_CHARACTERS
from store.orders import MAX_SECONDS, DeltaOrder, PredictionOrder

TEXTS = st.text(max_size=40)
INPUTS = st.one_of(
    st.fixed_dictionaries({"text": TEXTS}, optional={"text_pair": TEXTS}),
    st.fixed_dictionaries({"image": st.just("aGk=")}),
)


def delta(number: int, revision: str | None) -> DeltaOrder:
    return DeltaOrder(
        tenant="ten_1",
        job=f"job_{number}",
        model="all-MiniLM-L6-v2" if revision is None else "owner/name",
        revision=revision,
        sha256=f"{number:064x}",
    )


@given(
    items=st.lists(st.tuples(st.integers(0, 2), INPUTS), min_size=1, max_size=8),
    truncate=st.booleans(),
    seconds=st.floats(0.001, MAX_SECONDS),
)
def test_a_request_for_predictions(items, truncate, seconds):
    deltas = [delta(0, None), delta(1, "a" * 40), delta(2, None)]
    written = PredictionOrder.of_checked(
        deltas, items, truncate=truncate, timeout_seconds=seconds
    ).to_json()
    read = PredictionOrder.model_validate_json(written)
    assert read.orders == deltas
    assert [(item["order"], item["input"]) for item in read.items] == items
    assert (read.truncate, read.timeout_seconds) == (truncate, seconds)


def test_the_part_of_a_request_for_some_of_its_deltas():
    deltas = [delta(number, None) for number in range(3)]
    items = [(number, {"text": str(number)}) for number in (2, 0, 1, 2, 0)]
    whole = PredictionOrder.of_checked(deltas, items, truncate=False, timeout_seconds=7)
    part, places = whole.part([2, 1])
    assert places == [0, 2, 3]
    assert part.orders == [deltas[2], deltas[1]]
    found = [(item["order"], item["input"]["text"]) for item in part.items]
    assert found == [(0, "2"), (1, "1"), (0, "2")]
    read = PredictionOrder.model_validate_json(b"".join(part.json_chunks(seconds=3.5)))
    assert (read.truncate, read.timeout_seconds) == (False, 3.5)
    assert part.timeout_seconds == 7


@pytest.mark.parametrize("revision", [None, "0" * 40])
def test_an_order_for_a_merged_model(revision):
    written = delta(5, revision)
    assert DeltaOrder.model_validate_json(written.to_json()) == written


def test_the_longest_text():
    item = (0, {"text": "a" * MAX_CHARACTERS})
    order = PredictionOrder.of_checked(
        [delta(0, None)], [item], truncate=True, timeout_seconds=MAX_SECONDS
    )
    assert PredictionOrder.model_validate_json(order.to_json()).items[0]["order"] == 0


@given(
    items=st.lists(st.tuples(st.integers(0, 1), INPUTS), min_size=1, max_size=8),
    lengths=st.lists(st.integers(0, MAX_CHARACTERS), max_size=8),
    truncate=st.booleans(),
)
def test_chunks_are_the_request(items, lengths, truncate):
    items += [(0, {"text": "ä" * length}) for length in lengths]
    order = PredictionOrder.of_checked(
        [delta(0, None), delta(1, "a" * 40)], items, truncate=truncate, timeout_seconds=5.0
    )
    chunks = list(order.json_chunks(seconds=2.5))
    written = PredictionOrder.model_validate_json(b"".join(chunks))
    assert written == order.model_copy(update={"timeout_seconds": 2.5})
    one_item = 2 * MAX_CHARACTERS + 100
    assert max(map(len, chunks)) < (64 << 10) + one_item
    assert all(len(chunk) >= 64 << 10 for chunk in chunks[:-1])
