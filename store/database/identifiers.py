"""Identifiers: a prefix for the kind, and random characters that cannot be guessed."""

from __future__ import annotations

import secrets

_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
_LENGTH = 24  # 124 random bits
_PAIRS = tuple(first + second for first in _ALPHABET for second in _ALPHABET)


def new_identifier(prefix: str) -> str:
    """Create a random identifier, for example ``job_4fzzzxjylrx0cv2k81mmp3aq``."""
    number = secrets.randbelow(len(_ALPHABET) ** _LENGTH)  # one call to the system, not 24
    pairs = []
    for _ in range(_LENGTH // 2):
        number, pair = divmod(number, len(_PAIRS))
        pairs.append(_PAIRS[pair])
    return f"{prefix}_{''.join(pairs)}"
