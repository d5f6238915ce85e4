"""Exact match and F1 of answers, as SQuAD's evaluation script defines them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(answer: str) -> str:
    """Return an answer in lower case, without punctuation, articles and repeated white space."""
    plain = answer.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def exact_match(found: str, wanted: Sequence[str]) -> float:
    """Return 1 if an answer equals one of the wanted ones once normalized, else 0.

    Args:
        found: the answer; empty for none.
        wanted: of the row; empty if there is no answer.
    """
    return float(normalize(found) in {normalize(answer) for answer in _sound(wanted)})


def f1(found: str, wanted: Sequence[str]) -> float:
    """Return the highest F1 of an answer's words against each of the wanted answers'.

    Args:
        found: the answer; empty for none.
        wanted: of the row; empty if there is no answer.
    """
    return max(_f1(normalize(found).split(), normalize(each).split()) for each in _sound(wanted))


def _sound(wanted: Sequence[str]) -> Sequence[str]:
    """Leave out answers of which normalization leaves nothing; without any, no answer is wanted."""
    return [answer for answer in wanted if normalize(answer)] or [""]


def _f1(found: Sequence[str], wanted: Sequence[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    common = (Counter(found) & Counter(wanted)).total()
    return 2 * common / (len(found) + len(wanted))
