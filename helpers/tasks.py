"""Tasks: prompts whose solution is known, made for the model at hand, each with its corruptions.

A task states which tokens decide its answer. Every choice of them is a `Corruption`: the same clean prompts, and for
each a corrupted prompt in which those tokens, and no others, are replaced by tokens of the same kind (symmetric token
replacement). Gaussian noise on the same tokens is the other way to corrupt; it keeps the pair's answer r and foil r′.

A generator writes a `Draft`: a template, what fills it, and what replaces it under every choice. Whether tokens are cut
as the task needs is decided here, for all tasks by the same rules, and what does not fit is counted, not patched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from string import Formatter

import pandas as pd

from helpers.metrics import METRICS
from helpers.pairs import TASK_ROLES, PairError, PromptPair, tokenise
from helpers.patching import measure_runs
from helpers.stats import bootstrap_interval

TRIES = 20  # drafts for every prompt that is wanted: a tokenizer that cuts more of them than that is another one's
# The quantity of `baseline` that says whether a task is done, and how much of it is enough.
DONE = {"IOI": ("preference", 0.9), "greater-than": ("probability", 0.8), "docstring": ("accuracy", 0.56)}


class TaskError(ValueError):
    """A task for which no prompt could be made, or whose prompts do not fit the model's tokens."""


@dataclass(frozen=True)
class Replacement:
    """What stands in the corrupted prompt, by placeholder of the template, and the answers that are wrong, r′."""

    values: Mapping[str, str]
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class Draft:
    """One prompt in words: `values` fill the placeholders of `template`; `replaced` has Replacements by choice.

    Several Replacements of a choice are several donors, on whose draw the result may depend.

    Placeholders named by TASK_ROLES are the tokens that decide. `right` and `wrong` answers are written as they would
    follow the prompt, with the space where there is one; any of them counts.
    """

    name: str
    template: str
    values: Mapping[str, str]
    right: tuple[str, ...]
    replaced: Mapping[str, Sequence[Replacement]]


@dataclass(frozen=True)
class Corruption:
    """One choice of corrupted tokens: its name, the roles of those tokens, and a pair for every prompt of the task.

    Pairs of one prompt have the same `pair_id` under every choice, and the same clean tokens and answer. `more_donors`
    has the same pairs again with other donors.
    """

    tokens: str
    roles: tuple[str, ...]
    pairs: tuple[PromptPair, ...]
    more_donors: tuple[tuple[PromptPair, ...], ...] = ()

    @property
    def draws(self) -> tuple[tuple[PromptPair, ...], ...]:
        """The pairs by donor."""
        return (self.pairs, *self.more_donors)


@dataclass(frozen=True)
class Task:
    """A task for one tokenizer: its corruptions, the published choice first, and how many prompts were refused.

    `refused` has reason and count: prompts that the tokenizer cuts differently than the task needs.
    """

    name: str
    corruptions: tuple[Corruption, ...]
    refused: pd.DataFrame

    @property
    def pairs(self) -> tuple[PromptPair, ...]:
        """The pairs of the published choice of corrupted tokens."""
        return self.corruptions[0].pairs

    def corruption(self, tokens: str) -> Corruption:
        """The corruption of that name; raises TaskError when the task has none."""
        found = {corruption.tokens: corruption for corruption in self.corruptions}
        if tokens not in found:
            raise TaskError(f"The task {self.name} corrupts {', '.join(found)}, not {tokens!r}: choose one of those.")
        return found[tokens]


def make_task(name: str, drafts: Iterable[Draft], tokenizer, *, count: int) -> Task:
    """The first `count` drafts that the tokenizer cuts as they need, tokenised, with a pair under every choice.

    Every deciding placeholder and every answer must be one token, and a corrupted prompt must differ from the clean one
    in exactly the tokens that its choice replaces. A draft that breaks this under any choice is left out under all of
    them, and counted; after TRIES drafts per prompt the task has fewer. Raises TaskError, with the commonest reason and
    an example of it in tokens, when no draft fits.
    """
    kept: list[dict[str, list[PromptPair]]] = []
    reasons: Counter[str] = Counter()
    examples, roles = {}, {}
    for draft in islice(drafts, TRIES * count):
        made: dict[str, list[PromptPair]] = {choice: [] for choice in draft.replaced}
        try:
            for choice, donors in draft.replaced.items():
                for replacement in donors:
                    made[choice].append(_pair(draft, choice, replacement, tokenizer))
        except PairError as error:
            reason, _, details = str(error).removeprefix(f"Pair {draft.name}: ").partition("\n")
            reasons[reason] += 1
            if reason not in examples:
                examples[reason] = f"{details}\n{_in_tokens(draft, replacement, tokenizer)}"
            continue
        kept.append(made)
        roles |= {choice: tuple(donors[0].values) for choice, donors in draft.replaced.items()}
        if len(kept) == count:
            break
    if not kept:
        if not reasons:
            raise TaskError(f"No prompt of the task {name} was drafted, and {count} were asked for: ask for some.")
        reason, times = reasons.most_common(1)[0]
        raise TaskError(
            f"None of {reasons.total()} prompts of the task {name} fits this tokenizer, most often ({times} times) "
            f"because {reason}: take another model, or words that its tokenizer keeps whole. An example:\n"
            f"{examples[reason]}"
        )
    corruptions = []
    for choice, donors in kept[0].items():
        pairs, *more = (tuple(made[choice][donor] for made in kept) for donor in range(len(donors)))
        corruptions.append(Corruption(choice, roles[choice], pairs, tuple(more)))
    return Task(name, tuple(corruptions), pd.DataFrame(reasons.items(), columns=["reason", "count"]))


def fill(template: str, values: Mapping[str, str]) -> tuple[str, dict[str, tuple[int, int]]]:
    """The text of a template, and the characters (start, stop) of every placeholder in it."""
    text, spans = "", {}
    for literal, placeholder, _, _ in Formatter().parse(template):
        text += literal
        if placeholder is not None:
            spans[placeholder] = (len(text), len(text) + len(values[placeholder]))
            text += values[placeholder]
    return text, spans


def baseline(
    model, task: Task, *, resamples: int, confidence: float, seed: int, row_budget: int | None = None
) -> pd.DataFrame:
    """What the un-patched model makes of a task: one row per run, metric and quantity, with an interval over prompts.

    Columns: task, run (clean, or the choice of tokens that is replaced), quantity, estimate, low, high, prompts. The
    quantities are the METRICS, accuracy (the top token is right) and preference (P(r) exceeds P(r′)), with the answers
    and foils of that choice; the clean run is read with those of the published one.
    """
    tables = []
    for corruption in task.corruptions:
        runs = measure_runs(model, corruption.pairs, metrics=METRICS, row_budget=row_budget)
        swapped = [_swapped(pair) for pair in corruption.pairs]
        wrong = measure_runs(model, swapped, metrics=("probability",), row_budget=row_budget)["probability"]
        runs = runs.assign(preference=runs["probability"] > wrong, accuracy=runs["rank"] == 0).drop(columns="rank")
        wanted = runs if corruption is task.corruptions[0] else runs[runs["run"] == "corrupted"]
        tables.append(wanted.replace({"run": {"corrupted": corruption.tokens}}))
    rows = []
    for run, table in pd.concat(tables, ignore_index=True).groupby("run", sort=False):
        for quantity in table.columns.drop(["pair", "run"]):
            values = table[[quantity]].to_numpy(dtype=float)
            options = {"resamples": resamples, "confidence": confidence, "seed": seed}
            low, high = bootstrap_interval(values, lambda means: means[..., 0], **options)
            found = {"estimate": float(values.mean()), "low": low, "high": high, "prompts": len(values)}
            rows.append({"task": task.name, "run": run, "quantity": quantity} | found)
    return pd.DataFrame(rows)


def does(baselines: pd.DataFrame) -> list[str]:
    """The tasks that a model does: its clean run reaches the bar of DONE, or else answers half of the prompts right."""
    clean = baselines[baselines["run"] == "clean"].set_index(["task", "quantity"])["estimate"]
    bars = {task: DONE.get(task, ("accuracy", 0.5)) for task in clean.index.unique("task")}
    return [task for task, (quantity, bar) in bars.items() if clean[task, quantity] >= bar]


def _swapped(pair: PromptPair) -> PromptPair:
    return replace(pair, answer=pair.foil, foil=pair.answer, answer_set=pair.foil_set, foil_set=pair.answer_set)


def _pair(draft: Draft, choice: str, replacement: Replacement, tokenizer) -> PromptPair:
    clean, at = _tokens(draft, draft.values, tokenizer)
    corrupted, also_at = _tokens(draft, {**draft.values, **replacement.values}, tokenizer)
    differ = {i for i, (a, b) in enumerate(zip(clean, corrupted, strict=False)) if a != b}
    if len(clean) != len(corrupted) or at != also_at or differ != {at[role] for role in replacement.values}:
        raise PairError(f"replacing {choice} changes other tokens")
    text, _ = fill(draft.template, draft.values)
    right, wrong = (
        tuple(_only_token(answer, text, clean, tokenizer) for answer in answers)
        for answers in (draft.right, replacement.wrong)
    )
    names = {position: role for role, position in at.items()}
    first = min(names)
    roles = [names.get(i, "prefix" if i < first else "relation") for i in range(len(clean))]
    return PromptPair(
        pair_id=draft.name,
        clean=clean,
        corrupted=corrupted,
        answer=right[:1],
        foil=wrong[:1],
        roles=(*roles[:-1], "last"),
        answer_set=right if len(right) > 1 else (),
        foil_set=wrong if len(wrong) > 1 else (),
    )


def _tokens(draft: Draft, values: Mapping[str, str], tokenizer) -> tuple[tuple[int, ...], dict[str, int]]:
    """Token ids of a prompt, and the position of every token that decides."""
    text, spans = fill(draft.template, values)
    at, ids = {}, ()
    for role, span in spans.items():
        if role in TASK_ROLES:
            ids, covered = tokenise(tokenizer, draft.name, text, span)
            if len(covered) > 1:
                raise PairError(f"{role} is not one token\n  {values[role]!r} in {text!r}")
            if (cut := tokenizer.decode([ids[covered[0]]])).strip() != values[role]:
                raise PairError(f"{role} is a part of a token\n  {values[role]!r} is cut as {cut!r} in {text!r}")
            at[role] = covered[0]
    return ids, at


def _only_token(answer: str, prompt: str, ids: Sequence[int], tokenizer) -> int:
    """The token that continues the prompt of these `ids` with an answer.

    It is what the answer alone is cut into, for a whole year may be another token than its century and its year are.
    Where that would not read as the answer, as with tokenizers that put a space before every text, it is what stands
    behind the prompt when both are cut together.
    """
    alone = tokenizer(answer, add_special_tokens=False)["input_ids"]
    if len(alone) == 1 and tokenizer.decode([ids[-1], *alone]) == tokenizer.decode([ids[-1]]) + answer:
        return alone[0]
    whole = tokenizer(prompt + answer)["input_ids"]
    behind = whole[len(ids) :]
    if tuple(whole) != (*ids, *behind[:1]) or tokenizer.decode(behind).strip() != answer.strip():
        cut = tokenizer.convert_ids_to_tokens(alone)
        raise PairError(f"an answer is not one token behind the prompt\n  {answer!r} alone is {cut}")
    return behind[0]


def _in_tokens(draft: Draft, replacement: Replacement, tokenizer) -> str:
    """Both prompts of a pair, token by token."""
    texts = [fill(draft.template, values)[0] for values in (draft.values, {**draft.values, **replacement.values})]
    clean, corrupted = (tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) for text in texts)
    return f"  clean     {clean}\n  corrupted {corrupted}"
