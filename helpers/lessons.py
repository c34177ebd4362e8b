"""Lessons: what a comparison of patching methods says, in sentences computed from its tables and true of any run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from helpers.detection import DEVIATIONS, head_names, spoken
from helpers.report import percent
from helpers.tasks import does

SURE = 0.95  # share of resamples in which a detected head is detected again


def tasks(baselines: pd.DataFrame, refused: Mapping[str, pd.DataFrame]) -> str:
    """Which tasks the model does, what corruption leaves of them, and what the tokenizer refused, by task.

    `baselines` are those of `tasks.baseline`, of one or more tasks.
    """
    wide = baselines.set_index(["task", "run", "quantity"])[["estimate", "low", "high"]].sort_index()
    said = []
    for task in baselines["task"].unique():
        clean = wide.loc[task, "clean"]
        runs = [run for run in baselines.loc[baselines["task"] == task, "run"].unique() if run != "clean"]
        left = ", ".join(f"{wide.loc[(task, run, 'probability'), 'estimate']:.2g} ({run})" for run in runs)
        least, most = clean.loc["preference", ["low", "high"]]
        said.append(
            f"{task}: it prefers the right answer in {percent(clean.loc['preference', 'estimate'])} of prompts "
            f"[{percent(least)}, {percent(most)}] and ranks it first in {percent(clean.loc['accuracy', 'estimate'])}; "
            f"P(r) is {clean.loc['probability', 'estimate']:.2g}, and with tokens replaced {left}"
        )
    done = does(baselines)
    undone = [task for task in baselines["task"].unique() if task not in done]
    lesson = "All are done"
    if undone:
        lesson = f"Not done: {', '.join(undone)}, by the bars of helpers.tasks: no conclusion below rests on it"
    away = {task: int(table["count"].sum()) for task, table in refused.items() if len(table)}
    reasons = "; ".join(f"{count} for {task}" for task, count in away.items())
    passed = f" Left out, for their tokens, for want of a partner, or by the number or rule of the profile: {reasons}."
    return f"{'. '.join(said)}. {lesson}.{passed if away else ''}"


def detection(detected: pd.DataFrame, *, by: Sequence[str]) -> str:
    """Which heads every method finds, which only one, and how many detections are sure; `detected` is of `detect`."""
    sign = detected["detected"].map({1: "+", -1: "−", 0: ""})
    table = detected.assign(name=head_names(detected) + sign, method=detected[list(by)].agg(_method, axis=1))
    methods, found = table["method"].nunique(), table[table["detected"] != 0]
    if found.empty:
        return f"No head stands out by {'any of the methods' if methods > 1 else 'the one method'}."
    times = found.groupby("name", sort=False)["method"].nunique()
    groups = {f"by all {methods} methods" if methods > 1 else "by the one method": times[times == methods].index}
    if methods > 1:
        groups["by one alone"] = times[times == 1].index
    listed = "; ".join(f"{where}: {', '.join(names) or 'none'}" for where, names in groups.items())
    again, least = int((found["stability"] >= SURE).sum()), found.loc[found["stability"].idxmin()]
    undefined = table.loc[~table["defined"], "method"].unique()
    unit = f" The interval of the denominator includes 0, so that scores have no unit, for {', '.join(undefined)}."
    return f"""Heads that stand out, with their sign, {listed}. Of {_count(len(found), "detection")}, {again} come about
        again in at least {percent(SURE)} of resamples of prompts and draws; the least certain is {least["name"]} by
        {least["method"]} ({percent(least["stability"])}).{unit if len(undefined) else ""}"""


def thresholds(sweep: pd.DataFrame, *, by: Sequence[str]) -> str:
    """How much hangs on the threshold that was never varied; `sweep` is of `detection.threshold_sweep`."""
    table = sweep.assign(count=sweep["positive"] + sweep["negative"])
    ends = table["deviations"].min(), table["deviations"].max()
    said = []
    for key, part in table.groupby(list(by), observed=True, sort=False):
        counts = part.set_index("deviations")["count"]
        numbers = " → ".join(str(counts[end]) for end in ends)
        kept = part.set_index("deviations").at[ends[1], "kept"]
        rest = "" if np.isnan(kept) else f" ({percent(kept)} of those at {DEVIATIONS:g})"
        said.append(f"{_method(key)} {numbers}{rest}")
    return f"""Heads detected as the threshold rises from {ends[0]:g} to {ends[1]:g} standard deviations:
        {"; ".join(said)}. Zhang & Nanda use {DEVIATIONS:g} throughout."""


def draws(scores: pd.DataFrame, *, by: Sequence[str]) -> str:
    """How much of a score is due to the draw of noise or donor; `scores` is the table of `detection.head_scores`."""
    several = scores[scores["draws"] > 1]
    if several.empty:
        return "Every method was drawn once, so this run cannot say how much of a score is due to the draw."
    said = []
    for key, part in several.groupby(list(by), observed=True, sort=False):
        spread = part["score"].std(ddof=0)
        if spread == 0:
            said.append(f"{_method(key)}: all heads alike, so there is no unit")
            continue
        worst = part.loc[part["draw_deviation"].idxmax()]
        shares = part["draw_deviation"] / spread
        said.append(
            f"{_method(key)}: median {shares.median():.2f}, most {shares.max():.2f} (head {worst['layer']}."
            f"{worst['head']}), {part['draws'].iat[0]} draws"
        )
    once = " Methods drawn once are left out." if len(several) < len(scores) else ""
    return f"""The standard deviation of a head's score from one draw to the next, in units of the standard deviation
        over heads in which heads are detected: {"; ".join(said)}.{once}"""


def agreement(table: pd.DataFrame, *, by: Sequence[str] = ()) -> str:
    """The two methods that agree most and least; `table` is of `agreement.agreement`, `by` its other columns."""
    if table.empty:
        return "There is a single method in this run, and so nothing it could agree with."
    said = []
    for column, name in (("rank_correlation", "rank correlation"), ("jaccard", "Jaccard index of the detected sets")):
        known = table.dropna(subset=[column])
        if known.empty:
            said.append(f"{name}: undefined for all")
            continue
        low, high = (known.loc[at] for at in (known[column].idxmin(), known[column].idxmax()))
        among = f"median {known[column].median():.2f}, from {_pair(low, column, by)} to {_pair(high, column, by)}"
        said.append(f"{name}: {among if len(known) > 1 else _pair(low, column, by)}")
    empty = int(table["jaccard"].isna().sum())
    without = f" In {empty} of them neither method detects a head, and the index is undefined." if empty else ""
    return f"Over {_count(len(table), 'comparison')} of two methods, {'; '.join(said)}.{without}"


def floor(floors: pd.DataFrame, *, by: Sequence[str]) -> str:
    """What the floor of the probability hides; `floors` is of `floors.probability_floor`."""
    said = []
    for row in floors.to_dict("records"):
        missed = f"missed: {row['missed']}" if row["missed"] else "no negative head of another metric is missed"
        said.append(
            f"{_method(row[name] for name in by)}: no effect can be below {-row['corrupted_probability']:.2g}, the "
            f"threshold is {row['threshold_low']:.2g}, the lowest head {row['lowest_head']} has {row['lowest']:.2g}; "
            f"{missed}"
        )
    hidden, cases = int(floors["out_of_reach"].sum()), _count(len(floors), "case")
    return f"""A probability cannot fall below 0, so a patch can take away no more than the corrupted run has.
        {". ".join(said)}. In {hidden} of {cases} the threshold lies below what is possible: there no head could be
        detected as negative, whatever it does."""


def _method(key) -> str:
    return " · ".join(spoken(str(value)) for value in key)


def _pair(row: pd.Series, column: str, by: Sequence[str]) -> str:
    where = f", {_method(row[name] for name in by)}" if by else ""
    return f"{round(row[column], 2) + 0.0:.2f} ({row['first']} and {row['second']}{where})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
