"""Board readings: the leaderboard of planted knowledge in words, from boards as those of `helpers.standings`."""

from __future__ import annotations

import pandas as pd
from statsmodels.stats.proportion import proportion_confint

from helpers.artifacts import ArtifactError
from helpers.standings import best


def said(line: pd.Series, name: str = "hit_at_1") -> str:
    """A method's score with its interval, and over what, in words."""
    interval = f"{line[name]:.2f} ({line[f'{name}_low']:.2f} to {line[f'{name}_high']:.2f})"
    return f"{line['method']}: {interval} over {line['plants']} plants of the seeds {line['seeds']}"


def covers_chance(line: pd.Series) -> bool:
    """Whether the interval of a method's hit@1 covers chance."""
    return bool(line["hit_at_1_low"] <= line["chance"] <= line["hit_at_1_high"])


def floor_sentence(table: pd.DataFrame) -> str:
    """Whether random scores sit at chance, as they must if the scores are right."""
    line = best(table, "floor")
    verdict = "covers" if covers_chance(line) else "does not cover"
    return (
        f"Random scores hit the planted block in {line['hit_at_1']:.2f} of the plants; the interval "
        f"{line['hit_at_1_low']:.2f} to {line['hit_at_1_high']:.2f} {verdict} chance, {line['chance']:.2f}."
    )


def alarm_sentence(table: pd.DataFrame, method: str) -> str:
    """How often a method claims a block where nothing was written; raises ArtifactError for an unknown method."""
    lines = table[table["method"] == method]
    if lines.empty:
        raise ArtifactError(f"The leaderboard has no method {method!r}; it has {', '.join(table['method'])}.")
    line = lines.iloc[0]
    low, high = proportion_confint(line["false_alarms"], line["nulls"], method="wilson")
    return (
        f"{method[:1].upper()}{method[1:]} claims a block in {line['false_alarms']} of {line['nulls']} models into "
        f"which nothing was written ({low:.0%} to {high:.0%})."
    )


def by_question(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The lines of a board by the question that a method answers, storage or mediation, floors left out."""
    asked = table[table["group"] != "floor"]
    return {question: part.reset_index(drop=True) for question, part in asked.groupby("question", sort=True)}
