"""Board readings: the leaderboard of planted knowledge in words, from boards as those of `helpers.standings`."""

from __future__ import annotations

import pandas as pd
from statsmodels.stats.proportion import proportion_confint

from helpers.artifacts import ArtifactError
from helpers.pointing import calibration_error
from helpers.standings import ALARMS, best, board, recommended, rivals

COLUMNS = ["method", "skill", "hit_at_1", "hit_at_1_low", "hit_at_1_high", "reciprocal_rank", "recall_at_2", "auroc"]
COLUMNS += ["rank_correlation", "plants", "false_alarms", "nulls", "stable_block", "stable_places", "stable_seeds"]
COLUMNS += ["passes", "seconds"]
TOLD = (  # of which notebook 06 speaks by name: one of every family, beside the best
    "CLAP as published",
    "denoising MLP and attention, all positions",
    "denoising MLP and attention, last subject token",
    "noising MLP and attention, Gaussian noise, logit difference",
    "attribution patching, denoising",
    "zero ablation",
    "cross-model noising, all positions",
)
DIFFERENCES = {  # a method that sees one model, and the same as a difference against the base
    "denoising MLP and attention, all positions": "difference of models, denoising",
    "noising MLP and attention, all positions": "difference of models, noising",
    "attribution patching, denoising": "difference of models, attribution patching",
    "zero ablation": "difference of models, zero ablation",
}
HIGH = 0.75  # of a recovery: who reports it means that the place holds most of the knowledge


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


def plants_sentence(plants: pd.DataFrame) -> str:
    """How many plants count, and what the others learnt and kept; `plants` as in standings.Standings."""
    out = plants[~plants["counts"]]
    text = f"Of {len(plants)} plants {len(plants) - len(out)} count"
    if out.empty:
        return f"{text}: all learnt what they were taught and kept what was known."
    kept = out[["kept_replayed", "kept_held_out"]].min(axis=1)
    lines = zip(out["plant"], out["learnt"], kept, strict=True)
    return (
        f"{text}. Listed, and not ranked: "
        + "; ".join(f"{p} (learnt {a:.3f}, kept {b:.3f})" for p, a, b in lines)
        + "."
    )


def first_sentences(scores: pd.DataFrame, table: pd.DataFrame, group: str) -> str:
    """The best method of a group with its interval, its rivals, and its false alarms."""
    line, others = best(table, group), rivals(scores, table, group)
    against = f"{len(others)} of the other {group} methods may be as good: {', '.join(others)}." if others else (
        f"It is surely better than every other {group} method."
    )  # fmt: skip
    return f"Best {group} method, hit@1: {said(line)}; chance is {line['chance']:.2f}. {against}"


def recommendation(table: pd.DataFrame, group: str) -> str:
    """The best method of a group among those that raise few false alarms, or that there is none."""
    try:
        line = recommended(table, group)
    except ArtifactError:
        return f"No {group} method can be recommended: all claim a block in more than {ALARMS:.0%} of the nulls."
    return f"Recommended, {group}: {said(line)}. {alarm_sentence(table, line['method'])}"


def reliability_sentence(table: pd.DataFrame, method: str) -> str:
    """What a method's high scores are worth; `table` as of standings.reliabilities."""
    rows = table[table["method"] == method]
    high, error = rows[rows["said"] >= HIGH], calibration_error(rows)
    if high.empty:
        return (
            f"{method[:1].upper()}{method[1:]} gives no place {HIGH} or more (expected calibration error {error:.2f})."
        )
    places, planted = int(high["places"].sum()), round(float((high["right"] * high["places"]).sum()))
    low, top = proportion_confint(planted, places, method="wilson")
    return (
        f"Where {method} gives a place {HIGH} or more, it is planted in {planted} of {places} cases ({low:.0%} to "
        f"{top:.0%}); the expected calibration error is {error:.2f}."
    )


def given_sentence(scores: pd.DataFrame) -> str:
    """How many answers hold by construction; exact they are, or calibration.check_given would have stopped."""
    given = scores[scores["counts"] & scores["given"]]
    return (
        f"{len(given)} answers of {given['method'].nunique()} methods hold by construction: 1 at the place that was "
        "written, 0 before it. Each was held to that when it was scored, and none is ranked."
    )


def hits_by_kind(scores: pd.DataFrame) -> pd.DataFrame:
    """hit@1 of every method by kind of plant, in the order of the board; none where nothing is ranked."""
    kinds = board(scores, by=["kind"])
    hits = kinds.pivot(index="method", columns="kind", values="hit_at_1").dropna(axis=1, how="all")
    return hits.reindex(board(scores)["method"]).reset_index()


def diagonal_sentence(matrices: pd.DataFrame) -> str:
    """For how many methods the planted block has the highest mean score, and which block draws the others.

    `matrices` as of standings.pointing_matrix. Blocks that share the highest score count by their share.
    """
    highest = matrices["score"] == matrices.groupby(["method", "planted"])["score"].transform("max")
    share = highest / highest.groupby([matrices["method"], matrices["planted"]]).transform("sum")
    right = share.where(matrices["planted"] == matrices["pointed"], 0).groupby(matrices["method"]).sum()
    blocks, methods = matrices["planted"].nunique(), len(right)
    wrong = share.where(matrices["planted"] != matrices["pointed"], 0).groupby(matrices["pointed"]).sum()
    always = int((right >= blocks - 1e-9).sum())
    text = f"In the mean, {always} of {methods} methods put the planted block first wherever it is"
    if not wrong.sum() > 0:
        return f"{text}."
    return (
        f"{text}, and {int((right < 1 + 1e-9).sum())} for one block at most. Of the answers that are wrong "
        f"{wrong.max() / wrong.sum():.0%} point to block {wrong.idxmax()}."
    )
