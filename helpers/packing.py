"""Packed texts in a model: every text attends to itself alone, whatever stands beside it.

A batch of packed texts is one row of tokens without padding. Everything but attention works on single tokens, and so
costs what the tokens cost; attention is computed on the same tokens laid out as one text per row. Texts differ in
length, but what fills a row up comes after its text, where a causal model does not look.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from helpers.architectures import attention


class PackingError(ValueError):
    """A model that cannot take packed texts."""


def layout(lengths: Sequence[int]) -> dict[str, Tensor]:
    """Where the tokens of texts of these lengths, side by side in one row, stand with one text per row, and back.

    `slots` (texts, longest) are positions in the common row, `places` (tokens) positions in the rows laid end to end.
    """
    longest = max(lengths)
    ends = torch.tensor(lengths).cumsum(0)
    starts = ends - torch.tensor(lengths)
    slots = torch.minimum(starts[:, None] + torch.arange(longest), ends[:, None] - 1)
    text = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    places = text * longest + torch.arange(int(ends[-1])) - starts[text]
    return {"slots": slots, "places": places}


def attention_within_texts(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: None,
    *,
    slots: Tensor,
    places: Tensor,
    **options,
) -> tuple[Tensor, None]:
    """Causal attention of every text of the common row to itself; tensors are (1, heads, tokens, width).

    Raises PackingError for attention through a sliding window, which this is not.
    """
    if options.get("sliding_window") is not None:
        raise PackingError(
            f"{type(module).__name__} attends through a sliding window, and packed texts cannot: pad them."
        )
    apart = (
        states[0].transpose(0, 1).index_select(0, slots.flatten()).unflatten(0, slots.shape).transpose(1, 2)
        for states in (query, key, value)
    )
    chosen = {name: options[name] for name in ("dropout", "scaling") if name in options}
    output, _ = sdpa_attention_forward(module, *apart, None, is_causal=True, **chosen)
    return output.flatten(0, 1).index_select(0, places)[None], None


@contextmanager
def texts_apart(model) -> Iterator[None]:
    """Let a model take batches of packed texts, which bring their `layout`; it takes no others in the meantime."""
    # A cache would be of no use; and end-of-text is a token like others, not padding that lacks a mask.
    before = {name: getattr(model.config, name) for name in ("use_cache", "pad_token_id")}
    model.config.update({"use_cache": False, "pad_token_id": None})
    try:
        with attention(model, attention_within_texts):
            yield
    finally:
        model.config.update(before)
