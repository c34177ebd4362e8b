"""Sentences and phrases: by hand on made sentences, and spans that always fit on any text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.phrases import (
    MOST_WORDS,
    is_unsure,
    looks_plural,
    phrase_after,
    phrase_before,
    sentences,
)


def part(text, span):
    return None if span is None else text[slice(*span)]


def after(text, **options):
    return part(text, phrase_after(text, 0, **options))


def before(text, *, singular=True):
    return part(text, phrase_before(text, len(text), singular=singular))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("One. Two.", ["One.", "Two."]),
        (
            "BACKGROUND: Is it so? We asked. MAIN RESULTS: 5 fell.",
            ["Is it so?", "We asked.", "5 fell."],
        ),
        ("AIMS: To ask. METHODS: We asked.", ["To ask.", "We asked."]),
        ("We saw E. coli vs. S. aureus, e.g. MRSA. It grew.", ["We saw E. coli vs. S. aureus, e.g. MRSA.", "It grew."]),
        ("P was 0.05 (Fig. 2). All (n = 3) fell.", ["P was 0.05 (Fig. 2).", "All (n = 3) fell."]),
        ('He said "yes." Then 3 left', ['He said "yes."', "Then 3 left"]),
        ("", []),
    ],
)
def test_sentences_by_hand(text, expected):
    assert [text[start:stop] for start, stop in sentences(text)] == expected


@given(st.text(alphabet="aB. ?!():1\n", max_size=80))
def test_sentences_are_in_order_and_lose_no_letter(text):
    spans = list(sentences(text))
    assert all(start < stop for start, stop in spans)
    assert all(one[1] <= two[0] for one, two in zip(spans, spans[1:], strict=False))
    assert "".join(text[start:stop] for start, stop in spans).replace(" ", "").replace("\n", "") == "".join(
        text.split()
    )


@pytest.mark.parametrize(
    "text, expected",
    [
        ("the risk of stroke in adults.", "risk of stroke"),
        ("a significantly higher risk of stroke, fever and pain.", "higher risk of stroke"),
        ("both death and stroke.", "death"),
        ("an increase in body weight after surgery.", "increase in body weight"),
        ("progression to dementia (p < 0.01).", "progression to dementia"),
        ("decreased survival of patients with cancer.", "decreased survival"),
        ("stroke", "stroke"),
        ("stroke patients with fever.", None),
        ("survival of stroke patients.", None),
        ("pre- and postoperative pain.", None),
        ("lower operative and late mortality.", None),
        ("higher rates.", None),
        ("it.", None),
        ("these changes in sleep.", None),
        ("failing to sleep.", None),
        ("the ability to sleep.", "ability to sleep"),
        ("differences between the arms.", None),
        ("5 of them.", None),
        ("smaller gain of 0.3 points.", None),
        ("one two.", None),
        ("deep left cold old dry thin dark brown fox.", None),
        ("", None),
    ],
)
def test_what_follows_by_hand(text, expected):
    assert after(text) == expected


def test_a_definition_is_only_taken_whole():
    assert after("pain that lasts.", whole=True) is None and after("pain that lasts.") == "pain"
    assert after("lasting pain.", whole=True) == after("lasting pain (p. 3).", whole=True) == "lasting pain"
    assert after("death, stroke or pain.", whole=True) is None and after("death, stroke or pain.") == "death"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Obesity", "Obesity"),
        ("The use of opioids", "use of opioids"),
        ("In women, low birth weight", "low birth weight"),
        ("We found that obstructive sleep apnea (OSA)", "obstructive sleep apnea"),
        ("Age, sex, and smoking", "smoking"),
        ("In women low birth weight", None),
        ("It", None),
        ("These patients", None),
        ("Patients with epilepsy", None),
        ("Weight and the rate of which", None),
        ("Loss that", None),
        ("We saw obesity", None),
        ("A 5 % loss", None),
    ],
)
def test_what_stands_before_by_hand(text, expected):
    assert before(text) == expected


def test_of_a_list_only_a_plural_verb_takes_the_last_member():
    assert before("Obesity and smoking", singular=False) == "smoking"
    assert before("Obesity and smoking", singular=True) is None
    assert before("Levels of sodium and glucose", singular=False) is None
    assert before("Pre- and postoperative pain", singular=False) is None
    assert before("The difference between weight and height", singular=False) is None


@pytest.mark.parametrize(
    "sentence, unsure",
    [
        ("A is associated with B.", False),
        ("A is not associated with B.", True),
        ("A may be associated with B.", True),
        ("A was inversely associated with B.", True),
        ("We asked whether A is associated with B.", True),
        ("Our hypothesis was simple, and A is associated with B.", True),
        ("Is A associated with B?", True),
        ("C did not differ, but A is associated with B.", False),
        ("A predicted no-reflow.", False),
        ("A was a good prognostic factor for B.", True),
        ("A was a favourable independent prognostic factor for B.", True),
        ("A was a protective factor for B.", True),
        ("A was no predictor of B.", True),
        ("A was a poor predictor of B.", True),
        ("We found a negative correlation between A and B.", True),
        ("A good diet is associated with B.", False),
        ("A was a strong predictor of B.", False),
    ],
)
def test_what_is_not_stated(sentence, unsure):
    assert is_unsure(sentence, len(sentence) - 1) is unsure


def test_what_comes_after_the_statement_does_not_count():
    for rest in (", but not with C.", " but was not treated.", " (though not in men).", " and can be treated."):
        assert not is_unsure(f"A is associated with B{rest}", len("A is associated with B"))


@pytest.mark.parametrize(
    "rest",
    [
        " was not significant.",
        " (r = 0.1, p = 0.4) was not significant.",
        " in men was no longer seen.",
        " proved non-significant.",
    ],
)
def test_what_is_denied_after_its_last_phrase_is_not_stated(rest):
    stated = "We found that the association between A and B"
    assert is_unsure(f"{stated}{rest}", len(stated)) and not is_unsure(f"{stated} was clear.", len(stated))


def test_plural_heads():
    plural = ["levels of sodium", "low scores", "analyses", "criteria", "women"]
    singular = ["diabetes mellitus", "loss of weight", "stenosis", "virus", "use of statins"]
    assert [looks_plural(phrase) for phrase in plural] == [True] * len(plural)
    assert [looks_plural(phrase) for phrase in singular] == [False] * len(singular)


@given(st.text(alphabet="the of and risk, (A)1.", max_size=60), st.booleans())
def test_a_phrase_is_words_of_the_text_and_of_bounded_length(text, singular):
    middle = len(text) // 2
    for span in (phrase_after(text, middle), phrase_before(text, middle, singular=singular)):
        if span:
            assert 0 <= span[0] < span[1] <= len(text) and len(text[slice(*span)].split()) <= MOST_WORDS
            assert text[slice(*span)].strip() == text[slice(*span)]
