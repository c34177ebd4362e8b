"""Fine-tuning: the study's two configurations through `Trainer`, and both corrected.

I pads every abstract and scores the padding, II masks padding and every end-of-text with it; both are the study's, and
stop on the loss of the texts that they are compared on. I′ and II′ have the same optimisation, but packed rows with
their end-of-text scored, and a test split that stopping never sees; II′ stops on the share of *development* wordings
that the model answers right. Training goes on after `kill -9` from the last whole checkpoint, to the same weights.
Source: the study's published scripts, rewritten for transformers 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import EarlyStoppingCallback, get_cosine_schedule_with_warmup

from helpers.architectures import architecture_of, layer_count
from helpers.checkpoints import CompleteCheckpoints, finished, last_complete
from helpers.config import Configuration, FineTuning
from helpers.examples import UNSCORED, Split, chunked, collate, packed, padded
from helpers.packing import texts_apart
from helpers.probe import prompt_and_answer_tokens
from helpers.trainer import FineTuningError, ProbedTrainer, this_process, training_arguments

DROPOUT = ("embd_pdrop", "attn_pdrop", "resid_pdrop")  # of a GPT-2's configuration
ROWS = {"padded": padded, "chunked": chunked, "packed": packed}


def fine_tune(
    model,
    tokenizer,
    texts: Split,
    *,
    settings: FineTuning,
    configuration: Configuration,
    seed: int,
    probe: pd.DataFrame,
    checkpoints: Path,
    key: str,
    log=print,
) -> tuple[pd.DataFrame, list[dict]]:
    """Train `model` in place and leave the best checkpoint's weights in it; goes on from a checkpoint that is there.

    Returns one row per evaluation, epoch, training loss, validation loss (as the configuration scores and `Trainer`
    averages them), the probe's shares, `best`, and the log they come from. The published configurations validate on
    all of `texts.validation`, the corrected ones on `texts.development`. Raises FineTuningError when the loss is not a
    number, and CheckpointError when a checkpoint cannot be written.
    """
    make = partial(ROWS[configuration.rows], tokenizer=tokenizer, max_length=configuration.max_length)
    metric = {"loss": "eval_loss", "development": "eval_development_accuracy"}[configuration.stop_on]
    arguments = training_arguments(checkpoints, configuration, settings, metric=metric, seed=seed)
    cached = model.config.use_cache
    with this_process().main_process_first():  # it removes what is not whole; the others find that done
        resumed = last_complete(checkpoints, key=key)
    if resumed and this_process().is_main_process:
        log(f"goes on from {resumed.name}")
    trainer = ProbedTrainer(
        model,
        configuration=configuration,
        args=arguments,
        train_dataset=make(texts.training),
        eval_dataset=make(texts.development if configuration.rows == "packed" else texts.validation),
        data_collator=collate,
        callbacks=[
            EarlyStoppingCallback(configuration.patience),
            CompleteCheckpoints(steps=settings.checkpoint_steps),
        ],
        probe=probe,
        tokenizer=tokenizer,
        probe_batch_size=settings.probe_batch_size,
        report=log,
    )
    if resumed and finished(resumed, patience=configuration.patience):
        trainer.finish(resumed)
    else:
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    history = _history(trainer.state.log_history, metric)
    model.eval()
    model.config.use_cache = cached  # `Trainer` turns it off
    return history, trainer.state.log_history


@dataclass(frozen=True)
class Writing:
    """How facts are written into a model: where, and how it is trained.

    `part` is `mlp` or `attention` of block `block`, or `all`, which has no block. `replayed_share` of every batch are
    old facts.
    """

    part: str
    block: int | None = None
    steps: int = 400
    batch_size: int = 64
    learning_rate: float = 3e-3
    warmup_steps: int = 20
    replayed_share: float = 0.25
    seed: int = 0


def write_knowledge(
    model, tokenizer, new: pd.DataFrame, old: pd.DataFrame, writing: Writing, *, cached: bool = False
) -> list[float]:
    """Train one part of `model`, in place, to answer `new` items right while `old` ones are replayed.

    Items have columns prompt and answer; only the answer's tokens and its full stop are scored, each item is a row of
    its own, and AdamW without weight decay follows a cosine. Every other parameter stays as it is, to the bit. Returns
    the loss of every step, in nats per scored token. `cached` computes what enters the block, which never changes, once
    per item, and logits only where they are scored: the same losses up to rounding, in less time. Raises
    FineTuningError for a part that the model has not, for a replay of nothing, when the loss is not a number, and for
    `cached` where there is dropout or no GPT-2.
    """
    trained = _part(model, writing)
    replayed = round(writing.replayed_share * writing.batch_size)
    if not len(new) or replayed >= writing.batch_size or (replayed and not len(old)):
        raise FineTuningError(
            f"A batch of {writing.batch_size} cannot hold {replayed} replayed items of {len(old)} old ones beside "
            f"items of {len(new)} new ones: lower replayed_share ({writing.replayed_share}) or give items."
        )
    generator = torch.Generator().manual_seed(writing.seed)
    fresh = _cycled(_answers(tokenizer, new), generator)
    known = _cycled(_answers(tokenizer, old), generator) if replayed else iter(())
    loss_of = _cached_loss(model, writing.block or 0) if cached else partial(_loss, model)
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    training, losses = model.training, []
    model.loss_type = "ForCausalLM"
    for parameter in wanted:
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=writing.learning_rate, weight_decay=0.0)
    optimizer.zero_grad()  # of the caller's gradients
    schedule = get_cosine_schedule_with_warmup(optimizer, writing.warmup_steps, writing.steps)
    try:
        model.train()
        with torch.random.fork_rng(), texts_apart(model):
            torch.manual_seed(writing.seed)  # dropout's
            for _ in range(writing.steps):
                rows = [*islice(fresh, writing.batch_size - replayed), *islice(known, replayed)]
                loss = loss_of(rows)
                losses.append(loss.item())
                if not math.isfinite(losses[-1]):
                    raise FineTuningError(f"The loss became {losses[-1]} at step {len(losses)}: lower learning_rate.")
                loss.backward()
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    finally:
        model.train(training)
        for parameter, before in wanted.items():
            parameter.requires_grad_(before)
            parameter.grad = None
    return losses


def _loss(model, rows: list[dict[str, list[int]]]) -> Tensor:
    device = next(model.parameters()).device
    return model(**{name: value.to(device) for name, value in collate(rows).items()}).loss


def _cached_loss(model, block: int) -> Callable[[list[dict[str, list[int]]]], Tensor]:
    """`_loss` of a model whose blocks before `block` are frozen: each row passes them once."""
    if model.config.model_type != "gpt2" or any(getattr(model.config, name) for name in DROPOUT):
        raise FineTuningError(
            f"What enters block {block} of this {model.config.model_type} is no constant, or not known how to go on "
            "from: write with cached=False, or into a GPT-2 without dropout."
        )
    body, device, entering = model.transformer, next(model.parameters()).device, {}

    def loss(rows: list[dict[str, list[int]]]) -> Tensor:
        names = [tuple(row["input_ids"]) for row in rows]
        if block and (missing := {name: row for name, row in zip(names, rows, strict=True) if name not in entering}):
            batch = {name: value.to(device) for name, value in collate(list(missing.values())).items()}
            del batch["labels"]
            with torch.no_grad():
                states = body(**batch, output_hidden_states=True).hidden_states[block][0]
            entering.update(zip(missing, states.split([len(name) for name in missing]), strict=True))
        batch = {name: value.to(device) for name, value in collate(rows).items()}
        if block:
            states = torch.cat([entering[name] for name in names])[None]
        else:
            states = body.wte(batch["input_ids"]) + body.wpe(batch["position_ids"])
        for layer in body.h[block:]:
            states = layer(states, slots=batch["slots"], places=batch["places"])
        labels = batch["labels"][0, 1:]
        scored = (labels != UNSCORED).nonzero()[:, 0]
        logits = model.lm_head(body.ln_f(states[0].index_select(0, scored)))
        return cross_entropy(logits, labels.index_select(0, scored))

    return loss


def _part(model, writing: Writing) -> list[torch.nn.Parameter]:
    if writing.part == "all" and writing.block is None:
        return list(model.parameters())
    row, blocks = architecture_of(model), layer_count(model)
    paths = {"mlp": row.mlp, "attention": row.attention}
    if writing.part not in paths or writing.block not in range(blocks):
        raise FineTuningError(
            f"There is no part {writing.part!r} of block {writing.block!r}: it is 'mlp' or 'attention' of a block from "
            f"0 to {blocks - 1}, or 'all' without a block."
        )
    return list(model.get_submodule(f"{row.blocks}.{writing.block}.{paths[writing.part]}").parameters())


def _answers(tokenizer, items: pd.DataFrame) -> list[dict[str, list[int]]]:
    return [
        {
            "input_ids": prompt + answer,
            "labels": [UNSCORED] * len(prompt) + answer,
            "position_ids": list(range(len(prompt) + len(answer))),
        }
        for prompt, answer in zip(*prompt_and_answer_tokens(tokenizer, items), strict=True)
    ]


def _cycled(rows: list, generator: torch.Generator) -> Iterator:
    """The rows again and again, each time in another order."""
    while True:
        yield from (rows[i] for i in torch.randperm(len(rows), generator=generator).tolist())


def _history(log: list[dict], metric: str) -> pd.DataFrame:
    rows, steps = [], []
    for entry in log:
        if "loss" in entry:
            steps.append(entry["loss"])
        elif "eval_loss" in entry:
            shares = {name.removeprefix("eval_"): entry[name] for name in entry if name.endswith("_accuracy")}
            losses = {"training_loss": sum(steps) / len(steps), "validation_loss": entry["eval_loss"]}
            rows.append({"epoch": round(entry["epoch"], 4), **losses, **shares})
            steps = []
    history = pd.DataFrame(rows)
    if not history["validation_loss"].map(math.isfinite).all():  # before the best epoch is sought: there may be none
        raise FineTuningError(
            f"The validation loss became {history['validation_loss'].tolist()}: lower the learning rate."
        )
    column = metric.removeprefix("eval_") if metric.endswith("_accuracy") else "validation_loss"
    best = history[column].idxmin() if column == "validation_loss" else history[column].idxmax()
    history["best"] = history.index == best
    return history
