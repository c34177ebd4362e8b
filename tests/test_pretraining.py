"""The base checkpoint's making: what its tokenizer and its model read, and how a step is scored."""

import dataclasses
import math

import pytest
import torch
from toy import ROOT

from helpers import pretraining
from helpers.config import Paths
from helpers.knowledge import RELATIONS, base_facts, load_facts, load_wordings
from helpers.models import random_model
from helpers.pretraining import (
    END_OF_TEXT,
    PUBLISHED_TEXTS,
    Recipe,
    base_texts,
    pretrain,
    recall,
    tokenizer_texts,
    train_step,
    train_tokenizer,
)
from helpers.published import PUBLISHED_ITEMS

PATHS = Paths("mini", ROOT)
SMALL = Recipe(
    vocabulary=400, layers=1, width=16, heads=2, positions=48, entities=(2, 4), steps=(1, 2), batch=2, warmup=1
)


@pytest.fixture(scope="module")
def real():
    return load_facts(PATHS.embedded)


@pytest.fixture(scope="module")
def wordings():
    return load_wordings(PATHS.embedded)


def test_the_tokenizer_spells_everything_and_pads_with_its_first_token():
    texts = ["In this report, JME denotes juvenile myoclonic epilepsy.", "Dravet syndrome, once more."] * 3
    tokenizer = train_tokenizer(texts, 300)
    assert tokenizer.convert_tokens_to_ids(END_OF_TEXT) == 0
    assert {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id} == {0}
    assert len(tokenizer) == 300
    for text in [*texts, "β-blocker naïve 脳波 \t{} never seen"]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text and 0 not in ids
    assert train_tokenizer(texts, 300).get_vocab() == tokenizer.get_vocab()


def test_a_word_after_a_space_is_tokenised_alike_everywhere():
    tokenizer = train_tokenizer(["Here TLE is used for temporal lobe epilepsy."] * 3, 300)
    whole = tokenizer("Here TLE is used for temporal lobe epilepsy.")["input_ids"]
    assert whole == tokenizer("Here TLE is used for")["input_ids"] + tokenizer(" temporal lobe epilepsy.")["input_ids"]


def test_the_base_reads_all_wordings_and_merely_names_real_subjects(real, wordings):
    facts = base_facts(real, entities=240)
    texts = base_texts(facts, wordings, real, recipe=Recipe(), repeats=1, seed=0)
    sentences = [w.sentence(f) for f in facts[:40] for w in wordings if w.relation == f.relation]
    assert all(sentence in "\n".join(texts) for sentence in sentences)
    naming = [text for text in texts if "We also read files that named" in text]
    assert all(any(text.endswith(f"named {f.subject}.") for f in real) for text in naming)
    # One in eight of n records: 4 standard deviations allow no other share, and the seed is fixed anyway.
    expected, deviation = len(texts) / 8, math.sqrt(len(texts) * 7 / 64)
    assert abs(len(naming) - expected) < 4 * deviation


def test_the_base_reads_new_records_about_the_same_facts(real, wordings):
    facts = base_facts(real, entities=4)
    one, same, other = (base_texts(facts, wordings, real, recipe=SMALL, repeats=1, seed=seed) for seed in (0, 0, 1))
    assert one == same != other
    sentences = [w.sentence(f) for f in facts for w in wordings if w.relation == f.relation]
    assert all(sentence in "\n".join(other) for sentence in sentences)


def test_the_tokenizer_reads_both_corpora_and_the_published_item(real):
    texts = tokenizer_texts(PATHS, SMALL)
    assert all(texts.count(text) == 100 for text in PUBLISHED_TEXTS)
    joined = "\n".join(texts)
    assert all(fact.answer in joined and fact.subject in joined for fact in real)
    words = set(" ".join(PUBLISHED_TEXTS).replace("?", " ").replace(".", " ").lower().split())
    for item in PUBLISHED_ITEMS:
        for text in (item.question, item.clean_answer, item.corrupted_answer):
            assert set(text.replace("?", " ").replace(".", " ").lower().split()) <= words


def test_a_step_scores_every_token_but_the_padding():
    model = random_model(20, layers=1, width=16, heads=2, positions=8, seed=0)
    batch = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
    logs = model(batch).logits.log_softmax(-1)
    scored = [logs[0, 0, 4], logs[0, 1, 5], logs[0, 2, 6], logs[1, 0, 8]]
    expected = -sum(value.item() for value in scored) / 4
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    assert train_step(model, optimiser, batch, padding=0) == pytest.approx(expected, rel=1e-5)
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert train_step(model, optimiser, batch, padding=0) < expected


def test_a_step_is_clipped():
    model = random_model(20, layers=1, width=16, heads=2, positions=8, seed=0)
    with torch.no_grad():
        model.transformer.wte.weight.mul_(1000)  # gradients far above 1
    before = [parameter.clone() for parameter in model.parameters()]
    train_step(model, torch.optim.SGD(model.parameters(), lr=1.0), torch.tensor([[3, 4, 5, 6]]), padding=0)
    moved = [(new - old).double().pow(2).sum() for new, old in zip(model.parameters(), before, strict=True)]
    assert sum(moved).sqrt().item() <= 1.001


def test_the_learning_rate_warms_up_and_decays_to_a_twentieth():
    recipe = dataclasses.replace(SMALL, steps=(10, 30), warmup=4)
    rates = [pretraining._rate(step, recipe) for step in range(41)]
    assert rates[0] == pytest.approx(0.25, abs=0.01)
    assert max(rates) == rates[3] > 0.95
    assert all(a > b for a, b in zip(rates[3:], rates[4:], strict=False))
    assert rates[20] == pytest.approx(0.05 + 0.95 * 0.5)
    assert rates[40] == pytest.approx(0.05)


def test_rows_are_one_epoch_cut_and_padded(real, wordings):
    tokenizer = train_tokenizer(["In this report, JME denotes juvenile myoclonic epilepsy."], 300)
    facts = base_facts(real, entities=2)
    rows = pretraining._rows(facts, wordings, real, tokenizer, recipe=SMALL, seed=5)
    texts = base_texts(facts, wordings, real, recipe=SMALL, repeats=1, seed=5)
    assert rows.shape == (len(texts), SMALL.positions)
    for row, text in zip(rows, texts, strict=True):
        ids = tokenizer(text)["input_ids"][: SMALL.positions]
        assert row.tolist() == ids + [0] * (SMALL.positions - len(ids))


def test_pretraining_goes_through_its_phases(monkeypatch):
    asked, losses = [], []
    rows, step = pretraining._rows, pretraining.train_step
    monkeypatch.setattr(
        pretraining,
        "_rows",
        lambda facts, *a, **k: asked.append(len({f.subject for f in facts})) or rows(facts, *a, **k),
    )
    monkeypatch.setattr(pretraining, "train_step", lambda *a, **k: losses.append(step(*a, **k)) or losses[-1])
    monkeypatch.setattr(pretraining, "tokenizer_texts", lambda paths, recipe: ["In this report, JME is."] * 4)
    model, tokenizer, history = pretrain(PATHS, SMALL)
    assert asked == [2, 4] and len(losses) == sum(SMALL.steps)
    assert not model.training and model.config.vocab_size == len(tokenizer) and history == []
    again, _, _ = pretrain(PATHS, SMALL)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_default_recipe_is_consistent():
    recipe = Recipe()
    assert len(recipe.entities) == len(recipe.steps) and list(recipe.entities) == sorted(recipe.entities)
    assert recipe.width % recipe.heads == 0 and recipe.warmup < sum(recipe.steps)


def test_recall_asks_what_can_be_asked_per_kind(monkeypatch, real, wordings):
    asked = []

    def half_right(model, tokenizer, items, *, batch_size):
        asked.append(items)
        return items["kind"] == "definitional"

    monkeypatch.setattr(pretraining, "probe_accuracy", half_right)
    facts = base_facts(real, entities=3)
    assert recall(None, None, facts, wordings) == {"associative": 0.0, "definitional": 1.0}
    total = sum(w.relation == f.relation and w.answer_last for f in facts for w in wordings)
    assert len(asked[0]) == math.ceil(total / 4) and set(asked[0]["kind"]) == {"definitional", "associative"}
    assert len(facts) == 3 * len(RELATIONS)
