"""Attribution patching: a fast estimate of every patch of a sweep, with corrections, and a screen for the exact engine.

A patch replaces a base run's activation a by the source run's a′. To first order (Nanda 2023) it moves the logit
difference by

    effect ≈ (a′ − a) · ∂LD/∂a                                                        at the base run,

summed over the patched positions, and for a head over its slice of the output projection's input. One forward pass of
each prompt and one backward pass give *all* sites of a pair. It is a screen, not a substitute: the slope at the base
run says little about a change that is not small, above all of a whole residual stream and through a saturated softmax.

Two corrections follow AtP* (Kramár et al., arXiv 2403.00745).

"softmax" (there: QK fix). AtP* patches queries and keys, takes the softmax anew and linearises what comes after. Our
sites write the residual stream, so the block that *first reads* the patch is treated that way, for every query and key
that the patched positions make in it: with x its input, x′ the patched one, A and A′ its patterns,

    effect ≈ (x′ − x) · ∂LD/∂x with A held + Σ_heads,queries,keys (A′ − A) · ∂LD/∂A.

Deviations from the paper: the nodes are ours, not single queries and keys; the patterns of all heads of that block, and
its rows and columns, are corrected together; patches of several positions have their joint pattern; and for patches
inside a block (heads, attention, MLP) x′ is what exactly leaves that block, its own MLP run anew. What leaves the last
block is read out exactly, which makes its patches exact.

"dropout" (there: GradDrop). An effect may be small because two large ones cancel. One more backward pass per layer ℓ
lets no gradient through what ℓ writes, and

    rank_score = 1 / (L − 1) · Σ_ℓ |effect without ℓ|,                     AtP*'s L / (L − 1) times the mean over ℓ.

It ranks, and does not estimate: `effect` keeps its plain or softmax-corrected value. Deviations: AtP*'s nodes all stand
inside a layer, whose own pass is 0, hence L − 1; residual streams and embeddings stand in none, so that theirs is high
by L / (L − 1), and ranks between components lean to them by that much. Both corrections together differentiate the
corrected estimate in each pass, the softmax of a dropped block included, which then changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from helpers.architectures import head_count, layer_count
from helpers.estimates import estimate
from helpers.memory import in_chunks
from helpers.pairs import PromptPair, bucket_by_length
from helpers.patching import sweep_sets
from helpers.plans import PatchingError, Site, check_direction, check_pairs, check_sites, plan_sweep, tabulate
from helpers.tracing import Traced, traceable

CORRECTIONS = ("softmax", "dropout")


def attribute(
    model,
    pairs: Sequence[PromptPair],
    *,
    components: Sequence[str] = ("resid_pre", "attn_out", "mlp_out"),
    layers: Sequence[int] | None = None,
    positions: str = "each",
    direction: str = "denoising",
    corrections: Sequence[str] = (),
    row_budget: int | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Estimate every patch of a sweep: clean into corrupted (denoising), or corrupted into clean (noising).

    The lines are those of `patching.sweep` with the same settings, in its order: pair, component, layer, position,
    role, head, direction, then logit_difference (estimated, of the patched run), effect (its estimated change) and
    rank_score, which is |effect| unless `corrections` has "dropout". `corrections` are some of CORRECTIONS.

    A chunk of pairs of one length is differentiated at once; `row_budget` bounds it as it bounds a sweep's rows. Raises
    PatchingError for a setting that is not one of these, as `sweep` does, and for NaN, naming the pair.
    """
    layers = check_sites(model, components=components, layers=layers, positions=positions, window=1)
    check_direction(direction)
    check_pairs(model, pairs, row_budget)
    _check_corrections(model, corrections)

    def table_of(traced: Traced, chunk: list[PromptPair], budget: int) -> pd.DataFrame:
        plan = plan_sweep(model, chunk, components=components, layers=layers, positions=positions, window=1)
        base, effects = estimate(traced, chunk, plan, direction=direction, corrections=corrections)
        score = np.abs(effects[1:]).sum(0) / (len(effects) - 2) if len(effects) > 1 else np.abs(effects[0])
        scores = {"logit_difference": base[plan.pair] + effects[0], "effect": effects[0], "rank_score": score}
        return tabulate(plan, chunk, constant={"direction": direction}, scores=scores)

    label = f"attribution, {direction}" if progress else None
    memory = {"row_budget": row_budget, "rows_per_pair": _rows_per_pair(model, corrections)}
    with torch.no_grad(), traceable(model) as traced:
        table = pd.concat(in_chunks(traced, pairs, table_of, **memory, label=label))
    if (broken := table["rank_score"].isna()).any():
        raise PatchingError(
            f"The estimates of the pair {table.loc[broken, 'pair'].iat[0]} are NaN: the model's weights or its "
            "precision are damaged; try it on that pair alone."
        )
    return table.set_index("pair").loc[[pair.pair_id for pair in pairs]].reset_index()


def screen_and_verify(
    model,
    pairs: Sequence[PromptPair],
    *,
    share: float,
    components: Sequence[str] = ("resid_pre", "attn_out", "mlp_out"),
    layers: Sequence[int] | None = None,
    positions: str = "each",
    direction: str = "denoising",
    corrections: Sequence[str] = (),
    row_budget: int | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Estimate every patch, then patch exactly the sites that rank in the top `share` by their mean rank_score.

    A site is a component, layer, head, and position (or role, when `positions` is "roles"); its mean is over the pairs
    that have it. The lines are those of `attribute`, with a column `exact`; where it is true, logit_difference and
    effect are the exact patch's. Raises PatchingError for a share that is not above 0 and at most 1, and as `attribute`
    does.
    """
    if not 0 < share <= 1:
        raise PatchingError(f"share is the part of the sites to verify, above 0 and at most 1, not {share}.")
    table = attribute(
        model, pairs, components=components, layers=layers, positions=positions, direction=direction,
        corrections=corrections, row_budget=row_budget, progress=progress,
    )  # fmt: skip
    key = ["component", "layer", "position" if positions == "each" else "role", "head"]
    ranks = table.groupby(key, dropna=False, sort=False)["rank_score"].mean()
    chosen = ranks.nlargest(math.ceil(share * len(ranks))).index.to_frame(index=False)
    sites = {
        str(number): [Site(component, int(layer), place, None if pd.isna(head) else int(head))]
        for number, (component, layer, place, head) in enumerate(chosen.itertuples(index=False, name=None))
    }
    # Shorter prompts do not have every position that was chosen.
    exact = [
        sweep_sets(model, bucket, present, direction=direction, row_budget=row_budget, progress=progress)
        for length, bucket in bucket_by_length(pairs).items()
        if (present := {n: s for n, s in sites.items() if positions != "each" or s[0].position < length})
    ]
    verified = pd.concat(exact)[["pair", "sites", "logit_difference"]].rename(columns={"logit_difference": "verified"})
    named = chosen.assign(sites=list(sites))
    table = table.merge(named, on=key, how="left").merge(verified, on=["pair", "sites"], how="left")
    base = table["logit_difference"] - table["effect"]
    table["exact"] = table["verified"].notna()
    table["logit_difference"] = table["verified"].fillna(table["logit_difference"])
    table["effect"] = table["logit_difference"] - base
    return table.drop(columns=["sites", "verified"])


def _check_corrections(model, corrections: Sequence[str]) -> None:
    if isinstance(corrections, str) or set(corrections) - set(CORRECTIONS):
        raise PatchingError(f"corrections must be a sequence of {' and '.join(CORRECTIONS)}, not {corrections!r}.")
    if "dropout" in corrections and layer_count(model) < 2:
        raise PatchingError("The dropout correction averages over the other layers, and this model has one layer only.")


def _rows_per_pair(model, corrections: Sequence[str]) -> int:
    """How many of a sweep's rows a pair weighs as much as: a row lives in one block, and a gradient remembers all."""
    layers = layer_count(model)
    weight = layers
    if "softmax" in corrections:
        weight += head_count(model)  # every head's patched stream
    if "dropout" in corrections:
        weight += math.ceil(layers * layers / 5)  # a gradient per dropped layer at some five sites of every layer
    return weight
