"""The embedded task model: a small GPT-2 that really does the tasks of notebook 05 (`make base-model`).

It reads sentences of the tasks' forms, made of the `seen` words, and is asked with the `unseen` ones. Those must still
be words to it: they occur in plain sentences and in lists that are said twice, which also teach it to copy what it has
never seen in a task. Only these train the embeddings of words, seen ones and unseen ones alike: rows of a task would
make a class of their own of the words that occur in them, and teach a solution for that class.

Counting teaches the order of numbers, long before sums do.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from helpers.artifacts import write_bytes, write_json
from helpers.config import Paths
from helpers.drafts import (
    CENTURIES,
    LISTS,
    Words,
    arithmetic_drafts,
    docstring_drafts,
    greater_than_drafts,
    ioi_drafts,
    load_words,
    made_up_people,
    operands,
)
from helpers.models import random_model, save_model
from helpers.pretraining import train_tokenizer
from helpers.tasks import fill, make_task

FOLDER = "task"
CENTURY = r" ?\d\d(?=\d\d(?!\d))"  # of a year of four digits, which is cut as [century][year]
TASKS = ("indirect object", "indirect object, any word", "span of years", "docstring")
LEADS = ("", "It was late. ", "Here is what I know. ", "This is an old story. ", "I was there too. ", "So. ")


@dataclass(frozen=True)
class Recipe:
    """How the task model is made; a step's rows, of tasks and others, are padded in `parts` of like length.

    `rows` are the number of rows of each form in a step, and how many tokens the answer that ends a row weighs: most of
    a row is drawn at random and cannot be learnt.
    """

    vocabulary: int = 3000
    layers: int = 6
    width: int = 128
    heads: int = 8
    positions: int = 96
    steps: int = 3000
    parts: int = 2
    learning_rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.1
    seed: int = 20230927
    rows: tuple[tuple[str, int, int], ...] = (
        ("indirect object", 26, 10),
        ("indirect object, any word", 8, 10),
        ("span of years", 6, 3),
        ("docstring", 8, 5),
        ("sum", 24, 5),
        ("person", 6, 1),
        ("list", 20, 1),
        ("counting", 4, 1),
        ("plain", 8, 1),
    )


def forms(folder: Path, *, seed: int) -> dict[str, Iterator[str]]:
    """Texts without end, by form: the tasks with seen words and operands, facts of made-up people, and what helps."""
    seen, every = load_words(folder, lists=("seen",)), load_words(folder, lists=LISTS)
    # The indirect object need not be a name: else only the names that are read here would ever be written.
    anything = replace(seen, names=[*every.parameters, *every.nouns])
    chooser = random.Random(f"task model {seed}")
    people = [f"{row.template.format(row.subject)} {row.answer}." for row in made_up_people(folder).itertuples()]
    return {
        "indirect object": _led(_answered(ioi_drafts(seen, seed=seed), chooser), chooser),
        "indirect object, any word": _led(_answered(ioi_drafts(anything, seed=seed), chooser), chooser),
        "span of years": _answered(greater_than_drafts(seen, seed=seed), chooser),
        "docstring": _answered(docstring_drafts(seen, seed=seed), chooser),
        "sum": _without_end(lambda: _sums(seen.largest, chooser)),
        "person": _without_end(lambda: chooser.choice(people)),
        "list": _without_end(lambda: _list(every, chooser)),
        "counting": _without_end(lambda: _counting(2 * every.largest, chooser)),
        "plain": _without_end(lambda: _plain(every, chooser)),
    }


def tokenizer_texts(folder: Path) -> list[str]:
    """What the tokenizer is trained on: every form, and every word, number and year often enough to be whole tokens."""
    words, people = load_words(folder, lists=LISTS), made_up_people(folder)
    singles = {*words.names, *words.places, *words.objects, *words.nouns, *words.parameters, *people["answer"]}
    singles |= {part for person in people["subject"] for part in person.split()}
    singles |= {str(number) for number in range(2 * words.largest + 1)}
    singles |= {f"{century}{year:02d}" for century in CENTURIES for year in range(100)}
    texts = [text for form in forms(folder, seed=-1).values() for text in islice(form, 2000)]
    return texts + 30 * sorted(f" {word}" for word in singles)


def train(folder: Path, recipe: Recipe, *, log=print) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast, list[dict]]:
    """Train tokenizer and task model; returns them with a record per 250 steps (step, loss, and `accuracies`)."""
    tokenizer = train_tokenizer(tokenizer_texts(folder), recipe.vocabulary, cut_after=CENTURY)
    shape = {"layers": recipe.layers, "width": recipe.width, "heads": recipe.heads, "positions": recipe.positions}
    model = random_model(len(tokenizer), **shape, seed=recipe.seed).train()
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98), fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, recipe))
    history, texts, started = [], forms(folder, seed=recipe.seed), time.monotonic()
    fixed = word_tokens(tokenizer, load_words(folder, lists=LISTS))
    for step in range(1, recipe.steps + 1):
        drawn = [(form, next(texts[form]), weight) for form, count, weight in recipe.rows for _ in range(count)]
        ids = tokenizer([text for _, text, _ in drawn])["input_ids"]
        rows = [Row(tokens, weight, form in TASKS) for tokens, (form, _, weight) in zip(ids, drawn, strict=True)]
        loss = train_step(model, optimiser, rows, parts=recipe.parts, fixed=fixed)
        schedule.step()
        if step % 250 == 0:
            minutes = round((time.monotonic() - started) / 60, 1)
            history.append({"step": step, "loss": round(loss, 4), "minutes": minutes})
            if step % 1000 == 0 or step == recipe.steps:
                history[-1] |= accuracies(model, tokenizer, folder, prompts=200)
            log(history[-1])
    return model.eval(), tokenizer, history


@dataclass(frozen=True)
class Row:
    """One row of a step: its token ids, how many tokens its answer weighs, and whether it is one of a task.

    The answer is the last token but one, behind which there is a full stop.
    """

    tokens: list[int]
    weight: int
    of_task: bool


def word_tokens(tokenizer, words: Words) -> torch.Tensor:
    """Whether each token is one of these words, after a space: `(vocabulary,)`."""
    listed = {*words.names, *words.places, *words.objects, *words.nouns, *words.parameters}
    found = torch.zeros(len(tokenizer), dtype=torch.bool)
    found[[token for ids in tokenizer([f" {word}" for word in listed])["input_ids"] for token in ids]] = True
    return found


def train_step(model, optimiser, rows: list[Row], *, parts: int, fixed: torch.Tensor) -> float:
    """One step on rows, padded in `parts` of like length, those of tasks and the others; the loss in nats per token.

    Rows of a task leave the embeddings of `fixed` tokens `(vocabulary,)` alone, where they are read and written.
    """
    tokens, total = sum(len(row.tokens) - 2 + row.weight for row in rows), 0.0
    optimiser.zero_grad(set_to_none=True)
    for of_task in (True, False):
        alike = sorted((row for row in rows if row.of_task is of_task), key=lambda row: len(row.tokens))
        for part in range(parts):
            chunk = alike[part * len(alike) // parts : (part + 1) * len(alike) // parts]
            if chunk:
                loss = _summed_loss(model, chunk, fixed if of_task else torch.zeros_like(fixed))
                (loss / tokens).backward()
                total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    return total / tokens


def _summed_loss(model, rows: list[Row], fixed: torch.Tensor) -> torch.Tensor:
    ids = torch.zeros(len(rows), max(len(row.tokens) for row in rows), dtype=torch.long)
    times = torch.zeros(ids.shape)
    for number, row in enumerate(rows):
        ids[number, : len(row.tokens)] = torch.tensor(row.tokens)
        times[number, : len(row.tokens)] = 1
        times[number, len(row.tokens) - 2] = row.weight
    words = model.get_input_embeddings().weight  # tied: they also write the answers
    words = torch.where(fixed[:, None], words.detach(), words)
    stream = model.transformer(inputs_embeds=torch.nn.functional.embedding(ids, words), use_cache=False)[0]
    logits = stream[:, :-1] @ words.T
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * times[:, 1:].flatten()).sum()


def accuracies(model, tokenizer, folder: Path, *, prompts: int, seed: int = 1) -> dict[str, float]:
    """How well a model does every task on unseen words, templates and operands, by task.

    IOI: share of prompts with a positive logit difference. greater-than: mean probability of all later years.
    docstring, addition: share of prompts whose top token is right.
    """
    words = load_words(folder, lists=("unseen",))
    drafts = {"IOI": ioi_drafts(words, seed=seed), "greater-than": greater_than_drafts(words, seed=seed)}
    drafts |= {"docstring": docstring_drafts(words, seed=seed)}
    drafts |= {"addition": arithmetic_drafts(words, operation="+", seed=seed)}
    found, training = {}, model.training
    model.eval()
    for name, draft in drafts.items():
        pairs = make_task(name, draft, tokenizer, count=prompts).pairs
        right = []
        with torch.no_grad():
            for pair in pairs:
                logits = model(torch.tensor([pair.clean])).logits[0, -1]
                if name == "IOI":
                    right.append(float(logits[pair.answer[0]] > logits[pair.foil[0]]))
                elif name == "greater-than":
                    right.append(float(logits.softmax(-1)[list(pair.right)].sum()))
                else:
                    right.append(float(logits.argmax() == pair.answer[0]))
        found[name] = round(sum(right) / len(right), 3)
    model.train(training)
    return found


def _answered(drafts, chooser: random.Random) -> Iterator[str]:
    for draft in drafts:
        text, _ = fill(draft.template, draft.values)
        yield f"{text}{chooser.choice(draft.right)}."


def _without_end(text) -> Iterator[str]:
    while True:
        yield text()


def _led(texts: Iterator[str], chooser: random.Random) -> Iterator[str]:
    """After another sentence, or none: a solution that counts positions must not do."""
    for text in texts:
        yield chooser.choice(LEADS) + text


def _sums(largest: int, chooser: random.Random) -> str:
    asked = [operands(chooser, "+", largest, "seen") for _ in range(3)]
    return " ".join(f"{x} + {y} = {x + y}." for x, y in asked)


def _list(words: Words, chooser: random.Random) -> str:
    others = (words.places, words.objects, words.nouns)
    kinds = 2 * (words.names, words.parameters) + others  # tasks copy names and parameters
    said = " ".join(chooser.sample(chooser.choice(kinds), 4))
    return f"List: {said}. Again: {said}."


def _counting(largest: int, chooser: random.Random) -> str:
    stride, start = chooser.randint(1, 10), chooser.randint(0, largest)
    steps = range(start, largest + 1, stride) if chooser.random() < 0.6 else range(start, -1, -stride)
    return f"Count by {stride}: {', '.join(map(str, steps[:10]))}."


def _plain(words: Words, chooser: random.Random) -> str:
    one, other = chooser.sample(words.names, 2)
    thing, place = chooser.choice(words.objects), chooser.choice(words.places)
    return chooser.choice(
        (
            f"{one} and {other} have a {thing} at the {place}.",
            f"The {thing} of {one} is at the {place} with {other}.",
            f"{one} likes the {place}, and {other} likes the {chooser.choice(words.nouns)}.",
            f"A {thing} went from {one} to {other}.",
            f"{one} saw {other} at the {place}, and {one} was glad.",
            f"Nobody at the {place} ever wrote to {one}.",
            f"From the {place} it is not far to {one}. The {thing} belongs to {other}.",
        )
    )


def _rate(step: int, recipe: Recipe) -> float:
    return min(1.0, (step + 1) / recipe.warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / recipe.steps)))


CARD = """# The embedded task model

GPT-2 architecture, {parameters:,} parameters ({layers} layers × {width}, {heads} heads, context {positions}), own
byte-level BPE of {vocabulary} tokens that cuts years as [century][year], weights in float16. It was trained by
`make base-model` on generated sentences: indirect objects, spans of years, docstrings, sums, facts about made-up
people, repeated lists, counting. It is a scientific instrument, not a language model.

On words, templates and operands that it never met in a task (weights in float16, 500 prompts each): {accuracies}.

Recipe: {recipe}

Final training loss {loss} nats per token, {minutes:.0f} minutes on 2 cores. Licence: MIT.
"""


def main() -> None:
    """Rebuild `data/embedded/models/task`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--into", type=Path, help="another folder than data/embedded/models/task")
    embedded = Paths("mini").embedded
    folder = parser.parse_args().into or embedded / "models" / FOLDER
    recipe, started = Recipe(), time.monotonic()
    torch.manual_seed(recipe.seed)
    model, tokenizer, history = train(embedded, recipe, log=lambda row: print(row, flush=True))
    save_model(model, tokenizer, folder, half=True)
    write_json(folder / "training.json", {"recipe": asdict(recipe), "history": history})
    card = CARD.format(
        **asdict(recipe) | {"vocabulary": len(tokenizer)},
        parameters=model.num_parameters(),
        accuracies=accuracies(model.half().float(), tokenizer, embedded, prompts=500, seed=2),
        recipe=asdict(recipe),
        loss=history[-1]["loss"],
        minutes=(time.monotonic() - started) / 60,
    )
    write_bytes(folder / "README.md", card.encode())


if __name__ == "__main__":
    main()
