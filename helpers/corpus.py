"""The corpus: abstract-like records, as a table and as a `datasets.Dataset`.

Two sources give the same columns. `embedded` turns the knowledge base into records that look like PubMed's: a title,
labelled sections, journal, year, keywords, and in each a few fact sentences between sentences that say nothing.
`pubmed` takes what the E-utilities returned; absent fields stay null.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from helpers import pubmed
from helpers.config import Corpus, Paths
from helpers.knowledge import Fact, Wording, load_facts, load_wordings, made_up_facts

COLUMNS = ["pmid", "title", "abstract", "journal", "year", "keywords", "url", "variant", "fact_ids"]
MENTIONS = ("epilepsy", "EEG", "seizure")
SECTIONS = ("BACKGROUND", "METHODS", "RESULTS", "CONCLUSIONS")
JOURNALS = ("Acta Generata", "Annals of Made Records", "Journal of Plain Sentences", "Synthetic Neurology")
FILLERS = (
    "We studied {n} adults in {place}.",
    "We reviewed {n} records from {place}.",
    "The mean age was {n} years.",
    "Data were collected over {n} months.",
    "All recordings were read by two raters.",
    "No adverse event was noted.",
    "Follow-up lasted {n} months.",
    "The protocol was approved in {place}.",
    "Consent was obtained from all participants.",
    "Missing values were left as they were.",
    "The sample was small, and {n} files were lost.",
    "Further work is needed.",
)
PLACES = ("one hospital", "two hospitals", "a regional clinic", "a rural practice", "an outpatient unit", "the north")


class CorpusError(ValueError):
    """A corpus that is empty or cannot be used."""


def embedded_records(
    facts: list[Fact],
    wordings: list[Wording],
    *,
    facts_per_record: int,
    repeats: int,
    seed: int,
    variant: int | None = None,
    groups: tuple[str, ...] = ("seen",),
) -> pd.DataFrame:
    """Write every fact in every wording of `groups`, `repeats` times, into records of `facts_per_record` facts.

    One record never says the same fact twice in a row of the shuffled order, the first fact is the title, and the
    order depends on `seed` alone. Raises CorpusError when there is no fact.
    """
    if not facts:
        raise CorpusError(
            "The knowledge base gave no fact, so there is nothing to write: check corpus.facts_per_relation."
        )
    chooser = random.Random(f"records {seed} {variant}")
    said = [
        (fact, wording)
        for _ in range(repeats)
        for fact in facts
        for wording in wordings
        if wording.relation == fact.relation and wording.group in groups
    ]
    chooser.shuffle(said)
    rows = []
    for start in range(0, len(said), facts_per_record):
        chunk = said[start : start + facts_per_record]
        number = start // facts_per_record
        rows.append(
            _record(chunk, chooser, pmid=f"E{0 if variant is None else variant + 1}{number:06d}", variant=variant)
        )
    return pd.DataFrame(rows, columns=COLUMNS).astype({"variant": "Int64", "year": "Int64"})


def _record(said: list[tuple[Fact, Wording]], chooser: random.Random, *, pmid: str, variant: int | None) -> dict:
    title, *rest = [wording.sentence(fact) for fact, wording in said]
    body = [*rest, *(_filler(chooser) for _ in range(2))]
    chooser.shuffle(body)
    cut = sorted(chooser.sample(range(1, len(body)), k=min(len(body) - 1, 1)))
    parts = [body[i:j] for i, j in zip([0, *cut], [*cut, len(body)], strict=True)]
    labels = sorted(chooser.sample(range(len(SECTIONS)), k=len(parts)))
    abstract = " ".join(f"{SECTIONS[label]}: {' '.join(part)}" for label, part in zip(labels, parts, strict=True))
    return {
        "pmid": pmid,
        "title": title,
        "abstract": abstract,
        "journal": chooser.choice(JOURNALS),
        "year": chooser.randrange(1990, 2026),
        "keywords": sorted({fact.subject for fact, _ in said}),
        "url": None,
        "variant": variant,
        "fact_ids": [fact.fact_id for fact, _ in said],
    }


def _filler(chooser: random.Random) -> str:
    return chooser.choice(FILLERS).format(n=chooser.randrange(3, 99), place=chooser.choice(PLACES))


def embedded_corpus(folder: Path, *, facts_per_relation: int | None, facts_per_record: int, repeats: int, seed: int):
    """The records of the embedded default: real facts, and both variants of the made-up arm (column `variant`)."""
    facts, wordings = chosen_facts(folder, facts_per_relation), load_wordings(folder)
    pairs = len(made_up_facts(0)) if facts_per_relation is None else facts_per_relation
    options = {"facts_per_record": facts_per_record, "repeats": repeats, "seed": seed}
    tables = [embedded_records(facts, wordings, **options)]
    for variant in (0, 1):
        tables.append(embedded_records(made_up_facts(variant)[:pairs], wordings, variant=variant, **options))
    return pd.concat(tables, ignore_index=True)


def chosen_facts(folder: Path, facts_per_relation: int | None) -> list[Fact]:
    """All real facts, or the first `facts_per_relation` of each relation for a quick run."""
    chosen, count = [], {}
    for fact in load_facts(folder):
        count[fact.relation] = count.get(fact.relation, 0) + 1
        if facts_per_relation is None or count[fact.relation] <= facts_per_relation:
            chosen.append(fact)
    return chosen


def pubmed_corpus(records: Iterable[dict]) -> pd.DataFrame:
    """Records from the E-utilities in the corpus's columns; a field a record lacks stays null."""
    rows = [{**{column: record.get(column) for column in COLUMNS}, "fact_ids": []} for record in records]
    if not rows:
        raise CorpusError("The corpus is empty: no record with an abstract came back; widen corpus.query.")
    table = pd.DataFrame(rows, columns=COLUMNS)
    table["year"] = pd.to_numeric(table["year"], errors="coerce")
    return table.astype({"variant": "Int64", "year": "Int64"})


def training_texts(corpus: pd.DataFrame, *, variant: int) -> list[str]:
    """Title and abstract of every record that this variant of the made-up arm trains on, in the corpus's order."""
    chosen = corpus[corpus["variant"].isna() | (corpus["variant"] == variant)]
    return [
        f"{title}\n{abstract}" if isinstance(title, str) and title else abstract  # an absent title is NaN, not None
        for title, abstract in zip(chosen["title"], chosen["abstract"], strict=True)
    ]


def count_mentions(texts: Iterable[str], terms: tuple[str, ...] = MENTIONS) -> dict[str, int]:
    """How often each term occurs as a whole word, case-insensitively, counting its plural in -s as well.

    The study gives counts without a definition; this is ours, and it is stated beside them.
    """
    texts = list(texts)
    return {
        term: sum(len(re.findall(rf"\b{re.escape(term)}s?\b", text, re.IGNORECASE)) for text in texts) for term in terms
    }


def collect(settings: Corpus, paths: Paths, *, progress=None) -> tuple[pd.DataFrame, dict[str, int]]:
    """The corpus of a profile, and how many records were matched, returned, missing or without an abstract.

    Raises CorpusError when nothing comes back, PubmedError when the E-utilities cannot be read.
    """
    if settings.source == "embedded":
        table = embedded_corpus(
            paths.embedded,
            facts_per_relation=settings.facts_per_relation,
            facts_per_record=settings.facts_per_record,
            repeats=settings.repeats,
            seed=settings.seed,
        )
        return table, {"generated": len(table)}
    if settings.source == "pubmed":
        records, counts = pubmed.collect(settings, paths.data / "raw", progress=progress)
        return pubmed_corpus(records), counts
    raise CorpusError(f"corpus.source must be 'embedded' or 'pubmed', not {settings.source!r}.")


def fact_exposures(corpus: pd.DataFrame, *, variant: int) -> dict[str, int]:
    """How many times the records that one variant trains on say each fact, by fact id."""
    said = corpus.loc[corpus["variant"].isna() | (corpus["variant"] == variant), "fact_ids"].explode().dropna()
    return said.value_counts().to_dict()
