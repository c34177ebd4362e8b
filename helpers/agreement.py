"""Agreement: whether two ways of patching rank heads alike, and whether they detect the same ones.

A method is a choice of corruption, metric, direction, draw, or of several of them. Every two methods are compared by

    rank correlation    Spearman's, over all heads
    Jaccard index       |A ∩ B| / |A ∪ B| of the detected heads with their signs: a head that is positive for one method
                        and negative for the other is two members. Two empty sets have none: NaN, not 1
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from helpers.detection import DEVIATIONS, DetectionError, HeadScores, signs, spoken

COLUMNS = (
    "first", "second", "rank_correlation", "rank_low", "rank_high", "jaccard", "jaccard_low", "jaccard_high",
    "shared", "first_heads", "second_heads", "heads",
)  # fmt: skip


def agreement(scores: HeadScores, *, methods: Sequence[str], deviations: float = DEVIATIONS) -> pd.DataFrame:
    """Every two methods beside each other, within each group of the other columns that `scores` were computed by.

    `methods` are those of the columns that tell methods apart. One row per two methods: the other columns, first,
    second, rank_correlation, jaccard, both with the interval of the resamples (rank_low, rank_high, jaccard_low,
    jaccard_high), shared (heads detected by both with one sign), first_heads, second_heads (detected by each), heads.
    Resampling adds chance to both methods, so that an interval may lie below its estimate: it tells how sure the
    agreement is, not how high it would be without chance. Raises DetectionError when `methods` are not among the
    columns of the scores, or two methods were not measured on the same heads.
    """
    if unknown := [name for name in methods if name not in scores.by] or not methods:
        raise DetectionError(
            f"Methods are told apart by {', '.join(scores.by)}, by which heads were scored; {unknown} is none of them."
        )
    others = [name for name in scores.by if name not in methods]
    names = scores.table[list(methods)].astype(str).agg(" · ".join, axis=1).map(spoken).to_numpy()
    rows = []
    for key, within in scores.groups(others):
        places = {name: within[names[within] == name] for name in dict.fromkeys(names[within])}
        _check_same_heads(scores.table, places)
        judged = {name: _judged(scores, place, deviations) for name, place in places.items()}
        for first, second in combinations(places, 2):
            rows.append(key | {"first": first, "second": second} | _compared(judged[first], judged[second], scores))
    return pd.DataFrame(rows, columns=[*others, *COLUMNS])


def jaccard(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of signed sets given as 1, −1 and 0, `(…, heads)`; NaN where both are empty."""
    shared = ((first == second) & (first != 0)).sum(-1)
    either = (first != 0).sum(-1) + (second != 0).sum(-1) - shared
    with np.errstate(invalid="ignore"):
        return shared / either


def correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson's, of `(…, heads)`; NaN where one of the two does not vary. Of ranks, it is Spearman's."""
    one, other = (values - values.mean(-1, keepdims=True) for values in (first, second))
    with np.errstate(invalid="ignore"):
        return (one * other).sum(-1) / np.sqrt((one**2).sum(-1) * (other**2).sum(-1))


def _judged(scores: HeadScores, rows: np.ndarray, deviations: float) -> tuple[np.ndarray, np.ndarray]:
    """Ranks and signs of one method's heads, `(1 + resamples, heads)` each: the estimate, then every resample."""
    values = np.vstack([scores.table["score"].to_numpy()[rows], scores.resampled[:, rows]])
    return rankdata(values, axis=-1), signs(values, deviations)


def _compared(one: tuple, other: tuple, scores: HeadScores) -> dict:
    ranked, overlap = correlation(one[0], other[0]), jaccard(one[1], other[1])
    found = {"rank_correlation": ranked[0], "jaccard": overlap[0], "heads": one[1].shape[-1]}
    for name, values in (("rank", ranked[1:]), ("jaccard", overlap[1:])):
        ends = (1 - scores.confidence) / 2, (1 + scores.confidence) / 2
        known = values[~np.isnan(values)]
        low, high = np.quantile(known, ends) if len(known) else (np.nan, np.nan)
        found |= {f"{name}_low": low, f"{name}_high": high}
    first, second = one[1][0], other[1][0]
    found |= {"shared": int(((first == second) & (first != 0)).sum())}
    return found | {"first_heads": int((first != 0).sum()), "second_heads": int((second != 0).sum())}


def _check_same_heads(table: pd.DataFrame, places: dict[str, np.ndarray]) -> None:
    heads = {name: table[["layer", "head"]].iloc[rows].to_numpy().tolist() for name, rows in places.items()}
    first, *rest = heads
    for name in rest:
        if heads[name] != heads[first]:
            raise DetectionError(
                f"{first} scored {len(heads[first])} heads and {name} {len(heads[name])}, not the same ones: compare "
                f"methods on one model."
            )
