"""Patterns: the attention patterns of a run, and what a patched residual stream makes of them, softmax and all.

The softmax is where a linear estimate goes most wrong: a pattern that is saturated has no slope, however much another
query or key would change it. Here queries and keys are computed from the patched stream by the model itself, and the
softmax over their scores is taken anew. With A the base run's pattern and A′ that of the patch,

    effect through the pattern = Σ_heads,queries,keys (A′ − A) · ∂LD/∂A

is linear in everything that comes after. A patch of the positions P changes the rows and the columns P of the scores,
whose four kinds (patched or base query, patched or base key) serve every P.

Queries, keys and patterns are reached through the attention interface of transformers, the one place where all
families hand over the same thing: queries and keys after rotation and normalisation, the mask, and the scaling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from helpers.architectures import attention
from helpers.tracing import Traced, forward_arguments, read, write


@dataclass(frozen=True)
class Pattern:
    """One block's attention: `query` and `key`, `(rows, heads, positions, head width)`, and what became of them.

    `weights` are the pattern `(rows, heads, queries, keys)`, `mask` is additive. Grouped keys are repeated.
    """

    query: Tensor
    key: Tensor
    weights: Tensor
    mask: Tensor
    scaling: float


def recorder(patterns: dict[int, Pattern]) -> Callable:
    """An attention function that keeps the pattern of every block in `patterns`, by layer."""

    def attend(module, query, key, value, attention_mask, *, scaling, **unused):
        key, value = _ungrouped(key, query), _ungrouped(value, query)
        weights = _softmax(query @ key.mT, scaling, attention_mask).to(value.dtype)
        patterns[module.layer_idx] = Pattern(query, key, weights, attention_mask, scaling)
        return (weights @ value).transpose(1, 2), weights

    return attend


def pattern_effects(
    traced: Traced,
    opening: Tensor,
    streams: Mapping[int, Tensor],
    patterns: Mapping[int, Pattern],
    slopes: Mapping[int, Tensor],
    tokens: Mapping[int, Tensor],
) -> dict[int, Tensor]:
    """What patches do to the logit difference through the pattern of the block that reads them, by its layer.

    `streams` are what the blocks read with every token patched, `(pairs, variants, positions, width)`; `tokens` which
    of them a patch patches, `(pairs, variants, sets, positions)`; `slopes` ∂LD/∂A, `(passes, pairs, heads, queries,
    keys)`; the effects are `(passes, pairs, variants, sets)`. All blocks are asked in one trace, which `opening`,
    `(1, positions)`, starts.
    """
    effects: dict[int, Tensor] = {}

    def attend(module, query, key, value, attention_mask, *, scaling, **unused):
        layer = module.layer_idx
        if layer in streams:
            split = (len(patterns[layer].weights), -1)
            effects[layer] = _effects(
                patterns[layer],
                slopes[layer],
                query.unflatten(0, split),
                _ungrouped(key, query).unflatten(0, split),
                tokens[layer],
            )
        return query.transpose(1, 2), None  # nothing reads it: the next block is given its own stream

    with (
        attention(traced.model, attend),
        traced.trace(opening, **forward_arguments(traced, opening.shape[1])) as tracer,
    ):
        for layer in range(max(streams) + 1):
            if layer in streams:
                write(traced, "resid_pre", layer, streams[layer].flatten(0, 1))
            for site in ("head_out", "mlp_in"):  # what follows the pattern is thrown away: one token is enough
                write(traced, site, layer, read(traced, site, layer)[:1, :1])
            write(traced, "resid_post", layer, read(traced, "resid_post", layer)[:1])
        tracer.stop()
    return effects


def _effects(pattern: Pattern, slope: Tensor, query: Tensor, key: Tensor, tokens: Tensor) -> Tensor:
    """Σ (A′ − A) ∂LD/∂A of every set of patched tokens; `query` and `key` are `(pairs, variants, heads, …)`."""
    base_query, base_key = pattern.query[:, None], pattern.key[:, None]
    base = base_query @ base_key.mT
    by_query, by_key, by_both = query @ base_key.mT, base_query @ key.mT, query @ key.mT
    before = _softmax(base, pattern.scaling, pattern.mask)  # not the weights, which a half-precision model rounds
    slope = slope.to(before.dtype)
    effects = slope.new_zeros(len(slope), *tokens.shape[:3])
    for number in range(tokens.shape[2]):
        patched = tokens[:, :, number, None]  # (pairs, variants, 1, positions)
        in_row, in_column = patched[..., None], patched[..., None, :]
        scores = torch.where(in_row, torch.where(in_column, by_both, by_query), torch.where(in_column, by_key, base))
        change = _softmax(scores, pattern.scaling, pattern.mask) - before
        effects[..., number] = torch.einsum("pvhqk,dphqk->dpv", change, slope)
    return effects


def _softmax(scores: Tensor, scaling: float, mask: Tensor) -> Tensor:
    """In single precision or better, as the models themselves take it."""
    scores = scores * scaling + mask
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))


def _ungrouped(value: Tensor, query: Tensor) -> Tensor:
    """Keys or values of grouped-query attention, once for every query head."""
    return value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
