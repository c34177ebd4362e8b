"""Prompt pairs: alignment of tokens, and roles."""

import copy
import os
from pathlib import Path

import pytest
from tiny import plain_pair
from tokenizers.processors import TemplateProcessing

from helpers.pairs import (
    ANSWER,
    PairError,
    answer_tokens,
    bucket_by_length,
    make_pair,
    token_roles,
)


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
        ({"answer_set": (5, 9, 8, 9)}, "token 9 stands twice in its answer_set, and would count twice"),
        ({"foil_set": (7, 7)}, "token 7 stands twice in its foil_set"),
        ({"answer_set": (5, 7)}, "token 7 is among the right answers and the wrong ones"),
    ],
)
def test_a_pair_refuses(changes, message):
    with pytest.raises(PairError, match=message):
        plain_pair(**changes)


def test_the_role_of_an_answer_stands_behind_a_prompt():
    """For a pair it is a role like the others; that nothing is patched there is the plans' business."""
    pair = plain_pair(clean=(1, 2, 3, 5), corrupted=(1, 4, 3, 5), roles=("prefix", "subject_last", "last", ANSWER))
    assert pair.positions == 4 and pair.first_difference == 1


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


def test_a_token_behind_the_prompt_is_refused(tokenizer):
    """What a tokenizer puts before a prompt shifts all positions alike; behind it, the answer would be read there."""
    ends = copy.deepcopy(tokenizer)
    prompts = "In this report, JME denotes", "In this report, TLE denotes", "JME", "TLE"
    for form, positions in (("<|endoftext|> $A", 7), ("$A", 6)):
        ends.backend_tokenizer.post_processor = TemplateProcessing(single=form, special_tokens=[("<|endoftext|>", 0)])
        assert pair_of(ends, *prompts).roles.index("subject_last") == positions - 2
    ends.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    with pytest.raises(PairError, match="Pair p: the tokenizer puts '<.endoftext.>' behind the prompt.* turn that off"):
        pair_of(ends, *prompts)


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


@pytest.mark.skipif("CLAP_REAL_DATA" not in os.environ, reason="needs GPT-2's own tokenizer")
def test_with_the_tokenizer_of_gpt2():
    from transformers import GPT2TokenizerFast

    gpt2 = GPT2TokenizerFast.from_pretrained(Path(os.environ["CLAP_REAL_DATA"]) / "gpt2_tokenizer")
    pair = pair_of(gpt2, "In cells, the β-blocker is", "In cells, the α-blocker is", "β-blocker", "α-blocker")
    subject = [token for token, role in zip(pair.clean, pair.roles, strict=True) if role.startswith("subject")]
    assert gpt2.decode(subject) == " β-blocker"
