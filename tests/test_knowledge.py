"""The knowledge base: what is committed, how it is said, and what is made up beside it."""

import re
from collections import Counter

import pytest
from toy import ROOT

from helpers.knowledge import (
    ADJECTIVES,
    GROUPS,
    NOUNS,
    RELATIONS,
    Fact,
    KnowledgeError,
    Wording,
    base_facts,
    load_facts,
    load_wordings,
    made_up_answers,
    made_up_entities,
    made_up_facts,
)

EMBEDDED = ROOT / "data" / "embedded"
HEADER = "id,kind,relation,subject,answer,answer_type,source\n"


@pytest.fixture(scope="module")
def real():
    return load_facts(EMBEDDED)


@pytest.fixture(scope="module")
def wordings():
    return load_wordings(EMBEDDED)


@pytest.fixture(scope="module")
def base(real):
    return base_facts(real, entities=240)


def test_the_committed_facts_are_many_and_of_both_kinds(real):
    kinds = Counter(fact.kind for fact in real)
    assert set(kinds) == {"definitional", "associative"}
    assert kinds["definitional"] >= 120 and kinds["associative"] >= 120
    assert {fact.relation for fact in real} == set(RELATIONS)
    assert all((fact.kind == "definitional") == (fact.relation == "definition") for fact in real)
    assert {fact.arm for fact in real} == {"real"}


def test_the_committed_facts_are_told_apart(real):
    assert max(Counter(fact.fact_id for fact in real).values()) == 1
    assert max(Counter((fact.relation, fact.subject) for fact in real).values()) == 1
    assert max(Counter(fact.fact_id for fact in [*real, *made_up_facts(0)]).values()) == 1


def test_the_committed_facts_are_plain_text(real):
    for fact in real:
        for text in (fact.fact_id, fact.subject, fact.answer, fact.answer_type, fact.source):
            assert text and text.isascii() and text == " ".join(text.split()), fact
        assert not set("{}") & set(fact.subject + fact.answer), fact
        assert not fact.answer.endswith("."), fact
        assert not re.search(rf"\b{re.escape(fact.answer)}\b", fact.subject, re.IGNORECASE), (
            f"{fact.fact_id} tells itself"
        )


def test_every_relation_is_said_in_every_group(wordings):
    asked = Counter((wording.relation, wording.group) for wording in wordings)
    for relation in RELATIONS:
        assert asked[relation, "seen"] >= 5
        assert asked[relation, "development"] >= 1
        assert asked[relation, "test"] >= 1
    assert {wording.group for wording in wordings} == set(GROUPS)
    assert len({wording.wording_id for wording in wordings}) == len(wordings)
    assert len({wording.template for wording in wordings}) == len(wordings), "a test wording must not be a seen one"


def test_wordings_hold_one_subject_and_one_answer(wordings):
    for wording in wordings:
        assert wording.template.count("{s}") == wording.template.count("{a}") == 1, wording
        assert wording.template.endswith(".") and not wording.template.startswith("{"), wording
        if wording.group != "seen":
            assert wording.answer_last, f"{wording.wording_id} is held out, and cannot be asked"


def test_a_sentence_is_its_prompt_and_its_answer(real, wordings):
    for wording in filter(lambda w: w.answer_last, wordings):
        for fact in (f for f in real if f.relation == wording.relation):
            prompt = wording.prompt(fact)
            assert wording.sentence(fact) == prompt + " " + fact.answer + "."
            assert not prompt.endswith(" ")
            start = wording.subject_start()
            assert start > 0 and prompt[start - 1] == " ", "a subject without a space before it is other tokens"
            assert prompt[start : start + len(fact.subject)] == fact.subject


def test_an_answer_first_wording_is_no_prompt(real):
    wording = Wording("definition-seen-9", "definition", "seen", "What is {a} is called {s}.")
    assert wording.sentence(real[0]) == f"What is {real[0].answer} is called {real[0].subject}."
    assert not wording.answer_last
    with pytest.raises(KnowledgeError, match="definition-seen-9 says its answer before its subject"):
        wording.prompt(real[0])


@pytest.mark.parametrize(
    "rows, message",
    [
        ("x1,associative,symptom,TLE,aura,sign,s\n", "x1: there is no relation 'symptom'; use one of"),
        (
            "x1,definitional,definition,TLE,one,term,s\nx2,definitional,definition,TLE,two,term,s\n",
            "x2 asks the same question as x1: definition of 'TLE'",
        ),
    ],
)
def test_bad_rows_are_refused_in_a_sentence(tmp_path, rows, message):
    (tmp_path / "knowledge.csv").write_text(HEADER + rows)
    with pytest.raises(KnowledgeError, match=message):
        load_facts(tmp_path)


def test_one_subject_may_have_several_relations(tmp_path):
    (tmp_path / "knowledge.csv").write_text(
        HEADER + 'x1,definitional,definition,TLE,one,term,"a, b"\nx2,associative,cause,TLE,two,term,s\n'
    )
    first, second = load_facts(tmp_path)
    assert first == Fact("x1", "definitional", "definition", "TLE", "one", "term", "real", "a, b")
    assert second.relation == "cause"


def test_a_subject_never_opens_a_sentence(tmp_path):
    text = (EMBEDDED / "wordings.yaml").read_text()
    (tmp_path / "wordings.yaml").write_text(text.replace('"As usual, {s} signifies', '"{s} signifies'))
    with pytest.raises(KnowledgeError, match="definition-development-0 opens with its subject"):
        load_wordings(tmp_path)


def test_the_made_up_arm_holds_subject_and_answer_and_flips_the_kind():
    first, second = made_up_facts(0), made_up_facts(1)
    assert [(f.fact_id, f.subject, f.answer) for f in first] == [(f.fact_id, f.subject, f.answer) for f in second]
    assert all({a.kind, b.kind} == {"definitional", "associative"} for a, b in zip(first, second, strict=True))
    for variant in (first, second):
        assert Counter((f.kind, f.relation) for f in variant) == {
            ("definitional", "definition"): len(variant) // 2,
            ("associative", "association"): len(variant) // 2,
        }
        assert len({f.subject for f in variant}) == len({f.answer for f in variant}) == len(variant) == 32
    assert made_up_facts(0) == first != made_up_facts(0, seed=1)


def test_the_made_up_arm_is_made_up(real):
    made_up = made_up_facts(0)
    assert not {f.subject for f in made_up} & {f.subject for f in real}
    assert not {f.answer for f in made_up} & {f.answer for f in real}


def test_the_base_reads_no_fact_that_is_asked_later(real, base):
    subjects = {f.subject for f in base}
    assert len(subjects) == 240
    assert not subjects & {f.subject for f in real}
    assert not subjects & {f.subject for f in made_up_facts(0)}
    assert not {(f.subject, f.answer) for f in base} & {(f.subject, f.answer) for f in real}


def test_a_name_that_is_a_real_subject_is_passed_over(real, base):
    first = base[0].subject
    collision = Fact("x1", "definitional", "definition", first, "one", "term", "real", "a name that chance also makes")
    names = {f.subject for f in base_facts([*real, collision], entities=10)}
    assert len(names) == 10 and first not in names


def test_the_base_reads_every_relation_of_every_entity(base):
    assert Counter((f.subject, f.relation) for f in base) == {
        (subject, relation): 1 for subject in {f.subject for f in base} for relation in RELATIONS
    }
    assert len({f.fact_id for f in base}) == len(base) and {f.arm for f in base} == {"base"}
    assert all((f.kind == "definitional") == (f.relation == "definition") for f in base)


def test_the_base_answers_in_words_that_it_will_need(real, base):
    real_answers = {(f.relation, f.answer) for f in real}
    invented = {f"{adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS}
    borrowed = [f for f in base if (f.relation, f.answer) in real_answers]
    assert all(f.answer in invented for f in base if f not in borrowed)
    assert 0.4 < len(borrowed) / len(base) < 0.6


def test_fewer_base_entities_are_the_first_of_more(real, base):
    assert [f.subject for f in base_facts(real, entities=60)] == [f.subject for f in base[: 60 * len(RELATIONS)]]
    assert base_facts(real, entities=240) == base


def test_names_and_answers_are_distinct_and_fixed_by_the_seed():
    names = made_up_entities(50, seed=3, abbreviations=True)
    assert names == made_up_entities(50, seed=3, abbreviations=True) != made_up_entities(50, seed=4, abbreviations=True)
    assert len(set(names)) == 50
    assert sum(name.isupper() for name in names) == 25
    answers = made_up_answers(2 * len(ADJECTIVES), seed=3)
    assert len(set(answers)) == len(answers)
    assert set(Counter(answer.split()[0] for answer in answers).values()) == {2}
