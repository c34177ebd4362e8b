"""Strangeness: how far a corrupted run's residual stream is from anything that clean prompts put there.

A corrupted run that is on the distribution has, at the corrupted token, a stream as long as clean ones are, and as near
to its nearest clean neighbour as a clean one is. No covariance is estimated: there are more dimensions than prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from helpers.architectures import layer_count
from helpers.conditions import CLEAN, Condition, corrupted_conditions
from helpers.memory import in_chunks
from helpers.noise import GaussianNoise
from helpers.pairs import PromptPair
from helpers.plans import check_pairs
from helpers.tracing import Traced, module_of, traceable


class StrangenessError(ValueError):
    """Pairs whose streams cannot be compared."""


def stream_strangeness(
    model,
    pairs: Sequence[PromptPair],
    *,
    role: str,
    noises: Sequence[GaussianNoise] = (),
    row_budget: int | None = None,
) -> pd.DataFrame:
    """The stream at the last token with `role`, in clean, STR and GN runs, beside that of other clean prompts there.

    One row per pair, run and layer (L: what leaves the last block): pair, corruption ("clean", "STR", "GN"), draw,
    layer, norm (over the mean norm of the clean streams), and nearest: the distance to the nearest clean stream of
    *another* pair, over the median distance of two clean streams; NaN where all of those are equal. Raises
    StrangenessError for fewer than two pairs, and for a pair without the role.
    """
    check_pairs(module_of(model), pairs, row_budget)
    if len(pairs) < 2:
        raise StrangenessError("One pair has no other to be compared with: give at least two.")
    if missing := [pair.pair_id for pair in pairs if role not in pair.roles]:
        raise StrangenessError(
            f"{len(missing)} of {len(pairs)} pairs, {missing[0]} first, have no token with the role {role!r}: name the "
            "role that was corrupted."
        )
    conditions = (CLEAN, *corrupted_conditions(noises))

    def streams(traced: Traced, chunk: list[PromptPair], budget: int) -> tuple[list[str], list[Tensor]]:
        names = [pair.pair_id for pair in chunk]
        return names, [_streams(traced, chunk, condition, role) for condition in conditions]

    with torch.no_grad(), traceable(model) as traced:
        chunks = list(in_chunks(traced, pairs, streams, row_budget=row_budget, rows_per_pair=1))
    names = [name for own, _ in chunks for name in own]
    clean, *others = (torch.cat([runs[number] for _, runs in chunks]) for number in range(len(conditions)))
    tables = []
    for condition, run in zip(conditions, (clean, *others), strict=True):
        for layer in range(run.shape[1]):
            columns = {"pair": names, "corruption": condition.corruption, "draw": condition.draw, "layer": layer}
            norm, nearest = strangeness(run[:, layer], clean[:, layer])
            tables.append(pd.DataFrame(columns | {"norm": norm.numpy(), "nearest": nearest.numpy()}))
    return pd.concat(tables, ignore_index=True)


def strangeness(streams: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """Relative norm and nearest-neighbour distance of every pair, `(pairs,)`; both inputs are `(pairs, width)`."""
    norm = streams.norm(dim=-1) / clean.norm(dim=-1).mean()
    own = torch.eye(len(clean), dtype=torch.bool)
    typical = torch.nn.functional.pdist(clean).quantile(0.5)
    nearest = torch.cdist(streams, clean).masked_fill(own, torch.inf).min(-1).values
    return norm, nearest / typical.where(typical > 0, torch.nan)


def _streams(traced: Traced, chunk: Sequence[PromptPair], condition: Condition, role: str) -> Tensor:
    """`(pairs, layers + 1, width)` of pairs of one length, in double precision."""
    count = layer_count(traced.model)
    sites = [*(("resid_pre", layer) for layer in range(count)), ("resid_post", count - 1)]
    run = condition.record(traced, chunk, sites)
    at = [max(place for place, own in enumerate(pair.roles) if own == role) for pair in chunk]
    return torch.stack([run.sites[site][range(len(chunk)), at] for site in sites], dim=1).cpu().double()
