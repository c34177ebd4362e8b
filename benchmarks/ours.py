"""Ours: `helpers.patching.sweep` as any caller has it, its table turned into the array that the benchmark compares."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.cases import Prompts
from helpers.metrics import METRICS
from helpers.pairs import PromptPair
from helpers.patching import sweep


def blocks(model, prompts: Prompts, *, metrics: tuple[str, ...] = ("logit_difference",)) -> Tensor:
    """Denoising effects of resid_pre, attn_out, mlp_out: `(3, layers, positions, pairs)`."""
    components = ("resid_pre", "attn_out", "mlp_out")
    table = sweep(model, _pairs(prompts), components=components, positions="each", metrics=metrics)
    pairs, positions = prompts.clean.shape
    effects = torch.tensor(table["logit_difference"].to_numpy())
    return effects.reshape(pairs, len(components), model.config.n_layer, positions).permute(1, 2, 3, 0)


def blocks_all_metrics(model, prompts: Prompts) -> Tensor:
    """As `blocks`, with every metric computed; the logit difference is what is returned."""
    return blocks(model, prompts, metrics=METRICS)


def heads(model, prompts: Prompts) -> Tensor:
    """Denoising effects of head_out at all positions: `(layers, heads, pairs)`."""
    table = sweep(model, _pairs(prompts), components=("head_out",), positions="all")
    effects = torch.tensor(table["logit_difference"].to_numpy())
    return effects.reshape(len(prompts.clean), model.config.n_layer, model.config.n_head).permute(1, 2, 0)


def _pairs(prompts: Prompts) -> list[PromptPair]:
    rows = zip(prompts.clean.tolist(), prompts.corrupted.tolist(), prompts.answers.tolist(), strict=True)
    return [
        PromptPair(
            pair_id=str(number),
            clean=tuple(clean),
            corrupted=tuple(corrupted),
            answer=(answer,),
            foil=(foil,),
            roles=("prefix",) * (len(clean) - 1) + ("last",),
        )
        for number, (clean, corrupted, (answer, foil)) in enumerate(rows)
    ]
