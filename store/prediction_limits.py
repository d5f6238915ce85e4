"""What a request for predictions may hold: gateway and inference process agree on it."""

from __future__ import annotations

MAX_INPUTS = 256
MAX_SECONDS = 300.0  # until what has no answer is given up
# Tokenising takes a second for a million letters, though all but the first thousand are cut.
MAX_LETTERS = 100_000  # of a text
