"""The data card: what a corpus holds, what was left out of it and why, and what a cap on the hits did to the years."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

import pandas as pd

from helpers.pubmed import RULES
from helpers.pubmed_plan import SELECTIONS, select

LICENCE = (
    "PMIDs, counts and hashes may be passed on. Abstracts may be under their publishers' copyright: raw answers and "
    "the corpus stay in data/, which git ignores."
)

STUDY_RECORDS, STUDY_MENTIONS = 9_958, {"epilepsy": 20_595, "EEG": 11_674, "seizure": 13_921}  # CLAP, section 2.1


def mention_table(mentions: Mapping[str, int], records: int) -> pd.DataFrame:
    """Mentions of terms in so many records, and the study's own: columns source, term, mentions, per_record."""
    sources = (("this run", mentions, records), ("published", STUDY_MENTIONS, STUDY_RECORDS))
    rows = [
        (source, term, found[term], found[term] / size)
        for source, found, size in sources
        for term in mentions
        if term in found
    ]
    return pd.DataFrame(rows, columns=["source", "term", "mentions", "per_record"])


def rule_table(counts: Mapping[str, int]) -> pd.DataFrame:
    """One row per rule of `pubmed.RULES` that applied to any record: rule, treatment, records."""
    rows = [(name.replace("_", " "), text, counts[name]) for name, text in RULES.items() if counts.get(name)]
    return pd.DataFrame(rows, columns=["rule", "treatment", "records"])


def common(corpus: pd.DataFrame, column: str, *, most: int = 10) -> pd.DataFrame:
    """The most common values of a column, absent ones as "–": that column, records, share."""
    found = corpus[column].fillna("–").value_counts().head(most)
    return pd.DataFrame({column: found.index, "records": found.to_numpy(), "share": found.to_numpy() / len(corpus)})


def by_year(corpus: pd.DataFrame, source: str) -> pd.DataFrame:
    """Records per year of publication, from the first to the last: columns source, year, records."""
    years = corpus["year"].dropna().astype(int).value_counts()
    span = range(years.index.min(), years.index.max() + 1) if len(years) else ()
    return pd.DataFrame(
        [(source, year, int(years.get(year, 0))) for year in span], columns=["source", "year", "records"]
    )


def reach(planned: Mapping | None) -> pd.DataFrame:
    """What each selection takes of every slice: columns selection, begin, end (years, as decimals), hits, taken, share.

    Where there is nothing to compare the table is empty: no plan, or one that takes all hits, or without slices.
    """
    rows = []
    compared = planned and planned["slices"] and len(planned["pmids"]) < planned["count"]
    for selection in SELECTIONS if compared else ():
        chosen = set(select(planned, selection))
        for stratum in planned["slices"]:
            hits, taken = len(stratum["pmids"]), len(chosen.intersection(stratum["pmids"]))
            rows.append((selection, _year(stratum["from"]), _year(stratum["to"]), hits, taken, taken / hits))
    return pd.DataFrame(rows, columns=["selection", "begin", "end", "hits", "taken", "share"])


def outline(taken: pd.DataFrame) -> pd.DataFrame:
    """`reach` as the corners of steps, for a curve: columns selection, entered (a year), share."""
    corners = taken.melt(["selection", "share"], ["begin", "end"], value_name="entered", ignore_index=False)
    return corners.sort_index(kind="stable")[["selection", "entered", "share"]].reset_index(drop=True)


def _year(day: str) -> float:
    """A day as a decimal year, good to a day or two."""
    found = date.fromisoformat(day)
    return found.year + (found.timetuple().tm_yday - 1) / 365.25
