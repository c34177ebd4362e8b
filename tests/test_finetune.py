"""Fine-tuning: what each configuration scores, which epoch is kept, and that a finished run is trained once."""

import dataclasses
import math

import pandas as pd
import pytest
import torch
from toy import ROOT
from transformers import default_data_collator

from helpers import finetune
from helpers.config import Configuration, Paths, load_profile
from helpers.finetune import (
    RUN_TITLES,
    FineTuningError,
    encode,
    fine_tune,
    planned_runs,
    precision_used,
    runs_key,
    split,
    train_run,
)
from helpers.models import load_model, load_tokenizer, random_model

CONFIGURATION_2 = Configuration(
    max_length=16,
    pad_to_max_length=True,
    score_padding=False,
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
CONFIGURATION_1 = dataclasses.replace(CONFIGURATION_2, score_padding=True)
ANALYSED = dataclasses.replace(CONFIGURATION_2, pad_to_max_length=False, stop_on="development")
TEXTS = [
    f"Here S{i} is used for {answer}." for i, answer in enumerate(["temporal lobe", "aura", "myoclonic jerks"] * 4)
]
PROBE = pd.DataFrame(
    {"prompt": ["Here S0 is used for", "By S1 we mean"], "answer": ["aura", "aura"], "group": ["seen", "development"]}
)
SETTINGS = dataclasses.replace(load_profile("mini").finetune, validation_share=0.25, probe_batch_size=4)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(Paths("mini", ROOT).embedded / "models" / "base")


class Words:
    """One token per letter a, b, c, …, numbered from 1; end-of-text, written `|`, is 0."""

    eos_token_id = 0

    def __call__(self, texts):
        return {"input_ids": [["|abcdefghij".index(letter) for letter in text] for text in texts]}


def tiny(tokenizer, seed=0):
    return random_model(len(tokenizer), layers=2, width=32, heads=2, positions=32, seed=seed)


def train(model, tokenizer, configuration, *, seed=0, texts=TEXTS, settings=SETTINGS, log=lambda line: None):
    return fine_tune(
        model, tokenizer, texts, settings=settings, configuration=configuration, seed=seed, probe=PROBE, log=log
    )


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one, two) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


# The split


def test_the_split_is_fixed_by_its_seed_and_loses_nothing():
    texts = [f"text {i}" for i in range(25)]
    training, validation = split(texts, validation_share=0.2, seed=42)
    assert (len(training), len(validation)) == (20, 5)
    assert sorted(training + validation) == sorted(texts) and not set(training) & set(validation)
    torch.manual_seed(3)
    assert split(texts, validation_share=0.2, seed=42) == (training, validation)
    assert split(texts, validation_share=0.2, seed=43) != (training, validation)
    assert training != sorted(training, key=texts.index), "the order of the corpus is not kept"


def test_the_split_always_holds_something_out():
    assert [len(part) for part in split(["a", "b"], validation_share=0.01, seed=0)] == [1, 1]
    with pytest.raises(FineTuningError, match="1 text is not enough to split"):
        split(["a"], validation_share=0.2, seed=0)


# What is scored


def test_configuration_1_cuts_pads_and_scores_the_padding():
    rows = encode(["ab", "abcdef"], Words(), dataclasses.replace(CONFIGURATION_1, max_length=4))
    assert rows == [
        {"input_ids": [1, 2, 0, 0], "attention_mask": [1, 1, 0, 0], "labels": [1, 2, 0, 0]},
        {"input_ids": [1, 2, 3, 4], "attention_mask": [1, 1, 1, 1], "labels": [1, 2, 3, 4]},
    ]


def test_configuration_2_chunks_and_masks_every_end_of_text():
    configuration = dataclasses.replace(CONFIGURATION_2, max_length=4)
    rows = encode(["a|", "abcdef", "abcd"], Words(), configuration)
    assert rows == [
        {"input_ids": [1, 0, 0, 0], "attention_mask": [1, 1, 0, 0], "labels": [1, -100, -100, -100]},
        {"input_ids": [1, 2, 3, 4], "attention_mask": [1, 1, 1, 1], "labels": [1, 2, 3, 4]},
        {"input_ids": [5, 6, 0, 0], "attention_mask": [1, 1, 0, 0], "labels": [5, 6, -100, -100]},
        {"input_ids": [1, 2, 3, 4], "attention_mask": [1, 1, 1, 1], "labels": [1, 2, 3, 4]},
    ]
    bare = encode(["a|", "abcdef"], Words(), dataclasses.replace(configuration, pad_to_max_length=False))
    assert bare == [
        {"input_ids": [1, 0], "attention_mask": [1, 1], "labels": [1, -100]},
        {"input_ids": [1, 2, 3, 4], "attention_mask": [1, 1, 1, 1], "labels": [1, 2, 3, 4]},
        {"input_ids": [5, 6], "attention_mask": [1, 1], "labels": [5, 6]},
    ]


@pytest.mark.parametrize("configuration", [CONFIGURATION_1, CONFIGURATION_2, ANALYSED], ids=["I", "II", "analysed"])
def test_rows_share_no_list(tokenizer, configuration):
    row = encode(TEXTS[:1], tokenizer, configuration)[0]
    assert row["labels"] is not row["input_ids"]
    assert len(row["input_ids"]) == len(row["attention_mask"]) == len(row["labels"])


def test_the_collator_of_configuration_2_masks_end_of_text(tokenizer):
    rows = encode(["Here is one.", "Here is another, which is longer."], tokenizer, ANALYSED)
    batch = finetune._collator(tokenizer, ANALYSED)(rows)
    longest = max(len(row["input_ids"]) for row in rows)
    assert batch["input_ids"].shape == batch["labels"].shape == (2, longest)
    masked = batch["labels"] == -100
    assert torch.equal(masked, batch["input_ids"] == tokenizer.eos_token_id) and masked.any()
    assert torch.equal(batch["labels"][~masked], batch["input_ids"][~masked])
    assert torch.equal(batch["attention_mask"] == 0, masked)


def collate(rows, tokenizer, configuration):
    """As `Trainer` would: without a collator of ours it takes the default one."""
    return (finetune._collator(tokenizer, configuration) or default_data_collator)(rows)


def test_padding_changes_no_loss_of_configuration_2(tokenizer):
    model = tiny(tokenizer)
    losses = []
    for configuration in (CONFIGURATION_2, dataclasses.replace(CONFIGURATION_2, pad_to_max_length=False)):
        batch = collate(encode(TEXTS, tokenizer, configuration), tokenizer, configuration)
        losses.append((batch["input_ids"].shape[1], model(**batch).loss.item()))
    (padded, with_padding), (bare, without) = losses
    assert padded > bare and with_padding == pytest.approx(without, abs=1e-6)
    batch = collate(encode(TEXTS, tokenizer, CONFIGURATION_1), tokenizer, CONFIGURATION_1)
    assert abs(model(**batch).loss.item() - without) > 1e-3, "configuration I scores its padding, and that shows"


@pytest.mark.parametrize("configuration", [CONFIGURATION_1, CONFIGURATION_2, ANALYSED], ids=["I", "II", "analysed"])
def test_training_scores_what_the_configuration_says(tokenizer, configuration, monkeypatch):
    batches = []
    compute = finetune.ProbedTrainer.compute_loss

    def recorded(self, model, inputs, *args, **kwargs):
        batches.append({name: value.clone() for name, value in inputs.items()})
        return compute(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(finetune.ProbedTrainer, "compute_loss", recorded)
    train(tiny(tokenizer), tokenizer, dataclasses.replace(configuration, epochs=1))
    assert sum(len(batch["labels"]) for batch in batches) == len(TEXTS), "all are read, in training or validation"
    for batch in batches:
        end = batch["input_ids"] == tokenizer.eos_token_id
        expected = batch["input_ids"] if configuration.score_padding else batch["input_ids"].masked_fill(end, -100)
        assert torch.equal(batch["labels"], expected)
        if configuration.pad_to_max_length:
            assert batch["input_ids"].shape[1] == configuration.max_length and end.any()


# What is kept


def log_of(losses, development):
    """A log as `Trainer` writes it: training, then evaluation, per epoch."""
    log = []
    for epoch, (loss, share) in enumerate(zip(losses, development, strict=True), start=1):
        log.append({"loss": 5.0 - epoch, "grad_norm": 1.0, "epoch": float(epoch), "step": epoch})
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


def test_training_that_breaks_says_so(tokenizer):
    model = tiny(tokenizer)
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(math.nan)
    with pytest.raises(FineTuningError, match="lower the learning rate"):
        train(model, tokenizer, dataclasses.replace(CONFIGURATION_2, epochs=1))


def scripted(monkeypatch, development):
    """Let the probe say these development shares, epoch by epoch; returns the weights it was asked about."""
    asked = []

    def probe_accuracy(model, tokenizer, items, *, batch_size):
        share = development[len(asked)]
        asked.append(weights(model))
        return pd.Series([0.0, share], index=items.index)

    monkeypatch.setattr(finetune, "probe_accuracy", probe_accuracy)
    return asked


def test_the_analysed_run_stops_on_the_probe_and_keeps_its_best_epoch(tokenizer, monkeypatch):
    asked = scripted(monkeypatch, [0.1, 0.6, 0.2, 0.6, 0.9, 0.9])
    model, lines = tiny(tokenizer), []
    history = train(model, tokenizer, dataclasses.replace(ANALYSED, epochs=6, patience=2), log=lines.append)
    assert history["development_accuracy"].tolist() == [0.1, 0.6, 0.2, 0.6], "two epochs without a better one end it"
    assert history["best"].tolist() == [False, True, False, False]
    assert equal(weights(model), asked[1]) and not equal(asked[1], asked[3])
    assert not model.training
    assert len(lines) == 4 and lines[1].startswith("epoch 2: validation loss ") and "development 0.60" in lines[1]


def test_the_published_run_does_not_look_at_the_probe(tokenizer, monkeypatch):
    asked = scripted(monkeypatch, [0.9, 0.1, 0.1])
    model = tiny(tokenizer)
    history = train(model, tokenizer, dataclasses.replace(CONFIGURATION_2, epochs=3, patience=1))
    best = history["validation_loss"].idxmin()
    assert best > 0, "this toy keeps learning, so that the two signals disagree"
    assert history["best"].tolist() == [row == best for row in history.index]
    assert equal(weights(model), asked[best])


@pytest.mark.parametrize("configuration", [CONFIGURATION_1, ANALYSED], ids=["I", "analysed"])
def test_the_validation_loss_is_per_scored_token_of_the_weights_that_are_kept(tokenizer, configuration):
    model = tiny(tokenizer)
    history = train(model, tokenizer, dataclasses.replace(configuration, stop_on="loss"))
    _, validation = split(TEXTS, validation_share=SETTINGS.validation_share, seed=SETTINGS.split_seed)
    losses = []
    for row in encode(validation, tokenizer, configuration):  # one row, one position at a time
        with torch.no_grad():
            ids, mask = (torch.tensor([row[name]]) for name in ("input_ids", "attention_mask"))
            logs = model(ids, attention_mask=mask).logits[0].log_softmax(-1)
        losses += [-logs[i, label].item() for i, label in enumerate(row["labels"][1:]) if label != -100]
    assert sum(losses) / len(losses) == pytest.approx(history.loc[history["best"], "validation_loss"].item(), abs=1e-5)


def test_equal_seeds_give_equal_weights(tokenizer):
    models = [tiny(tokenizer) for _ in range(3)]
    histories = [train(model, tokenizer, ANALYSED, seed=seed) for model, seed in zip(models, (0, 0, 1), strict=True)]
    one, same, other = map(weights, models)
    assert equal(one, same) and not equal(one, other)
    pd.testing.assert_frame_equal(histories[0], histories[1])


# Runs on disk


def run(folder, tokenizer, *, key="key", seed=0, model=None):
    return train_run(
        folder,
        key=key,
        model=model or tiny(tokenizer),
        tokenizer=tokenizer,
        configuration=dataclasses.replace(CONFIGURATION_2, epochs=1),
        seed=seed,
        texts=TEXTS,
        settings=SETTINGS,
        probe=PROBE,
        log=lambda line: None,
    )


@pytest.fixture
def counted(monkeypatch):
    """The seeds that were trained, in place of training."""
    trained = []

    def fine_tune(model, tokenizer, *, seed, **options):
        trained.append(seed)
        history = {"epoch": [1.0], "training_loss": [2.0], "validation_loss": [1.5 + seed], "best": [True]}
        return pd.DataFrame(history)

    monkeypatch.setattr(finetune, "fine_tune", fine_tune)
    return trained


def test_a_finished_run_is_read_and_not_trained(tmp_path, tokenizer, monkeypatch):
    history, model = run(tmp_path / "run", tokenizer)

    def refuse(*args, **options):
        raise AssertionError("trained again")

    monkeypatch.setattr(finetune, "fine_tune", refuse)
    again, loaded = run(tmp_path / "run", tokenizer, model=tiny(tokenizer, seed=5))
    pd.testing.assert_frame_equal(again[history.columns], history)
    assert equal(weights(loaded), weights(model)) and not loaded.training
    card = (tmp_path / "run" / "README.md").read_text()
    assert "Seed 0, best epoch 1 of 1" in card and "- max_length: 16" in card


def test_another_key_trains_again(tmp_path, tokenizer, counted):
    run(tmp_path / "run", tokenizer, seed=0)
    run(tmp_path / "run", tokenizer, seed=0)
    assert counted == [0]
    history, _ = run(tmp_path / "run", tokenizer, key="other", seed=1)
    assert counted == [0, 1] and history["validation_loss"].tolist() == [2.5]
    run(tmp_path / "run", tokenizer, key="other", seed=1)
    assert counted == [0, 1]


@pytest.mark.parametrize("step", ["save_model", "write_bytes", "write_json"])
@pytest.mark.parametrize("earlier", [False, True], ids=["first", "over an older run"])
def test_a_run_that_was_cut_short_is_never_taken_for_whole(tmp_path, tokenizer, counted, monkeypatch, step, earlier):
    folder = tmp_path / "run"
    if earlier:
        run(folder, tokenizer, key="older")
    with monkeypatch.context() as patch:

        def die(*args, **options):
            raise KeyboardInterrupt

        patch.setattr(finetune, step, die)
        with pytest.raises(KeyboardInterrupt):
            run(folder, tokenizer, model=tiny(tokenizer, seed=1))
    if step != "save_model":
        assert not (folder / "history.json").exists(), "the new weights must not stand beside the old history"
    before = len(counted)
    run(folder, tokenizer, model=tiny(tokenizer, seed=1))
    assert len(counted) == before + 1
    assert equal(weights(load_model(folder)[0]), weights(tiny(tokenizer, seed=1)))


def test_the_planned_runs_are_every_seed_of_every_configuration():
    settings = dataclasses.replace(
        SETTINGS, configuration_1=CONFIGURATION_1, analysed=dataclasses.replace(ANALYSED, seeds=(0, 7))
    )
    runs = planned_runs(settings)
    assert [(folder, configuration.score_padding, seed) for folder, _, configuration, seed in runs] == [
        ("configuration_1-seed0", True, 0),
        *[(f"configuration_2-seed{seed}", False, seed) for seed in settings.configuration_2.seeds],
        ("analysed-seed0", False, 0),
        ("analysed-seed7", False, 7),
    ]
    assert {name for _, name, _, _ in runs} == set(RUN_TITLES)


def test_a_key_changes_with_settings_and_inputs(tmp_path):
    first, folder = tmp_path / "corpus.parquet", tmp_path / "base"
    first.write_text("one")
    folder.mkdir()
    (folder / "weights").write_text("two")
    key = runs_key(SETTINGS, [first, folder])
    assert runs_key(SETTINGS, [first, folder]) == key
    assert runs_key(dataclasses.replace(SETTINGS, split_seed=1), [first, folder]) != key
    (folder / "weights").write_text("three")
    changed = runs_key(SETTINGS, [first, folder])
    assert changed != key
    first.write_text("four")
    assert runs_key(SETTINGS, [first, folder]) not in (key, changed)


@pytest.mark.parametrize(
    "asked, cuda, used",
    [("fp16", False, "fp32"), ("fp16", True, "fp16"), ("fp32", True, "fp32"), ("bf16", False, "bf16")],
)
def test_half_precision_needs_cuda(monkeypatch, asked, cuda, used):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert precision_used(dataclasses.replace(CONFIGURATION_1, precision=asked)) == used
