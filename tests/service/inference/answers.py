"""What a gateway answers to a request for predictions."""

from __future__ import annotations

from typing import Any

TEXT = {"text": "a text"}


def items_of(answer: Any, *, count: int) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert document["object"] == "list"
    items: list[dict[str, Any]] = document["data"]
    assert [item["index"] for item in items] == list(range(count))
    return items
