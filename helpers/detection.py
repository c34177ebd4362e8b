"""Detection: the published effect of every head, and which heads stand out from all others.

Effects of the three metrics of Zhang & Nanda (arXiv 2309.16042, section 2), and of one more in the same form:

    logit_difference    [LD_patched − LD_corrupted] / [LD_clean − LD_corrupted]: a ratio of means over pairs
    probability         P_patched(r) − P_corrupted(r), and log_probability alike, in nats
    kl_divergence       D(clean ‖ corrupted) − D(clean ‖ patched), in nats

Noising has the mirror image of each, what it destroys; positive is always what helps the clean answer. The divergence
that noising causes is never negative. Pairs weigh the same, and so do the draws (of noise, or of the replacement)
within a pair.

The paper gives no error bars. Ours resample pairs and draws as two crossed factors: every resample takes pairs at
random and draws at random, and each pair with each draw. Chance that belongs to neither is counted more than once
that way (Owen 2007, the pigeonhole bootstrap), so an interval over both is rather too wide than too narrow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd

from helpers.stats import ratio

SIGNS = {"logit_difference": 1, "probability": 1, "log_probability": 1, "kl_divergence": -1}
NORMALISED = ("logit_difference",)
CHOICES = ("task", "model", "tokens", "corruption", "direction", "role", "metric")  # which no score may average over
DEVIATIONS = 2.0  # of the paper's rule


class DetectionError(ValueError):
    """Effects from which no head can be scored, or scores that cannot be compared."""


@dataclass(frozen=True)
class HeadScores:
    """The score of every head by every method, and the scores of resampled pairs and draws.

    `table` has a row per group of `by`, layer and head, as `head_scores` describes it; `resampled` is `(resamples,
    rows)`, in the order of the table. Groups with the same pairs are resampled with the same pairs.

    `halves`, `(2, resamples, rows)`, are scores of two halves of the pairs, split anew and each resampled within
    itself: what one half says and the other does not is due to the pairs alone. `single_draws`, `(1 + resamples,
    groups)`, is how many heads one draw detects, the mean over draws, the estimate first and the groups as in the
    table: a score of many draws is less noisy than one of few, and detects other heads for that reason alone.
    """

    table: pd.DataFrame
    by: tuple[str, ...]
    resampled: np.ndarray
    halves: np.ndarray
    single_draws: np.ndarray
    confidence: float

    def groups(self, by: Sequence[str]) -> Iterator[tuple[dict, np.ndarray]]:
        """The values of `by`, in the order of the table, with the numbers of their rows; of no column, all rows."""
        if not by:
            yield {}, np.arange(len(self.table))
            return
        rows = pd.Series(np.arange(len(self.table)), index=self.table.index)
        keys = [self.table[name] for name in by]
        for key, part in rows.groupby(keys, observed=True, dropna=False, sort=False):
            yield dict(zip(by, key, strict=True)), part.to_numpy()


def head_scores(
    effects: pd.DataFrame, *, by: Sequence[str], resamples: int, confidence: float, seed: int
) -> HeadScores:
    """The published effect of every head in every group of `by`, with intervals over prompts and over draws.

    `effects` has component, layer, head, pair, draw, metric, numerator, denominator and the columns `by`; other
    components than head_out are passed over. Columns of the table: `by`, layer, head,

        score                       the published effect
        low, high                   its interval over pairs and draws
        prompt_low, prompt_high     its interval over pairs, with the draws that were made
        draw_deviation              standard deviation of the score over draws (ddof 1); NaN for a single draw
        effect                      the mean effect before it is divided, in the metric's own unit
        pairs, draws                how many
        defined                     False where the interval of the mean denominator includes 0, or there is one pair

    Raises DetectionError when a column is missing, a value is NaN, a metric has no published form, a group mixes one
    of CHOICES, or lacks some head for some pair and draw.
    """
    by = list(by)
    heads = _heads(effects, by)
    tables, drawn, halves, single_draws = [], [], [], []
    times_drawn, half_weights = cache(_times_drawn), cache(_half_weights)  # groups share their pairs' resamples
    for key, group in heads.groupby(by, observed=True, dropna=False, sort=False):
        values, sites = _grid(group, dict(zip(by, key, strict=True)))
        count, draws = values.shape[:2]
        weights = times_drawn(count, resamples, (seed, 0))
        by_draw, times = _means(values, weights), times_drawn(draws, resamples, (seed, 1))
        over_pairs, over_both = by_draw.mean(1), np.einsum("rd,rdhm->rhm", times, by_draw)
        (low, high), (floor, ceiling) = (
            _interval(ratio(over_both), confidence),
            _interval(over_both[..., 1], confidence),
        )
        prompt_low, prompt_high = _interval(ratio(over_pairs), confidence)
        means = values.mean((0, 1))
        columns = dict(zip(by, key, strict=True)) | {
            "layer": sites["layer"].to_numpy(),
            "head": sites["head"].to_numpy(),
            "score": ratio(means),
            "low": low,
            "high": high,
            "prompt_low": prompt_low,
            "prompt_high": prompt_high,
            "draw_deviation": ratio(values.mean(0)).std(0, ddof=1) if draws > 1 else np.nan,
            "effect": means[:, 0],
            "pairs": count,
            "draws": draws,
            "defined": (count > 1) & ~((floor <= 0) & (0 <= ceiling)),
        }
        tables.append(pd.DataFrame(columns))
        drawn.append(_finite(ratio(over_both)))
        both = [_means(values.mean(1), half) for half in half_weights(count, resamples, (seed, 2))]
        halves.append(_finite(ratio(np.stack(both))))
        one_draw = _heads_by_draw(np.vstack([values.mean(0)[None], by_draw]))
        single_draws.append(np.r_[one_draw[0].mean(), (one_draw[1:] * times).sum(-1)])
    return HeadScores(
        pd.concat(tables, ignore_index=True), tuple(by), np.concatenate(drawn, axis=1),
        np.concatenate(halves, axis=2), np.column_stack(single_draws), confidence,
    )  # fmt: skip


def detect(scores: HeadScores, *, deviations: float = DEVIATIONS) -> pd.DataFrame:
    """Which heads are at least `deviations` standard deviations from the mean over all heads (Zhang & Nanda, 2.3).

    The paper does not say which standard deviation; this one divides by the number of heads (ddof 0), since all heads
    are there. The rule looks at distance from the mean: a head detected as negative can have a positive effect. Among
    n heads none can be more than √(n − 1) deviations away, so fewer than five can have none at two. Adds to the
    table of `head_scores`: mean, deviation (over heads), threshold_low, threshold_high, detected (1, −1, or 0), and
    stability, the share of resamples that say the same of the head, with mean and deviation of their own.
    """
    table = scores.table.assign(mean=np.nan, deviation=np.nan, detected=0, stability=np.nan)
    columns = [table.columns.get_loc(name) for name in ("mean", "deviation", "detected", "stability")]
    for _, rows in scores.groups(scores.by):
        values = table["score"].to_numpy()[rows]
        found = signs(values, deviations)
        again = (signs(scores.resampled[:, rows], deviations) == found).mean(0)
        for column, value in zip(columns, (values.mean(), values.std(), found, again), strict=True):
            table.iloc[rows, column] = value
    low, high = (table["mean"] + side * deviations * table["deviation"] for side in (-1, 1))
    return table.assign(threshold_low=low, threshold_high=high)


def signs(values: np.ndarray, deviations: float) -> np.ndarray:
    """1, −1 or 0 for heads far above, far below, or near the mean of their row, of `(…, heads)`; all alike have 0."""
    mean, deviation = values.mean(-1, keepdims=True), values.std(-1, keepdims=True)
    above, below = values >= mean + deviations * deviation, values <= mean - deviations * deviation
    return np.where(np.ptp(values, axis=-1, keepdims=True) > 0, above.astype(int) - below.astype(int), 0)


def threshold_sweep(scores: HeadScores, *, deviations: Sequence[float] = (1, 1.5, 2, 2.5, 3, 3.5, 4)) -> pd.DataFrame:
    """How many heads are detected when the threshold is another one, which the paper never varies.

    One row per group and threshold: `by`, deviations, positive, negative, and kept, the share of the heads detected at
    DEVIATIONS that are detected here too (NaN where there is none).
    """
    rows = []
    for key, places in scores.groups(scores.by):
        values = scores.table["score"].to_numpy()[places]
        at_two = signs(values, DEVIATIONS) != 0
        for threshold in deviations:
            found = signs(values, threshold)
            kept = (found[at_two] != 0).mean() if at_two.any() else np.nan
            counts = {"positive": int((found > 0).sum()), "negative": int((found < 0).sum())}
            rows.append(key | {"deviations": threshold} | counts | {"kept": kept})
    return pd.DataFrame(rows)


def found_heads(detected: pd.DataFrame, *, by: Sequence[str]) -> pd.DataFrame:
    """The heads of every group of `by` as the paper's tables list them: `by`, positive, negative ("5.5, 7.9"), defined.

    `detected` is a table of `detect`; where there is no head, the text is empty.
    """
    rows = []
    for key, part in detected.assign(name=head_names).groupby(list(by), observed=True, dropna=False, sort=False):
        found = {word: part["name"][part["detected"] == sign] for word, sign in (("positive", 1), ("negative", -1))}
        listed = {word: ", ".join(names) for word, names in found.items()}
        rows.append(dict(zip(by, key, strict=True)) | listed | {"defined": bool(part["defined"].all())})
    return pd.DataFrame(rows)


def head_names(table: pd.DataFrame) -> pd.Series:
    """Every row's head as the field writes it, `layer.head`."""
    return table["layer"].astype(int).astype(str) + "." + table["head"].astype(int).astype(str)


def spoken(name: str) -> str:
    """A name of a column or of its values as a reader says it."""
    return name.replace("_", " ").replace("kl ", "KL ")


def _heads(effects: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    needed = ["component", "layer", "head", "pair", "draw", "metric", "numerator", "denominator", *by]
    if missing := sorted(set(needed) - set(effects.columns)):
        raise DetectionError(
            f"The effects have no column {', '.join(missing)}; they have {', '.join(effects.columns)}."
        )
    heads = effects[effects["component"] == "head_out"]
    if heads.empty:
        raise DetectionError("The effects hold no patch of a head: sweep the component head_out.")
    if broken := int(heads[["numerator", "denominator"]].isna().any(axis=1).sum()):
        raise DetectionError(f"{broken} of {len(heads)} effects of heads are NaN: find the patch that gave no number.")
    if other := sorted(set(heads["metric"]) - set(SIGNS)):
        raise DetectionError(f"There is no published effect by {', '.join(other)}: keep {', '.join(SIGNS)}.")
    return heads


def _grid(group: pd.DataFrame, key: dict) -> tuple[np.ndarray, pd.DataFrame]:
    """Effect and unit of one group, `(pairs, draws, heads, 2)`, with the layer and head of its third axis."""
    name = ", ".join(map(str, key.values()))
    if mixed := [choice for choice in CHOICES if choice in group and group[choice].nunique(dropna=False) > 1]:
        raise DetectionError(f"The group {name} holds more than one {mixed[0]}, which no score averages over: put "
                             f"{', '.join(mixed)} into `by`.")  # fmt: skip
    axes = ["pair", "draw", "layer", "head"]
    group = group.sort_values(axes)
    if group.duplicated(axes).any():
        pair, draw, layer, head = group.loc[group.duplicated(axes), axes].iloc[0]
        raise DetectionError(f"In the group {name} head {layer}.{head} is patched more than once for the pair {pair} "
                             f"and draw {draw}: put what differs into `by`.")  # fmt: skip
    sites = group[["layer", "head"]].drop_duplicates().sort_values(["layer", "head"]).astype(int)
    shape = group["pair"].nunique(), group["draw"].nunique(), len(sites)
    if len(group) != np.prod(shape):
        raise DetectionError(f"The group {name} has {len(group)} effects, and not one for each of {shape[0]} pairs × "
                             f"{shape[1]} draws × {shape[2]} heads: patch every head in every draw.")  # fmt: skip
    metric = group["metric"].iat[0]
    effect, unit = SIGNS[metric] * group["numerator"], group["denominator"] if metric in NORMALISED else 1.0
    values = pd.DataFrame({"effect": effect, "unit": unit}).to_numpy(float).reshape(*shape, 2)
    return values, sites


def _times_drawn(count: int, resamples: int, seed: tuple[int, int]) -> np.ndarray:
    """The weight of each of `count` units in every resample of as many units, `(resamples, count)`."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples) / count


def _half_weights(count: int, resamples: int, seed: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the units in two halves that have none in common, each resampled within itself, `(resamples, count)`.

    An odd unit is left out, another one every time. A single unit is no half: all weights are 0, and scores NaN.
    """
    rng, size = np.random.default_rng(seed), count // 2
    order = rng.permuted(np.tile(np.arange(count), (resamples, 1)), axis=1)
    halves = np.zeros((2, resamples, count))
    for half in halves if size else ():
        mine, order = order[:, :size], order[:, size:]
        np.put_along_axis(half, mine, rng.multinomial(size, np.full(size, 1 / size), size=resamples) / size, axis=1)
    return halves[0], halves[1]


def _means(values: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Means over the first axis, weighted in every resample, `(resamples, …)`."""
    return (pairs @ values.reshape(len(values), -1)).reshape(len(pairs), *values.shape[1:])


def _heads_by_draw(means: np.ndarray) -> np.ndarray:
    """How many heads every draw detects, `(resamples, draws)`, of `(resamples, draws, heads, 2)`."""
    return np.abs(signs(_finite(ratio(means)), DEVIATIONS)).sum(-1)


def _interval(values: np.ndarray, confidence: float) -> np.ndarray:
    """Both ends of the interval of every head, `(2, heads)`, of `(resamples, heads)`."""
    values, shares = _finite(values), ((1 - confidence) / 2, (1 + confidence) / 2)
    # Without a NaN both say the same, one of them a head at a time.
    return (np.nanquantile if np.isnan(values).any() else np.quantile)(values, shares, axis=0)


def _finite(scores: np.ndarray) -> np.ndarray:
    """NaN for a resample whose mean denominator is exactly 0, which has no score."""
    return np.where(np.isfinite(scores), scores, np.nan)
