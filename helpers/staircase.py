"""The staircase: many patches in one forward pass, each joining it at the first place where it changes anything.

The essay in `helpers.patching` tells the idea, `helpers.rows` where a row joins. One pass holds rows of one start,
sorted by join. A row that is patched inside a block joins at the next one, with what leaves its own: at the patched
tokens that is at most one MLP away from what is known. That MLP, with its normalisation and the projection of the
heads, is called directly, for those tokens alone: a trace can only run whole prompts through whole blocks. In the last
block only the last position goes through projection and MLP, for nothing else is read out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from nnsight import save
from torch import Tensor

from helpers.architectures import has_parallel_residual, layer_count
from helpers.plans import COMPONENTS, Writes
from helpers.rows import (
    ATTN_OUT,
    EMBEDDING,
    HEAD_OUT,
    MLP_OUT,
    NEVER,
    RESID_POST,
    RESID_PRE,
    Activations,
    Rows,
    by_site,
    split_heads,
)
from helpers.runs import Run, prefix_cache
from helpers.tracing import Traced, forward_arguments, read, write


@dataclass(frozen=True)
class _Tokens:
    """What leaves a block in the place of the base run's: `vector`, `(tokens, width)`, by patch and position."""

    patch: np.ndarray
    position: np.ndarray
    vector: Tensor


def run_rows(
    traced: Traced, opening: Tensor, base: Run, given: Activations, writes: Writes, rows: Rows, *, row_budget: int
) -> Iterator[tuple[Rows, Tensor]]:
    """Run rows, at most `row_budget` in one pass: batches in order, and their last residuals `(rows, width)`.

    `opening` is one prompt of the base run, `(1, positions)`: it brings a pass to the block where its first rows join.
    """
    writes = writes.take(np.isin(writes.patch, rows.patch))
    layers, pair_of = layer_count(traced.model), _spread(rows.patch, rows.pair)
    # Done to the tokens that leave that block; the last residual itself is written after all.
    inside = (writes.layer < _spread(rows.patch, rows.join)[writes.patch]) & (writes.component != RESID_POST)
    passing = writes.take(~inside)
    for span in _spans(rows, np.bincount(writes.patch[inside]), row_budget, most_tokens=row_budget * opening.shape[1]):
        in_span = np.isin(writes.patch, rows.patch[span[0].start : span[-1].stop])
        arrivals = traced.compute(_tokens_leaving, base, given, writes.take(inside & in_span), pair_of)
        for batch in span:
            mine = rows.take(batch)
            final = base.final[mine.pair]
            running = int(np.searchsorted(mine.join, layers))
            if running:
                final[:running] = _climb(
                    traced, opening, base, given, passing, mine.take(slice(0, running)), arrivals
                ).to(final.device)
            stream = final[:, None]
            _arrive(stream, arrivals.get(layers), mine, start=opening.shape[1] - 1)
            row = _find(mine.patch, passing.patch)
            ends = (row >= 0) & (passing.component == RESID_POST)
            _place(traced, stream, given, passing.take(ends), row=row[ends], pair=mine.pair[row[ends]], position=0)
            yield mine, final


def _climb(
    traced: Traced,
    opening: Tensor,
    base: Run,
    given: Activations,
    writes: Writes,
    rows: Rows,
    arrivals: Mapping[int, _Tokens],
) -> Tensor:
    """One pass of rows of one start: their last residuals, `(rows, width)`."""
    layers, positions, start = layer_count(traced.model), opening.shape[1], int(rows.start[0])
    row = _find(rows.patch, writes.patch)
    writes, row = writes.take(row >= 0), row[row >= 0]
    sites = dict(by_site(writes))
    alive = np.searchsorted(rows.join, np.arange(-1, layers), side="right")  # before block 0, and after each
    arguments = forward_arguments(traced, positions, first=start)
    if start:
        arguments["past_key_values"] = prefix_cache(base, [rows.pair[: max(1, n)] for n in alive[1:]], start)

    def overwrite(live: Tensor, component: int, layer: int, *, first: int) -> None:
        chosen = sites[component, layer]
        mine, to = writes.take(chosen), row[chosen]
        place = {"row": to, "pair": rows.pair[to], "position": mine.position - first}
        _place(traced, live, given, mine, **place)
        if component == EMBEDDING:  # what is overwritten are the token embeddings; live has the positions added
            live[to, place["position"]] += (base.sites["resid_pre", 0] - base.sites["embedding", 0])[
                rows.pair[to], mine.position
            ]

    with traced.trace(opening[:, start:], **arguments) as tracer:
        for layer in range(int(rows.join[0]), layers):
            before, after = alive[layer], alive[layer + 1]
            entering = [component for component in (EMBEDDING, RESID_PRE) if (component, layer) in sites]
            if after > before or entering:
                live = base.sites["resid_pre", layer][rows.pair[before:after], start:]
                _arrive(live, arrivals.get(layer), rows.take(slice(before, after)), start=start)
                if before:
                    running = read(traced, "resid_pre", layer)
                    live = torch.cat([running, live.to(running.device)])
                for component in entering:
                    overwrite(live, component, layer, first=start)
                write(traced, "resid_pre", layer, live)
            last_only = layer == layers - 1 and positions - start > 1
            for component in (HEAD_OUT, ATTN_OUT, MLP_OUT):
                if last_only and component == MLP_OUT:
                    write(traced, "mlp_in", layer, read(traced, "mlp_in", layer)[:, -1:])
                if (last_only and component == HEAD_OUT) or (component, layer) in sites:
                    live = read(traced, COMPONENTS[component], layer)
                    if last_only and component == HEAD_OUT:
                        live = live[:, -1:]
                    if (component, layer) in sites:
                        overwrite(live, component, layer, first=positions - 1 if last_only else start)
                    write(traced, COMPONENTS[component], layer, live)
        final = save(read(traced, "resid_post", layers - 1)[:, -1])
        tracer.stop()
    return final


def _tokens_leaving(
    traced: Traced, base: Run, given: Activations, writes: Writes, pair_of: np.ndarray
) -> dict[int, _Tokens]:
    """What leaves the blocks inside which patches write, by the block that it enters.

    The stream at a patched token is resid_pre + attention + MLP, each the base run's unless it is overwritten; an MLP
    that reads a changed stream is run again. Where both read resid_pre (GPT-NeoX) no MLP reads a changed stream.
    """
    left = {}
    for layer in np.unique(writes.layer).tolist():
        mine = writes.take(writes.layer == layer)
        (patch, position), token = np.unique(np.stack([mine.patch, mine.position]), axis=1, return_inverse=True)
        stream = base.sites["resid_pre", layer]
        where = tuple(torch.as_tensor(index, device=stream.device) for index in (pair_of[patch], position))

        def overwrite(live: Tensor, component: int, tokens: np.ndarray, mine=mine, token=token) -> None:
            chosen = mine.component == component
            place = {"row": np.searchsorted(tokens, token[chosen]), "pair": pair_of[mine.patch[chosen]], "position": 0}
            _place(traced, live[:, None], given, mine.take(chosen), **place)

        every = np.arange(len(patch))
        attention = base.sites["attn_out", layer][where]
        if len(projected := np.unique(token[mine.component == HEAD_OUT])):
            heads = base.sites["head_out", layer][tuple(index[projected] for index in where)]
            overwrite(heads, HEAD_OUT, projected)
            attention[projected] = traced.block_module(layer, traced.architecture.head_projection)(heads)
        overwrite(attention, ATTN_OUT, every)
        middle = stream[where] + attention
        if has_parallel_residual(traced.model):
            mlp = base.sites["mlp_out", layer][where]
        else:
            mlp = torch.empty_like(middle)
            again = np.setdiff1d(every, token[mine.component == MLP_OUT])
            normalised = traced.block_module(layer, traced.architecture.mlp_norm)(middle[again])
            mlp[again] = traced.block_module(layer, traced.architecture.mlp)(normalised)
        overwrite(mlp, MLP_OUT, every)
        left[layer + 1] = _Tokens(patch, position, middle + mlp)
    return left


def _arrive(live: Tensor, tokens: _Tokens | None, rows: Rows, *, start: int) -> None:
    """Put what left the block below into the streams of the rows that join here, `(rows, positions, width)`."""
    if tokens is not None:
        row = _find(rows.patch, tokens.patch)
        mine = np.nonzero(row >= 0)[0]
        live[row[mine], tokens.position[mine] - start] = tokens.vector[mine].to(live.device)


def _place(
    traced: Traced, live: Tensor, given: Activations, writes: Writes, *, row: np.ndarray, pair: np.ndarray, position
) -> None:
    """Write in place `live[row, position, head] = given[pair, writes.position, head]`, for writes at one site."""
    if len(writes):
        component, layer = int(writes.component[0]), int(writes.layer[0])
        source = split_heads(traced, given[COMPONENTS[component], layer], component)
        head = np.maximum(writes.head, 0)
        vectors = source[pair, writes.position, head].to(live.device)
        split_heads(traced, live, component)[row, position, head] = vectors


def _spans(rows: Rows, inside: np.ndarray, row_budget: int, *, most_tokens: int) -> Iterator[list[slice]]:
    """Batches of rows of one start, gathered as long as they have `most_tokens` tokens that leave blocks, or one batch.

    `inside` counts these tokens by patch; blocks are left once per span, because a call with few tokens is slow.
    """
    weight = np.zeros(int(rows.patch.max(initial=-1)) + 1, dtype=np.int64)
    weight[: len(inside)] = inside[: len(weight)]
    edges = np.flatnonzero(np.diff(rows.start, prepend=-1, append=NEVER))
    batches = [slice(i, min(i + row_budget, stop)) for start, stop in zip(edges, edges[1:], strict=False)
               for i in range(start, stop, row_budget)]  # fmt: skip
    span, tokens = [], 0
    for batch in batches:
        more = int(weight[rows.patch[batch]].sum())
        if span and tokens + more > most_tokens:
            yield span
            span, tokens = [], 0
        span.append(batch)
        tokens += more
    if span:
        yield span


def _spread(index: np.ndarray, values: np.ndarray) -> np.ndarray:
    """An array that holds `values` at `index`, and NEVER elsewhere."""
    spread = np.full(int(index.max(initial=-1)) + 1, NEVER)
    spread[index] = values
    return spread


def _find(patches: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each wanted patch stands among `patches`, −1 where it does not."""
    place = np.full(int(max(patches.max(initial=-1), wanted.max(initial=-1))) + 1, -1)
    place[patches] = np.arange(len(patches))
    return place[wanted]
