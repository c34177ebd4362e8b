"""Losses per token: on the test texts, where every model can be compared, and on the padding that the study scored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from helpers.examples import UNSCORED, collate, packed, padded
from helpers.packing import texts_apart


def held_out_loss(model, tokenizer, texts: Sequence[str], *, max_length: int, batch_size: int) -> dict[str, float]:
    """Loss on the words of texts, which are the same tokens whatever a model was trained on, and on their ends.

    Keys: tokens, loss (nats per token), perplexity, end_loss (nats per end-of-text). No padding and no first token of a
    text counts, and a text sees nothing but itself.
    """
    rows = packed(texts, tokenizer, max_length=max_length)
    losses, labels, _ = label_losses(model, rows, batch_size=batch_size)
    words, ends = losses[labels != tokenizer.eos_token_id], losses[labels == tokenizer.eos_token_id]
    loss = words.mean().item()
    return {"tokens": len(words), "loss": loss, "perplexity": math.exp(loss), "end_loss": ends.mean().item()}


def padding_loss(model, tokenizer, texts: Sequence[str], *, max_length: int, batch_size: int) -> dict[str, float]:
    """What configuration I's validation loss is made of.

    Keys: share (of the scored tokens that is padding), loss (nats per scored token, as published), text_loss and
    padding_loss (nats per token of either kind).
    """
    rows = padded(texts, tokenizer, max_length=max_length)
    losses, _, real = label_losses(model, rows, batch_size=batch_size)
    return {
        "share": 1 - real.double().mean().item(),
        "loss": losses.mean().item(),
        "text_loss": losses[real].mean().item(),
        "padding_loss": losses[~real].mean().item(),
    }


def label_losses(model, rows: Sequence[dict[str, list[int]]], *, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of every scored label of some rows, in nats, the labels, and whether they are text and not padding.

    Each is one-dimensional, in the order of rows and positions; the losses are in double precision.
    """
    device, found = next(model.parameters()).device, []
    with torch.no_grad(), texts_apart(model) if "position_ids" in rows[0] else nullcontext():
        for start in range(0, len(rows), batch_size):
            batch = collate(rows[start : start + batch_size])
            labels = batch.pop("labels")[:, 1:]
            real = (
                batch["attention_mask"][:, 1:].bool() if "attention_mask" in batch else torch.ones_like(labels).bool()
            )
            logits = model(**{name: value.to(device) for name, value in batch.items()}).logits[:, :-1].float().cpu()
            losses = cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=UNSCORED)
            scored = labels != UNSCORED
            found.append((losses[scored].double(), labels[scored], real[scored]))
    losses, labels, real = (torch.cat(parts) for parts in zip(*found, strict=True))
    return losses, labels, real
