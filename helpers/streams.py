"""Streams: what the residual stream at the answer position is made of, and where two runs differ.

Nothing is patched here. *Direct logit attribution* writes the logit difference as a sum, for the last residual is the
sum of what embeddings, attention and MLPs put into it, and all that follows is linear but for one scale:

    LD = Σ_parts (part − mean) / σ · γ · (Σ_r W_r − Σ_r′ W_r′) + bias

with σ, the scale of the final normalisation, held at the value it has in the run. It asks what a component says to the
answer *itself*; what it says through later blocks is what patching adds. The *logit lens* reads the stream as if the
model ended there, so that σ is that of the stream that is read: what a component says is what the stream says more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from helpers.architectures import head_count, layer_count
from helpers.live_readout import last_logits, logit_difference
from helpers.memory import in_chunks
from helpers.pairs import PromptPair
from helpers.plans import check_pairs
from helpers.rows import HEAD_OUT, split_heads
from helpers.runs import Run, prompt_tokens, record
from helpers.tracing import Traced, module_of, traceable


def direct_attribution(
    model, pairs: Sequence[PromptPair], *, prompt: str = "clean", row_budget: int | None = None
) -> pd.DataFrame:
    """What every part of the last residual adds to the logit difference of the `prompt` run, in logits.

    One row per pair and part: pair, component (embedding: token and position; attn_out, mlp_out, head_out, bias: what
    the final normalisation and the unembedding add of their own), layer (0 for embedding and bias), head, contribution,
    and scale, the 1/σ of that run, by which every contribution but the bias is multiplied. Embedding, attn_out, mlp_out
    and bias of a pair sum to its logit difference; head_out resolves attn_out, up to the bias of its projection.
    """
    check_pairs(module_of(model), pairs, row_budget)

    def attribute(traced: Traced, chunk: list[PromptPair], budget: int) -> pd.DataFrame:
        names, layers = ("head_out", "attn_out", "mlp_out"), range(layer_count(traced.model))
        inner = [(name, layer) for layer in layers for name in names]
        run = record(traced, prompt_tokens(chunk, prompt, traced.device), [("resid_pre", 0), *inner])
        return _contributions(traced, run, chunk)

    return _in_chunks(model, pairs, attribute, row_budget)


def lens_gains(
    model, pairs: Sequence[PromptPair], *, prompt: str = "clean", row_budget: int | None = None
) -> pd.DataFrame:
    """How much more logit difference the logit lens reads at the answer position after every component than before it.

    The final normalisation and the unembedding read the stream before the first block, and after each attention and
    each MLP, which are taken to add in that order (nostalgebraist, "interpreting GPT: the logit lens", 2020). Columns:
    pair, component (attn_out, mlp_out), layer, gain, and logit_difference, that of the run. A pair's gains sum to that
    less what is read from the embeddings.
    """
    check_pairs(module_of(model), pairs, row_budget)

    def read(traced: Traced, chunk: list[PromptPair], budget: int) -> pd.DataFrame:
        inner = [(name, layer) for layer in range(layer_count(traced.model)) for name in ("attn_out", "mlp_out")]
        run = record(traced, prompt_tokens(chunk, prompt, traced.device), [("resid_pre", 0), *inner])
        stream, whole = run.sites["resid_pre", 0][:, -1], logit_difference(last_logits(traced, run.final), chunk)
        before, tables = logit_difference(last_logits(traced, stream), chunk), []
        for component, layer in inner:
            stream = stream + run.sites[component, layer][:, -1]
            after = logit_difference(last_logits(traced, stream), chunk)
            values = {"gain": (after - before).cpu().numpy(), "logit_difference": whole.cpu().numpy()}
            names = {"pair": [pair.pair_id for pair in chunk], "component": component, "layer": layer}
            tables.append(pd.DataFrame(names | values))
            before = after
        return pd.concat(tables)

    return _in_chunks(model, pairs, read, row_budget)


def run_distances(model, pairs: Sequence[PromptPair], *, row_budget: int | None = None) -> pd.DataFrame:
    """How far the clean and the corrupted run are apart in the residual stream, block by block and token by token.

    One row per pair, layer (L: what leaves the last block) and position: pair, layer, position, role, distance
    ‖clean − corrupted‖, and relative, that over the mean of the two norms.
    """
    check_pairs(module_of(model), pairs, row_budget)

    def measure(traced: Traced, chunk: list[PromptPair], budget: int) -> pd.DataFrame:
        last = layer_count(traced.model)
        sites = [*(("resid_pre", layer) for layer in range(last)), ("resid_post", last - 1)]
        prompts = [prompt_tokens(chunk, name, traced.device) for name in ("clean", "corrupted")]
        clean, corrupted = (record(traced, tokens, sites) for tokens in prompts)
        rows = []
        for layer, site in enumerate(sites):
            one, other = (run.sites[site].float() for run in (clean, corrupted))
            apart, size = (one - other).norm(dim=-1), (one.norm(dim=-1) + other.norm(dim=-1)) / 2
            for number, pair in enumerate(chunk):
                columns = {"pair": pair.pair_id, "layer": layer, "position": range(pair.positions), "role": pair.roles}
                measured = {"distance": apart[number].cpu(), "relative": (apart / size)[number].cpu()}
                rows.append(pd.DataFrame(columns | measured))
        return pd.concat(rows)

    return _in_chunks(model, pairs, measure, row_budget)


def _in_chunks(model, pairs: Sequence[PromptPair], measure, row_budget: int | None) -> pd.DataFrame:
    with torch.no_grad(), traceable(model) as traced:
        tables = list(in_chunks(traced, pairs, measure, row_budget=row_budget, rows_per_pair=1))
    return pd.concat(tables, ignore_index=True)


def _contributions(traced: Traced, run: Run, chunk: Sequence[PromptPair]) -> pd.DataFrame:
    """`direct_attribution` of pairs of one length."""
    head, norm = traced.model.get_output_embeddings(), traced.model.get_submodule(traced.architecture.final_norm)
    towards = torch.stack([_right_less_wrong(head.weight, pair) for pair in chunk])
    added = torch.zeros_like(towards[:, 0])
    if head.bias is not None:
        added += torch.stack([_right_less_wrong(head.bias, pair) for pair in chunk])
    centred = isinstance(norm, nn.LayerNorm)  # the others are RMS normalisations: no mean is taken off, no bias added
    scaled = towards * norm.weight.float()
    final = run.final.float()
    spread = (final - final.mean(-1, keepdim=True) if centred else final).square().mean(-1)
    scale = (spread + (norm.eps if centred else norm.variance_epsilon)).rsqrt()

    def said(part: Tensor) -> np.ndarray:
        part = part.float() - part.float().mean(-1, keepdim=True) if centred else part.float()
        return ((part * scaled).sum(-1) * scale).cpu().numpy()

    if centred and norm.bias is not None:
        added += (towards * norm.bias.float()).sum(-1)
    rows = [("embedding", 0, pd.NA, said(run.sites["resid_pre", 0][:, -1]))]
    rows.append(("bias", 0, pd.NA, added.cpu().numpy()))
    for layer in range(layer_count(traced.model)):
        rows += [(name, layer, pd.NA, said(run.sites[name, layer][:, -1])) for name in ("attn_out", "mlp_out")]
        project = traced.block_module(layer, traced.architecture.head_projection)
        heads = split_heads(traced, run.sites["head_out", layer][:, -1:], HEAD_OUT)
        silent = project(torch.zeros_like(heads).flatten(-2))
        for number in range(head_count(traced.model)):
            alone = torch.zeros_like(heads)
            alone[:, :, number] = heads[:, :, number]
            written = project(alone.flatten(-2)) - silent
            rows.append(("head_out", layer, number, said(written[:, -1])))
    names = [pair.pair_id for pair in chunk]
    tables = [
        pd.DataFrame(
            {"pair": names, "component": component, "layer": layer, "head": number, "contribution": values}
        ).assign(scale=scale.cpu().numpy())
        for component, layer, number, values in rows
    ]
    return pd.concat(tables).astype({"head": "Int64"})


def _right_less_wrong(values: Tensor, pair: PromptPair) -> Tensor:
    """What the unembedding holds for the right tokens less what it holds for the wrong ones, in single precision."""
    right, wrong = (values[list(tokens)].float().sum(0) for tokens in (pair.right, pair.wrong))
    return right - wrong
