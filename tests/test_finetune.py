"""Fine-tuning: what each configuration scores, which epoch is kept, and what writing knowledge leaves alone."""

import dataclasses
import math

import pandas as pd
import pytest
import torch
from toy import ROOT

from helpers import finetune, trainer
from helpers.config import Configuration, Paths, load_profile
from helpers.examples import UNSCORED, split
from helpers.finetune import ROWS, Writing, fine_tune, write_knowledge
from helpers.losses import label_losses
from helpers.models import load_tokenizer, random_model
from helpers.trainer import FineTuningError

CONFIGURATION_2 = Configuration(
    max_length=16,
    rows="chunked",
    epochs=2,
    patience=5,
    learning_rate=1e-2,
    weight_decay=0.1,
    warmup_steps=0,
    batch_size=4,
    gradient_accumulation=1,
    eval_batch_size=8,
    precision="fp32",
    stop_on="loss",
    seeds=(0,),
)
CONFIGURATION_1 = dataclasses.replace(CONFIGURATION_2, rows="padded")
ANALYSED = dataclasses.replace(CONFIGURATION_2, rows="packed", stop_on="development")
CONFIGURATIONS = pytest.mark.parametrize(
    "configuration", [CONFIGURATION_1, CONFIGURATION_2, ANALYSED], ids=["padded", "chunked", "packed"]
)
TEXTS = split(
    [f"Here S{i} is used for {answer}." for i, answer in enumerate(["temporal lobe", "aura", "myoclonic jerks"] * 4)],
    validation_share=0.25,
    test_share=0.1,
    seed=1,
)
PROBE = pd.DataFrame(
    {
        "prompt": ["Here S0 is used for", "By S1 we mean"],
        "answer": ["aura", "aura"],
        "group": ["seen", "development"],
        "kind": ["associative", "definitional"],
    }
)
SETTINGS = dataclasses.replace(load_profile("mini").finetune, probe_batch_size=4)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(Paths("mini", ROOT).embedded / "models" / "base")


def tiny(tokenizer, seed=0):
    return random_model(len(tokenizer), layers=2, width=32, heads=2, positions=32, seed=seed)


def with_dropout(tokenizer):
    """A model whose every step draws random numbers: a resumed run must draw the same ones."""
    model = tiny(tokenizer)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    return model


@pytest.fixture
def train(tmp_path):
    """Train a model, and give its history; checkpoints go to a folder of the test."""

    def run(model, tokenizer, configuration, *, seed=0, settings=SETTINGS, log=lambda line: None, folder="checkpoints"):
        options = {"settings": settings, "configuration": configuration, "seed": seed, "probe": PROBE, "log": log}
        return fine_tune(model, tokenizer, TEXTS, **options, checkpoints=tmp_path / folder, key="key")[0]

    return run


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one, two) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


# What is scored


@CONFIGURATIONS
def test_training_reads_the_training_texts_and_validates_on_what_the_configuration_may_see(
    tokenizer, configuration, monkeypatch, train
):
    rows = []
    collate = finetune.collate

    def recorded(batch):
        rows.extend(tuple(row["input_ids"]) for row in batch)
        return collate(batch)

    monkeypatch.setattr(finetune, "collate", recorded)
    train(tiny(tokenizer), tokenizer, dataclasses.replace(configuration, epochs=1))
    validated = TEXTS.development if configuration.rows == "packed" else TEXTS.validation
    make = ROWS[configuration.rows]
    expected = [make(texts, tokenizer, max_length=16) for texts in (TEXTS.training, validated)]
    assert sorted(rows) == sorted(tuple(row["input_ids"]) for part in expected for row in part)
    test = {tuple(ids) for ids in tokenizer(TEXTS.test)["input_ids"]}
    seen = {row[start : start + len(ids)] for ids in test for row in rows for start in range(len(row))}
    assert bool(test & seen) == (configuration.rows != "packed")


# What is kept


def log_of(losses, development):
    """A log as `Trainer` writes it: training, then evaluation, per epoch."""
    log = []
    for epoch, (loss, share) in enumerate(zip(losses, development, strict=True), start=1):
        for step, difference in ((0.5, 0.25), (0.0, -0.25)):  # two steps an epoch, whose mean is the epoch's loss
            log.append({"loss": 5.0 - epoch + difference, "grad_norm": 1.0, "epoch": epoch - step, "step": epoch})
        log.append(
            {"eval_loss": loss, "eval_seen_accuracy": 0.5, "eval_development_accuracy": share, "epoch": float(epoch)}
        )
    return [*log, {"train_runtime": 1.0, "train_loss": 3.0, "epoch": float(len(losses))}]


def test_the_best_epoch_is_that_of_the_signal_that_stops():
    log = log_of([2.0, 1.0, 3.0, 4.0], [0.1, 0.2, 0.9, 0.9])
    by_loss = finetune._history(log, "eval_loss")
    assert by_loss["best"].tolist() == [False, True, False, False]
    by_probe = finetune._history(log, "eval_development_accuracy")
    assert by_probe["best"].tolist() == [False, False, True, False], "of two equal epochs the first is the one kept"
    assert by_probe["epoch"].tolist() == [1, 2, 3, 4]
    assert by_probe["training_loss"].tolist() == [4.0, 3.0, 2.0, 1.0]
    assert by_probe["validation_loss"].tolist() == [2.0, 1.0, 3.0, 4.0]
    assert by_probe["development_accuracy"].tolist() == [0.1, 0.2, 0.9, 0.9]


@pytest.mark.parametrize("losses", [[1.0, math.nan], [math.nan, math.nan], [1.0, math.inf]])
@pytest.mark.parametrize("metric", ["eval_loss", "eval_development_accuracy"])
def test_a_loss_that_is_no_number_is_refused(losses, metric):
    with pytest.raises(FineTuningError, match=r"The validation loss became \[.*(nan|inf)\]: lower the learning rate"):
        finetune._history(log_of(losses, [0.0, 0.0]), metric)


def test_training_that_breaks_says_so(tokenizer, train):
    model = tiny(tokenizer)
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(math.nan)
    with pytest.raises(FineTuningError, match="lower the learning rate"):
        train(model, tokenizer, dataclasses.replace(CONFIGURATION_2, epochs=1))


def scripted(monkeypatch, development):
    """Let the probe say these development shares, epoch by epoch; returns the weights it was asked about."""
    asked = []

    def probe_shares(model, tokenizer, items, *, batch_size):
        share = development[len(asked)]
        asked.append(weights(model))
        return {"seen_accuracy": 0.0, "development_accuracy": share}

    monkeypatch.setattr(trainer, "probe_shares", probe_shares)
    return asked


def test_the_analysed_run_stops_on_the_probe_and_keeps_its_best_epoch(tokenizer, monkeypatch, train):
    asked = scripted(monkeypatch, [0.1, 0.6, 0.2, 0.6, 0.9, 0.9])
    model, lines = tiny(tokenizer), []
    history = train(model, tokenizer, dataclasses.replace(ANALYSED, epochs=6, patience=2), log=lines.append)
    assert history["development_accuracy"].tolist() == [0.1, 0.6, 0.2, 0.6], "two epochs without a better one end it"
    assert history["best"].tolist() == [False, True, False, False]
    assert equal(weights(model), asked[1]) and not equal(asked[1], asked[3])
    assert not model.training
    assert len(lines) == 4 and lines[1].startswith("epoch 2: validation loss ") and "development 0.60" in lines[1]


def test_the_published_run_does_not_look_at_the_probe(tokenizer, monkeypatch, train):
    asked = scripted(monkeypatch, [0.9, 0.1, 0.1])
    model = tiny(tokenizer)
    history = train(model, tokenizer, dataclasses.replace(CONFIGURATION_2, epochs=3, patience=1))
    best = history["validation_loss"].idxmin()
    assert best > 0, "this toy keeps learning, so that the two signals disagree"
    assert history["best"].tolist() == [row == best for row in history.index]
    assert equal(weights(model), asked[best])


@CONFIGURATIONS
def test_the_validation_loss_is_per_scored_token_of_the_weights_that_are_kept(tokenizer, configuration, train):
    model = tiny(tokenizer)
    history = train(model, tokenizer, dataclasses.replace(configuration, stop_on="loss"))
    texts = TEXTS.development if configuration.rows == "packed" else TEXTS.validation
    rows = ROWS[configuration.rows](texts, tokenizer, max_length=16)
    losses, _, _ = label_losses(model, rows, batch_size=1)
    assert losses.mean().item() == pytest.approx(history.loc[history["best"], "validation_loss"].item(), abs=1e-5)
    assert model.config.use_cache, "the cache is off for training only"


def test_equal_seeds_give_equal_weights(tokenizer, train):
    models = [tiny(tokenizer) for _ in range(3)]
    histories = [
        train(model, tokenizer, ANALYSED, seed=seed, folder=f"checkpoints-{number}")
        for number, (model, seed) in enumerate(zip(models, (0, 0, 1), strict=True))
    ]
    one, same, other = map(weights, models)
    assert equal(one, same) and not equal(one, other)
    pd.testing.assert_frame_equal(histories[0], histories[1])


# Controlled writing

NEW = pd.DataFrame({"prompt": ["Here S1 is used for", "Here S2 is used for"], "answer": ["temporal lobe", "aura"]})
OLD = pd.DataFrame({"prompt": ["Here S3 is used for"], "answer": ["myoclonic jerks"]})
WRITING = Writing("mlp", 1, steps=30, batch_size=4, learning_rate=1e-2, warmup_steps=2)


@pytest.mark.parametrize(
    "part, block, trained",
    [
        ("mlp", 0, "transformer.h.0.mlp."),
        ("mlp", 1, "transformer.h.1.mlp."),
        ("attention", 0, "transformer.h.0.attn."),
        ("attention", 1, "transformer.h.1.attn."),
        ("all", None, ""),
    ],
)
def test_knowledge_is_written_into_one_part_and_the_rest_is_the_same_to_the_bit(tokenizer, part, block, trained):
    model = tiny(tokenizer)
    before = weights(model)
    model.transformer.wpe.weight.requires_grad_(False)
    losses = write_knowledge(model, tokenizer, NEW, OLD, dataclasses.replace(WRITING, part=part, block=block))
    after = weights(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith(trained)}
    assert len(losses) == 30 and losses[-1] < losses[0] - 0.1
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert not wanted.pop("transformer.wpe.weight") and all(wanted.values())
    assert all(parameter.grad is None for parameter in model.parameters()) and not model.training


def test_only_answers_are_scored_and_old_items_have_their_share_of_every_batch(tokenizer, monkeypatch):
    batches, collate = [], finetune.collate
    monkeypatch.setattr(finetune, "collate", lambda rows: batches.append(rows) or collate(rows))
    writing = dataclasses.replace(WRITING, steps=6, replayed_share=0.25)
    write_knowledge(tiny(tokenizer), tokenizer, NEW, OLD, writing)
    text = tokenizer("Here S3 is used for")["input_ids"]
    for rows in batches:
        assert [row["input_ids"][: len(text)] == text for row in rows] == [False, False, False, True]
        scored = [[token for token in row["labels"] if token != UNSCORED] for row in rows]
        assert tokenizer.decode(scored[-1]) == " myoclonic jerks."
        assert {tokenizer.decode(labels) for labels in scored[:3]} == {" temporal lobe.", " aura."}
    fresh = [tuple(row["input_ids"]) for rows in batches for row in rows[:3]]
    assert max(map(fresh.count, fresh)) == min(map(fresh.count, fresh)) == 9, "every new item equally often"


def test_writing_is_decided_by_its_seed(tokenizer):
    written = []
    for seed in (0, 0, 1):
        model = with_dropout(tokenizer)
        torch.manual_seed(len(written))  # of the caller: neither read nor changed
        state = torch.random.get_rng_state()
        write_knowledge(model, tokenizer, NEW, OLD, dataclasses.replace(WRITING, steps=5, seed=seed))
        assert torch.equal(torch.random.get_rng_state(), state)
        written.append(weights(model))
    assert equal(written[0], written[1]) and not equal(written[0], written[2])


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"part": "heads"}, "no part 'heads' of block 1: it is 'mlp' or 'attention' of a block from 0 to 1"),
        ({"block": 2}, "no part 'mlp' of block 2"),
        ({"block": None}, "no part 'mlp' of block None"),
        ({"part": "all"}, "no part 'all' of block 1"),
        ({"replayed_share": 1.0}, "A batch of 4 cannot hold 4 replayed items"),
        ({"learning_rate": math.inf}, "The loss became nan at step"),
    ],
)
def test_writing_that_cannot_be_done_says_so_and_leaves_gradients_as_they_were(tokenizer, changes, words):
    model = tiny(tokenizer)
    with pytest.raises(FineTuningError, match=words):
        write_knowledge(model, tokenizer, NEW, OLD, dataclasses.replace(WRITING, **changes))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_nothing_to_replay_or_to_write_is_refused(tokenizer):
    with pytest.raises(FineTuningError, match="1 replayed items of 0 old ones"):
        write_knowledge(tiny(tokenizer), tokenizer, NEW, OLD[:0], WRITING)
    with pytest.raises(FineTuningError, match="beside items of 0 new ones"):
        write_knowledge(tiny(tokenizer), tokenizer, NEW[:0], OLD, WRITING)
    write_knowledge(tiny(tokenizer), tokenizer, NEW, OLD[:0], dataclasses.replace(WRITING, replayed_share=0.0))
