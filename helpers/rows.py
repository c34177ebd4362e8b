"""Rows: which patches of a plan have to be run at all, and where in the network each of them begins to matter.

A row is one patch on its way through the network. It is the base run of its pair until two places, and joins a batch
there:

    start   the first token it changes: earlier tokens are not run, their keys and values are the base run's
    join    the first block whose input it changes; one more than the last block if only the readout sees it

A row that is patched inside block l (heads, attention, MLP) joins at block l + 1: what leaves block l differs from the
base run at the patched tokens only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np
from torch import Tensor

from helpers.architectures import has_parallel_residual, head_count, layer_count
from helpers.plans import COMPONENTS, Plan, Writes
from helpers.tracing import Traced

EMBEDDING, RESID_PRE, HEAD_OUT, ATTN_OUT, MLP_OUT, RESID_POST = range(len(COMPONENTS))
NEVER = np.iinfo(np.int64).max
Activations = Mapping[tuple[str, int], Tensor]  # (pairs, positions, width) by (component, layer)


@dataclass(frozen=True)
class Rows:
    """Patches that have to be run, `(rows,)` each, sorted by start, then join."""

    patch: np.ndarray
    pair: np.ndarray
    start: np.ndarray
    join: np.ndarray

    def __len__(self) -> int:
        return len(self.patch)

    def take(self, chosen: np.ndarray | slice) -> Rows:
        """The rows at these indices, in this slice, or where this mask is true."""
        return Rows(*(getattr(self, field.name)[chosen] for field in fields(self)))


def patched_sites(writes: Writes) -> set[tuple[str, int]]:
    """Every (component, layer) that some write overwrites."""
    return {(COMPONENTS[component], layer) for component, layer in sites_of(writes)}


def base_sites(traced: Traced, writes: Writes) -> set[tuple[str, int]]:
    """The sites of the base run that the staircase starts from."""
    inside = {layer for component, layer in sites_of(writes) if HEAD_OUT <= component <= MLP_OUT}
    beside = ("attn_out", "mlp_out") if has_parallel_residual(traced.model) else ("attn_out",)
    entered = {0} | {layer + step for _, layer in sites_of(writes) for step in (0, 1)}
    streams = {("resid_pre", layer) for layer in entered if layer < layer_count(traced.model)}
    return streams | patched_sites(writes) | {(name, layer) for name in beside for layer in inside}


def effective_writes(
    traced: Traced, plan: Plan, base: Activations, given: Activations, *, shared: np.ndarray
) -> Writes:
    """The writes of a plan that can change what is read out; the others are left out, and that changes nothing.

    Left out are what the last block writes anywhere but at the last position, for nothing reads it; all that comes
    before a write of the last residual itself; and vectors that are the base run's own already, as long as no other
    write of the patch comes before them. They are so at the first `shared[pair]` tokens, where a causal model has read
    the same in both runs, and wherever they are equal.
    """
    layers, last = layer_count(traced.model) - 1, base["resid_pre", 0].shape[1] - 1
    writes = plan.writes
    writes = writes.take((writes.layer < layers) | (writes.component <= RESID_PRE) | (writes.position == last))
    ended = np.isin(writes.patch, writes.patch[writes.component == RESID_POST])
    writes = writes.take(~ended | (writes.component == RESID_POST))
    idle = writes.position < shared[plan.pair[writes.patch]]
    for (component, layer), chosen in by_site(writes):
        one, other = (split_heads(traced, run[COMPONENTS[component], layer], component) for run in (base, given))
        equal = (one == other.to(one.device)).all(-1).cpu().numpy()
        mine = writes.take(chosen)
        idle[chosen] |= equal[plan.pair[mine.patch], mine.position, np.maximum(mine.head, 0)]
    order = writes.layer * len(COMPONENTS) + writes.component
    first_order, first_position = np.full(len(plan.pair), NEVER), np.full(len(plan.pair), NEVER)
    np.minimum.at(first_order, writes.patch[~idle], order[~idle])
    np.minimum.at(first_position, writes.patch[~idle], writes.position[~idle])
    before = (order <= first_order[writes.patch]) | (writes.position < first_position[writes.patch])
    return writes.take(~(idle & before))


def rows_to_run(traced: Traced, writes: Writes, pair: np.ndarray) -> Rows:
    """One row for each patch that has a write, `pair` being the pair of every patch."""
    patch, first = np.unique(writes.patch, return_index=True)  # their first writes: they stand in forward order
    start = np.full(len(pair), NEVER)
    np.minimum.at(start, writes.patch, writes.position)
    join = writes.layer[first] + (writes.component[first] > RESID_PRE)
    join[np.isin(patch, writes.patch[writes.component == RESID_POST])] = layer_count(traced.model)
    rows = Rows(patch, pair[patch], start[patch], join)
    return rows.take(np.lexsort((rows.join, rows.start)))


def split_heads(traced: Traced, value: Tensor, component: int) -> Tensor:
    """`(rows, positions, width)` as `(rows, positions, heads, head width)`; a whole site is one head."""
    return value.unflatten(-1, (head_count(traced.model) if component == HEAD_OUT else 1, -1))


def sites_of(writes: Writes) -> list[tuple[int, int]]:
    """Every (component, layer) that some write overwrites, as integers."""
    return sorted(set(zip(writes.component.tolist(), writes.layer.tolist(), strict=True)))


def by_site(writes: Writes) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """The indices of the writes at each (component, layer)."""
    for component, layer in sites_of(writes):
        yield (component, layer), np.nonzero((writes.component == component) & (writes.layer == layer))[0]
