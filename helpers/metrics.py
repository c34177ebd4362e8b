"""Metrics: how far a run is from answering as the clean run does, per pair and as a normalised effect.

A metric is a function of the logits at the answer position, that is, at the last token of the prompt. An answer of
several tokens is judged by its first one, which is why an answer and its foil must not begin alike. Following Zhang &
Nanda (arXiv 2309.16042, section 2), with r the clean answer and r′ the corrupted prompt's own answer:

    logit_difference   LD(r, r′) = logit(r) − logit(r′)
    log_probability    log P(r), in nats
    probability        P(r)
    rank               number of tokens more likely than r: 0 is the top
    kl_divergence      D(clean ‖ run), in nats: 0 for the clean run itself

Effects are normalised as a *ratio of means* over pairs. The mean of per-pair ratios is nowhere offered: one pair
whose clean and corrupted runs hardly differ divides by almost nothing and owns the mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

METRICS = ("logit_difference", "log_probability", "probability", "rank", "kl_divergence")
QUANTITIES = {"denoising": "recovered", "noising": "destroyed"}


class MetricError(ValueError):
    """Values no metric can be computed from."""


def score(
    logits: Tensor,
    *,
    answer: Tensor,
    foil: Tensor,
    clean_logits: Tensor | None = None,
    metrics: Sequence[str] = METRICS,
) -> dict[str, Tensor]:
    """Every asked metric of each row, `(rows,)`, in single precision or better.

    `logits` and `clean_logits` are `(rows, vocabulary)`; `answer` and `foil` are the first tokens, `(rows,)`. Raises
    MetricError for a metric that does not exist, and for kl_divergence without `clean_logits`.
    """
    check_metrics(metrics)
    if "kl_divergence" in metrics and clean_logits is None:
        raise MetricError("kl_divergence compares with the clean run: give clean_logits, or leave that metric out.")
    logits = _at_least_single(logits)
    log_probabilities = logits.log_softmax(-1)
    at_answer = logits.gather(-1, answer[:, None])
    log_probability = log_probabilities.gather(-1, answer[:, None])[:, 0]
    values = {
        "logit_difference": lambda: (at_answer - logits.gather(-1, foil[:, None]))[:, 0],
        "log_probability": lambda: log_probability,
        "probability": lambda: log_probability.exp(),
        "rank": lambda: (logits > at_answer).sum(-1),
        "kl_divergence": lambda: _kl_divergence(_at_least_single(clean_logits).log_softmax(-1), log_probabilities),
    }
    return {name: values[name]() for name in metrics}


def check_metrics(metrics: Sequence[str]) -> None:
    """Raise MetricError unless every name is one of METRICS and there is at least one."""
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics or isinstance(metrics, str):
        raise MetricError(f"metrics must be a sequence of names among {', '.join(METRICS)}, not {metrics!r}.")


def recovery(patched, clean, corrupted) -> float:
    """The share of the clean–corrupted difference that patching restored: 0 as the corrupted run, 1 as the clean one.

    (mean patched − mean corrupted) / (mean clean − mean corrupted), each mean over the pairs, `(pairs,)`: Zhang & Nanda
    2.1, a ratio of means. Raises MetricError for no pair, for NaN, or when the two means are equal.
    """
    arrays = {"patched": patched, "clean": clean, "corrupted": corrupted}
    arrays = {name: np.asarray(values, dtype=float).ravel() for name, values in arrays.items()}
    sizes = {name: values.size for name, values in arrays.items()}
    if len(set(sizes.values())) != 1 or not sizes["patched"]:
        raise MetricError(f"recovery needs the same pairs in its three runs, and at least one; it was given {sizes}.")
    for name, values in arrays.items():
        if bad := int(np.isnan(values).sum()):
            raise MetricError(f"{bad} of {values.size} {name} values are NaN: find the pair whose run gave no number.")
    means = {name: values.mean() for name, values in arrays.items()}
    denominator = means["clean"] - means["corrupted"]
    if denominator == 0:
        raise MetricError(
            f"The clean and corrupted means are both {means['clean']:g}, so there is no difference to recover: "
            "compare the un-normalised effects instead."
        )
    return float((means["patched"] - means["corrupted"]) / denominator)


def recovery_table(
    sweep: pd.DataFrame, runs: pd.DataFrame, *, by: Sequence[str], metric: str = "logit_difference"
) -> pd.DataFrame:
    """Effects of a sweep, normalised group by group: one row per combination of the `by` columns.

    `sweep` is a result of `patching.sweep`, `runs` of `patching.measure_runs` for the same pairs. Columns: those of
    `by`, quantity, recovery, numerator, denominator, pairs. Denoising rows tell the share *recovered*,
    (mean patched − mean corrupted) / (mean clean − mean corrupted); noising rows the share *destroyed*,
    (mean clean − mean patched) / (mean clean − mean corrupted); `quantity` says which. Several rows of one pair in a
    group (the middle tokens of a subject, the heads of a layer) are first averaged within the pair, so that every pair
    weighs the same. Recovery is NaN where the denominator is exactly 0. Raises MetricError when a group would mix the
    directions, a column or a pair is missing, or a value is NaN.
    """
    by = list(by)
    for name, table, columns in (
        ("sweep", sweep, {*by, "pair", "direction", metric}),
        ("runs", runs, {"pair", "run", metric}),
    ):
        if missing := sorted(columns - set(table.columns)):
            raise MetricError(
                f"The {name} table has no column {', '.join(missing)}; it has {', '.join(table.columns)}."
            )
        if table[metric].isna().any():
            pairs = table.loc[table[metric].isna(), "pair"].unique()
            raise MetricError(
                f"{metric} is NaN in the {name} table for the pair {pairs[0]} ({len(pairs)} pairs in all)."
            )
    if "direction" not in by and sweep["direction"].nunique() > 1:
        raise MetricError("The sweep holds both directions and they must not be averaged: put 'direction' into `by`.")
    ends = _ends(runs, metric)
    if absent := sorted(set(sweep["pair"]) - set(ends.index)):
        raise MetricError(f"The runs of the pair {absent[0]} are not measured ({len(absent)} pairs in all).")
    keys = [*by, *({"direction"} - set(by))]
    rows_of_pair = [*keys, *({"pair"} - set(by))]
    per_pair = sweep.groupby(rows_of_pair, sort=False, dropna=False)[metric].mean().rename("patched").reset_index()
    per_pair = per_pair.join(ends, on="pair")
    means = per_pair.groupby(keys, sort=False, dropna=False).agg(
        patched=("patched", "mean"), clean=("clean", "mean"), corrupted=("corrupted", "mean"), pairs=("patched", "size")
    )
    table = means.reset_index()
    denoising = table["direction"] == "denoising"
    restored, removed = table["patched"] - table["corrupted"], table["clean"] - table["patched"]
    table["numerator"] = restored.where(denoising, removed)
    table["denominator"] = table["clean"] - table["corrupted"]
    table["recovery"] = table["numerator"] / table["denominator"].where(table["denominator"] != 0)
    table["quantity"] = table["direction"].map(QUANTITIES)
    return table[[*by, "quantity", "recovery", "numerator", "denominator", "pairs"]]


def _ends(runs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The clean and corrupted value of every pair, indexed by pair."""
    if runs.duplicated(["pair", "run"]).any():
        twice = runs.loc[runs.duplicated(["pair", "run"]), "pair"].iloc[0]
        raise MetricError(f"The runs table measures the pair {twice} more than once: keep one model's runs per table.")
    ends = runs.pivot(index="pair", columns="run", values=metric).reindex(columns=["clean", "corrupted"])
    if ends.isna().any(axis=None):
        half = ends.index[ends.isna().any(axis=1)][0]
        raise MetricError(f"The runs table lacks the clean or the corrupted run of the pair {half}.")
    return ends


def _kl_divergence(clean: Tensor, patched: Tensor) -> Tensor:
    """KL(clean ‖ patched) of log-probabilities, `(rows,)`; rounding may leave it just below 0, hence the clamp."""
    return (clean.exp() * (clean - patched)).sum(-1).clamp(min=0)


def _at_least_single(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
