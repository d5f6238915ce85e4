"""A data set that a tiny backbone can learn."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_tasks import BAD, GOOD, WORDS, write_jsonl


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Write train.jsonl (48 rows) and validation.jsonl (12): is there a good word in it?"""
    folder = tmp_path_factory.mktemp("data")
    a, film, very, plot, *_ = WORDS[40:]  # neither good nor bad
    tails = [
        *(f"{a} {film}", f"{a} {very} {{}} {film}", plot),
        *(f"{plot} {film}", f"{a} {plot}", f"{very} {{}} {very} {{}}"),
    ]
    rows = [
        {"text": f"{word} {tail.format(word, word)}", "label": label}
        for tail in tails
        for label, word in enumerate((BAD[0], GOOD[0]))
    ]
    write_jsonl(folder / "train.jsonl", rows * 4)
    write_jsonl(folder / "validation.jsonl", rows)
    return folder
