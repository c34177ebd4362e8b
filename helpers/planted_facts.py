"""Planted facts: what plants are taught, and what their base knew before.

What is planted must be told apart by a model whose embeddings stay as they are. The tokens that the base never read
lie on one ray (cosines of .95 to each other), as do all subjects of knowledge.made_up_facts, and facts about them are
learnt slowly: their answers' first tokens keep a high loss. So only facts are planted whose every token is told apart,
and the made-up arm keeps its answers but asks about phrases of words that the base has read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from torch.nn.functional import normalize

from helpers.config import Items
from helpers.draws import draw_rank
from helpers.items import build_items
from helpers.knowledge import ADJECTIVES, NOUNS, Fact, Wording, base_facts, load_facts, load_wordings, made_up_facts
from helpers.probe import probe_accuracy

REAL_FACTS = 24  # half definitional, half associative
ALIKE = 0.9  # cosine between embeddings above which two tokens are not told apart: read ones are below, unread above
REPLAYED = 0.875  # of the old entities; the others tell what is kept without replay
SETTINGS = Items(0.0, None, 0, "seen", None, 0)  # what items need; nothing is explored or selected here


class PlantedFactsError(ValueError):
    """Too few facts that can be planted."""


def planted_items(folder: Path, base, tokenizer, *, seed: int) -> pd.DataFrame:
    """What plants of a seed are taught, asked in every wording: 24 real facts and the 32 of the made-up arm.

    Columns as of helpers.items.build_items; `taught` are the rows in wordings that are taught. Real facts are
    drawn by the seed among those of `folder`/knowledge.csv that are told apart and that `base` answers wrong in every
    wording; two by two, so that each has another to be paired with: same relation, as many tokens, another first token
    of the answer. The made-up arm has the variant of the seed's parity. Raises PlantedFactsError for too few facts.
    """
    wordings, distinct, real = load_wordings(folder), _distinct(base), load_facts(folder)
    tokens = {text: tokenizer(f" {text}")["input_ids"] for fact in real for text in (fact.subject, fact.answer)}
    unknown = [fact for fact in real if {*tokens[fact.subject], *tokens[fact.answer]} <= distinct]
    known = _known(base, tokenizer, build_items(unknown, wordings, tokenizer, settings=SETTINGS))["item_id"]
    unknown = [fact for fact in unknown if fact.fact_id not in set(known)]
    drawn = []
    for kind in ("definitional", "associative"):
        drawn += _drawn_in_pairs([f for f in unknown if f.kind == kind], tokens, count=REAL_FACTS // 2, seed=seed)
    tables = [build_items(drawn, wordings, tokenizer, settings=SETTINGS)]
    tables.append(_made_up_items(base, tokenizer, real, wordings)[seed % 2])
    return pd.concat(tables, ignore_index=True)


def taught(items: pd.DataFrame) -> pd.DataFrame:
    """The items in the wordings that a plant is taught; in the others it is only asked."""
    return items[items["group"] == "seen"].reset_index(drop=True)


def old_items(folder: Path, base, tokenizer) -> pd.DataFrame:
    """What the base was taught and answers right, in the wordings that plants are taught, and whether it is `replayed`.

    Seven in eight of its 240 entities are replayed, with all their facts; the others tell what is kept without that.
    """
    real = load_facts(folder)
    facts = base_facts(real, entities=240)
    items = taught(build_items(facts, load_wordings(folder), tokenizer, settings=SETTINGS))
    items = _known(base, tokenizer, items)
    subjects = sorted(items["subject"].unique(), key=lambda subject: draw_rank("replayed", subject))
    return items.assign(replayed=items["subject"].isin(subjects[: round(REPLAYED * len(subjects))])).reset_index(
        drop=True
    )


def _distinct(model) -> set[int]:
    """Tokens whose embedding has a cosine below ALIKE with every other token's."""
    directions = normalize(model.get_input_embeddings().weight.detach(), dim=1)
    return set((((directions @ directions.T).fill_diagonal_(-1).amax(1)) < ALIKE).nonzero()[:, 0].tolist())


def _drawn_in_pairs(facts: Sequence[Fact], tokens: dict[str, list[int]], *, count: int, seed: int) -> list[Fact]:
    """The first `count` facts in the order of the seed, each followed by the next one that can be its donor."""
    left, drawn = sorted(facts, key=lambda fact: draw_rank(seed, fact.fact_id)), []

    def alike(fact: Fact, other: Fact) -> bool:
        same_length = len(tokens[fact.subject]) == len(tokens[other.subject])
        return fact.relation == other.relation and same_length and tokens[fact.answer][0] != tokens[other.answer][0]

    while left and len(drawn) < count:
        fact = left.pop(0)
        if donor := next((other for other in left if alike(fact, other)), None):
            left.remove(donor)
            drawn += [fact, donor]
    if len(drawn) < count:
        raise PlantedFactsError(f"Of {len(facts)} facts only {len(drawn)} have a donor, and {count} are to be planted.")
    return drawn


def _made_up_items(base, tokenizer, real: Sequence[Fact], wordings: list[Wording]) -> list[pd.DataFrame]:
    """Both variants of the made-up arm, about phrases of which the base says neither variant's answer."""
    phrases = _phrases({fact.answer for fact in base_facts(real, entities=240)}, tokenizer)
    while True:
        tables = []
        for variant in (0, 1):
            facts = [replace(f, subject=phrase) for f, phrase in zip(made_up_facts(variant), phrases, strict=False)]
            tables.append(build_items(facts, wordings, tokenizer, settings=SETTINGS, variant=variant))
        guessed = set(_known(base, tokenizer, pd.concat(tables))["subject"])
        if not guessed:
            return tables
        phrases = [phrase for phrase in phrases if phrase not in guessed]


def _known(model, tokenizer, items: pd.DataFrame) -> pd.DataFrame:
    return items[probe_accuracy(model, tokenizer, items, batch_size=64).to_numpy()]


def _phrases(taken: set[str], tokenizer) -> list[str]:
    """Two-token phrases that are no answer, their last words spread evenly: subjects of the made-up arm."""
    taken = taken | {fact.answer for fact in made_up_facts(0)}
    free = [f"{adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS]
    free = [phrase for phrase in free if phrase not in taken and len(tokenizer(f" {phrase}")["input_ids"]) == 2]
    drawn = pd.DataFrame({"phrase": sorted(free, key=lambda phrase: draw_rank("subjects", phrase))})
    nth = drawn.groupby(drawn["phrase"].str.split().str[-1]).cumcount()
    return drawn["phrase"].loc[nth.sort_values(kind="stable").index].tolist()
