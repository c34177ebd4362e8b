"""The probe: one forward pass says what greedy decoding would have written."""

import pandas as pd
import pytest
import torch

from helpers import probe
from helpers.models import random_model
from helpers.pretraining import train_step
from helpers.probe import knowledge_table, probe_accuracy, shares

LEARNT = [
    ("In this report, JME denotes", "juvenile myoclonic epilepsy"),
    ("In this report, TLE denotes", "temporal lobe epilepsy"),
    ("Dravet syndrome is treated with", "stiripentol and valproate"),
    ("Here TLE is", "temporal"),
]
# Asked as learnt, then with another answer: wrong at its first token, in its middle, and at its full stop alone.
ASKED = [
    *LEARNT,
    ("In this report, JME denotes", "temporal lobe epilepsy"),
    ("Dravet syndrome is treated with", "stiripentol and lobe"),
    ("Dravet syndrome is treated with", "stiripentol"),
    ("Here TLE is", "temporal lobe"),
    ("Dravet", "syndrome"),
]


@pytest.fixture(scope="module")
def learner(tokenizer):
    """A tiny model that has memorised a few sentences, and a tokenizer that pads."""
    tokenizer = tokenizer.__class__(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|endoftext|>")
    tokenizer.pad_token = tokenizer.eos_token
    model = random_model(len(tokenizer), layers=2, width=32, heads=2, positions=64, seed=0)
    batch = tokenizer([f"{prompt} {answer}." for prompt, answer in LEARNT], padding=True, return_tensors="pt")
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        loss = train_step(model, optimiser, batch["input_ids"], padding=tokenizer.pad_token_id)
    assert loss < 0.6
    return model.eval(), tokenizer


@pytest.fixture(scope="module")
def items():
    return pd.DataFrame(ASKED, columns=["prompt", "answer"], index=[f"item {i}" for i in range(len(ASKED))])


@pytest.fixture(scope="module")
def written(learner, items):
    """The slow oracle: let the model write, one prompt at a time, and compare what it wrote."""
    model, tokenizer = learner
    right = []
    for prompt, answer in zip(items["prompt"], items["answer"], strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        wanted = tokenizer(f" {answer}.")["input_ids"]
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=len(wanted),
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        right.append(tokenizer.decode(output[0, ids.shape[1] :]) == f" {answer}.")
    return right


def test_the_probe_is_greedy_decoding(learner, items, written):
    assert written[: len(LEARNT)] == [True] * len(LEARNT), "the oracle must have something to find"
    assert written[len(LEARNT) : -1] == [False] * (len(ASKED) - len(LEARNT) - 1)
    right = probe_accuracy(*learner, items, batch_size=4)
    assert right.tolist() == written
    assert right.index.equals(items.index) and right.dtype == bool


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_neither_batches_nor_order_change_an_answer(learner, items, written, batch_size):
    expected = pd.Series(written, index=items.index)
    pd.testing.assert_series_equal(probe_accuracy(*learner, items, batch_size=batch_size), expected)
    shuffled = items.sample(frac=1, random_state=batch_size)
    pd.testing.assert_series_equal(probe_accuracy(*learner, shuffled, batch_size=batch_size), expected[shuffled.index])


@pytest.mark.parametrize("training", [True, False])
def test_the_training_flag_is_given_back(learner, items, training):
    model, tokenizer = learner
    seen = []
    handle = model.register_forward_pre_hook(
        lambda module, args: seen.append((module.training, torch.is_grad_enabled()))
    )
    try:
        model.train(training)
        probe_accuracy(model, tokenizer, items, batch_size=4)
        assert model.training == training
    finally:
        handle.remove()
        model.eval()
    assert set(seen) == {(False, False)}, "asked in evaluation mode, without gradients"


def test_shares_count_every_item_once(monkeypatch):
    items = pd.DataFrame(
        {
            "kind": ["definitional"] * 4 + ["associative"] * 2,
            "arm": ["real"] * 6,
            "group": ["seen", "seen", "seen", "test", "seen", "seen"],
        }
    )
    right = pd.Series([True, True, False, False, True, True])
    monkeypatch.setattr(probe, "probe_accuracy", lambda *args, **options: right)
    table = knowledge_table(None, None, items, batch_size=2, seed=3, name="m")
    found = {(row.kind, row.group): (row.asked, row.right) for row in table.itertuples()}
    assert found == {
        ("definitional", "seen"): (3, pytest.approx(2 / 3)),
        ("definitional", "test"): (1, 0.0),
        ("associative", "seen"): (2, 1.0),
    }
    assert (table["seed"] == 3).all() and (table["name"] == "m").all()
    # Four of the five seen items are right: the mean of the two groups' shares would be 5/6.
    assert shares(table, ["group"]).to_dict() == {"seen": pytest.approx(4 / 5), "test": 0.0}
