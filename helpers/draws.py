"""Draws: random choices that depend on a seed and on names alone, never on the order of what there is to draw from."""

from __future__ import annotations

import hashlib


def draw_rank(*names: object) -> str:
    """A random rank that only the names decide, a seed among them: of candidates the one with the least is drawn."""
    return hashlib.sha256("|".join(map(str, names)).encode()).hexdigest()
