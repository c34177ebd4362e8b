"""Memory: how many rows one forward pass may hold, and what to do when that was too many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pandas as pd
import psutil
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from helpers.pairs import PromptPair, bucket_by_length
from helpers.plans import PatchingError
from helpers.progress import track
from helpers.tracing import Traced

SHARE = 0.25  # of the free memory: the estimate below leaves out what libraries keep for themselves
ENOUGH_BYTES = 24 * 2**20  # of the widest activation in one pass: beyond 32 MiB glibc asks for fresh pages every time


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device; the machine's own where a device will not say."""
    if device.type not in ("cpu", "meta"):
        try:
            return torch.accelerator.get_memory_info(device)[0]
        except (RuntimeError, NotImplementedError):
            pass
    return psutil.virtual_memory().available


def affordable_rows(model, positions: int) -> int:
    """How many rows of `positions` tokens one forward pass through a model should hold, by the memory that is free.

    A row is counted as ten vectors of the residual stream and three of the MLP's inner width per token, and one
    attention pattern per head: what is alive at once within one block. Passes whose widest activation, the MLP's inner
    one, has more than ENOUGH_BYTES are not faster on a processor; `row_budget` sets another size.
    """
    config = model.config
    width = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * width
    numbers = 10 * width + 3 * inner + config.num_attention_heads * positions
    fits = int(SHARE * free_memory(model.device) / (positions * numbers * model.dtype.itemsize))
    return max(1, min(fits, ENOUGH_BYTES // (positions * inner * model.dtype.itemsize)))


def affordable_pairs(model, positions: int) -> int:
    """Of how many pairs of `positions` tokens a sweep may hold the recorded runs, by the memory that is free.

    Two runs are counted with five sites each, and keys and values, per token and block: the most a sweep records.
    """
    config = model.config
    numbers = 12 * config.hidden_size * config.num_hidden_layers
    return max(1, int(SHARE * free_memory(model.device) / (positions * numbers * model.dtype.itemsize)))


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that a device's memory is exhausted; if so, what that device caches is given back."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or should_reduce_batch_size(error):
        clear_device_cache(garbage_collection=True)
        return True
    return False


def in_chunks(
    traced: Traced,
    pairs: Sequence[PromptPair],
    table_of: Callable[[Traced, list[PromptPair], int], pd.DataFrame],
    *,
    row_budget: int | None,
    rows_per_pair: int,
    label: str | None = None,
) -> Iterator[pd.DataFrame]:
    """The tables `table_of(traced, chunk, budget)` of chunks of pairs of one length, shortest pairs first.

    A chunk holds `rows_per_pair` times fewer pairs than one forward pass holds rows, and no more than there is memory
    for. When memory runs out the budget is halved, and the chunk tried again in smaller pieces; the lower budget stays.
    Raises PatchingError when even one row is too many.
    """
    chunks = []
    for positions, bucket in bucket_by_length(pairs).items():
        budget = row_budget or affordable_rows(traced.model, positions)
        size = min(max(1, budget // rows_per_pair), affordable_pairs(traced.model, positions))
        chunks += [(bucket[i : i + size], budget) for i in range(0, len(bucket), size)]
    most = max(budget for _, budget in chunks)  # lowered when memory runs out, and then for all that follow
    for chunk, budget in track(chunks, label) if label else chunks:
        todo = list(chunk)
        while todo:
            budget = min(budget, most)
            size = max(1, budget // rows_per_pair)
            try:
                table = table_of(traced, todo[:size], budget)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if budget == 1:
                    raise PatchingError(
                        f"Memory ran out with a single row in the forward pass (pair {todo[0].pair_id}, "
                        f"{todo[0].positions} tokens): use a device with more memory or a smaller model."
                    ) from error
                most = budget // 2
                continue
            yield table
            todo = todo[size:]
