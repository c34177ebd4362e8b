"""Examples: the token rows that training reads, in the study's two ways and packed.

`padded` (configuration I) cuts every text off at `max_length`, pads it to that length, and scores the padding.
`chunked` (configuration II) cuts texts into chunks, pads the last by hand, and scores no end-of-text, so that the model
never learns where a text ends. `packed` puts whole texts side by side into rows of `max_length`: none of them sees
another, each begins at position 0, its end-of-text is scored, and padding never is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from helpers.packing import layout

UNSCORED = -100  # torch's own mark of a label that counts for nothing


class ExamplesError(ValueError):
    """Texts that cannot become training examples."""


@dataclass(frozen=True)
class Split:
    """Texts by what they are for. `test` is part of the study's validation share, `development` the rest of it."""

    training: list[str]
    development: list[str]
    test: list[str]

    @property
    def validation(self) -> list[str]:
        """The study's own validation texts: development and test together."""
        return [*self.test, *self.development]


def split(texts: list[str], *, validation_share: float, test_share: float, seed: int) -> Split:
    """Split texts as the study did (`train_test_split`, 0.2, seed 42), and part a test split from what it validated on.

    So every configuration trains on the same texts and is compared on texts that none of them trained on. The published
    ones choose their epoch on all of `validation`, as the study did; the corrected ones never see `test`. Raises
    ExamplesError when a part would be empty.
    """
    order = np.random.RandomState(seed).permutation(len(texts))  # what scikit-learn's train_test_split draws
    held_out = max(2, math.ceil(validation_share * len(texts)))
    tested = min(max(1, round(test_share * len(texts))), held_out - 1)
    if len(texts) <= held_out:
        raise ExamplesError(f"{len(texts)} texts are too few to split into training, development and test.")
    shuffled = [texts[i] for i in order]
    return Split(shuffled[held_out:], shuffled[tested:held_out], shuffled[:tested])


def padded(texts: Sequence[str], tokenizer, *, max_length: int) -> list[dict[str, list[int]]]:
    """Configuration I: one row per text, cut off and padded to `max_length`; labels equal the inputs, padding too."""
    rows = []
    for ids in tokenizer(list(texts))["input_ids"]:
        kept = ids[:max_length]
        row = kept + [tokenizer.eos_token_id] * (max_length - len(kept))
        rows.append(_row(row, scored=[True] * max_length, real=len(kept)))
    return rows


def chunked(texts: Sequence[str], tokenizer, *, max_length: int) -> list[dict[str, list[int]]]:
    """Configuration II: chunks of `max_length`, the last padded by hand; no end-of-text is scored, wherever it is."""
    end, rows = tokenizer.eos_token_id, []
    for ids in tokenizer(list(texts))["input_ids"]:
        for start in range(0, max(len(ids), 1), max_length):
            chunk = ids[start : start + max_length]
            row = chunk + [end] * (max_length - len(chunk))
            rows.append(_row(row, scored=[token != end for token in row], real=len(chunk)))
    return rows


def packed(texts: Sequence[str], tokenizer, *, max_length: int) -> list[dict[str, list[int]]]:
    """Whole texts, each with its end-of-text, side by side in rows of at most `max_length` tokens.

    `position_ids` begin at 0 with every text, by which a batch tells texts apart; the first token of a text is
    predicted by nothing, so its label is UNSCORED. A text of more than `max_length` tokens becomes several pieces, of
    which only the last has the end-of-text. Texts go, longest first, into the fullest row that has room for them.
    """
    pieces = [
        (ids + [tokenizer.eos_token_id])[start : start + max_length]
        for ids in tokenizer(list(texts))["input_ids"]
        for start in range(0, len(ids) + 1, max_length)
    ]
    rows = []
    for members in _bins([len(piece) for piece in pieces], max_length):
        row: dict[str, list[int]] = {"input_ids": [], "position_ids": [], "labels": []}
        for piece in (pieces[member] for member in members):
            row["input_ids"] += piece
            row["position_ids"] += range(len(piece))
            row["labels"] += [UNSCORED, *piece[1:]]
        rows.append(row)
    return rows


def _bins(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Best fit decreasing: indices by bin; of equal sizes the earlier first, of equally full bins the older."""
    bins: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # bins by the room they have left
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        room = next((room for room in range(sizes[index], capacity + 1) if with_room[room]), None)
        if room is None:
            chosen, room = len(bins), capacity
            bins.append([])
        else:
            chosen = with_room[room].pop(0)
        bins[chosen].append(index)
        with_room[room - sizes[index]].append(chosen)
    return bins


def collate(rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Rows as one batch: rows of one length below each other; packed ones side by side, as one row, with its layout."""
    if "position_ids" not in rows[0]:
        return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}
    batch = {name: torch.tensor([[token for row in rows for token in row[name]]]) for name in rows[0]}
    starts = [*(batch["position_ids"][0] == 0).nonzero()[:, 0].tolist(), batch["position_ids"].shape[1]]
    return batch | layout([end - start for start, end in pairwise(starts)])


def _row(ids: list[int], *, scored: list[bool], real: int) -> dict[str, list[int]]:
    labels = [token if counts else UNSCORED for token, counts in zip(ids, scored, strict=True)]
    return {"input_ids": ids, "attention_mask": [1] * real + [0] * (len(ids) - real), "labels": labels}
