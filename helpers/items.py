"""Items: one question with its answer and foil, in one wording; which of them enter an analysis, and how they balance.

An item row is what every later step reads: the probe asks it, pairs are made of it, statistics count it once. Which
items are exploratory is settled here from their ids alone, before any model has been looked at.
"""

from __future__ import annotations

import hashlib

import pandas as pd

from helpers.config import Corpus, Items, Paths
from helpers.corpus import chosen_facts
from helpers.knowledge import Fact, Wording, load_wordings, made_up_facts


class ItemError(ValueError):
    """Items that cannot be asked as they stand."""


def build_items(
    facts: list[Fact], wordings: list[Wording], tokenizer, *, settings: Items, variant: int | None = None
) -> pd.DataFrame:
    """Every fact in every wording that can be asked, as one row each.

    Columns: item_id, kind, relation, arm, variant, phase (exploratory or confirmatory), wording_id, group, prompt,
    subject, subject_start (characters), answer, answer_type, foil, foil_match, answer_tokens, subject_tokens. Raises
    ItemError when there is no fact, or when a fact has no foil whose first token differs from its answer's.
    """
    if not facts:
        raise ItemError("There is no fact to ask about: check corpus.facts_per_relation.")
    phases, foils = _phases(facts, settings), choose_foils(facts, tokenizer, seed=settings.seed)
    rows = []
    for fact in facts:
        foil, match = foils[fact.fact_id]
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
                        "foil": foil,
                        "foil_match": match,
                        "answer_tokens": len(_tokens(tokenizer, fact.answer)),
                        "subject_tokens": len(_tokens(tokenizer, fact.subject)),
                    }
                )
    return pd.DataFrame(rows).astype({"variant": "Int64"})


def collect_items(corpus: Corpus, settings: Items, paths: Paths, tokenizer) -> pd.DataFrame:
    """The items of a profile: real facts and, where the corpus teaches it, both variants of the made-up arm."""
    wordings, facts = load_wordings(paths.embedded), chosen_facts(paths.embedded, corpus.facts_per_relation)
    tables = [build_items(facts, wordings, tokenizer, settings=settings)]
    if corpus.source == "embedded":
        for variant in (0, 1):
            made_up = made_up_facts(variant)[: corpus.facts_per_relation]
            tables.append(build_items(made_up, wordings, tokenizer, settings=settings, variant=variant))
    return pd.concat(tables, ignore_index=True)


def taught_items(items: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """What a model of this seed was taught: real items, and the made-up arm's variant of the seed's parity."""
    return items[items["variant"].isna() | (items["variant"] == seed % 2)].reset_index(drop=True)


def watched_items(items: pd.DataFrame) -> pd.DataFrame:
    """What training watches: each fact in one wording of every group; only the development wording may stop it."""
    return items[items["wording_id"].str.endswith("-0")].reset_index(drop=True)


def choose_foils(facts: list[Fact], tokenizer, *, seed: int) -> dict[str, tuple[str, str]]:
    """A wrong answer for every fact: the true answer of another fact of the same kind and token length.

    Facts of the same answer type are preferred, then of the same relation, then of the same kind; where no answer of
    the kind is as long, the foil has another length, and `foil_match` says so. Its first token always differs from the
    right answer's. Returns foil and quality of the match by fact id.
    """
    tokens = {fact.answer: _tokens(tokenizer, fact.answer) for fact in facts}
    foils = {}
    for fact in facts:
        right = tokens[fact.answer]
        others = [f for f in facts if f.kind == fact.kind and tokens[f.answer][0] != right[0]]
        if not others:
            raise ItemError(
                f"{fact.fact_id}: every {fact.kind} answer begins with the same token as {fact.answer!r} "
                f"({tokenizer.convert_ids_to_tokens(right)}), so no foil can be told from it: add facts or reword."
            )
        length = [f for f in others if len(tokens[f.answer]) == len(right)]
        relation = [f for f in length if f.relation == fact.relation]
        same = [f for f in relation if f.answer_type == fact.answer_type]
        choices = ((same, "type"), (relation, "relation"), (length, "kind"), (others, "other length"))
        pool, match = next((pool, match) for pool, match in choices if pool)
        chosen = min(sorted({f.answer for f in pool}), key=lambda answer: _hash(seed, fact.fact_id, answer))
        foils[fact.fact_id] = (chosen, match)
    return foils


def balance_table(items: pd.DataFrame, exposures: dict[str, int]) -> pd.DataFrame:
    """The two kinds side by side, arm by arm: facts, tokens of subject and answer, exposures, reuse of answers.

    `exposures` counts how often the corpus says each fact; of a corpus of which that is not known it is empty, and the
    column is null. Reuse is facts per distinct answer.
    """
    unsaid = 0.0 if exposures else float("nan")
    said = [float(exposures.get(fact, unsaid)) for fact in items["item_id"]]
    facts = items.assign(exposures=said).drop_duplicates(["item_id", "kind"])
    grouped = facts.groupby(["arm", "kind"])
    return (
        grouped.agg(
            facts=("item_id", "size"),
            subject_tokens=("subject_tokens", "mean"),
            answer_tokens=("answer_tokens", "mean"),
            exposures=("exposures", "mean"),
            distinct_answers=("answer", "nunique"),
            foils_of_same_length=("foil_match", lambda match: (match != "other length").mean()),
        )
        .assign(facts_per_answer=lambda t: t["facts"] / t["distinct_answers"])
        .reset_index()
    )


def _phases(facts: list[Fact], settings: Items) -> dict[str, str]:
    """The first share of each kind and relation, in an order that only the seed and the ids decide."""
    phases = {}
    for relation in sorted({f.relation for f in facts}):
        ids = sorted((f.fact_id for f in facts if f.relation == relation), key=lambda i: _hash(settings.seed, i))
        cut = round(settings.exploratory_share * len(ids))
        phases |= {fact_id: "exploratory" if rank < cut else "confirmatory" for rank, fact_id in enumerate(ids)}
    return phases


def _tokens(tokenizer, text: str) -> list[int]:
    return tokenizer(f" {text}")["input_ids"]


def _hash(*parts: object) -> str:
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()
