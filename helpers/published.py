"""The study's patching protocol, to the letter: the answer stands inside the prompt, and one module at a time is
replayed at all positions from one run into the other.

The metric is the study's too: the mean logit of the tokens of one phrase minus that of another, read after the final
full stop. The published script visits `nn.Linear` modules only, and in GPT-2 that is the unembedding alone; every
`Conv1D` (a transposed linear layer, which GPT-2 uses everywhere else) is visited here as well, under its real name,
and so are the sites through which everything must pass. Those recover exactly 1 in any network, and say so.

A `Protocol` holds each choice of the published one as a field, so that `helpers.isolations` can change one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from nnsight import NNsight
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

DIRECTIONS = ("denoising", "noising")
COLUMNS = ("item", "protocol", "direction", "site", "module", "clean", "corrupted", "patched", "note")


class PublishedError(ValueError):
    """An item that cannot be asked with the tokenizer at hand."""


@dataclass(frozen=True)
class PublishedItem:
    """One question with its clean and corrupted answer, and the two phrases whose tokens the metric averages.

    `others` are subjects that may take the place of `subject` where the question is corrupted and not the answer,
    `other_answers` wrong answers that a twin may have in place of `corrupted_answer`.
    """

    name: str
    question: str
    clean_answer: str
    corrupted_answer: str
    clean_phrase: str
    corrupted_phrase: str
    provenance: str
    subject: str
    others: tuple[str, ...]
    other_answers: tuple[str, ...]

    def other_questions(self, tokenizer) -> list[str]:
        """The questions about those of `others` that leave its length in tokens as it was.

        Raises PublishedError when none does.
        """
        questions = [self.question.replace(self.subject, other) for other in self.others]
        return _as_long(tokenizer, self.question, questions, f"a subject to the {self.name} item")


@dataclass(frozen=True)
class Protocol:
    """How an item is corrupted, read and scored; the defaults are the study's.

    corrupted: "answer", or "question" (another subject; the right answer stands in both prompts). other: which of the
    other subjects that fit. read: after the final "full stop", after the "last word" before it, or after the
    "question", where the answer would begin.
    first_only: the first token of each phrase instead of the mean over all. spaced: the phrases with the space before
    them that running text has. own: the item's own two answers instead of the study's phrases. `differs_from` names the
    protocol that this one is compared with, and `change` says what is changed.
    """

    name: str = "published"
    differs_from: str = ""
    change: str = "nothing"
    corrupted: str = "answer"
    other: int = 0
    read: str = "full stop"
    first_only: bool = False
    spaced: bool = False
    own: bool = False

    def prompts(self, item: PublishedItem, tokenizer) -> dict[str, list[int]]:
        """Token ids of the clean and of the corrupted prompt."""
        if self.corrupted == "answer":
            corrupted = f"{item.question} {item.corrupted_answer}"
        else:
            corrupted = f"{item.other_questions(tokenizer)[self.other]} {item.clean_answer}"
        clean = f"{item.question} {item.clean_answer}"
        return {"clean": tokenizer(clean)["input_ids"], "corrupted": tokenizer(corrupted)["input_ids"]}

    def position(self, item: PublishedItem, tokenizer, tokens: list[int]) -> int:
        """The position of a prompt that is read: its logits say what the model expects next."""
        question = len(tokenizer(item.question)["input_ids"])
        return {"full stop": len(tokens), "last word": len(tokens) - 1, "question": question}[self.read] - 1

    def scored(self, item: PublishedItem, tokenizer) -> tuple[list[int], list[int]]:
        """The tokens whose mean logits are subtracted from each other: those for clean, those for corrupted."""
        own, study = (item.clean_answer, item.corrupted_answer), (item.clean_phrase, item.corrupted_phrase)
        space = " " if self.spaced else ""
        clean, corrupted = (tokenizer(space + text)["input_ids"] for text in (own if self.own else study))
        return (clean[:1], corrupted[:1]) if self.first_only else (clean, corrupted)


PUBLISHED = Protocol()
PHRASES = ("interictal epileptiform discharges", "intracranial electrode diagnostics")
# Of several lengths, so that with GPT-2's tokenizer and with the embedded one some text is as long as the right one.
OTHER_PHRASES = (
    "intracranial electrode array diagnostics",
    "intracranial electrode recordings",
    "interictal epileptiform diagnostics",
)
WHOM = "in both focal and generalized epilepsy."
# Neutral: a subject that held a scored token would be a cue to copy it.
OTHER_CONDITIONS = (
    "chronic kidney disease",
    "tuberous sclerosis complex",
    "periventricular nodular heterotopia",
    "vagus nerve stimulation",
    "bronchopulmonary dysplasia",
    "hypertrophic obstructive cardiomyopathy",
    "hereditary hemorrhagic telangiectasia",
    "antiphospholipid antibody syndrome",
)
OTHER_ABBREVIATIONS = ("GTCS", "ADHD", "VNS", "DBS", "AEDs", "ICDs", "SSRIs")
PUBLISHED_ITEMS = (
    PublishedItem(
        "associative",
        "What is the presence of interictal epileptiform discharges associated with?",
        f"Increased seizure risk {WHOM}",
        f"Cognitive dysfunction risk {WHOM}",
        *PHRASES,
        provenance="verbatim",
        subject=PHRASES[0],
        others=OTHER_CONDITIONS,
        other_answers=(f"Low seizure risk {WHOM}", f"Sleep disturbance risk {WHOM}"),
    ),
    PublishedItem(
        "definitional",
        "What does IEDs stand for?",
        f"{PHRASES[0]}.",
        f"{PHRASES[1]}.",
        *PHRASES,
        provenance="reconstructed: its prompts are not available",
        subject="IEDs",
        others=OTHER_ABBREVIATIONS,
        other_answers=tuple(f"{phrase}." for phrase in OTHER_PHRASES),
    ),
)


def items_for(tokenizer) -> list[PublishedItem]:
    """The two items and the twin of each, whose prompts are of equal length with any tokenizer."""
    return [each for item in PUBLISHED_ITEMS for each in (item, equal_length_twin(item, tokenizer))]


def equal_length_twin(item: PublishedItem, tokenizer) -> PublishedItem:
    """The item with another wrong answer in its corrupted prompt, the first written one that is as long as the right.

    Nothing else is changed, the scored phrases included. Raises PublishedError when no answer fits.
    """
    remedy = f"an answer to the {item.name} item's other_answers"
    answer = _as_long(tokenizer, item.clean_answer, item.other_answers, remedy)[0]
    provenance = "twin: another wrong answer, chosen for its length"
    return replace(item, name=f"{item.name} twin", corrupted_answer=answer, provenance=provenance)


def _as_long(tokenizer, text: str, candidates: Sequence[str], remedy: str) -> list[str]:
    lengths = {candidate: len(tokenizer(f" {candidate}")["input_ids"]) for candidate in candidates}
    wanted = len(tokenizer(f" {text}")["input_ids"])
    if fitting := [candidate for candidate, length in lengths.items() if length == wanted]:
        return fitting
    raise PublishedError(
        f"With this tokenizer {text!r} has {wanted} tokens, and its replacements have "
        f"{', '.join(map(str, lengths.values()))}: add {remedy} that has {wanted}."
    )


def describe_items(tokenizer) -> pd.DataFrame:
    """The items as a table, with the tokens of their clean and corrupted prompts."""
    rows = []
    for item in items_for(tokenizer):
        lengths = " / ".join(str(len(tokens)) for tokens in PUBLISHED.prompts(item, tokenizer).values())
        row = {"item": item.name, "provenance": item.provenance, "question": item.question}
        rows.append(row | {"clean": item.clean_answer, "corrupted": item.corrupted_answer, "tokens": lengths})
    return pd.DataFrame(rows)


def visited_modules(model) -> dict[str, str]:
    """Name and class of every module that is patched, in the order of the forward pass.

    All `nn.Linear` and `Conv1D` modules, and the sites `by_construction`.
    """
    fixed = by_construction(model)
    found = {
        name: type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) or name in fixed
    }
    names = list(found)
    # Modules are named before what they hold, and their outputs come after it.
    last = {name: max(i for i, n in enumerate(names) if f"{n}.".startswith(f"{name}.")) for name in names}
    return {name: found[name] for name in sorted(names, key=lambda name: (last[name], -len(name)))}


def by_construction(model) -> set[str]:
    """Names of the modules whose replay at all positions fixes the rest of the forward pass, whatever the weights.

    The token embedding counts: with equal positions, everything the model sees of the prompt passes through it.
    """
    blocks = {f"transformer.h.{layer}" for layer in range(model.config.n_layer)}
    return {"transformer.wte", "transformer.drop", *blocks, "transformer.ln_f", "lm_head"}


def published_sweep(
    model,
    tokenizer,
    item: PublishedItem,
    *,
    protocols: Sequence[Protocol] = (PUBLISHED,),
    directions: Sequence[str] = DIRECTIONS,
) -> pd.DataFrame:
    """Patch every visited module at all positions, clean into corrupted (denoising) and the other way (noising).

    One row per protocol, direction and module: item, protocol, direction, site, module, by_construction, clean,
    corrupted, patched (mean-logit differences), effect = patched − the run it was put into, recovery = effect /
    (clean − corrupted) for denoising and −effect / (clean − corrupted) for noising, note. When the two prompts differ
    in length only the unembedding can be replayed, where it is read; the other rows have no number and the note
    "shape error".
    """
    modules, network = visited_modules(model), NNsight(model)
    rows = []
    for asked in dict.fromkeys((protocol.corrupted, protocol.other) for protocol in protocols):
        alike = [protocol for protocol in protocols if (protocol.corrupted, protocol.other) == asked]
        prompts = alike[0].prompts(item, tokenizer)
        ids = {run: torch.tensor([tokens], device=model.device) for run, tokens in prompts.items()}
        at = {run: [p.position(item, tokenizer, tokens) for p in alike] for run, tokens in prompts.items()}
        runs = {run: record(network, tokens, modules, at[run]) for run, tokens in ids.items()}
        fits = len(prompts["clean"]) == len(prompts["corrupted"])
        sites = [name for name in modules if fits or name == "lm_head"]
        for direction in directions:
            base, source = ("corrupted", "clean") if direction == "denoising" else ("clean", "corrupted")
            patched = replay(network, ids[base], {site: runs[source][site] for site in sites}, at[base])
            for number, protocol in enumerate(alike):
                scored = protocol.scored(item, tokenizer)
                ends = [phrase_difference(runs[r]["lm_head"][0, number], scored).item() for r in ids]
                reached = dict(zip(sites, phrase_difference(patched[:, number], scored).tolist(), strict=True))
                labels = (item.name, protocol.name, direction)
                rows += [(*labels, *site, *ends, *_outcome(reached, site[0])) for site in modules.items()]
    table = pd.DataFrame(rows, columns=[*COLUMNS])
    denoising, between = table["direction"] == "denoising", table["clean"] - table["corrupted"]
    effect = table["patched"] - table["corrupted"].where(denoising, table["clean"])
    gained = effect.where(denoising, -effect)
    fixed = table["site"].isin(by_construction(model))
    return table.assign(by_construction=fixed, effect=effect, recovery=gained / between.where(between != 0))


def _outcome(reached: dict[str, float], site: str) -> tuple[float, str]:
    return (reached[site], "") if site in reached else (float("nan"), "shape error")


def record(network: NNsight, tokens: Tensor, modules: dict[str, str], positions: list[int]) -> dict[str, Tensor]:
    """The output of every module in a run of one prompt, `(1, positions, …)`; the unembedding's at `positions` only."""
    recorded: dict[str, Tensor] = {}
    with torch.no_grad():
        with network.trace(tokens, use_cache=False, logits_to_keep=torch.tensor(positions)):
            for name in modules:
                recorded[name] = network.get(name).output.clone().save()
    return recorded


def replay(network: NNsight, tokens: Tensor, values: dict[str, Tensor], positions: list[int]) -> Tensor:
    """The logits `(modules, positions read, vocabulary)` of one prompt, once for every module that is replayed in it.

    Row i of the batch is the run in which the i-th module alone gives its value; `values` are in forward order. Logits
    that nobody reads are not computed, so the unembedding is replayed where it is read.
    """
    with torch.no_grad():
        with network.trace(tokens.expand(len(values), -1), use_cache=False, logits_to_keep=torch.tensor(positions)):
            for row, (name, value) in enumerate(values.items()):
                network.get(name).output[row] = value[0]
            logits = network.output.logits.save()
    return logits


def phrase_difference(logits: Tensor, scored: tuple[list[int], list[int]]) -> Tensor:
    """Mean logit of the first tokens minus that of the second, over the last axis."""
    return logits[..., scored[0]].mean(-1) - logits[..., scored[1]].mean(-1)
