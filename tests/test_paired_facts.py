"""Paired facts: who may be whose partner, what each choice of tokens corrupts, and where facts come from."""

import json
import os
from itertools import permutations
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from words import word_tokenizer

from helpers.models import load_tokenizer
from helpers.paired_facts import COLUMNS, ONE_TOKEN, load_facts_table, paired_facts
from helpers.pairs import SUBJECT
from helpers.tasks import TaskError

WORDS = word_tokenizer()
IS = "w41 {} w42"


def facts(*rows) -> pd.DataFrame:
    """Rows of subject and answer, and of template and relation where they are not the usual ones."""
    filled = [(subject, (rest or [IS])[0], answer, (rest[1:] or ["r"])[0]) for subject, answer, *rest in rows]
    return pd.DataFrame(filled, columns=list(COLUMNS))


def refusals(task) -> dict[str, int]:
    return dict(zip(task.refused["reason"], task.refused["count"], strict=True))


def test_a_pair_in_both_directions_under_every_choice_of_tokens():
    task = paired_facts(facts(("w11 w12 w13", "w31 w33"), ("w21 w22 w23", "w32")), WORDS, count=9, seed=0)
    assert task.name == "facts" and task.refused.empty
    prompts = {"w41 w11 w12 w13 w42": (11, 12, 13), "w41 w21 w22 w23 w42": (21, 22, 23)}
    roles = ("prefix", "subject_first", "subject_middle", "subject_last", "last")
    expected = {"subject": (0, 1, 2), "last subject token": (2,), "first subject token": (0,)}
    assert [(choice.tokens, choice.roles) for choice in task.corruptions] == [
        ("subject", SUBJECT), ("last subject token", ("subject_last",)), ("first subject token", ("subject_first",)),
    ]  # fmt: skip
    for choice in task.corruptions:
        assert {pair.pair_id for pair in choice.pairs} == set(prompts)
        for pair in choice.pairs:
            own, other = prompts[pair.pair_id], prompts[pair.donor_id]
            replaced = [other[i] if i in expected[choice.tokens] else own[i] for i in range(3)]
            assert pair.clean == (41, *own, 42) and pair.corrupted == (41, *replaced, 42) and pair.roles == roles
            assert (pair.answer, pair.foil) == (((31, 33), (32,)) if own[0] == 11 else ((32,), (31, 33)))
    assert task.pairs == task.corruption("subject").pairs


def test_a_token_that_is_shared_or_alone_leaves_a_prompt_out_of_a_choice():
    rows = facts(("w11 w12", "w31"), ("w11 w22", "w32"), ("w13", "w31"), ("w14", "w32"))
    task = paired_facts(rows, WORDS, count=9, seed=0)
    assert [len(choice.pairs) for choice in task.corruptions] == [4, 2, 0]
    assert {pair.pair_id for pair in task.corruptions[1].pairs} == {"w41 w11 w12 w42", "w41 w11 w22 w42"}
    assert refusals(task) == {
        "last subject token: the subject is one token": 2,
        "first subject token: the subject is one token": 2,
        "first subject token: both subjects have that token": 2,
    }


REFUSED = [
    (("w11", "w31", "w43 {} w44"), "no other fact has the same relation and template"),
    (("w11", "w31", IS, "other"), "no other fact has the same relation and template"),
    (("w11 w12", "w31"), "no other subject of the template covers the same tokens"),
    (("w11", "w31", "w43 {}"), "the subject ends the prompt, where its last token is also the last of all"),
    (("w11", "w31", "w43 {} w44 "), "the prompt ends with a space, or the answer is empty"),
    (("w11", "", "w43 {} w44"), "the prompt ends with a space, or the answer is empty"),
    (("w11", "w43", "w43 {} w44"), "the prompt says the answer already"),
    (("w11", "w31", "w43 w44"), "the template has no single place for a subject, or the subject is empty"),
    (("w11", "w31", "{} w43 {} w44"), "the template has no single place for a subject, or the subject is empty"),
    (("", "w31"), "the template has no single place for a subject, or the subject is empty"),
    (("w1", "w31"), "the fact stands more than once"),
    (("w3", "w31"), "all possible partners have partners"),
]
COUPLE = ("w1", "w31"), ("w2", "w32")


@pytest.mark.parametrize(("row", "reason"), REFUSED)
def test_every_refused_fact_is_counted_with_its_reason(row, reason):
    assert refusals(paired_facts(facts(*COUPLE), WORDS, count=9, seed=0)) == {
        "last subject token: the subject is one token": 2,
        "first subject token: the subject is one token": 2,
    }
    task = paired_facts(facts(*COUPLE, row), WORDS, count=9, seed=0)
    assert len(task.pairs) == 2 and {k: v for k, v in refusals(task).items() if ":" not in k} == {reason: 1}


def test_facts_without_a_partner_that_answers_otherwise():
    rows = facts(*COUPLE, ("w11 w12", "w31 w33"), ("w13 w14", "w31 w34"), ("w15 w16", "w31"))
    assert refusals(paired_facts(rows, WORDS, count=9, seed=0))[
        "every answer that could be exchanged for it begins with the same token"
    ] == 3  # fmt: skip
    several = facts(*COUPLE, ("w11", "w33"), ("w11", "w34"))
    assert refusals(paired_facts(several, WORDS, count=9, seed=0))["the prompt has several answers"] == 2


def test_what_cannot_be_a_task_is_a_sentence():
    with pytest.raises(TaskError, match=r"Of 1 facts no two .* no other fact has the same relation and template \(1\)"):
        paired_facts(facts(("w1", "w31")), WORDS, count=1, seed=0)
    with pytest.raises(TaskError, match="there is no fact"):
        paired_facts(facts(), WORDS, count=1, seed=0)
    with pytest.raises(TaskError, match="no column answer"):
        paired_facts(facts(*COUPLE).drop(columns="answer"), WORDS, count=1, seed=0)


MANY = [(f"w{number}", f"w{31 + number % 3}") for number in range(1, 10)]


def test_pairs_depend_on_the_seed_and_not_on_the_order_and_are_capped():
    def made(rows, **settings):
        return paired_facts(facts(*rows), WORDS, **{"count": 9, "seed": 0} | settings)

    whole = made(MANY)
    assert len(whole.pairs) == 8 and refusals(whole)["all possible partners have partners"] == 1
    assert made(MANY[::-1]).pairs == whole.pairs
    assert {frozenset((p.pair_id, p.donor_id)) for p in whole.pairs} != {
        frozenset((p.pair_id, p.donor_id)) for p in made(MANY, seed=1).pairs
    }
    capped = made(MANY, count=3)
    assert capped.pairs == whole.pairs[:6] and refusals(capped)["beyond the 3 pairs that are asked for"] == 2


def most_couples(answers: tuple[int, ...]) -> int:
    """By trying every order: of each, couples of neighbours with different answers."""
    return max(
        sum(one != other for one, other in zip(order[::2], order[1::2], strict=False))
        for order in set(permutations(answers))
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=7).filter(lambda answers: len(set(answers)) > 1))
def test_as_many_couples_as_there_can_be_and_no_fact_in_two(answers):
    rows = facts(*[(f"w{11 + number}", f"w{31 + answer}") for number, answer in enumerate(answers)])
    pairs = paired_facts(rows, WORDS, count=9, seed=0).pairs
    assert len(pairs) == 2 * most_couples(tuple(answers))
    assert len({pair.pair_id for pair in pairs}) == len(pairs)
    donor = {pair.pair_id: pair.donor_id for pair in pairs}
    assert all(donor[donor[name]] == name != donor[name] for name in donor)
    assert all(pair.answer[0] != pair.foil[0] for pair in pairs)


def written(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def known(subject: str, prompt: str, attribute: str, template: str = "{} is in") -> dict:
    return {
        "known_id": 0, "subject": subject, "attribute": attribute, "template": template, "prompt": prompt,
        "relation_id": "P1",
    }  # fmt: skip


def counterfact(**changes) -> dict:
    fact = {
        "relation": "Where {} lies, in", "relation_prefix": "The city of", "relation_suffix": " is in",
        "prompt": "The city of Rome is in", "relation_id": "P17", "target_false_id": "Q1", "target_true_id": "Q2",
        "target_true": " Italy", "target_false": " Peru", "subject": " Rome",
    }  # fmt: skip
    return {**fact, **changes}


def test_both_layouts_become_one_table(tmp_path):
    rows = [known("Rome", "Rome is in", "Italy"), known("Rome", "Rome is in the heart of", "Italy")]
    table = load_facts_table(written(tmp_path / "known.jsonl", *rows, rows[0]), revision=None)
    assert table.to_numpy().tolist() == [
        ["Rome", "{} is in", "Italy", "P1"],
        ["Rome", "{} is in the heart of", "Italy", "P1"],
    ]
    first = counterfact(relation_prefix="", subject="Oslo", prompt="Oslo is in", target_true=" Norway")
    table = load_facts_table(written(tmp_path / "counterfact.jsonl", counterfact(), first, first), revision=None)
    assert table.columns.tolist() == list(COLUMNS)
    assert table.to_numpy().tolist() == [
        ["Rome", "The city of {} is in", "Italy", "P17"],
        ["Oslo", "{} is in", "Norway", "P17"],
    ]


def test_a_source_that_does_not_say_what_it_must_is_a_sentence(tmp_path):
    with pytest.raises(TaskError, match="does not begin with its template '{} is in' filled with 'Rome'"):
        load_facts_table(written(tmp_path / "a.jsonl", known("Rome", "Paris is in", "France")), revision=None)
    with pytest.raises(TaskError, match="has the columns city, and those of no layout"):
        load_facts_table(written(tmp_path / "b.jsonl", {"city": "Rome"}), revision=None)
    for revision in (None, "main", "1a2b3c4"):
        with pytest.raises(TaskError, match=f"40-hex commit it is pinned to, not {revision!r}"):
            load_facts_table("owner/facts", revision=revision)


def test_a_hub_dataset_is_asked_for_at_its_commit(monkeypatch):
    import datasets

    asked = {}

    def load(name, **settings):
        asked.update(settings, name=name)
        return datasets.Dataset.from_list([counterfact()])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert load_facts_table("owner/facts", revision="a" * 40)["answer"].tolist() == ["Italy"]
    assert asked == {"name": "owner/facts", "revision": "a" * 40, "split": "train"}


@pytest.mark.skipif("CLAP_REAL_DATA" not in os.environ, reason="needs Known1000 and GPT-2's own tokenizer")
def test_known_1000_under_gpt2():
    """Published: 145 pairs, of this and a second source, by a choice that was not released."""
    real = Path(os.environ["CLAP_REAL_DATA"])
    tokenizer = load_tokenizer(real / "gpt2_tokenizer")
    table = load_facts_table(real / "facts" / "known_1000.jsonl", revision=None)
    task = paired_facts(table, tokenizer, count=1000, seed=0)
    couples, fact_reasons = len(task.pairs), [r for r in task.refused["reason"] if r.split(":")[0] not in ONE_TOKEN]
    assert len(table) == 1208 and couples == 556
    assert couples + sum(refusals(task)[reason] for reason in fact_reasons) == len(table)
    answers = set(table["answer"])
    for pair in task.pairs:
        texts = [tokenizer.decode(tokens) for tokens in (pair.clean, pair.corrupted)]
        assert texts == [pair.pair_id, pair.donor_id]
        own = {i for i, role in enumerate(pair.roles) if role in SUBJECT}
        assert {i for i in range(pair.positions) if pair.clean[i] != pair.corrupted[i]} <= own
        assert tokenizer.decode(pair.answer).strip() in answers and pair.answer[0] != pair.foil[0]
    for choice in task.corruptions[1:]:
        clean = {pair.pair_id: pair for pair in task.pairs}
        for pair in choice.pairs:
            assert pair.clean == clean[pair.pair_id].clean and pair.answer == clean[pair.pair_id].answer
            differ = [i for i in range(pair.positions) if pair.clean[i] != pair.corrupted[i]]
            assert [pair.roles[i] for i in differ] == [ONE_TOKEN[choice.tokens]]
