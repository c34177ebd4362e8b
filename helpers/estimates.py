"""Estimates: the effect of every patch of a plan from two forward passes and the slopes of the base run.

The formulas stand in `helpers.attribution`. All patches at one component and layer are estimated together: a *variant*
is what is patched at one token (a head, or the whole site), and each patch takes a set of tokens of one variant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from helpers import readout
from helpers.architectures import has_parallel_residual, layer_count
from helpers.metrics import right_and_wrong
from helpers.pairs import PromptPair
from helpers.patching import OTHER_PROMPT
from helpers.patterns import pattern_effects
from helpers.plans import COMPONENTS, Plan
from helpers.rows import patched_sites, split_heads
from helpers.runs import prompt_tokens, record
from helpers.slopes import PATTERN, VALUES, Slopes, slopes_of
from helpers.tracing import Traced

INSIDE = ("head_out", "attn_out", "mlp_out")  # what a block writes, so that the next one is the first to read it
Key = tuple[str, int]  # (component, layer)


@dataclass(frozen=True)
class _Patches:
    """The patches at one component and layer: which lines they are, and of which pair, variant and set, `(patches,)`.

    `tokens` are the sets less the tokens that are the same in both runs, `(pairs, variants, sets, positions)`.
    """

    line: np.ndarray
    pair: np.ndarray
    variant: np.ndarray
    number: np.ndarray
    tokens: Tensor


def estimate(
    traced: Traced, chunk: Sequence[PromptPair], plan: Plan, *, direction: str, corrections: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """The base runs' logit differences `(pairs,)`, and the effect of every patch `(passes, patches)`.

    The pairs have one length. The first pass is the estimate; with the dropout correction there is one more per layer,
    in which that layer passes no gradient.
    """
    prompt = "corrupted" if direction == "denoising" else "clean"
    tokens, other = (prompt_tokens(chunk, name, traced.device) for name in (prompt, OTHER_PROMPT[prompt]))
    ends = right_and_wrong(chunk)
    exactly, dropping = "softmax" in corrections, "dropout" in corrections
    given = record(traced, other, patched_sites(plan.writes)).sites
    beside = {(name, layer) for component, layer in given if component in INSIDE for name in ("attn_out", "mlp_out")}
    run = slopes_of(traced, tokens, *ends, {*given, *beside}, patterns=exactly, drop_layers=dropping)

    def difference(final: Tensor) -> Tensor:
        """The logit differences `(pairs, variants)` of last residuals `(pairs, variants, width)`."""
        pair = torch.arange(len(chunk)).repeat_interleave(final.shape[1])
        scores = readout.score(traced, final.flatten(0, 1), pair, readout.Reference(*ends), ("logit_difference",))
        return torch.from_numpy(scores["logit_difference"]).unflatten(0, final.shape[:2])

    base = difference(run.sites["resid_pre", layer_count(traced.model)][:, None, -1])
    # Before here a causal model has read the same in both runs, and a difference would be rounding alone.
    differs = (tokens != other).cumsum(-1) > 0
    patches = {key: _patches(traced, plan, run, given, key, differs) for key in sorted(given)}
    effects = np.zeros((1 + dropping * layer_count(traced.model), len(plan.pair)))
    for component in dict.fromkeys(component for component, _ in patches):
        mine = {key: patch for key, patch in patches.items() if key[0] == component}
        if exactly:
            found = _corrected(traced, tokens[:1], run, given, mine, lambda final: difference(final) - base)
        else:
            found = {key: _linear(traced, run, given, key, patch.tokens) for key, patch in mine.items()}
        for key, effect in found.items():
            at = mine[key]
            effects[:, at.line] = effect[:, at.pair, at.variant, at.number].cpu().double().numpy()
    return base[:, 0].numpy(), effects


def _patches(
    traced: Traced, plan: Plan, run: Slopes, given: Mapping[Key, Tensor], key: Key, differs: Tensor
) -> _Patches:
    """The patches of a plan at one component and layer; `differs`, `(pairs, positions)`, is where runs may."""
    component, layer = key
    mine = plan.writes.take((plan.writes.component == COMPONENTS.index(component)) & (plan.writes.layer == layer))
    line, first, inverse = np.unique(mine.patch, return_index=True, return_inverse=True)
    pair, variant = plan.pair[line], np.maximum(mine.head[first], 0)
    number = pd.Series(line).groupby([pair, variant]).cumcount().to_numpy(copy=True)
    sets = torch.zeros(len(differs), number.max() + 1, differs.shape[1], dtype=torch.bool)
    sets[pair[inverse], number[inverse], mine.position] = True
    changed = (_change(traced, run, given, key) != 0).any(-1)
    tokens = (sets.to(changed.device) & differs[:, None].to(changed.device))[:, None] & changed.mT[:, :, None]
    return _Patches(line, pair, variant, number, tokens)


def _change(traced: Traced, run: Slopes, given: Mapping[Key, Tensor], key: Key) -> Tensor:
    """a′ − a of every variant, `(pairs, positions, variants, width of one)`."""
    base = run.sites[_read_as(traced, key)]
    return _by_head(traced, given[key].to(base.device) - base, key[0])


def _linear(traced: Traced, run: Slopes, given: Mapping[Key, Tensor], key: Key, tokens: Tensor) -> Tensor:
    """(a′ − a) · ∂LD/∂a over sets of tokens, `(passes, pairs, variants, sets)`."""
    change = _change(traced, run, given, key)
    slope = _by_head(traced, run.gradients[_read_as(traced, key)], key[0])
    return _sum("ptvw,nptvw->npvt", change, slope, tokens)


def _corrected(
    traced: Traced,
    opening: Tensor,
    run: Slopes,
    given: Mapping[Key, Tensor],
    patches: Mapping[Key, _Patches],
    readout_effect: Callable[[Tensor], Tensor],
) -> dict[Key, Tensor]:
    """The effects of the patches of one component, with the pattern of the block that first reads them exact.

    `(passes, pairs, variants, sets)` each; `readout_effect` tells the exact effects of last residuals.
    """
    effects, streams, tokens = {}, {}, {}
    for (component, layer), patch in patches.items():
        stream = _patched_stream(traced, run, given, (component, layer))
        reader = layer + 1 if component in (*INSIDE, "resid_post") else layer
        if reader == layer_count(traced.model):
            moved = readout_effect(stream[:, :, -1]).to(patch.tokens.device)
            passes = len(run.gradients["resid_pre", reader])
            effect = (moved[..., None] * patch.tokens[..., -1]).repeat(passes, 1, 1, 1)
        else:
            change = stream - run.sites["resid_pre", reader][:, None]
            effect = _sum("pvtw,nptw->npvt", change, run.gradients[VALUES, reader], patch.tokens)
            streams[reader], tokens[reader] = stream, patch.tokens
        effects[component, layer] = effect
    if streams:
        slopes = {layer: run.gradients[PATTERN, layer] for layer in streams}
        for reader, effect in pattern_effects(traced, opening, streams, run.patterns, slopes, tokens).items():
            effects[component, reader - (component in INSIDE)] += effect
    for (component, layer), effect in effects.items():
        if component in INSIDE:  # the pass that drops its own block
            effect[1 + layer : 2 + layer] = 0
    return effects


def _patched_stream(traced: Traced, run: Slopes, given: Mapping[Key, Tensor], key: Key) -> Tensor:
    """What the next reader sees where a token is patched, `(pairs, variants, positions, width)`, for every token.

    Modules are called directly, because a trace would run a whole block for the little of it that a patch changes.
    """
    (component, layer), value = key, given[key][:, None]
    if component in ("resid_pre", "resid_post"):
        return value
    base = run.sites["resid_pre", layer][:, None]
    if component == "embedding":
        return base + value - run.sites[key][:, None]
    attention = value if component == "attn_out" else run.sites["attn_out", layer][:, None]
    if component == "head_out":
        heads = _by_head(traced, run.sites[key], component)
        mixed = heads[:, None].repeat(1, heads.shape[2], 1, 1, 1)
        own = mixed.diagonal(dim1=1, dim2=3)  # of every variant its head, (pairs, positions, head width, heads)
        own.copy_(_by_head(traced, given[key], component).mT)
        attention = traced.block_module(layer, traced.architecture.head_projection)(mixed.flatten(-2))
    if component == "mlp_out":
        mlp = value
    elif has_parallel_residual(traced.model):
        mlp = run.sites["mlp_out", layer][:, None]
    else:
        normalised = traced.block_module(layer, traced.architecture.mlp_norm)(base + attention)
        mlp = traced.block_module(layer, traced.architecture.mlp)(normalised)
    return base + attention + mlp


def _sum(products: str, change: Tensor, slope: Tensor, tokens: Tensor) -> Tensor:
    """Products per token, summed over the tokens of every set, in single precision or better."""
    precision = torch.promote_types(change.dtype, torch.float32)
    per_token = torch.einsum(products, change.to(precision), slope.to(precision))
    return torch.einsum("npvt,pvst->npvs", per_token, tokens.to(precision))


def _read_as(traced: Traced, key: Key) -> Key:
    """The name of a site in the base run, where the stream that leaves the last block is what a next one would read."""
    return ("resid_pre", layer_count(traced.model)) if key[0] == "resid_post" else key


def _by_head(traced: Traced, value: Tensor, component: str) -> Tensor:
    return split_heads(traced, value, COMPONENTS.index(component))
