"""Random prompts with the roles of the IOI task: the corrupted one has IO's name at S2."""

import numpy as np
from conftest import VOCABULARY

from helpers.pairs import PromptPair

ROLES = ("prefix", "IO", "prefix", "S1", "relation", "S2", "last")


def ioi_pair(name: str, *, seed: int, longer: int = 0) -> PromptPair:
    """Seven tokens, and `longer` more before them."""
    io, s, *rest = np.random.default_rng(seed).choice(VOCABULARY, 6 + longer, replace=False).tolist()
    before, (a, b, c, d) = tuple(rest[4:]), rest[:4]
    clean, corrupted = ((*before, a, io, b, s, c, third, d) for third in (s, io))
    return PromptPair(name, clean, corrupted, (io,), (s,), ("prefix",) * longer + ROLES)


def ioi_pairs(count: int = 5) -> list[PromptPair]:
    """Pairs of two lengths."""
    return [ioi_pair(f"p{seed}", seed=seed, longer=seed % 2) for seed in range(count)]
