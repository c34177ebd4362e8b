"""Two prompts side by side: what stands against what, where they differ, and the pair they make."""

import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from words import word_tokenizer

from helpers.alignment import align, length_differences, pair_of_texts, subject_spans, visible
from helpers.pairs import PairError

WORDS = word_tokenizer()


def rows(table: pd.DataFrame, *columns: str) -> list[tuple]:
    """Columns of a table as tuples, None where there is nothing."""
    return [tuple(None if pd.isna(value) else value for value in row) for row in table[list(columns)].to_numpy(object)]


def pair_of(tokenizer, clean, corrupted, answer="w50", foil="w51"):
    return pair_of_texts(tokenizer, clean=clean, corrupted=corrupted, answer=answer, foil=foil)


def test_prompts_of_one_length_are_compared_position_by_position():
    table = align(WORDS, "w1 w2 w3 w4", "w2 w1 w3 w5")
    assert rows(table, "position", "corrupted_position", "clean", "corrupted", "same") == [
        (0, 0, "w1", "w2", False),
        (1, 1, "w2", "w1", False),
        (2, 2, "w3", "w3", True),
        (3, 3, "w4", "w5", False),
    ]


def test_a_gap_shows_which_token_makes_the_length_differ():
    table = align(WORDS, "w1 w2 w3 w4", "w1 w7 w8 w3 w4 w9")
    assert rows(table, "position", "corrupted_position", "clean", "corrupted", "same") == [
        (0, 0, "w1", "w1", True),
        (1, 1, "w2", "w7", False),
        (None, 2, None, "w8", False),
        (2, 3, "w3", "w3", True),
        (3, 4, "w4", "w4", True),
        (None, 5, None, "w9", False),
    ]
    assert length_differences(table) == [
        "1 token (w2) in the clean prompt against 2 tokens (w7|w8) in the corrupted one",
        "0 tokens in the clean prompt against 1 token (w9) in the corrupted one",
    ]


def test_a_stretch_of_one_length_is_no_difference_in_length():
    table = align(WORDS, "w1 w2 w3 w4", "w5 w2 w3")
    assert length_differences(table) == ["1 token (w4) in the clean prompt against 0 tokens in the corrupted one"]


@given(*[st.lists(st.integers(0, 5), max_size=8)] * 2)
def test_an_alignment_holds_every_token_of_both_prompts_once_and_in_order(first, second):
    clean, corrupted = (" ".join(f"w{number}" for number in numbers) for numbers in (first, second))
    table = align(WORDS, clean, corrupted)
    assert table["clean"].dropna().tolist() == clean.split()
    assert table["corrupted"].dropna().tolist() == corrupted.split()
    assert table["position"].dropna().tolist() == list(range(len(first)))
    assert table["same"].tolist() == [a == b for a, b in zip(table["clean"], table["corrupted"], strict=True)]
    # Nothing differs in length exactly where the lengths are the same.
    assert (len(first) == len(second)) == (not length_differences(table))


def test_the_subject_is_the_shortest_stretch_with_every_difference():
    clean, corrupted = "w1 w2 w3 w4 w5", "w1 w6 w3 w17 w5"
    assert subject_spans(WORDS, clean, corrupted) == ((3, 11), (3, 12))
    pair = pair_of(WORDS, clean, corrupted)
    assert pair.roles == ("prefix", "subject_first", "subject_middle", "subject_last", "last")
    assert (pair.clean, pair.corrupted, pair.answer, pair.foil) == ((1, 2, 3, 4, 5), (1, 6, 3, 17, 5), (50,), (51,))


def test_a_character_of_several_tokens_belongs_to_the_subject_as_a_whole(tokenizer):
    # é and è share their first byte; ê and a Greek letter share none.
    for clean, corrupted in (("on é denotes", "on è denotes"), ("on ê denotes", "on β denotes")):
        table = align(tokenizer, clean, corrupted)
        different = table.index[~table["same"]].tolist()
        pair = pair_of(tokenizer, clean, corrupted, "juvenile", "temporal")
        subject = [i for i, role in enumerate(pair.roles) if role.startswith("subject")]
        assert set(different) <= set(subject)
        spans = subject_spans(tokenizer, clean, corrupted)
        assert [text[a:b].strip() for text, (a, b) in zip((clean, corrupted), spans, strict=True)] == [
            clean.split()[1],
            corrupted.split()[1],
        ]
    assert len(align(tokenizer, "on é", "on è").query("not same")) == 1  # so that the first of the two is a hard case
    assert not table["clean"].str.contains("\ufffd").any()


# Characters of as many bytes, so that most draws have as many tokens.
ALIKE = [(a, b) for a in "aéèβ€ń n" for b in "aéèβ€ń n" if len(a.encode()) == len(b.encode())]


@given(st.lists(st.sampled_from(ALIKE), min_size=1, max_size=6))
def test_characters_of_several_tokens_never_stand_in_the_way_of_a_pair(tokenizer, characters):
    first, second = ("".join(side) for side in zip(*characters, strict=True))
    clean, corrupted = f"on{first}x denotes", f"on{second}x denotes"
    table = align(tokenizer, clean, corrupted)
    assume(not length_differences(table) and clean != corrupted)
    roles = pair_of(tokenizer, clean, corrupted, "juvenile", "temporal").roles
    assert all(role.startswith("subject") for role, same in zip(roles, table["same"], strict=True) if not same)


def test_white_space_is_made_visible():
    assert visible(" a\n\tb") == "␣a⏎⇥b"


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"clean": " "}, "The clean prompt must not be empty"),
        ({"answer": "", "foil": " "}, "The answer and the foil must not be empty"),
        (
            {"corrupted": "w1 w7 w8 w3"},
            r"different numbers of tokens: 1 token \(w2\) in the clean prompt against 2 tokens \(w7\|w8\) in the "
            r"corrupted one\. Choose a corrupted subject of the same token length",
        ),
        ({"corrupted": "w1 w2 w3"}, "both prompts are the same tokens"),
        ({"corrupted": "w1 w4 w3 "}, "ends with a space, which belongs to the answer"),
        ({"foil": "w50 w2"}, "begin with the same token 'w50'"),
    ],
)
def test_what_is_no_pair_is_refused_in_a_sentence(changes, sentence):
    texts = {"clean": "w1 w2 w3", "corrupted": "w1 w4 w3", "answer": "w50", "foil": "w51"}
    assert pair_of_texts(WORDS, **texts).positions == 3
    with pytest.raises(PairError, match=sentence):
        pair_of_texts(WORDS, **(texts | changes))
