"""Abbreviations: both orders, what is rejected, and that every letter of a short form is in its long form."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.abbreviations import find_abbreviations


def found(sentence):
    return [(sentence[slice(*a.short)], sentence[slice(*a.long)]) for a in find_abbreviations(sentence)]


@pytest.mark.parametrize(
    "sentence, expected",
    [
        ("We saw absence epilepsy (AE) twice.", [("AE", "absence epilepsy")]),
        ("We saw AE (absence epilepsy) twice.", [("AE", "absence epilepsy")]),
        ("Attention deficit disorder (ADD; n = 5)", [("ADD", "Attention deficit disorder")]),
        ("magnetic resonance imaging [MRI, 3 T]", [("MRI", "magnetic resonance imaging")]),
        ("by 99mTc-white blood cell (WBC)", [("WBC", "white blood cell")]),
        ("an electroencephalogram (EEG)", [("EEG", "electroencephalogram")]),
        ("tumour necrosis factor α (TNF-α)", [("TNF-α", "tumour necrosis factor α")]),
        ("interferon-gamma (IFN-γ) and β-blockers (BBs)", [("IFN-γ", "interferon-gamma"), ("BBs", "β-blockers")]),
        ("any anxiety disorder (ADs)", [("AD", "anxiety disorder")]),
        ("some anxiety disorders (ADs)", [("ADs", "anxiety disorders")]),
        ("(by polymerase chain reaction (PCR))", [("PCR", "polymerase chain reaction")]),
        ("non-small cell lung cancer (NSCLC)", [("NSCLC", "non-small cell lung cancer")]),
        ("the risk of a disease (AD)", []),
        ("in African Americans (AA)", [("AA", "African Americans")]),
        ("tests and automated auditory response (AAR)", [("AAR", "automated auditory response")]),
        ("quality of life (QoL) and mean age (SD)", [("QoL", "quality of life")]),
    ],
)  # fmt: skip
def test_definitions_by_hand(sentence, expected):

    assert found(sentence) == expected


@pytest.mark.parametrize(
    "sentence",
    [
        "no patients at all (n = 5)",
        "percent confidence interval (95% CI)",
        "millimetres of height (mmHg)",
        "type one of these (I)",
        "invasive stages in veins (IV)",
        "Figures and tables (Fig. 2)",
        "saturation of peripheral oxygen (SpO(2))",
        "of boys and girls (boys)",
        "Smith and others (Smith 2001)",
        "models under oxidation markers (MDA)",
        "electron beam therapy session (EBT)",
        "an acute AE episode (AE)",
        "an unclosed bracket (UB",
        "(AB)",
        "",
    ],
)
def test_what_is_no_definition(sentence):
    assert found(sentence) == []


@given(st.lists(st.from_regex(r"[a-z]{3,8}", fullmatch=True), min_size=2, max_size=6))
def test_a_long_form_ends_at_its_bracket_and_begins_with_the_first_letter(words):
    short = "".join(word[0].upper() for word in words)
    sentence = f"Here 12 of {' '.join(words)} ({short}) were."
    for match in find_abbreviations(sentence):
        assert sentence[slice(*match.short)] == short and match.long[1] == sentence.index(" (")
        assert sentence[match.long[0]] == words[0][0] and sentence[match.long[0] - 1] == " "


@given(st.text(alphabet="aAbB cC-αβß()[],;İ1 ", max_size=60))
def test_every_letter_of_the_short_form_is_in_the_long_one_in_order(sentence):
    for short, long in found(sentence):
        names = {"α": "a", "β": "b"}
        rest = iter([names.get(c, c) for c in long.lower()])
        assert all(names.get(c, c) in rest for c in short.lower() if c.isalnum())
        assert 2 <= len(short) <= 10 and any(map(str.isupper, short))
