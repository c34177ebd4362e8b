"""A case whose answer is known by construction: a compiled model, its base, its pairs, and where its facts are."""

from functools import cache

from helpers.compiled import Compiled, compiled_recall
from helpers.methods import Models, Place
from helpers.pairs import PromptPair

LAYERS, LOOKUP, MOVE, FACTS = 4, 1, 3, 6


@cache
def compiled(lookup: int = LOOKUP, move: int = MOVE) -> Compiled:
    """A compiled model of LAYERS blocks and FACTS facts, made once: for tests that leave it as it is."""
    return compiled_recall(layers=LAYERS, lookup=lookup, move=move, facts=FACTS)


def known_case(lookup: int = LOOKUP, move: int = MOVE) -> tuple[Models, tuple[PromptPair, ...], Place]:
    """Models, pairs and the place that a method of storage must put first; one of mediation may name `move` too."""
    case = compiled(lookup, move)
    return case.models, case.pairs, case.truth
