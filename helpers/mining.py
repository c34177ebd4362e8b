"""Facts mined from the abstracts of a corpus: definitions of abbreviations and terms, associations, and causes.

Every pattern finds statements; what is not certain to be one is dropped, with the reason: precision before recall. Of
the statements that answer one question, the fact is the answer that most records give. The rules were written while
reading the 1,000 abstracts whose statements are labelled, of all medicine and hardly any about epilepsy: the precision
computed from those labels is in-sample, and on another corpus less is to be expected.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from scipy.stats import binomtest

from helpers.abbreviations import find_abbreviations
from helpers.knowledge import RELATIONS, Evidence, Fact
from helpers.phrases import (
    Span,
    is_unsure,
    looks_plural,
    phrase_after,
    phrase_before,
    sentences,
)

ADVERBS = r"(?: (?:also|still|often|more|most|\w+ly))*"
BE = rf"(?:was|were|is|are|has been|have been|remained){ADVERBS}"
SHOWN = rf"(?:(?: been)? (?:found|shown|known|reported|observed|demonstrated)(?: to be)?{ADVERBS})?"
PREDICTOR = "(?:risk factors?|predictors?|determinants?|prognostic factors?)"
FOUND = "(?:was|were|is|are|found|showed|revealed|demonstrated|observed|confirm|confirmed)"
LABELS = "mined_spans.csv"
KEPT = "kept"
REASONS = {
    "unsure": "asked, planned, negated, hedged, or inverse",
    "answer": "no phrase of its own for an answer",
    "subject": "no phrase of its own for a subject",
    "plural": "plural subject, which the wordings do not fit",
    "leak": "the answer repeats a word of its subject",
    "again": "said before",
    "outvoted": "the same question, which more or earlier records answer otherwise",
    KEPT: "kept as a fact",
}


@dataclass(frozen=True)
class Pattern:
    """How statements of one relation are found: `verb` is what stands between the two phrases, or before both.

    `form` is clause (subject, verb, answer), between ("between S and A"), or whole (a clause whose answer nothing may
    end but its sentence or a bracket).
    """

    name: str
    relation: str
    verb: str
    form: str = "clause"


# In this order: of two that end at one place the first has it.
PATTERNS = (
    Pattern("defined as", "definition", rf" {BE} defined as ", "whole"),
    Pattern("associated with", "association", rf" {BE}{SHOWN} associated with "),
    Pattern("linked to", "association", rf" {BE}{SHOWN} (?:linked|related) to "),
    Pattern("correlated with", "association", rf"(?: {BE}{SHOWN})?{ADVERBS} correlate[sd]?{ADVERBS} with "),
    Pattern(
        "risk factor for",
        "association",
        rf" {BE}{SHOWN}(?: an?| the| one of the)?(?: [\w-]+){{0,4}}? {PREDICTOR} (?:for|of) ",
    ),
    Pattern("predicts", "association", rf"{ADVERBS} predict(?:s|ed) "),
    Pattern("increases the risk of", "association", rf"{ADVERBS} (?:increase|raise)[sd] the risk (?:for|of) "),
    Pattern(
        "association between",
        "association",
        rf"\b{FOUND}(?: an?| the)?(?: [\w-]+){{0,3}} (?:associations?|correlations?|relationships?|links?)"
        rf"(?: {BE} (?:found|observed))? between ",
        "between",
    ),
    Pattern("caused by", "cause", rf" {BE}{SHOWN} (?:caused by|due to|attributable to|a result of|induced by) "),
    Pattern("results from", "cause", rf"{ADVERBS} result(?:s|ed) from "),
)
ABBREVIATION = "abbreviation"


@dataclass(frozen=True)
class Statement:
    """One match of a pattern; spans are characters of the abstract, `outcome` is a key of REASONS."""

    pmid: str
    pattern: str
    relation: str
    sentence: Span
    subject: Span | None
    answer: Span | None
    outcome: str


@dataclass(frozen=True)
class Mined:
    """Facts, and every statement that a pattern found, in the order of records and places."""

    facts: list[Fact]
    statements: list[Statement]


def mine(records: pd.DataFrame) -> Mined:
    """Mine the abstracts of a corpus (columns pmid, abstract).

    A fact's id follows from record and place alone, so that it stays when the corpus grows. Where a phrase begins its
    sentence, its capital goes, unless the corpus writes the word so inside sentences as well. Subjects and answers that
    differ in case or a plural -s only are one.
    """
    abstracts = dict(zip(records["pmid"].astype(str), records["abstract"], strict=True))
    found = [statement for pmid, abstract in abstracts.items() for statement in _statements(pmid, abstract)]
    inside = _words_inside_sentences(abstracts.values())
    said = {s: tuple(_phrase(abstracts[s.pmid], s, span, inside) for span in (s.subject, s.answer)) for s in found}
    settled = _settle([statement for statement in found if statement.outcome == KEPT], said)
    facts = [_fact(s, *said[s], abstracts[s.pmid][slice(*s.sentence)]) for s in found if settled.get(s) == KEPT]
    return Mined(facts, [replace(s, outcome=settled.get(s, s.outcome)) for s in found])


def outcome_table(statements: list[Statement]) -> pd.DataFrame:
    """Statements by outcome, kept ones last: columns outcome, one per relation, all."""
    table = pd.DataFrame(
        [(REASONS[statement.outcome], statement.relation) for statement in statements], columns=["outcome", "relation"]
    )
    counts = pd.crosstab(table["outcome"], table["relation"]).reindex(list(REASONS.values()), fill_value=0)
    return counts.assign(all=counts.sum(axis=1)).rename_axis(columns=None).reset_index()


def relation_table(facts: Sequence[Fact]) -> pd.DataFrame:
    """Facts of every relation that a wording can ask for, none included: columns kind, relation, facts."""
    found = Counter(fact.relation for fact in facts)
    rows = [("definitional" if name == "definition" else "associative", name, found[name]) for name in RELATIONS]
    return pd.DataFrame(rows, columns=["kind", "relation", "facts"])


def read_labels(folder: Path) -> pd.DataFrame:
    """Statements that were read and judged by hand: pmid, kind, pattern, spans (characters of the abstract), right.

    100 definitions of abbreviations and 100 associations or causes, drawn at random from what `mine` keeps of the 1,000
    abstracts of PubMedQA's labelled part; where a rule has come to refuse one, another was drawn. Right: the sentence
    states this relation of exactly these two phrases, and it makes sense to ask for it.
    """
    return pd.read_csv(folder / LABELS, dtype={"pmid": str})


def precision_table(labels: pd.DataFrame, facts: Sequence[Fact]) -> pd.DataFrame:
    """Precision by pattern and of each kind ("all"), with Wilson's 95 % interval.

    Columns: kind, pattern, found (facts of this corpus), checked and right (among `labels`), precision, low, high; null
    where nothing was checked.
    """
    found = Counter((fact.kind, name) for fact in facts for name in ("all", fact.evidence.pattern))
    judged = (
        pd.concat([labels.assign(pattern="all"), labels]).groupby(["kind", "pattern"])["right"].agg(["size", "sum"])
    )
    rows = []
    for kind, pattern in sorted(found.keys() | {*judged.index}):
        checked, right = judged.loc[(kind, pattern)] if (kind, pattern) in judged.index else (0, 0)
        wilson = binomtest(right, checked).proportion_ci(method="wilson") if checked else (float("nan"),) * 2
        share = right / checked if checked else float("nan")
        rows.append((kind, pattern, found[kind, pattern], checked, right, share, *wilson))
    return pd.DataFrame(rows, columns="kind pattern found checked right precision low high".split())


def _statements(pmid: str, abstract: str) -> Iterator[Statement]:
    for start, stop in sentences(abstract):
        sentence, ends = abstract[start:stop], set()

        def placed(pattern: str, relation: str, subject, answer, outcome: str, sentence=(start, stop)) -> Statement:
            moved = (span and (sentence[0] + span[0], sentence[0] + span[1]) for span in (subject, answer))
            return Statement(pmid, pattern, relation, sentence, *moved, outcome)

        for match in find_abbreviations(sentence):
            outcome = "leak" if _leaks(sentence[slice(*match.short)], sentence[slice(*match.long)]) else KEPT
            yield placed(ABBREVIATION, "definition", match.short, match.long, outcome)
        for pattern in PATTERNS:
            for verb in re.finditer(pattern.verb, sentence):
                if verb.end() not in ends:
                    ends.add(verb.end())
                    yield placed(pattern.name, pattern.relation, *_read(sentence, pattern, verb))


def _read(sentence: str, pattern: Pattern, verb: re.Match) -> tuple[Span | None, Span | None, str]:
    """Subject, answer and outcome of one match of a pattern in a sentence."""
    begin, singular = verb.end(), bool(re.match(r" (?:was|is|has)\b", verb[0]))
    if pattern.form == "between":
        joint = begin + len(sentence[begin:].partition(" and ")[0])
        subject = phrase_after(sentence[:joint], begin)
        subject, begin = subject if subject and subject[1] == joint else None, joint + len(" and ")
    else:
        subject = phrase_before(sentence, verb.start(), singular=singular)
    answer = phrase_after(sentence, begin, whole=pattern.form == "whole")
    if is_unsure(sentence, max(begin, *(span[1] for span in (subject, answer) if span), 0)):
        return subject, answer, "unsure"
    if not (subject and answer):
        return subject, answer, "subject" if answer else "answer"
    said = sentence[slice(*subject)], sentence[slice(*answer)]
    if looks_plural(said[0]) and not singular:
        return subject, answer, "plural"
    return subject, answer, "leak" if _leaks(*said) else KEPT


def _leaks(subject: str, answer: str) -> bool:
    """Whether the answer could be copied from its subject: they share a word, or its first one is inside the subject.

    The letters of an abbreviation are not counted: every abbreviation has them, and so have all donors.
    """
    words = [{_key(word) for word in re.findall(r"\w{3,}|\b[A-Z]{2}\b", text)} for text in (subject, answer)]
    first = re.match(r"\w*", answer.casefold())[0]
    return bool(words[0] & words[1]) or (len(first) > 1 and first in subject.casefold())


def _settle(statements: Sequence[Statement], said: Mapping[Statement, tuple[str, str]]) -> dict[Statement, str]:
    """Outcomes: one kept statement per question, the earliest with the answer of most records, of equals the earliest.

    The order is that of PMIDs as numbers.
    """
    asked: dict[tuple[str, str], list[Statement]] = {}
    for statement in sorted(statements, key=lambda s: (len(s.pmid), s.pmid, s.subject, s.answer)):
        asked.setdefault((statement.relation, _key(said[statement][0])), []).append(statement)
    outcomes = {}
    for same_question in asked.values():
        answers = {statement: _key(said[statement][1]) for statement in same_question}
        voices = Counter(answer for _, answer in {(s.pmid, answer) for s, answer in answers.items()})
        chosen = max(same_question, key=lambda s: voices[answers[s]])
        outcomes |= {s: "again" if answer == answers[chosen] else "outvoted" for s, answer in answers.items()}
        outcomes[chosen] = KEPT
    return outcomes


def _fact(statement: Statement, subject: str, answer: str, sentence: str) -> Fact:
    spans = {"subject_span": statement.subject, "answer_span": statement.answer}
    return Fact(
        fact_id=f"p{statement.pmid}-{statement.relation[0]}{statement.subject[0]}-{statement.answer[0]}",
        kind="definitional" if statement.relation == "definition" else "associative",
        relation=statement.relation,
        subject=subject,
        answer=answer,
        answer_type="mined",
        arm="real",
        source=f"PMID {statement.pmid}",
        evidence=Evidence(pmid=statement.pmid, sentence=sentence, pattern=statement.pattern, **spans),
    )


def _key(text: str) -> str:
    """What two phrases have in common that differ in case or a plural -s only."""
    return re.sub(r"(?<=\w\w)s\b", "", text.casefold())


def _phrase(abstract: str, statement: Statement, span: Span | None, inside: Counter) -> str | None:
    """A phrase as it reads inside a sentence."""
    if span is None:
        return None
    phrase = abstract[slice(*span)]
    first = re.match(r"[A-Z][a-z]+\b", phrase)
    opens = span[0] == statement.sentence[0] and first
    return phrase[0].lower() + phrase[1:] if opens and inside[first[0].lower()] >= inside[first[0]] else phrase


def _words_inside_sentences(abstracts: Iterable[str]) -> Counter:
    """How often a word is written so, after another word: what opens a sentence has its capital from there."""
    return Counter(word for abstract in abstracts for word in re.findall(r"(?<=[a-z,] )[A-Za-z][a-z]+\b", abstract))
