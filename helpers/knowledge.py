"""The embedded knowledge base: facts of epileptology, the wordings that say them, and made-up entities.

A fact is a (subject, relation, answer) triple of one kind: *definitional* (what a term or abbreviation means) or
*associative* (what is associated with, causes, or treats it). Real facts are read from `data/embedded/knowledge.csv`.
Made-up entities serve twice: the base model learns its wordings from them, and a counterbalanced arm teaches one and
the same subject-answer pair as a definition in one variant of the corpus and as an association in the other, so that
the contrast between kinds can be seen with subject and answer held fixed.
"""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass
from pathlib import Path

import yaml

RELATIONS = ("definition", "association", "cause", "treatment")
GROUPS = ("seen", "development", "test")
SYLLABLES = "bal bor cal dem dor fal gen hul kam lor mav nel por ruk sal tov vel wim yar zem".split()
ENDINGS = "an eth id ion ora us ine ode ax".split()
ADJECTIVES = (
    "slow fast silent bright mild steep broken hidden narrow early late frontal mesial lateral deep distal brief "
    "recurrent stable sparse dense regular irregular sharp blunt warm cold left right"
).split()
NOUNS = (
    "rhythm spindle ripple burst discharge arousal tremor gait glance posture cough sigh yawn flush tone reflex pause "
    "ridge cleft nodule fibre column bundle margin network loop volume contrast density gradient"
).split()


class KnowledgeError(ValueError):
    """A knowledge base or a wording that cannot be used as it stands."""


@dataclass(frozen=True)
class Evidence:
    """Where a mined fact is stated: record, sentence, the pattern that found it, and the characters in the abstract."""

    pmid: str
    sentence: str
    pattern: str
    subject_span: tuple[int, int]
    answer_span: tuple[int, int]


@dataclass(frozen=True)
class Fact:
    """One fact; `kind` is definitional or associative, `arm` is real, made-up, or base; mined ones have `evidence`."""

    fact_id: str
    kind: str
    relation: str
    subject: str
    answer: str
    answer_type: str
    arm: str
    source: str
    evidence: Evidence | None = None


@dataclass(frozen=True)
class Wording:
    """One way to say a fact of one relation; `group` is seen, development, or test."""

    wording_id: str
    relation: str
    group: str
    template: str

    @property
    def answer_last(self) -> bool:
        """Whether a left-to-right model can be asked with it: nothing but the full stop follows the answer."""
        return self.template.endswith("{a}.")

    def sentence(self, fact: Fact) -> str:
        """The whole sentence."""
        return self.template.format(s=fact.subject, a=fact.answer)

    def prompt(self, fact: Fact) -> str:
        """The sentence up to the space before the answer."""
        if not self.answer_last:
            raise KnowledgeError(f"{self.wording_id} says its answer before its subject, so it cannot be a prompt.")
        return self.template.removesuffix(" {a}.").format(s=fact.subject)

    def subject_start(self) -> int:
        """Character offset of the subject in `prompt`."""
        return self.template.index("{s}")


def load_facts(folder: Path) -> list[Fact]:
    """Read the real facts of `knowledge.csv`; raises KnowledgeError for an unknown relation or a repeated fact."""
    with open(folder / "knowledge.csv", newline="", encoding="utf-8") as file:
        facts = [
            Fact(
                fact_id=row["id"],
                kind=row["kind"],
                relation=row["relation"],
                subject=row["subject"],
                answer=row["answer"],
                answer_type=row["answer_type"],
                arm="real",
                source=row["source"],
            )
            for row in csv.DictReader(file)
        ]
    for fact in facts:
        if fact.relation not in RELATIONS:
            raise KnowledgeError(f"{fact.fact_id}: there is no relation {fact.relation!r}; use one of {RELATIONS}.")
    seen: dict[tuple[str, str], str] = {}
    for fact in facts:
        other = seen.setdefault((fact.relation, fact.subject), fact.fact_id)
        if other != fact.fact_id:
            raise KnowledgeError(
                f"{fact.fact_id} asks the same question as {other}: {fact.relation} of {fact.subject!r}."
            )
    return facts


def load_wordings(folder: Path) -> list[Wording]:
    """Read `wordings.yaml`: every relation has wordings of every group, the subject never opens a sentence."""
    tree = yaml.safe_load((folder / "wordings.yaml").read_text(encoding="utf-8"))
    wordings = [
        Wording(wording_id=f"{relation}-{group}-{number}", relation=relation, group=group, template=template)
        for relation in RELATIONS
        for group in GROUPS
        for number, template in enumerate(tree[relation][group])
    ]
    for wording in wordings:
        if wording.template.startswith("{s}"):
            raise KnowledgeError(
                f"{wording.wording_id} opens with its subject: a prompt would be tokenised unlike the corpus."
            )
    return wordings


def made_up_facts(variant: int, *, pairs: int = 32, seed: int = 20250406) -> list[Fact]:
    """The counterbalanced arm: pair i is a definition when i + variant is even, an association otherwise."""
    entities = made_up_entities(pairs, seed=seed)
    answers = made_up_answers(pairs, seed=seed)
    facts = []
    for number, (subject, answer) in enumerate(zip(entities, answers, strict=True)):
        definitional = (number + variant) % 2 == 0
        facts.append(
            Fact(
                fact_id=f"m{number:03d}",
                kind="definitional" if definitional else "associative",
                relation="definition" if definitional else "association",
                subject=subject,
                answer=answer,
                answer_type="made-up",
                arm="made-up",
                source=f"invented; variant {variant} of the counterbalanced arm",
            )
        )
    return facts


def base_facts(real: list[Fact], *, entities: int, seed: int = 20250403) -> list[Fact]:
    """What the base model is taught: one fact of every relation about every made-up entity.

    Answers are drawn from the answers of the real facts (so their words are known, their facts are not) and from
    invented phrases, half each.
    """
    chooser = random.Random(seed)
    pools = {relation: sorted({f.answer for f in real if f.relation == relation}) for relation in RELATIONS}
    taken = {f.subject for f in made_up_facts(0)} | {f.subject for f in real}
    names = [n for n in made_up_entities(entities + len(taken), seed=seed, abbreviations=True) if n not in taken]
    invented = made_up_answers(len(ADJECTIVES) * 8, seed=seed)
    facts = []
    for number, name in enumerate(names[:entities]):
        for relation in RELATIONS:
            pool = pools[relation] if chooser.random() < 0.5 else invented
            facts.append(
                Fact(
                    fact_id=f"b{number:03d}-{relation}",
                    kind="definitional" if relation == "definition" else "associative",
                    relation=relation,
                    subject=name,
                    answer=chooser.choice(pool),
                    answer_type="base",
                    arm="base",
                    source="invented for the base model",
                )
            )
    return facts


def made_up_entities(count: int, *, seed: int, abbreviations: bool = False) -> list[str]:
    """Distinct pronounceable names, in a fixed order for a seed; every other one an abbreviation when asked."""
    chooser = random.Random(f"entities {seed}")
    names: dict[str, None] = {}
    while len(names) < count:
        if abbreviations and len(names) % 2:
            names.setdefault("".join(chooser.choices("BCDFGHJKLMNPQRSTVWXZ", k=chooser.choice((3, 3, 4)))))
        else:
            names.setdefault(chooser.choice(SYLLABLES) + chooser.choice(SYLLABLES) + chooser.choice(ENDINGS))
    return list(names)


def made_up_answers(count: int, *, seed: int) -> list[str]:
    """Distinct adjective-noun phrases whose first words are spread evenly over the adjectives."""
    chooser = random.Random(f"answers {seed}")
    answers: dict[str, None] = {}
    while len(answers) < count:
        adjective = ADJECTIVES[len(answers) % len(ADJECTIVES)]
        answers.setdefault(f"{adjective} {chooser.choice(NOUNS)}")
    return list(answers)
