"""Runs: un-patched forward passes, recorded once, from which every patch of a sweep starts.

A run keeps the asked sites, every block's keys and values, and the residual stream that leaves the last block. Nothing
is unembedded here: what a run says is read from that last residual by `helpers.readout`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from nnsight import save
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from helpers.architectures import SITES, layer_count
from helpers.pairs import PromptPair
from helpers.tracing import Traced, forward_arguments, read, write


@dataclass(frozen=True)
class Run:
    """A recorded run of prompts of one length.

    `sites` holds `(pairs, positions, width)` by (site, layer), `final` the residual stream after the last block at the
    last position, `(pairs, width)`, `keys` and `values` one `(pairs, key heads, positions, head width)` per block.
    """

    sites: dict[tuple[str, int], Tensor]
    final: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


def record(
    traced: Traced, tokens: Tensor, sites: Iterable[tuple[str, int]] = (), *, noise: Tensor | None = None
) -> Run:
    """Run `tokens`, `(pairs, positions)`, in one trace; `noise`, `(pairs, positions, width)`, is added to embeddings.

    The recorded embedding is the one with its noise.
    """
    # Forward order: a trace cannot go back to a site that the pass has left.
    ordered = sorted(sites, key=lambda site: (site[1], SITES.index(site[0])))
    cache, last = DynamicCache(), layer_count(traced.model) - 1
    arguments = {**forward_arguments(traced, tokens.shape[1]), "past_key_values": cache, "use_cache": True}
    with traced.trace(tokens, **arguments) as tracer:
        recorded = save({})
        if noise is not None:
            write(traced, "embedding", 0, read(traced, "embedding") + noise)
        for site, layer in ordered:
            recorded[site, layer] = read(traced, site, layer).clone()
        final = save(read(traced, "resid_post", last)[:, -1].clone())
        keys, values = save([layer.keys for layer in cache.layers]), save([layer.values for layer in cache.layers])
        tracer.stop()
    return Run(recorded, final, tuple(keys), tuple(values))


def prompt_tokens(chunk: Sequence[PromptPair], prompt: str, device: torch.device) -> Tensor:
    """The clean or the corrupted prompts of pairs of one length, `(pairs, positions)`."""
    return torch.tensor([getattr(pair, prompt) for pair in chunk], device=device)


def prefix_cache(run: Run, rows_of_layer: Sequence[np.ndarray], length: int) -> Cache:
    """Keys and values of the first `length` tokens of a run, for a pass over the tokens that follow.

    `rows_of_layer[l]` says, for every row that block l will see, which pair of the run it belongs to. A block's keys
    and values are copied for its rows only when that block asks for them, so that one block's copies exist at a time.
    """
    layers = zip(run.keys, run.values, rows_of_layer, strict=True)
    return Cache(layers=[_PrefixLayer(keys, values, rows, length) for keys, values, rows in layers])


class _PrefixLayer(DynamicLayer):
    """One block's keys and values of a shared beginning, put before those of the tokens that are run."""

    def __init__(self, keys: Tensor, values: Tensor, rows: np.ndarray, length: int) -> None:
        super().__init__()
        self.prefix, self.rows, self.length = (keys[:, :, :length], values[:, :, :length]), rows, length
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        keys, values = (prefix[self.rows] for prefix in self.prefix)
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)

    def get_seq_length(self) -> int:
        return self.length
