"""Metrics: how far a run is from answering as the clean run does, per pair and as a normalised effect.

A metric is a function of the logits at the answer position, that is, at the last token of the prompt. An answer of
several tokens is judged by its first one, which is why an answer and its foil must not begin alike. Following Zhang &
Nanda (arXiv 2309.16042, section 2), with R the right tokens and W the wrong ones, mostly the clean answer r alone and
the corrupted prompt's own answer r′ alone:

    logit_difference   Σ_R logit(r) − Σ_W logit(r′); of one token each, LD(r, r′) = logit(r) − logit(r′)
    log_probability    log Σ_R P(r), in nats
    probability        Σ_R P(r)
    rank               number of tokens more likely than the likeliest of R: 0 is the top
    kl_divergence      D(clean ‖ run), in nats: 0 for the clean run itself

Greater-than has sets: years after the one in question, and years before (appendix of the same). Their logits are summed
as published, so that where one set is larger, what raises all logits alike moves the difference too.

Effects are normalised as a *ratio of means* over pairs. The mean of per-pair ratios is nowhere offered: one pair
whose clean and corrupted runs hardly differ divides by almost nothing and owns the mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from helpers.pairs import PromptPair

METRICS = ("logit_difference", "log_probability", "probability", "rank", "kl_divergence")
QUANTITIES = {"denoising": "recovered", "noising": "destroyed"}


NO_TOKEN = -1  # fills a row of tokens up to the length of the longest


class MetricError(ValueError):
    """Values no metric can be computed from."""


def right_and_wrong(pairs: Sequence[PromptPair]) -> tuple[Tensor, Tensor]:
    """The right and the wrong tokens of every pair, `(pairs, tokens)` each, filled up with NO_TOKEN."""
    right, wrong = (
        pad_sequence([torch.tensor(tokens) for tokens in sets], batch_first=True, padding_value=NO_TOKEN)
        for sets in ([pair.right for pair in pairs], [pair.wrong for pair in pairs])
    )
    return right, wrong


def at_tokens(values: Tensor, tokens: Tensor, *, absent: float) -> Tensor:
    """What rows `(rows, vocabulary)` hold at their `tokens`, `(rows, tokens)`, and `absent` where there is no token."""
    return values.gather(-1, tokens.clamp(min=0)).masked_fill(tokens == NO_TOKEN, absent)


def score(
    logits: Tensor,
    *,
    answer: Tensor,
    foil: Tensor,
    clean_logits: Tensor | None = None,
    metrics: Sequence[str] = METRICS,
) -> dict[str, Tensor]:
    """Every asked metric of each row, `(rows,)`, in single precision or better.

    `logits` and `clean_logits` are `(rows, vocabulary)`; `answer` and `foil` are the right and the wrong tokens,
    `(rows,)` or, filled up with NO_TOKEN, `(rows, tokens)`. Raises MetricError for a metric that does not exist, and
    for kl_divergence without `clean_logits`.
    """
    check_metrics(metrics)
    if "kl_divergence" in metrics and clean_logits is None:
        raise MetricError("kl_divergence compares with the clean run: give clean_logits, or leave that metric out.")
    logits = _at_least_single(logits)
    log_probabilities = logits.log_softmax(-1)
    right, wrong = (tokens[:, None] if tokens.ndim == 1 else tokens for tokens in (answer, foil))
    best = at_tokens(logits, right, absent=-torch.inf).amax(-1, keepdim=True)
    log_probability = at_tokens(log_probabilities, right, absent=-torch.inf).logsumexp(-1)
    values = {
        "logit_difference": lambda: logit_difference(logits, right, wrong),
        "log_probability": lambda: log_probability,
        "probability": lambda: log_probability.exp(),
        "rank": lambda: (logits > best).sum(-1),
        "kl_divergence": lambda: _kl_divergence(_at_least_single(clean_logits).log_softmax(-1), log_probabilities),
    }
    return {name: values[name]() for name in metrics}


def logit_difference(logits: Tensor, right: Tensor, wrong: Tensor) -> Tensor:
    """The logits of the right tokens less those of the wrong ones, `(rows,)`; the tokens are `(rows, tokens)`."""
    return at_tokens(logits, right, absent=0).sum(-1) - at_tokens(logits, wrong, absent=0).sum(-1)


def check_metrics(metrics: Sequence[str]) -> None:
    """Raise MetricError unless every name is one of METRICS and there is at least one."""
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics or isinstance(metrics, str):
        raise MetricError(f"metrics must be a sequence of names among {', '.join(METRICS)}, not {metrics!r}.")


def with_effects(sweep: pd.DataFrame, runs: pd.DataFrame, *, metric: str = "logit_difference") -> pd.DataFrame:
    """A sweep with the effect of every patch, in the unit of `metric`: adds clean, corrupted, numerator, denominator.

    `sweep` is a result of `patching.sweep`, `runs` of `patching.measure_runs` for the same pairs. The numerator is what
    denoising restores, patched − corrupted, or what noising destroys, clean − patched; the denominator is
    clean − corrupted. Raises MetricError when a column or a pair is missing, or a value is NaN.
    """
    _check_table("sweep", sweep, {"pair", "direction", metric}, metric)
    _check_table("runs", runs, {"pair", "run", metric}, metric)
    ends = _ends(runs, metric)
    if absent := sorted(set(sweep["pair"]) - set(ends.index)):
        raise MetricError(f"The runs of the pair {absent[0]} are not measured ({len(absent)} pairs in all).")
    effects = sweep.join(ends, on="pair")
    restored, destroyed = effects[metric] - effects["corrupted"], effects["clean"] - effects[metric]
    effects["numerator"] = restored.where(effects["direction"] == "denoising", destroyed)
    return effects.assign(denominator=effects["clean"] - effects["corrupted"])


def normalise(effects: pd.DataFrame, *, by: Sequence[str]) -> pd.DataFrame:
    """Recovery group by group, a ratio of means over pairs: one row per combination of the `by` columns, sorted.

    `effects` has the columns pair, direction, numerator, denominator. Columns: those of `by`, quantity, recovery,
    numerator, denominator, pairs. Denoising rows tell the share *recovered*, noising rows the share *destroyed*;
    `quantity` says which. Several rows of one pair in a group (the middle tokens of a subject, the heads of a layer,
    training seeds) are first averaged within the pair, so that every pair weighs the same. Recovery is NaN where the
    denominator is exactly 0. Raises MetricError when a group would mix the directions, or a column is missing.
    """
    by = list(by)
    _check_table("effects", effects, {*by, "pair", "direction", "numerator", "denominator"}, "numerator")
    if "direction" not in by and effects["direction"].nunique() > 1:
        raise MetricError("The table holds both directions and they must not be averaged: put 'direction' into `by`.")
    keys = [*by, *({"direction"} - set(by))]
    options = {"as_index": False, "dropna": False, "observed": True}
    parts = ["numerator", "denominator"]
    per_pair = effects.groupby([*keys, *({"pair"} - set(by))], **options)[parts].mean()
    per_pair = per_pair.assign(pairs=1)
    groups = per_pair.groupby(keys, **options)
    table = groups.agg(numerator=("numerator", "mean"), denominator=("denominator", "mean"), pairs=("pairs", "size"))
    table["recovery"] = table["numerator"] / table["denominator"].where(table["denominator"] != 0)
    table["quantity"] = table["direction"].map(QUANTITIES)
    return table[[*by, "quantity", "recovery", *parts, "pairs"]]


def recovery_table(
    sweep: pd.DataFrame, runs: pd.DataFrame, *, by: Sequence[str], metric: str = "logit_difference"
) -> pd.DataFrame:
    """Effects of a sweep, normalised group by group: `with_effects`, then `normalise`."""
    return normalise(with_effects(sweep, runs, metric=metric), by=by)


def _check_table(name: str, table: pd.DataFrame, columns: set[str], values: str) -> None:
    if missing := sorted(columns - set(table.columns)):
        raise MetricError(f"The {name} table has no column {', '.join(missing)}; it has {', '.join(table.columns)}.")
    if table[values].isna().any():
        pairs = table.loc[table[values].isna(), "pair"].unique()
        raise MetricError(f"{values} is NaN in the {name} table for the pair {pairs[0]} ({len(pairs)} pairs in all).")


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
