"""Integrated gradients: attribution patching with the slope averaged between the corrupted and the clean embeddings.

Plain attribution multiplies what a patch changes by the slope at one end, which says little where the network is not
straight. EAP-IG (Hanna et al., arXiv 2403.17806) averages the slope over runs between the two ends:

    effect(place) ≈ Σ_positions (a_clean − a_corrupted) · 1/m Σ_k ∂LD/∂a (e′ + (k + ½)/m · (e − e′)),  k = 0 … m − 1

with e and e′ the token embeddings of the clean and the corrupted prompt. Every run gives the slopes of all places, so
that m forward and backward passes are enough; a path per place would estimate what one exact patch of it tells. For the
embeddings themselves the sum is complete: it tends to LD_clean − LD_corrupted as m grows. For a place it estimates
denoising, and is exact where everything after it is linear. Deviation: the middles of m equal steps, not their
beginnings, which makes the two directions the same and the error of second order.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from nnsight import save
from torch import Tensor

from helpers.architectures import SITES, layer_count
from helpers.live_readout import last_logits, logit_difference
from helpers.memory import in_chunks
from helpers.methods import PER_PAIR, MethodError, places_of
from helpers.pairs import PromptPair
from helpers.plans import check_pairs
from helpers.runs import prompt_tokens, record
from helpers.tracing import Traced, forward_arguments, read, traceable, write

Key = tuple[str, int]  # (site, layer)
EMBEDDING = ("embedding", 0)
STEPS = 5  # as the published code's README has it


def integrated_attributions(
    model, pairs: Sequence[PromptPair], *, steps: int = STEPS, row_budget: int | None = None
) -> pd.DataFrame:
    """The estimated denoising effect of each place at all positions, in logits: PER_PAIR.

    The denominator is LD_clean − LD_corrupted. Raises MethodError for fewer than one step, and PatchingError for pairs
    that do not fit the model.
    """
    sites = [(place.component, place.layer) for place in places_of(model)]
    tables = []
    for pair, effects, apart in path_effects(model, pairs, sites, steps=steps, row_budget=row_budget):
        for (component, layer), effect in effects.items():
            tables.append((pair, component, layer, effect, apart))
    return pd.DataFrame(tables, columns=PER_PAIR)


def path_effects(
    model, pairs: Sequence[PromptPair], sites: Sequence[Key], *, steps: int, row_budget: int | None = None
) -> list[tuple[str, dict[Key, float], float]]:
    """Of every pair its name, the estimate of each site, at all positions, and LD_clean − LD_corrupted, in logits."""
    check_pairs(model, pairs, row_budget)
    if steps < 1:
        raise MethodError(f"The path between the two prompts has at least 1 step, not {steps}.")

    def estimate(traced: Traced, chunk: list[PromptPair], budget: int) -> list[tuple[str, dict[Key, float], float]]:
        clean, corrupted = (prompt_tokens(chunk, name, traced.device) for name in ("clean", "corrupted"))
        ends = [record(traced, tokens, {*sites, EMBEDDING}) for tokens in (clean, corrupted)]
        one, other = (run.sites[EMBEDDING] for run in ends)
        middles = (torch.arange(steps, device=one.device, dtype=one.dtype) + 0.5) / steps
        path = torch.cat([other + part * (one - other) for part in middles])
        slopes = _slopes(traced, clean.repeat(steps, 1), path, list(chunk) * steps, sites)
        effects = {
            key: (ends[0].sites[key] - ends[1].sites[key]).mul(slope.unflatten(0, (steps, -1)).mean(0)).sum((1, 2))
            for key, slope in slopes.items()
        }
        differences = [logit_difference(last_logits(traced, run.final), chunk) for run in ends]
        apart = (differences[0] - differences[1]).tolist()
        each = {key: effect.double().tolist() for key, effect in effects.items()}
        return [
            (pair.pair_id, {key: each[key][number] for key in sites}, apart[number])
            for number, pair in enumerate(chunk)
        ]

    rows = steps * layer_count(model)  # every step is a row, and a gradient remembers all blocks
    with torch.no_grad(), traceable(model) as traced:
        chunks = in_chunks(traced, pairs, estimate, row_budget=row_budget, rows_per_pair=rows)
        found = {line[0]: line for chunk in chunks for line in chunk}
    return [found[pair.pair_id] for pair in pairs]


def _slopes(
    traced: Traced, tokens: Tensor, embeddings: Tensor, pairs: Sequence[PromptPair], sites: Sequence[Key]
) -> dict[Key, Tensor]:
    """∂LD of every row at the sites, `(rows, positions, width)` each; rows are run from `embeddings`."""
    # Forward order: a trace cannot go back to a site that the pass has left.
    inner = sorted((key for key in sites if key != EMBEDDING), key=lambda key: (key[1], SITES.index(key[0])))
    with torch.enable_grad():
        leaf = embeddings.detach().requires_grad_()
        with traced.trace(tokens, **forward_arguments(traced, tokens.shape[1])) as tracer:
            live = save({})
            write(traced, *EMBEDDING, leaf)
            for site, layer in inner:
                live[site, layer] = read(traced, site, layer)
            final = save(read(traced, "resid_post", layer_count(traced.model) - 1)[:, -1])
            tracer.stop()
        wanted = {**live, EMBEDDING: leaf}
        total = logit_difference(last_logits(traced, final), pairs).sum()
        gradients = torch.autograd.grad(total, [wanted[key] for key in sites])
    return dict(zip(sites, gradients, strict=True))
