"""Donors: who may lend a prompt or an activation, and what the draw depends on."""

from dataclasses import replace

import pandas as pd
import pytest
from tiny import plain_pair
from toy import ROOT
from words import word_tokenizer

from helpers.config import Paths, load_profile
from helpers.donors import donor_table, shuffled_donors, symmetric_replacement
from helpers.items import build_items
from helpers.knowledge import load_facts, load_wordings
from helpers.models import load_tokenizer
from helpers.pairs import (
    PairError,
    PromptPair,
    answer_tokens,
)


@pytest.fixture
def items():
    """Four exchangeable subjects in one wording, three in another, and one that no other matches in length."""
    answers = {"JME": "juvenile", "TLE": "temporal", "ABE": "syndrome", "XYE": "report", "Dravet": "valproate"}
    subjects = {
        "JME": "JMA",
        "TLE": "JMB",
        "ABE": "JMC",
        "XYE": "JMD",
        "Dravet": "Dravet syndrome is treated with lobe",
    }
    rows = []
    for wording, prompt in (("w1", "In this report, {} denotes"), ("w2", "Here {} is")):
        for name, subject in subjects.items():
            rows.append(
                {
                    "item_id": f"item-{name}",
                    "kind": "definitional",
                    "relation": "definition",
                    "wording_id": wording,
                    "prompt": prompt.format(subject),
                    "subject": subject,
                    "subject_start": prompt.index("{"),
                    "answer": answers[name],
                }
            )
    return pd.DataFrame(rows)


def test_donors_meet_every_condition(items, tokenizer):
    pairs, excluded = symmetric_replacement(items, tokenizer, seed=1)
    prompts = items.set_index(["item_id", "wording_id"])
    assert len(pairs) == 8
    for pair in pairs:
        item, wording = pair.pair_id.split("/")
        donor = prompts.loc[(pair.donor_id, wording)]
        assert pair.donor_id != item
        assert tokenizer.decode(pair.clean) == prompts.loc[(item, wording), "prompt"]
        assert tokenizer.decode(pair.corrupted) == donor["prompt"]
        assert pair.answer == answer_tokens(tokenizer, prompts.loc[(item, wording), "answer"])
        assert pair.foil == answer_tokens(tokenizer, donor["answer"])
    assert excluded["item_id"].tolist() == ["item-Dravet"] * 2
    assert excluded["wording_id"].tolist() == ["w1", "w2"]
    assert excluded["reason"].str.contains("no other prompt of relation 'definition' in wording 'w1' has").tolist() == [
        True,
        False,
    ]


def test_the_draw_depends_on_the_seed_and_not_on_the_order(items, tokenizer):
    pairs, excluded = symmetric_replacement(items, tokenizer, seed=1)
    shuffled, excluded_again = symmetric_replacement(items.sample(frac=1, random_state=3), tokenizer, seed=1)
    assert shuffled == pairs
    pd.testing.assert_frame_equal(excluded_again, excluded)
    draws = {
        tuple(pair.donor_id for pair in symmetric_replacement(items, tokenizer, seed=seed)[0]) for seed in range(5)
    }
    assert len(draws) > 1


def test_every_reason_of_exclusion(items, tokenizer):
    def reason(rows):
        pairs, excluded = symmetric_replacement(rows, tokenizer, seed=0)
        assert not pairs
        return excluded["reason"].iloc[0]

    first = items[items["wording_id"] == "w1"]
    assert reason(first.head(1)) == "there is no other subject of relation 'definition' in wording 'w1'"
    assert "every donor's answer" in reason(first.head(3).assign(answer="juvenile"))
    moved = first.head(2).reset_index(drop=True)
    moved.loc[1, ["subject", "subject_start"]] = ["report", 8]
    assert "no other subject" in reason(moved) and "covers tokens 4 to 5 of 7" in reason(moved)


def test_symmetric_replacement_refuses(items, tokenizer):
    with pytest.raises(PairError, match="no column subject_start"):
        symmetric_replacement(items.drop(columns="subject_start"), tokenizer, seed=0)
    with pytest.raises(PairError, match="item-ABE/w1 stands more than once"):
        symmetric_replacement(pd.concat([items, items]), tokenizer, seed=0)


def subject_pair(name: str, subject: int, answer: int, foil: int, **changes) -> PromptPair:
    """The prompt (1, subject, 3), whose subject the corrupted one replaces by 9."""
    clean = {"clean": (1, subject, 3), "corrupted": (1, 9, 3)}
    return plain_pair(**{"pair_id": name, **clean, "answer": (answer, 0), "foil": (foil,), **changes})


def test_a_shuffled_donor_is_the_one_pair_that_is_neither_its_own_nor_answers_as_it_or_its_foil():
    pairs = [
        subject_pair("a", 11, answer=21, foil=22),
        subject_pair("b", 12, answer=22, foil=23),  # answers as the foil of a
        subject_pair("c", 13, answer=23, foil=21),
        subject_pair("d", 14, answer=21, foil=23),  # answers as a
    ]
    # a takes c; b may take a or d; c takes b; d takes b.
    found = {pair.pair_id: pair for pair in shuffled_donors(pairs, seed=0)}
    assert {name: found[name].donor_id for name in "acd"} == {"a": "c", "c": "b", "d": "b"}
    assert found["b"].donor_id in ("a", "d")
    prompts = {pair.pair_id: pair.clean for pair in pairs}
    for pair in pairs:
        own = found[pair.pair_id]
        assert own.clean == prompts[own.donor_id] != pair.clean
        assert replace(own, clean=pair.clean, donor_id=pair.donor_id) == pair


def test_a_stranger_has_the_same_words_around_a_subject_at_the_same_place():
    pairs = [
        subject_pair("a", 11, answer=21, foil=22),
        plain_pair(pair_id="b", clean=(1, 12, 4), corrupted=(1, 9, 4), answer=(24,), foil=(25,)),  # another last word
        plain_pair(
            pair_id="c", clean=(12, 1, 3), corrupted=(9, 1, 3), answer=(26,), foil=(27,),
            roles=("subject_last", "relation", "last"),
        ),
        plain_pair(
            pair_id="d", clean=(1, 12, 5, 3), corrupted=(1, 9, 5, 3), answer=(28,), foil=(29,),
            roles=("prefix", "subject_first", "subject_last", "last"),
        ),
        subject_pair("e", 15, answer=21, foil=30),  # the only one of a's form, and it answers as a
    ]  # fmt: skip
    assert shuffled_donors(pairs, seed=0) == []
    # Subjects of two tokens may differ in one of them or in both; the corrupted prompts may be any.
    pairs.append(replace(pairs[3], pair_id="f", clean=(1, 12, 6, 3), corrupted=(1, 8, 8, 3), answer=(31,)))
    assert [(p.pair_id, p.donor_id) for p in shuffled_donors(pairs, seed=0)] == [("d", "f"), ("f", "d")]


def test_shuffling_depends_on_seed_and_names_and_not_on_the_order():
    pairs = [subject_pair(f"p{n}", 10 + n, answer=30 + n, foil=50 + n, corrupted=(1, 5, 3)) for n in range(8)]
    found = shuffled_donors(pairs, seed=0)
    assert [pair.pair_id for pair in found] == [pair.pair_id for pair in pairs]
    assert sorted(shuffled_donors(pairs[::-1], seed=0), key=lambda pair: pair.pair_id) == found
    draws = {tuple(pair.donor_id for pair in shuffled_donors(pairs, seed=seed)) for seed in range(5)}
    assert len(draws) == 5 and len(set(draws.pop())) > 2


def test_a_pair_that_asks_the_same_of_another_answer_is_no_stranger():
    """One subject may have two answers: its prompt is no unrelated one, whichever of them a pair asks for."""
    pairs = [subject_pair("a", 11, answer=21, foil=22), subject_pair("b", 11, answer=23, foil=24)]
    assert shuffled_donors(pairs, seed=0) == []


def test_the_corrupted_prompt_is_no_stranger_either():
    pairs = [subject_pair("a", 11, answer=21, foil=22), subject_pair("b", 9, answer=23, foil=24, corrupted=(1, 11, 3))]
    assert shuffled_donors(pairs, seed=0) == []


def test_donors_that_differ_in_their_answers_by_hand():
    def row(item, subject, answer, relation="r", wording="r-0", before=""):
        prompt = f"{before}w1 {subject} w2"
        start = prompt.index(subject)
        return {"item_id": item, "relation": relation, "wording_id": wording, "prompt": prompt, "subject": subject,
                "subject_start": start, "answer": answer}  # fmt: skip

    rows = [
        row("a", "w3", "w10 w11"),
        row("b", "w4", "w10 w12"),  # begins as a's answer does
        row("c", "w5", "w13"),
        row("d", "w3", "w10"),  # a's subject: no pair with a
        row("e", "w6 w7", "w15"),  # a longer subject
        row("f", "w8 w9", "w16"),
        row("g", "w3", "w10", wording="r-1"),  # another wording
        row("h", "w3", "w10", relation="s"),  # alone in its relation
        row("i", "w6", "w17", before="w1 "),  # as long as e, but its subject stands elsewhere
    ]
    table = donor_table(pd.DataFrame(rows), word_tokenizer()).set_index("relation")
    # Pairs of r: ab ac bc bd cd, ef; ab and bd begin alike.
    assert table.loc["r"].tolist() == [6, 4, pytest.approx(4 / 6)]
    assert table.loc["s", ["pairs", "differing"]].tolist() == [0, 0] and pd.isna(table.loc["s", "share"])


def test_donors_of_the_knowledge_base_differ_in_their_answers():
    paths, profile = Paths("mini", ROOT), load_profile("mini")
    tokenizer = load_tokenizer(paths.embedded / "models" / "base")
    facts, wordings = load_facts(paths.embedded), load_wordings(paths.embedded)
    table = donor_table(build_items(facts, wordings, tokenizer, settings=profile.items), tokenizer)
    assert len(table) == 4 and (table["share"] >= 0.9).all()
