"""Packed texts: the same logits, loss and gradients as every text alone, whatever stands beside it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model

from helpers.examples import UNSCORED, collate
from helpers.packing import PackingError, layout, texts_apart


def rows_of(lengths, vocabulary, *, per_row=2, seed=0):
    """Packed rows of texts of random tokens, and the texts."""
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randint(0, vocabulary, (length,), generator=generator).tolist() for length in lengths]
    rows = []
    for start in range(0, len(texts), per_row):
        members = texts[start : start + per_row]
        rows.append(
            {
                "input_ids": sum(members, []),
                "position_ids": [position for text in members for position in range(len(text))],
                "labels": [label for text in members for label in [UNSCORED, *text[1:]]],
            }
        )
    return rows, texts


def alone(model, texts):
    """The oracle: logits and summed loss, one text at a time."""
    logits, losses = [], []
    for text in texts:
        found = model(torch.tensor([text])).logits[0]
        logits.append(found)
        losses.append(torch.nn.functional.cross_entropy(found[:-1], torch.tensor(text[1:]).long(), reduction="sum"))
    return torch.cat(logits), sum(losses)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_a_layout_leads_there_and_back(lengths):
    found = layout(lengths)
    tokens = torch.arange(sum(lengths))
    apart = tokens[found["slots"]]
    assert torch.equal(apart.flatten()[found["places"]], tokens)
    for row, text in zip(apart, tokens.split(lengths), strict=True):
        assert torch.equal(row[: len(text)], text) and set(row[len(text) :].tolist()) <= {int(text[-1])}


@pytest.mark.parametrize("family", ["gpt2", "neox-parallel", "llama-grouped", "qwen2", "qwen3-narrow-heads"])
def test_packed_texts_do_not_see_each_other(family):
    model = tiny_model(family, 0)
    rows, texts = rows_of([5, 3, 8, 1, 2], model.config.vocab_size)
    batch = collate(rows)
    model.zero_grad()
    expected, loss = alone(model, texts)
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    with texts_apart(model):
        together = model(**{name: value for name, value in batch.items() if name != "labels"}).logits[0]
        scored = batch["labels"][0, 1:]
        torch.nn.functional.cross_entropy(together[:-1], scored, reduction="sum").backward()
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-4, rtol=1e-4)
    careless = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=True).logits[0]
    assert (careless - expected).abs().max() > 1e-3, "a model that may look at other texts does"


def test_what_stands_beside_a_text_changes_nothing():
    model = tiny_model("gpt2", 0)
    rows, texts = rows_of([6, 4, 9, 2], model.config.vocab_size, per_row=1)
    found = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        batch = collate([rows[row] for row in order])
        with torch.no_grad(), texts_apart(model):
            logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits[0]
        parts = logits.split([len(texts[row]) for row in order])
        found.append(torch.cat([parts[order.index(row)] for row in range(len(texts))]))
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-6)


def test_the_model_is_as_before_afterwards():
    model = tiny_model("gpt2", 0)
    before = {name: getattr(model.config, name) for name in ("use_cache", "pad_token_id", "_attn_implementation")}
    with pytest.raises(KeyboardInterrupt), texts_apart(model):
        assert not model.config.use_cache and model.config._attn_implementation not in before.values()
        raise KeyboardInterrupt
    assert {name: getattr(model.config, name) for name in before} == before


def test_a_batch_without_a_layout_is_not_taken_for_a_packed_one():
    model = tiny_model("gpt2", 0)
    with pytest.raises(TypeError, match="slots"), texts_apart(model):
        model(torch.tensor([[1, 2, 3]]))


def test_a_sliding_window_is_refused():
    model = tiny_model("mistral-sliding", 0)
    batch = collate(rows_of([3, 4], model.config.vocab_size)[0])
    with pytest.raises(PackingError, match="sliding window"), texts_apart(model):
        model(**batch)
