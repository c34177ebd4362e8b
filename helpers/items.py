"""Items: one question with its answer and foil, in one wording; which of them enter an analysis, and how they balance.

An item row is what every later step reads: the probe asks it, pairs are made of it, statistics count it once. Which
items are exploratory is settled here from their ids alone, before any model has been looked at.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from helpers.config import Corpus, Items, Paths
from helpers.corpus import count_phrases, first_facts
from helpers.draws import draw_rank
from helpers.knowledge import Fact, Wording, load_facts, load_wordings, made_up_facts


class ItemError(ValueError):
    """Items that cannot be asked as they stand."""


@dataclass(frozen=True)
class Foil:
    """A wrong answer; `match` says what it shares with the right one, counts how often the corpus says either.

    `match` is type (of answer), relation, or kind, each of the same token length, or "other length".
    """

    text: str
    match: str
    count: int
    answer_count: int


def build_items(
    facts: Sequence[Fact],
    wordings: list[Wording],
    tokenizer,
    *,
    settings: Items,
    variant: int | None = None,
    counts: Mapping[str, int] | None = None,
) -> pd.DataFrame:
    """Every fact in every wording that can be asked, as one row each.

    Columns: item_id, kind, relation, arm, variant, phase (exploratory or confirmatory), wording_id, group, prompt,
    subject, subject_start (characters), answer, answer_type, foil, foil_match, foil_count, answer_count, answer_tokens,
    subject_tokens; of mined facts pmid, sentence, pattern, else null. `counts` is as in `choose_foils`. Raises
    ItemError when there is no fact, or when a fact has no foil whose first token differs from its answer's.
    """
    if not facts:
        raise ItemError("There is no fact to ask about: check corpus.facts_per_relation, or collect more abstracts.")
    phases, foils = _phases(facts, settings), choose_foils(facts, tokenizer, seed=settings.seed, counts=counts)
    rows = []
    for fact in facts:
        foil, evidence = foils[fact.fact_id], fact.evidence
        for wording in wordings:
            if wording.relation == fact.relation and wording.answer_last:
                rows.append(
                    {
                        "item_id": fact.fact_id,
                        "kind": fact.kind,
                        "relation": fact.relation,
                        "arm": fact.arm,
                        "variant": variant,
                        "phase": phases[fact.fact_id],
                        "wording_id": wording.wording_id,
                        "group": wording.group,
                        "prompt": wording.prompt(fact),
                        "subject": fact.subject,
                        "subject_start": wording.subject_start(),
                        "answer": fact.answer,
                        "answer_type": fact.answer_type,
                        "foil": foil.text,
                        "foil_match": foil.match,
                        "foil_count": foil.count,
                        "answer_count": foil.answer_count,
                        "answer_tokens": len(_tokens(tokenizer, fact.answer)),
                        "subject_tokens": len(_tokens(tokenizer, fact.subject)),
                        "pmid": evidence and evidence.pmid,
                        "sentence": evidence and evidence.sentence,
                        "pattern": evidence and evidence.pattern,
                    }
                )
    return pd.DataFrame(rows).astype({"variant": "Int64"} | dict.fromkeys(("pmid", "sentence", "pattern"), "string"))


def collect_items(
    corpus: Corpus, settings: Items, paths: Paths, tokenizer, *, records: pd.DataFrame, mined: Sequence[Fact] | None
) -> pd.DataFrame:
    """The items of a profile: facts `mined` from its records or, where that is None, those of the knowledge base.

    Where the corpus teaches it, both variants of the made-up arm are asked as well. Answers are counted in `records`
    (columns title, abstract).
    """
    known = load_facts(paths.embedded) if mined is None else mined
    arms = [(None, first_facts(known, corpus.facts_per_relation))]
    if corpus.source == "embedded":
        arms += [(variant, made_up_facts(variant)[: corpus.facts_per_relation]) for variant in (0, 1)]
    texts = records["title"].fillna("") + "\n" + records["abstract"]
    counts = count_phrases(texts, {fact.answer for _, facts in arms for fact in facts})
    asked = {"settings": settings, "counts": counts}
    wordings = load_wordings(paths.embedded)
    tables = [build_items(facts, wordings, tokenizer, variant=variant, **asked) for variant, facts in arms]
    return pd.concat(tables, ignore_index=True)


def taught_items(items: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """What a model of this seed was taught: real items, and the made-up arm's variant of the seed's parity."""
    return items[items["variant"].isna() | (items["variant"] == seed % 2)].reset_index(drop=True)


def watched_items(items: pd.DataFrame) -> pd.DataFrame:
    """What training watches: each fact in one wording of every group; only the development wording may stop it."""
    return items[items["wording_id"].str.endswith("-0")].reset_index(drop=True)


def choose_foils(
    facts: Sequence[Fact], tokenizer, *, seed: int, counts: Mapping[str, int] | None = None
) -> dict[str, Foil]:
    """A wrong answer for every fact: the true answer of another fact of its kind, as long in tokens and as frequent.

    Facts of the same answer type are preferred, then of the same relation, then of the same kind; where no answer of
    the kind is as long, the foil has the nearest length, and `match` says so. Among these it is the one nearest in the
    logarithm of its count; between equals, chance decides. `counts` says how often the corpus says an answer; without
    it, how many facts have it is counted. Its first token always differs from the right answer's. Returns foils by fact
    id; none depends on the order of the facts.
    """
    counts = Counter(fact.answer for fact in facts) if counts is None else counts
    tokens = {fact.answer: _tokens(tokenizer, fact.answer) for fact in facts}
    pools: dict[tuple, dict[int, set[str]]] = {}
    for fact in facts:
        for _, key in _tiers(fact, len(tokens[fact.answer])):
            pools.setdefault(key, {}).setdefault(counts.get(fact.answer, 0), set()).add(fact.answer)
    ordered = {key: {count: sorted(pool) for count, pool in by_count.items()} for key, by_count in pools.items()}
    lengths = sorted({len(ids) for ids in tokens.values()})
    foils = {}
    for fact in facts:
        right, count, draw = tokens[fact.answer], counts.get(fact.answer, 0), int(draw_rank(seed, fact.fact_id), 16)
        others = sorted(lengths, key=lambda length: abs(length - len(right)))
        tiers = _tiers(fact, len(right)) + [("other length", ("kind", fact.kind, length)) for length in others]
        found = (
            Foil(text, match, nearby, count)
            for match, key in tiers
            for nearby, text in _nearest(ordered.get(key, {}), count, draw)
            if tokens[text][0] != right[0]
        )
        foils[fact.fact_id] = next(found, None)
        if foils[fact.fact_id] is None:
            raise ItemError(
                f"{fact.fact_id}: every {fact.kind} answer begins with the same token as {fact.answer!r} "
                f"({tokenizer.convert_ids_to_tokens(right)}), so no foil can be told from it: add facts, reword, or "
                f"collect more abstracts."
            )
    return foils


def _tiers(fact: Fact, length: int) -> list[tuple[str, tuple]]:
    """From what answers of one length a foil is taken, the nearest first: its quality, and the name of the pool."""
    return [
        ("type", ("type", fact.kind, fact.relation, fact.answer_type, length)),
        ("relation", ("relation", fact.kind, fact.relation, length)),
        ("kind", ("kind", fact.kind, length)),
    ]


def _nearest(pool: Mapping[int, list[str]], count: int, draw: int) -> Iterator[tuple[int, str]]:
    """Counts and answers of a pool, the nearest in frequency first, equally frequent ones from where `draw` falls."""
    for nearby in sorted(pool, key=lambda other: (abs(math.log((other + 1) / (count + 1))), other)):
        start = draw % len(pool[nearby])
        for text in pool[nearby][start:] + pool[nearby][:start]:
            yield nearby, text


def balance_table(items: pd.DataFrame, exposures: dict[str, int]) -> pd.DataFrame:
    """The two kinds side by side, arm by arm: facts, tokens of subject and answer, exposures, reuse of answers.

    `exposures` counts how often the corpus says each fact; of a corpus of which that is not known it is empty, and the
    column is null. Reuse is facts per distinct answer. Foils are alike in frequency where the corpus says neither of
    foil and answer more than twice as often as the other (one added to both).
    """
    unsaid = 0.0 if exposures else float("nan")
    said = [float(exposures.get(fact, unsaid)) for fact in items["item_id"]]
    counts = (items["foil_count"] + 1) / (items["answer_count"] + 1)
    facts = items.assign(exposures=said, alike=counts.between(0.5, 2)).drop_duplicates(["item_id", "kind"])
    grouped = facts.groupby(["arm", "kind"])
    return (
        grouped.agg(
            facts=("item_id", "size"),
            subject_tokens=("subject_tokens", "mean"),
            answer_tokens=("answer_tokens", "mean"),
            exposures=("exposures", "mean"),
            distinct_answers=("answer", "nunique"),
            foils_of_same_length=("foil_match", lambda match: (match != "other length").mean()),
            foils_alike_in_frequency=("alike", "mean"),
        )
        .assign(facts_per_answer=lambda t: t["facts"] / t["distinct_answers"])
        .reset_index()
    )


def _phases(facts: Sequence[Fact], settings: Items) -> dict[str, str]:
    """The first share of each kind and relation, in an order that only the seed and the ids decide."""
    phases = {}
    for relation in sorted({f.relation for f in facts}):
        ids = sorted((f.fact_id for f in facts if f.relation == relation), key=lambda i: draw_rank(settings.seed, i))
        cut = round(settings.exploratory_share * len(ids))
        phases |= {fact_id: "exploratory" if rank < cut else "confirmatory" for rank, fact_id in enumerate(ids)}
    return phases


def _tokens(tokenizer, text: str) -> list[int]:
    return tokenizer(f" {text}")["input_ids"]
