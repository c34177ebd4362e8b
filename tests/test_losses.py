"""Losses: the same tokens for every model, position by position, and what the study's validation loss is made of."""

import math

import pytest
import torch
from test_examples import Letters

from helpers.losses import held_out_loss, padding_loss
from helpers.models import random_model

TEXTS = ["abc", "defghijab", "a", "jihgfedcba"]


@pytest.fixture(scope="module")
def model():
    return random_model(12, layers=2, width=32, heads=2, positions=16, seed=0).eval()


def log_probabilities(model, ids: list[int], *, real: int | None = None) -> list[float]:
    """Of every token but the first, given those before it; with `real`, of which attention looks at the first few."""
    mask = None if real is None else torch.tensor([[1] * real + [0] * (len(ids) - real)])
    with torch.no_grad():
        logs = model(torch.tensor([ids]), attention_mask=mask).logits[0].double().log_softmax(-1)
    return [logs[i, token].item() for i, token in enumerate(ids[1:])]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_held_out_loss_is_that_of_every_word_on_its_own(model, batch_size):
    words, ends = [], []
    for ids in Letters()(TEXTS)["input_ids"]:
        *inside, last = log_probabilities(model, [*ids, 0])
        words += inside
        ends.append(last)
    found = held_out_loss(model, Letters(), TEXTS, max_length=16, batch_size=batch_size)
    assert found["tokens"] == len(words) == sum(len(text) - 1 for text in TEXTS)
    assert found["loss"] == pytest.approx(-sum(words) / len(words), abs=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["end_loss"] == pytest.approx(-sum(ends) / len(ends), abs=1e-6)


def test_the_published_loss_is_made_of_text_and_padding(model):
    text, padding = [], []
    for ids in Letters()(TEXTS)["input_ids"]:
        kept = ids[:8]
        logs = log_probabilities(model, kept + [0] * (8 - len(kept)), real=len(kept))
        text += logs[: len(kept) - 1]
        padding += logs[len(kept) - 1 :]
    found = padding_loss(model, Letters(), TEXTS, max_length=8, batch_size=3)
    assert found["share"] == pytest.approx(len(padding) / (len(text) + len(padding)))
    assert found["text_loss"] == pytest.approx(-sum(text) / len(text), abs=1e-6)
    assert found["padding_loss"] == pytest.approx(-sum(padding) / len(padding), abs=1e-6)
    assert found["loss"] == pytest.approx(
        found["share"] * found["padding_loss"] + (1 - found["share"]) * found["text_loss"]
    )
