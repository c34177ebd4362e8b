"""Measured: this run's own numbers and heads, as the tables that helpers.comparison puts beside the published cells.

All of it is denoising, as what is published. Which cells are published of a model or task is left to the comparison.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from helpers.comparison import HEADS, NUMBERS
from helpers.detection import DEVIATIONS, HeadScores, signs
from helpers.evidence import BY, DENOISING, GN, IOI, STR
from helpers.stats import recovery_intervals
from helpers.zhang_nanda import JOINT, LD, PEAKS, POSITIONS, PROBABILITY, PUBLISHED_WINDOW, RUN, TO_IO, TO_S1, VALUES

SIGNS = {"positive": 1, "negative": -1}
ATTENDED = {"IO": TO_IO, "S1": TO_S1}
JOINT_WINDOWS = (3, 5, 10)
NEITHER = {"corruption": "none", "tokens": "none"}


def compared_heads(scores: HeadScores, detected: pd.DataFrame, *, model: str, role: str) -> pd.DataFrame:
    """comparison.HEADS: every head with either sign, denoised at the tokens of `role`, or "all".

    `scores` are by evidence.BY, and `detected` is what detection.detect makes of them. `model` is the name that
    comparison.published_name gives.
    """
    said = {sign: pd.Series(0.0, index=scores.table.index) for sign in SIGNS}
    for _, places in scores.groups(BY):
        found = signs(scores.resampled[:, places], DEVIATIONS)
        for name, sign in SIGNS.items():
            said[name].iloc[places] = (found == sign).mean(0)
    tables = [
        detected.assign(model=model, role=role, sign=name, detected=detected["detected"] == sign, stability=said[name])
        for name, sign in SIGNS.items()
    ]
    table = pd.concat(tables, ignore_index=True)
    return table.loc[table["direction"] == DENOISING, HEADS].reset_index(drop=True)


def compared_numbers(
    *,
    model: str,
    published: Mapping[str, str],
    baselines: pd.DataFrame,
    noised: pd.DataFrame | None = None,
    attention: pd.DataFrame | None = None,
    restored: pd.DataFrame | None = None,
    positions: pd.DataFrame | None = None,
    tops: pd.DataFrame | None = None,
    over_noise: pd.DataFrame | None = None,
    resamples: int,
    confidence: float,
    seed: int,
) -> pd.DataFrame:
    """comparison.NUMBERS of all that was measured; what was not is left out, and has no rows.

    `published` names each task's published choice of tokens, which all tables but the first two are taken to be of:

        baselines     tasks.baseline of every task
        noised        GN runs: task, tokens, pair, run ("clean", "corrupted"), probability, a row per draw
        attention     off_distribution.attention_by_run of the movers
        restored      stats.recovery_intervals of restoration.restored_differences, by corruption; none without heads
        positions     windows.position_ratios by task, corruption and metric, of denoised MLPs
        tops          windows.peaks, the same, at the last subject token
        over_noise    windows.peak_ratio by task and metric, the same
    """
    options = {"resamples": resamples, "confidence": confidence, "seed": seed}
    tables = [_of_baselines(baselines)]
    if noised is not None:
        tables.append(_of_noise(noised, **options))
    if attention is not None:
        tables.append(_of_attention(attention, published))
    if restored is not None:
        tables.append(_of_values(restored, published))
    if positions is not None:
        tables.append(_of_windows(positions[positions["window"] == PUBLISHED_WINDOW], published, POSITIONS))
    for window in JOINT_WINDOWS if tops is not None else ():
        tables.append(_of_windows(tops[tops["window"] == window], published, JOINT.format(window)))
    if over_noise is not None:
        ratios = over_noise[over_noise["window"] == PUBLISHED_WINDOW].assign(corruption=f"{GN} over {STR}")
        tables.append(_of_windows(ratios, published, PEAKS))
    filled = [table.assign(model=model)[NUMBERS] for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=NUMBERS)


def _of_baselines(baselines: pd.DataFrame) -> pd.DataFrame:
    clean = baselines["run"] == "clean"
    table = baselines.rename(columns={"run": "tokens", "quantity": "metric"}).assign(corruption=STR, quantity=RUN)
    table.loc[clean, list(NEITHER)] = list(NEITHER.values())
    return table


def _of_noise(noised: pd.DataFrame, **options: float) -> pd.DataFrame:
    corrupted = noised[noised["run"] == "corrupted"]
    table = corrupted.assign(numerator=corrupted["probability"], denominator=1.0)
    found = recovery_intervals(table, by=["task", "tokens"], item="pair", **options)
    return found.rename(columns={"recovery": "estimate"}).assign(corruption=GN, metric=PROBABILITY, quantity=RUN)


def _of_attention(attention: pd.DataFrame, published: Mapping[str, str]) -> pd.DataFrame:
    kept = attention[attention["run"].isin(["clean", STR, GN]) & attention["role"].isin(ATTENDED)]
    table = kept.rename(columns={"run": "corruption", "share": "estimate"})
    table = table.assign(task=IOI, metric="attention", quantity=kept["role"].map(ATTENDED), tokens=published.get(IOI))
    table.loc[kept["run"] == "clean", list(NEITHER)] = list(NEITHER.values())
    return table


def _of_values(restored: pd.DataFrame, published: Mapping[str, str]) -> pd.DataFrame:
    table = restored.rename(columns={"recovery": "estimate"})
    return _undefined(table).assign(task=IOI, tokens=published.get(IOI), metric=LD, quantity=VALUES)


def _of_windows(ratios: pd.DataFrame, published: Mapping[str, str], quantity: str) -> pd.DataFrame:
    table = _undefined(ratios.rename(columns={"ratio": "estimate"}))
    return table.assign(tokens=table["task"].map(published), quantity=quantity)


def _undefined(table: pd.DataFrame) -> pd.DataFrame:
    """Without the numbers of what is not defined, which the comparison then says."""
    columns = ["estimate", "low", "high"]
    return table.assign(**table[columns].where(table["defined"]))
