"""The first MLP: what its high recovery says where it is known in which block the facts are.

Patching between subjects finds that the first MLP recovers much of the answer, and the study reads from it where facts
are and of which kind they are. On plants, whose place is known, four questions have answers:

    recovery_by_block    how much does MLP 0 recover when the facts are in another block?
    kinds_apart          does its share tell definitional facts from associative ones?
    subject_alone        what is left of it when the subject's last token alone is patched?
    against_base         how often does a method point to the right block, blind and as a difference against the base?

Each answer is a small table, and a sentence computed from it. Scores are those of `with_truth`: they have the columns
plant, kind (of the plant), planted_component, planted_layer, method, component, layer and score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu

from helpers.report import Answer
from helpers.standings import clustered_interval
from helpers.stats import StatisticsError, contrasts

PLANTED = ["planted_component", "planted_layer"]
KINDS = ("definitional", "associative")


def with_truth(scores: pd.DataFrame, places: pd.DataFrame, *, kinds: Sequence[str] = ("single",)) -> pd.DataFrame:
    """The leaderboard's lines per place (helpers.standings) of plants with one planted place that count."""
    counting = scores.loc[scores["counts"] & scores["kind"].isin(kinds), ["method", "plant", "kind"]]
    lines = places.merge(counting, on=["method", "plant"])
    truth = lines.loc[lines["share"] > 0, ["plant", "component", "layer"]].drop_duplicates()
    truth = truth[~truth["plant"].duplicated(keep=False)]
    return lines.merge(truth.set_axis(["plant", *PLANTED], axis=1), on="plant").drop(columns="share")


def recovery_by_block(scores: pd.DataFrame, *, method: str) -> Answer:
    """A method's score of MLP 0 and of the planted place, a mean over the plants of each place.

    Columns: planted_component, planted_layer, score_mlp_0, score_planted, plants. Raises StatisticsError for no such
    score, and where no plant is outside MLP 0.
    """
    rows = _of(scores, method)
    first, planted = rows[_is_first(rows)], rows[_is_planted(rows)]
    values = first.set_index(["plant", *PLANTED])["score"].rename("score_mlp_0").to_frame()
    at_planted = planted.set_index(["plant", *PLANTED])["score"].rename("score_planted")
    values = values.join(at_planted, how="inner").reset_index()
    table = values.groupby(PLANTED, as_index=False).agg(
        score_mlp_0=("score_mlp_0", "mean"), score_planted=("score_planted", "mean"), plants=("plant", "nunique")
    )
    elsewhere = table[(table["planted_layer"] != 0) | (table["planted_component"] != "mlp_out")]
    if elsewhere.empty:
        raise StatisticsError(f"{method!r} was asked of no plant outside MLP 0, so nothing can be said of MLP 0.")
    low, high = elsewhere["score_mlp_0"].min(), elsewhere["score_mlp_0"].max()
    more = int((elsewhere["score_mlp_0"] > elsewhere["score_planted"]).sum())
    sentence = (
        f"By {method}, MLP 0 scores between {low:.2f} and {high:.2f} where the facts are elsewhere, and more than the "
        f"place that they are in for {more} of {len(elsewhere)} places."
    )
    return Answer(table, sentence)


def outside_block_0(effects: pd.DataFrame, known: pd.DataFrame, *, methods: Sequence[str]) -> pd.DataFrame:
    """Lines of some methods about plants whose facts are outside block 0; `known` as of with_truth."""
    plants = known.loc[known["planted_layer"] > 0, "plant"]
    return effects[effects["method"].isin(methods) & effects["plant"].isin(plants)]


def kinds_apart(effects: pd.DataFrame, *, resamples: int, confidence: float, seed: int) -> Answer:
    """Whether what MLP 0 recovers of each pair differs between kinds of facts: per method, over pairs.

    `effects` has pair, fact_kind, method, component, layer, numerator and denominator; rows of one pair (its plants)
    are summed first, and a kind's share is a ratio of sums over pairs. Columns: method, definitional, associative,
    difference, low, high, null_low, null_high, items, auroc (that a definitional pair's own share is above an
    associative one's, ties half), without (pairs that have no share of their own, as their denominator is not above 0).
    Raises StatisticsError where a kind is missing.
    """
    rows = effects[_is_first(effects)].assign(kind=lambda lines: lines["fact_kind"])
    shares = rows.groupby(["method", "pair", "kind"], as_index=False)[["numerator", "denominator"]].sum()
    options = {"resamples": resamples, "confidence": confidence, "seed": seed}
    table = contrasts(shares, by=["method"], item="pair", kinds=KINDS, **options)
    areas, without = [], []
    for method in table["method"]:
        asked = shares[shares["method"] == method]
        own = asked[asked["denominator"] > 0]
        one, other = ((own["numerator"] / own["denominator"])[own["kind"] == kind] for kind in KINDS)
        areas.append(float(mannwhitneyu(one, other).statistic) / (len(one) * len(other)))
        without.append(len(asked) - len(own))
    table = table.assign(auroc=areas, without=without)
    apart = table[(table["low"] > 0) | (table["high"] < 0)]
    widest = table.loc[(table["auroc"] - 0.5).abs().idxmax()]
    sentence = (
        f"What MLP 0 recovers differs between definitional and associative facts, by an interval that excludes 0, for "
        f"{len(apart)} of {len(table)} methods; the AUROC furthest from one half is {widest['auroc']:.2f} "
        f"(“{widest['method']}”)."
    )
    return Answer(table, sentence)


def subject_alone(scores: pd.DataFrame, *, everywhere: str, subject: str) -> Answer:
    """A method at the subject's last token against the same at all positions: of MLP 0 and of the planted place.

    `everywhere` and `subject` are the two methods' names; plants of MLP 0 itself are left out. Columns: place ("MLP 0",
    "planted"), all, subject_last, ratio (of means over plants; NaN where `all` is 0), plants. Raises StatisticsError
    for no such scores.
    """
    lines = []
    for place, is_place in (("MLP 0", _is_first), ("planted", _is_planted)):
        ends = {}
        for name, method in (("all", everywhere), ("subject_last", subject)):
            rows = _of(scores, method)
            rows = rows[~((rows["planted_component"] == "mlp_out") & (rows["planted_layer"] == 0))]
            ends[name] = rows[is_place(rows)].set_index("plant")["score"]
        both = pd.DataFrame(ends).dropna()
        means = both.mean()
        share = means["subject_last"] / means["all"] if means["all"] else np.nan
        lines.append({"place": place, **means.to_dict(), "ratio": share, "plants": len(both)})
    table = pd.DataFrame(lines)
    first, planted = table["ratio"]
    sentence = (
        f"The subject's last token alone keeps {first:.2f} of what MLP 0 recovers at all positions, and {planted:.2f} "
        f"of what the planted place does, over {table['plants'].min()} plants elsewhere than in MLP 0."
    )
    return Answer(table, sentence)


def against_base(scores: pd.DataFrame, *, differences: Mapping[str, str]) -> Answer:
    """How often a method hits the planted block: blind, and as a difference against the base, on the same plants.

    `scores` are the leaderboard's (helpers.standings), `differences` gives the difference method by its blind method's
    name. Columns: blind, difference (names), blind_hits, difference_hits, gain, low, high (seeds, then plants are
    resampled), first_block (share of plants in which the blind method points to block 0 alone, and is wrong), plants.
    Raises StatisticsError for methods that have no plant in common.
    """
    ranked = scores[scores["ranked"] & scores["hit_at_1"].notna()].set_index(["method", "plant"])
    lines = []
    for blind, difference in differences.items():
        if not {blind, difference} <= set(ranked.index.get_level_values("method")):
            raise StatisticsError(f"{blind!r} or {difference!r} is ranked on no plant.")
        before, after = ranked.loc[blind], ranked.loc[difference]
        before, after = (rows[rows.index.isin(before.index.intersection(after.index))] for rows in (before, after))
        if before.empty:
            raise StatisticsError(f"{blind!r} and {difference!r} were asked of no plant in common.")
        gain = after["hit_at_1"].reindex(before.index) - before["hit_at_1"]
        low, high = clustered_interval(gain, before["seed"])
        hits = {"blind_hits": before["hit_at_1"].mean(), "difference_hits": after["hit_at_1"].mean()}
        wrong = ((before["top_blocks"] == "0") & (before["hit_at_1"] == 0)).mean()
        ends = {"gain": gain.mean(), "low": low, "high": high, "first_block": wrong, "plants": len(before)}
        lines.append({"blind": blind, "difference": difference, **hits, **ends})
    table = pd.DataFrame(lines)
    better = int((table["low"] > 0).sum())
    sentence = (
        f"Taking the base's score away raises the share of hits, by an interval that excludes 0, for {better} of "
        f"{len(table)} methods; the gains are {table['gain'].min():+.2f} to {table['gain'].max():+.2f}. Blind, they "
        f"point to block 0 alone, and are wrong, in {table['first_block'].min():.0%} to "
        f"{table['first_block'].max():.0%} of plants."
    )
    return Answer(table, sentence)


def _of(scores: pd.DataFrame, method: str) -> pd.DataFrame:
    rows = scores[(scores["method"] == method) & scores["planted_layer"].notna()]
    if rows.empty:
        raise StatisticsError(f"There is no score of {method!r} for a plant whose place is known.")
    if rows.duplicated(["plant", *PLANTED, "component", "layer"]).any():
        raise StatisticsError(f"{method!r} scores a place of one plant more than once: give one score per place.")
    return rows


def _is_first(rows: pd.DataFrame) -> pd.Series:
    return (rows["component"] == "mlp_out") & (rows["layer"] == 0)


def _is_planted(rows: pd.DataFrame) -> pd.Series:
    return (rows["component"] == rows["planted_component"]) & (rows["layer"] == rows["planted_layer"])
