"""The embedded base checkpoint: a byte-level BPE and a small GPT-2 that has read generated text (`make base-model`).

The base must know the *wordings* and the *words of the answers*, and none of the facts: fine-tuning is then what
writes them. It reads records about made-up entities only. Facts are learnt in two phases, as a curriculum: few
entities first, because with all of them at once the loss stays on a plateau for millions of tokens.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from helpers.artifacts import write_bytes, write_json
from helpers.config import Paths
from helpers.corpus import embedded_corpus, embedded_records, training_texts
from helpers.knowledge import RELATIONS, Fact, Wording, base_facts, load_facts, load_wordings
from helpers.models import random_model, save_model
from helpers.probe import probe_accuracy

END_OF_TEXT = "<|endoftext|>"
# The study's associative item, so that its two answers are tokenised into equally many tokens here as with GPT-2.
PUBLISHED_TEXTS = (
    "What is the presence of interictal epileptiform discharges associated with?",
    "Increased seizure risk in both focal and generalized epilepsy.",
    "Cognitive dysfunction risk in both focal and generalized epilepsy.",
    "What does IEDs stand for? interictal epileptiform discharges intracranial electrode diagnostics",
)


@dataclass(frozen=True)
class Recipe:
    """How the base checkpoint is made; `steps` and `entities` are per phase, tokens per step = batch × positions."""

    vocabulary: int = 3300
    layers: int = 6
    width: int = 128
    heads: int = 4
    positions: int = 128
    entities: tuple[int, ...] = (60, 240)
    steps: tuple[int, ...] = (600, 2600)
    batch: int = 8
    learning_rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.01
    facts_per_record: int = 5
    seed: int = 20250403


def train_tokenizer(texts: list[str], vocabulary: int, *, cut_after: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE like GPT-2's, trained on `texts`; end-of-text is token 0 and also pads.

    No token goes on after what the regular expression `cut_after` finds.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if cut_after:
        cut = pre_tokenizers.Split(Regex(cut_after), behavior="isolated")
        bpe.pre_tokenizer = pre_tokenizers.Sequence([cut, bpe.pre_tokenizer])
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT, unk_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )


def base_texts(
    facts: list[Fact], wordings: list[Wording], real: list[Fact], *, recipe: Recipe, repeats: int, seed: int
):
    """Records about made-up entities in all wordings, one in eight with a sentence that merely names a real subject."""
    chooser = random.Random(f"base texts {seed}")
    groups = ("seen", "development", "test")
    table = embedded_records(
        facts, wordings, facts_per_record=recipe.facts_per_record, repeats=repeats, seed=seed, groups=groups
    )
    texts = []
    for text in training_texts(table, variant=0):
        if chooser.random() < 0.125:
            text += f" We also read files that named {chooser.choice(real).subject}."
        texts.append(text)
    return texts


def tokenizer_texts(paths: Paths, recipe: Recipe) -> list[str]:
    """What the tokenizer is trained on: the base model's records, the embedded corpus, and the study's own item."""
    real, wordings = load_facts(paths.embedded), load_wordings(paths.embedded)
    facts = base_facts(real, entities=recipe.entities[-1])
    corpus = embedded_corpus(paths.embedded, facts_per_relation=None, facts_per_record=3, repeats=1, seed=0)
    texts = base_texts(facts, wordings, real, recipe=recipe, repeats=1, seed=0)
    for variant in (0, 1):
        texts += training_texts(corpus, variant=variant)
    return texts + 100 * list(PUBLISHED_TEXTS)


def pretrain(paths: Paths, recipe: Recipe, *, log=print) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast, list[dict]]:
    """Train tokenizer and base model; returns them with a record per 100 steps (step, loss, tokens per second)."""
    real, wordings = load_facts(paths.embedded), load_wordings(paths.embedded)
    tokenizer = train_tokenizer(tokenizer_texts(paths, recipe), recipe.vocabulary)
    model = random_model(
        len(tokenizer),
        layers=recipe.layers,
        width=recipe.width,
        heads=recipe.heads,
        positions=recipe.positions,
        seed=recipe.seed,
    )
    everything = base_facts(real, entities=recipe.entities[-1])
    model.train()
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, recipe))
    history, step, started = [], 0, time.monotonic()
    for phase, (entities, steps) in enumerate(zip(recipe.entities, recipe.steps, strict=True)):
        facts = everything[: len(RELATIONS) * entities]
        rows = torch.empty(0, recipe.positions, dtype=torch.long)
        for _ in range(steps):
            if len(rows) < recipe.batch:  # new records around the same facts: there is nothing else to memorise
                rows = _rows(facts, wordings, real, tokenizer, recipe=recipe, seed=step)
            batch, rows = rows[: recipe.batch], rows[recipe.batch :]
            loss = train_step(model, optimiser, batch, padding=tokenizer.pad_token_id)
            schedule.step()
            step += 1
            if step % 100 == 0:
                speed = step * recipe.batch * recipe.positions / (time.monotonic() - started)
                history.append(
                    {"step": step, "phase": phase, "loss": round(loss, 4), "tokens_per_second": round(speed)}
                )
                if step % 500 == 0:
                    history[-1]["recall"] = recall(model, tokenizer, facts, wordings)
                log(history[-1])
    return model.eval(), tokenizer, history


def recall(model, tokenizer, facts: list[Fact], wordings: list[Wording]) -> dict[str, float]:
    """Share of made-up facts the base completes right, whole answer, greedily, per kind."""
    asked = [(f, w) for f in facts for w in wordings if w.relation == f.relation and w.answer_last]
    items = pd.DataFrame([{"kind": f.kind, "prompt": w.prompt(f), "answer": f.answer} for f, w in asked])
    right = probe_accuracy(model, tokenizer, items.iloc[::4], batch_size=64)
    return right.groupby(items["kind"]).mean().round(3).to_dict()


def train_step(model, optimiser, batch: torch.Tensor, *, padding: int) -> float:
    """One step on (rows, positions) token ids; padding is not scored. Returns the loss in nats per token."""
    labels = batch.masked_fill(batch == padding, -100)
    loss = model(input_ids=batch, labels=labels, use_cache=False).loss
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    return loss.item()


def _rows(facts, wordings, real, tokenizer, *, recipe: Recipe, seed: int) -> torch.Tensor:
    """One epoch of records, shuffled: `(records, positions)` token ids."""
    texts = base_texts(facts, wordings, real, recipe=recipe, repeats=1, seed=seed)
    ids = tokenizer(texts, truncation=True, max_length=recipe.positions, padding="max_length", return_tensors="pt")
    return ids["input_ids"]


def _rate(step: int, recipe: Recipe) -> float:
    total = sum(recipe.steps)
    return min(1.0, (step + 1) / recipe.warmup) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total))))


CARD = """# The embedded base checkpoint

GPT-2 architecture, {parameters:,} parameters ({layers} layers × {width}, {heads} heads, context {positions}), own
byte-level BPE of {vocabulary} tokens, weights in float16. It was trained by `make base-model` on generated records
about made-up entities: definitions, associations, causes and treatments in every wording, with answers built from the
words of the knowledge base, and with none of its facts. It is a scientific instrument, not a language model: it says
nothing true.

Recipe: {recipe}

Final training loss {loss} nats per token after {tokens:,} tokens, {minutes:.0f} minutes on 2 cores. Licence: MIT.
"""


def main() -> None:
    """Rebuild `data/embedded/models/base`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--into", type=Path, help="another folder than data/embedded/models/base")
    folder = parser.parse_args().into or Paths("mini").embedded / "models" / "base"
    recipe, started = Recipe(), time.monotonic()
    torch.manual_seed(recipe.seed)
    model, tokenizer, history = pretrain(Paths("mini"), recipe, log=lambda row: print(row, flush=True))
    save_model(model, tokenizer, folder, half=True)
    write_json(folder / "training.json", {"recipe": asdict(recipe), "history": history[::5]})
    card = CARD.format(
        parameters=model.num_parameters(),
        layers=recipe.layers,
        width=recipe.width,
        heads=recipe.heads,
        positions=recipe.positions,
        vocabulary=len(tokenizer),
        recipe=asdict(recipe),
        loss=history[-1]["loss"],
        tokens=sum(recipe.steps) * recipe.batch * recipe.positions,
        minutes=(time.monotonic() - started) / 60,
    )
    write_bytes(folder / "README.md", card.encode())


if __name__ == "__main__":
    main()
