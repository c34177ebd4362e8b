"""The limit: the arithmetic of the staircase in plain torch, for GPT-2 alone, with nothing around it.

What `helpers.patching` computes, `helpers.patching` explains. Here the same products are written down for one family,
one direction, one metric and one batch, without traces, tables or checks: how much slower than this the sweep is, is
what its generality costs. Arrays of rows are `(rows, pairs, tokens, width)`: every patch that starts at a token is run
for all pairs at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cases import Prompts

Affine = tuple[Tensor, Tensor]  # weight, bias


@dataclass(frozen=True)
class Block:
    """One block's parameters."""

    attention_norm: Affine
    queries_keys_values: Affine
    projection: Affine
    mlp_norm: Affine
    up: Affine
    down: Affine


@dataclass(frozen=True)
class Weights:
    """A GPT-2's parameters."""

    blocks: tuple[Block, ...]
    heads: int
    tokens: Tensor
    positions: Tensor
    final_norm: Affine
    unembedding: Tensor


@dataclass(frozen=True)
class Recorded:
    """A block of an un-patched run: `(pairs, tokens, width)`, keys and values `(pairs, heads, tokens, head width)`."""

    resid_pre: Tensor
    head_out: Tensor
    attn_out: Tensor
    mlp_out: Tensor
    keys: Tensor
    values: Tensor

    @property
    def resid_post(self) -> Tensor:
        """The stream that leaves the block."""
        return self.resid_pre + self.attn_out + self.mlp_out


def weights(model) -> Weights:
    """The parameters of a GPT-2 with the usual activation (the tanh approximation of GELU), not copied."""

    def affine(module: nn.Module) -> Affine:
        return module.weight, module.bias

    return Weights(
        blocks=tuple(
            Block(*map(affine, (h.ln_1, h.attn.c_attn, h.attn.c_proj, h.ln_2, h.mlp.c_fc, h.mlp.c_proj)))
            for h in model.transformer.h
        ),
        heads=model.config.n_head,
        tokens=model.transformer.wte.weight,
        positions=model.transformer.wpe.weight,
        final_norm=affine(model.transformer.ln_f),
        unembedding=model.lm_head.weight,
    )


@torch.inference_mode()
def blocks(weights: Weights, prompts: Prompts) -> Tensor:
    """Denoising effects of resid_pre, attn_out, mlp_out: `(3, layers, positions, pairs)`."""
    clean, base = _run(weights, prompts.clean), _run(weights, prompts.corrupted)
    effect = _readout(weights, prompts)
    layers, (pairs, positions) = len(weights.blocks), prompts.corrupted.shape
    # What leaves a block at the one token where its attention's or its MLP's output was replaced.
    leaving = []
    for block, given, own in zip(weights.blocks, clean, base, strict=True):
        middle = own.resid_pre + given.attn_out
        leaving.append(torch.stack([middle + _mlp(middle, block), own.resid_pre + own.attn_out + given.mlp_out]))

    effects = effect(base[-1].resid_post[:, -1]).expand(3, layers, positions, pairs).clone()
    # Up to the first difference both runs are one, and patching one into the other changes nothing.
    first = int((prompts.clean != prompts.corrupted).any(0).nonzero()[0])
    for position in range(first, positions):
        stream = None
        for layer, block in enumerate(weights.blocks):
            patched = clean[layer].resid_pre[None, :, position]
            if layer:
                patched = torch.cat([patched, leaving[layer - 1][:, :, position]])
            arriving = base[layer].resid_pre[:, position:].repeat(len(patched), 1, 1, 1)
            arriving[:, :, 0] = patched
            stream = arriving if stream is None else torch.cat([stream, arriving])
            prefix = base[layer].keys[:, :, :position], base[layer].values[:, :, :position]
            stream = _attended(stream, block, weights.heads, prefix, last_only=layer == layers - 1)
            stream = stream + _mlp(stream, block)
        first_block, *others = effect(stream[:, :, -1]).split([1] + [3] * (layers - 1))
        effects[0, 0, position] = first_block[0]
        for layer, (resid_pre, attn_out, mlp_out) in enumerate(others, start=1):
            effects[0, layer, position] = resid_pre
            effects[1, layer - 1, position] = attn_out
            effects[2, layer - 1, position] = mlp_out
    effects[1:, -1, -1] = effect(leaving[-1][:, :, -1])
    return effects


@torch.inference_mode()
def heads(weights: Weights, prompts: Prompts) -> Tensor:
    """Denoising effects of head_out at all positions: `(layers, heads, pairs)`."""
    clean, base = _run(weights, prompts.clean), _run(weights, prompts.corrupted)
    nothing = base[0].keys[:, :, :0], base[0].values[:, :, :0]
    stream = None
    for block, given, own in zip(weights.blocks, clean, base, strict=True):
        # A head's share of the attention's output is linear in the head: its change goes through its rows of W_O alone.
        change = (given.head_out - own.head_out).unflatten(-1, (weights.heads, -1))
        output = block.projection[0].unflatten(0, (weights.heads, -1))
        middle = own.resid_pre + own.attn_out + torch.einsum("ptha,haw->hptw", change, output)
        last_only = block is weights.blocks[-1]
        if last_only:
            middle = middle[:, :, -1:]
        if stream is not None:
            middle = torch.cat([_attended(stream, block, weights.heads, nothing, last_only=last_only), middle])
        stream = middle + _mlp(middle, block)
    return _readout(weights, prompts)(stream[:, :, -1]).unflatten(0, (len(weights.blocks), weights.heads))


def _run(weights: Weights, tokens: Tensor) -> list[Recorded]:
    """An un-patched run of one prompt of each pair, `(pairs, positions)`, block by block."""
    stream, run = weights.tokens[tokens] + weights.positions[: tokens.shape[1]], []
    for block in weights.blocks:
        normalised = _normalised(stream, block.attention_norm)
        queries, keys, values = _split(_affine(normalised, block.queries_keys_values), weights.heads)
        heads = F.scaled_dot_product_attention(queries, keys, values, is_causal=True).transpose(1, 2).flatten(2)
        attention = _affine(heads, block.projection)
        run.append(Recorded(stream, heads, attention, _mlp(stream + attention, block), keys, values))
        stream = run[-1].resid_post
    return run


def _attended(stream: Tensor, block: Block, heads: int, prefix: tuple[Tensor, Tensor], *, last_only: bool) -> Tensor:
    """Rows `(rows, pairs, tokens, width)` after attention; they see the keys and values of the tokens before them.

    With `last_only`, what the last token becomes: all that is read of the last block.
    """
    rows, pairs, tokens, width = stream.shape
    normalised = _normalised(stream, block.attention_norm).flatten(0, 1)
    weight, bias = block.queries_keys_values
    if last_only:
        queries = _split(_affine(normalised[:, -1:], (weight[:, :width], bias[:width])), heads, parts=1)[0]
        keys, values = _split(_affine(normalised, (weight[:, width:], bias[width:])), heads, parts=2)
        stream, mask = stream[:, :, -1:], None
    else:
        queries, keys, values = _split(_affine(normalised, (weight, bias)), heads)
        before = prefix[0].shape[2]
        mask = torch.ones(tokens, before + tokens, dtype=torch.bool, device=stream.device).tril(before)
    keys, values = (
        torch.cat([old.expand(rows, *old.shape), new.unflatten(0, (rows, pairs))], dim=-2).flatten(0, 1)
        for old, new in zip(prefix, (keys, values), strict=True)
    )
    mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask).transpose(1, 2).flatten(2)
    return stream + _affine(mixed, block.projection).unflatten(0, (rows, pairs))


def _mlp(stream: Tensor, block: Block) -> Tensor:
    inner = F.gelu(_affine(_normalised(stream, block.mlp_norm), block.up), approximate="tanh")
    return _affine(inner, block.down)


def _readout(weights: Weights, prompts: Prompts):
    """A function of last residuals `(rows, pairs, width)`: logit differences `(rows, pairs)`.

    Two rows of the unembedding are all that the logit difference needs, and their difference is one.
    """
    answer, foil = weights.unembedding[prompts.answers].unbind(1)
    direction = answer - foil
    return lambda stream: (_normalised(stream, weights.final_norm) * direction).sum(-1)


def _normalised(stream: Tensor, norm: Affine) -> Tensor:
    return F.layer_norm(stream, stream.shape[-1:], *norm, eps=1e-5)


def _affine(vectors: Tensor, layer: Affine) -> Tensor:
    weight, bias = layer
    return torch.addmm(bias, vectors.flatten(0, -2), weight).unflatten(0, vectors.shape[:-1])


def _split(projected: Tensor, heads: int, parts: int = 3) -> tuple[Tensor, ...]:
    """`(rows, tokens, parts × width)` as `parts` of `(rows, heads, tokens, head width)`."""
    return projected.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
