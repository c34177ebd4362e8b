"""Prompt pairs: alignment of tokens, roles, and the choice of donors."""

import os
from pathlib import Path

import pandas as pd
import pytest
from toy import ROOT
from words import word_tokenizer

from helpers.config import Paths, load_profile
from helpers.items import build_items
from helpers.knowledge import load_facts, load_wordings
from helpers.models import load_tokenizer
from helpers.pairs import (
    PairError,
    PromptPair,
    answer_tokens,
    bucket_by_length,
    donor_table,
    make_pair,
    symmetric_replacement,
    token_roles,
)


def plain_pair(**changes) -> PromptPair:
    fields = {
        "pair_id": "p",
        "clean": (1, 2, 3),
        "corrupted": (1, 4, 3),
        "answer": (5, 6),
        "foil": (7,),
        "roles": ("prefix", "subject_last", "last"),
    }
    return PromptPair(**{**fields, **changes})


def pair_of(tokenizer, clean, corrupted, clean_subject, corrupted_subject, answer="juvenile", foil="temporal"):
    """A pair whose subjects are given as text."""
    spans = [
        (text.index(subject), text.index(subject) + len(subject))
        for text, subject in ((clean, clean_subject), (corrupted, corrupted_subject))
    ]
    return make_pair(
        tokenizer,
        pair_id="p",
        clean=clean,
        corrupted=corrupted,
        answer=answer,
        foil=foil,
        clean_subject=spans[0],
        corrupted_subject=spans[1],
    )


def test_a_pair_is_one_length():
    assert plain_pair().positions == 3
    assert plain_pair().first_difference == 1
    with pytest.raises(PairError, match="2 clean tokens, 3 corrupted tokens and 3 roles"):
        plain_pair(clean=(1, 2))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"corrupted": (1, 2, 3)}, "is the clean one"),
        ({"foil": (5, 9)}, "first tokens that differ"),
        ({"answer": ()}, "first tokens that differ"),
        ({"roles": ("prefix", "verb", "last")}, "unknown roles verb"),
        ({"clean": (), "corrupted": (), "roles": ()}, "at least one token"),
    ],
)
def test_a_pair_refuses(changes, message):
    with pytest.raises(PairError, match=message):
        plain_pair(**changes)


@pytest.mark.parametrize(
    "positions, subject, roles",
    [
        (4, (1,), "prefix subject_last relation last"),
        (5, (0, 1), "subject_first subject_last relation relation last"),
        (6, (1, 2, 3, 4), "prefix subject_first subject_middle subject_middle subject_last last"),
        (3, (1, 2), "prefix subject_first last"),
        (2, (1,), "prefix last"),
    ],
)
def test_roles(positions, subject, roles):
    assert token_roles(positions, subject=subject) == tuple(roles.split())


def test_make_pair(tokenizer):
    pair = pair_of(
        tokenizer,
        "In this report, JME denotes",
        "In this report, TLE denotes",
        "JME",
        "TLE",
        answer="juvenile myoclonic",
    )
    assert tokenizer.decode(pair.clean) == "In this report, JME denotes"
    assert tokenizer.decode(pair.corrupted) == "In this report, TLE denotes"
    assert tokenizer.decode(pair.answer) == " juvenile myoclonic"
    assert tokenizer.decode(pair.foil) == " temporal"
    subject = [token for token, role in zip(pair.clean, pair.roles, strict=True) if role.startswith("subject")]
    assert tokenizer.decode(subject) == " JME"


@pytest.mark.parametrize(
    "subject, other", [("β-blocker", "γ-blocker"), ("Ménière", "Mènière"), ("a 🧠 b", "a 🧡 b"), ("東京", "東亰")]
)
def test_the_subject_is_found_among_multi_byte_characters(tokenizer, subject, other):
    """The subject's tokens decode to the subject, and the others to the rest: none is lost, none too many."""
    pair = pair_of(
        tokenizer, f"By „ß“ we mean {subject} in this report", f"By „ß“ we mean {other} in this report", subject, other
    )
    tokens = list(zip(pair.clean, pair.roles, strict=True))
    assert tokenizer.decode([token for token, role in tokens if role.startswith("subject")]).strip() == subject
    assert tokenizer.decode([token for token, role in tokens if role == "prefix"]).rstrip() == "By „ß“ we mean"
    assert tokenizer.decode([token for token, role in tokens if role in ("relation", "last")]) == " in this report"


def test_a_subject_inside_a_word_and_at_the_start(tokenizer):
    pair = pair_of(tokenizer, "antiJME denotes", "antiJMS denotes", "JME", "JMS")
    first = pair.roles.index("subject_first")
    assert tokenizer.decode(pair.clean[:first]) == "anti"
    pair = pair_of(tokenizer, "JME denotes this", "JMS denotes this", "JME", "JMS")
    assert pair.roles[0].startswith("subject")


def test_unequal_lengths_show_both_prompts_token_by_token(tokenizer):
    with pytest.raises(PairError) as error:
        pair_of(tokenizer, "In this report, JME denotes", "In this report, JMβ denotes", "JME", "JMβ")
    message = str(error.value)
    assert "the clean prompt has 6 tokens and the corrupted one 8" in message
    assert "(6): In |  this |  report | , |  JME |  denotes" in message
    assert "(8): In |  this |  report | , |  JM | Î | ² |  denotes" in message


def test_other_subject_positions_are_refused(tokenizer):
    with pytest.raises(PairError, match="token 4 of the clean prompt and at token 1 of the corrupted one"):
        pair_of(tokenizer, "In this report, JME denotes", "In JME report, this denotes", "JME", "JME")


def test_equal_first_answer_tokens_are_refused(tokenizer):
    with pytest.raises(PairError, match="'juvenile epilepsy' and the foil 'juvenile myoclonic'.*'Ġjuvenile'"):
        pair_of(
            tokenizer,
            "In this report, JME denotes",
            "In this report, TLE denotes",
            "JME",
            "TLE",
            answer="juvenile epilepsy",
            foil="juvenile myoclonic",
        )


def test_equal_prompts_and_bad_spans_are_refused(tokenizer):
    with pytest.raises(PairError, match="both prompts are the same tokens"):
        pair_of(tokenizer, "JME denotes", "JME denotes", "JME", "JME")
    settings = {
        "pair_id": "p",
        "answer": "juvenile",
        "foil": "temporal",
        "clean": "JME denotes",
        "corrupted": "TLE denotes",
    }
    for span in ((3, 3), (9, 40), (-3, 2)):
        with pytest.raises(PairError, match="cover no token"):
            make_pair(tokenizer, **settings, clean_subject=span, corrupted_subject=(0, 3))
    with pytest.raises(PairError, match="ends with a space"):
        make_pair(tokenizer, **{**settings, "clean": "JME denotes "}, clean_subject=(0, 3), corrupted_subject=(0, 3))


def test_answers_bring_their_space(tokenizer):
    assert tokenizer.decode(answer_tokens(tokenizer, "juvenile myoclonic")) == " juvenile myoclonic"


def test_buckets_keep_order_and_lose_nothing():
    def sized(name, length):
        return plain_pair(
            pair_id=name,
            clean=(1,) * length,
            corrupted=(2,) * length,
            roles=("subject_last", *("relation",) * (length - 1)),
        )

    pairs = [sized("a", 3), sized("b", 2), sized("c", 3), sized("d", 1)]
    buckets = bucket_by_length(pairs)
    assert {length: [pair.pair_id for pair in bucket] for length, bucket in buckets.items()} == {
        1: ["d"],
        2: ["b"],
        3: ["a", "c"],
    }
    assert list(buckets) == [1, 2, 3]


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


@pytest.mark.skipif("CLAP_REAL_DATA" not in os.environ, reason="needs GPT-2's own tokenizer")
def test_with_the_tokenizer_of_gpt2():
    from transformers import GPT2TokenizerFast

    gpt2 = GPT2TokenizerFast.from_pretrained(Path(os.environ["CLAP_REAL_DATA"]) / "gpt2_tokenizer")
    pair = pair_of(gpt2, "In cells, the β-blocker is", "In cells, the α-blocker is", "β-blocker", "α-blocker")
    subject = [token for token, role in zip(pair.clean, pair.roles, strict=True) if role.startswith("subject")]
    assert gpt2.decode(subject) == " β-blocker"


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
