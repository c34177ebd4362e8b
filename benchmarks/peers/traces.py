"""nnsight as its tutorials teach it: one trace per patch, through the whole model."""

from __future__ import annotations

import torch
from nnsight import NNsight
from torch import Tensor

from benchmarks.cases import Prompts

SITES = ("resid_pre", "attn_out", "mlp_out")


def traced(model) -> NNsight:
    """The model as nnsight wraps it."""
    return NNsight(model)


@torch.no_grad()
def blocks(model: NNsight, prompts: Prompts) -> Tensor:
    """Denoising effects of resid_pre, attn_out, mlp_out: `(3, layers, positions, pairs)`."""
    layers, positions = model.config.n_layer, prompts.clean.shape[1]
    with model.trace(prompts.clean):
        clean = dict().save()
        for layer in range(layers):
            block = model.transformer.h[layer]
            clean["resid_pre", layer] = block.input.clone()
            clean["attn_out", layer] = block.attn.output[0].clone()
            clean["mlp_out", layer] = block.mlp.output.clone()
    effects = []
    for component in SITES:
        for layer in range(layers):
            block = model.transformer.h[layer]
            for position in range(positions):
                with model.trace(prompts.corrupted):
                    if component == "resid_pre":
                        block.input[:, position] = clean[component, layer][:, position]
                    elif component == "attn_out":
                        block.attn.output[0][:, position] = clean[component, layer][:, position]
                    else:
                        block.mlp.output[:, position] = clean[component, layer][:, position]
                    effect = prompts.logit_difference(model.lm_head.output).save()
                effects.append(effect)
    return torch.stack(effects).unflatten(0, (len(SITES), layers, positions))


@torch.no_grad()
def heads(model: NNsight, prompts: Prompts) -> Tensor:
    """Denoising effects of head_out at all positions: `(layers, heads, pairs)`."""
    layers, count = model.config.n_layer, model.config.n_head
    width = model.config.n_embd // count
    with model.trace(prompts.clean):
        clean = list().save()
        for layer in range(layers):
            clean.append(model.transformer.h[layer].attn.c_proj.input.clone())
    effects = []
    for layer in range(layers):
        projection = model.transformer.h[layer].attn.c_proj
        for head in range(count):
            its = slice(head * width, (head + 1) * width)
            with model.trace(prompts.corrupted):
                projection.input[..., its] = clean[layer][..., its]
                effect = prompts.logit_difference(model.lm_head.output).save()
            effects.append(effect)
    return torch.stack(effects).unflatten(0, (layers, count))
