"""Choices: the six things that must be known of a patching score, and how the prompts behind it spread.

Miller, Chughtai & Saunders (arXiv 2407.08734) move one circuit's score over most of its range by changing how it is
ablated, so a score says little without

    granularity   a node, a window of adjacent layers, or a set of sites
    component     which activation, or the set's name
    written       what is written (their "value"), and into which run
    positions     all, or the tokens of one role
    direction     denoising or noising
    patched       the site alone, or all but the site (their "circuit" and "complement")

They also find that the mean of per-prompt percentages differs from the percentage of means, and that single prompts lie
far outside. Scores here are ratios of means; prompts are shown in the *same* unit, the mean denominator, so that their
mean is the score and a prompt whose own runs hardly differ cannot explode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import pandas as pd

from helpers.metrics import normalise
from helpers.values import Mean, OtherModel, OtherRun, Resample, Zero

STAND_INS = {
    Zero.name: "zeros",
    Mean.name: "mean activation",
    Resample.name: "activation of another prompt",
    OtherModel.name: "activation of the other model",
}
QUARTILES = {"median": 0.5, "low_quartile": 0.25, "high_quartile": 0.75}
ONE_OF_EACH = ("task", "model", "metric")  # of other units, or of other prompts: never averaged


class ChoicesError(ValueError):
    """Effects that do not tell how they were made, or a score that would mix several ways."""


@dataclass(frozen=True)
class Choices:
    """The six choices behind a score, in words; `str` gives them as one line."""

    granularity: str
    component: str
    written: str
    positions: str
    direction: str
    patched: str

    def __str__(self) -> str:
        return " · ".join(f"{name}: {value}" for name, value in asdict(self).items())


CHOICES = tuple(field.name for field in fields(Choices))


def with_choices(effects: pd.DataFrame) -> pd.DataFrame:
    """The effects with a column for every one of CHOICES; component and direction keep the names they have.

    `effects` has the columns direction, tokens, corruption; component, role and window, or instead of them `sites`, the
    name of a set. Further ones are optional: value (without it, the other run's activation is written) and complement
    (True where all but the site is patched; without it, the site alone). Raises ChoicesError for a missing column.
    """
    number, found = _choices(effects)
    return effects.assign(**{name: [getattr(found[n], name) for n in number] for name in CHOICES})


def caption(effects: pd.DataFrame) -> str:
    """The choices behind all of a table in one line; of what it holds several ways, each, in order of appearance."""
    found = _choices(effects)[1]
    each = {name: dict.fromkeys(getattr(one, name) for one in found) for name in CHOICES}
    return str(Choices(**{name: "; ".join(values) for name, values in each.items()}))


def spread(effects: pd.DataFrame, *, by: Sequence[str]) -> pd.DataFrame:
    """The score of every group, a ratio of means over pairs, beside the distribution of its pairs in the same unit.

    `effects` has the columns `by`, pair, numerator, denominator, and those of `with_choices`. One row per group: `by`,
    CHOICES, quantity (recovered or destroyed), score, denominator (the mean one: the unit, in that of the metric),
    then of each pair's numerator in that unit median, low_quartile, high_quartile, worst (what is furthest from the
    score, either way) and worst_pair; pairs (how many). Rows of one pair in a group (draws of the noise) are averaged
    first. All are NaN, and worst_pair missing, where the mean denominator is 0. Raises ChoicesError for a group that
    mixes choices, tasks, models or metrics.
    """
    by, table = list(by), with_choices(effects)
    _check_unmixed(table, by)
    choices = table.drop_duplicates(by)[[*by, *(name for name in CHOICES if name not in by)]]
    scores = normalise(table, by=by).rename(columns={"recovery": "score"}).drop(columns="numerator")
    shares = table.groupby([*by, "pair"], observed=True, dropna=False)["numerator"].mean().reset_index()
    shares = shares.merge(scores, on=by)
    shares["share"] = shares["numerator"] / shares["denominator"].where(shares["denominator"] != 0)
    shares["distance"] = (shares["share"] - shares["score"]).abs()
    groups = shares.groupby(by, observed=True, dropna=False)["share"]
    quartiles = pd.DataFrame({name: groups.quantile(part) for name, part in QUARTILES.items()}).reset_index()
    furthest = shares.dropna(subset="distance").sort_values("distance", ascending=False, kind="stable")
    worst = furthest.drop_duplicates(by).rename(columns={"share": "worst", "pair": "worst_pair"})
    found = scores.merge(choices, on=by).merge(quartiles, on=by).merge(worst[[*by, "worst", "worst_pair"]], "left", by)
    shown = [*choices, "quantity", "score", "denominator", *QUARTILES, "worst", "worst_pair", "pairs"]
    return found[shown]


def _choices(effects: pd.DataFrame) -> tuple[np.ndarray, list[Choices]]:
    """For every row the number of its choices, and the choices by number, in order of appearance."""
    where = ["sites"] if "sites" in effects else ["component", "role", "window"]
    needed = ["direction", "tokens", "corruption", *where]
    if missing := [name for name in needed if name not in effects]:
        raise ChoicesError(
            f"The effects have no column {', '.join(missing)}, without which a score cannot be told from another; "
            "name it where the sweep was made."
        )
    if effects.empty:
        raise ChoicesError("There is no effect to tell the choices of: check which pairs and sites were kept.")
    told = [*needed, *(name for name in ("value", "complement") if name in effects)]
    number = effects.groupby(told, sort=False, dropna=False, observed=True).ngroup()
    distinct = effects[told].groupby(number).first()
    return number.to_numpy(), [_of_row(row) for row in distinct.to_dict("records")]


def _of_row(row: dict) -> Choices:
    if "sites" in row:
        granularity, component, positions = "set", row["sites"], "those of the set"
    else:
        granularity = "node" if row["window"] == 1 else f"window of {row['window']} layers"
        component, positions = row["component"], row["role"].replace("_", " ")
    corrupted = f"the run corrupted by {row['corruption']} of {row['tokens']}"
    if row["direction"] == "denoising":
        base, other = corrupted, "clean activation"
    else:
        base, other = "the clean run", f"activation of {corrupted}"
    writing, value = {OtherRun.name: other, **STAND_INS}, row.get("value", OtherRun.name)
    if value not in writing:
        raise ChoicesError(f"No patch writes {value!r}; the values are {', '.join(writing)}.")
    patched = "all but the site" if row.get("complement", False) else "the site alone"
    return Choices(granularity, component, f"{writing[value]} into {base}", positions, row["direction"], patched)


def _check_unmixed(table: pd.DataFrame, by: list[str]) -> None:
    """Raise ChoicesError when a group holds several of what must be one of each."""
    fixed = [name for name in (*ONE_OF_EACH, *CHOICES) if name in table and name not in by]
    count = table.groupby(by, observed=True, dropna=False)[fixed].nunique(dropna=False)
    if mixed := [name for name in fixed if (count[name] > 1).any()]:
        raise ChoicesError(
            f"A score has one of each choice, and a group by {', '.join(by)} holds several of {', '.join(mixed)}: put "
            "what tells them apart into `by`, or keep one of them."
        )
