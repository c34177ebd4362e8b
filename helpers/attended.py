"""Attended: which tokens a head reads from the last one, in clean and corrupted runs, and when values are restored.

The movers of the IOI task copy what they attend to. Zhang & Nanda (arXiv 2309.16042, section 3.2) take their attention
as evidence that noise leads a model off its distribution: replaced tokens move it from one name to the other, noise
splits it. They then give some heads back their clean *values* and look whether the movers' pattern comes back too.

Values are restored at all positions, of all chosen heads together, and nothing else is: queries and keys follow from
the run that is restored, also those of a chosen head that reads what another wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor

from helpers.architectures import attention, head_count, layer_count
from helpers.conditions import CLEAN, Condition, corrupted_conditions
from helpers.memory import in_chunks
from helpers.noise import GaussianNoise
from helpers.pairs import PromptPair
from helpers.patterns import recorder
from helpers.plans import check_pairs
from helpers.runs import Run
from helpers.tracing import Traced, module_of, traceable

Head = tuple[int, int]  # layer and head
NAMES = ("IO", "S1", "S2")  # roles of the names in an IOI prompt; a role is a position, whichever name stands there
OTHER = "other"


class AttendedError(ValueError):
    """Heads that the model does not have, or prompts without the names of the IOI task."""


def attention_shares(
    model,
    pairs: Sequence[PromptPair],
    heads: Sequence[Head],
    *,
    noises: Sequence[GaussianNoise] = (),
    restoring: Sequence[Head] = (),
    row_budget: int | None = None,
) -> pd.DataFrame:
    """Which share of a head's attention goes from the last token to each name, and to all other tokens together.

    One row per pair, run, head and role: pair, corruption ("clean", "STR", "GN"), draw (the seed of the noise),
    restored (False, or the same run with the clean values of the heads `restoring`), layer, head, role (IO, S1, S2,
    other), share, and most: whether the one token attended to most has this role. The shares of a head sum to 1.
    Raises AttendedError for pairs without the three names and for heads that do not exist.
    """
    module = module_of(model)
    check_pairs(module, pairs, row_budget)
    check_heads(module, [*heads, *restoring])
    for pair in pairs:
        if missing := [role for role in NAMES if role not in pair.roles]:
            raise AttendedError(
                f"The pair {pair.pair_id} has no token with the role {missing[0]}: shares by name are for pairs of the "
                "IOI task."
            )
    corrupted = corrupted_conditions(noises)
    runs = [(condition, ()) for condition in (CLEAN, *corrupted)]
    runs += [(condition, tuple(restoring)) for condition in corrupted if restoring]

    def measure(traced: Traced, chunk: list[PromptPair], budget: int) -> pd.DataFrame:
        tables = []
        for condition, restored in runs:
            _, patterns = attended_run(traced, chunk, condition, restoring=restored)
            constant = {"corruption": condition.corruption, "draw": condition.draw, "restored": bool(restored)}
            tables.append(_by_role(patterns, chunk, heads).assign(**constant))
        return pd.concat(tables)

    with torch.no_grad(), traceable(model) as traced:
        tables = list(in_chunks(traced, pairs, measure, row_budget=row_budget, rows_per_pair=1))
    columns = ["pair", "corruption", "draw", "restored", "layer", "head", "role", "share", "most"]
    return pd.concat(tables, ignore_index=True)[columns]


def attended_run(
    traced: Traced, chunk: Sequence[PromptPair], condition: Condition, *, restoring: Sequence[Head] = ()
) -> tuple[Run, dict[int, Tensor]]:
    """A run of pairs of one length, and its patterns from the last token, `(pairs, heads, positions)`, by layer.

    The heads `restoring` have the values of the clean run.
    """
    values = CLEAN.record(traced, chunk).values if restoring else ()
    patterns: dict[int, Tensor] = {}
    with attention(traced.model, _attend(patterns, values, restoring)):
        run = condition.record(traced, chunk)
    return run, patterns


def check_heads(model, heads: Sequence[Head]) -> None:
    """Raise AttendedError unless the model has every head."""
    layers, count = layer_count(model), head_count(model)
    for layer, head in heads:
        if not (0 <= layer < layers and 0 <= head < count):
            raise AttendedError(
                f"There is no head {layer}.{head}: the model has the layers 0 to {layers - 1} with the heads 0 to "
                f"{count - 1}; heads are given as (layer, head)."
            )


def _attend(patterns: dict[int, Tensor], values: Sequence[Tensor], restoring: Sequence[Head]) -> Callable:
    """An attention function that keeps the last token's patterns, and reads `values` instead of the run's own."""

    def attend(module, query, key, value, attention_mask, **settings):
        layer, whole = module.layer_idx, {}
        if chosen := [head for of_layer, head in restoring if of_layer == layer]:
            value, clean = (
                each.repeat_interleave(query.shape[1] // each.shape[1], 1) for each in (value, values[layer])
            )
            value[:, chosen] = clean[:, chosen]
        output, weights = recorder(whole)(module, query, key, value, attention_mask, **settings)
        patterns[layer] = weights[:, :, -1]
        return output, weights

    return attend


def _by_role(patterns: dict[int, Tensor], chunk: Sequence[PromptPair], heads: Sequence[Head]) -> pd.DataFrame:
    """Shares of pairs of one length, in one run."""
    of_layer = torch.stack([patterns[layer] for layer in sorted(patterns)], dim=1)  # (pairs, layers, heads, positions)
    layer, head = (torch.tensor([each[part] for each in heads], dtype=torch.long) for part in (0, 1))
    weights = of_layer.cpu().double()[:, layer, head]
    roles = [[role if role in NAMES else OTHER for role in pair.roles] for pair in chunk]
    names = [*NAMES, OTHER]
    has = torch.tensor([[[role == name for role in own] for name in names] for own in roles]).double()
    most = torch.nn.functional.one_hot(weights.argmax(-1), weights.shape[-1]).double()
    share, first = (torch.einsum("phk,prk->phr", each, has).flatten() for each in (weights, most))
    keys = [(pair.pair_id, *each, name) for pair in chunk for each in heads for name in names]
    table = pd.DataFrame(keys, columns=["pair", "layer", "head", "role"])
    return table.assign(share=share.numpy(), most=first.numpy() > 0)
