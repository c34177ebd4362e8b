"""Evidence: measured tables, turned into the numbers that the recommendations read (helpers.recommendations.KEYS).

Every function reads one source of data, and returns a table with verdicts.EVIDENCE: key, task, estimate, low, high,
detail. A quantity that could not be measured has no row. One that was, and is not defined, has a row without an
interval: what it divides by is not told from 0, or more than 1 − confidence of the resamples give no number.

What is read off detected heads is computed anew in every resample of helpers.detection, top and threshold included.
Only what the paper publishes is read, denoising by the published choice of tokens, unless a key asks for more: one
number for each key, task and corruption, chosen before anything is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from helpers.agreement import correlation, jaccard
from helpers.attended import Head
from helpers.backup import backups
from helpers.detection import DEVIATIONS, HeadScores, signs
from helpers.head_parts import MOVER, NEGATIVE_MOVER
from helpers.verdicts import EVIDENCE, EvidenceError
from helpers.zhang_nanda import KL, LD, PROBABILITY

IOI = "IOI"
BY = ("task", "tokens", "corruption", "direction", "metric")
STR, GN = CORRUPTIONS = ("STR", "GN")
DENOISING, NOISING = "denoising", "noising"
PATCHING = "patching"


@dataclass(frozen=True)
class _Way:
    """One way of patching: `scores` and signs `found` of its heads, `(1 + resamples, heads)`, the estimate first.

    `halves` are those of HeadScores, `(2, resamples, heads)`; `single_draws` has the estimate first.
    """

    heads: list[Head]
    scores: np.ndarray
    found: np.ndarray
    halves: np.ndarray
    single_draws: np.ndarray
    defined: bool


def head_evidence(scores: HeadScores, *, published: Mapping[str, str]) -> pd.DataFrame:
    """What the scores of heads say: tops and numbers under GN and STR, metrics, choices of tokens, directions.

    `scores` are by BY; `published` names each task's published choice of tokens. GN and STR may have different numbers
    of draws: heads are counted draw by draw. How much overlap is lost between two ways of patching is told from what
    other prompts lose: see `_lost`. Raises EvidenceError for scores by other columns, or a task in which two ways have
    different heads.
    """
    ways, rows = _ways(scores, BY), []
    for task, tokens in published.items():
        own = {key[1:]: way for key, way in ways.items() if key[0] == task}
        replaced, noised, mirrored = (STR, DENOISING, LD), (GN, DENOISING, LD), (STR, NOISING, LD)
        asked = [
            ("gn_over_str_peak", "heads", _ratio_of_tops, (noised, replaced)),
            ("gn_less_str_heads", "", _more_heads, (noised, replaced)),
            ("overlap_lost_to_direction", STR, _overlap_lost, (replaced, mirrored)),
        ]
        for corruption in CORRUPTIONS:
            by_ld, by_kl, by_probability = ((corruption, DENOISING, metric) for metric in (LD, KL, PROBABILITY))
            asked += [
                ("negatives_missed", corruption, _negatives_missed, (by_ld, by_kl, by_probability)),
                ("ld_kl_overlap", corruption, _overlap, (by_ld, by_kl)),
                ("ld_kl_correlation", corruption, _rank_correlation, (by_ld, by_kl)),
            ]
        asked = [(*what, [(tokens, *place) for place in places]) for *what, places in asked]
        for choices in combinations([choice for choice, *place in own if tuple(place) == replaced], 2):
            places = [(choice, *replaced) for choice in choices]
            asked.append(("overlap_lost_to_tokens", " and ".join(choices), _overlap_lost, places))
        for key, detail, statistic, places in asked:
            if set(places) <= set(own):
                chosen = [own[place] for place in places]
                rows.append(_of_heads(key, task, detail, statistic, chosen, scores.confidence))
    return evidence_table(rows)


def floor_evidence(scores: HeadScores, floors: pd.DataFrame, *, published: Mapping[str, str]) -> pd.DataFrame:
    """The floor of probability over its threshold; `scores` are by BY, `floors` are those of floors.probability_floor.

    The mean corrupted probability is taken as known; the threshold is resampled. Where the threshold is not negative
    it calls heads negative that help the answer, and has no ratio to the floor.
    """
    ways, rows = _ways(scores, BY), []
    for row in floors[floors["tokens"] == floors["task"].map(published)].to_dict("records"):
        place = row["task"], row["tokens"], row["corruption"], DENOISING, PROBABILITY
        if place in ways:
            key, over = "floor_over_threshold", _floor_over_threshold(row["corrupted_probability"])
            rows.append(_of_heads(key, row["task"], row["corruption"], over, [ways[place]], scores.confidence))
    return evidence_table(rows)


def method_evidence(scores: HeadScores) -> pd.DataFrame:
    """How other methods rank heads beside patching; `scores` are by task and method (PATCHING, or one of RANKED)."""
    ways = _ways(scores, ("task", "method"))
    return evidence_table(
        _of_heads(RANKED[method][0], task, "", RANKED[method][1], [ways[task, PATCHING], way], scores.confidence)
        for (task, method), way in ways.items()
        if method in RANKED and (task, PATCHING) in ways
    )


def missed_evidence(
    scores: HeadScores, parts: pd.DataFrame, later: pd.DataFrame, *, published: Mapping[str, str]
) -> pd.DataFrame:
    """How many movers and backup heads of the IOI task STR by logit difference does not detect, with either sign.

    `parts` is that of head_parts.head_parts, `later` that of backup.risers. Which heads these are is taken as known;
    the detection is resampled. Without any there is no row.
    """
    direct, standing_in = parts[parts["part"].isin([MOVER, NEGATIVE_MOVER])], backups(later)
    sought = {"direct_heads_missed": direct, "backup_heads_missed": standing_in}
    sought = {key: heads for key, heads in sought.items() if len(heads)}
    way = _ways(scores, BY).get((IOI, published.get(IOI), STR, DENOISING, LD))
    rows = []
    for key, heads in sought.items() if way else ():
        names = list(zip(heads["layer"], heads["head"], strict=True))
        if absent := [head for head in names if head not in way.heads]:
            raise EvidenceError(f"{len(absent)} of {len(names)} heads that act were not patched: sweep every head.")
        missed = _undetected([head in names for head in way.heads])
        rows.append(_of_heads(key, IOI, f"of {len(names)}", missed, [way], scores.confidence))
    return evidence_table(rows)


def evidence_row(key: str, task: str, estimate: float, ends: Sequence[float], detail: str) -> dict:
    """One row; `ends` are those of the interval, none where the quantity is not defined."""
    low, high = map(float, ends) if len(ends) else (np.nan, np.nan)
    return dict(zip(EVIDENCE, (key, task, float(estimate), low, high, detail), strict=True))


def evidence_table(rows: Iterable[dict]) -> pd.DataFrame:
    """Rows of evidence as a table, which has its columns also when it has no row."""
    return pd.DataFrame(list(rows), columns=EVIDENCE)


def _ratio_of_tops(one: _Way, other: _Way) -> np.ndarray:
    top, below = one.scores.max(-1), other.scores.max(-1)
    return np.divide(top, below, out=np.full_like(top, np.nan), where=below > 0)


def _more_heads(one: _Way, other: _Way) -> np.ndarray:
    return one.single_draws - other.single_draws


def _negatives_missed(one: _Way, other: _Way, blind: _Way) -> np.ndarray:
    both = (one.found < 0) & (other.found < 0)
    missed = (both & (blind.found >= 0)).sum(-1)
    return np.where(both.any(-1), missed, np.nan)  # where there is none to miss, none was missed by any merit


def _overlap(one: _Way, other: _Way) -> np.ndarray:
    return jaccard(one.found, other.found)


def _rank_correlation(one: _Way, other: _Way) -> np.ndarray:
    return correlation(rankdata(one.scores, axis=-1), rankdata(other.scores, axis=-1))


def _overlap_lost(one: _Way, other: _Way) -> np.ndarray:
    return _lost(jaccard, *(signs(way.halves, DEVIATIONS) for way in (one, other)))


def _correlation_lost(one: _Way, other: _Way) -> np.ndarray:
    return _lost(correlation, *(rankdata(way.halves, axis=-1) for way in (one, other)))


def _lost(alike: Callable, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How alike a way is to itself on other prompts, the mean of both ways, less how alike two ways are on others.

    Both are compared between halves of the prompts, so that two ways which differ in nothing lose nothing. `one` and
    `other` are `(2, resamples, heads)`. The table itself has no such number: the median over resamples is put first.
    """
    within = (alike(one[0], one[1]) + alike(other[0], other[1])) / 2
    lost = within - (alike(one[0], other[1]) + alike(other[0], one[1])) / 2
    known = lost[~np.isnan(lost)]
    return np.r_[np.median(known) if len(known) else np.nan, lost]


def _floor_over_threshold(level: float) -> Callable[[_Way], np.ndarray]:
    def over(way: _Way) -> np.ndarray:
        threshold = way.scores.mean(-1) - DEVIATIONS * way.scores.std(-1)
        return np.divide(-level, threshold, out=np.full_like(threshold, np.nan), where=threshold < 0)

    return over


def _undetected(among: list[bool]) -> Callable[[_Way], np.ndarray]:
    return lambda way: (way.found[:, among] == 0).sum(-1)


def _ways(scores: HeadScores, by: Sequence[str]) -> dict[tuple, _Way]:
    if set(scores.by) != set(by):
        raise EvidenceError(f"The heads were scored by {', '.join(scores.by)}: score them by {', '.join(by)}.")
    values = np.vstack([scores.table["score"].to_numpy(float), scores.resampled])
    ways = {}
    for number, (key, places) in enumerate(scores.groups(scores.by)):
        own = scores.table.iloc[places]
        heads = list(zip(own["layer"], own["head"], strict=True))
        found, halves, counts = signs(values[:, places], DEVIATIONS), scores.halves[..., places], scores.single_draws
        way = _Way(heads, values[:, places], found, halves, counts[:, number], bool(own["defined"].all()))
        ways[tuple(key[name] for name in by)] = way
    return ways


def _of_heads(key: str, task: str, detail: str, statistic: Callable, ways: Sequence[_Way], confidence: float) -> dict:
    """A row of a statistic of ways of patching, `(1 + resamples,)` with the estimate first."""
    if any(way.heads != ways[0].heads for way in ways):
        raise EvidenceError(f"The heads that were patched are not the same ones throughout {task}: sweep every head.")
    values = np.asarray(statistic(*ways), float)
    estimate, drawn = values[0], values[1:]
    sure = np.isnan(drawn).mean() <= 1 - confidence and not np.isnan(estimate)
    ends = np.nanquantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2]) if sure else ()
    return evidence_row(key, task, estimate, ends if all(way.defined for way in ways) else (), detail)


# What a method is asked for: to rank heads differently from patching, or as it does.
RANKED = {
    "zero ablation": ("correlation_lost_to_ablation", _correlation_lost),
    "attribution": ("attribution_correlation", _rank_correlation),
}
