"""Floors: what the probability of the answer cannot show, because it cannot fall below 0.

Denoising adds P_patched(r) − P_corrupted(r) to the corrupted run, which is never below −P_corrupted(r). Where the
corruption leaves the answer almost no probability, heads that work against it have nothing to take away, and the metric
detects none (Zhang & Nanda, arXiv 2309.16042, section 4.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from helpers.detection import DetectionError, head_names

DOTS = ["method", "metric", "layer", "head", "score", "threshold_low", "threshold_high", "floor", "marked"]
OTHERS = ("logit_difference", "kl_divergence")  # metrics that have no floor there


def probability_floor(detected: pd.DataFrame, runs: pd.DataFrame, *, by: Sequence[str]) -> pd.DataFrame:
    """The lowest probability effect there can be, beside the threshold and the heads that other metrics call negative.

    `detected` is a table of `detection.detect` by `by`, direction and metric; denoising alone is looked at. `runs` has
    the columns `by`, pair, draw, run ("clean", "corrupted") and probability. One row per group of `by`:

        corrupted_probability       mean P_corrupted(r), over draws and then pairs; the floor is its negative
        lowest, lowest_head         the lowest effect of a head
        mean, deviation             over heads
        threshold_low               the effect at or below which a head is detected as negative
        out_of_reach                True where that is below the floor: then no head can be detected as negative
        negative                    the heads that probability detects as negative, "layer.head, …"
        negative_logit_difference, negative_kl_divergence   those that the other metrics do; absent if not measured
        missed                      heads that one of these detects as negative and probability does not

    Raises DetectionError when probability was not measured, or the runs are not those of the pairs that were patched.
    """
    by = list(by)
    denoised = detected[detected["direction"] == "denoising"].assign(name=head_names)
    if denoised[denoised["metric"] == "probability"].empty:
        raise DetectionError("There is no denoising effect by probability in the table, and so no floor: measure it.")
    others = [metric for metric in OTHERS if (denoised["metric"] == metric).any()]
    corrupted = runs[runs["run"] == "corrupted"]
    levels = corrupted.groupby([*by, "pair"])["probability"].agg(["mean", "size"]).groupby(by)
    rows = []
    for key, part in denoised.groupby(by, observed=True, sort=False):
        own = part[part["metric"] == "probability"]
        if own.empty:
            raise DetectionError(f"{', '.join(key)} has no effect by probability: measure it, or leave the group out.")
        level = _level(levels, key, own)
        lowest = own.loc[own["score"].idxmin()]
        negative = {metric: _negative(part[part["metric"] == metric]) for metric in ("probability", *others)}
        missed = [head for head in own["name"] if head not in negative["probability"]]
        missed = [head for head in missed if any(head in negative[metric] for metric in others)]
        rows.append(
            dict(zip(by, key, strict=True))
            | {"corrupted_probability": level, "lowest": lowest["score"], "lowest_head": lowest["name"]}
            | lowest[["mean", "deviation", "threshold_low"]].to_dict()
            | {"out_of_reach": bool(lowest["threshold_low"] < -level), "negative": ", ".join(negative["probability"])}
            | {f"negative_{metric}": ", ".join(negative[metric]) for metric in others}
            | {"missed": ", ".join(missed)}
        )
    return pd.DataFrame(rows)


def floor_dots(detected: pd.DataFrame, floors: pd.DataFrame, *, by: Sequence[str]) -> pd.DataFrame:
    """The dots of the drawing `head_dots`: every head by probability and by logit difference, with the floor.

    Columns: method (the values of `by`), metric, layer, head, score, threshold_low, threshold_high, floor (NaN but for
    probability), and marked: True for the heads that logit difference detects as negative.
    """
    by = list(by)
    kept = detected[(detected["direction"] == "denoising") & detected["metric"].isin(["probability", OTHERS[0]])]
    table = kept.merge(floors[[*by, "corrupted_probability"]], on=by, validate="many_to_one")
    table["method"] = table[by].astype(str).agg(" · ".join, axis=1)
    table["floor"] = -table["corrupted_probability"].where(table["metric"] == "probability")
    negative = (table["metric"] == OTHERS[0]) & (table["detected"] < 0)
    table["marked"] = negative.groupby([table["method"], table["layer"], table["head"]]).transform("any")
    table = table.sort_values("metric", ascending=False, kind="stable")  # probability first
    table["metric"] = table["metric"].map({"probability": "probability", OTHERS[0]: "normalised logit difference"})
    return table[DOTS]


def _level(levels, key: tuple, own: pd.DataFrame) -> float:
    """The mean corrupted probability of one group, whose pairs and draws must be those of its effects."""
    found = levels.get_group(key) if key in levels.groups else pd.DataFrame(columns=["mean", "size"])
    patched = {"pairs": int(own["pairs"].iat[0]), "draws": int(own["draws"].iat[0])}
    if len(found) != patched["pairs"] or (found["size"] != patched["draws"]).any():
        raise DetectionError(
            f"{', '.join(key)}: {patched['pairs']} pairs were patched in {patched['draws']} draws each, and the runs "
            f"have {len(found)} pairs with {int(found['size'].sum())} corrupted runs: give the runs of these pairs."
        )
    return float(found["mean"].mean())


def _negative(part: pd.DataFrame) -> list[str]:
    return part.loc[part["detected"] < 0, "name"].tolist()
