"""Pointing: how well a method's scores of places point to where knowledge was written, and whether it points at all.

Two views of one answer are scored against a plant's truth, its `shares` (which part was written at which place):

    blocks   a block scores what the better of its two places does. hit@1: is the best block a planted one? Reciprocal
             rank: 1 / rank of the first planted block. Recall@2: which part of two planted blocks is in the first two?
    places   AUROC = P(a planted place scores more than another) + ½ P(as much). Rank correlation, over the planted
             places alone: was more written where the method scores more?

Equal scores are put in random order, and every number is its expectation over these orders: whoever scores all places
alike is at chance, and no lucky order of a table helps. Scores closer than about 1e-6 of the largest are equal, for
that is rounding; a score that is NaN (0 / 0) ranks last. Numbers that a plant does not define are NaN: block numbers
where nothing or every block was planted, recall but for two blocks, rank correlation where all shares are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb, nan

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from statsmodels.stats.proportion import proportion_confint

from helpers.agreement import correlation
from helpers.methods import COMPONENTS, PER_PAIR, PLACE, MethodError, Place, place_scores

Shares = Sequence[tuple[Place, float]]
SCORES = ("hit_at_1", "reciprocal_rank", "recall_at_2", "auroc", "rank_correlation")
SURE = 0.95  # of the resamples: less is no claim
FOUND = 0.1  # of clean − corrupted, or of whatever the method's unit is: a place that scores less is not found
DIGITS = 6  # of the largest score: what agrees to so many is equal


@dataclass(frozen=True)
class Claim:
    """Whether a method claims a block, and on what: shares of resamples (NaN without pairs), and the top score."""

    made: bool
    block: int | None
    something: float
    stable: float
    score: float


def point(scores: pd.DataFrame, shares: Shares) -> dict[str, float]:
    """Every one of SCORES for one answer; `scores` has the columns component, layer, score, one line per place."""
    return {
        "hit_at_1": hit_at_1(scores, shares),
        "reciprocal_rank": reciprocal_rank(scores, shares),
        "recall_at_2": recall_at_2(scores, shares),
        "auroc": auroc(scores, shares),
        "rank_correlation": rank_correlation(scores, shares),
    }


def hit_at_1(scores: pd.DataFrame, shares: Shares) -> float:
    """Probability that the best block, drawn among equals, is a planted one."""
    levels, planted = _blocks(scores, shares)
    return nan if planted is None else float(planted[levels == levels.max()].mean())


def reciprocal_rank(scores: pd.DataFrame, shares: Shares) -> float:
    """Expected 1 / rank of the first planted block.

    If a blocks are above, and t of the m blocks that are equal to it are planted, the first of them is the j-th of the
    m with probability C(m − j, t − 1) / C(m, t), and its rank is a + j.
    """
    levels, planted = _blocks(scores, shares)
    if planted is None:
        return nan
    best = levels[planted].max()
    above, equal = int((levels > best).sum()), levels == best
    m, t = int(equal.sum()), int((equal & planted).sum())
    return sum(comb(m - j, t - 1) / comb(m, t) / (above + j) for j in range(1, m - t + 2))


def recall_at_2(scores: pd.DataFrame, shares: Shares) -> float:
    """Expected share of two planted blocks that is among the first two; NaN for plants of another number of blocks."""
    levels, planted = _blocks(scores, shares)
    if planted is None or planted.sum() != 2:
        return nan
    above = (levels[None] > levels[planted][:, None]).sum(1)
    equal = (levels[None] == levels[planted][:, None]).sum(1)
    return float(np.clip((2 - above) / equal, 0, 1).mean())


def auroc(scores: pd.DataFrame, shares: Shares) -> float:
    """Probability that a planted place scores more than one that is not, ties counting half (Mann & Whitney's U)."""
    planted = np.array([_place(row) in dict(shares) for row in scores.itertuples()])
    if planted.all() or not planted.any():
        return nan
    ranks, count = rankdata(_levels(scores["score"])), planted.sum()
    return float((ranks[planted].sum() - count * (count + 1) / 2) / (count * (len(planted) - count)))


def rank_correlation(scores: pd.DataFrame, shares: Shares) -> float:
    """Spearman's correlation of score and share over the planted places; NaN where all shares are equal.

    Where the shares differ and the scores do not, it is 0: the order of equal scores is random.
    """
    truth = dict(shares)
    parts = np.array([truth.get(_place(row), 0.0) for row in scores.itertuples()])
    if len(set(parts[parts > 0])) < 2:
        return nan
    levels = _levels(scores["score"])[parts > 0]
    return 0.0 if len(set(levels)) < 2 else float(correlation(rankdata(levels), rankdata(parts[parts > 0])))


def chance(layers: int, *, planted: int = 1) -> dict[str, float]:
    """What scores that know nothing get in expectation for `planted` of `layers` blocks, one place in each.

    hit@1 = planted / layers; for one planted block the reciprocal rank is (1 + 1/2 + … + 1/layers) / layers; recall@2 =
    2 / layers; AUROC ½; rank correlation 0, or NaN for a single place.
    """
    scores = pd.DataFrame([(c, layer, 0.0) for layer in range(layers) for c in COMPONENTS], columns=[*PLACE, "score"])
    shares = [(Place("mlp_out", layer), 1 / planted) for layer in range(planted)]
    return point(scores, shares) | {"rank_correlation": 0.0 if planted > 1 else nan}


def top_blocks(scores: pd.DataFrame) -> frozenset[int]:
    """The block that scores most, or all that do."""
    layers, levels = _by_block(scores)
    return frozenset(layers[levels == levels.max()].tolist())


def same_top(first: frozenset[int], second: frozenset[int]) -> float:
    """Probability that two answers point to one block, each drawn among its best ones."""
    return len(first & second) / (len(first) * len(second))


def seed_agreement(tops: pd.DataFrame) -> pd.DataFrame:
    """How often two seeds of the same plant lead a method to the same block: method, kind, agreement, comparisons.

    `tops` has the columns method, kind, site (the plant's name but for its seed), seed, and top_blocks (sets of blocks,
    see top_blocks). Every two seeds of one site are compared; a kind without two seeds is left out.
    """
    rows = []
    for (method, kind), part in tops.groupby(["method", "kind"], sort=False):
        sites = [group["top_blocks"].tolist() for _, group in part.groupby("site", sort=True)]
        found = [same_top(one, other) for site in sites for one, other in combinations(site, 2)]
        if found:
            rows.append((method, kind, float(np.mean(found)), len(found)))
    return pd.DataFrame(rows, columns=["method", "kind", "agreement", "comparisons"])


def stability(found: pd.DataFrame, *, resamples: int = 1000, seed: int = 0) -> dict[str, float]:
    """What another sample of pairs would have said, by resampling pairs: stable_block and stable_places, means.

    `stable_block` is same_top of resample and whole; `stable_places` the Jaccard index of the places that reach half of
    the best score (only the best, where that is not above 0). NaN for answers without pairs, or with a single one.
    """
    if "pair" not in found or found["pair"].nunique() < 2:
        return {"stable_block": nan, "stable_places": nan}
    places, drawn = resampled(found, resamples=resamples, seed=seed)
    whole = places["score"].to_numpy()
    mine, others = _top_places(whole), _top_places(drawn)
    jaccard = (mine & others).sum(1) / (mine | others).sum(1)
    return {"stable_block": float(_kept(places, drawn).mean()), "stable_places": float(jaccard.mean())}


def claims(found: pd.DataFrame, *, resamples: int = 1000, seed: int = 0) -> Claim:
    """Whether an answer claims a block; on a plant into which nothing was written, a claim is a false alarm.

    An answer by pairs claims its top block when, in SURE of the resamples of pairs or more,

        there is something to localise: the mean denominator at its top place is above 0, and
        the answer is not a matter of which pairs were asked: the top block is the same (same_top)

    and when its top score is FOUND or more. Of an answer without pairs, or with a single one, nothing but the last can
    be asked; its top block must be one.
    """
    scores = place_scores(found).sort_values(["layer", "component"], kind="stable")
    best = scores["score"].fillna(-np.inf).idxmax()
    top, height = top_blocks(scores), float(scores.loc[best, "score"])
    something = stable = nan
    sure = len(top) == 1
    if "pair" in found and found["pair"].nunique() > 1:
        here = (found["component"] == scores.loc[best, "component"]) & (found["layer"] == scores.loc[best, "layer"])
        denominators = found[here].sort_values("pair")["denominator"].to_numpy()
        drawn = _times(len(denominators), resamples, seed) @ denominators
        something = float((drawn > 0).mean())
        stable = stability(found, resamples=resamples, seed=seed)["stable_block"]
        sure = something >= SURE and stable >= SURE
    made = bool(sure and height >= FOUND)
    return Claim(made, min(top) if made else None, something, stable, height)


def resampled(found: pd.DataFrame, *, resamples: int, seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Scores of an answer by pairs (PER_PAIR), and those of resamples of its pairs, `(resamples, places)`.

    The pairs are drawn in the order of their names, so that their order in the table changes nothing. Raises
    MethodError when a pair does not score every place once, or the answer is not by pairs.
    """
    if set(PER_PAIR) - set(found.columns) or found.duplicated(["pair", *PLACE]).any():
        raise MethodError(f"Only an answer by pairs can be resampled, with {', '.join(PER_PAIR)} once per pair.")
    wide = found.pivot(index="pair", columns=["layer", "component"], values=["numerator", "denominator"]).sort_index()
    if wide.isna().any(axis=None):
        raise MethodError("Not every pair scored every place: a resample would compare places over different pairs.")
    times = _times(len(wide), resamples, seed)
    columns = wide["numerator"].columns.sort_values()
    top, bottom = (wide[name][columns].to_numpy() for name in ("numerator", "denominator"))
    with np.errstate(divide="ignore", invalid="ignore"):
        whole, drawn = top.sum(0) / bottom.sum(0), (times @ top) / (times @ bottom)
    places = columns.to_frame(index=False)[PLACE].assign(score=whole)
    return places, drawn


def reliability(places: pd.DataFrame, *, bins: int = 10, confidence: float = 0.95) -> pd.DataFrame:
    """When a method says 0.8, how often is it right? Scores clipped to [0, 1], in bins of equal width.

    `places` has a line per plant and place: score, planted; NaN scores are left out. Columns: bin, said (mean score),
    right (share of places that are planted), low, high (Wilson), places. Empty bins have no line. The intervals take
    places to be independent, which those of one plant are not: they are too short rather than too long.
    """
    known = places.dropna(subset="score")
    said = known["score"].astype(float).clip(0, 1)
    number = np.minimum((said * bins).astype(int), bins - 1)
    grouped = pd.DataFrame({"bin": number, "said": said, "planted": known["planted"].astype(bool)}).groupby("bin")
    table = grouped.agg(said=("said", "mean"), count=("planted", "sum"), places=("planted", "size")).reset_index()
    low, high = proportion_confint(table["count"], table["places"], alpha=1 - confidence, method="wilson")
    table = table.assign(right=table["count"] / table["places"], low=low, high=high)
    return table[["bin", "said", "right", "low", "high", "places"]]


def calibration_error(table: pd.DataFrame) -> float:
    """Expected calibration error: |right − said| of a place, a mean over the places of `reliability`; NaN for none."""
    if table.empty:
        return nan
    return float(np.average((table["right"] - table["said"]).abs(), weights=table["places"]))


def _place(row) -> Place:
    return Place(row.component, int(row.layer))


def _levels(scores) -> np.ndarray:
    """Scores, `(…, places)`, in units of the largest and rounded: equal up to rounding is equal; NaN is lowest."""
    scores = np.asarray(scores, dtype=float)
    known = np.where(np.isfinite(scores), np.abs(scores), 0)
    largest = known.max(-1, keepdims=True)
    levels = np.round(scores / np.where(largest > 0, largest, 1), DIGITS) + 0.0  # −0 is 0
    return np.where(np.isnan(levels), -np.inf, levels)


def _by_block(scores: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Layers, and the level of the better place of each."""
    best = pd.Series(_levels(scores["score"])).groupby(scores["layer"].to_numpy()).max()
    return best.index.to_numpy(), best.to_numpy()


def _blocks(scores: pd.DataFrame, shares: Shares) -> tuple[np.ndarray, np.ndarray | None]:
    """Levels of the blocks, and which are planted: None where that is none or all, and there is nothing to find."""
    layers, levels = _by_block(scores)
    planted = np.isin(layers, [place.layer for place, share in shares if share > 0])
    return levels, planted if 0 < planted.sum() < len(planted) else None


def _times(items: int, resamples: int, seed: int) -> np.ndarray:
    """How often each item is drawn in each resample, `(resamples, items)`."""
    chosen = np.random.default_rng(seed).multinomial(items, np.full(items, 1 / items), size=resamples)
    return chosen.astype(float)


def _top_places(scores: np.ndarray) -> np.ndarray:
    """Which places, `(…, places)`, reach half of the best score, or are the best where that is not above 0."""
    levels = _levels(scores)
    best = levels.max(-1, keepdims=True)
    return levels >= np.where(best > 0, best / 2, best)


def _kept(places: pd.DataFrame, drawn: np.ndarray) -> np.ndarray:
    """For every resample the probability that its top block is that of the whole (see same_top)."""
    layers = places["layer"].to_numpy()
    blocks = np.unique(layers)

    def tops(scores: np.ndarray) -> np.ndarray:
        levels = _levels(scores)
        best = np.stack([levels[..., layers == block].max(-1) for block in blocks], axis=-1)
        return best == best.max(-1, keepdims=True)

    whole, others = tops(places["score"].to_numpy()), tops(drawn)
    return (whole & others).sum(1) / (whole.sum() * others.sum(1))
