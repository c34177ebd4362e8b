"""Paired facts: two facts in the same words, each of which is the other's corrupted prompt.

PairedFacts of Zhang & Nanda (arXiv 2309.16042, appendix): 145 pairs of CounterFact and Known1000, of equal length under
GPT-2's tokenizer and with distinct answers. It was never released, so its rules are written out here. Both directions
of a pair are prompts of the task, and no fact is in two pairs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from helpers.draws import draw_rank
from helpers.pairs import SUBJECT, PromptPair, answer_tokens, make_pair, tokenise
from helpers.tasks import Corruption, Task, TaskError

# What published tables call our columns. A template is one text with {}, or what stands before and after the subject.
LAYOUTS: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "Known1000": {
            "subject": ("subject",),
            "answer": ("attribute",),
            "relation": ("relation_id",),
            "prompt": ("prompt",),
            "template": ("template",),
        },
        "CounterFact (NeelNanda/counterfact-tracing)": {
            "subject": ("subject",),
            "answer": ("target_true",),
            "relation": ("relation_id",),
            "prompt": ("prompt",),
            "template": ("relation_prefix", "relation_suffix"),
        },
    }
)
COLUMNS = ("subject", "template", "answer", "relation")
SAID = ["subject", "template", "answer"]
ONE_TOKEN = {"last subject token": "subject_last", "first subject token": "subject_first"}


@dataclass(frozen=True)
class _Fact:
    """A fact with its prompt under one tokenizer; `alike` is equal for facts whose subjects can be exchanged."""

    template: str
    subject: str
    answer: str
    prompt: str
    alike: tuple
    first: int

    @property
    def span(self) -> tuple[int, int]:
        start = self.template.index("{}")
        return start, start + len(self.subject)


def load_facts_table(source: str | Path, *, revision: str | None) -> pd.DataFrame:
    """The facts of a JSON-lines file, or of a hub dataset at its 40-hex commit: subject, template, answer, relation.

    Its columns are those of one of LAYOUTS. The template is the whole prompt with {} for the subject: Known1000 has
    words that a model predicted between template and answer, and they belong to it. Rows that say the same are one.
    Raises TaskError for a hub name that is not pinned, other columns, and a prompt that does not begin with its
    template.
    """
    import datasets  # heavy, and only this function needs it

    if Path(source).is_file():
        rows = pd.DataFrame(list(datasets.load_dataset("json", data_files=str(source), split="train", streaming=True)))
    elif re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        rows = datasets.load_dataset(str(source), revision=revision, split="train").to_pandas()
    else:
        raise TaskError(
            f"{str(source)!r} is no file, so it is taken for a hub name, and its revision must be the 40-hex commit it "
            f"is pinned to, not {revision!r}."
        )
    layouts = [names for names in LAYOUTS.values() if {n for group in names.values() for n in group} <= set(rows)]
    if not layouts:
        raise TaskError(
            f"{source} has the columns {', '.join(rows)}, and those of no layout that is known "
            f"({', '.join(LAYOUTS)}): rename its columns to one of them."
        )
    facts = [_row(fact, layouts[0]) for fact in rows.to_dict("records")]
    return pd.DataFrame(facts, columns=list(COLUMNS)).drop_duplicates(SAID, ignore_index=True)


def _row(fact: Mapping[str, str], names: Mapping[str, tuple[str, ...]]) -> tuple[str, str, str, str]:
    subject, answer, relation, prompt = (fact[names[part][0]] for part in ("subject", "answer", "relation", "prompt"))
    parts = tuple(fact[name] for name in names["template"])
    before, after = parts if len(parts) == 2 else (*parts[0].split("{}"), "")[:2]
    if not prompt.startswith(before + subject + after):
        raise TaskError(
            f"The prompt {prompt!r} does not begin with its template {before + '{}' + after!r} filled with "
            f"{subject!r}: correct the row, or remove it."
        )
    name = subject.strip()
    template = before + subject.replace(name, "{}", 1) + prompt.removeprefix(before + subject)
    return name, template, answer.strip(), relation


def paired_facts(rows: pd.DataFrame, tokenizer, *, count: int, seed: int) -> Task:
    """At most `count` pairs of facts as a task, two prompts for each: the prompt of one is corrupted into the other's.

    `rows` has the columns of `load_facts_table`. Partners have the same relation and template, as many tokens, the
    subject at the same positions and answers whose first tokens differ; who is whose partner, and which pairs are kept,
    depends on `seed` and the facts only, never on their order. The corruptions replace all tokens of the subject, its
    last or its first one by those of the partner, whose answer is r′ in all three; the latter two lack prompts whose
    subject is one token, or shares that token with its partner. A pair's name is its clean prompt. Whether the model
    prefers the answer is not asked here. `refused` counts facts, and for a choice of tokens prompts, by reason. Raises
    TaskError when a column is missing or no pair is left.
    """
    if missing := [column for column in COLUMNS if column not in rows]:
        raise TaskError(f"The facts have no column {', '.join(missing)}; paired facts need {', '.join(COLUMNS)}.")
    refused: Counter[str] = Counter()
    groups: dict[tuple, list[_Fact]] = {}
    for fact in _facts(rows, tokenizer, refused):
        groups.setdefault(fact.alike, []).append(fact)
    asked = Counter(fact.alike[:2] for facts in groups.values() for fact in facts)
    couples = []
    for facts in groups.values():
        found = _couples(facts, seed)
        couples += found
        if left := len(facts) - 2 * len(found):
            refused[_why_left(facts, found, asked[facts[0].alike[:2]])] += left
    couples.sort(key=lambda couple: draw_rank(seed, *sorted(fact.prompt for fact in couple)))
    if len(couples) > count:
        refused[f"beyond the {count} pairs that are asked for"] += 2 * (len(couples) - count)
    pairs = [
        _pair(tokenizer, clean, other) for couple in couples[:count] for clean, other in (couple, reversed(couple))
    ]
    table = _refusals(refused)
    if not pairs:
        said = "; ".join(f"{row.reason} ({row.count})" for row in table.itertuples(index=False)) or "there is no fact"
        raise TaskError(f"Of {len(rows)} facts no two make a pair: {said}. Give more facts of one template.")
    single = [Corruption(name, (role,), tuple(_at(role, pairs, name, refused))) for name, role in ONE_TOKEN.items()]
    return Task("facts", (Corruption("subject", SUBJECT, tuple(pairs)), *single), _refusals(refused))


def _refusals(refused: Counter[str]) -> pd.DataFrame:
    return pd.DataFrame([item for item in refused.most_common() if item[1]], columns=["reason", "count"])


def _facts(rows: pd.DataFrame, tokenizer, refused: Counter[str]) -> Iterator[_Fact]:
    """The facts that can be asked; the others are counted in `refused`."""
    facts = rows.drop_duplicates(SAID).to_dict("records")
    refused["the fact stands more than once"] = len(rows) - len(facts)
    prompts = [fact["template"].replace("{}", fact["subject"], 1) for fact in facts]
    times = Counter(prompts)
    for fact, prompt in zip(facts, prompts, strict=True):
        template, subject, answer = fact["template"], fact["subject"], fact["answer"]
        if template.count("{}") != 1 or not subject:
            refused["the template has no single place for a subject, or the subject is empty"] += 1
        elif prompt != prompt.rstrip() or not answer:
            refused["the prompt ends with a space, or the answer is empty"] += 1
        elif answer in prompt:
            refused["the prompt says the answer already"] += 1
        elif times[prompt] > 1:
            refused["the prompt has several answers"] += 1
        else:
            start = template.index("{}")
            ids, span = tokenise(tokenizer, prompt, prompt, (start, start + len(subject)))
            if span[-1] == len(ids) - 1:
                refused["the subject ends the prompt, where its last token is also the last of all"] += 1
                continue
            around = tuple(None if position in span else token for position, token in enumerate(ids))
            yield _Fact(
                template,
                subject,
                answer,
                prompt,
                (fact["relation"], template, around),
                answer_tokens(tokenizer, answer)[0],
            )


def _couples(facts: Sequence[_Fact], seed: int) -> list[tuple[_Fact, _Fact]]:
    """As many couples as can be made of facts that can be exchanged, so that answers begin differently in each.

    A partner is always taken from the two answers that most facts still have: any other choice may strand facts.
    """
    waiting: dict[int, list[_Fact]] = {}
    for fact in sorted(facts, key=lambda fact: draw_rank(seed, fact.prompt)):
        waiting.setdefault(fact.first, []).append(fact)
    couples = []
    while len(waiting) > 1:
        one, other = sorted(waiting, key=lambda first: (-len(waiting[first]), first))[:2]
        couples.append((waiting[one].pop(), waiting[other].pop()))
        waiting = {first: left for first, left in waiting.items() if left}
    return couples


def _why_left(facts: Sequence[_Fact], couples: Sequence, asked_so: int) -> str:
    if asked_so == 1:
        return "no other fact has the same relation and template"
    if len(facts) == 1:
        return "no other subject of the template covers the same tokens"
    if not couples:
        return "every answer that could be exchanged for it begins with the same token"
    return "all possible partners have partners"


def _pair(tokenizer, clean: _Fact, other: _Fact) -> PromptPair:
    return make_pair(
        tokenizer,
        pair_id=clean.prompt,
        clean=clean.prompt,
        corrupted=other.prompt,
        answer=clean.answer,
        foil=other.answer,
        clean_subject=clean.span,
        corrupted_subject=other.span,
        donor_id=other.prompt,
    )


def _at(role: str, pairs: Sequence[PromptPair], name: str, refused: Counter[str]) -> Iterator[PromptPair]:
    """The pairs with only the tokens of one role corrupted; those for which that is nothing, or all, are counted."""
    for pair in pairs:
        if "subject_first" not in pair.roles:
            refused[f"{name}: the subject is one token"] += 1
            continue
        tokens = zip(pair.clean, pair.corrupted, pair.roles, strict=True)
        corrupted = tuple(other if at == role else own for own, other, at in tokens)
        if corrupted == pair.clean:
            refused[f"{name}: both subjects have that token"] += 1
            continue
        yield replace(pair, corrupted=corrupted)
