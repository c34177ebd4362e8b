"""Prompt evidence: what is resampled over prompts alone, as rows of helpers.evidence.

These are the tops of single MLPs and of windows of them, and what noise does to the movers of the IOI task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pandas as pd

from helpers import windows
from helpers.detection import spoken
from helpers.evidence import CORRUPTIONS, DENOISING, GN, IOI, STR, evidence_row, evidence_table
from helpers.stats import bootstrap_interval, ratio
from helpers.zhang_nanda import LD, PROBABILITY

LAST, MIDDLE = "subject_last", "subject_middle"
NAMED = 0.1


def attention_evidence(shares: pd.DataFrame, *, resamples: int, confidence: float, seed: int) -> pd.DataFrame:
    """The larger of the movers' mean attention to IO and to S1, under STR less under GN, over prompts.

    `shares` is that of attended.attention_shares for the movers. No row without noise, or without movers that give IO
    more of their attention than S1 by NAMED in the clean run: there is nothing to lose.
    """
    places = [(corruption, role) for corruption in CORRUPTIONS for role in ("IO", "S1")]
    kept = shares[~shares["restored"].astype(bool) & shares["role"].isin(["IO", "S1"])]
    clean = kept[kept["corruption"] == "clean"].groupby("role")["share"].mean()
    if not {STR, GN} <= set(kept["corruption"]) or not clean.get("IO", 0) - clean.get("S1", 0) >= NAMED:
        return evidence_table([])
    items = kept.pivot_table("share", "pair", ["corruption", "role"])[places].to_numpy()
    options = {"resamples": resamples, "confidence": confidence, "seed": seed}
    return evidence_table([_over_prompts("attention_lost_to_gn", IOI, "", items, _tops_apart, (), **options)])


def restoration_evidence(
    restored: pd.DataFrame, heads: int, *, resamples: int, confidence: float, seed: int
) -> pd.DataFrame:
    """What restored values bring back under STR less under GN, each a ratio of means, over prompts.

    `restored` is that of restoration.restored_differences for `heads` heads; no row where there are none, or no noise.
    Not defined where nothing surely comes back under STR: there is nothing to lose.
    """
    if not heads or not {STR, GN} <= set(restored["corruption"]):
        return evidence_table([])
    wide = restored.pivot_table(["numerator", "denominator"], "pair", "corruption")
    places = [(part, corruption) for corruption in CORRUPTIONS for part in ("numerator", "denominator")]
    options = {"resamples": resamples, "confidence": confidence, "seed": seed}
    items, detail = wide[places].to_numpy(), f"values of {heads} heads"
    return evidence_table([_over_prompts("values_lost_to_gn", IOI, detail, items, _ratios_apart, (0, 1, 3), **options)])


def window_evidence(
    effects: pd.DataFrame,
    *,
    roles: Mapping[str, str],
    focus_window: int,
    resamples: int,
    confidence: float,
    seed: int,
) -> pd.DataFrame:
    """Tops of single MLPs and of windows of them at each task's role, and the focus on the last subject token.

    `effects` are those of windows.measure_windows with a column task, of the published choice of tokens; denoising of
    MLPs is read, and windows of half of the network at most, by the logit difference. The focus, last over middle
    subject tokens summed over layers, is that of windows of `focus_window` layers, of the pairs that have middle ones.
    Raises WindowError as helpers.windows does.
    """
    options = {"resamples": resamples, "confidence": confidence, "seed": seed}
    effects = effects[(effects["component"] == "mlp_out") & (effects["direction"] == DENOISING)]
    effects = effects[effects["metric"].isin([LD, PROBABILITY])]
    rows = []
    for task, role in roles.items():
        of_task = effects[effects["task"] == task]
        at_role = of_task[of_task["role"] == role]
        if at_role.empty:
            continue
        tops = windows.peaks(at_role[at_role["metric"] == LD], by=["corruption"], **options)
        for top in tops[(tops["window"] > 1) & (2 * tops["window"] <= tops["layers"])].to_dict("records"):
            detail = f"{top['corruption']}, {top['window']} layers"
            rows.append(_of_windows("joint_over_sum", task, detail, top))
        single = at_role[(at_role["window"] == 1) & (at_role["metric"] == LD)]
        if {STR, GN} <= set(single["corruption"]):
            (found,) = windows.peak_ratio(single, by=["task"], role=role, **options).to_dict("records")
            rows.append(_of_windows("gn_over_str_peak", task, f"MLPs, {spoken(role)}", found))
        for corruption, part in single.groupby("corruption", sort=False):
            grid = part.pivot_table("numerator", "pair", "layer")
            items = np.column_stack([grid, part.groupby("pair")["denominator"].mean()])
            detail = f"{corruption}, MLPs, {spoken(role)}"
            rows.append(_over_prompts("single_layer_peak", task, detail, items, _top_layer, (-1,), **options))
        for corruption, part in of_task[of_task["window"] == focus_window].groupby("corruption", sort=False):
            key, detail = "probability_over_ld_focus", f"{corruption}, {focus_window} layers"
            if len(items := _focused(part)):
                rows.append(_over_prompts(key, task, detail, items, _ratio_of_ratios, (1, 2, 3), **options))
    return evidence_table(rows)


def _top_layer(means: np.ndarray) -> np.ndarray:
    return (means[..., :-1] / means[..., -1:]).max(-1)


def _tops_apart(means: np.ndarray) -> np.ndarray:
    return means[..., :2].max(-1) - means[..., 2:].max(-1)


def _ratios_apart(means: np.ndarray) -> np.ndarray:
    return ratio(means[..., :2]) - ratio(means[..., 2:])


def _ratio_of_ratios(means: np.ndarray) -> np.ndarray:
    return ratio(means[..., :2]) / ratio(means[..., 2:])


def _focused(part: pd.DataFrame) -> np.ndarray:
    """Sums over layers of every pair that has both roles: last and middle by probability, then by logit difference."""
    places = [(metric, role) for metric in (PROBABILITY, LD) for role in (LAST, MIDDLE)]
    if not set(places) <= set(zip(part["metric"], part["role"], strict=True)):
        return np.empty((0, 4))
    wide = part[part["role"].isin([LAST, MIDDLE])].pivot_table("numerator", "pair", ["metric", "role", "layer"])
    wide = wide.dropna()
    return np.column_stack([wide[place].sum(axis=1) for place in places])


def _over_prompts(
    key: str, task: str, detail: str, items: np.ndarray, statistic: Callable, divisors: Iterable[int], **options: float
) -> dict:
    """A row of a statistic of column means over prompts, defined where the interval of every divisor is above 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate, ends = statistic(items.mean(0)), [bootstrap_interval(items, statistic, **options)]
    ends += [bootstrap_interval(items[:, [column]], lambda means: means[..., 0], **options) for column in divisors]
    defined = len(items) > 1 and all(low > 0 for low, _ in ends[1:])
    return evidence_row(key, task, estimate, ends[0] if defined else (), detail)


def _of_windows(key: str, task: str, detail: str, found: Mapping) -> dict:
    return evidence_row(key, task, found["ratio"], (found["low"], found["high"]) if found["defined"] else (), detail)
