"""Board readings: the leaderboard of planted knowledge in words, from boards as those of `helpers.standings`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from statsmodels.stats.proportion import proportion_confint

from helpers.artifacts import ArtifactError
from helpers.report import started
from helpers.standings import (
    ALARMS,
    FLOORS,
    UNTOUCHED,
    best,
    board,
    clustered_interval,
    common,
    first_shares,
    recommended,
)

COLUMNS = [
    "method",
    "question",
    "skill",
    "hit_at_1",
    "hit_at_1_low",
    "hit_at_1_high",
    "reciprocal_rank",
    "recall_at_2",
    "auroc",
]
COLUMNS += ["rank_correlation", "plants", "claims", "claims_right", "false_alarms", "nulls"]
COLUMNS += ["stable_block", "stable_places", "stable_seeds", "passes", "seconds"]
TOLD = (  # of which notebook 06 speaks by name: one of every family, beside the best
    "CLAP as published",
    "denoising MLP and attention, all positions",
    "denoising MLP and attention, last subject token",
    "noising MLP and attention, Gaussian noise, logit difference",
    "attribution patching, denoising",
    "zero ablation",
    "weight norm",
)
DIFFERENCES = {  # a method that sees one model, and the same as a difference against the base
    "denoising MLP and attention, all positions": "difference of models, denoising",
    "noising MLP and attention, all positions": "difference of models, noising",
    "attribution patching, denoising": "difference of models, attribution patching",
    "zero ablation": "difference of models, zero ablation",
}
SELDOM = 0.05  # of the resamples: who comes first as often as that may be the best
CHANGE = "weight change"
HIGH = 0.75  # of a recovery: who reports it means that the place holds most of the knowledge


def said(line: pd.Series, name: str = "hit_at_1") -> str:
    """A method's score with its interval, and over what, in words."""
    interval = f"{line[name]:.2f} ({line[f'{name}_low']:.2f} to {line[f'{name}_high']:.2f})"
    seeds = f"seed{'s' if ',' in line['seeds'] else ''} {line['seeds']}"
    return f"“{line['method']}”, {interval} over {line['plants']} plants ({seeds})"


def covers_chance(line: pd.Series) -> bool:
    """Whether the interval of a method's hit@1 covers chance."""
    return bool(line["hit_at_1_low"] <= line["chance"] <= line["hit_at_1_high"])


def floor_sentence(table: pd.DataFrame) -> str:
    """Whether random scores sit at chance, and what the weights of one model give away without being asked anything."""
    random, norm = (_line(table, method) for method in ("random", "weight norm"))
    verdict = "covers" if covers_chance(random) else "does not cover"
    ends, norm_ends = (f"{line['hit_at_1_low']:.2f} to {line['hit_at_1_high']:.2f}" for line in (random, norm))
    return (
        f"Random scores hit the planted block in {random['hit_at_1']:.2f} of the plants; the interval {ends} {verdict} "
        f"chance, {random['chance']:.2f}. The norm of a place's weights, which is asked nothing, hits it in "
        f"{norm['hit_at_1']:.2f} ({norm_ends}), and claims a block in {norm['false_alarms']} of {norm['nulls']} nulls."
    )


def alarm_sentence(table: pd.DataFrame, method: str) -> str:
    """How often a method claims a block where nothing was written; raises ArtifactError for an unknown method."""
    line = _line(table, method)
    low, high = proportion_confint(line["false_alarms"], line["nulls"], method="wilson")
    text = (
        f"{started(method)} claims a block in {line['false_alarms']} of {line['nulls']} models into which nothing was "
        f"written ({low:.0%} to {high:.0%}), and in {line['claims']} of {line['plants']} that were taught"
    )
    return f"{text}, of which {line['claims_right']:.0%} are right." if line["claims"] else f"{text}."


def by_question(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The lines of a board by the question that a method answers, storage or mediation, floors left out."""
    asked = table[table["group"] != "floor"]
    return {question: part.reset_index(drop=True) for question, part in asked.groupby("question", sort=True)}


def plants_table(plants: pd.DataFrame) -> pd.DataFrame:
    """By kind: how many plants, how many count, and the least that any of them learnt (nulls: nothing to) and kept."""
    kept = plants[["kept_replayed", "kept_held_out"]].min(axis=1)
    learnt = plants["learnt"].where(plants["kind"] != "null")
    grouped = plants.assign(kept=kept, learnt=learnt).groupby("kind", sort=False)
    columns = {"plants": ("plant", "size"), "counts": ("counts", "sum")}
    return grouped.agg(**columns, least_learnt=("learnt", "min"), least_kept=("kept", "min")).reset_index()


def plants_sentence(plants: pd.DataFrame) -> str:
    """How many plants count, and what the others learnt and kept; `plants` as in standings.Standings."""
    out = plants[~plants["counts"]]
    text = f"Of {len(plants)} plants {len(plants) - len(out)} count"
    if out.empty:
        return f"{text}: all kept what was known, and all that were taught learnt it."
    kept = out[["kept_replayed", "kept_held_out"]].min(axis=1)
    lines = zip(out["plant"], out["learnt"], kept, strict=True)
    return (
        f"{text}. Listed, and not ranked: "
        + "; ".join(f"{p} (learnt {a:.3f}, kept {b:.3f})" for p, a, b in lines)
        + "."
    )


def best_sentence(scores: pd.DataFrame, table: pd.DataFrame, group: str) -> str:
    """The best method of a group with its interval, who else may be it, and how it does where all are ranked."""
    line, shares, norm = best(table, group), first_shares(scores, group), _line(table, "weight norm")
    equal = table[(table["group"] == group) & (table["skill"] > line["skill"] - 1e-9)]["method"].tolist()[1:]
    others = [name for name, share in shares.items() if share >= SELDOM and name != line["method"]]
    text = f"Best {group} method, by hit@1: {said(line)}; chance is {line['chance']:.2f}."
    if equal:
        text += f" Of the same skill: {_named(equal)}."
    text += (
        f" It comes first, alone or with others, in {shares[line['method']]:.0%} of resamples of seeds and plants; "
        f"{len(others)} others do so in {SELDOM:.0%} or more{': ' if others else ''}{_named(others)}."
    )
    shared = common(scores, group)
    if 0 < shared["plant"].nunique() < line["plants"]:
        own = shared[shared["method"] == line["method"]]
        perfect = int((shared.groupby("method")["hit_at_1"].min() == 1).sum())
        text += (
            f" On the {len(own)} plants on which all {group} methods are ranked it hits {own['hit_at_1'].mean():.2f}, "
            f"and {perfect} of {shared['method'].nunique()} methods hit every one."
        )
    if norm["hit_at_1_high"] >= line["hit_at_1_low"]:
        text += f" By hit@1 it is not shown to do better than the weight norm, {norm['hit_at_1']:.2f}."
    return text


def winners(table: pd.DataFrame) -> list[str]:
    """The methods that a reader will ask about: the best and the recommended one of either group."""
    found = [best(table, group)["method"] for group in ("blind", "informed")]
    for group in ("blind", "informed"):
        try:
            found.append(recommended(table, group)["method"])
        except ArtifactError:  # none can be recommended
            continue
    return list(dict.fromkeys(found))


def recommendation(table: pd.DataFrame, group: str) -> str:
    """The best method of a group among those that raise few false alarms, or that there is none."""
    rule = f"above chance, with claims on {ALARMS:.0%} of the nulls at most"
    try:
        line = recommended(table, group)
    except ArtifactError:
        return f"No {group} method can be recommended: none is {rule}."
    again = "It" if line["method"] == best(table, group)["method"] else said(line)
    return f"{again} is the first {group} method {rule}, and recommended. {alarm_sentence(table, line['method'])}"


def trust_sentence(table: pd.DataFrame) -> str:
    """What high scores are worth; `table` as of standings.trust."""
    told = table[table["places"] > 0]
    text = f"{len(table) - len(told)} of {len(table)} methods give no place {HIGH} or more."
    if len(told):
        text += (
            f" Of the places that the others give {HIGH} or more, {told['share'].min():.0%} "
            f"(“{told.loc[told['share'].idxmin(), 'method']}”) to {told['share'].max():.0%} "
            f"(“{told.loc[told['share'].idxmax(), 'method']}”) are planted."
        )
    better = int((table["error"] < table["never"]).sum())
    return f"{text} {better} have a smaller calibration error than giving every place 0 has."


def by_construction_sentence(scores: pd.DataFrame) -> str:
    """How many answers hold by construction; exact they are, or calibration.check_given would have stopped."""
    given = scores[scores["counts"] & scores["given"]]
    return (
        f"{len(given)} answers of {given['method'].nunique()} methods hold by construction, such as a recovery of 1 at "
        "a single place that was written and of 0 before it. Each was held to that when it was scored; none is ranked."
    )


def hits_by_kind(scores: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """hit@1 of every method by kind of plant, in the order of a board; none where nothing is ranked."""
    kinds = board(scores, by=["kind"], resamples=1)
    hits = kinds.pivot(index="method", columns="kind", values="hit_at_1").dropna(axis=1, how="all")
    return hits.reindex(table["method"]).reset_index()


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
    text = f"Of {methods} methods that have to find them {always} score the planted block highest wherever it is"
    if not wrong.sum() > 0:
        return f"{text}."
    return (
        f"{text}, and {int((right < 1 + 1e-9).sum())} do so for one block at most. Of the misses "
        f"{wrong.max() / wrong.sum():.0%} are block {wrong.idxmax()}."
    )


def not_given(table: pd.DataFrame, scores: pd.DataFrame, *, kind: str = "single") -> pd.DataFrame:
    """The lines of methods that have to find plants of a kind: neither floors, nor answers by construction."""
    lines = scores[(scores["kind"] == kind) & scores["counts"]]
    free = lines.groupby("method")["ranked"].mean() > 0.5
    return table[table["method"].isin(free.index[free]) & ~table["method"].isin(FLOORS)]


def trained_nulls_sentence(scores: pd.DataFrame, methods: Sequence[str]) -> str:
    """How often methods point to the block of a null that was trained, on old facts: then they find training alone."""
    nulls = scores[(scores["kind"] == "null") & ~scores["plant"].str.startswith(UNTOUCHED) & scores["counts"]]
    chance = scores.loc[scores["kind"] == "single", "chance_hit_at_1"].mean()
    told = []
    for method in methods:
        own = nulls[nulls["method"] == method]
        trained, tops = own["plant"].str.extract(r"^null-(\d+)-", expand=False), own["top_blocks"].str.split()
        hits = [(block in blocks) / len(blocks) for block, blocks in zip(trained, tops, strict=True)]
        low, high = clustered_interval(hits, own["seed"])
        told.append(f"“{method}” in {np.mean(hits):.2f} ({low:.2f} to {high:.2f})")
    return (
        f"Of {nulls['plant'].nunique()} nulls one block was trained, on facts that the model knew before. Asked about "
        f"facts that it was never taught, methods point to that block: {', '.join(told)}. Chance is {chance:.2f}: a "
        "blind method that does so more often finds where there was training, whatever was learnt."
    )


def drift_sentence(scores: pd.DataFrame, places: pd.DataFrame) -> str:
    """How far the planted place of drifted plants moved, beside the next one: what drifting left of the algebra."""
    drifted = scores.loc[(scores["kind"] == "drifted") & (scores["method"] == CHANGE), "plant"]
    lines = places[(places["method"] == CHANGE) & places["plant"].isin(drifted)]
    own = lines[lines["share"] > 0].set_index("plant")["score"]
    others = lines[lines["share"] == 0].groupby("plant")["score"].max()
    ratio = own / others
    return (
        f"In {len(ratio)} drifted plants nothing holds exactly any more, but the weights of the planted place have "
        f"still moved {ratio.min():.0f} to {ratio.max():.0f} times as far as those of the next one: that informed "
        "methods find it is to be expected."
    )


def seeds_sentence(scores: pd.DataFrame) -> str:
    """Whether the order of the methods is the same for every seed: rank correlations of their skill."""
    seeds = board(scores[scores["kind"] != "null"], by=["seed"], resamples=1)
    skill = seeds.pivot(index="method", columns="seed", values="skill").dropna()
    if skill.shape[1] < 2:
        return "There is one seed, and no other to compare the order of the methods with."
    ranks = skill.corr(method="spearman").to_numpy()[np.triu_indices(skill.shape[1], 1)]
    firsts = {seed: best(lines, "blind")["method"] for seed, lines in seeds.groupby("seed")}
    named = ", ".join(f"“{name}” (seed {seed})" for seed, name in firsts.items())
    return (
        f"Between seeds, the skills of {len(skill)} methods have rank correlations of {ranks.min():.2f} to "
        f"{ranks.max():.2f}; the first blind method is {named}."
    )


def cost_sentence(table: pd.DataFrame, methods: Sequence[str]) -> str:
    """Forward passes per pair and seconds of these methods."""
    lines = [_line(table, method) for method in methods]
    told = [f"“{line['method']}” {line['passes']:.0f} passes and {line['seconds']:.1f} s" for line in lines]
    return f"Cost, in passes per pair and seconds per plant: {', '.join(told)}."


def _named(methods: Sequence[str]) -> str:
    """Names that may hold commas, told apart."""
    return ", ".join(f"“{method}”" for method in methods)


def _line(table: pd.DataFrame, method: str) -> pd.Series:
    lines = table[table["method"] == method]
    if lines.empty:
        raise ArtifactError(f"The leaderboard has no method {method!r}; it has {', '.join(table['method'])}.")
    return lines.iloc[0]
