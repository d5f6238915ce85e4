"""Identifiers: a prefix that names the kind, and random characters nobody can guess."""

from __future__ import annotations

import secrets

_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
_LENGTH = 24  # 124 random bits


def new_identifier(prefix: str) -> str:
    """Draw an identifier, for example ``job_4fzzzxjylrx0cv2k81mmp3aq``.

    Args:
        prefix: ``job``, ``ds``, ``ten`` or ``key``.
    """
    return f"{prefix}_" + "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))
