"""Fine-tuning: the study's two configurations through `Trainer`, and the one that is analysed further.

Configuration I pads every abstract to the full length and scores the padding; configuration II cuts abstracts into
chunks, pads the last by hand with end-of-text, and its collator masks every end-of-text. The analysed configuration is
II with another stopping rule: the share of *development* wordings answered right, instead of the validation loss.
Source: the study's published scripts, rewritten for transformers 5.
"""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from transformers import (
    DataCollatorForLanguageModeling,
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from helpers.artifacts import fingerprint, read_json, sha256_tree, write_bytes, write_json
from helpers.config import Configuration, FineTuning
from helpers.models import load_model, save_model
from helpers.probe import probe_accuracy

RUN_TITLES = {
    "configuration_1": "I, as published",
    "configuration_2": "II, as published",
    "analysed": "II, stopped on the probe",
}


class FineTuningError(ValueError):
    """Training that cannot start or has gone wrong."""


def split(texts: list[str], *, validation_share: float, seed: int) -> tuple[list[str], list[str]]:
    """The study's random split into training and validation texts (published: 80/20, seed 42)."""
    if len(texts) < 2:
        raise FineTuningError(f"{len(texts)} text is not enough to split into training and validation.")
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = max(1, round(validation_share * len(texts)))
    return [texts[i] for i in order[held_out:]], [texts[i] for i in order[:held_out]]


def encode(texts: list[str], tokenizer, configuration: Configuration) -> list[dict[str, list[int]]]:
    """Token rows of one configuration, each with input_ids, attention_mask and labels.

    `score_padding` (I): one truncated row per text, padded to `max_length`, labels equal to the inputs. Otherwise (II):
    chunks of at most `max_length`, every end-of-text masked in the labels; rows are padded to `max_length` when
    `pad_to_max_length`, else by the collator to the longest of the batch, which changes no loss.
    """
    end, length = tokenizer.eos_token_id, configuration.max_length
    rows = []
    for ids in tokenizer(texts)["input_ids"]:
        starts = [0] if configuration.score_padding else range(0, max(len(ids), 1), length)
        for start in starts:
            chunk = ids[start : start + length]
            padding = (length - len(chunk)) if configuration.pad_to_max_length else 0
            row = chunk + [end] * padding
            labels = row if configuration.score_padding else [-100 if token == end else token for token in row]
            rows.append({"input_ids": row, "attention_mask": [1] * len(chunk) + [0] * padding, "labels": list(labels)})
    return rows


class ProbedTrainer(Trainer):
    """A `Trainer` whose every evaluation also asks the items: the probe's shares join the evaluation's metrics."""

    def __init__(self, *args, probe: pd.DataFrame, tokenizer, probe_batch_size: int, report, **kwargs):
        super().__init__(*args, **kwargs)
        self._probe, self._probe_tokenizer, self._probe_batch_size = probe, tokenizer, probe_batch_size
        self._report = report

    def evaluation_loop(self, *args, **kwargs):
        """The evaluation, then the share of probe items answered right per group.

        Here and not in `evaluate`: that one tells the callbacks, and early stopping must see the shares.
        """
        output = super().evaluation_loop(*args, **kwargs)
        right = probe_accuracy(self.model, self._probe_tokenizer, self._probe, batch_size=self._probe_batch_size)
        shares = right.groupby(self._probe["group"].to_numpy()).mean()
        output.metrics.update({f"eval_{group}_accuracy": float(share) for group, share in shares.items()})
        right = ", ".join(f"{group} {share:.2f}" for group, share in shares.items())
        self._report(f"epoch {self.state.epoch:.0f}: validation loss {output.metrics['eval_loss']:.3f}, right: {right}")
        return output


def fine_tune(
    model,
    tokenizer,
    texts: list[str],
    *,
    settings: FineTuning,
    configuration: Configuration,
    seed: int,
    probe: pd.DataFrame,
    log=print,
) -> pd.DataFrame:
    """Train `model` in place and leave the best checkpoint's weights in it.

    Returns one row per evaluation: epoch, training loss, validation loss (nats per scored token, as the configuration
    scores them), the probe's shares, `best`. Raises FineTuningError when the loss is not a number.
    """
    training, validation = split(texts, validation_share=settings.validation_share, seed=settings.split_seed)
    metric = {"loss": "eval_loss", "development": "eval_development_accuracy"}[configuration.stop_on]
    # GPT-2's class does not name its loss, and `Trainer` then also counts every row's first token, which none predicts.
    model.loss_type = "ForCausalLM"
    set_seed(seed)
    with tempfile.TemporaryDirectory(prefix="clap-checkpoints-") as folder:
        arguments = _arguments(folder, configuration, settings, metric=metric, seed=seed)
        trainer = ProbedTrainer(
            model=model,
            args=arguments,
            train_dataset=encode(training, tokenizer, configuration),
            eval_dataset=encode(validation, tokenizer, configuration),
            data_collator=_collator(tokenizer, configuration),
            callbacks=[EarlyStoppingCallback(configuration.patience)],
            probe=probe,
            tokenizer=tokenizer,
            probe_batch_size=settings.probe_batch_size,
            report=log,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        history = _history(trainer.state.log_history, metric)
    model.eval()
    return history


def planned_runs(settings: FineTuning) -> list[tuple[str, str, Configuration, int]]:
    """Every run of notebook 02 as (folder name, configuration name, configuration, seed), the analysed ones last."""
    return [
        (f"{name}-seed{seed}", name, configuration, seed)
        for name in RUN_TITLES
        for configuration in [getattr(settings, name)]
        for seed in configuration.seeds
    ]


def runs_key(settings: FineTuning, inputs: list[Path]) -> str:
    """What a finished run depends on: the settings, the content of its inputs, and the code that trains."""
    sources = [Path(__file__).with_name(f"{module}.py") for module in ("finetune", "probe", "models")]
    return fingerprint([asdict(settings), [sha256_tree([path], path.parent) for path in [*inputs, *sources]]])


def train_run(folder: Path, *, key: str, model, tokenizer, configuration: Configuration, seed: int, **training):
    """Fine-tune into `folder` (weights, `history.json`, model card), or read the run that is already there.

    A finished run made under the same `key` is kept: a rerun after a crash trains only what is missing. Returns the
    history and the model with its best weights.
    """
    record = folder / "history.json"
    if record.is_file() and (stored := read_json(record))["key"] == key:
        return pd.DataFrame(stored["history"]), load_model(folder)[0]
    started = time.monotonic()
    history = fine_tune(model, tokenizer, configuration=configuration, seed=seed, **training)
    save_model(model, tokenizer, folder)
    training["log"](f"saved after {time.monotonic() - started:.0f} s")
    write_bytes(folder / "README.md", _card(configuration, seed, history).encode())
    write_json(record, {"key": key, "history": history.to_dict("records")})  # last: its presence says the run is whole
    return pd.DataFrame(
        read_json(record)["history"]
    ), model  # the same table, to the order of columns, as a rerun reads


def precision_used(configuration: Configuration) -> str:
    """fp16 exists on CUDA only; elsewhere the run is in fp32, and the notebook says so."""
    return "fp32" if configuration.precision == "fp16" and not torch.cuda.is_available() else configuration.precision


def _arguments(
    folder: str, configuration: Configuration, settings: FineTuning, *, metric: str, seed: int
) -> TrainingArguments:
    precision = precision_used(configuration)
    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=configuration.epochs,
        max_steps=settings.max_steps,
        per_device_train_batch_size=configuration.batch_size,
        per_device_eval_batch_size=configuration.eval_batch_size,
        gradient_accumulation_steps=configuration.gradient_accumulation,
        learning_rate=configuration.learning_rate,
        weight_decay=configuration.weight_decay,
        warmup_steps=configuration.warmup_steps,
        fp16=precision == "fp16",
        bf16=precision == "bf16",
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        greater_is_better=metric != "eval_loss",
        seed=seed,
        data_seed=seed,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _collator(tokenizer, configuration: Configuration):
    if configuration.score_padding:
        return None  # rows are already equally long, and their labels are kept as they are
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)  # labels anew: every end-of-text becomes -100
    return lambda rows: collator([{key: row[key] for key in ("input_ids", "attention_mask")} for row in rows])


def _history(log: list[dict], metric: str) -> pd.DataFrame:
    rows: dict[float, dict] = {}
    for entry in log:
        row = rows.setdefault(round(entry["epoch"], 4), {"epoch": round(entry["epoch"], 4)})
        names = {"loss": "training_loss", "eval_loss": "validation_loss"}
        for name, value in entry.items():
            if name in names or name.endswith("_accuracy"):
                row[names.get(name, name.removeprefix("eval_"))] = float(value)
    history = pd.DataFrame([row for row in rows.values() if "validation_loss" in row]).reset_index(drop=True)
    if not history["validation_loss"].map(math.isfinite).all():  # before the best epoch is sought: there may be none
        raise FineTuningError(
            f"The validation loss became {history['validation_loss'].tolist()}: lower the learning rate."
        )
    column = metric.removeprefix("eval_") if metric.endswith("_accuracy") else "validation_loss"
    best = history[column].idxmin() if column == "validation_loss" else history[column].idxmax()
    history["best"] = history.index == best
    return history


def _card(configuration: Configuration, seed: int, history: pd.DataFrame) -> str:
    best = history[history["best"]].iloc[0]
    settings = "\n".join(f"- {name}: {value}" for name, value in asdict(configuration).items() if name != "seeds")
    return (
        f"# A fine-tuned GPT-2\n\nSeed {seed}, best epoch {best['epoch']:.0f} of {len(history)}, validation loss "
        f"{best['validation_loss']:.3f} nats per scored token, in {precision_used(configuration)}.\n\n{settings}\n"
    )
